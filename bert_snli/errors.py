"""The errors that users can correct, and the end of a run that was asked to stop."""


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
