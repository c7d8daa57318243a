"""Texts for the terminal."""

import concurrent.futures
import multiprocessing
import os

import pytest

from align_jax.errors import printable, run_command


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


def test_a_killed_process_of_a_command_is_one_line(capsys):
    def command():
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            pool.submit(os.abort).result()

    assert run_command("data.index", command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("data.index: A process in the process pool")
    assert line.endswith("for lack of memory; the same command continues.")
