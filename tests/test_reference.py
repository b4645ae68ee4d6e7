"""The pages that are written from the code say what the code says."""

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from bench import composition, hookspecs, plugins, reference, spec

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def loaded():
    """What comes with bench-xai, whatever else is installed."""
    return plugins.load(only={point.name for point in entry_points(group=hookspecs.GROUP) if point.dist.name == "bench-xai"})


def test_the_reference_pages_are_those_of_the_code(loaded):
    for name, text in reference.pages(loaded).items():
        assert (ROOT / "docs" / name).read_text() == text, f"{name} is out of date: make docs"


def test_every_hook_has_a_section():
    page = reference.hooks_page()
    for name in vars(hookspecs):
        if name.startswith("register_"):
            assert f"def {name}(" in page


def test_every_plugin_loads(loaded):
    assert loaded.broken == {}


def test_every_plugin_has_a_card(loaded):
    for name, module in loaded.modules.items():
        assert re.search(r"^Checked against:", module.__doc__ or "", re.MULTILINE), f"{name} has no 'Checked against:'"


def test_the_example_on_the_page_is_the_example_in_the_folder():
    page, example = (ROOT / "docs/plugins.md").read_text(), (ROOT / "docs/examples/my_method.py").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert code.split('"""\n', 1)[1] == example.split('"""\n', 1)[1]


def test_every_recipe_resolves_and_the_weights_that_it_names_are_the_users_to_bring(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = sorted(spec.recipes_folder().glob("*.toml"))
    assert recipes
    for recipe in recipes:
        made = spec.make(spec.read(recipe), recipe.name).completed(loaded.registry)
        for kind in ("dataset", "model", "trainer", "augmenter", "explainer", "metric"):
            for request in getattr(made, f"{kind}s"):
                if isinstance(request, dict) and "weights" in request:
                    (tmp_path / request["weights"]).touch()
                composition.resolve(loaded.registry, request) if kind == "augmenter" else loaded.registry.resolve(kind, request)
