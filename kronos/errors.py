"""Errors that are the user's to mend. Commands print them as one message and exit with code 2; all else is ours and keeps its traceback."""


class InputError(ValueError):
    """Something the user gave is wrong. The message names what, where, the value, and the fix."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder the user named is not there."""

    def __str__(self) -> str:  # OSError would print "[Errno ...]" or a tuple
        return str(self.args[0]) if self.args else ""
