"""The launch files, as far as they can be tested without a cloud."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"

# Plays gcloud. The file `state` holds the slice's state; each training ends as the next
# line of the file `outcomes` says.
FAKE_GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$FOLDER/calls"
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


def run(script, folder, tools, launch=LAUNCH, **environment):
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(launch / script)],
        env=os.environ | {"PATH": path, "FOLDER": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(folder):
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", ["gcloud_tpu.sh", "slurm.sbatch"])
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


@pytest.mark.parametrize(
    "settings",
    [
        {"RUN": "a b; touch injected; :"},
        {"BUCKET": "gs://$(touch injected)/`touch injected`"},
    ],
)
def test_names_reach_the_slice_as_they_were_typed(tmp_path, settings):
    main = tmp_path / ".venv" / "bin" / "python"
    main.parent.mkdir(parents=True)
    main.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" > arguments\n')
    main.chmod(0o755)
    done = start_slice(tmp_path, ["executed"], **settings)
    assert done.returncode == 0, done.stderr
    bucket = settings.get("BUCKET", "gs://bucket")
    run_name = settings.get("RUN", "align_b7_base")
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert f"--workdir={bucket}/runs/{run_name}" in arguments
    assert f"--config.vocabulary={bucket}/corpus/records/vocabulary.txt" in arguments
    assert not (tmp_path / "injected").exists()


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
