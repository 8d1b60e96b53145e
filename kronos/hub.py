"""From a folder name or hub id to a local folder; fails within seconds when the hub cannot be reached."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import get_session

from kronos.errors import InputError, MissingFileError
from kronos.presets import may_be_hub_id

_PROBE_S = 6.0  # seconds to wait for a first answer of the hub; its own library would retry for half a minute


def find_folder(name: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """The local folder that `name` means: itself, or the hub repository's cached copy, downloading `files` if they are not cached.

    A cached copy is used without asking the hub. Raises MissingFileError for a folder that is not there, and InputError
    for a hub that cannot be reached, a repository that does not exist, or a file in place of a folder.
    """
    path = Path(os.path.expanduser(name))  # of os.path, here and below: Path's own fail for the home of nobody and for a name too long
    if str(name).strip() and os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise InputError(f"{name} is a file: give the folder that holds {' and '.join(files)}")
    if not may_be_hub_id(str(name)):
        raise MissingFileError(
            f"there is no folder {str(name)[:300]!r}: give one that holds {' and '.join(files)}, or a hub id such as NeoQuasar/Kronos-mini"
        )
    try:
        cached = [try_to_load_from_cache(str(name), file, revision=revision) for file in files]
    except HFValidationError as error:
        raise MissingFileError(f"{str(name)!r} is neither a folder nor a hub id ({error}): check the spelling") from error
    if all(isinstance(file, str) for file in cached) and len({Path(file).parent for file in cached}) == 1:
        return Path(cached[0]).parent
    return _download(str(name), files, revision)


def _local_advice(name: str, files: Sequence[str]) -> str:
    return f"copy {' and '.join(files)} of {name} to a folder of your own and give that folder's path instead"


def _download(name: str, files: Sequence[str], revision: str | None) -> Path:
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable()
    if reason:
        raise InputError(
            f"{name!r} is neither a local folder nor in the hub cache, and the hub ({constants.ENDPOINT}) cannot be reached ({reason}): "
            + _local_advice(name, files)
        )
    try:
        paths = [Path(hf_hub_download(name, file, revision=revision)) for file in files]
    except RepositoryNotFoundError as error:
        where = f"neither a local folder nor a repository on {constants.ENDPOINT} that you may read"
        raise InputError(f"{name!r} is {where}: check the spelling") from error
    except EntryNotFoundError as error:
        raise InputError(f"hub repository {name!r} lacks one of {', '.join(files)}: it is not a Kronos model ({error})") from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"downloading {name!r} failed ({error}): try again, or {_local_advice(name, files)}") from error
    return paths[0].parent


def _unreachable() -> str | None:
    """None if the hub answers, else why not. Asked in a thread, since a name look-up without network ignores every timeout."""
    outcome = [f"no answer within {_PROBE_S:.0f} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_PROBE_S)
            outcome[0] = ""
        except Exception as error:  # whatever the HTTP library of this hub version raises: the reason goes into the message
            outcome[0] = str(error) or type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    return outcome[0] or None
