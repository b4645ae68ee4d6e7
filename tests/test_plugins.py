"""Finding plugins and loading them one at a time."""

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bench import plugins
from bench.errors import PluginError

PART = """
from dataclasses import dataclass
from typing import ClassVar
from bench import hookimpl

@dataclass(frozen=True)
class Part:
    width: float = 1.0
    name: ClassVar[str] = "{name}"
    version: ClassVar[int] = 1

{decorator}
def {hook}(register):
    {before}
    register(Part)
    register(Part, name="{name}-wide", width=2.0)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module that can be imported, with one part and a variant of it."""
    monkeypatch.syspath_prepend(tmp_path)

    def module(module_name, *, name="part", hook="register_explainers", decorator="@hookimpl", before="pass", text=None):
        path = tmp_path / f"{module_name}.py"
        path.write_text(text or PART.format(name=name, hook=hook, decorator=decorator, before=before))
        return path

    yield module
    for loaded in [name for name in sys.modules if name.startswith("test_plugin_")]:
        del sys.modules[loaded]


@pytest.fixture
def installed(monkeypatch):
    """Only these modules are installed plugins, each under its own name."""

    def install(*modules):
        points = [EntryPoint(module.removeprefix("test_plugin_"), module, "bench") for module in modules]
        monkeypatch.setattr(plugins, "entry_points", lambda group: points)

    install()
    return install


def names(loaded, kind="explainer"):
    return [entry.name for entry in loaded.registry.entries(kind)]


def test_an_installed_plugin_registers_its_parts_and_variants(write, installed):
    write("test_plugin_a", name="a")
    installed("test_plugin_a")
    loaded = plugins.load()
    assert names(loaded) == ["a", "a-wide"]
    assert loaded.registry.resolve("explainer", "a-wide").part.width == 2.0
    assert loaded.registry.entry("explainer", "a").plugin == "a"
    assert (loaded.broken, loaded.summary) == ({}, "")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"text": "import no_such_library"}, "ModuleNotFoundError: No module named 'no_such_library'"),
        ({"text": "1 / 0"}, "ZeroDivisionError: division by zero"),
        ({"text": "def f(:"}, "SyntaxError"),
        ({"before": "raise RuntimeError('no GPU')"}, "register_explainers raised RuntimeError: no GPU"),
        ({"hook": "register_explainer"}, "register_explainer'"),
    ],
    ids=["missing library", "error", "syntax", "in the hook", "misspelt hook"],
)
def test_a_broken_plugin_is_reported_and_the_rest_go_on(write, installed, broken, why):
    write("test_plugin_a", name="a")
    write("test_plugin_b", name="b", **broken)
    write("test_plugin_c", name="c")
    installed("test_plugin_a", "test_plugin_b", "test_plugin_c")
    loaded = plugins.load()
    assert names(loaded) == ["a", "a-wide", "c", "c-wide"]
    assert loaded.broken.keys() == {"b"}
    assert why in loaded.broken["b"]
    assert "plugin 'b' was left out: " in loaded.summary


def test_a_misspelt_hook_is_answered_with_the_hooks_there_are(write, installed):
    write("test_plugin_misspelt", hook="register_explainer")
    installed("test_plugin_misspelt")
    said = plugins.load().broken["misspelt"]
    assert "register_explainers, register_metrics" in said


def test_a_plugin_with_a_part_that_is_no_dataclass_is_reported_and_the_rest_go_on(write, installed):
    write("test_plugin_a", name="a")
    write("test_plugin_bare", text="from bench import hookimpl\n@hookimpl\ndef register_explainers(register):\n    register(print)\n")
    installed("test_plugin_a", "test_plugin_bare")
    loaded = plugins.load()
    assert "dataclass" in loaded.broken["bare"]
    assert names(loaded) == ["a", "a-wide"]


def test_two_plugins_with_one_name_are_an_error_that_names_both(write, installed):
    write("test_plugin_first", name="same")
    write("test_plugin_second", name="same")
    installed("test_plugin_first", "test_plugin_second")
    with pytest.raises(PluginError, match=r"(?s)called 'same': 'first' of .* and 'second' of .*--without-plugin second"):
        plugins.load()
    assert names(plugins.load(without=["second"])) == ["same", "same-wide"]
    assert names(plugins.load(only=["first"])) == ["same", "same-wide"]


def test_a_function_without_its_mark_is_no_hook(write, installed):
    """pluggy's mark is what makes a hook; a module may have a function of that name for itself."""
    write("test_plugin_unmarked", decorator="")
    installed("test_plugin_unmarked")
    assert names(plugins.load()) == []


def test_a_file_is_a_plugin_after_the_installed_ones(write, installed):
    write("test_plugin_inst", name="inst")
    installed("test_plugin_inst")
    path = write("mine", name="own")
    loaded = plugins.load([path])
    assert names(loaded) == ["inst", "inst-wide", "own", "own-wide"]
    assert loaded.registry.entry("explainer", "own").distribution == str(path)


@pytest.mark.parametrize(("text", "why"), [("1 / 0", "raises on import: ZeroDivisionError: division by zero"), ("def f(:", "SyntaxError")])
def test_a_named_file_that_cannot_be_loaded_is_an_error(write, installed, text, why):
    with pytest.raises(PluginError, match=why):
        plugins.load([write("mine", text=text)])


def test_a_named_file_that_is_not_there_is_an_error(installed, tmp_path):
    with pytest.raises(PluginError, match="no such file"):
        plugins.load([tmp_path / "mine.py"])


def test_a_named_file_that_is_not_python_is_an_error(installed, tmp_path):
    (tmp_path / "mine.txt").write_text("text")
    with pytest.raises(PluginError, match="not a Python file"):
        plugins.load([tmp_path / "mine.txt"])


def test_what_is_installed_here_loads_whole():
    assert plugins.load().broken == {}


def test_every_file_of_plugins_has_its_entry_point_and_every_entry_point_its_file():
    root = Path(__file__).parent.parent
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]["bench"]
    files = {path.stem for path in (root / "plugins").iterdir() if not path.name.startswith(("_", ".")) and (path.is_dir() or path.suffix == ".py")}
    assert points == {name: f"bench_plugins.{name}" for name in files}
