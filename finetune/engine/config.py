"""The one configuration loader: a YAML file, environment variables and `--set` flags in, a checked and frozen configuration out.

    config = load_config(CsvConfig, "configs/demo.yaml", ["training.batch_size=16"])

Flag > environment > file > default. Whatever is wrong is gathered and raised as one InputError that names the file and line (or the flag,
or the variable), the key, the value, what is expected and the nearest known key. Schemas are declared with `Section` and `key`
(`schema.py`); ENVIRONMENT there lists every variable that sets a key.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError

from finetune.engine.schema import (
    ENVIRONMENT,
    KeyPath,
    KeyRow,
    Section,
    default_text,
    describe_keys,
    fields_of,
    find_field,
    home_of,
    is_secret,
    is_section,
    key,
    key_table,
    nearest_keys,
    number_or,
    section_of,
    setting,
    switch_or,
    template,
    text_or,
    type_text,
)
from finetune.engine.yaml_text import YamlProblem, kind_of, parse_value, read_yaml, to_yaml
from kronos.errors import InputError

__all__ = [
    "ENVIRONMENT",
    "KeyRow",
    "Section",
    "describe_keys",
    "key",
    "key_table",
    "load_config",
    "number_or",
    "resolved",
    "sources",
    "switch_or",
    "template",
    "text_or",
    "to_yaml",
]

AnySection = TypeVar("AnySection", bound=Section)


def load_config(
    schema: type[AnySection],
    path: str | Path | None,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] = os.environ,
    *,
    bases: Sequence[Path] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> AnySection:
    """An instance of `schema` from a YAML file (None: no file), the environment and overrides such as "training.batch_size=16".

    Later overrides win over earlier ones. bases: files whose keys hold where this one's leave them out, the nearest first. defaults: a
    tree of values below all files, in place of the schema's.
    Raises InputError with everything that is wrong, MissingFileError for a file that is not there.
    """
    problems: list[Problem] = []
    layers = [_Flattener(schema, FILE - len(bases) - 1, "", {}, problems).layer(dict(defaults))] if defaults else []
    layers += [_file_layer(schema, base, problems, depth) for depth, base in reversed(list(enumerate(bases, 1)))]
    layers += [_file_layer(schema, Path(path), problems)] if path is not None else []
    layers.append(_environment_layer(schema, environment))
    layers += [_override_layer(schema, text, problems) for text in overrides]
    given: Layer = {}
    for layer in layers:
        _merge(schema, given, layer)
    config = _validated(schema, given, problems)
    if problems or config is None:
        raise InputError(_message(path, problems))
    for keys, value in given.items():
        config._sources[".".join(keys)] = f"file, {value.where}" if value.level == FILE else value.where  # "" of a default counts as none
    return config


def sources(config: Section) -> dict[str, str]:
    """Where each value of a loaded configuration came from: "file, line 12", "--set", "environment NAME", "default" or "filled in"."""
    found = {}
    for path, known in fields_of(type(config)):
        name = ".".join(path)
        filled = not known.is_required() and _value_at(config, path) != known.get_default(call_default_factory=True)
        found[name] = config._sources.get(name) or ("filled in" if filled else "default")
    return found


def resolved(config: Section) -> dict[str, Any]:
    """The configuration as plain values for a run folder's config.yaml (write it with `to_yaml`).

    Secrets are left out, and so is what is None by default and in fact.
    """
    kept = {name: getattr(config, name) for name, known in type(config).model_fields.items() if not is_secret(known)}
    return {name: _plain(value) for name, value in kept.items() if value is not None or type(config).model_fields[name].default is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return resolved(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _value_at(config: Section, path: KeyPath) -> Any:
    value: Any = config
    for name in path:
        value = getattr(value, name)
    return value


# ---- layers: one source of values each, flat, {("training", "batch_size"): Given(16, "line 12")}; aliases and unknown keys are dealt with

FILE, ENV, FLAG = range(3)
MAX_TOLD = 40  # problems shown in one message


@dataclass(frozen=True)
class Given:
    """A value and where it stood. level: FILE (less: a file below it), ENV or FLAG. lines: of the keys inside a value that is a mapping.

    partial: a mapping that changes single keys of the one below (--set model.predictor.n_layers=2) instead of replacing it.
    """

    value: Any
    where: str
    level: int
    lines: Mapping[KeyPath, str] = field(default_factory=dict, compare=False)
    partial: bool = False


Layer = dict[KeyPath, Given]


@dataclass(frozen=True)
class Problem:
    """One thing to mend. where: "line 12", "--set ...", "environment NAME", or empty where it stands nowhere."""

    where: str
    text: str


def _file_layer(schema: type[Section], path: Path, problems: list[Problem], depth: int = 0) -> Layer:
    """depth: how far below the file that is loaded."""
    document = read_yaml(path)
    lines = {keys: f"{path.name}, line {line}" if depth else f"line {line}" for keys, line in document.lines.items()}
    layer = _Flattener(schema, FILE - depth, "", lines, problems).layer(document.tree)
    layer = {keys: replace(given, partial=isinstance(given.value, dict)) for keys, given in layer.items()}
    for keys, known in fields_of(schema):
        if keys in layer and setting(known, "path") == "in" and layer[keys].value not in setting(known, "words"):
            layer[keys] = replace(layer[keys], value=_beside(path.parent, layer[keys].value))
    return layer


def _environment_layer(schema: type[Section], environment: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for path, known in fields_of(schema):
        name = setting(known, "env")
        if name and environment.get(name):
            layer[path] = Given(environment[name], f"environment {name}", ENV)
    return layer


def _override_layer(schema: type[Section], text: str, problems: list[Problem]) -> Layer:
    name, equals, value = text.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        told = "the part before = is not a key" if equals else f"{_shown(text)} is not understood"
        problems.append(Problem("--set", f"{told}; write section.key=value, e.g. training.batch_size=16"))
        return {}
    try:
        tree = parse_value(value)
    except YamlProblem as problem:
        problems.append(Problem("--set", f"the value of {_name(path)}{problem}; quote text that begins with a bracket or a quote"))
        return {}
    for part in reversed(path):
        tree = {part: tree}
    layer = _Flattener(schema, FLAG, "--set", {}, problems).layer(tree)
    depth = len(path) + (home_of(schema, path[0]) is not None)
    return {keys: replace(given, partial=depth > len(keys)) for keys, given in layer.items()}


class _Flattener:
    """Makes a layer of one source's mapping. Unknown keys, contradicting aliases and sections that are no mappings become problems."""

    def __init__(self, schema: type[Section], level: int, where: str, lines: Mapping[KeyPath, str], problems: list[Problem]):
        self.schema, self.level, self.source, self.lines, self.problems = schema, level, where, lines, problems
        self.found: Layer = {}

    def layer(self, tree: dict[str, Any]) -> Layer:
        homes = {name: home for name in tree if (home := home_of(self.schema, name))}
        self.walk(self.schema, {name: value for name, value in tree.items() if name not in homes}, ())
        for name, home in homes.items():  # after the sections, whatever their order in the file
            self.at_the_top(name, tree[name], home)
        return self.found

    def at_the_top(self, name: str, value: Any, home: str) -> None:
        """A section's key that stands outside it."""
        section = section_of(self.schema.model_fields[home].annotation)
        lines = {(home, *path): line for path, line in self.lines.items() if path[:1] == (name,)}
        moved = _Flattener(self.schema, self.level, self.source, lines, self.problems)
        moved.walk(section, {name: value}, (home,))
        for path, given in moved.found.items():
            there = self.found.setdefault(path, given)
            if there.value != given.value:
                text = f"{_name((name,))} sets {_name(path)}, which is given another value ({there.where}); keep one of the two"
                self.problems.append(Problem(given.where, text))

    def where(self, path: KeyPath) -> str:
        return self.lines.get(path, self.source)

    def walk(self, section: type[Section], tree: dict[str, Any], prefix: KeyPath) -> None:
        for name, value in tree.items():
            path = (*prefix, name)
            known = section.model_fields.get(name)
            if known is None and name not in section.aliases:
                self.unknown(path)
            elif known is not None and is_section(known):
                self.enter(section_of(known.annotation), value, path)
            elif known is not None:
                self.found[path] = Given(value, self.where(path), self.level, self.lines)
        for alias in [name for name in tree if name in section.aliases]:  # after the keys themselves, whatever their order in the file
            for target in section.aliases[alias]:
                self.translate((*prefix, alias), (*prefix, target), tree[alias])

    def enter(self, section: type[Section], value: Any, path: KeyPath) -> None:
        if isinstance(value, dict):
            self.walk(section, value, path)
        elif value is not None:  # nothing below `training:` is fine
            text = f"{_name(path)} is {kind_of(value)}; expected: a section with keys such as {', '.join(list(section.model_fields)[:4])}"
            self.problems.append(Problem(self.where(path), text))

    def unknown(self, path: KeyPath) -> None:
        if len(self.problems) <= MAX_TOLD:  # looking for near keys is slow, and more are not shown
            self.problems.append(Problem(self.where(path), unknown_key(self.schema, path)))

    def translate(self, alias: KeyPath, target: KeyPath, value: Any) -> None:
        there = self.found.get(target)
        if there is not None and there.value != value:
            text = f"{_name(alias)} sets {_name(target)}, which is given another value ({there.where}); keep one of the two"
            self.problems.append(Problem(self.where(alias), text))
        self.found.setdefault(target, Given(value, self.where(alias), self.level))


def _merge(schema: type[Section], given: Layer, layer: Layer) -> None:
    """Put a layer on top of what is there."""
    for path, new in layer.items():
        for hidden in _hidden_by(schema, path):
            if hidden in given and given[hidden].level < new.level:
                del given[hidden]
        old = given.get(path)
        if old is not None and new.partial and isinstance(old.value, dict):  # on top of a name such as `mini` it starts a new mapping
            new = replace(new, value={**old.value, **new.value})
        given[path] = new


def _hidden_by(schema: type[Section], path: KeyPath) -> list[KeyPath]:
    section: type[Section] | None = schema
    for name in path[:-1]:
        section = section_of(section.model_fields[name].annotation)
    return [(*path[:-1], name) for name in section.hides.get(path[-1], ())]


def _beside(folder: Path, value: Any) -> Any:
    """What a run reads, named in a file: looked up in that file's folder first. What is not there stays as it is."""
    if isinstance(value, list):
        return [_beside(folder, item) for item in value]
    if not isinstance(value, str) or not value or value.startswith(("~", os.sep)):
        return value
    candidate = str(folder.absolute() / value)
    try:
        found = os.path.exists(candidate) or (glob.has_magic(value) and next(glob.iglob(candidate, recursive=True), None) is not None)
    except (OSError, ValueError):  # a text that cannot be a path: the section's own checks speak about it
        return value
    return candidate if found else value


# ---- checking


def _validated(schema: type[AnySection], given: Layer, problems: list[Problem]) -> AnySection | None:
    tree: dict[str, Any] = {}
    for path, known in fields_of(schema):
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})  # also where nothing is given: what is missing is then named by its key, not by its section
        if path in given:
            at[path[-1]] = _home(given[path].value) if setting(known, "path") else given[path].value
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            problems.extend(_explain(schema, given, detail))
        return None


def _home(value: Any) -> Any:
    if isinstance(value, list):
        return [_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _explain(schema: type[Section], given: Layer, detail: Mapping[str, Any]) -> Iterator[Problem]:
    """One of pydantic's errors in our words."""
    loc = [part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("<"))]
    path = tuple(part for part in loc if isinstance(part, str))
    if detail["type"] == "problems":
        for name, text in detail["ctx"]["problems"]:
            full = (*path, *filter(None, name.split(".")))
            yield Problem(_where(given, full), f"{_name(full)}: {text}" if full else text)
        return
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    known = find_field(schema, path)
    if detail["type"] == "extra_forbidden" or known is None:
        yield Problem(_where(given, path), unknown_key(schema, path))
    elif detail["type"] == "missing":
        yield Problem(_where(given, path), f"{name} is missing; {known.description}")
    elif detail["type"] == "value_error":
        shown = "" if is_secret(known) else f" is {_shown(detail['input'])}"
        yield Problem(_where(given, path), f"{name}{shown}: {detail['ctx']['error']}")
    else:
        shown = "has an unusable value" if is_secret(known) else f"is {_shown(detail['input'])}"
        shown = "is empty" if detail["type"] == "empty" else shown
        default = "" if known.is_required() or is_secret(known) else f" (default {default_text(known)})"
        yield Problem(_where(given, path), f"{name} {shown}; expected: {type_text(known)}{default}")


def unknown_key(schema: type[Section], path: KeyPath) -> str:
    """What to say about an unknown key: the nearest known ones, or else what its section holds. Never its value: it may be a secret."""
    if "api_key" in path[-1].lower():
        return f"unknown key {_name(path)}; a file is no place for a secret, set COMET_API_KEY in the environment instead"
    near = nearest_keys(schema, path)
    if near:
        return f"unknown key {_name(path)}; did you mean {' or '.join(near)}?"
    parent = find_field(schema, path[:-1]) if path[:-1] else None
    section = (section_of(parent.annotation) if parent else None) or schema
    place = "at the top" if section is schema else f"in {_name(path[:-1])}"
    return f"unknown key {_name(path)}; known {place}: {', '.join(section.model_fields)}"


def _where(given: Layer, path: KeyPath) -> str:
    for end in range(len(path), 0, -1):
        if value := given.get(path[:end]):
            return value.lines.get(path, value.where)
    return ""


def _name(path: KeyPath) -> str:
    """A key's path in a message; strange characters escaped, endless names cut."""
    name = ".".join(path)
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 100 else f"{name[:97]}..."


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "a secret"
    if isinstance(value, dict | list):
        return kind_of(value)
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _message(path: str | Path | None, problems: list[Problem]) -> str:
    """All problems as one message: those of the file first, by line."""
    lines = [f"{told.where}: {told.text}" if told.where else told.text for told in dict.fromkeys(sorted(problems, key=_order))]
    source = "configuration" if path is None else str(path)
    if len(lines) == 1:
        return f"{source}{', ' if lines[0].startswith('line ') else ': '}{lines[0]}"
    count = f"{len(lines)} things to mend" if len(lines) <= MAX_TOLD else f"the first {MAX_TOLD} things to mend"
    return f"{source}: {count}" + "".join(f"\n  {line}" for line in lines[:MAX_TOLD])


def _order(problem: Problem) -> tuple[int, int]:
    return (0, int(problem.where.removeprefix("line "))) if problem.where.startswith("line ") else (1, 0)
