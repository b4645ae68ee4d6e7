"""AugMix: an image is blended with several short chains of image operations, and its three versions must be judged alike.

Paper: 3 chains of 1 to 3 operations, drawn from autocontrast, equalize, posterize, rotate, solarize, shear and translate along
either axis, are blended with weights w ~ Dirichlet(α); x' = (1-m) x + m Σ w_k chain_k(x), m ~ Beta(α, α). Two such images join
each original. The loss is the cross-entropy of the original plus 12 times the Jensen-Shannon divergence of the three
predictions: the mean of KL(p_k ‖ M), M their mean.

Choices: the operations are those of the authors' code, with levels U(0.1, severity) of 10, rewritten for whole batches; pixels
are rounded to 8 bits only where an operation is defined on them (posterize, equalize, solarize). `augmix-plain` replaces each image
by one blended version and has no divergence; it also takes multi-label data, for which a divergence is not defined. The
divergence's row is shared by the three versions, each with the weight of the original. Label smoothing does not apply to
`augmix`, which brings its own loss. The operations that the authors leave out because they overlap their test are left out.

Checked against: Pillow, operation by operation, to one level of 255; a blend with chains that are known; a divergence worked out
by hand.

Cost: no passes in the augmenter; three rows per image in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.errors import InvalidValue
from bench.interfaces import Batch, Fill, StepContext
from bench_plugins._draws import seed_from, uniform
from bench_plugins.mixing import Alpha

PAPER = (
    "Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan; AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty; "
    "ICLR 2020; arXiv:1912.02781"
)
VERSIONS = 3  # The original and two blended images.
WHITE = 255


@dataclass(frozen=True)
class AugMixPlain:
    """Blends every image with chains of operations."""

    name: ClassVar[str] = "augmix-plain"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    claim: ClassVar[str] = "formula verified"

    severity: Annotated[float, Field(gt=0.1, le=10)] = 3
    width: Annotated[int, Field(ge=1)] = 3
    depth: Annotated[int, Field(ge=1)] | None = None  # 1 to 3, drawn for each chain, if none.
    alpha: Alpha = 1.0
    fill: Fill = "black"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        return batch.replace(inputs=self.blended(batch.inputs, context))

    def blended(self, inputs: Tensor, context: StepContext) -> Tensor:
        """(B, C, H, W) each image blended with chains of its own."""
        source = np.random.default_rng(seed_from(context.generator))
        weights = torch.from_numpy(source.dirichlet([self.alpha] * self.width, len(inputs))).to(inputs)  # (B, width)
        shares = torch.from_numpy(source.beta(self.alpha, self.alpha, len(inputs))).to(inputs)
        chains = self.chains(inputs.repeat_interleave(self.width, 0), context)
        mixture = torch.einsum("bk,bkchw->bchw", weights, chains.unflatten(0, (len(inputs), self.width)))
        return torch.lerp(inputs, mixture, shares.view(-1, 1, 1, 1)).clamp(0, 1)  # The weights add up to 1 but for rounding.

    def chains(self, images: Tensor, context: StepContext) -> Tensor:
        """(n, C, H, W) each image after operations of its own, one after another."""
        count, generator = len(images), context.generator
        hidden = context.fill(self.fill, images)
        images = images.clone()
        depths = torch.full((count,), self.depth) if self.depth else torch.randint(1, 4, (count,), generator=generator)
        for step in range(int(depths.max())):
            drawn = torch.randint(len(OPERATIONS), (count,), generator=generator).masked_fill(step >= depths, -1)
            levels = uniform(0.1, self.severity, count, generator) / 10
            signs = torch.randint(2, (count,), generator=generator) * 2 - 1
            for number, operation in enumerate(OPERATIONS):
                rows = (drawn == number).nonzero().squeeze(1)
                if len(rows):
                    place = rows.to(images.device)
                    changed = operation(images[place], levels[rows].to(images), signs[rows].to(images), hidden[place])
                    images.index_copy_(0, place, changed)
        return images


@dataclass(frozen=True)
class AugMix(AugMixPlain):
    """Adds two blended versions of every image, and a loss that wants them judged alike."""

    name: ClassVar[str] = "augmix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    claim: ClassVar[str] = "formula verified"

    jsd: Annotated[float, Field(ge=0)] = 12.0

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        if context.multi_label:
            raise InvalidValue(
                "augmenter 'augmix' compares probabilities over classes, and this data has several labels per image. Type augmix-plain."
            )
        rows = torch.arange(len(batch), device=batch.inputs.device)
        batch = batch.replace(group=rows)  # Three rows to a group, whatever came before.
        views = [self.blended(batch.inputs, context) for _ in range(VERSIONS - 1)]
        return batch.append(torch.cat(views), rows.repeat(VERSIONS - 1))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """(3 B,) the loss of each original, repeated for its versions, so that the mean over the rows is the paper's."""
        order = batch.group.argsort(stable=True)  # The original comes first in its group.
        versions = logits[order].unflatten(0, (-1, VERSIONS))  # (B, 3, K)
        targets = batch.targets[order][::VERSIONS]
        losses = F.cross_entropy(versions[:, 0], targets, reduction="none") + self.jsd * divergence(versions.softmax(2))
        return torch.empty_like(logits[:, 0]).index_copy(0, order, losses.repeat_interleave(VERSIONS))


def divergence(probabilities: Tensor) -> Tensor:
    """(B,) the Jensen-Shannon divergence of probabilities (B, versions, K): the mean of KL(p_k ‖ M), M their mean."""
    mixture = probabilities.mean(1, keepdim=True).clamp(1e-7, 1).log()
    return (torch.special.xlogy(probabilities, probabilities) - probabilities * mixture).sum(2).mean(1)


# The operations: images (n, C, H, W), levels (n,) in [0, 1], signs (n,), and what to show outside the image.

Operation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def autocontrast(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    """Each channel is stretched to [0, 1]."""
    lowest, highest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    spread = highest - lowest
    return torch.where(spread > 0, (images - lowest) / spread.where(spread > 0, 1), images)


def equalize(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    """Each channel gets a flat histogram, by Pillow's table of whole numbers."""
    pixels = (images * WHITE).round().long().flatten(2)  # (n, C, H·W)
    counts = torch.zeros(*pixels.shape[:2], WHITE + 1, dtype=torch.long, device=images.device).scatter_add_(2, pixels, torch.ones_like(pixels))
    last = counts.gather(2, pixels.amax(2, keepdim=True))  # Pixels of the brightest value.
    step = (pixels.shape[2] - last) // WHITE
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=WHITE)
    table = torch.where(step > 0, table, torch.arange(WHITE + 1, device=images.device))
    return table.gather(2, pixels).view_as(images).to(images) / WHITE


def posterize(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    """The 4 highest bits are kept, or fewer."""
    unit = 2 ** (4 + (levels * 4).floor()).view(-1, 1, 1, 1)
    return ((images * WHITE).round() / unit).floor() * unit / WHITE


def solarize(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    """Pixels from a threshold on are inverted."""
    threshold = 256 - (levels * 256).floor().view(-1, 1, 1, 1)
    return torch.where((images * WHITE).round() >= threshold, 1 - images, images)


def rotate(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    """By up to 30 whole degrees about the centre."""
    angles = ((levels * 30).floor() * signs).deg2rad()
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    return moved_by(images, hidden, torch.stack([cosine, -sine, zero, sine, cosine, zero], 1), centred=True)


def shear_x(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    return _sheared(images, hidden, levels * 0.3 * signs, place=1)


def shear_y(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    return _sheared(images, hidden, levels * 0.3 * signs, place=3)


def translate_x(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    return _sheared(images, hidden, (levels * images.shape[3] / 3).floor() * signs, place=2)


def translate_y(images: Tensor, levels: Tensor, signs: Tensor, hidden: Tensor) -> Tensor:
    return _sheared(images, hidden, (levels * images.shape[2] / 3).floor() * signs, place=5)


OPERATIONS: tuple[Operation, ...] = (autocontrast, equalize, posterize, rotate, solarize, shear_x, shear_y, translate_x, translate_y)


def _sheared(images: Tensor, hidden: Tensor, amounts: Tensor, place: int) -> Tensor:
    """The unit transform with one of its six numbers set."""
    matrices = images.new_tensor([1.0, 0, 0, 0, 1, 0]).repeat(len(images), 1)
    matrices[:, place] = amounts
    return moved_by(images, hidden, matrices, centred=False)


def moved_by(images: Tensor, hidden: Tensor, matrices: Tensor, centred: bool) -> Tensor:
    """The pixel at (x, y) shows, bilinearly, the image at (a x + b y + c, d x + e y + f), matrices (n, 6) holding a … f, with the
    origin in the upper left corner or, if centred, in the middle; outside the image it shows the fill.
    """
    height, width = images.shape[2:]
    origin = images.new_tensor([width, height]) / 2 if centred else images.new_zeros(2)
    y, x = torch.meshgrid(torch.arange(height).to(images), torch.arange(width).to(images), indexing="ij")
    places = torch.stack([x + 0.5 - origin[0], y + 0.5 - origin[1], torch.ones_like(x)], 2)  # (H, W, 3)
    seen = torch.einsum("hwk,nik->nhwi", places, matrices.view(-1, 2, 3)) + origin  # (n, H, W, 2)
    size = images.new_tensor([width, height])
    beyond = (seen < 0) | (seen >= size)
    outside = (beyond[..., 0] | beyond[..., 1]).unsqueeze(1)
    grid = seen.mul_(2).div_(size).sub_(1)  # From -1 to 1, as torch counts.
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(outside, hidden, sampled)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(AugMix)
    register(AugMixPlain)
