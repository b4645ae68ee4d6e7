"""Errors that a user can mend: each says what was asked, what was found, and what to type next."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BenchError(Exception):
    """The root of every error that is the user's to mend. The command prints it as a paragraph and exits with 2."""


class UnknownName(BenchError):
    """A name that no plugin has registered."""

    def __init__(self, kind: str, name: str, installed: Iterable[str]) -> None:
        known = sorted(installed)
        super().__init__(f"no {kind} is called '{name}'.{did_you_mean(name, known)}\nInstalled: {', '.join(known) or 'none'}.  More: bench plugins")


class InvalidValue(BenchError):
    """A field, flag or parameter with a value that is not allowed."""


class PluginError(BenchError):
    """A plugin that cannot be loaded, or that claims a name another plugin has."""


class NameTaken(PluginError):
    """Two plugins that register a part of one kind under one name."""


class DataError(BenchError):
    """Images or labels that are missing, empty or unreadable."""


class WeightsError(BenchError):
    """A weights file that does not fit the model, or that is not plain data."""


class StoreError(BenchError):
    """A store that cannot be read or written."""


class DeviceError(BenchError):
    """A device that was asked for and is not there."""


class TrainingDiverged(BenchError):
    """A training whose loss is no longer a number."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'edda'?`, or nothing when no known name is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
