"""The error for what a user can mend."""


class InputError(ValueError):
    """Bad input: the message says what was found, what was wanted and what to do.

    `main.py` prints it as one line and exits with 2 instead of showing a traceback.
    """
