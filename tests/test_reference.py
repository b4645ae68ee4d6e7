"""The pages that are written from the code say what the code says."""

import dataclasses
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from bench import composition, hookspecs, interfaces, plugins, reference, spec

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def loaded():
    """What comes with bench-xai, whatever else is installed."""
    return plugins.load(only={point.name for point in entry_points(group=hookspecs.GROUP) if point.dist.name == "bench-xai"})


def test_the_reference_pages_are_those_of_the_code(loaded):
    for name, text in reference.pages(loaded).items():
        current = (ROOT / "docs" / name).read_text(encoding="utf-8") == text  # Compared here: a page is too long for a difference to be shown.
        assert current, f"docs/{name} is not what the code says. Write it again: bench plugins --write docs"


def test_every_hook_has_a_section(loaded):
    page = reference.hooks_page(loaded)
    for name in vars(hookspecs):
        if name.startswith("register_"):
            assert f"def {name}(" in page


def test_every_context_is_shown_with_its_fields_and_methods(loaded):
    page = reference.hooks_page(loaded)
    shown = {kind: set(reference.passed(kind, loaded)) for kind in ("trainer", "augmenter", "explainer", "metric")}
    assert {"FitContext", "TrainingData"} <= shown["trainer"]
    assert shown["augmenter"] == {"Batch", "StepContext"}
    assert shown["explainer"] == {"ExplainContext"}
    assert shown["metric"] == {"Explained", "MetricContext"}
    for name in set.union(*shown.values()):
        assert f"\n### {name}\n" in page
    assert "\nchunk: int = 32\n" in page
    assert "- `layer(name: str | None = None, model: nn.Module | None = None) -> Layer`: The target layer" in page
    assert "- `multi_label: bool`" in page  # A property.


@pytest.mark.parametrize(
    "context", [interfaces.StepContext, interfaces.ExplainContext, interfaces.MetricContext, interfaces.Batch, interfaces.Explained]
)
def test_every_field_that_a_part_is_given_is_described(context):
    described = set(re.findall(r"`(\w+)(?:\(.*?\))?`", context.__doc__)) | {"epochs"}
    assert {field.name for field in dataclasses.fields(context)} - described == set()


def test_a_plugin_with_names_for_the_type_checker_alone_does_not_stop_the_pages(tmp_path):
    (tmp_path / "checked.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport bench\n@dataclass(frozen=True)\nclass Own:\n"
        "    name = 'own'\n    version = 1\n    def fit(self, model: Unknown, data, augmenter, context): ...\n"
        "@bench.hookimpl\ndef register_trainers(register): register(Own)\n"
    )
    assert reference.passed("trainer", plugins.load([tmp_path / "checked.py"], only=[])) == {}


def test_a_recipe_asks_what_its_comment_says_before_the_command():
    assert reference.question("# One thing. Another\n# thing.\n#   bench run it\n# More.\nname = 'it'\n") == "One thing. Another thing."
    assert reference.question("# One thing. Weights are yours:\n#   bench run it\n") == "One thing."
    assert reference.question("# One thing.\nname = 'it'  # Not this.\n") == "One thing."


def test_every_recipe_asks_something_and_is_listed(loaded):
    page = reference.recipes_page(loaded)
    for recipe in spec.recipes_folder().glob("*.toml"):
        assert reference.question(recipe.read_text(encoding="utf-8")).endswith("."), recipe.name
        assert f"| [{recipe.stem}](../bench/recipes/{recipe.name}) |" in page
        assert (ROOT / "bench/recipes" / recipe.name).is_file()


def test_the_defaults_are_those_that_an_empty_spec_takes(loaded):
    page = reference.recipes_page(loaded)
    assert "| explainer | gradcam | centre, random |" in page
    assert "| augmenter | none | none, plain-views (with supcon alone) |" in page
    taken = spec.make({"floors": False}).completed(loaded.registry)
    assert f"| metric | {', '.join(taken.metrics)} |" in page


def test_every_plugin_loads(loaded):
    assert loaded.broken == {}


def test_every_plugin_has_a_card(loaded):
    for name, module in loaded.modules.items():
        assert re.search(r"^Checked against:", module.__doc__ or "", re.MULTILINE), f"{name} has no 'Checked against:'"


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
