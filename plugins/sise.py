"""SISE and Ada-SISE: the network's own feature maps as masks, block by block, fused from the first block to the last.

Paper: in each block, take the maps whose mean gradient towards the target's confidence exceeds μ times the block's largest (`sise`,
μ = 0). Each is enlarged to the image and scaled to [0, 1]: a mask m. The block's picture is V = mean over masks of
f(x ⊙ m) · m / Σ m. Then E₁ = V₁ and E_b = (E_{b-1} + V_b) · [V_b > Otsu(V_b)]; the last E is the map. `adasise` replaces μ by Otsu's
threshold among the block's positive gradients, which leaves fewer masks.

Differs from the paper: `sise-soft` follows the authors' code instead: every V is scaled to [0, 1], the threshold is raised by half
where fewer than a tenth of the pixels exceed the raised one, and a sigmoid of slope 100 stands for the step.

Choices: blocks are the model's stages; those of bench-xai's ResNets do not have the first convolution, which the paper counts as one.
The gradient is taken of log p / (1 - p), which orders the maps as p does and does not vanish where the network is certain.
Otsu's threshold is exact, without a histogram; where all values are equal nothing is above it, except that `adasise` then keeps all
positive maps. Maps that are the same everywhere are no masks. A block without masks is skipped; an image without any gets zeros.
Hidden pixels take the model's mean colour. The paper of `adasise` was not at hand: its threshold follows a third party's code, with
the rounding mended that lets maps at the threshold through; pictures and fusion are those of SISE.

Checked against: the masks, scores and picture of the two-channel network by hand; the maps chosen by the probability's own gradient
in double precision; OpenCV's Otsu; a loop over single images and masks.

Cost: 1 forward and 1 backward pass per image, and a forward pass for each mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.contexts import forward, pair_up
from bench.interfaces import ExplainContext, Fill
from bench.layers import recording
from bench_plugins._maps import feature_map, rescaled, seen_through, upsample

Threshold = Literal["hard", "soft"]


@dataclass(frozen=True)
class Sise:
    """Feature maps with a positive gradient as masks, in every block."""

    mu: Annotated[float, Field(ge=0, lt=1)] = 0.0
    threshold: Threshold = "hard"
    fill: Fill = "mean"

    name: ClassVar[str] = "sise"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Sattarzadeh, Sudhakar, Lem, et al.; Explaining Convolutional Neural Networks through Attribution-Based Input Sampling and "
        "Block-Wise Feature Aggregation; AAAI 2021; arXiv:2010.00672"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """Returns (B, 1, H, W), zero or above; pixels outside the last block's threshold are zero."""
        return explain(model, inputs, targets, context, self.choose, self.threshold, self.fill)

    def choose(self, gradients: Tensor) -> Tensor:
        """(B, K) bool: the maps whose mean gradient is positive and exceeds μ times the image's largest."""
        largest = gradients.amax(1, keepdim=True)
        return (gradients > self.mu * largest) & (gradients > 0)  # With none above zero, μ times a negative one would let some in.


@dataclass(frozen=True)
class AdaSise:
    """SISE with fewer masks: the gradient's threshold is Otsu's, in each block."""

    threshold: Threshold = "hard"
    fill: Fill = "mean"

    name: ClassVar[str] = "adasise"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Sudhakar et al.; Ada-SISE: Adaptive Semantic Input Sampling for Efficient Explanation of Convolutional Neural Networks; "
        "ICASSP 2021; arXiv:2102.07799"
    )
    claim: ClassVar[str] = "unverified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """Returns (B, 1, H, W) as SISE does."""
        return explain(model, inputs, targets, context, self.choose, self.threshold, self.fill)

    def choose(self, gradients: Tensor) -> Tensor:
        """(B, K) bool: the upper of the two classes into which Otsu splits the image's positive gradients; all, if equal."""
        positive = gradients > 0
        return positive & (gradients > otsu(gradients, positive, without_split=-math.inf))


def explain(
    model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext, choose: Callable[[Tensor], Tensor], threshold: Threshold, fill: Fill
) -> Tensor:
    """(B, 1, H, W) the fused pictures of all blocks, `choose` deciding by the mean gradients which maps become masks."""
    hidden = context.fill(fill, inputs)
    fused = []
    for rows in torch.arange(len(inputs)).tensor_split(math.ceil(len(inputs) / context.chunk)):
        images, behind, classes = inputs[rows], hidden[rows], targets[rows]
        pictures, present = [], []
        for maps, gradients in feature_maps(model, images, classes, context):
            chosen = choose(gradients) & (maps.amax((2, 3)) > maps.amin((2, 3)))  # (B, K)
            pictures.append(picture(model, images, behind, classes, maps, chosen, context))
            present.append(chosen.any(1))
        fused.append(fuse(pictures, present, threshold))
    return torch.cat(fused)


def feature_maps(model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> list[tuple[Tensor, Tensor]]:
    """Each stage's maps (B, K, h, w) and their mean gradients (B, K), by one forward and one backward pass for all stages.

    The graph begins at the first stage: what comes before it needs no gradient.
    """
    rows = len(inputs)
    inputs, targets = pair_up(inputs), pair_up(targets)
    outputs: dict[int, Tensor] = {}

    def keep(position: int, output: Tensor) -> Tensor:
        outputs[position] = output if outputs else output.detach().requires_grad_()
        return outputs[position].clone()  # The network gets a copy: an in-place ReLU after the stage would write into the maps.

    with recording(context.stages, keep):
        logits = model(inputs)
    multi_label = context.info is not None and context.info.multi_label
    gradients = torch.autograd.grad(log_odds(logits, targets, multi_label).sum(), list(outputs.values()))
    stages = [context.stages[position] for position in outputs]
    return [
        (feature_map(stage, output.detach())[:rows], feature_map(stage, gradient)[:rows].mean((2, 3)))
        for stage, output, gradient in zip(stages, outputs.values(), gradients, strict=True)
    ]


def log_odds(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """(B,) log p / (1 - p) of the target's softmax or sigmoid probability p, without forming p.

    Its gradient is that of p divided by p (1 - p), so signs and proportions within an image are the same.
    """
    columns = targets.view(-1, 1)
    chosen = logits.gather(1, columns).squeeze(1)
    return chosen if multi_label else chosen - logits.scatter(1, columns, -math.inf).logsumexp(1)


def picture(model: nn.Module, inputs: Tensor, hidden: Tensor, targets: Tensor, maps: Tensor, chosen: Tensor, context: ExplainContext) -> Tensor:
    """(B, 1, H, W) V of one stage: the mean over an image's masks of the masked image's confidence times m / Σ m."""
    sums = torch.zeros_like(inputs[:, :1], dtype=wide(inputs))  # Doubles, so that the order of the additions leaves no trace.
    image, channel = chosen.nonzero(as_tuple=True)
    for part in torch.arange(len(image), device=image.device).tensor_split(max(1, math.ceil(len(image) / context.chunk))):
        if not len(part):
            continue
        rows = image[part]
        masks = rescaled(upsample(maps[rows, channel[part]].unsqueeze(1), inputs.shape))  # (n, 1, H, W)
        logits = forward(model, seen_through(masks, inputs, hidden, rows), context.chunk)
        confidence = context.probability(logits).gather(1, targets[rows].view(-1, 1)).view(-1, 1, 1, 1)
        density = masks.div_(masks.sum((2, 3), keepdim=True).clamp_min(torch.finfo(masks.dtype).tiny))
        sums.index_add_(0, rows, density.mul_(confidence).to(sums))
    return (sums / chosen.sum(1).clamp_min(1).view(-1, 1, 1, 1)).to(inputs)


def fuse(pictures: list[Tensor], present: list[Tensor], threshold: Threshold) -> Tensor:
    """(B, 1, H, W) from the first picture to the last: add, then keep what is above the newer picture's threshold.

    present: for each picture, (B,) whether there was a mask to make it of; without one the step is left out.
    """
    if threshold == "soft":
        pictures = [rescaled(each) for each in pictures]
    fused = pictures[0]
    for each, there in zip(pictures[1:], present[1:], strict=True):
        step = (fused + each) * (above(each) if threshold == "hard" else softly_above(each))
        fused = torch.where(there.view(-1, 1, 1, 1), step, fused)
    return fused


def above(maps: Tensor) -> Tensor:
    """(B, 1, H, W) bool: above the map's own Otsu threshold."""
    return maps > otsu(maps.flatten(1)).view(-1, 1, 1, 1)


def softly_above(maps: Tensor) -> Tensor:
    """(B, 1, H, W) in (0, 1): the authors' sigmoid around Otsu's threshold, or around 1.5 times it where few pixels exceed that."""
    level = otsu(maps.flatten(1)).view(-1, 1, 1, 1)
    few = (maps > 1.5 * level).double().mean((2, 3), keepdim=True) < 0.1
    return torch.sigmoid(100 * (maps - torch.where(few, 1.5 * level, level))).to(maps)


def otsu(values: Tensor, members: Tensor | None = None, without_split: float = math.inf) -> Tensor:
    """(R, 1) for each row of values (R, n), the largest one of the lower class when the variance between two classes is greatest.

    members (R, n) bool says which values count. A row whose members are all equal has no two classes and gets `without_split`.
    """
    members = torch.ones_like(values, dtype=torch.bool) if members is None else members
    ordered, places = values.to(wide(values)).masked_fill(~members, math.inf).sort(1)
    counts = members.gather(1, places).to(ordered)
    lower = counts.cumsum(1)  # How many are in the lower class if it ends here.
    sums = ordered.masked_fill(counts == 0, 0).cumsum(1)
    total, whole = lower[:, -1:], sums[:, -1:]
    between = (sums * total - whole * lower).square() / (lower * (total - lower))
    ends = F.pad(ordered[:, 1:] > ordered[:, :-1], (0, 1)) & (lower < total)  # Equal values are not torn apart.
    between = between.masked_fill(~ends, -1.0)
    level = ordered.gather(1, between.argmax(1, keepdim=True))
    return torch.where(ends.any(1, keepdim=True), level, torch.full_like(level, without_split))


def wide(values: Tensor) -> torch.dtype:
    """Double precision where the device has it."""
    return torch.float32 if values.device.type == "mps" else torch.float64


@hookimpl
def register_explainers(register) -> None:
    register(Sise)
    register(Sise, name="sise-soft", threshold="soft")
    register(AdaSise)
