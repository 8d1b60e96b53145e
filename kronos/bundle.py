"""A tokenizer and the predictor that reads its tokens, in one folder or one file, with what a forecast needs to know besides.

    X/tokenizer/, X/predictor/   config.json and model.safetensors, the published format: the public code reads these two as they are
    X/bundle.json                format, version, context, clip, fingerprints, and what the export measured
    X/README.md                  the model card, where one was asked for
    X.pth                        {"tokenizer": weights, "predictor": weights, "config": bundle.json}, read with weights_only=True

With int8 the weights lie in model.int8.safetensors, so that nothing mistakes them for float weights.

    >>> forecaster = load_bundle("X").forecaster()
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kronos.errors import InputError, MissingFileError
from kronos.files import atomic_path
from kronos.forecaster import KronosPredictor
from kronos.int8 import quantized_predictor, quantized_tokenizer
from kronos.loading import load_predictor, load_tokenizer, read_arguments
from kronos.network import Kronos
from kronos.tokenizer import KronosTokenizer
from kronos.weights import CONFIG_FILE, fingerprint, read_plain, save_module

FORMAT, VERSION = "kronos-bundle", 1
MANIFEST = "bundle.json"
INT8_FILE = "model.int8.safetensors"
_CLASSES = {"tokenizer": KronosTokenizer, "predictor": Kronos}
_QUANTIZED = {"tokenizer": quantized_tokenizer, "predictor": quantized_predictor}
_NAMED = 3  # how many wrong tensors a message names


@dataclass(frozen=True)
class Bundle:
    """A pair that belongs together, in evaluation mode."""

    tokenizer: KronosTokenizer
    model: Kronos
    max_context: int = 512  # bars the model sees at once
    clip: float = 5.0  # bound on z-scores
    quantize: str | None = None  # None or "int8"

    def forecaster(self, device: torch.device | str | None = None) -> KronosPredictor:
        """A forecaster on `device` (default: CUDA, else MPS, else CPU). Raises InputError if the two do not fit each other."""
        return KronosPredictor(self.model, self.tokenizer, device, self.max_context, self.clip)

    def quantized(self) -> "Bundle":
        """The same pair with int8 linears (see `kronos.int8`)."""
        assert self.quantize is None, "already quantised"
        return Bundle(quantized_tokenizer(self.tokenizer), quantized_predictor(self.model), self.max_context, self.clip, "int8")

    def modules(self) -> dict[str, nn.Module]:
        """Both modules by the names they have in a bundle."""
        return {"tokenizer": self.tokenizer, "predictor": self.model}

    def manifest(self, kind: str, **facts: Any) -> dict[str, Any]:
        """What bundle.json says: everything but the weights. kind: "folder", "pth" or "pt2"."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": kind,
            "quantize": self.quantize,
            "max_context": self.max_context,
            "clip": self.clip,
            **{name: module.config for name, module in self.modules().items()},
            "fingerprints": {name: fingerprint(module) for name, module in self.modules().items()},
            **facts,
        }


def write_folder(bundle: Bundle, folder: Path, **facts: Any) -> None:
    """Write the bundle as a folder; `facts` go into bundle.json. Raises InputError where it cannot be written."""
    for name, module in bundle.modules().items():
        if bundle.quantize is None:
            save_module(module, folder / name)
            continue
        with atomic_path(folder / name / INT8_FILE) as temporary:
            save_file(_state(module), temporary, metadata={"format": "pt"})
        with atomic_path(folder / name / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(module.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_manifest(folder, bundle.manifest("folder", **facts))


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write bundle.json. Raises InputError where it cannot be written."""
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_pth(bundle: Bundle, path: Path, **facts: Any) -> None:
    """Write the bundle as one file of torch.save: plain tensors, strings and numbers, so that weights_only=True reads it."""
    states = {name: _state(module) for name, module in bundle.modules().items()}
    torch.save({**states, "config": bundle.manifest("pth", **facts)}, path)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def load_bundle(path: str | Path) -> Bundle:
    """The pair in a bundle folder or .pth file, on the CPU, in evaluation mode.

    No pickle is executed: safetensors, or torch.load with weights_only=True. Weights are checked against the fingerprints of bundle.json.
    Raises InputError or MissingFileError naming the file and what is wrong with it.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        manifest = read_manifest(path)
        modules = {name: _module_of(path / name, name, manifest) for name in _CLASSES}
    else:
        content = _read_pth(path)
        manifest = _checked(content.get("config"), path)
        modules = {name: _from_state(name, manifest[name], content.get(name), manifest, path) for name in _CLASSES}
    for name, module in modules.items():
        if fingerprint(module) != manifest["fingerprints"].get(name):
            raise InputError(f"{path}: the {name} is not the one this bundle was made of (its fingerprint differs): export the pair again")
    return Bundle(modules["tokenizer"], modules["predictor"], manifest["max_context"], manifest["clip"], manifest["quantize"])


def read_manifest(path: Path) -> dict[str, Any]:
    """What a bundle says about itself: bundle.json of a folder, "config" of a file. Raises InputError naming the file and what is wrong."""
    if not path.is_dir():
        return _checked(_read_pth(path).get("config"), path)
    file = path / MANIFEST
    if not file.is_file():
        raise MissingFileError(f"{file} is missing: {path} is not a bundle; make one with python -m kronos.export")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON ({error}): export the pair again") from error
    except OSError as error:
        raise InputError(f"cannot read {file} ({error}): check its permissions") from error
    return _checked(value, file)


def _checked(value: Any, path: Path) -> dict[str, Any]:
    """`value` if it is the manifest of a bundle that this version reads; raises InputError otherwise."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"{path} is not a Kronos bundle: it lacks format {FORMAT!r}; make one with python -m kronos.export")
    if value.get("version") != VERSION:
        raise InputError(f"{path} is of bundle version {value.get('version')!r}, this code reads {VERSION}: export the pair again")
    context, clip = value.get("max_context"), value.get("clip")
    wrong = {
        "max_context": type(context) is not int or context < 1,
        "clip": type(clip) not in (int, float) or not 0 < clip < 1e6,
        "quantize": value.get("quantize") not in (None, "int8"),
        "fingerprints": not isinstance(value.get("fingerprints"), dict),
        **{name: not isinstance(value.get(name), dict) for name in _CLASSES},
    }
    for key in (key for key, is_wrong in wrong.items() if is_wrong):
        raise InputError(f"{path}: {key} is {value.get(key)!r:.100}: the file was changed; export the pair again")
    return value


def _module_of(folder: Path, name: str, manifest: Mapping[str, Any]) -> nn.Module:
    """One module of a bundle folder."""
    if manifest.get("kind") == "pt2":
        raise InputError(f"{folder.parent} holds exported programs, not weights: load it with kronos.programs.load_programs")
    if manifest["quantize"] is None:
        return load_tokenizer(folder) if name == "tokenizer" else load_predictor(folder)
    path = folder / INT8_FILE
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: export the pair again")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or cannot be read ({error}): export the pair again") from error
    return _from_state(name, read_arguments(_CLASSES[name], folder / CONFIG_FILE), state, manifest, path)


def _read_pth(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise MissingFileError(f"there is no bundle {path}: give the folder or .pth file that python -m kronos.export wrote")
    try:
        content = read_plain(path)
    except PermissionError as error:
        raise InputError(f"cannot read {path} ({error}): check its permissions") from error
    except Exception as error:  # a file that anybody may have written may fail in any way; nothing of it has been used
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is not a bundle of plain tensors, or is damaged ({reason:.200}): export the pair again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a bundle: make one with python -m kronos.export --format pth")
    return content


def _from_state(name: str, arguments: Mapping[str, Any], state: Any, manifest: Mapping[str, Any], path: Path) -> nn.Module:
    """Build a module of `arguments` around a state dict, checking every tensor before it is used."""
    cls = _CLASSES[name]
    if set(arguments) != set(cls.argument_names()):
        different = ", ".join(sorted(set(arguments) ^ set(cls.argument_names())))
        raise InputError(f"{path}: the {name}'s arguments do not describe a {cls.__name__} ({different}): export the pair again")
    try:
        with torch.device("meta"):  # sizes first: a wrong config never allocates memory
            module = cls(**arguments)
            module = module if manifest["quantize"] is None else _QUANTIZED[name](module)
    except InputError as error:
        raise InputError(f"{path}, {name}: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path}: {name} is not a dictionary of tensors: export the pair again")
    expected = module.state_dict()
    problems = [_problem(key, state.get(key), expected.get(key)) for key in (expected | state)]
    problems = [problem for problem in problems if problem]
    if problems:
        named = "; ".join(problems[:_NAMED])
        raise InputError(f"{path} does not hold this {name}'s weights: {named} ({len(problems)} in all): export the pair again")
    module.load_state_dict({key: state[key].to(like.dtype, copy=True) for key, like in expected.items()}, assign=True)
    return module.eval()


def _problem(key: str, tensor: Tensor | None, like: Tensor | None) -> str:
    """What is wrong with a tensor, or nothing."""
    if tensor is None or like is None:
        return f"{key} is {'missing' if tensor is None else 'not part of it'}"
    if tensor.shape != like.shape:
        return f"{key} is {tuple(tensor.shape)} instead of {tuple(like.shape)}"
    if tensor.dtype != like.dtype:
        return f"{key} is {tensor.dtype} instead of {like.dtype}"
    return "" if torch.isfinite(tensor).all() else f"{key} is not finite"
