"""The one exception type for a user's mistake."""


class InputError(ValueError):
    """Something the user gave (a file, a row, a config key, a command line) cannot be used.

    The message says what was wrong, where, what was found, what was expected, and the way out. The
    command line prints it after ``jaxllm: error:`` and exits with status 2, without a traceback.
    A message beyond `MOST` characters is cut in its middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


MOST = 2000


def shortened(message: str) -> str:
    """`message`, or both of its ends in at most `MOST` characters: a csv header may have 10^7."""
    if len(message) <= MOST:
        return message
    half = MOST // 2 - 20
    return f"{message[:half]} ... ({len(message) - 2 * half:,} more) ... {message[-half:]}"
