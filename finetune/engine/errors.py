"""What a command may end with besides success. InputError and MissingFileError live in `kronos.errors`, which imports nothing of ours."""

from kronos.errors import InputError, MissingFileError

__all__ = ["Interrupted", "InputError", "LostRank", "MissingFileError"]


class Interrupted(Exception):
    """A signal asked the run to stop; the last checkpoint is saved. The message says how to go on; commands exit with code 75."""


class LostRank(Exception):
    """Another process of this training ended or hangs, so that this one cannot go on; it saves nothing. Commands exit with code 1."""
