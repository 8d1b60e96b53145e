"""Errors that are the user's to mend. Commands print them as one message and exit with code 2; all else is ours and keeps its traceback."""


class InputError(ValueError):
    """Something the user gave is wrong. The message names what, where, the value, and the fix.

    A message quotes files that anybody may have written: control characters in it, which a terminal obeys, are shown as \\x1b and the like.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """`text` with every character that cannot be seen, line ends apart, as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder the user named is not there, or cannot be looked into."""

    def __str__(self) -> str:  # OSError would print "[Errno ...]" or a tuple
        return printable(str(self.args[0])) if self.args else ""
