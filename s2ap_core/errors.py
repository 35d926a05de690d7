"""The one exception that a user's input can cause."""


class InputError(Exception):
    """Input that cannot be used: one line that names the file or option and says what to do.

    The command line prints the line and exits with status 2; any other exception is a defect.
    """
