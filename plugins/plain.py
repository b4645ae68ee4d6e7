"""No augmentation: the floor that every other augmenter is compared with.

Choices: crops and flips belong to the training recipe, so they are the same under every augmenter, this one included.

Checked against: the batch comes back as the same object, and nothing is drawn or forwarded.

Cost: no passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from bench import hookimpl
from bench.interfaces import Batch, StepContext


@dataclass(frozen=True)
class Plain:
    """Trains on the batch as it is."""

    name: ClassVar[str] = "none"
    version: ClassVar[int] = 1
    floor: ClassVar[bool] = True
    default: ClassVar[bool] = True
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        return batch


@hookimpl
def register_augmenters(register: Any) -> None:
    register(Plain)
