"""What a result was made with: versions of the libraries and the state of our own source. No host or user names."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = {"torch": "torch", "numpy": "numpy", "pandas": "pandas", "kronos-trainer": "kronos-trainer"}
_GIT_LIMIT_S = 5.0


def versions() -> dict[str, str]:
    """Versions of Python, torch, numpy, pandas and ours; "unknown" for one that is not installed as a package."""
    found = {"python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def git_state(file: Path = Path(__file__)) -> dict[str, Any] | None:
    """{"commit": hex, "dirty": whether tracked files differ from it} of the checkout that tracks `file`.

    None without git, outside a checkout, before the first commit, or where the checkout around us is somebody else's
    (we are installed into a virtual environment that lies inside it).
    """
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None if it failed; bounded, because a checkout on a network disk may hang."""
    try:
        # GIT_OPTIONAL_LOCKS: reading the state of a checkout must not disturb whoever works in it
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
