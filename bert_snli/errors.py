"""The errors that users can correct, and the end of a run that was asked to stop."""

from textwrap import shorten


class BertSnliError(ValueError):
    """Something that the user can correct: `<what>: <what is wrong>; <what to do>`, in one line.

    A message names a parameter as Python does (`learning_rate`). The command line adds the dashes, prints the message
    and exits with 2.
    """


class Stopped(Exception):
    """A run that stopped on a signal after it wrote a checkpoint; the exit code is 128 plus the signal's number."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def one_line(error: BaseException) -> str:
    """Return the message of a library's error in one line, or its class if it has none."""
    return shorten(str(error), 300, placeholder=" ...") or type(error).__name__
