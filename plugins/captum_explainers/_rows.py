"""Shared by the captum adapters: rows in chunks, gradients, and the check that the parts of an explanation add up."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.contexts import forward, pair_up
from bench.errors import InvalidValue

ROUNDING = 1e-5  # Of the logits: their difference in float32 is no better than this.


def over_rows(attribute: Callable[..., Tensor], rows: int, *columns: Tensor) -> Tensor:
    """`attribute` for at most `rows` rows of the columns at a time, put together; a lone row goes through twice."""
    parts = zip(*(column.split(max(rows, 1)) for column in columns), strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # captum announces each time that it sets hooks.
        return torch.cat([attribute(*map(pair_up, part))[: len(part[0])] for part in parts])


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """(B, C, H, W) the derivative of each row's target logit by its pixels."""
    from captum.attr import Saliency

    return over_rows(lambda images, wanted: Saliency(model).attribute(images, wanted, abs=False), chunk, inputs, targets)


def check_sum(
    method: str, model: nn.Module, attributions: Tensor, inputs: Tensor, baselines: Tensor, targets: Tensor, tolerance: float, advice: str
) -> None:
    """Raises InvalidValue where an image's attributions do not add up to the change of its logit from the baseline.

    The gap may be `tolerance` of the sum of the attributions' sizes; of the change itself it says nothing where parts cancel.
    """
    end, start = (forward(model, images, len(images)).gather(1, targets.view(-1, 1)).squeeze(1) for images in (inputs, baselines))
    found, change = attributions.sum((1, 2, 3)), end - start
    allowed = tolerance * attributions.abs().sum((1, 2, 3)) + ROUNDING * (end.abs() + start.abs())
    wrong = ~((found - change).abs() <= allowed)  # Written so that a value that is not a number is wrong too.
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise InvalidValue(
            f"{method}: the attributions of an image add up to {found[row]:.4g}, and its logit is {change[row]:.4g} above the baseline's.\n{advice}"
        )
