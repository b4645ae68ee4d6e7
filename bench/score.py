"""Scoring: metrics over the chosen images, all metrics of one network and explainer in one walk, so that they share forwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench import chunks, contexts
from bench.data import Images, batches
from bench.explain import Selection, Subject, targets_for
from bench.interfaces import Explained
from bench.intervals import Interval, as_rows, over_images, over_images_of

ONCE_IMAGES = 64  # Given to metrics that are asked once.


@dataclass(frozen=True)
class Score:
    """One metric's outcome: rows (one per image, or per repeat), the number, and its interval over images."""

    rows: Tensor
    values: Tensor
    value: float
    interval: Interval | None
    curve: Mapping[str, Any] | None


@dataclass(frozen=True)
class Costs:
    """Records that cost metrics read."""

    training: Mapping[str, Any] | None = None
    floor_training: Mapping[str, Any] | None = None
    explaining: Mapping[str, Any] | None = None


def score(
    subject: Subject,
    metrics: Mapping[str, Any],
    selection: Selection,
    explanation: Mapping[str, Tensor] | None = None,
    explainer: Any = None,
    state: Any = None,
    costs: Costs = Costs(),
    *,
    batch_size: int | None = None,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
) -> dict[str, Score]:
    """Score every metric, by the names they come with. Maps in `explanation` are those of `selection`, in its order."""
    per_image = {name: metric for name, metric in metrics.items() if getattr(metric, "per_image", True)}
    rows: dict[str, list[Tensor]] = {name: [] for name in metrics}

    def ask(asked: Mapping[str, Any], images: Images, done: int, chunk: int) -> None:
        explained = _explained(subject, images, selection, explanation, done, chunk)
        context = _context(subject, explained, selection, explainer, state, costs, chunk)
        found = {}
        for name, metric in asked.items():
            streams = [contexts.clone_generator(stream) for stream in context.generators]  # What one metric draws is nothing to the next.
            found[name] = metric(subject.model, explained, replace(context, generators=streams)).detach().cpu().double()
        for name, values in found.items():  # All or none: where memory runs out, these images are asked again.
            rows[name].append(values)

    # What is not about images is asked once, first, in peace, of a batch that no flag changes.
    if once := {name: metric for name, metric in metrics.items() if name not in per_image}:
        first = next(batches(selection.data, selection.indices, ONCE_IMAGES, subject.size, subject.device))
        ask(once, first, 0, subject.at_once)

    def work(part: slice, chunk: int) -> None:
        (images,) = batches(selection.data, selection.indices[part], chunk, subject.size, subject.device)
        ask(per_image, images, part.start, chunk)
        report({"step": part.stop, "steps": len(selection.indices)})

    chunks.walk(len(selection.indices) if per_image else 0, batch_size or subject.at_once, work)
    return {name: summarise(metric, torch.cat(rows[name])) for name, metric in metrics.items()}


def _explained(subject: Subject, images: Images, selection: Selection, explanation: Mapping[str, Tensor] | None, done: int, size: int) -> Explained:
    rows = slice(done, done + len(images.inputs))
    if explanation is None:
        logits, maps = contexts.forward(subject.model, images.inputs, size), None
        targets = targets_for(selection.target, logits, images.labels)
    else:
        if not torch.equal(explanation["indices"][rows], images.indices):
            raise ValueError("the maps are not those of the images to be scored")
        logits, targets, maps = (explanation[name][rows].to(subject.device) for name in ("logits", "targets", "attributions"))
    return Explained(images.inputs, images.labels, images.indices, targets, logits, maps, images.masks, images.boxes)


def _context(subject: Subject, explained: Explained, selection: Selection, explainer: Any, state: Any, costs: Costs, size: int) -> Any:
    return contexts.metric_context(
        subject.model,
        explained,
        subject.info,
        selection.generators("score", explained.indices),
        subject.target_layers,
        subject.stages,
        explainer,
        chunk=size,
        state=state,
        training=costs.training,
        floor_training=costs.floor_training,
        explain_cost=costs.explaining,
    )


def summarise(metric: Any, rows: Tensor) -> Score:
    """The number, each image's share in it, the interval and the curve of a metric's rows.

    Images whose value is not a number (not applicable to them) are left out of the mean and counted out of n.
    """
    own_values, own_aggregate, own_shares, own_curve = (getattr(metric, name, None) for name in ("values", "aggregate", "shares", "curve"))
    values = own_values(rows) if own_values else (rows if rows.ndim == 1 else rows.mean(1))
    if own_aggregate is not None:
        value = float(own_aggregate(rows))
        if own_shares is not None:
            interval = over_images(as_rows(own_shares(rows)))
        else:
            biased = getattr(metric, "biased", False)
            interval = over_images_of(lambda part: float(own_aggregate(torch.from_numpy(part))), as_rows(rows), biased=biased)
    else:
        known = values[values.isfinite()]
        value = float(known.mean()) if len(known) else math.nan
        interval = over_images(as_rows(known))
    curve = own_curve(rows)._asdict() if own_curve else None
    return Score(rows, values, value, interval, curve)
