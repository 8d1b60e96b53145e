"""The model card: a README.md made of what training and evaluation wrote beside the saved pair, and of nothing else.

Found beside a model's folder or up to two folders above it: summary.json (result, windows, versions), config.yaml (settings as resolved),
metrics.jsonl (learning rate), evaluation.json (scores; also in a folder evaluation/). Each is optional; what is not there is said to be
unknown. Local paths and host names stay out. To publish, the hub library does the rest:

    tokenizer.push_to_hub("me/my-tokenizer"); model.push_to_hub("me/my-kronos")       # KronosTokenizer and Kronos have its mix-in
    huggingface_hub.ModelCard(model_card("T", "P")).push_to_hub("me/my-kronos")       # replaces the empty card the line above made
    huggingface_hub.upload_folder(repo_id="me/my-bundle", folder_path="X")            # or a whole bundle, card included
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from kronos.errors import InputError
from kronos.exporting import CARD_MARK
from kronos.loading import read_arguments
from kronos.network import Kronos
from kronos.tokenizer import KronosTokenizer

_ABOVE = 2  # folders above the weights that are searched: run/best_model, run/checkpoints/best_model
_LICENCE = (
    "MIT, like the code that made it. The model and its format come from *Kronos: A Foundation Model for the Language of Financial "
    "Markets* ([arXiv 2508.02739](https://arxiv.org/abs/2508.02739), [shiyu-coder/Kronos](https://github.com/shiyu-coder/Kronos)). "
    "Weights that were fine-tuned from published ones keep the licence of those. The licence of the data is not covered."
)
_LIMITS = (
    "It forecasts the next bars from the bars before, and knows nothing else: no news, no order book, no other market.",
    "Bands are quantiles of sampled paths. Whether they cover what they claim is what the evaluation says, if there is one.",
    "Markets change. What it learned is as old as its newest training bar.",
    "It is not investment advice, and a forecast better than a baseline's is not a profit: costs and fills are not in it.",
)
_LOADS = {
    "folder": """```python
from kronos.bundle import load_bundle

forecaster = load_bundle("THIS_FOLDER").forecaster()
paths = forecaster.predict(bars, x_timestamp, y_timestamp, pred_len=24, sample_count=100, seed=0, return_samples=True)  # [100, 24, 6]
```

`bars` is a DataFrame with columns open, high, low, close and, if known, volume and amount, oldest first. The folders `tokenizer/` and
`predictor/` of a float32 bundle are in the published format: `KronosTokenizer.from_pretrained` and `Kronos.from_pretrained` read them.""",
    "pth": """```python
from kronos.bundle import load_bundle

forecaster = load_bundle("THIS_FILE.pth").forecaster()  # plain tensors, read with weights_only=True
paths = forecaster.predict(bars, x_timestamp, y_timestamp, pred_len=24, sample_count=100, seed=0, return_samples=True)  # [100, 24, 6]
```""",
    "pt2": """```python
from kronos.programs import load_programs

programs = load_programs("THIS_FOLDER", trust=True)  # loading a program can run anything: only from someone you trust
paths = programs.predict(bars, x_timestamp, y_timestamp, pred_len=24, sample_count=100, seed=0)  # [100, 24, 6]
```

Or each alone with `torch.export.load("programs/encode.pt2").module()`, without the package.""",
}


@dataclass(frozen=True)
class Beside:
    """What lies beside one saved model; empty where nothing does."""

    config: Mapping[str, Any]  # constructor arguments
    summary: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # config.yaml
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    peak_rate: float | None = None  # largest logged learning rate


def model_card(tokenizer: str | Path, predictor: str | Path, *, format: str = "folder", quantize: str | None = None) -> str:
    """The card of a saved pair (folders or hub ids), as Markdown with the hub's front matter, for an export of this format.

    Raises InputError for a model that is not there, and for a file beside it that is damaged.
    """
    parts = {
        "tokenizer": read_beside(tokenizer, KronosTokenizer, "tokenizer"),
        "predictor": read_beside(predictor, Kronos, "predictor"),
    }
    model = parts["predictor"]
    experiment = _section(model.settings, "experiment")
    name = str(experiment.get("name") or "Kronos")
    blocks = [
        _front_matter(model.settings),
        CARD_MARK,
        f"# {name}",
        str(experiment.get("description") or ""),
        _what(parts, quantize),
        "## How to load it\n\n" + _LOADS[format],
        "## Data and windows\n\n" + _data(model),
        "## Training\n\n" + _training(parts),
        "## Results\n\n" + _results(model),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _LIMITS),
        "## Made with\n\n" + _versions(parts),
        "## Licence\n\n" + _LICENCE,
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def read_beside(name: str | Path, cls: type, task: str) -> Beside:
    """Reads what lies beside the model `name`. task: "tokenizer" or "predictor"; a summary of the other stage is passed over."""
    arguments = read_arguments(cls, name)
    folder = Path(name).expanduser()
    if not folder.is_dir():  # a hub id: published weights, no run
        return Beside(arguments)
    places = [folder.resolve(), *folder.resolve().parents[:_ABOVE]]
    runs = [(place, _json(place / "summary.json")) for place in places]
    run = next(((place, found) for place, found in runs if found and found.get("task", task) == task), None)
    reports = [place / file for place in places for file in ("evaluation.json", "evaluation/evaluation.json")]
    evaluation = next((found for found in map(_json, reports) if found), {})
    if run is None:
        return Beside(arguments, evaluation=evaluation)
    place, summary = run
    return Beside(arguments, summary, _yaml(place / "config.yaml"), evaluation, _peak_rate(place / "metrics.jsonl"))


def _json(path: Path) -> dict[str, Any]:
    return _read(path, json.loads)


def _yaml(path: Path) -> dict[str, Any]:
    import yaml  # only a card needs it

    def parse(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(error) from error

    return _read(path, parse)


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping in a file; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path} for the model card ({error}): mend or remove it, or leave out --card") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not an object: mend or remove it, or leave out --card")
    return value


def _peak_rate(path: Path) -> float | None:
    if not path.is_file():
        return None
    rates = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rates.append(json.loads(line).get("lr"))
        except (ValueError, AttributeError):  # the torn last line of a run that was killed
            continue
    return max((rate for rate in rates if _is_number(rate)), default=None)


# --- the blocks


def _front_matter(settings: Mapping[str, Any]) -> str:
    lines = ["license: mit", "pipeline_tag: time-series-forecasting", "tags:", "- kronos", "- k-line", "- finance"]
    if base := _started_from(settings, "predictor"):
        lines += [f"base_model: {base}"]
    return "---\n" + "\n".join(lines) + "\n---"


def _started_from(settings: Mapping[str, Any], stage: str) -> str:
    """The hub id that a stage was fine-tuned from; nothing for random weights, a local folder, or where it is not known."""
    if not settings or _section(settings, "experiment").get(f"pre_trained_{stage}") is False:
        return ""
    name = str(_section(settings, "model_paths").get(f"pretrained_{stage}") or "")
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists() else ""


def _what(parts: Mapping[str, Beside], quantize: str | None) -> str:
    tokenizer, model = parts["tokenizer"].config, parts["predictor"].config
    text = (
        "A pair of models for K-lines in the format of Kronos. The tokenizer turns each bar (open, high, low, close, volume, amount) into "
        f"a coarse token of {tokenizer['s1_bits']} bits and a fine one of {tokenizer['s2_bits']}; the predictor "
        f"({model['n_layers']} layers, width {model['d_model']}) forecasts the next ones."
    )
    return text + (" The linear layers are in int8; figures below are of the float32 weights." if quantize else "")


def _data(model: Beside) -> str:
    facts, asked = _section(model.summary, "data"), _section(model.settings, "data")
    windows = _section(model.summary, "windows")
    rows = [
        ("bars", _sources(asked.get("data_path"))),
        ("fingerprint of the bars", facts.get("data")),
        ("time zone", asked.get("timezone") or None),
        ("lookback, bars", facts.get("lookback")),
        ("horizon, bars", facts.get("horizon")),
        ("stride", facts.get("stride")),
        ("normalisation", _joined(facts.get("normalisation"), f"clipped at {facts['clip']}" if "clip" in facts else None)),
        (
            "split by time, training / validation / test",
            _joined(*[asked.get(f"{part}_ratio") for part in ("train", "val", "test")], by=" / "),
        ),
        ("windows, training / validation / test", _joined(*[windows.get(part) for part in ("train", "val", "test")], by=" / ")),
    ]
    return _table(("", ""), rows) or "Not known: no summary.json lay beside the weights."


def _sources(paths: Any) -> str | None:
    """Names of files without their folders, which are nobody's business."""
    names = [paths] if isinstance(paths, str) else paths if isinstance(paths, list) else []
    return ", ".join(PurePath(str(name)).name for name in names) or None


def _training(parts: Mapping[str, Beside]) -> str:
    columns = []
    for stage, part in parts.items():
        summary, settings = part.summary, _section(part.settings, "training")
        best = (summary.get("monitor"), summary.get("best_score"), summary.get("best_epoch"))
        columns.append(
            {
                "started from": _started_from(part.settings, stage) or ("random weights" if _is_random(part.settings, stage) else None),
                "parameters": summary.get("parameters"),
                "optimiser steps": summary.get("steps"),
                "effective batch": summary.get("effective_batch"),
                "learning rate, highest": settings.get(f"{stage}_learning_rate", part.peak_rate),
                "schedule": settings.get("schedule"),
                "seed": settings.get("seed"),
                "device": _joined(summary.get("device"), summary.get("world_size"), by=" × "),
                "time": f"{summary['wall_time_s'] / 60:.1f} min" if _is_number(summary.get("wall_time_s")) else None,
                "best epoch": f"{best[2]}, {best[0]} {_shown(best[1])}" if all(value is not None for value in best) else None,
            }
        )
    rows = [(key, *(column[key] for column in columns)) for key in columns[0]]
    return _table(("", *parts), rows) or "Not known: no summary.json lay beside the weights."


def _is_random(settings: Mapping[str, Any], stage: str) -> bool:
    return _section(settings, "experiment").get(f"pre_trained_{stage}") is False


def _results(model: Beside) -> str:
    history = [line for line in model.summary.get("history") or [] if isinstance(line, dict)]
    rows = [(line["epoch"] + 1, line.get("train_loss"), line.get("val_loss")) for line in history if _is_number(line.get("epoch"))]
    losses = _table(("epoch", "training loss", "validation loss"), rows)
    parts = [losses, "Training loss has dropout on and counts other bars: compare validation with validation." if losses else ""]
    if model.evaluation:
        parts = [*_scores(model.evaluation), *parts]
    else:
        parts.append("The pair was not evaluated against baselines: nothing is known about its skill.")
    return "\n\n".join(part for part in parts if part)


def _scores(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """The sentences of an evaluation, its methods beside each other, how it was measured, and its notes."""
    sentences = _inside(evaluation, "verdict", "sentences")
    if isinstance(sentences, list):
        yield "\n".join(f"- {line}" for line in sentences)
    rows = []
    for name, scores in _section(evaluation, "methods").items():
        skill = _inside(evaluation, "skill", name, "overall")
        returns = [_inside(scores, "returns", score, "overall") for score in ("crps", "mae")]
        shares = [_inside(scores, "returns", "directional_accuracy", "overall"), _inside(scores, "bands", "90%", "coverage", "overall")]
        rows.append((str(_inside(scores, "label") or name), *map(_percent, (skill, *returns, *shares))))
    yield _table(("method", "the model's CRPS skill against it", "CRPS", "MAE", "direction right", "in 90 % band"), rows)
    where = _section(evaluation, "origins")
    if {"scored", "moments", "split", "first", "last"} <= where.keys():
        asked = "On log returns of {scored} forecasts at {moments} moments of the {split} split, {first} to {last}".format(**where)
        yield f"{asked}; {_shown(_inside(evaluation, 'settings', 'samples'))} paths each."
    notes = evaluation.get("notes")
    if isinstance(notes, list):
        yield "\n".join(f"- Note: {note}" for note in notes)


def _inside(value: Any, *keys: str) -> Any:
    """What lies at a path through mappings; None where the path ends early."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _percent(share: Any) -> str | None:
    return f"{100 * share:.4g} %" if _is_number(share) else None


def _versions(parts: Mapping[str, Beside]) -> str:
    summary = parts["predictor"].summary
    git = _section(summary, "git")
    commit = f"{git['commit']}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else None
    return _table(("", ""), [*_section(summary, "versions").items(), ("git commit", commit)]) or "Not known."


# --- small things


def _section(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping inside a mapping; empty for anything else that may stand there."""
    inner = value.get(key)
    return inner if isinstance(inner, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _joined(*values: Any, by: str = ", ") -> str | None:
    return by.join(_shown(value) for value in values) if all(value is not None for value in values) else None


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table of the rows that hold anything besides their name; empty without one."""
    lines = [row for row in rows if any(value is not None for value in row[1:])]
    if not lines:
        return ""
    cells = [[("" if value is None else _shown(value)).replace("|", "\\|").replace("\n", " ") for value in row] for row in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *cells])
