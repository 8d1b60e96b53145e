"""The documents against the code: commands and flags, keys, YAML and Python as printed, paths, links, and the two languages."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import tiny
import yaml
from bars import make_frame

from finetune.after_training import draw_forecast
from finetune.engine.config import ENVIRONMENT, describe_keys, key_table
from finetune.pipeline import prepared, run_stage
from finetune_csv.config import CsvConfig
from finetune_csv.pipeline import stages_of
from kronos import save_module

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("training", "qlib", "kaggle", "many_models", "tft", "federation", "keys", "figures")
MANUALS = {f"README{cn}.md": (f"README{cn}.md", *(f"docs/{page}{cn}.md" for page in PAGES)) for cn in ("", "_CN")}
READMES = tuple(MANUALS)
DOCUMENTS = (*READMES, "CONTRIBUTING.md", "docs/log.md", "benchmarks/README.md")
FILES = (*(page for pages in MANUALS.values() for page in pages), *DOCUMENTS[2:], "docs/reliability.md")
AGAIN = 'python -c "from finetune.engine.config import key_table; from finetune_csv.config import CsvConfig; print(key_table(CsvConfig))"'
_BLOCK = re.compile(r"^( *)(?:<!-- (\w+) -->\n\1)?```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_CJK = re.compile(r"[\u4e00-\u9fff]")


class Block(NamedTuple):
    """A fenced block: its mark (the comment `<!-- mark -->` before it), its language, its text."""

    mark: str
    language: str
    text: str


def read(name: str) -> str:
    """A document's text; of a README also the pages of its guide, after it."""
    return "\n".join(file(page) for page in MANUALS.get(name, (name,)))


def file(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str = "", mark: str = "") -> list[Block]:
    found = [Block(m[2] or "", m[3], textwrap.dedent(m[4])) for m in _BLOCK.finditer(read(name))]
    return [b for b in found if (not language or b.language == language) and (not mark or b.mark == mark)]


def prose(text: str) -> str:
    """A text without its fenced blocks."""
    return _BLOCK.sub("", text)


def commands(name: str) -> list[str]:
    """The lines of all bash blocks, without comments; `a && b` is two."""
    lines = [line.partition(" #")[0].strip() for block in blocks(name, "bash") for line in block.text.splitlines()]
    return [part.strip() for line in lines if not line.startswith("#") for part in line.split(" && ") if part.strip()]


# ---- commands


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize(
    "line",
    [
        "pip install -r requirements-core.txt && python train_sequential.py",
        "pip install -r requirements.txt && pytest -n 2 --dist loadfile",
    ],
)
def test_the_two_commands_stand_there_once_and_as_ci_runs_them(name, line):
    needle = "&&" + line.partition("&&")[2]  # what .ci/run looks for
    found = [text for text in read(name).splitlines() if needle in text]
    assert [re.sub(" *#.*", "", text) for text in found] == [line]


@functools.cache
def flags_of(program: tuple[str, ...]) -> frozenset[str]:
    """Every flag that a program's --help names."""
    done = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w-]*", done.stdout))


def program_of(words: list[str]) -> tuple[tuple[str, ...], list[str]] | None:
    """(what Python runs, its arguments) of a command line of ours; None for pip, pytest and the like."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    if words[0] in ("python", "torchrun") and script is not None:
        return (words[script],), words[script + 1 :]
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        return ("-m", words[2]), words[3:]
    return None


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_exists_with_the_flags_and_keys_that_are_named(name):
    known = {row.key for row in describe_keys(CsvConfig)} | {"training.epochs", "experiment.pre_trained"}
    for line in commands(name):
        ours = program_of(line.split())
        if ours is None:
            continue
        program, arguments = ours
        assert len(program) == 2 or (ROOT / program[0]).is_file(), f"{name}: {line}"
        given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert given <= flags_of(program), f"{name}: {line}"
        for key in re.findall(r"([a-z_]+\.[\w.]+)=", line):
            assert key in known, f"{name}: {line}"


@pytest.mark.parametrize("name", READMES)
def test_the_readme_shows_every_flag_of_the_main_command(name):
    elsewhere = {"--help", "--standalone", "--nproc_per_node"}  # the last two stand in an example of --help: they are torchrun's
    assert flags_of(("train_sequential.py",)) - elsewhere <= set(re.findall(r"--[a-z][\w-]*", read(name)))


@pytest.mark.parametrize("name", READMES)
def test_every_environment_variable_is_in_the_readme_and_every_one_of_ours_there_exists(name):
    named = set(re.findall(r"\b(?:KRONOS|COMET|DIST|TFM)_[A-Z_]+\b", read(name)))
    assert named == set(ENVIRONMENT)


# ---- keys and configurations


def table_rows(name: str) -> list[list[str]]:
    """Cells of the table of keys, without its head."""
    table = re.search(r"<!-- keys -->\n(.*?)\n<!-- /keys -->", read(name), re.DOTALL)[1]
    return [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table.splitlines()[2:]]


def test_the_table_of_keys_is_what_the_schema_says_today():
    table = re.search(r"<!-- keys -->\n(.*?)\n<!-- /keys -->", read("README.md"), re.DOTALL)[1]
    assert table.splitlines() == key_table(CsvConfig).splitlines(), f"the schema changed; paste the table again: {AGAIN}"


def test_the_chinese_table_has_the_same_keys_and_defaults_and_a_meaning_for_each():
    rows = table_rows("README_CN.md")
    assert [(key, default) for key, _, default, _ in rows] == [(f"`{row.key}`", f"`{row.default}`") for row in describe_keys(CsvConfig)]
    assert all(_CJK.search(meaning) for *_, meaning in rows)
    for row, (*_, meaning) in zip(describe_keys(CsvConfig), rows, strict=True):
        assert re.findall(r"[A-Z]+_[A-Z_]+", row.description) == re.findall(r"[A-Z]+_[A-Z_]+", meaning), row.key


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_key_that_the_text_names_exists(name):
    known = {row.key for row in describe_keys(CsvConfig)} | {"experiment.pre_trained"}
    sections = {key.partition(".")[0] for key in known}
    for key in re.findall(r"`([a-z_]+\.[a-z_.]*[a-zT])(?:: [^`]*|=[^`]*)?`", prose(read(name))):
        if key.partition(".")[0] in sections and key not in ("model.safetensors", "model.module"):
            assert any(key == one or one.startswith(f"{key}.") for one in known), f"{name}: {key}"


@pytest.mark.parametrize("name", READMES)
def test_every_yaml_block_is_a_configuration(name, tmp_path):
    assert len(blocks(name, "yaml")) >= 2
    for block in blocks(name, "yaml"):
        path = tmp_path / "C.yaml"
        path.write_text(block.text, encoding="utf-8")
        CsvConfig.load(path, ["data.data_path=bars.csv"], {})


# ---- the walk through: YAML, output folder, snippets


def shanghai_times(n: int) -> pd.DatetimeIndex:
    """The first `n` times of 5-minute A-share bars from a Monday on, stamped at their close: the bars that the README begins with."""
    days = pd.bdate_range("2023-11-06", periods=n // 48 + 1)
    minutes = [*range(575, 691, 5), *range(785, 901, 5)]
    return pd.DatetimeIndex([day + pd.Timedelta(minutes=minute) for day in days for minute in minutes][:n])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which somebody followed "your own CSV", from tiny random weights instead of the published ones, for two epochs."""
    folder = tmp_path_factory.mktemp("docs")
    make_frame(520).assign(timestamps=shanghai_times(520)).to_csv(folder / "bars.csv", index=False)
    save_module(tiny.tokenizer(), folder / "weights" / "tokenizer")
    save_module(tiny.predictor(), folder / "weights" / "predictor")
    path = folder / "my_bars.yaml"
    path.write_text(blocks("README.md", "yaml")[0].text, encoding="utf-8")
    config = CsvConfig.load(
        path,
        [
            "training.epochs=2",
            "forecast.samples=2",
            f"model_paths.base_path={folder / 'finetuned'}",
            f"model_paths.pretrained_tokenizer={folder / 'weights' / 'tokenizer'}",
            f"model_paths.pretrained_predictor={folder / 'weights' / 'predictor'}",
        ],
        {},
    )
    with prepared(config, stages_of(config)) as job:
        for stage in job.models:
            run_stage(job, stage)
        draw_forecast(job)
    return folder


def tree_paths(text: str) -> list[str]:
    """The paths of a drawn tree; each line is a name after its branches, then a meaning."""
    stack: list[str] = []
    found = []
    for line in text.splitlines():
        branches, name = re.match(r"((?:[│ ]   )*(?:[├└]── )?)(\S+)", line).groups()
        stack = [*stack[: len(branches) // 4], name.rstrip("/")]
        found.append("/".join(stack))
    return found


@pytest.mark.parametrize("name", READMES)
def test_what_the_readme_says_is_left_behind_is_there(trained, name):
    (tree,) = blocks(name, mark="output")
    paths = tree_paths(tree.text)
    assert len(paths) > 15
    for path in paths:
        assert list(trained.glob(path)), f"{name}: {path}"


def test_the_python_in_the_readme_runs(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    snippets = blocks("README.md", mark="runnable")
    assert len(snippets) == len(blocks("README.md", "python")) == 2
    space: dict = {}
    for snippet in snippets:
        exec(compile(snippet.text, "README.md", "exec"), space)
    assert space["paths"].shape == (30, 48, 6) and len(space["mean"]) == 48 and 0 <= space["prob_up"] <= 1
    assert (trained / "panels" / "my_panel" / "panel.json").is_file() and "probability of a rise" in capsys.readouterr().out


# ---- paths and links


@pytest.mark.parametrize("name", READMES)
def test_every_path_in_the_map_exists(name):
    (listing,) = blocks(name, mark="map")
    paths = [line.split()[0] for line in listing.text.splitlines()]
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists() and (ROOT / path).is_dir() == path.endswith("/"), f"{name}: {path}"


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", FILES)
def test_local_links_and_anchors_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(file(name))):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.is_file(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(there.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{name}: {target}"


@pytest.mark.parametrize("name", READMES)
def test_every_page_of_the_guide_is_one_click_from_the_readme_and_leads_back(name):
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")}
    assert pages == {page for page in FILES if page.startswith("docs/")}
    for page in MANUALS[name][1:]:
        assert f"]({page})" in file(name), page
        assert f"](../{name})" in file(page) and f"]({Path(_other(page)).name})" in file(page), page


def _other(page: str) -> str:
    """The same page in the other language."""
    return page.replace("_CN.md", ".md") if page.endswith("_CN.md") else page.replace(".md", "_CN.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_modules_and_tests_that_the_text_names_exist(name):
    text = prose(read(name))
    for path in re.findall(r"`((?:tests|configs|kronos|finetune|finetune_csv|benchmarks|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{name}: {path}"
    for dotted in re.findall(r"`((?:kronos|finetune)\.[\w.]+)`", text):
        module, _, attribute = dotted.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), f"{name}: {dotted}"
    defined = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for test in set(re.findall(r"`(test_\w+)`", text)) - {"test_ratio", "test_days"}:  # these two are keys of model_config.yaml
        assert f"def {test}(" in defined, f"{name}: {test}"
    for line in text.splitlines():  # the table of differences: each test stands after a link to its file
        for file, tests in re.findall(r"\]\(tests/(test_\w+\.py)\)((?: ?,? ?`test_\w+`)+)", line):
            for test in re.findall(r"`(test_\w+)`", tests):
                assert f"def {test}(" in read(f"tests/{file}"), f"{name}: {test} is not in {file}"


# ---- two languages


def shape(name: str) -> list[object]:
    """What a translation must not change: levels of headings, languages of blocks, rows and columns of tables, items of lists, in order."""
    found: list[object] = []
    for block in _BLOCK.split(read(name))[::5]:  # the text between fenced blocks
        for line in block.splitlines():
            if line.startswith("#"):
                found.append(line.split()[0])
            elif line.startswith("|"):
                found.append(line.count(" | "))
            elif item := re.match(r"(-|\d+\.) ", line):
                found.append(item[1])
        found.append("block")
    return found


def test_both_languages_have_the_same_structure():
    assert shape("README.md") == shape("README_CN.md")


def test_both_languages_have_the_same_commands_configurations_and_code():
    english, chinese = READMES
    assert commands(english) == commands(chinese)
    assert [yaml.safe_load(b.text) for b in blocks(english, "yaml")] == [yaml.safe_load(b.text) for b in blocks(chinese, "yaml")]
    assert [ast.dump(ast.parse(b.text)) for b in blocks(english, "python")] == [
        ast.dump(ast.parse(b.text)) for b in blocks(chinese, "python")
    ]
    for mark in ("output", "map"):
        assert [tree_paths(b.text) for b in blocks(english, mark=mark)] == [tree_paths(b.text) for b in blocks(chinese, mark=mark)]


def test_both_languages_name_the_same_code_links_and_numbers():
    found = []
    for name in READMES:
        text = re.sub(r"<!-- keys -->.*?<!-- /keys -->", "", prose(read(name)), flags=re.DOTALL)
        code = {word for word in re.findall(r"`([^`\n]+)`", text) if not _CJK.search(word)}
        links = {link.replace("_CN.md", ".md") for link in re.findall(r"\]\(([^)#\s]+)\)", text)}
        found.append((code, links, set(re.findall(r"(?<![\w.])\d[\d,.]*\d(?!\w)", text))))
    (code, links, numbers), (their_code, their_links, their_numbers) = found
    assert code ^ their_code == set()
    assert links == their_links
    assert numbers ^ their_numbers <= {"24.7", "4.0", "20"} | {"400", "2470", "2000"}  # millions here, 万 there


def test_the_log_is_dated_paragraphs():
    entries = re.findall(r"^\*\*(\d{4}-\d{2}-\d{2})\. [^*]+\*\* .+", read("docs/log.md"), re.MULTILINE)
    assert len(entries) >= 10 and entries == sorted(entries)
