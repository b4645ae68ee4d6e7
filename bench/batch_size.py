"""Batch sizes: which would fit and be quick, tried before a run. It only proposes, for the batch size is part of every training's key."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.estimate import AGREED, rehearse, subject_of
from bench.interfaces import Recipe
from bench.plan import Plan, Training

SMALLEST, LARGEST = 16, 8192
AS_GOOD = 1.05  # A size that takes at most so many times the time of the quickest is as good.
SECONDS = 60.0  # For one kind of training; on a processor, larger batches only take longer to try.


@dataclass
class Trial:
    """One kind of training: the seconds an image took at each size that went through, and the size at which memory ran out."""

    name: str
    seconds: dict[int, float] = field(default_factory=dict)
    refused: int | None = None


@dataclass(frozen=True)
class Proposal:
    """The size to take, the largest that fits everywhere, and the learning rate that usually goes with it."""

    batch_size: int
    largest: int
    refused: int | None
    learning_rate: float

    def text(self, recipe: Recipe) -> str:
        """What was found and what to type, in a paragraph."""
        fits = f"{self.largest} is the largest that fits; {self.refused} does not. " if self.refused else ""
        if self.batch_size == recipe.batch_size:
            return f"{fits}Batches of {recipe.batch_size}, which the recipe has, are as quick as any."
        law = "as many times" if recipe.optimizer == "sgd" else "by the root of that"
        return (
            f"{fits}Proposed, and not taken: --set recipe.batch_size={self.batch_size}\n"
            f"It is another training, with keys of its own. Its learning rate is usually changed {law}, here to "
            f"--set recipe.learning_rate={self.learning_rate:g}, and nothing says that the accuracy stays what it was."
        )


def trials(plan: Plan, device: str) -> list[Trial]:
    """Try growing batches on every kind of training of the plan."""
    kinds: dict[tuple[Any, ...], Training] = {}
    for job in plan.trainings:
        if job.fits and job.augmenter is not None:
            kinds.setdefault((job.data.part.label, job.model.label, job.trainer.label, job.augmenter.label), job)
    return [tried(" ".join(names), job, device) for names, job in kinds.items()]


def tried(name: str, job: Training, device: str) -> Trial:
    """Double the batch until memory or data run out; on a processor, also where it is no longer quicker or takes too long."""
    trial, start = Trial(name), time.perf_counter()
    for size in sizes(len(job.data.train) if job.recipe.train_images is None else job.recipe.train_images):
        try:
            trial.seconds[size] = _seconds(job, device, size)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            trial.refused = size
            break
        finally:
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
        if device == "cpu" and (not _gaining(trial.seconds) or time.perf_counter() - start > SECONDS):
            break
    return trial


def _seconds(job: Training, device: str, size: int) -> float:
    """Of an image in the last epoch, where every augmenter is at work. What an augmenter adds may depend on how many images are
    recognised; where memory is short, the step is also tried with all of them.
    """
    shares = (1.0, AGREED) if device.startswith("cuda") else (AGREED,)
    return [rehearse(job, subject_of(job, device), size, lambda epochs: [epochs - 1], share).seconds for share in shares][-1]


def sizes(images: int) -> Iterator[int]:
    """16, 32, … up to as many images as there are."""
    size = SMALLEST
    while size <= min(images, LARGEST):
        yield size
        size *= 2


def out_of_memory(error: BaseException) -> bool:
    """torch has a class of its own for a GPU's memory and none for the processor's."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error)


def _gaining(seconds: dict[int, float]) -> bool:
    """Was one of the last two sizes quicker, by more than nothing, than all before them?"""
    taken = list(seconds.values())
    return len(taken) < 3 or min(taken[-2:]) * AS_GOOD < min(taken[:-2])


def proposal(found: Sequence[Trial], recipe: Recipe) -> Proposal | None:
    """The recipe's own size, or else the smallest, that is as quick as the quickest over all kinds together; None where none fits them all."""
    shared = sorted(set.intersection(*(set(trial.seconds) for trial in found))) if found else []
    if not shared:
        return None
    together = {size: sum(trial.seconds[size] for trial in found) for size in shared}
    quickest = min(together.values())
    quick = [size for size in shared if together[size] <= AS_GOOD * quickest]
    chosen = recipe.batch_size if recipe.batch_size in quick else quick[0]
    refused = min((trial.refused for trial in found if trial.refused is not None), default=None)
    factor = chosen / recipe.batch_size
    rate = recipe.learning_rate * (factor if recipe.optimizer == "sgd" else math.sqrt(factor))
    return Proposal(chosen, shared[-1], refused, rate)
