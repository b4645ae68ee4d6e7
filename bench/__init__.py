"""bench-xai: train under every augmenter, explain with every explainer, score every combination."""

from typing import TYPE_CHECKING, Any

from bench.hookspecs import hookimpl

if TYPE_CHECKING:
    from bench.api import evaluate, run

__all__ = ["evaluate", "hookimpl", "run"]


def __getattr__(name: str) -> Any:
    """`bench.run` and `bench.evaluate` load torch only when they are used."""
    if name in ("run", "evaluate"):
        from bench import api

        return getattr(api, name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
