"""The registered models: list, show, compare and check their configurations.

Every YAML file in configs/models/ is a model of the file's name; a file elsewhere is named by its path.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.clashes import clashes, invalid
from finetune.engine.command import command_parser, run_command
from finetune.engine.config import load_config, resolved, sources, to_yaml
from finetune.engine.places import is_complete
from finetune.engine.yaml_text import read_yaml
from finetune.multi_config import ModelConfig
from kronos.errors import InputError

MODELS = Path(__file__).resolve().parents[1] / "configs" / "models"
_SUFFIXES = (".yaml", ".yml")


class Difference(NamedTuple):
    """A key in which two configurations differ."""

    key: str
    first: Any
    second: Any


class ConfigManager:
    """Finds and loads the models of a folder. Precedence of values: flag > environment > file > the file it extends > default."""

    def __init__(self, folder: str | Path = MODELS, environment: Mapping[str, str] = os.environ):
        self.folder, self.environment = Path(folder), environment

    @property
    def paths(self) -> dict[str, Path]:
        """The file of each registered model, by name. Raises InputError for two files of one name."""
        found: dict[str, Path] = {}
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if path.suffix not in _SUFFIXES or path.name.startswith("."):
                continue
            if path.stem in found:
                raise InputError(f"{found[path.stem]} and {path} are both the model {path.stem!r}; rename one")
            found[path.stem] = path
        return found

    def names(self) -> list[str]:
        """The registered models, sorted."""
        return list(self.paths)

    def path_of(self, name_or_path: str | Path) -> Path:
        """The file of a registered model, or the path itself. Raises InputError naming the nearest model and all of them."""
        text = str(name_or_path)
        if _is_path(text):
            return Path(text).expanduser()
        known = self.paths
        if text in known:
            return known[text]
        near = difflib.get_close_matches(text.lower(), known, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        listed = f"Registered in {self.folder}: {', '.join(known)}" if known else f"There is none in {self.folder} yet"
        raise InputError(f"unknown model {text!r}{hint} {listed}. A new one is a file there; one elsewhere is named by its path (x.yaml)")

    def chain(self, name_or_path: str | Path) -> list[Path]:
        """The file, the one it extends, and so on. Raises InputError for a circle, or for an `extends` that is not there."""
        files = [self.path_of(name_or_path)]
        while True:
            document = read_yaml(files[-1])
            base = document.tree.get("extends")
            if not isinstance(base, str) or not base:  # anything else is the schema's to refuse
                return files
            where = f"{files[-1]}, line {document.lines[('extends',)]}: extends: {base}"
            path = Path(base).expanduser() if _is_path(base) else None
            try:
                file = self.path_of(base) if path is None else Path(os.path.normpath(files[-1].parent / path))
                if not file.is_file():
                    raise InputError(f"{file} does not exist")
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            real = [path.resolve() for path in files]
            if file.resolve() in real:
                circle = [path.stem for path in [*files[real.index(file.resolve()) :], file]]
                raise InputError(f"{where} closes a circle: {' extends '.join(circle)}; take one of these lines out")
            files.append(file)

    def load_config(self, name_or_path: str | Path, overrides: Iterable[str] = ()) -> ModelConfig:
        """A model's configuration. Raises InputError with everything that is wrong with it."""
        files = self.chain(name_or_path)
        try:
            return self._loaded(name_or_path, files, list(overrides))
        except InputError as error:
            raise invalid([str(error)]) from None

    def _loaded(self, name_or_path: str | Path, files: Sequence[Path], overrides: Sequence[str]) -> ModelConfig:
        name = files[0].stem
        if any(text.partition("=")[0].strip() == "extends" for text in overrides):
            raise InputError("--set extends: what a file is put on top of stands in the file; make a file of a few lines that extends both")
        named = {"model_paths": {"exp_name": name}, "experiment": {"name": name, "comet_tags": [f"{name}_finetune"]}}
        config = load_config(ModelConfig, files[0], overrides, self.environment, bases=files[1:], defaults=named)
        config._reference = str(name_or_path)
        config._fill(extends="")  # its keys are in: what a run folder keeps must load wherever that folder lies
        return config

    def load_all(
        self, names: Iterable[str | Path] | None = None, overrides: Sequence[str] = ()
    ) -> tuple[dict[str, ModelConfig], list[str]]:
        """The configurations that load, by name or path as given (None: all registered), and what is wrong with the others."""
        loaded: dict[str, ModelConfig] = {}
        problems: list[str] = []
        for name in map(str, self.names() if names is None else names):
            try:
                loaded[name] = self._loaded(name, self.chain(name), overrides)
            except InputError as error:
                problems.append(str(error))
        return loaded, problems

    def problems(self, name_or_path: str | Path) -> list[str]:
        """Everything that is wrong with one model, also where it writes into another registered one's folder."""
        loaded, problems = self.load_all([name_or_path])
        return problems or [told for mine in loaded.values() for told in self.clashes_of(mine)]

    def clashes_of(self, mine: ModelConfig) -> list[str]:
        """Where a loaded configuration writes into the folder of another registered model."""
        own = self.path_of(mine.reference).resolve()
        others = [other for name, other in self.load_all()[0].items() if self.paths[name].resolve() != own]
        return [told for other in others for told in clashes([mine, other])]

    def validate(self, names: Iterable[str | Path] | None = None) -> dict[str, ModelConfig]:
        """All registered models (or those named), loaded.

        Raises InputError "Configuration validation failed" with every problem of every file, and folders that two of them share.
        """
        loaded, problems = self.load_all(names)
        problems += clashes(list(loaded.values()))
        if problems:
            raise invalid(problems)
        return loaded

    def diff(self, first: str | Path, second: str | Path) -> list[Difference]:
        """The keys in which two models differ, in the schema's order; a key that one of them lacks is None there."""
        one, two = (flat_values(self.load_config(name)) for name in (first, second))
        return [Difference(key, one.get(key), two.get(key)) for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]


def flat_values(config: ModelConfig) -> dict[str, Any]:
    """Every key with its value, as "training.batch_size": 32; secrets are left out."""

    def flat(tree: Mapping[str, Any], known: Mapping[str, str], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, Mapping) and prefix + name not in known:  # a mapping that is one key's value stays whole
                yield from flat(value, known, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    found = dict(flat(resolved(config), sources(config)))
    del found["extends"]  # not a value of the model's, see `load_config`
    return found


def _is_path(text: str) -> bool:
    return text.endswith(_SUFFIXES) or "/" in text or os.sep in text


# ---- the command


def list_text(manager: ConfigManager) -> str:
    """A line per registered model: what it is, and what is there of it."""
    loaded, problems = manager.load_all()
    rows = [("model", "bars", "windows", "batch", "rates", "epochs", "bars made", "trained", "on top of")]
    for name, config in loaded.items():
        info, training = config.get_model_info(), config.training
        made = "-" if not config.is_prepared_from_source else "no" if config.lacks_panel else "otherwise" if config.needs_panel else "yes"
        trained = [stage for stage in ("tokenizer", "predictor") if is_complete(config.model_paths.best_model(stage))]
        rates = f"{training.tokenizer_learning_rate:g} / {training.predictor_learning_rate:g}"
        epochs = f"{training.tokenizer_epochs} / {training.basemodel_epochs}"
        batch = f"{info['batch_size']} × {info['accumulation_steps']}"
        bases = ", ".join(path.stem for path in manager.chain(name)[1:]) or "-"
        windows = f"{info['lookback']} → {info['horizon']}"
        rows.append((name, info["period"], windows, batch, rates, epochs, made, ", ".join(trained) or "no", bases))
    return "\n".join([f"models in {manager.folder}:", *_aligned(rows), *(f"does not load: {told}" for told in problems)])


def show_text(manager: ConfigManager, name_or_path: str, overrides: Iterable[str] = ()) -> str:
    """A model's configuration as YAML, with the source of each value behind it."""
    config = manager.load_config(name_or_path, overrides)
    files = manager.chain(name_or_path)
    below = "".join(f", on top of {path}" for path in files[1:])
    lines, opened, origin = [f"# {config.name}: {files[0]}{below}"], [], sources(config)
    for key, value in flat_values(config).items():
        *sections, last = key.split(".")
        for depth, section in enumerate(sections):
            if sections[: depth + 1] != opened[: depth + 1]:
                lines.append(f"{'  ' * depth}{section}:")
        opened = sections
        lines.append(f"{'  ' * len(sections)}{last}: {_on_one_line(value)}".ljust(60) + f"  # {origin[key]}")
    return "\n".join(lines)


def diff_text(manager: ConfigManager, first: str, second: str) -> str:
    """The keys in which two models differ, side by side."""
    rows = [(key, _on_one_line(one), _on_one_line(two)) for key, one, two in manager.diff(first, second)]
    return "\n".join(_aligned([("key", first, second), *rows])) if rows else f"{first} and {second} hold the same values"


def validate_text(manager: ConfigManager, names: Iterable[str] | None = None) -> str:
    """What `validate` found, with what is still to do. Raises what it raises."""
    loaded = manager.validate(names)
    todo = [f"{name}: ok" + ("" if not c.needs_panel else f"; its bars are to be made: {c.prepare_command}") for name, c in loaded.items()]
    return "\n".join([*todo, f"{len(loaded)} configurations in {manager.folder} are valid"])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _on_one_line(value: Any) -> str:
    """A value as YAML on one line; lists and mappings in JSON's way, which YAML reads too."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else to_yaml({"v": value})[2:].strip()


def main() -> None:
    parser = command_parser(
        __doc__ or "",
        [
            "python finetune/config_manager.py --list-configs",
            "python finetune/config_manager.py --show model_a_4h --set training.batch_size=16",
            "python finetune/config_manager.py --diff model_a_4h model_b_1d",
            "python finetune/config_manager.py --validate",
        ],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list-configs", action="store_true", help="a line per registered model")
    what.add_argument("--show", metavar="MODEL", help="every value of a model (a name or a path) and where it comes from")
    what.add_argument("--diff", metavar="MODEL", nargs=2, help="the keys in which two models differ")
    what.add_argument("--validate", action="store_true", help="check all registered models together")
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="with --show: change keys"
    )
    args = parser.parse_args()
    if args.overrides and not args.show:
        raise InputError("--set goes with --show; the other flags look at the files as they are")
    manager = ConfigManager()
    if args.show:
        print(show_text(manager, args.show, args.overrides))
    elif args.diff:
        print(diff_text(manager, *args.diff))
    else:
        print(list_text(manager) if args.list_configs else validate_text(manager))


if __name__ == "__main__":
    run_command(main)
