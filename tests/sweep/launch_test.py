"""The launch files, as far as they can be tested without a cloud."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"

# Plays gcloud. The file `state` holds the slice's state; each training ends as the next
# line of the file `outcomes` says.
FAKE_GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$FOLDER/calls"
printf "%s\\n" "$@" >> "$FOLDER/argv"
case "$*" in
  *describe*)
    [ -f "$FOLDER/state" ] || { echo "NOT_FOUND: no such resource" >&2; exit 1; }
    cat "$FOLDER/state" ;;
  *queued-resources\\ create*)
    [ -z "${REFUSAL:-}" ] || { echo "$REFUSAL" >&2; exit 1; }
    echo ACTIVE > "$FOLDER/state" ;;
  *delete*) rm "$FOLDER/state" ;;
  *main.py*)
    read -r outcome < "$FOLDER/outcomes"
    sed -i 1d "$FOLDER/outcomes"
    command="${!#}"
    [ "$outcome" = executed ] && cd "$FOLDER" && \
      bash -c "${command#--command=cd align && }" && exit
    [ "$outcome" = preempted ] && echo SUSPENDED > "$FOLDER/state"
    [ "$outcome" = finished ] ;;
esac
"""
FAKE_SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$FOLDER/calls"
exit "$CODE"
"""
FAKE_SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$FOLDER/calls"
"""


def run(script, folder, tools, *flags, launch=LAUNCH, **environment):
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{environment.pop('PATH', os.environ['PATH'])}"
    return subprocess.run(
        ["bash", str(launch / script), *flags],
        env=os.environ | {"PATH": path, "FOLDER": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(folder):
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", ["gcloud_tpu.sh", "slurm.sbatch", "xpk_tpu.sh"])
def test_scripts_are_whole(script):
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)


def start_slice(folder, outcomes, **settings):
    (folder / "outcomes").write_text("".join(f"{outcome}\n" for outcome in outcomes))
    where = {"BUCKET": "gs://bucket", "ZONE": "a-zone", "POLL": "0", "NAME": "align-t"}
    return run("gcloud_tpu.sh", folder, {"gcloud": FAKE_GCLOUD}, **where | settings)


def test_a_slice_that_is_taken_away_is_asked_for_again_and_deleted_at_the_end(tmp_path):
    outcomes = ["preempted"] * 4 + ["finished"]
    done = start_slice(tmp_path, outcomes)
    assert done.returncode == 0, done.stderr
    assert "align_b7_base is finished: gs://bucket/runs/align_b7_base" in done.stdout
    made = [call for call in calls(tmp_path) if "queued-resources create" in call]
    assert len(made) == 5
    assert all("--spot" in call for call in made)
    trained = [call for call in calls(tmp_path) if "main.py --distributed" in call]
    assert len(trained) == 5
    assert "--worker=all" in trained[0]
    assert "--workdir=gs://bucket/runs/align_b7_base" in trained[0]
    assert not (tmp_path / "state").exists()


def test_a_run_that_fails_on_a_slice_that_is_there_ends_after_three_tries(tmp_path):
    failed = start_slice(tmp_path, ["failed"] * 9)
    assert failed.returncode == 1
    assert "align_b7_base failed 3 times in a row" in failed.stderr
    assert sum("main.py" in call for call in calls(tmp_path)) == 3
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "refusal", ["PERMISSION_DENIED: no such type", "INVALID_ARGUMENT: no such zone"]
)
def test_a_request_that_is_refused_three_times_ends_the_launch(tmp_path, refusal):
    refused = start_slice(tmp_path, [], REFUSAL=refusal)
    assert refused.returncode == 1
    assert refused.stderr.count(refusal) == 3
    assert "align_b7_base failed 3 times in a row" in refused.stderr


def test_the_code_is_packed_in_a_folder_that_nobody_can_guess(tmp_path):
    start_slice(tmp_path, ["finished"], TMPDIR=str(tmp_path))
    (packed,) = [call for call in calls(tmp_path) if " scp " in call]
    path = pathlib.Path(packed.split()[4])
    assert path.parents[1] == tmp_path
    assert not path.parent.exists()


def test_what_is_not_committed_is_named_before_a_slice_is_asked_for(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    shutil.copy(LAUNCH / "gcloud_tpu.sh", clone / "launch")
    (clone / "configs" / "mine.py").write_text("# a config\n")
    where = {"launch": clone / "launch", "CONFIG": "configs/mine.py"}
    refused = start_slice(tmp_path, ["finished"], **where)
    assert refused.returncode == 1
    assert "configs/mine.py is not committed" in refused.stderr
    assert not (tmp_path / "calls").exists()
    done = start_slice(tmp_path, ["finished"], launch=clone / "launch")
    assert done.returncode == 0
    assert "without these changes:\n" in done.stderr
    assert "?? configs/mine.py\n" in done.stderr


@pytest.mark.parametrize(("code", "again"), [("0", 0), ("143", 1), ("2", 0)])
def test_a_job_that_was_told_to_stop_is_queued_again(tmp_path, code, again):
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "DATA": "/corpus"}
    tools = {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL}
    done = run("slurm.sbatch", tmp_path, tools, CODE=code, **job)
    assert done.returncode == int(code)
    first, *rest = calls(tmp_path)
    assert "--config.input.datasets.corpus.directory=/corpus/records" in first
    assert rest == ["scontrol requeue 7"] * again


def test_what_is_missing_is_named(tmp_path):
    assert "gs://... that has the records" in run("gcloud_tpu.sh", tmp_path, {}).stderr
    assert "folder with the records" in run("slurm.sbatch", tmp_path, {}).stderr
    assert "gs://... that has the records" in run("xpk_tpu.sh", tmp_path, {}).stderr


@pytest.mark.parametrize("number", [{"TRIES": "three"}, {"POLL": "1 m"}])
def test_a_number_that_is_none_ends_before_a_slice_is_asked_for(tmp_path, number):
    refused = start_slice(tmp_path, ["finished"], **number)
    ((name, value),) = number.items()
    assert refused.returncode == 1
    assert f"{name} is '{value}'; wanted a number" in refused.stderr
    assert not (tmp_path / "calls").exists()


PRINT = """#!/usr/bin/env bash
printf "%s\\n" "$@" >> "$FOLDER/argv"
"""
FAKE_XPK = (
    PRINT
    + """
for argument; do
  case "$argument" in
    --command=*) bash -c "${argument#--command=cd /align && }" ;;
  esac
done
"""
)


def train_on_a_slice(folder, settings):
    start_slice(folder, ["executed"], **settings)


def train_by_slurm(folder, settings):
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "DATA": "/corpus"}
    run("slurm.sbatch", folder, {"srun": PRINT}, **job | settings)


def train_by_xpk(folder, settings):
    given = dict.fromkeys(("IMAGE", "CLUSTER", "PROJECT", "ZONE"), "x")
    given |= {"BUCKET": "gs://bucket"} | settings
    return run("xpk_tpu.sh", folder, {"xpk": FAKE_XPK, "python": PRINT}, **given)


def train_by_skypilot(folder, settings):
    task = yaml.safe_load((LAUNCH / "sky_tpu.yaml").read_text())
    given = task["envs"] | {"BUCKET": "gs://bucket"} | settings
    environment = os.environ | {"FOLDER": str(folder)} | given
    subprocess.run(["bash", "-c", task["run"]], cwd=folder, env=environment)


def train_by_jobset(folder, settings):
    """Puts variables into arguments as Kubernetes does, without a shell."""
    task = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (job,) = task["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    given = {pair["name"]: pair["value"] for pair in container["env"]}
    given |= {"BUCKET": "gs://bucket"} | settings
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda match: given[match[1]], argument)
        for argument in container["args"]
    ]
    (folder / "argv").write_text("\n".join(arguments))


# The files that start runs, each with the arguments in which its variables must arrive.
TRAINED = ("--config={CONFIG}", "--workdir={BUCKET}/runs/{RUN}")
STARTS = {
    "gcloud_tpu.sh": (
        train_on_a_slice,
        *TRAINED,
        "--node-id={NAME}",
        "--runtime-version={RUNTIME}",
        "--accelerator-type={TYPE}",
        "--zone={ZONE}",
    ),
    "jobset.yaml": (train_by_jobset, *TRAINED),
    "sky_tpu.yaml": (train_by_skypilot, *TRAINED),
    "slurm.sbatch": (
        train_by_slurm,
        "--config={CONFIG}",
        "--workdir={WORKDIR}",
        "--config.input.datasets.corpus.directory={DATA}/records",
        "--config.vocabulary={DATA}/records/vocabulary.txt",
    ),
    "xpk_tpu.sh": (
        train_by_xpk,
        *TRAINED,
        "--cluster={CLUSTER}",
        "--docker-image={IMAGE}",
        "--workload={NAME}",
        "--project={PROJECT}",
        "--max-restarts={RESTARTS}",
        "--num-slices={SLICES}",
        "--tpu-type={TYPE}",
        "--zone={ZONE}",
    ),
}
NUMBERS = {"POLL", "TRIES"}  # other values are refused


def variables_of(script):
    """Names the variables that a launch file reads, and those that its STARTS have."""
    text = (LAUNCH / script).read_text()
    pattern = r"\$\(?([A-Z]+)" if script.endswith(".yaml") else r"\$\{([A-Z]+):"
    given = re.findall(r"\{(\w+)\}", " ".join(STARTS[script][1:]))
    return set(re.findall(pattern, text)) - NUMBERS, set(given)


def test_every_variable_of_every_launch_file_is_typed_below():
    files = {path.name for path in LAUNCH.iterdir()} - {"Dockerfile"}
    assert files == STARTS.keys()
    for script in STARTS:
        read, given = variables_of(script)
        assert read == given, script


@pytest.mark.parametrize("script", STARTS)
def test_any_value_reaches_the_run_as_it_was_typed(tmp_path, script):
    harm = f"touch {tmp_path}/injected"
    text = f"a b; {harm}; $({harm}) `{harm}` 'x\" \\ * # {{}}"
    values = {name: f"{text} {name}" for name in variables_of(script)[0]}
    # The config is a file that exists, and its argument.
    values["CONFIG"] = f"configs/pretrain_align_b7_base.py:{text}"
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(PRINT)
    program.chmod(0o755)
    start, *arguments = STARTS[script]
    start(tmp_path, values)
    argv = (tmp_path / "argv").read_text().splitlines()
    assert {argument.format_map(values) for argument in arguments} <= {*argv}
    assert not (tmp_path / "injected").exists()


def test_xpk_gets_the_slices_and_the_command_of_their_hosts(tmp_path):
    done = train_by_xpk(tmp_path, {"SLICES": "2"})
    assert done.returncode == 0, done.stderr
    argv = (tmp_path / "argv").read_text().splitlines()
    (command,) = [word for word in argv if word.startswith("--command=")]
    assert argv[:2] == ["workload", "create"]
    assert {"--num-slices=2", "--tpu-type=v5litepod-256", "--max-restarts=50"} < {*argv}
    words = shlex.split(command.removeprefix("--command="))
    assert words[:6] == ["cd", "/align", "&&", "exec", "python", "main.py"]
    assert words[6:] == argv[argv.index("main.py") + 1 :]
    assert "--workdir=gs://bucket/runs/align_b7_base" in words


@pytest.mark.launch
def test_skypilot_reads_its_task():
    program = """
import sys, yaml, sky
fields = yaml.safe_load(open(sys.argv[1]))
task = sky.Task.from_yaml_config(fields, env_overrides=[("BUCKET", "gs://bucket")])
(found,) = task.resources
assert found.use_spot and found.accelerators == {"tpu-v5litepod-256": 1}, found
assert found.job_recovery["strategy"] == "EAGER_NEXT_REGION"
assert task.envs["CONFIG"] == "configs/pretrain_align_b7_base.py"
"""
    python = ROOT / ".venv-launch" / "bin" / "python"
    command = [str(python), "-c", program, str(LAUNCH / "sky_tpu.yaml")]
    subprocess.run(command, check=True)


@pytest.mark.launch
def test_xpk_makes_a_jobset_of_its_workload(tmp_path):
    settings = dict.fromkeys(("CLUSTER", "PROJECT", "IMAGE"), "x")
    settings |= {"BUCKET": "gs://b", "ZONE": "us-central1-a", "NAME": "align-x"}
    settings |= {"RUN": "a b; touch $(ls) 'x", "SLICES": "2", "HOME": str(tmp_path)}
    path = f"{ROOT}/.venv-xpk/bin:{os.environ['PATH']}"
    manifest = tmp_path / "manifest.yaml"
    done = run(
        "xpk_tpu.sh",
        tmp_path,
        {},
        "--dry-run",
        "--skip-validation",
        f"--output-manifest-file={manifest}",
        **settings | {"PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = yaml.safe_load(manifest.read_text())
    (job,) = made["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 50
    assert (job["replicas"], job["template"]["spec"]["completions"]) == (2, 64)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
    program = container["command"][-1]
    command = re.search(r"\((cd /align && .*)\) & PID", program)[1]
    assert f"--workdir=gs://b/runs/{settings['RUN']}" in shlex.split(command)
