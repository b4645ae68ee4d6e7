"""Occlusion, LIME, kernel SHAP and Shapley sampling: hide regions of the image and see what becomes of the target's logit.

Paper: `occlusion` slides a square over the image; a pixel's value is the mean drop of the logit over the squares that
cover it. `lime` shows random halves of the regions and fits a linear model to the logits, nearer pictures weighing
more. `kernel-shap` fits one with weights that make its coefficients Shapley values. `shapley` shows the regions one
after the other in random order; a region's value is the mean rise of the logit when it appears.

Choices: regions are the cells of an even grid, `cells` along each side, since a grid is the same for every image and
needs no segmentation; all pixels of a cell have its value. Hidden pixels take a fill, the model's mean colour unless
told otherwise. Square and stride of `occlusion` are shares of the image's side, so the cost does not depend on its
size; squares end at the border. LIME follows the authors' image code: distance is one minus the cosine between the
shown regions and all of them, kernel width 0.25, ridge regression, the image itself comes first, all regions stay in
the model. That code takes superpixels, each hidden behind its own mean colour, and fits probabilities.

Differs from captum: its LIME measures distance between pixels, which weighs nearly all pictures alike, and its lasso
sets small effects to zero. Kernel SHAP with fewer pictures than regions is an error, where captum returns one of many
solutions. What captum draws from the global random stream comes from each row's own generator, and the global stream is
left as it was.

Checked against: a two-channel network worked out by hand; effects of regions that add up, which all four have to find;
Shapley values in closed form; LIME's regression solved by itself on the pictures that were shown; captum called
directly (`occlusion`).

Cost: forwards per image: one per position of the square (225 as registered), 1000, 1000, and 25 for each of the 64
cells.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.contexts import pair_up
from bench.errors import InvalidValue
from bench.interfaces import ExplainContext, Fill
from bench_plugins.captum_explainers._rows import over_rows

Cells = Annotated[int, Field(ge=2)]
Side = Annotated[float, Field(gt=0, le=1)]
LIME_WIDTH = 0.25
LIME_RIDGE = 1.0


@dataclass(frozen=True)
class Occlusion:
    """How far the logit falls when a square over the pixel is hidden."""

    window: Side = 1 / 8
    stride: Side = 1 / 16
    baseline: Fill = "mean"

    name: ClassVar[str] = "occlusion"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Zeiler, Fergus; Visualizing and Understanding Convolutional Networks; ECCV 2014; arXiv:1311.2901"
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits. Raises InvalidValue where the stride leaves pixels out."""
        from captum import attr

        channels, *size = inputs.shape[1:]
        window, stride = ([max(1, round(share * side)) for side in size] for share in (self.window, self.stride))
        if any(step > length for step, length in zip(stride, window, strict=True)):
            raise InvalidValue(f"occlusion: a stride of {stride} leaves out pixels between windows of {window}. Set `stride` to at most `window`.")

        def rows(inputs: Tensor, targets: Tensor, baselines: Tensor) -> Tensor:
            occlusion = attr.Occlusion(model)
            return occlusion.attribute(inputs, (channels, *window), (channels, *stride), baselines, targets)

        return over_rows(rows, context.chunk, inputs, targets, context.fill(self.baseline, inputs))[:, :1]  # The colours are hidden together.


@dataclass(frozen=True)
class Lime:
    """A linear model of the logit by which regions are shown, fitted near the whole image."""

    samples: Annotated[int, Field(ge=2)] = 1000
    cells: Cells = 8
    baseline: Fill = "mean"

    name: ClassVar[str] = "lime"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        'Ribeiro, Singh, Guestrin; "Why Should I Trust You?": Explaining the Predictions of Any Classifier; KDD 2016; arXiv:1602.04938'
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits per region."""
        from captum import attr
        from captum._utils.models.linear_model import SkLearnRidge

        def fitted(image: Tensor, target: int, baseline: Tensor, grid: Tensor) -> Tensor:
            lime = attr.Lime(shown_logits(model), SkLearnRidge(alpha=LIME_RIDGE), nearness, shown_regions)
            return lime.attribute(image, baseline, target, None, grid, self.samples, context.chunk, return_input_shape=False)

        return by_region(fitted, inputs, targets, self.cells, self.baseline, context)


@dataclass(frozen=True)
class KernelShap:
    """Shapley values of the regions, by weighted regression over random sets of them."""

    samples: Annotated[int, Field(ge=2)] = 1000
    cells: Cells = 8
    baseline: Fill = "mean"

    name: ClassVar[str] = "kernel-shap"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Lundberg, Lee; A Unified Approach to Interpreting Model Predictions; NeurIPS 2017; arXiv:1705.07874"
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits per region. Raises InvalidValue for fewer samples than there are unknowns."""
        from captum import attr

        def fitted(image: Tensor, target: int, baseline: Tensor, grid: Tensor) -> Tensor:
            if self.samples < (unknowns := int(grid.max()) + 2):
                raise InvalidValue(
                    f"kernel-shap: {self.samples} samples do not fix {unknowns} unknowns. Set `samples` far above that, or fewer `cells`."
                )
            shap = attr.KernelShap(shown_logits(model))
            return shap.attribute(image, baseline, target, None, grid, self.samples, context.chunk, return_input_shape=False)

        return by_region(fitted, inputs, targets, self.cells, self.baseline, context)


@dataclass(frozen=True)
class ShapleySampling:
    """Shapley values of the regions, by showing them in random order."""

    samples: Annotated[int, Field(ge=1)] = 25
    cells: Cells = 8
    baseline: Fill = "mean"

    name: ClassVar[str] = "shapley"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Castro, Gómez, Tejada; Polynomial calculation of the Shapley value based on sampling; Computers & Operations Research 2009"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits per region; the regions' values add up to the change of the logit from the baseline."""
        from captum.attr import ShapleyValueSampling

        def sampled(image: Tensor, target: int, baseline: Tensor, grid: Tensor) -> Tensor:
            values = ShapleyValueSampling(shown_logits(model)).attribute(image, baseline, target, None, grid, self.samples, context.chunk)
            return values[:, :1]  # The colours are shown together.

        return by_region(sampled, inputs, targets, self.cells, self.baseline, context)


def by_region(attribute: Callable[..., Tensor], inputs: Tensor, targets: Tensor, cells: int, baseline: Fill, context: ExplainContext) -> Tensor:
    """(B, 1, H, W) row by row, each with the global random stream set from its own generator.

    `attribute(image, target, baseline, grid)` gives a map or one value per region.
    """
    grid = grid_of_cells(inputs.shape[-2:], cells).to(inputs.device)
    baselines = context.fill(baseline, inputs)
    maps = []
    for image, target, behind, generator in zip(inputs.split(1), targets.tolist(), baselines.split(1), context.generators, strict=True):
        with seeded(generator), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            values = attribute(image, target, behind, grid).to(inputs)
        maps.append(values if values.ndim == 4 else values.flatten()[grid])
    return torch.cat(maps)


def grid_of_cells(size: Sequence[int], cells: int) -> Tensor:
    """(1, 1, H, W) the number of the cell that each pixel lies in, counted from 0 row by row; no more cells than pixels."""
    down, across = (torch.arange(side) * min(cells, side) // side for side in size)
    return (down[:, None] * min(cells, size[1]) + across)[None, None]


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """The global CPU stream starts from a draw of the generator, and is as it was afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the accelerators for good.
        yield


def shown_logits(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network without gradient; a lone picture goes through twice."""

    def logits(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return model(pair_up(pictures))[: len(pictures)]

    return logits


def shown_regions(original: Tensor, *, num_interp_features: int, **_: Any) -> Iterator[Tensor]:
    """(1, n) of 0 and 1: first everything, then each region with probability one half."""
    yield torch.ones(1, num_interp_features, dtype=torch.long, device=original.device)
    while True:
        yield torch.bernoulli(torch.full((1, num_interp_features), 0.5)).long().to(original.device)


def nearness(original: Tensor, perturbed: Tensor, shown: Tensor, **_: Any) -> float:
    """LIME's kernel of the distance between the shown regions and all of them, one minus the cosine."""
    distance = 1 - math.sqrt(shown.float().mean().item())
    return math.exp(-(distance**2) / (2 * LIME_WIDTH**2))
