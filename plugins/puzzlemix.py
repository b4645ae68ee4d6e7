"""Puzzle Mix: two images share the blocks of a grid so that what is salient in either stays visible.

Paper: the image is cut into n x n blocks, n from 2, 4, 8, 16. The mask z (a block's share of the first image, from 0, 1/2, 1)
minimises, over all blocks and pairs of neighbours, the saliency that is lost, z s' + (1-z) s; a binomial prior
-η/n² log p(z | λ) with λ ~ Beta(α, α); and w (z_i - z_j)² with w = β/(16 n) (1 + γ d), where d tells how much better the images
fit themselves than each other across the border of the two blocks. Then the blocks of each image are moved to where it is
shown: the assignment minimises ε |i - j|²/(n-1)² - s_i [z_j > 0]. The target's share is the mean of z. s is the root mean square
over the channels of the loss's gradient by the image, and sums to 1.

Differs from the paper: both minimisations are exact. The quadratic energy over k + 1 labels is a minimum cut over k binary
variables per block, where the authors swap labels in pairs; the assignment is solved, where theirs resolves conflicts for a few
rounds and may leave a block empty. Blocks are moved whole, the default of their code; their CIFAR command moves 4-pixel pieces.
The loss is the trainer's cross-entropy, not binary cross-entropy, without their term for clean images, and the images get no
adversarial noise.

Choices: gradients are those of eval mode, by [0, 1] pixels. One λ and one n per batch, n among those that divide the image's side.
Costs enter the cut as whole numbers, in units of 1/1000 of a block's mean saliency. Square images.

Checked against: the minimum over all masks of small grids by enumeration, the energy of the authors' formula term by term, all
permutations of four blocks, areas and targets by counting.

Cost: one forward and one backward per image, and the cuts and assignments on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor, nn

from bench import hookimpl
from bench.errors import InvalidValue
from bench.interfaces import Batch, Fraction, StepContext
from bench_plugins._gradients import loss_saliency
from bench_plugins.mixing import Alpha, draw_partners, draw_shares, mix_targets

Weight = Annotated[float, Field(ge=0)]
GRIDS = (2, 4, 8, 16)
FORBIDDEN = 2**30  # A capacity that no minimum cut pays.


@dataclass(frozen=True)
class PuzzleMix:
    """Mixes blocks of two images by saliency, and moves them where they are seen."""

    name: ClassVar[str] = "puzzlemix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Kim, Choo, Song; Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup; ICML 2020; arXiv:2009.06962"
    claim: ClassVar[str] = "formula verified"

    alpha: Alpha = 1.0
    beta: Weight = 1.2
    gamma: Fraction = 0.5
    eta: Weight = 0.2
    n_labels: Annotated[int, Field(ge=2)] = 3
    neigh_size: Annotated[int, Field(ge=1)] = 4
    transport: bool = True
    t_eps: Weight = 0.8

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        blocks = draw_grid(batch, context.generator)
        share = float(draw_shares(self.alpha, 1.0, 1, context.generator))
        partners = draw_partners(batch, context.generator)
        saliency = F.adaptive_avg_pool2d(loss_saliency(model, batch, context.multi_label).unsqueeze(1), blocks).squeeze(1)
        saliency = saliency / saliency.sum((1, 2), keepdim=True).clamp(min=torch.finfo(saliency.dtype).tiny)
        mask = self.masks(batch.inputs, partners, saliency, share).to(batch.inputs)  # (B, n, n)
        own, other = batch.inputs, batch.inputs[partners]
        if self.transport:
            own = rearranged(own, self.assignment(saliency, mask > 0))
            other = rearranged(other, self.assignment(saliency[partners], mask < 1))
        kept = F.interpolate(mask.unsqueeze(1), size=batch.inputs.shape[2:], mode="nearest")
        return batch.replace(inputs=torch.lerp(other, own, kept), targets=mix_targets(batch.targets, partners, mask.mean((1, 2))))

    def masks(self, inputs: Tensor, partners: Tensor, saliency: Tensor, share: float) -> Tensor:
        """(B, n, n) each block's share of the image itself, the rest being its partner's."""
        blocks, levels = saliency.shape[1], self.n_labels - 1
        weight = self.beta / (16 * blocks)
        down, down_unary = fit(inputs, inputs[partners], blocks, self.neigh_size)
        across, across_unary = (part.mT for part in fit(inputs.mT, inputs[partners].mT, blocks, self.neigh_size))
        gain = saliency[partners] - saliency + weight * self.gamma * (down_unary + across_unary)  # (B, n, n), the cost of showing the image itself
        values = torch.arange(self.n_labels, device=gain.device) / levels
        unary = values.view(1, -1, 1, 1) * gain.unsqueeze(1) + self.eta / blocks**2 * binomial(levels, share).to(gain).view(1, -1, 1, 1)
        chosen = minimise(unary, weight * (1 + self.gamma * down), weight * (1 + self.gamma * across))
        return values[chosen]

    def assignment(self, saliency: Tensor, shown: Tensor) -> Tensor:
        """(B, n²) which block stands at each place: an image's salient blocks go where the mask (B, n, n) shows the image."""
        blocks = saliency.shape[1]
        rows, columns = np.divmod(np.arange(blocks**2), blocks)
        distance = ((rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2) / (blocks - 1) ** 2
        weights, places = saliency.flatten(1).double().cpu().numpy(), shown.flatten(1).double().cpu().numpy()
        costs = (self.t_eps * distance - np.outer(place, weight) for place, weight in zip(places, weights, strict=True))
        order = np.stack([linear_sum_assignment(cost)[1] for cost in costs])
        return torch.from_numpy(order).to(saliency.device)


def draw_grid(batch: Batch, generator: torch.Generator) -> int:
    """The number of blocks along a side. Raises InvalidValue for images that no grid fits."""
    height, width = batch.inputs.shape[2:]
    possible = [blocks for blocks in GRIDS if height == width and height % blocks == 0]
    if not possible:
        raise InvalidValue(f"augmenter 'puzzlemix' takes square images of even side, and these are {height} x {width}. `comixup` takes any.")
    return possible[int(torch.randint(len(possible), (), generator=generator))]


def binomial(levels: int, share: float) -> Tensor:
    """(levels + 1,) -log of the chance of each number of successes; successes stand for the image itself."""
    number = torch.arange(levels + 1, dtype=torch.float64)
    ways = torch.tensor([math.comb(levels, int(k)) for k in number], dtype=torch.float64)
    return -(ways * share**number * (1 - share) ** (levels - number) + 1e-8).log()


def fit(own: Tensor, other: Tensor, blocks: int, neigh_size: int) -> tuple[Tensor, Tensor]:
    """How blocks and the blocks below them fit: (B, n-1, n) how much better the images fit themselves than each other across
    each border (from -1 to 1), and (B, n, n) how much worse a block of the image itself fits than its partner's, whatever the
    neighbour shows.
    """
    size = math.gcd(neigh_size, own.shape[2] // blocks)
    own, other = F.avg_pool2d(own, size), F.avg_pool2d(other, size)
    aa, ab = _step(own, own, blocks), _step(own, other, blocks)
    ba, bb = _step(other, own, blocks), _step(other, other, blocks)
    upper, lower = (aa + ab - ba - bb) / 2, (aa + ba - ab - bb) / 2
    return (ab + ba - aa - bb) / 2, F.pad(upper, (0, 0, 0, 1)) + F.pad(lower, (0, 0, 1, 0))


def _step(above: Tensor, below: Tensor, blocks: int) -> Tensor:
    """(B, n-1, n) the mean absolute step from the last row of a block of one image to the first row of the block below of another."""
    rows = above.shape[2] // blocks
    steps = (above[:, :, rows - 1 : -1 : rows] - below[:, :, rows::rows]).abs().mean(1)  # (B, n-1, W)
    return steps.unflatten(2, (blocks, rows)).mean(3)


def minimise(unary: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(B, n, n) the labels 0 … L-1 with the least energy: unary (B, L, n, n) at the label plus, for each pair of neighbours,
    down (B, n-1, n) or across (B, n, n-1) times ((label - label') / (L-1))².

    A label is the sum of L-1 binary variables, in descending order. With a and b of them set in two blocks, (a - b)² is the
    number of unequal pairs plus a² - (L-1) a and b² - (L-1) b, so the energy is a sum of costs for single variables and for
    unequal pairs, and its minimum is a minimum cut.
    """
    count, labels, height, width = unary.shape
    levels = labels - 1
    scale = 1000 * height * width
    pairs = [(scale * weights.detach().double().cpu().numpy() / levels**2) for weights in (down, across)]
    around = np.zeros((count, height, width))
    for axis, weights in enumerate(pairs, start=1):
        around += np.pad(weights, [(0, int(a == axis)) for a in range(3)]) + np.pad(weights, [(int(a == axis), 0) for a in range(3)])
    level = np.arange(1, labels).reshape(1, -1, 1, 1)
    costs = scale * np.diff(unary.detach().double().cpu().numpy(), axis=1) + around[:, None] * (2 * level - 1 - levels)
    variables = np.arange(costs.size).reshape(costs.shape)  # (B, L-1, n, n)
    chosen = _minimum_cut(costs, _edges(variables, pairs))
    return torch.from_numpy(chosen.sum(1)).to(unary.device)


def _edges(variables: NDArray[Any], pairs: list[NDArray[Any]]) -> list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """(from, to, capacity) of the edges between variables: both ways between neighbours, and none may be set before the one below it."""
    edges = []
    for axis, weights in enumerate(pairs, start=2):
        size = variables.shape[axis]
        first, second = variables.take(range(size - 1), axis), variables.take(range(1, size), axis)
        for one in range(variables.shape[1]):
            for other in range(variables.shape[1]):
                edges += [(first[:, one], second[:, other], weights), (second[:, other], first[:, one], weights)]
    later, earlier = variables[:, 1:], variables[:, :-1]
    return [*edges, (later, earlier, np.full(later.shape, FORBIDDEN))]


def _minimum_cut(costs: NDArray[Any], edges: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]) -> NDArray[Any]:
    """Which variables are set in the cheapest choice; all images are one graph, because they share only source and sink."""
    whole = costs.round().astype(np.int64).ravel()
    source, sink = len(whole), len(whole) + 1
    wanted, unwanted = np.flatnonzero(whole < 0), np.flatnonzero(whole > 0)
    starts = [np.full(len(wanted), source), unwanted, *(start.ravel() for start, _, _ in edges)]
    stops = [wanted, np.full(len(unwanted), sink), *(stop.ravel() for _, stop, _ in edges)]
    capacities = [-whole[wanted], whole[unwanted], *(capacity.round().astype(np.int64).ravel() for _, _, capacity in edges)]
    entries = [np.concatenate(part).astype(np.int32) for part in (capacities, starts, stops)]
    graph = csr_array((entries[0], (entries[1], entries[2])), shape=(sink + 1, sink + 1))
    left = graph - maximum_flow(graph, source, sink).flow
    left.data *= left.data > 0
    left.eliminate_zeros()
    reached = np.zeros(sink + 1, dtype=bool)
    reached[breadth_first_order(left, source, return_predecessors=False)] = True
    return reached[:source].reshape(costs.shape)


def rearranged(images: Tensor, order: Tensor) -> Tensor:
    """(B, C, H, W) the blocks of each image in the given order (B, n²)."""
    count, channels, height, width = images.shape
    blocks = math.isqrt(order.shape[1])
    size = height // blocks
    pieces = images.reshape(count, channels, blocks, size, blocks, size).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, n², C, h, w)
    moved = pieces[torch.arange(count, device=images.device)[:, None], order]
    return moved.unflatten(1, (blocks, blocks)).permute(0, 3, 1, 4, 2, 5).reshape(count, channels, height, width)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(PuzzleMix)
