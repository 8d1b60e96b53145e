"""Files that are either the old one or the new one, never half of each.

Everything is written to a temporary name in the same folder, flushed to the disk, and renamed over the target. A full disk, a missing
permission or a process that dies leaves the former file as it was. What the user can mend (space, rights, a wrong folder) is an InputError.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kronos.errors import InputError

_FIXES = {
    errno.ENOSPC: "the disk is full: free some space, or choose a folder on another disk",
    errno.EFBIG: "the file would be larger than allowed here: raise the limit (ulimit -f), or choose a folder on another disk",
    errno.EDQUOT: "your disk quota is used up: free some space, or choose a folder on another disk",
    errno.EACCES: "permission denied: choose a folder you may write to, or change its permissions",
    errno.EPERM: "permission denied: choose a folder you may write to, or change its permissions",
    errno.EROFS: "the file system is read-only: choose a folder on one that is not",
    errno.ENOTDIR: "a file stands where a folder is needed: remove the file or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed: remove the file or choose another folder",
    errno.ENOENT: "the folder is not there and cannot be made here: choose another folder",
    errno.EISDIR: "a folder stands where a file is needed: remove the folder or choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


_WRITER_GAVE_UP = "the file could not be written whole, most likely the disk or your quota is full: free some space, or choose another disk"


def explain_os_error(error: BaseException, path: Path, action: str = "cannot write") -> InputError | None:
    """The InputError for a failure at `path` that the user can mend; None for any other.

    Libraries that write natively hide the error number: safetensors says it in words, torch.save only that its stream broke.
    """
    if isinstance(error, OSError):
        fix = _FIXES.get(error.errno or 0) if _concerns(error, path) else None
    elif told := re.search(r"\(os error (\d+)\)", str(error)):
        fix = _FIXES.get(int(told[1]))
    elif "No space left on device" in str(error):
        fix = _FIXES[errno.ENOSPC]
    elif any(words in str(error) for words in ("inline_container.cc", "PytorchStreamWriter", "iostream error")):
        fix = _WRITER_GAVE_UP
    else:
        fix = None
    return InputError(f"{action} {path}: {fix}") if fix else None


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the failure is about `path`, its folder or a temporary file beside it, and not about some other file that was being read."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return True
    failed, target = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
    return failed == target or failed in target.parents or target.parent in failed.parents


@contextmanager
def explained(path: Path, action: str = "cannot write") -> Iterator[None]:
    """Turns failures to write `path` that the user can mend into InputError; every other exception passes unchanged."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told = explain_os_error(error, path, action)
        if told is None:
            raise
        raise told from error


def new_folder(path: Path) -> None:
    """Makes the empty folder `path`, named after this process, and its parents.

    A killed process may have left one: in a container every start has the same process number.
    """
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed over `path` when the block ends well, removed when it does not.

        with atomic_path(folder / "model.safetensors") as tmp:
            save_file(tensors, tmp)

    Missing parent folders are made. Raises InputError (full disk, no permission, read-only, a file in a folder's place).
    """
    target = Path(path)
    # the process number keeps two processes that write the same name apart; the suffix is kept because some writers choose by it
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask gives; some writers (safetensors) make files only their owner may read
            yield temporary
            temporary.chmod(mode)
            _flush_to_disk(temporary)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):  # the first failure is the one to tell; a temporary file that cannot be removed is harmless
                temporary.unlink(missing_ok=True)
            raise
        flush_folder(target.parent)


def _flush_to_disk(path: Path) -> None:
    """The writer may have closed the file already, so it is opened again: fsync belongs to the file, not to the handle."""
    with open(path, "r+b") as handle:
        os.fsync(handle.fileno())


def flush_folder(folder: Path) -> None:
    """Makes the rename survive a power cut. Windows cannot open a folder and some network disks refuse: the file is whole either way."""
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
