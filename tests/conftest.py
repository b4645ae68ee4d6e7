"""What the tests of the core share: one thread, a registry of their own, and short ways to a plan and a run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_parts
import torch

from bench import plan as plans
from bench import plugins, runner
from bench import spec as specs
from bench.registry import Registry
from bench.store import Store

PARTS = Path(tiny_parts.__file__)
FINISHED = ("fitting", "plain", "controls", "accuracy", "deletion", "confidence", "mixing", "gradcam", "edda", "cost", "input_noise")
LOADED_AS = f"bench_plugin_{PARTS.stem}"
OF_THE_REGISTRY: dict[str, Any] = {}
USUAL = runner.Settings()
SMALL: dict[str, Any] = {
    "datasets": "tiny",
    "models": "tiny-net",
    "trainers": "standard",
    "augmenters": "none",
    "explainers": "random",
    "metrics": "deletion",
    "images": 8,
    "floors": False,
    "recipe": {"epochs": 1, "batch_size": 16, "crop_padding": 2},
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Commands pin the threads of the whole process."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _parts_of_the_registry(monkeypatch):
    """A command that loads the file of small parts makes its classes anew; the registry's own are the ones that tests patch."""
    for name, module in OF_THE_REGISTRY.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The tests' own small parts and a few of the installed ones."""
    loaded = plugins.load([PARTS], only=FINISHED)
    assert not loaded.broken, loaded.summary
    OF_THE_REGISTRY[LOADED_AS] = loaded.modules[PARTS.stem]
    return loaded.registry


def copied(registry: Registry) -> Registry:
    """A registry of the same parts, to add to."""
    copy = Registry()
    for entry in registry.entries():
        copy.add(entry.kind, entry.factory, name=entry.name, defaults=entry.defaults, plugin=entry.plugin, distribution=entry.distribution)
    return copy


@pytest.fixture
def planned(registry: Registry) -> Callable[..., plans.Plan]:
    """A plan of `SMALL` with some fields changed; `recipe` changes fields of the small recipe."""

    def plan(device: str = "cpu", within: Registry = registry, **changes: Any) -> plans.Plan:
        values = {**SMALL, **changes, "recipe": {**SMALL["recipe"], **changes.get("recipe", {})}}
        return plans.make(specs.make(values).completed(within), within, None, device)

    return plan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def ran(planned: Callable[..., plans.Plan], store: Store) -> Callable[..., runner.Outcome]:
    """The outcome of `SMALL` with some fields changed, in the test's own store unless another is given."""

    def run(into: Store = store, settings: runner.Settings = USUAL, **changes: Any) -> runner.Outcome:
        return runner.execute(planned(**changes), into, settings)

    return run
