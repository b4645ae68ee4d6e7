"""Observers: who is told what happens in a run — the terminal's display, and tracker plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from bench.plan import Job


class Observer(Protocol):
    """Told what happens in a run: the terminal's display, or a tracker plugin."""

    def started(self, job: Job) -> None: ...

    def progress(self, job: Job, values: dict[str, Any]) -> None: ...

    def finished(self, job: Job, record: dict[str, Any]) -> None: ...

    def failed(self, job: Job, error: str) -> None: ...


class Tracking:
    """A tracker plugin as an observer. What goes wrong in it is said once, and stops no job."""

    def __init__(self, tracker: Any, warn: Callable[[str], None] = lambda text: None) -> None:
        self.tracker, self.warn, self.broken = tracker, warn, False

    def started(self, job: Job) -> None:
        self._tell("started", job)

    def progress(self, job: Job, values: dict[str, Any]) -> None:
        if "log" in values:
            self._tell("epoch", job, values["log"])

    def finished(self, job: Job, record: dict[str, Any]) -> None:
        self._tell("finished", job, record)

    def failed(self, job: Job, error: str) -> None:
        """Trackers hear of what was done."""

    def _tell(self, event: str, *arguments: Any) -> None:
        if self.broken:
            return
        try:
            getattr(self.tracker, event)(*arguments)
        except Exception as error:  # A third party's, and no reason to lose a training.
            self.broken = True
            self.warn(f"tracker '{self.tracker.name}' raised {type(error).__name__}: {error}. It hears no more of this run.")
