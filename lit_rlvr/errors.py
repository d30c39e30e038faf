"""The one exception that reaches a user as one line."""


class UserError(Exception):
    """Bad input. The message says what, where (file, row, field, config key) and what to do.

    The command line prints it as one line and exits with status 2, without a traceback.
    """
