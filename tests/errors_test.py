"""Texts for the terminal."""

import pytest

from align_jax.errors import printable


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
