"""What a command ends with besides success: a line that says what is wrong and what to do, and an exit code."""


class BertSnliError(Exception):
    """Something the user can correct; the command line prints it as one line and exits with 2."""


class Stopped(Exception):
    """A run that was asked to stop, and has saved where it stands; the exit code is 128 and the signal's number."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum
