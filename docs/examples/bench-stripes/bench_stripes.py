"""An augmenter in a package of its own: every other column of pixels is hidden.

Choices: hidden pixels get the model's mean colour; `width` is that of a stripe.

Checked against: nothing; it is an example.

Cost: no passes.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

import bench


@dataclass(frozen=True)
class Stripes:
    """Hides every other stripe of the image, beginning at a random column."""

    name: ClassVar[str] = "stripes"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""

    width: Annotated[int, Field(ge=1)] = 2

    def __call__(self, model, batch, context):
        columns = torch.arange(batch.inputs.shape[3], device=batch.inputs.device)
        first = int(torch.randint(2 * self.width, (), generator=context.generator))
        hidden = (columns + first) // self.width % 2 == 0
        return batch.replace(inputs=torch.where(hidden, context.fill("mean", batch.inputs), batch.inputs))


@bench.hookimpl
def register_augmenters(register):
    register(Stripes)
