"""Estimates: how long the jobs that are left will take, from short probes of the parts they are made of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from bench import contexts
from bench.data import fetch, one_hot
from bench.explain import Selection, Subject, batch_size_for
from bench.interfaces import Batch
from bench.keys import derived_seed
from bench.plan import Explaining, Job, Plan, Scoring, Training
from bench.score import Costs, score
from bench.train import row_losses

PROBE_IMAGES = 4
PROBE_BATCH = 32
PROBE_SECONDS = 0.5


def seconds(plan: Plan, jobs: Sequence[Job], device: str) -> float | None:
    """Seconds for these jobs on this machine, or None where a probe fails. Augmenters are taken as active from the start."""
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
            size = job.recipe.train_images or len(job.data.train)
            return size * job.recipe.epochs if job.fits else 0
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
    subject = _subject(training, device)
    if isinstance(job, Training):
        return _timed(lambda: _step(job, subject), PROBE_BATCH)
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


def _subject(training: Training, device: str) -> Subject:
    info = training.data.train.info if training.fits else training.data.test.info
    torch.manual_seed(derived_seed("probe"))
    module = training.model.part.build(info).to(device).eval()
    if training.recipe.memory_format == "channels_last":
        module = module.to(memory_format=torch.channels_last)
    model = training.model.part
    return Subject(module, info, model.target_layers(module), model.stages(module), device, getattr(module, "input_size", None))


def _step(job: Training, subject: Subject) -> None:
    """One training step as the plain loop does it, with the augmenter at work."""
    assert job.augmenter is not None
    explainers = [part.part for part in job.augmenter.references.values() if part.kind == "explainer"]
    data = job.data.train
    rows = torch.arange(min(PROBE_BATCH, len(data)))
    images = fetch(data, rows, subject.size)
    batch = Batch.of(images.inputs.to(subject.device), one_hot(images.labels, subject.info.num_classes).to(subject.device), rows.to(subject.device))
    context = contexts.step_context(
        subject.model,
        subject.info,
        subject.target_layers,
        subject.stages,
        explainers[0] if explainers else None,
        key="probe",
        epoch=99,
        epochs=100,
        progress=0.999,
    )
    batch = job.augmenter.part(subject.model, batch, context)
    subject.model.train()
    losses = row_losses(subject.model(batch.inputs), batch.targets, subject.info.multi_label)
    torch.autograd.grad(losses.mean(), [parameter for parameter in subject.model.parameters() if parameter.requires_grad])
    subject.model.eval()


def _explain(explainer: Any, subject: Subject, selection: Selection) -> None:
    if hasattr(explainer, "prepare"):
        return  # Its preparation takes longer than a probe may.
    inputs = fetch(selection.data, selection.indices, subject.size).inputs.to(subject.device)
    streams = selection.generators("explain", selection.indices)
    chunk = batch_size_for(subject.image_size)
    context = contexts.explain_context(subject.model, subject.info, subject.target_layers, subject.stages, streams, chunk)
    contexts.explain(subject.model, explainer, inputs, torch.zeros(len(inputs), dtype=torch.long, device=subject.device), context)


def _logits(subject: Subject, selection: Selection) -> torch.Tensor:
    inputs = fetch(selection.data, selection.indices, subject.size).inputs.to(subject.device)
    return contexts.forward(subject.model, inputs, len(inputs)).cpu()
