"""Random distortion: the nodes of a grid laid over the image are moved at random, and the image is stretched between them.

Paper: O'Gara and McGuinness use the operation `random_distortion` of the library Augmentor with a grid of 6 x 6 cells and a
magnitude of 5 pixels: each inner node moves by whole pixels drawn uniformly from -5 to 5 in both directions, the border stays,
and every cell is filled bilinearly from the four-sided area that its nodes now span.

Choices: the cells are equal in size to the fraction of a pixel, where Augmentor gives the remainder to the last ones. Pixels
are read bicubically, as there, beyond the border from the border. The magnitude is in pixels, whatever the image's size.

Checked against: Pillow's mesh transform with the same nodes; nodes that do not move give the image back.

Cost: no passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, StepContext


@dataclass(frozen=True)
class RandomDistortion:
    """Moves the nodes of a grid and stretches the image between them."""

    name: ClassVar[str] = "random-distortion"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "O'Gara, McGuinness; Comparing Data Augmentation Strategies for Deep Image Classification; IMVIP 2019"
    claim: ClassVar[str] = "formula verified"

    grid: Annotated[int, Field(ge=2)] = 6
    magnitude: Annotated[int, Field(ge=0)] = 5

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        shape = (len(batch), 2, self.grid - 1, self.grid - 1)
        moves = torch.randint(-self.magnitude, self.magnitude + 1, shape, generator=context.generator)
        seen = places(F.pad(moves.to(batch.inputs), (1, 1, 1, 1)), *batch.inputs.shape[2:])
        size = batch.inputs.new_tensor([batch.inputs.shape[3], batch.inputs.shape[2]])
        inputs = F.grid_sample(batch.inputs, 2 * seen / size - 1, mode="bicubic", padding_mode="border", align_corners=False)
        return batch.replace(inputs=inputs.clamp(0, 1))  # Bicubic overshoots at edges.


def places(moves: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, 2) the x and y that each pixel shows, in pixels from the upper left corner, for moves (B, 2, n, n) of all nodes."""
    y, x = (torch.arange(size, device=moves.device) + 0.5 for size in (height, width))
    own = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)  # (H, W, 2)
    between = 2 * own / moves.new_tensor([width, height]) - 1
    field = F.grid_sample(moves, between.expand(len(moves), -1, -1, -1), mode="bilinear", align_corners=True)
    return own + field.movedim(1, -1)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(RandomDistortion)
