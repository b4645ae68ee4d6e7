"""DeepLIFT with the rescale rule: how far each pixel's distance from a baseline carries through to the logit.

Paper: the network runs on the image and on a baseline. Back from the logit, an activation's gradient is replaced by the
change of its output divided by the change of its input; where the input hardly changed the gradient stays. What arrives
at a pixel, times its distance from the baseline, is its attribution; they add up to the change of the logit. In
max-pooling the maximum's change is shared between the place of the image's maximum and that of the baseline's.

Choices: the baseline is a fill, the model's mean colour unless told otherwise; colours are added up. The reveal-cancel
rule is not in captum.

Differs from captum: it applies the rule to modules of ten kinds, each called once, and gives one the plain gradient of
the next where two adjoin (ReLU and max-pooling). Here every call of an activation goes through a module of its own, so
adjoining, functional, repeated and in-place ones and GELU and its like count as well. Max-pooling has its own backward:
captum's loses parts where windows overlap, and can take a gradient from another row. Products such as attention,
softmax and layer normalisation have no rule and are refused; attributions whose sum misses the change of the logit by
more than `tolerance` of the sum of their sizes are an error as well.

Checked against: a two-channel network worked out by hand; captum where it is right; the sums.

Cost: two forwards and one backward of twice the rows, and two forwards for the check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import InvalidValue
from bench.interfaces import ExplainContext, Fill, Fraction
from bench_plugins.captum_explainers._rows import check_sum, over_rows
from bench_plugins.captum_explainers.unrolled import Unrolled

SMALLEST = 1e-10  # captum's: a smaller change of the input is none.
ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign",
    "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "clamp", "clip", "clamp_min", "clamp_max",
}  # fmt: skip
SUMS = {"add", "sub", "rsub", "iadd", "isub"}
WITHOUT_RULE = {"layer_norm", "group_norm", "instance_norm", "softmax", "log_softmax", "normalize", "adaptive_max_pool2d"}
ADVICE = "Choose integrated-gradients, which suits any network."


@dataclass(frozen=True)
class DeepLift:
    """What each pixel's distance from a baseline carries through to the logit."""

    baseline: Fill = "mean"
    tolerance: Fraction = 0.001

    name: ClassVar[str] = "deeplift"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Shrikumar, Greenside, Kundaje; Learning Important Features Through Propagating Activation Differences; ICML 2017; arXiv:1704.02685"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits; an image's values add up to the change of its logit from the baseline.

        Raises InvalidValue where they do not, and for a network with a part that has no rule.
        """
        baselines = context.fill(self.baseline, inputs)
        return over_rows(partial(self._rows, model), context.chunk // 2, inputs, targets, baselines).sum(1, keepdim=True)

    def _rows(self, model: nn.Module, inputs: Tensor, targets: Tensor, baselines: Tensor) -> Tensor:
        from captum import attr

        network = Unrolled(model, lambda name, *_: name in ACTIVATIONS, {"max_pool2d": rescaled_max_pool})
        found = attr.DeepLift(network, eps=SMALLEST).attribute(inputs, baselines, targets)
        if without := sorted((network.joining - SUMS) | (network.seen & WITHOUT_RULE)):
            raise InvalidValue(f"deeplift has no rule for {', '.join(without)}, and this network computes that.\n{ADVICE}")
        check_sum(self.name, model, found, inputs, baselines, targets, self.tolerance, f"The network computes something without a rule. {ADVICE}")
        return found


def rescaled_max_pool(function: Any, inputs: Tensor, rest: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
    """Max-pooling of images and baselines, stacked (2B, C, H, W), with DeepLIFT's backward."""
    geometry = {name: value for name, value in options.items() if name != "return_indices"}
    return RescaledMaxPool.apply(inputs, partial(F.max_pool2d, return_indices=True), rest, geometry)


class RescaledMaxPool(torch.autograd.Function):
    """Forward as max-pooling; backward by the change of the maximum divided by the change of the input."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, pool: Any, rest: Sequence[Any], geometry: Mapping[str, Any]) -> Tensor:
        output, places = pool(inputs, *rest, **geometry)
        ctx.save_for_backward(inputs, output, places)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, output, places = ctx.saved_tensors
        (image, baseline), (maximum, reference) = inputs.chunk(2), output.chunk(2)
        top = torch.maximum(maximum, reference)
        shares = torch.cat([top - reference, maximum - top])  # At the image's place and at the baseline's; together the whole change.
        carried = sum(_scattered(shares * gradient, places, inputs).chunk(2))
        distance = image - baseline
        multiplier = carried / torch.where(distance.abs() < SMALLEST, 1, distance)
        plain = _scattered(gradient, places, inputs)
        return torch.where((distance.abs() < SMALLEST).repeat(2, 1, 1, 1), plain, multiplier.repeat(2, 1, 1, 1)), None, None, None


def _scattered(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """(B, C, H, W) each window's value added up at the place of its maximum."""
    return torch.zeros_like(like).flatten(2).scatter_add_(2, places.flatten(2), values.flatten(2)).view_as(like)
