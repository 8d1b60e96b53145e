"""YAML as configurations need it: read strictly, with the line of every key, and written so that it reads back the same.

Plain values follow YAML 1.2's core rules rather than PyYAML's 1.1: `1e-4` is a number, `off` is a word, `2024-01-01` and `9:35` are text,
and `000001` keeps its zeros, because it is a stock and not a one. Tags, merge keys and repeated keys are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kronos.errors import InputError, MissingFileError

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000  # every use of an alias counts again, so a file cannot grow without bound while it is read
MAX_DEPTH = 30

_TOO_MANY = f": more than {MAX_VALUES:,} values (each use of an alias counts); this is not a configuration file"

_CORE = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,30})\Z|0x[0-9a-fA-F]{1,16}\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")


_WANTED = "it must hold sections such as `data:` with `key: value` lines below them"


class Document(NamedTuple):
    """A file's content. lines: the line (from 1) of each key, by its path from the top."""

    tree: dict[str, Any]
    lines: dict[tuple[str, ...], int]


class YamlProblem(ValueError):
    """Text that is not the YAML we accept; the message says where and why, without quoting the text (it may hold a secret)."""


_UNTAGGED = "untagged"


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Counts while nodes are made, which takes far longer than reading them afterwards."""
        self.composed += 1
        if self.composed > 2 * MAX_VALUES:  # keys are nodes as well
            raise YamlProblem(_TOO_MANY)
        return super().compose_node(parent, index)

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        """PyYAML asks this only for nodes without a tag of their own: whatever then has another tag was tagged in the file."""
        return _UNTAGGED


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # two equal lists are two lists, not an anchor and an alias

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)  # [a, b] on one line

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Other line breaks than ours (U+0085, U+2028) survive only in double quotes."""
        return self.represent_scalar(_CORE + "str", text, style=None if text.isprintable() else '"')


# what our reader takes for a number must be quoted when it is text; PyYAML's own resolvers stay, so that other readers agree
_Dumper.add_representer(str, _Dumper.represent_text)
for _numeric in (_FLOAT, _INT):
    _Dumper.add_implicit_resolver(_CORE + "float", _numeric, list("-+.0123456789"))


def read_yaml(path: str | Path) -> Document:
    """The mapping in a YAML file, and where its keys stand.

    Raises MissingFileError (naming the folder's YAML files) or InputError: not text, too large, a mistake in the YAML with line and
    column, a repeated key, a tag, an empty file, or a list where a mapping is needed.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        tree, lines = _parse(text)
    except YamlProblem as problem:
        raise InputError(f"{path}{problem}") from None
    if tree is None:
        raise InputError(f"{path} is empty; {_WANTED}")
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds {kind_of(tree)} at its top; {_WANTED}")
    return Document(tree, lines)


def parse_value(text: str) -> Any:
    """A value typed on the command line: a list, mapping or quoted text is read as YAML, anything else is one plain value.

    Raises YamlProblem. `#`, `: ` and the like have no meaning outside brackets and quotes, so paths need no quoting.
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        return _parse(text)[0]
    return _plain(text) if text else ""


def to_yaml(value: Any) -> str:
    """`value` (mappings, lists, plain values) as YAML text that `read_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=130)


def kind_of(value: Any) -> str:
    """What a value is, in words, without showing it."""
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "text" if isinstance(value, str) else "a single value"


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give one YAML file{_yaml_files(path)}")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"configuration {path} does not exist{_yaml_files(path.parent)}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"configuration {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES / 1e6:.0f} MB; this is not a configuration file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def _yaml_files(folder: Path) -> str:
    """What the user may have meant: the YAML files of a folder, as the end of a sentence."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in (".yaml", ".yml"))
    except OSError:
        return f"; nor does the folder {folder}"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"; YAML files in {folder}: {', '.join(names[:20])}{more}" if names else f"; there is no YAML file in {folder}"


def _parse(text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = _cut(" ".join(filter(None, [error.context, error.problem])), 300)
        hint = "; indent with spaces, not with tabs" if "'\\t'" in problem else ""
        hint = "; keep one document per file" if "another document" in problem else hint
        raise YamlProblem(f"{_place(mark)}: not valid YAML: {problem}{hint}") from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        position = getattr(error, "position", 0)
        raise YamlProblem(f", line {text.count(chr(10), 0, position) + 1}: {getattr(error, 'reason', error)}") from None
    except RecursionError:
        raise YamlProblem(f": nested deeper than {MAX_DEPTH} levels") from None
    reader = _Reader()
    return (None if node is None else reader.value(node, ())), reader.lines


def _cut(text: str, longest: int = 80) -> str:
    return text if len(text) <= longest else text[:longest] + "..."


def _place(mark: yaml.Mark | None) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


class _Reader:
    """Turns PyYAML's nodes into plain values, counting them and noting where keys stand."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, ...], int] = {}
        self.count = 0

    def value(self, node: yaml.Node, path: tuple[str, ...], depth: int = 0) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise YamlProblem(_TOO_MANY)
        if depth > MAX_DEPTH:
            raise YamlProblem(f"{_place(node.start_mark)}: nested deeper than {MAX_DEPTH} levels")
        if node.tag != _UNTAGGED:
            tag = node.tag.replace(_CORE, "!!")
            raise YamlProblem(f"{_place(node.start_mark)}: the tag {_cut(tag)} is not accepted; remove it")
        if isinstance(node, yaml.ScalarNode):
            return _plain(node.value) if node.style is None else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, path, depth + 1) for item in node.value]
        return self.mapping(node, path, depth)

    def mapping(self, node: yaml.Node, path: tuple[str, ...], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            place = _place(key_node.start_mark)
            if not key:
                raise YamlProblem(f"{place}: a key must be a word, such as `batch_size`")
            if key == "<<":
                raise YamlProblem(f"{place}: merge keys (<<) are not accepted; write the keys out")
            if key in out:
                first = self.lines[(*path, key)]
                raise YamlProblem(f"{place}: the key {_cut(key)!r} is given twice (first on line {first}); keep one of the two")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            out[key] = self.value(value_node, (*path, key), depth + 1)
        return out


def _plain(text: str) -> Any:
    """An unquoted word as null, true or false, a number, or text."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text, 16) if text.startswith("0x") else int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    return float(text.replace(".", "")) if _SPECIAL.match(text) else text
