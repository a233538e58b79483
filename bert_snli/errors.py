"""Exceptions: an error that the user can correct, and a run that a signal stopped."""

from textwrap import shorten


class BertSnliError(ValueError):
    """An error that the user can correct. The message is one line: `what: what is wrong; what to do`.

    The message names a parameter as in Python (`learning_rate`). The command line adds the dashes, prints the message
    and exits with 2.
    """


class Stopped(Exception):
    """Raised when a signal stopped a run and a checkpoint was written. The exit code is 128 plus the signal number."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, or the name of its class if it has no message."""
    return shorten(str(error), 300, placeholder=" ...") or type(error).__name__
