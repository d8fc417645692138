"""The one exception that stands for a user's mistake."""

LONGEST = 500
"""Characters of a line that are shown: what a strange file holds may be a million."""


class UserError(Exception):
    """A mistake the user can mend: its message is one line that names the file or key, what is wrong and what to do.

    Only printable characters of the message are kept: it may quote a file's escape sequences.

    Attributes
    ----------
    plain : tells code that cannot import this class to print the message without a traceback.
    """

    plain = True

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))


def printable(line: str) -> str:
    """The part of a line that may reach a terminal."""
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
