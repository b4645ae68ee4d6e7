"""An explainer in one file: the brightness of the image, whatever the network thinks of it.

Choices: luminance by Rec. 601.

Checked against: nothing; it is an example, and `bench check my-method --plugin docs/examples/my_method.py` holds.

Cost: no passes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

import bench


@dataclass(frozen=True)
class Bright:
    """Bright pixels are evidence."""

    name: ClassVar[str] = "my-method"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""

    def __call__(self, model, inputs, targets, context):
        weights = torch.tensor([0.299, 0.587, 0.114], device=inputs.device).view(1, 3, 1, 1)
        return (inputs * weights).sum(1, keepdim=True)


@bench.hookimpl
def register_explainers(register):
    register(Bright)
