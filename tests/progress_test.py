import io
import sys
import time

import pytest

from align_jax.progress import doing


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_the_seconds_pass(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with doing("compiling"):
        deadline = time.monotonic() + 30
        while "compiling: 1 s" not in terminal.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    shown = terminal.getvalue().split("\r")
    assert shown[:2] == ["compiling: 0 s", "compiling: 1 s"]
    assert terminal.getvalue().count("\n") == 1
    assert shown[-1].endswith(" s\n")


def test_other_output_does_not_follow_the_seconds_in_their_line(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with doing("compiling"):
        deadline = time.monotonic() + 30
        while not terminal.getvalue().endswith(" s\r"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_error_clears_the_line_of_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(ValueError, match="wrong"), doing("compiling"):
        raise ValueError("wrong")
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert "\n" not in terminal.getvalue()


def test_a_log_has_one_line_at_the_beginning(capsys):
    with doing("compiling"):
        assert capsys.readouterr().err == "compiling\n"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_say_nothing(monkeypatch, terminal):
    text = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    with doing("compiling", shown=False):
        pass
    assert text.getvalue() == ""
