import os
import signal

import pytest

from align_jax.errors import STOPPED, Preempted
from align_jax.runs.preemption import Notice


class Left(BaseException):
    """Ends the process in a test."""


def test_a_process_that_cannot_save_in_time_promises_no_checkpoint(monkeypatch, capsys):
    def leave(code):
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    read, write = os.pipe()
    os.write(write, bytes([signal.SIGTERM]))
    with pytest.raises(Left) as left:
        Notice(grace=0)._watch(read)
    os.close(write)
    assert left.value.args == (STOPPED,)
    message = capsys.readouterr().err
    assert "left after 0 s without saving; the same command continues" in message
    assert "begins again if there is none" in message


def fail_after(act):
    """Raises KeyError in the `finally` block of code that `act` interrupts."""
    with Notice():
        try:
            act()
        finally:
            {}["absent"]


def interrupt_evaluation(notice):
    with notice.leaving_at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            {}["absent"]


def test_an_error_of_interrupted_code_does_not_hide_the_notice():
    with pytest.raises(Preempted, match="told to stop"):
        fail_after(lambda: signal.raise_signal(signal.SIGTERM))


def test_a_run_can_go_on_to_save_after_its_evaluation_was_interrupted():
    with Notice() as notice:
        notice.leaves_at_once = False
        with pytest.raises(Preempted):  # not KeyError
            interrupt_evaluation(notice)
        assert notice.reached(7)


def test_a_notice_just_before_an_evaluation_ends_it_too():
    with Notice() as notice:
        notice.leaves_at_once = False
        assert not notice.reached(7)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Preempted), notice.leaving_at_once():
            raise AssertionError("the evaluation ran")


def test_an_error_without_a_notice_stays():
    with pytest.raises(KeyError):
        fail_after(lambda: None)
