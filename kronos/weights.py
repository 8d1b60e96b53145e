"""Model folders on disk: config.json and model.safetensors, written atomically, read with every tensor checked before it is used.

Only safetensors is read or written: no pickle is ever loaded.
"""

import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kronos.arguments import CONFIG_FILE, WEIGHTS_FILE, read_arguments_file
from kronos.errors import InputError, MissingFileError
from kronos.files import atomic_path
from kronos.hub import find_folder

_MAX_HEADER = 8 << 20  # bytes; the largest published model needs 30 KB
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NAMED = 3  # how many wrong tensors a message names


def save_module(module: nn.Module, folder: str | Path) -> Path:
    """Write `module` (anything with a `config` dict) as config.json and model.safetensors under `folder`, each atomically, weights first.

    Returns the folder. Raises InputError where it cannot be written.
    """
    folder, module = Path(folder), _uncompiled(module)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    with atomic_path(folder / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(module.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def fingerprint(module: nn.Module) -> str:
    """Hex digest of a module's configuration and weights, the same on every device; keys caches of what the module computed."""
    module = _uncompiled(module)
    digest = hashlib.blake2b(json.dumps(module.config, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _uncompiled(module: nn.Module) -> nn.Module:
    """What torch.compile(module) is a wrapper of: it names every weight `_orig_mod.…`."""
    return getattr(module, "_orig_mod", module)


def load_module(cls: type, name: str | Path, *, revision: str | None = None, overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """Build `cls` from the folder or hub id `name`, in float32 and evaluation mode.

    `overrides` may replace dropout arguments. Raises InputError, naming file, value and fix, for whatever is missing, damaged,
    of the wrong shape or not finite.
    """
    folder = find_folder(name, (CONFIG_FILE, WEIGHTS_FILE), revision)
    arguments = read_config(folder / CONFIG_FILE, cls)
    for key, value in (overrides or {}).items():
        if key not in arguments or not key.endswith("_dropout_p"):
            raise InputError(f"{key}={value!r} cannot be given when loading {folder}: only dropouts may differ from what was saved")
        arguments[key] = value
    try:
        with torch.device("meta"):  # sizes first: a wrong config never allocates memory
            module = cls(**arguments)
    except InputError as error:
        raise InputError(f"{folder / CONFIG_FILE}: {error}") from error
    module.load_state_dict(_read_weights(folder / WEIGHTS_FILE, module.state_dict()), assign=True)
    return module.eval()


def read_config(path: Path, cls: type) -> dict[str, Any]:
    """Constructor arguments of `cls` from a config.json; raises InputError naming the file and what is wrong."""
    return read_arguments_file(path, cls.argument_names(), cls.__name__)


def read_plain(path: Path) -> Any:
    """What torch.save wrote, made of plain tensors, texts and numbers, on the CPU. Raises what torch.load does, or InputError.

    No pickle is executed (weights_only), and nothing is unpacked that is larger than it looks: torch.save never compresses.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = next((info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED), None)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputError(f"{path} is not what torch.save writes, or is damaged ({error}): write it again") from error
    if packed is not None:
        raise InputError(f"{path}: {packed!r} in it is compressed, which torch.save never does: refused; write it again")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, after checking header, names and shapes against `expected` (meta tensors)."""
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: weights are read from {WEIGHTS_FILE} only (a .bin or .pt file must be converted first)")
    try:
        _check_header(path)
        with safe_open(str(path), framework="pt", device="cpu") as file:
            _check_names(path, {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, expected)  # noqa: SIM118
            state = {key: _finite(path, key, file.get_tensor(key), like) for key, like in expected.items()}
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or cut off ({error}): copy or download it again") from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error}): check its permissions") from error
    return state


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else None
    if length is None or length > size - 8:
        raise InputError(f"{path} is damaged or cut off ({size:,} bytes are fewer than its header claims): copy or download it again")
    if length > _MAX_HEADER:
        raise InputError(f"{path} has a header of {length:,} bytes, no model needs more than {_MAX_HEADER:,}: refused; download it again")


def _check_names(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor]) -> None:
    problems = [f"{key} is missing" for key in expected if key not in found]
    problems += [f"{key} is not part of the model" for key in found if key not in expected]
    for key, like in expected.items():
        if key in found and found[key] != tuple(like.shape):
            problems.append(f"{key} is {found[key]}, config.json implies {tuple(like.shape)}")
    if problems:
        more = f" (and {len(problems) - _NAMED} more)" if len(problems) > _NAMED else ""
        named = "; ".join(problems[:_NAMED])
        raise InputError(f"{path} does not fit its {CONFIG_FILE}: {named}{more}. Use weights and config of the same model")


def _finite(path: Path, key: str, tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.is_floating_point() != like.is_floating_point() or (like.is_floating_point() and tensor.dtype not in _FLOATS):
        raise InputError(f"{path}: {key} is of type {tensor.dtype}, expected {like.dtype}: copy or download it again")
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise InputError(f"{path}: {bad} of {tensor.numel()} values of {key} are NaN or infinite: its training diverged; use other weights")
    return tensor.to(like.dtype, copy=True)  # a copy: what safetensors maps is unaligned, and dies with the file
