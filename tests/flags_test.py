import subprocess
import sys

import pytest

from align_jax.command_line import read_command_line
from align_jax.errors import UNREAD, InputError, run_command
from align_jax.training.training_runs import read_run_config

QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture(autouse=True)
def no_config_read_before(monkeypatch):
    """Forgets the files of other tests: ml_collections loads into the same module."""
    for name in ("config", "diff"):
        monkeypatch.delitem(sys.modules, f"{name}_config", raising=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"^the file of --config has no get_config\(\)$"),
        ("fields = {}\n", r"^the file of --config has no get_config\(\)$"),
        (
            "def get_config():\n  return {'run': 'x'}\n",
            r"returned a dict; wanted a Conf",
        ),
        (
            "def get_config():\n  raise ValueError('a\\nb')\n",
            "bad flags: .* file: a b$",
        ),
    ],
)
def test_a_config_file_without_a_config_is_refused(content, message, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_command_line(["main.py", f"--config={file}", "--workdir=x"])


def test_the_flag_of_a_file_without_a_config_is_named(tmp_path):
    file = tmp_path / "other.py"
    file.write_text("")
    with pytest.raises(InputError, match="file of --diff has no get_config"):
        read_command_line(["main.py", QUICKSTART, f"--diff={file}"])


def test_phases_are_given_as_a_tuple_on_the_command_line(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from configs import quickstart\n\n\ndef get_config():\n"
        "    config = quickstart.get_config()\n    config.phases = ()\n"
        "    return config\n"
    )
    sizes = "((0, {'image_size': 16, 'max_tokens': 8}), (900, {'flip': False}))"
    flags = ["main.py", f"--config={file}", "--plan=here"]
    fields = read_command_line([*flags, f"--config.phases={sizes}"]).fields
    phases = read_run_config(fields).batch_phases
    assert [phase.start for phase in phases] == [0, 900]
    assert [phase.preprocess.image_size for phase in phases] == [16, 32]
    fields = read_command_line([*flags, "--config.phases=32"]).fields
    with pytest.raises(InputError, match=r"config.phases\[0\] is 32 \(int\); wanted"):
        read_run_config(fields)
    message = "^bad flags: tuple index out of range; give the whole tuple"
    with pytest.raises(InputError, match=message):
        read_command_line([*flags, "--config.phases[0]=32"])


def test_a_field_that_the_file_leaves_out_is_to_be_added_there():
    # The last one is a field of the model, though it is like one in the file.
    for name, hint in (
        ("model.image_tower.kind", "add"),
        ("loss.temperature_flor", "did you mean 'temperature_floor'? If not, add"),
        ("model.temperature_form", "did you mean 'temperature_init'? If not, add"),
    ):
        with pytest.raises(InputError) as caught:
            read_command_line(["main.py", QUICKSTART, f"--config.{name}=1"])
        path = name.rpartition(".")[2]
        assert f"file has no field '{path}'; {hint}" in str(caught.value)
        assert str(caught.value).endswith("since flags set only fields that are there")


@pytest.mark.parametrize("flag", ["--plan=", "--workdir="])
def test_an_empty_flag_is_refused(flag):
    with pytest.raises(InputError, match=f"^{flag[:-1]} is empty; give it a value"):
        read_command_line(["main.py", QUICKSTART, flag])


def test_compiling_needs_a_folder_for_the_programs():
    with pytest.raises(InputError, match=r"--compile .* folder; add --workdir"):
        read_command_line(["main.py", QUICKSTART, "--plan=here", "--compile"])
    flags = read_command_line(["main.py", QUICKSTART, "--workdir=run", "--compile"])
    assert flags.compile
    assert flags.plan is None


def test_output_that_nobody_reads_ends_without_a_traceback():
    lines = "lambda: print('x\\n' * 100_000)"
    source = f"from align_jax.errors import *; sys.exit(run_command('it', {lines}))"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=pipe, stderr=pipe
    ) as p:
        p.stdout.readline()
        p.stdout.close()
        assert p.stderr.read() == b""
    assert p.returncode == UNREAD


def test_another_broken_pipe_is_raised():
    def command():
        raise BrokenPipeError("of a socket")

    with pytest.raises(BrokenPipeError, match="of a socket"):
        run_command("it", command)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ([], (34, 340)),
        (["--config.total_steps=300"], (6, 60)),
        (["--config.total_steps=300", "--config.optimizer.warmup_steps=9"], (9, 60)),
        (["--config.optimizer.cooldown_steps=9", "--config.total_steps=300"], (6, 9)),
    ],
)
def test_the_quickstart_warms_up_and_cools_down_in_a_share_of_its_steps(flags, steps):
    line = read_command_line(["main.py", QUICKSTART, "--workdir=x", *flags])
    optimizer = read_run_config(line.fields).optimizer
    assert (optimizer.warmup_steps, optimizer.cooldown_steps) == steps
