"""Which file may import which, and what stays out of the way until it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench import plugins

CORE = Path(bench.__file__).parent
FLOORS = [
    "errors keys intervals environment hookspecs figures",
    "interfaces store results",
    "layers fills norms registry leaderboard",
    "contexts plugins spec reporting compare site",
    "data testing reference chunks composition",
    "plan train explain",
    "score display pictures checks gallery lines observers",
    "runner estimate",
    "api batch_size",
    "explain_image verify",
    "commands explain_image verify",
    "cli",
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names.split()}
FILES = [path for path in sorted(CORE.rglob("*.py")) if path.parent != CORE or path.stem != "__init__"]


def floor_name(path: Path) -> str:
    """The file, or the sub-package that it is part of."""
    return path.relative_to(CORE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The files of bench that a file imports, at load time or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "bench":
            found |= {alias.name for alias in node.names if alias.name in LEVEL}
        names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name and name.startswith("bench.")}
    return found - {floor_name(path)}


def test_every_file_stands_on_one_floor():
    assert {floor_name(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_a_file_imports_only_from_lower_floors(path):
    name = floor_name(path)
    assert {other: LEVEL[other] for other in imported(path) if LEVEL[other] >= LEVEL[name]} == {}


def test_boards_are_made_from_results_alone():
    allowed = {"results", "errors", "intervals"}
    assert {path.name: imported(path) - allowed for path in FILES if floor_name(path) == "leaderboard" and imported(path) - allowed} == {}


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = "import sys; print([name for name in sys.modules if name == 'torch' or name.startswith('bench_plugins')])"


@pytest.mark.parametrize("module", ["bench", "bench.errors", "bench.results", "bench.leaderboard", "bench.reporting", "bench.store", "bench.cli"])
def test_light_modules_load_neither_torch_nor_a_plugin(module):
    assert run(f"import {module}; {LOADED}").split("\n")[-2] == "[]"


@pytest.mark.parametrize("arguments", ["--help", "run --help", "leaderboard --to .", "store --store ."])
def test_commands_without_networks_load_neither_torch_nor_a_plugin(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run(f"from bench.cli import main\ntry: main()\nexcept SystemExit as left: assert not left.code\n{LOADED}", *arguments.split())
    assert said.split("\n")[-2] == "[]"


def docstrings(tree: ast.AST) -> set[int]:
    owners = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    return {id(node.body[0].value) for node in owners if node.body and isinstance(node.body[0], ast.Expr)}


ORDINARY_WORDS = {"none", "digits"}  # What torch and a list say for nothing, and the decimals of a number.


def test_the_core_names_no_method():
    methods = {entry.name for entry in plugins.load().registry.entries()} - ORDINARY_WORDS
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings(tree))
        found += [f"{path.name}:{text.lineno} {text.value}" for text in texts if text.value in methods]
    assert found == []
