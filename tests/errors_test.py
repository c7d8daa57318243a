"""Texts for the terminal."""

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys

import pytest

from align_jax.errors import InputError, check_count, printable, run_command


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red straße 猫 🐈", "a red straße 猫 🐈"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\tb\r\n", r"a\tb\r\n"),
        ("left \u202e right", r"left \u202e right"),
        ("caf\udce9.png", r"caf\udce9.png"),
    ],
)
def test_what_could_act_on_a_terminal_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown


UNAWAITED_THREAD = """
import threading, sys, time, jax, jax.numpy as jnp
from align_jax import errors

def compile_long():
    x = jnp.ones((8, 8))
    def grow(x):
        for i in range(2_000):
            x = jnp.sin(x @ x) + i
        return x
    jax.jit(jax.grad(lambda x: grow(x).sum())).lower(x).compile()
    print("waited")

jnp.ones(3).block_until_ready()
if sys.argv[1:]:
    threading.Thread(target=compile_long, name=errors.UNAWAITED, daemon=True).start()
    time.sleep(1)
print("before", end="")
sys.exit(errors.end_unawaited(7))
"""


@pytest.mark.parametrize("arguments", [(), ("compile",)])
def test_a_process_ends_with_its_code_while_a_thread_compiles(arguments):
    command = [sys.executable, "-c", UNAWAITED_THREAD, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout, found.stderr) == (7, "before", "")


def test_a_killed_process_of_a_command_is_one_line(capsys):
    def command():
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            pool.submit(os.abort).result()

    assert run_command("data.index", command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("data.index: A process in the process pool")
    assert line.endswith("for lack of memory; the same command continues.")


@pytest.mark.parametrize("count", [0, 1_999])
def test_a_set_of_another_size_is_refused(count):
    check_count("DIR", 2_000, 2_000, "pictures")
    check_count("DIR", 2_000, 0, "pictures")
    with pytest.raises(
        InputError, match=rf"^DIR has {count:,} pictures; wanted 2,000$"
    ):
        check_count("DIR", count, 2_000, "pictures")
    with pytest.raises(InputError, match=r"^DIR has 0 texts; wanted one or more$"):
        check_count("DIR", 0, 0, "texts")
