"""What a configuration may hold: sections, keys, and the words in which a key, its type and its nearest neighbours are told to a person."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    SecretStr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from finetune.engine.yaml_text import to_yaml

KeyPath = tuple[str, ...]  # ("training", "batch_size")

# The one place that says which environment variables set a key. A key names its variable with `key(..., env=...)`; the loader reads
# no other. Precedence: flag (--set) > environment > file > default. An empty variable counts as unset.
ENVIRONMENT = {
    "KRONOS_TOKENIZER_PATH": "weights the tokenizer starts from: a folder or a hub id",
    "KRONOS_PREDICTOR_PATH": "weights the predictor starts from: a folder or a hub id",
    "KRONOS_DATA_PATH": "the bars: a file, a pattern such as 'bars/*.csv', or arch:NAME",
    "TFM_DATA_PATH": "the fused data of the Temporal Fusion Transformer: a panel folder, .parquet, or .pkl through the allow-list reader",
    "KRONOS_OUTPUT_PATH": "the folder below which every experiment gets a folder of its own name",
    "DIST_BACKEND": "how ranks talk to each other: nccl or gloo",
    "COMET_WORKSPACE": "Comet workspace that a run appears in",
    "COMET_API_KEY": "read by comet_ml itself and never by us, so that it cannot reach a log, a dump or a run folder",
}


def key(
    default: Any,
    description: str,
    *,
    env: str | None = None,
    path: Literal["in", "out"] | None = None,
    words: Iterable[str] = (),
    example: Any = None,
    **limits: Any,
) -> Any:
    """A key of a section: its default (`...`: required), what it means, and its limits (ge, gt, le, lt, max_length).

    env: the environment variable that sets it, one of ENVIRONMENT. path: the text is a file or folder that a run reads ("in": looked up
    beside the configuration file first, then from the current folder) or writes ("out": from the current folder); `~` is the home folder.
    words: texts that are never a path.
    """
    assert env is None or env in ENVIRONMENT, f"{env} is not in the table of environment variables"
    extra = {"env": env, "path": path, "words": tuple(words), "example": example}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def text_or(section: type[Section]) -> Any:
    """Annotation of a key that takes either a text or a section's mapping; errors inside the mapping keep their own key."""
    return Annotated[Annotated[str, Tag("<text>")] | Annotated[section, Tag("<mapping>")], Discriminator(_text_or_mapping)]


def number_or(section: type[Section]) -> Any:
    """As `text_or`, for a number or a mapping; None is allowed and means neither."""
    return Annotated[Annotated[float | None, Tag("<text>")] | Annotated[section, Tag("<mapping>")], Discriminator(_text_or_mapping)]


def switch_or(section: type[Section]) -> Any:
    """As `text_or`, for true, false or a mapping, which means true."""
    return Annotated[Annotated[bool, Tag("<text>")] | Annotated[section, Tag("<mapping>")], Discriminator(_text_or_mapping)]


def _text_or_mapping(value: Any) -> str:
    return "<mapping>" if isinstance(value, dict | BaseModel) else "<text>"


class Section(BaseModel):
    """Keys that belong together. Unknown keys are refused, defaults are validated, and nothing changes after loading.

    aliases: another documented name of a key, and the key or keys it sets. hides: a key that, given by a flag or a variable, makes a
    lower layer's value of other keys void, because those were derived from the old one. flat: of a whole file's schema: a key that only one
    section has may also stand at the top.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        coerce_numbers_to_str=True,  # exp_name: 2024
        protected_namespaces=(),  # model_paths is a section of ours
        hide_input_in_errors=True,
    )
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    hides: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    flat: ClassVar[bool] = False
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Checks that need several keys: yields (key below this section, what is wrong and the fix). All of them are reported."""
        return iter(())

    def _complete(self) -> None:
        """Hook: fills in, by `_fill`, the keys that are derived from others. Runs before `problems`."""

    def _fill(self, **values: Any) -> None:
        """Sets keys of this section, which is frozen for everybody else."""
        self.__dict__.update(values)

    @field_validator("*", mode="before")
    @classmethod
    def _as_people_write(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        if setting(cls.model_fields[info.field_name], "path") and any(_UNPRINTABLE.search(text) for text in _texts(value)):
            raise PydanticCustomError("characters", "holds control characters")
        if isinstance(value, bool):
            return _from_switch(value, annotation)
        if isinstance(value, str) and accepts(annotation, list[str]):
            return [value]  # one is a list of one
        if value is None and not accepts(annotation, type(None)):
            if accepts(annotation, str):
                return ""
            if section_of(annotation):
                return {}
            raise PydanticCustomError("empty", "is empty")
        return value

    @model_validator(mode="after")
    def _complete_and_check(self) -> Section:
        self._complete()
        if found := list(self.problems()):
            raise PydanticCustomError("problems", "{text}", {"text": "; ".join(text for _, text in found), "problems": found})
        return self


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _from_switch(value: bool, annotation: Any) -> Any:
    """true and false where a word is wanted: `amp: false` means `off`. Where a number is wanted they are a mistake, not 1 and 0."""
    if accepts(annotation, bool):
        return value
    words = [word for part in parts_of(annotation) if get_origin(part) is Literal for word in get_args(part)]
    word = "on" if value else "off"
    if words and word in words:
        return word
    raise PydanticCustomError("switch", "is true or false")


def parts_of(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation, without Annotated and unions around them."""
    if get_origin(annotation) is Annotated:
        yield from parts_of(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from parts_of(part)
    else:
        yield annotation


def accepts(annotation: Any, kind: type) -> bool:
    return kind in parts_of(annotation)


def section_of(annotation: Any) -> type[Section] | None:
    """The section class among an annotation's alternatives, if any."""
    return next((part for part in parts_of(annotation) if isinstance(part, type) and issubclass(part, Section)), None)


def is_section(field: FieldInfo) -> bool:
    """Whether a field is a section and nothing else, so that its keys are merged one by one."""
    parts = list(parts_of(field.annotation))
    return len(parts) == 1 and section_of(field.annotation) is not None


def is_secret(field: FieldInfo) -> bool:
    return accepts(field.annotation, SecretStr)


def setting(field: FieldInfo, name: str) -> Any:
    """What `key` was told about a field: its env, path, words or example."""
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


def home_of(schema: type[Section], name: str) -> str | None:
    """The section that a key at the top belongs to, if the schema is flat and only one section has it."""
    if not schema.flat or name in schema.model_fields or name in schema.aliases:
        return None
    sections = {home: section_of(field.annotation) for home, field in schema.model_fields.items() if is_section(field)}
    homes = [home for home, section in sections.items() if name in section.model_fields or name in section.aliases]
    return homes[0] if len(homes) == 1 else None


def fields_of(schema: type[Section], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, FieldInfo]]:
    """Every key of a schema with its path, sections opened, in the order of the declaration."""
    for name, field in schema.model_fields.items():
        if is_section(field):
            yield from fields_of(section_of(field.annotation), (*prefix, name))
        else:
            yield (*prefix, name), field


def find_field(schema: type[Section], path: KeyPath) -> FieldInfo | None:
    """The field at a path, also inside a mapping that stands for a text; None if there is none."""
    section: type[Section] | None = schema
    field = None
    for name in path:
        field = section.model_fields.get(name) if section else None
        if field is None:
            return None
        section = section_of(field.annotation)
    return field


class KeyRow(NamedTuple):
    """One line of the table of keys. default: as it would stand in YAML, or "required"."""

    key: str
    type: str
    default: str
    description: str


def describe_keys(schema: type[Section]) -> list[KeyRow]:
    """Every key of a schema in words, for the guide's tables and the template."""
    rows = []
    for path, field in fields_of(schema):
        env = setting(field, "env")
        description = " ".join((field.description or "").split()) + (f" (environment: {env})" if env else "")
        rows.append(KeyRow(".".join(path), type_text(field), default_text(field), description))
    return rows


def key_table(schema: type[Section]) -> str:
    """The table of keys as Markdown."""
    rows = [KeyRow(f"`{row.key}`", row.type, f"`{row.default}`", row.description) for row in describe_keys(schema)]
    head = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
    return head + "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def template(schema: type[Section]) -> str:
    """A YAML file with every key at its default, each with a comment: type and meaning. Required keys get their example."""
    lines = ["# Every key with its meaning, [type] and default, which holds if a file leaves it out. Generated: see CONTRIBUTING.md."]
    opened: KeyPath = ()
    for (path, field), row in zip(fields_of(schema), describe_keys(schema), strict=True):
        for depth in range(len(path) - 1):
            if path[: depth + 1] != opened[: depth + 1]:
                lines += [""] * (depth == 0) + ["  " * depth + path[depth] + ":"]
        opened = path[:-1]
        indent = "  " * len(opened)
        value = _flow(setting(field, "example")) if field.is_required() else row.default
        lines += [f"{indent}# {row.description} [{row.type}]", f"{indent}{path[-1]}: {value}"]
    return "\n".join(lines) + "\n"


def default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return '""' if default == "" or isinstance(default, SecretStr) else _flow(default)


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    return to_yaml({"value": value}).removeprefix("value:").strip()


def type_text(field: FieldInfo) -> str:
    """A key's type and limits in words: "whole number ≥ 1", "one of off, bf16, fp16"."""
    words = [_type_words(part) for part in parts_of(field.annotation) if part is not type(None)]
    return " or ".join(dict.fromkeys(words)) + _limit_text(field)


_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", SecretStr: "text (secret)"}


def _type_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is list:
        return "list of " + " or ".join(_type_words(part).removeprefix("one of ") for part in parts_of(get_args(annotation)[0]))
    if section := section_of(annotation):
        return "mapping with " + ", ".join(section.model_fields)
    return _WORDS.get(annotation, "value")


def _limit_text(field: FieldInfo) -> str:
    limits = {name: getattr(item, name) for item in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(item, name)}
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']:g} to {limits['le']:g}" if limits["le"] < 1e6 else f" ≥ {limits['ge']:g}"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " and".join(f" {signs[name]} {limit:g}" for name, limit in limits.items())


def nearest_keys(schema: type[Section], path: KeyPath) -> list[str]:
    """The known keys that an unknown one most likely means, best first, at most two; also from other sections. Empty if none is near."""
    wanted, scored = _plain_name(path[-1]), []
    if len(wanted) > 60:
        return []
    for known in _suggestible(schema):
        name = _plain_name(known[-1])
        likeness = difflib.SequenceMatcher(None, wanted, name).ratio()
        if len(wanted) >= 4 and len(name) >= 4 and (wanted in name or name in wanted):
            likeness = max(likeness, 0.8)
        if likeness >= 0.65:
            scored.append((likeness + 0.1 * (known[:-1] == path[:-1]), ".".join(known)))
    scored.sort(key=lambda pair: -pair[0])
    best = scored[0][0] if scored else 0.0
    return [name for likeness, name in scored if likeness >= best - 0.001][:2]


def _plain_name(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _suggestible(schema: type[Section], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """Everything a key may be called: sections, keys, keys of mappings that stand for a text, and aliases."""
    for name, field in schema.model_fields.items():
        yield (*prefix, name)
        if section := section_of(field.annotation):
            yield from _suggestible(section, (*prefix, name))
    for name in schema.aliases:
        yield (*prefix, name)
