"""Pictures of a run: for each network, test images with the maps of every explainer and augmenter side by side."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch

from bench.data import fetch
from bench.figures import Column, grid
from bench.plan import Explaining, Plan, Scoring
from bench.results import slug
from bench.store import FIGURE, Store

IMAGES, COLUMNS = 6, 14


def draw(plan: Plan, store: Store, folder: Path) -> list[Path]:
    """Write one grid per data set, network and way of training, and return the files. Only the first seed is drawn."""
    first = min(plan.spec.seeds)
    shown = [job for job in plan.explainings if store.has(job.key) and (not job.training.fits or job.training.seed == first)]
    drawn = []
    for number, (_, group) in enumerate(groupby(shown, key=_network)):
        jobs = _once(list(group))
        for page, start in enumerate(range(0, len(jobs), COLUMNS)):
            name = f"{jobs[0].training.data.test.info.name}-{plan.spec.name}" + (f"-{number}-{page}" if number or page else "")
            drawn.append(_draw(plan, store, jobs[start : start + COLUMNS], folder / f"{name}.png"))
    return drawn


def collect(plan: Plan, store: Store, folder: Path) -> list[Path]:
    """Copy what metrics drew of each network, and return the files. Only the first seed is shown."""
    first = min(plan.spec.seeds)
    copied = []
    for job in plan.scorings:
        drawn = store.path(job.key) / FIGURE
        if (job.training.fits and job.training.seed != first) or not drawn.is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        copied.append(Path(shutil.copyfile(drawn, folder / f"{_drawn_name(plan, job)}.png")))
    return copied


def _drawn_name(plan: Plan, job: Scoring) -> str:
    """`scenes--star--filter-saliency--resnet-mini--standard--edda`."""
    training = job.training
    parts = [training.model, training.trainer, training.augmenter, training.noise, job.explaining.explainer if job.explaining else None]
    return "--".join(map(slug, [training.data.test.info.name, plan.spec.name, job.metric.label, *(part.label for part in parts if part)]))


def _once(jobs: list[Explaining]) -> list[Explaining]:
    """The floors of the first network only: they look at no network, so the others' are the same but for their draws."""
    first = jobs[0].training
    return [job for job in jobs if job.training is first or not getattr(job.explainer.part, "floor", False)]


def _network(job: Explaining) -> tuple[str, ...]:
    training = job.training
    return (training.data.part.label, training.model.label, training.trainer.label, training.noise.label if training.noise else "")


def _draw(plan: Plan, store: Store, jobs: Sequence[Explaining], path: Path) -> Path:
    training = jobs[0].training
    test = training.data.test
    selection = plan.selection(training.data)
    chosen = torch.linspace(0, len(selection) - 1, min(IMAGES, len(selection))).round().long()
    columns = [_column(store, job, chosen, test.info.class_names) for job in jobs]
    size = columns[0].maps.shape[-2:]
    images = fetch(test, selection[chosen], (size[0], size[1]))
    names = [_label(label, test.info.class_names) for label in images.labels]
    title = ", ".join(part for part in _network(jobs[0]) if part)
    grid(images.inputs.permute(0, 2, 3, 1).numpy(), names, columns, path, title)
    return path


def _column(store: Store, job: Explaining, chosen: torch.Tensor, classes: Sequence[str]) -> Column:
    found = store.tensors(job.key, "attributions")
    augmenter = f"{job.training.augmenter.label}\n" if job.training.augmenter else ""
    captions = [classes[int(target)][:14] for target in found["targets"][chosen]]
    return Column(augmenter + job.explainer.label, found["attributions"][chosen, 0].numpy(), captions)


def _label(label: torch.Tensor, classes: Sequence[str]) -> str:
    if label.ndim == 0:
        return classes[int(label)][:14]
    return ", ".join(classes[index] for index in label.nonzero().flatten().tolist())[:20]
