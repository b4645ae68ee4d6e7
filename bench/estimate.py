"""Estimates: how long the jobs that are left will take, from short probes of the parts they are made of.

A training is rehearsed: the trainer's own loop goes through a few images in a few epochs spread over the training, so that phases
and late starts are seen at their shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench import contexts
from bench.data import fetch
from bench.environment import measuring
from bench.explain import Selection, Subject
from bench.keys import derived_seed
from bench.plan import Explaining, Job, Plan, Scoring, Training
from bench.score import Costs, score
from bench.train import PLAIN_PASSES, FitContext, TrainingData, fit

PROBE_IMAGES = 4
PROBE_BATCH = 32
PROBE_SECONDS = 0.5
MOST_EPOCHS, FEWEST_EPOCHS = 12, 3  # Of a rehearsal; as many as go into its seconds.
REHEARSAL_SECONDS = 5.0
GOLDEN = (5**0.5 - 1) / 2
AGREED = 0.5  # Images to which the network gives their label, on which some methods spend more: few at first, most in the end.
STANDSTILL = 1e-9  # A learning rate under which a rehearsal leaves the network what it is.


def seconds(plan: Plan, jobs: Sequence[Job], device: str) -> float | None:
    """Seconds for these jobs on this machine, or None where a probe fails."""
    probes: dict[Any, float] = {}
    total = 0.0
    for job in jobs:
        name = _kind_of_work(job)
        try:
            if name not in probes:
                probes[name] = _probe(job, plan, device)
        except Exception:  # What cannot be probed will say why when it is run.
            return None
        total += probes[name] * _images(job, plan)
    return total


def spoken(duration: float | None) -> str:
    """`about 4 min`, as a person would say it."""
    if duration is None:
        return "time unknown"
    if duration < 60:
        return f"about {max(1, round(duration))} s"
    if duration < 5400:
        return f"about {round(duration / 60)} min"
    return f"about {duration / 3600:.1f} h"


def _kind_of_work(job: Job) -> tuple[Any, ...]:
    """Jobs with the same name here take the same time per image."""
    training = job if isinstance(job, Training) else job.training
    network = (training.data.part.label, training.model.label, training.model.entry.name)
    match job:
        case Training():
            return ("train", *network, job.trainer.label, job.augmenter.label if job.augmenter else None)
        case Explaining():
            return ("explain", *network, job.explainer.label)
        case Scoring():
            return (
                "score",
                *network,
                job.metric.label,
                job.explaining.explainer.label if job.explaining and "explainer" in job.metric.part.needs else None,
            )


def _images(job: Job, plan: Plan) -> int:
    match job:
        case Training():
            if not job.fits:
                return 0
            size = min(job.recipe.train_images or len(job.data.train), len(job.data.train))
            return round(size * (1 - job.recipe.validation)) * job.recipe.epochs
        case Scoring() if not getattr(job.metric.part, "per_image", True):
            return PROBE_IMAGES  # Asked once, whatever the number of images.
        case Scoring() if job.all_images:
            return len(job.training.data.test)
        case _:
            return len(plan.selection((job.training if not isinstance(job, Training) else job).data))


def _probe(job: Job, plan: Plan, device: str) -> float:
    """Seconds per image."""
    training = job if isinstance(job, Training) else job.training
    if isinstance(job, Training) and not job.fits:
        return 0.0
    subject = subject_of(training, device)
    if isinstance(job, Training):
        return rehearse(job, subject, job.recipe.batch_size if device.startswith("cuda") else min(job.recipe.batch_size, PROBE_BATCH)).seconds
    selection = Selection(training.data.test, plan.selection(training.data)[:PROBE_IMAGES])
    if isinstance(job, Explaining):
        return _timed(lambda: _explain(job.explainer.part, subject, selection), PROBE_IMAGES)
    if "training" in job.metric.part.needs or "explain_cost" in job.metric.part.needs or "explainer" in job.metric.part.needs:
        return 0.0  # Reads records, or repeats the explainer a few times.
    maps = torch.rand(PROBE_IMAGES, 1, *subject.image_size)
    explanation = {
        "indices": selection.indices,
        "attributions": maps,
        "logits": _logits(subject, selection),
        "targets": torch.zeros(PROBE_IMAGES, dtype=torch.long),
    }
    return _timed(lambda: score(subject, {"probe": job.metric.part}, selection, explanation if job.explaining else None, costs=Costs()), PROBE_IMAGES)


def _timed(work: Any, images: int) -> float:
    """Seconds per image: the quickest of some calls, for the first builds kernels and caches and any may be disturbed."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and sum(times) < PROBE_SECONDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) / images


def subject_of(training: Training, device: str) -> Subject:
    """A new network as the job would build it."""
    info = training.data.train.info if training.fits else training.data.test.info
    torch.manual_seed(derived_seed("probe"))
    module = training.model.part.build(info).to(device).eval()
    if training.recipe.memory_format == "channels_last":
        module = module.to(memory_format=torch.channels_last)
    model = training.model.part
    return Subject(module, info, model.target_layers(module), model.stages(module), device, getattr(module, "input_size", None))


@dataclass(frozen=True)
class Rehearsed:
    """What a training image costs, by the mean over the training: seconds, and passes forward and backward."""

    seconds: float
    passes: float


def spread(epochs: int) -> list[int]:
    """Epochs that stand for equal parts of a training, the last part first, in an order whose beginnings are spread over it too."""
    count = min(epochs, MOST_EPOCHS)
    order = sorted(range(count), key=lambda place: place * GOLDEN % 1)
    return [int((count - place - 0.5) / count * epochs) for place in order]


def rehearse(job: Training, subject: Subject, batch_size: int, chosen: Callable[[int], list[int]] = spread, agreed: float = AGREED) -> Rehearsed:
    """Let the job's own trainer and augmenter go through one batch in each of the chosen epochs, and say what it took.

    agreed: the share of the images that have the label that the network gives them.
    """
    assert job.augmenter is not None
    recipe = replace(job.recipe, batch_size=batch_size, learning_rate=STANDSTILL, validation=0.0, equal_passes=False, report="last")
    data = _rehearsal_data(job, subject, batch_size, agreed)
    context = _Rehearsal(
        recipe, subject.info, job.seed, "probe", subject.device, subject.target_layers, subject.stages, _explainer_of(job), chosen=chosen
    )
    with torch.random.fork_rng(devices=[]):
        fit(job.trainer.part, subject.model, data, job.augmenter.part, context)
    found = Rehearsed(*(sum(taken) / len(taken) / len(data.indices) for taken in zip(*context.taken[1:], strict=True)))
    if not job.recipe.equal_passes:
        return found
    return replace(found, seconds=found.seconds * min(1.0, PLAIN_PASSES / found.passes))


@dataclass
class _Rehearsal(FitContext):
    """Yields a few of a training's epochs, the first of them twice, and keeps the seconds and the passes of each."""

    chosen: Callable[[int], list[int]] = spread
    taken: list[tuple[float, float]] = field(default_factory=list)

    def epochs(self, model: nn.Module, data: TrainingData, epochs: int | None = None, **state: Any) -> Iterator[int]:
        self.total_epochs = epochs or self.recipe.epochs
        chosen = self.chosen(self.total_epochs)
        for epoch in [chosen[0], *chosen]:  # The first time builds kernels and caches.
            if len(self.taken) > FEWEST_EPOCHS and sum(duration for duration, _ in self.taken) > REHEARSAL_SECONDS:
                break
            self._sums, self._counts = {}, {}
            model.train()
            before = self._passes()
            with measuring(self.device) as measured:
                yield epoch
            self.taken.append((measured.seconds, self._passes() - before))

    def _passes(self) -> float:
        return self.passes.forward + self.passes.backward


def _rehearsal_data(job: Training, subject: Subject, count: int, agreed: float) -> TrainingData:
    """A batch of images, some with the label that the network gives them and the others with another."""
    source = job.data.train
    rows = torch.arange(min(count, len(source)))
    images = fetch(source, rows, subject.size)
    labels = images.labels
    if labels.ndim == 1:
        given = _settled(subject.model, images.inputs.to(subject.device)).argmax(1).cpu()
        kept = torch.arange(len(rows)) < agreed * len(rows)
        labels = torch.where(kept, given, (given + 1) % subject.info.num_classes)
    everywhere = labels.new_zeros(len(source), *labels.shape[1:])
    everywhere[rows] = labels
    return TrainingData(source, everywhere, rows, rows[:0], subject.size)


@torch.no_grad()
def _settled(model: nn.Module, inputs: Tensor) -> Tensor:
    """(B, K) logits in eval mode, after the batch norms have taken the statistics of these images for their own."""
    norms = [(module, module.momentum) for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm, _ in norms:
        norm.momentum = 1.0
    model.train()
    model(inputs)
    for norm, momentum in norms:
        norm.momentum = momentum
    logits: Tensor = model.eval()(inputs)
    return logits


def _explainer_of(job: Training) -> Any:
    """The explainer that the augmenter (or the trainer) names as a parameter."""
    references = [reference for part in (job.augmenter, job.trainer) if part for reference in part.references.values()]
    return next((reference.part for reference in references if reference.kind == "explainer"), None)


def _explain(explainer: Any, subject: Subject, selection: Selection) -> None:
    if hasattr(explainer, "prepare"):
        return  # Its preparation takes longer than a probe may.
    inputs = fetch(selection.data, selection.indices, subject.size).inputs.to(subject.device)
    streams = selection.generators("explain", selection.indices)
    context = contexts.explain_context(subject.model, subject.info, subject.target_layers, subject.stages, streams, subject.at_once)
    contexts.explain(subject.model, explainer, inputs, torch.zeros(len(inputs), dtype=torch.long, device=subject.device), context)


def _logits(subject: Subject, selection: Selection) -> torch.Tensor:
    inputs = fetch(selection.data, selection.indices, subject.size).inputs.to(subject.device)
    return contexts.forward(subject.model, inputs, len(inputs)).cpu()
