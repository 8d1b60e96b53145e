"""The rooms and who may import whom, read off the source (../shared/design is not needed to run this)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "kronos": set(),
    "finetune/engine": {"kronos"},
    "finetune/data": {"kronos", "finetune/engine"},
    "finetune/evaluation": {"kronos", "finetune/engine", "finetune/data"},
    "finetune": {"kronos", "finetune/engine", "finetune/data", "finetune/evaluation"},
    "finetune_csv": {"kronos", "finetune/engine", "finetune/data", "finetune/evaluation", "finetune"},
    "tft": {"kronos", "finetune/engine", "finetune/data", "finetune/evaluation"},
    "federated": {"kronos", "finetune/engine", "finetune/data", "finetune/evaluation", "finetune", "finetune_csv", "tft"},
}
OPTIONAL = {"comet_ml", "qlib", "flwr", "tensorboard", "exchange_calendars", "arch", "matplotlib"}  # imported where used
OURS = {"kronos", "finetune", "finetune_csv", "tft", "federated", "tests", "benchmarks"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    two = "/".join(parts[:2])
    return two if two in ALLOWED else parts[0]


def imported(path: Path):
    """(module, at top level?) of every import in a file, relative ones made absolute."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).parent.parts
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module, id(node) in top
            yield from ((f"{module}.{alias.name}", id(node) in top) for alias in node.names)


def sources(*rooms):
    return [p for room in rooms if (ROOT / room).is_dir() for p in sorted((ROOT / room).rglob("*.py")) if "__pycache__" not in p.parts]


@pytest.mark.parametrize("path", sources("kronos", "finetune", "finetune_csv", "tft", "federated"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_the_rooms_it_may(path):
    room = room_of(path)
    for module, _ in imported(path):
        parts = module.split(".")
        if parts[0] not in OURS:
            continue
        two = "/".join(parts[:2])
        target = two if two in ALLOWED else parts[0]
        assert target == room or target in ALLOWED[room] or module == "finetune", (
            f"{path.relative_to(ROOT)} imports {module}: {room} may not use {target}"
        )


@pytest.mark.parametrize("path", sources("kronos", "finetune/engine", "finetune/data"), ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(path):
    drawing = path.name == "curves.py"  # owns the drawing; whoever draws imports it
    for module, at_top in imported(path):
        name = module.split(".")[0]
        assert not (at_top and name in OPTIONAL) or (drawing and name == "matplotlib"), f"{path.name} imports {module} at the top"


def test_no_file_touches_sys_path_and_none_is_longer_than_400_lines():
    for path in sources("kronos", "finetune", "finetune_csv", "tft", "federated", "benchmarks", "examples"):
        text = path.read_text(encoding="utf-8")
        assert "sys.path.insert" not in text and "sys.path.append" not in text, path
        assert text.count("\n") <= 400, path
