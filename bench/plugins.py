"""Plugins: find them, load them one at a time, and let each register its parts; a broken one is reported, the rest go on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from bench import hookspecs
from bench.errors import NameTaken, PluginError
from bench.interfaces import KINDS
from bench.registry import Registry

HOOKS = {f"register_{kind}s": kind for kind in KINDS}


@dataclass
class Loaded:
    """The registry that the plugins filled, and what went wrong with those that could not be loaded."""

    registry: Registry = field(default_factory=Registry)
    broken: dict[str, str] = field(default_factory=dict)
    modules: dict[str, ModuleType] = field(default_factory=dict)

    @cached_property
    def summary(self) -> str:
        return "\n".join(f"plugin '{name}' was left out: {why}" for name, why in self.broken.items())


def load(files: Iterable[Path] = (), without: Iterable[str] = (), only: Iterable[str] | None = None) -> Loaded:
    """Every installed plugin, then the given files. `without` names plugins to leave out, `only` the ones to take.

    Raises PluginError for a named file that cannot be loaded, and for a name that two plugins register.
    """
    loaded = Loaded()
    skipped = set(without)
    for point in sorted(entry_points(group=hookspecs.GROUP), key=lambda point: (point.name, point.value)):
        if point.name in skipped or (only is not None and point.name not in only):
            continue
        try:
            module = point.load()
        except Exception as error:  # A third party's import may raise anything.
            loaded.broken[point.name] = f"{type(error).__name__}: {error}"
            continue
        _register(loaded, module, point.name, _distribution(point))
    for path in (path for path in files if path.stem not in skipped):
        _register(loaded, load_file(path), path.stem, str(path))
    return loaded


def load_file(path: Path) -> ModuleType:
    """A plugin of one file, imported from its path."""
    if not path.is_file():
        raise PluginError(f"--plugin {path}: there is no such file.")
    name = f"bench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"--plugin {path}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their module up to read annotations.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f"--plugin {path} raises on import: {type(error).__name__}: {error}") from error
    return module


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _register(loaded: Loaded, module: ModuleType, plugin: str, distribution: str) -> None:
    """Let one plugin call `register`; each gets a manager of its own so that every entry knows where it came from."""
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, plugin)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        loaded.broken[plugin] = f"{error} The hooks are: {', '.join(HOOKS)}."
        return
    loaded.modules[plugin] = module
    for hook, kind in HOOKS.items():

        def register(factory: Any, *, name: str | None = None, kind: str = kind, **parameters: Any) -> None:
            loaded.registry.add(kind, factory, name=name, defaults=parameters, plugin=plugin, distribution=distribution)

        try:
            getattr(manager.hook, hook)(register=register)
        except NameTaken:
            raise
        except Exception as error:
            loaded.broken[plugin] = f"{hook} raised {type(error).__name__}: {error}"
