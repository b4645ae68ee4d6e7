"""The run as a person sees it: one live line with the job, the share done and the time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.plan import Explaining, Job, Scoring, Training

QUIET_SECONDS = 30.0  # Between two plain lines of one long job.


def name(job: Job) -> str:
    """`train scenes resnet-mini edda seed 0`, as it stands on the screen."""
    match job:
        case Training():
            parts = ["train" if job.fits else "load", job.data.part.label, job.model.label, *([job.augmenter.label] if job.augmenter else [])]
            parts += [job.noise.label] if job.noise else []
            return " ".join([*parts, f"seed {job.seed}"] if job.fits else parts)
        case Explaining():
            return f"explain {_network(job.training)} with {job.explainer.label}"
        case Scoring():
            explainer = f" with {job.explaining.explainer.label}" if job.explaining else ""
            return f"score {_network(job.training)}{explainer}: {job.metric.label}"


def _network(training: Training) -> str:
    return " ".join(
        [training.data.part.label, *([training.augmenter.label, f"seed {training.seed}"] if training.augmenter else [training.model.label])]
    )


class Display:
    """Shows a run's progress on the console; an `Observer`."""

    def __init__(self, console: Console, jobs: int) -> None:
        self.console, self.jobs, self.done, self.last = console, jobs, 0, time.perf_counter()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} jobs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.live = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.live.add_task("starting", total=jobs)

    def __enter__(self) -> Display:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def started(self, job: Job) -> None:
        self.live.update(self.task, description=name(job), completed=self.done)
        if not self.console.is_terminal and not isinstance(job, Scoring):
            self.console.print(f"[{self.done}/{self.jobs}] {name(job)}", highlight=False, markup=False)
        self.last = time.perf_counter()

    def progress(self, job: Job, values: dict[str, Any]) -> None:
        share = values["step"] / values["steps"]
        where = f"{100 * share:.0f} %"
        if "epochs" in values:
            share = (values["epoch"] + share) / values["epochs"]
            where = f"epoch {values['epoch'] + 1}/{values['epochs']}"
        self.live.update(self.task, description=f"{name(job)} ({where})", completed=self.done + min(share, 0.99))
        if not self.console.is_terminal and time.perf_counter() - self.last > QUIET_SECONDS:
            self.console.print(f"    {name(job)}: {where}", highlight=False, markup=False)
            self.last = time.perf_counter()

    def finished(self, job: Job, record: dict[str, Any]) -> None:
        self.done += 1
        self.live.update(self.task, completed=self.done)

    def failed(self, job: Job, error: str) -> None:
        self.done += 1
        self.live.console.print(f"failed: {name(job)}\n    {error}", style="red", markup=False, highlight=False)
