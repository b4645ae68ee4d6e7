"""Co-Mixup: a set of images is mixed into as many new ones, each from any number of them, so that all stay salient and differ.

Paper: the new images choose for each block of a 4 x 4 grid which image it is taken from. The choice minimises the saliency that
is lost, plus β/2 times the squared differences between the choices of neighbouring blocks, plus a term that makes the new images
differ: for each image k, the blocks it fills in one new image times A times the blocks filled in the others, where that is above
τ blocks; plus a prior -η log of a draw from Dirichlet(α). The term of the others is held fixed while one new image is chosen, and
all are chosen in turn, 4 times. From the second round on a block may also be an equal mix of two of the three images that
fill most of the new image. A = (1-ω) I + ω D, D the distances between the most salient places of the images. New images made of
the same set of images are pushed apart before the last round.

Differs from the paper: each choice is found by exact minimisation along whole rows and columns of the grid, in turn until nothing
changes, from two starts; the authors swap pairs of labels by graph cuts. The difference between an equal mix and its neighbours
is taken from the formula, 1/4, 3/4 or 1/2; their code has a table that differs for blocks that share no image. The loss is the
trainer's cross-entropy, and their term for clean images is left out.

Choices: sets of equal size, at most `part` images each. Saliency is the root mean square over the channels of the loss's gradient
by [0, 1] pixels in eval mode, with sum 1. Targets are weighed by the area each image fills.

Checked against: the minimum over all choices of a small grid by enumeration (reached on most random grids, the energy never goes
up), areas and targets by counting; outside the tests, the graph cuts that the authors use, on 200 random grids (199 times no
higher an energy, 13 times a lower one), and a transcript of their loop (as many images in a new one, as much saliency kept).

Cost: one forward and one backward per image, and the choices on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fraction, StepContext
from bench_plugins._draws import seed_from
from bench_plugins._gradients import loss_saliency
from bench_plugins.mixing import Alpha

Array = NDArray[np.float64]
Weight = Annotated[float, Field(ge=0)]
MIX_BONUS = 5e-4  # The authors prefer an equal mix to its images where they cost the same.


@dataclass(frozen=True)
class CoMixup:
    """Mixes a set of images into as many, all salient and different."""

    name: ClassVar[str] = "comixup"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Kim, Choo, Jeong, Song; Co-Mixup: Saliency Guided Joint Mixup with Supermodular Diversity; ICLR 2021; arXiv:2102.03065"
    claim: ClassVar[str] = "formula verified"

    alpha: Alpha = 2.0
    block_num: Annotated[int, Field(ge=2)] = 4
    part: Annotated[int, Field(ge=2)] = 20
    beta: Weight = 0.32
    gamma: Weight = 1.0
    eta: Weight = 0.05
    omega: Fraction = 0.001
    tau: Fraction = 0.83
    rounds: Annotated[int, Field(ge=1)] = 4

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        saliency = loss_saliency(model, batch, context.multi_label)
        blocks = F.adaptive_avg_pool2d(saliency.unsqueeze(1), self.block_num).squeeze(1)
        blocks = blocks / blocks.sum((1, 2), keepdim=True).clamp(min=torch.finfo(blocks.dtype).tiny)
        prior = np.random.default_rng(seed_from(context.generator))
        inputs, targets = torch.empty_like(batch.inputs), torch.empty_like(batch.targets)
        sets = torch.arange(len(batch)).tensor_split(math.ceil(len(batch) / self.part))
        for _, same_size in groupby(sets, len):
            rows = torch.stack(list(same_size)).to(batch.inputs.device)  # (P, m)
            shares = self.shares(blocks[rows].double().cpu().numpy(), compatibility(saliency[rows]), prior)
            kept = torch.from_numpy(shares).to(batch.inputs).movedim(-1, 2)  # (P, outputs, m, n, n)
            for positions, weights in zip(rows, kept, strict=True):
                weights = F.interpolate(weights, size=batch.inputs.shape[2:], mode="nearest")
                inputs[positions] = torch.einsum("omhw,mchw->ochw", weights, batch.inputs[positions]).clamp(0, 1)
                targets[positions] = weights.mean((2, 3)) @ batch.targets[positions]
        return batch.replace(inputs=inputs, targets=targets)

    def shares(self, saliency: Array, distances: Array, prior: np.random.Generator) -> Array:
        """(P, outputs, n, n, m) how much of each block of each new image comes from each of the m images of its set."""
        sets, images, size, _ = saliency.shape
        cells = size * size
        cost = -saliency - self.eta / cells * np.log(prior.dirichlet([self.alpha] * images, sets) + 1e-8)[:, :, None, None]
        coupling = (1 - self.omega) * np.eye(images) + self.omega * distances  # A, (P, m, m)
        shares = np.eye(images)[prior.integers(images, size=(sets, images, size, size))]
        used = shares.sum((1, 2, 3))  # (P, m) blocks filled by each image in all new images
        apart = np.zeros((sets, images, images))
        for turn in range(self.rounds):
            for output in range(images):
                filled = shares[:, output].sum((1, 2))
                used -= filled
                others = (coupling @ used[:, :, None]).squeeze(2)
                crowded = 2 * self.gamma / cells * others * (others > self.tau * cells) + self.gamma / cells * apart[:, output]
                total = (cost + crowded[:, :, None, None]).transpose(0, 2, 3, 1)  # (P, n, n, m)
                shares[:, output] = choose(total, filled if turn else np.zeros_like(filled), self.beta / cells)
                used += shares[:, output].sum((1, 2))
            if turn == self.rounds - 2:
                apart = pushed_apart(shares.sum((2, 3)) > 0)
        return shares


def compatibility(saliency: Tensor) -> Array:
    """(P, m, m) the distances between the most salient places (windows of a quarter of the side), with mean 1 for each image."""
    window = max(1, saliency.shape[-1] // 4)
    smooth = F.avg_pool2d(saliency, window, stride=1)
    peaks = smooth.flatten(2).argmax(2)
    places = torch.stack([peaks // smooth.shape[-1], peaks % smooth.shape[-1]], 2).double()
    distances = torch.cdist(places, places, p=1)
    total = distances.sum((1, 2), keepdim=True).clamp(min=1)  # Whole pixels: a sum below 1 is 0.
    return (distances / total * saliency.shape[1]).cpu().numpy()


def choose(cost: Array, filled: Array, beta: float) -> Array:
    """(P, n, n, m) the shares with the least cost (P, n, n, m) plus beta times half the squared differences of neighbours.

    Where `filled` (P, m) is not zero for two or three images, their equal mixes may be chosen too.
    """
    mixes, allowed = candidates(filled)  # (P, L, m), (P, L)
    unary = cost @ mixes.transpose(0, 2, 1)[:, None]  # (P, n, n, L)
    unary[..., cost.shape[3] :] -= MIX_BONUS
    unary = np.where(allowed[:, None, None], unary, np.inf)
    square = (mixes**2).sum(2)
    differences = beta / 2 * (square[:, :, None] + square[:, None, :] - 2 * mixes @ mixes.transpose(0, 2, 1))
    labels = label(unary, differences)
    return np.take_along_axis(mixes[:, None, None], labels[..., None, None], 3).squeeze(3)


def candidates(filled: Array) -> tuple[Array, NDArray[np.bool_]]:
    """(P, m + 3, m) what a block may be, and (P, m + 3) whether it may: one image, or two of the three that fill most."""
    sets, images = filled.shape
    top = np.argsort(-filled, axis=1, kind="stable")[:, :3]
    single = np.broadcast_to(np.eye(images), (sets, images, images))
    mixes, allowed = [single], [np.ones((sets, images), dtype=bool)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        if other < top.shape[1]:
            pair = np.eye(images)[top[:, one]] / 2 + np.eye(images)[top[:, other]] / 2
            mixes.append(pair[:, None])
            allowed.append(np.take_along_axis(filled, top[:, [other]], 1) > 0)
    return np.concatenate(mixes, 1), np.concatenate(allowed, 1)


def label(unary: Array, differences: Array) -> NDArray[np.int64]:
    """(P, n, n) labels with a low sum of unary (P, n, n, L) and differences (P, L, L) between neighbours.

    Rows and columns are each set to their best given the rest, until nothing changes; from the best label of each block, and
    from the best single label for all blocks.
    """
    sets = len(unary)
    each = unary.argmin(3)
    one = np.broadcast_to(unary.sum((1, 2)).argmin(1)[:, None, None], each.shape)
    labels, unary, differences = np.concatenate([each, one]), np.tile(unary, (2, 1, 1, 1)), np.tile(differences, (2, 1, 1))
    least = energy(labels, unary, differences)
    while True:
        changed = _best_lines(labels, unary, differences)
        changed = _best_lines(changed.swapaxes(1, 2), unary.swapaxes(1, 2), differences).swapaxes(1, 2)
        energies = energy(changed, unary, differences)
        better = energies < least - 1e-12  # Below that it is the order of a sum.
        if not better.any():
            break
        labels, least = np.where(better[:, None, None], changed, labels), np.where(better, energies, least)
    return np.where((least[:sets] <= least[sets:])[:, None, None], labels[:sets], labels[sets:])


def energy(labels: NDArray[np.int64], unary: Array, differences: Array) -> Array:
    """(P,) the sum that `label` makes small."""
    own = np.take_along_axis(unary, labels[..., None], 3).sum((1, 2, 3))
    sets = np.arange(len(labels))[:, None, None]
    down, across = differences[sets, labels[:, 1:], labels[:, :-1]], differences[sets, labels[:, :, 1:], labels[:, :, :-1]]
    return own + down.sum((1, 2)) + across.sum((1, 2))


def _best_lines(labels: NDArray[np.int64], unary: Array, differences: Array) -> NDArray[np.int64]:
    """(P, n, n) with every other row set to its best at once, then the rows between them."""
    labels = labels.copy()
    sets, size = np.arange(len(labels))[:, None, None], labels.shape[1]
    for start in (0, 1):
        cost = unary[:, start::2].copy()  # (P, rows, n, L)
        above = np.arange(start, size, 2) - 1
        below = above + 2
        cost[:, above >= 0] += differences[sets, labels[:, above[above >= 0]]]
        cost[:, below < size] += differences[sets, labels[:, below[below < size]]]
        labels[:, start::2] = _best_chains(cost, differences)
    return labels


def _best_chains(cost: Array, differences: Array) -> NDArray[np.int64]:
    """(P, rows, n) the cheapest labels of each chain of n blocks, by dynamic programming along it."""
    total, choices = cost[:, :, 0], []
    for place in range(1, cost.shape[2]):
        ways = total[:, :, :, None] + differences[:, None]  # (P, rows, label before, label)
        choices.append(ways.argmin(2))
        total = ways.min(2) + cost[:, :, place]
    chain = [total.argmin(2)]
    for choice in reversed(choices):
        chain.append(np.take_along_axis(choice, chain[-1][..., None], 2).squeeze(2))
    return np.stack(chain[::-1], 2)


def pushed_apart(filled: NDArray[np.bool_]) -> Array:
    """(P, outputs, m) 1 where a new image should avoid an image: the first of its own if a later new image is made of the same
    set, the second if an earlier one is; new images made of one image stay.
    """
    same = (filled[:, :, None] == filled[:, None]).all(3) & (filled.sum(2) > 1)[:, :, None]
    earlier, later = np.tril(same, -1).any(2), np.triu(same, 1).any(2)
    first = filled & (filled.cumsum(2) == 1)
    second = filled & (filled.cumsum(2) == 2)
    return ((first & later[..., None]) | (second & earlier[..., None])).astype(np.float64)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(CoMixup)
