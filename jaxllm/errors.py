"""The one exception type for a user's mistake."""


class InputError(ValueError):
    """Something the user gave (a file, a row, a config key, a command line) cannot be used.

    The message says what was wrong, where, what was found, what was expected, and the way out. The
    command line prints it after ``jaxllm: error:`` and exits with status 2, without a traceback.
    """
