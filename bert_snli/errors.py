"""The one error that users see: a line that names the file or option, what is wrong and what to do."""


class BertSnliError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with 2."""
