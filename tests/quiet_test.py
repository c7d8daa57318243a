import os
import subprocess
import sys

import pytest

# Lines of TensorFlow and XLA at the import, on CPUs and on GPUs.
NOISE = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to"
    " STDERR",
    "I0000 00:00:1795932181.101747 6782 port.cc:153] oneDNN custom operations are on.",
    "I0000 00:00:1795932181.101747 6782 cpu_feature_guard.cc:227] This TensorFlow"
    " binary is optimized to use available CPU instructions.",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild",
    "E0000 00:00:1795932181.101747 6782 cuda_fft.cc:477] Unable to register cuFFT"
    " factory",
]
KEPT = ["F0000 00:00:1795932181.1 6782 cpu.cc:1] wants AVX2", "a traceback", "Im here"]


@pytest.fixture
def run(tmp_path):
    """A function that imports a package `tensorflow` in a command; returns stderr."""
    (tmp_path / "tensorflow").mkdir()
    lines = "".join(f"{line}\n" for line in NOISE + KEPT)
    package = f"import os\nos.write(2, {lines!r}.encode())\nvalue = 7\n"
    (tmp_path / "tensorflow" / "__init__.py").write_text(package)

    def start(code, **variables):
        source = f"from align_jax.errors import run_command\ndef f():\n{code}\n"
        done = subprocess.run(
            [sys.executable, "-c", f"{source}raise SystemExit(run_command('x', f))"],
            env={**os.environ, "PYTHONPATH": str(tmp_path), **variables},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr.splitlines()

    return start


def test_lines_of_the_start_are_dropped_and_no_others(run):
    code = " import tensorflow, tensorflow as tf, inspect\n assert tf.value == 7"
    assert run(f"{code}\n assert inspect.getsource(tf)") == (0, KEPT)


def test_a_variable_shows_all_lines(run):
    shown = run(" import tensorflow", TF_CPP_MIN_LOG_LEVEL="0")
    assert shown == (0, NOISE + KEPT)


def test_lines_are_written_also_if_the_import_fails(run, tmp_path):
    with (tmp_path / "tensorflow" / "__init__.py").open("a") as package:
        package.write("import no_such_part\n")
    code, lines = run(" import tensorflow")
    assert code == 2
    assert lines[:3] == KEPT
    assert "package 'no_such_part' is missing" in lines[3]


def test_tensorflow_itself_is_quiet_in_processes_of_data():
    """The processes that a command starts import `data` but run no command."""
    done = subprocess.run(
        [sys.executable, "-c", "import data.records.records"],
        stderr=subprocess.PIPE,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
    )
    assert done.stderr == b""
