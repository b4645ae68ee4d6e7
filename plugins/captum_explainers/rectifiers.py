"""DeconvNet, guided backpropagation and guided Grad-CAM: gradients with another backward for ReLU.

Paper: `deconvnet` sends back the positive part of the gradient whether the unit was active or not; max-pooling sends it
to the place of the maximum. `guided-backprop` lets it pass only where the unit was active as well. `guided-gradcam` is
guided backpropagation times the upsampled Grad-CAM of a layer.

Choices: signed, added up over the colours. Grad-CAM keeps its ReLU and is upsampled bilinearly. In a network without
max-pooling nothing of the image enters the way back of `deconvnet`: all images have one map for each class.

Differs from captum: it changes the backward of `nn.ReLU` modules alone. A network that calls `F.relu` gets the plain
gradient without a word; one that calls a module in two branches, or feeds a ReLU and a skip connection from one place,
gets neither. Here every call of ReLU goes through a module of its own. A network without ReLU, or with GELU and its
like, is refused. captum enlarges Grad-CAM by repeating pixels, `interpolate_mode="nearest"`.

Checked against: a two-channel network worked out by hand; captum where it is right; a backward written out for
functional, repeated, in-place and branching ReLUs.

Cost: one forward and one backward; `guided-gradcam` two forwards, and one more backward that ends at the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from bench.errors import InvalidValue
from bench.interfaces import ExplainContext
from bench_plugins._maps import maps_and_gradients, upsample
from bench_plugins.captum_explainers._rows import over_rows
from bench_plugins.captum_explainers.unrolled import Unrolled, is_relu

OTHER_RECTIFIERS = {"gelu", "silu", "mish", "hardswish", "hardtanh", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "softplus"}


@dataclass(frozen=True)
class DeconvNet:
    """The gradient with each ReLU's backward replaced by a ReLU of the gradient."""

    name: ClassVar[str] = "deconvnet"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Zeiler, Fergus; Visualizing and Understanding Convolutional Networks; ECCV 2014; arXiv:1311.2901"
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits per unit of a colour."""
        return over_rows(partial(changed_gradient, self.name, "Deconvolution", model), context.chunk, inputs, targets).sum(1, keepdim=True)


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient along paths on which every ReLU is active and every gradient positive."""

    name: ClassVar[str] = "guided-backprop"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Springenberg, Dosovitskiy, Brox, Riedmiller; Striving for Simplicity: The All Convolutional Net; ICLR Workshop 2015; arXiv:1412.6806"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits per unit of a colour."""
        return over_rows(partial(changed_gradient, self.name, "GuidedBackprop", model), context.chunk, inputs, targets).sum(1, keepdim=True)


@dataclass(frozen=True)
class GuidedGradCam:
    """Guided backpropagation where Grad-CAM sees evidence for the target."""

    layer: str | None = None

    name: ClassVar[str] = "guided-gradcam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra; "
        "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization; ICCV 2017; arXiv:1610.02391"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed: logits per unit of a colour times Grad-CAM's logits per feature-map pixel."""
        guided = over_rows(partial(changed_gradient, self.name, "GuidedBackprop", model), context.chunk, inputs, targets)
        maps, gradients = maps_and_gradients(model, inputs, targets, context.layer(self.layer, model), context.chunk)
        heat = (gradients.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
        return guided.sum(1, keepdim=True) * upsample(heat, inputs.shape)


def changed_gradient(name: str, method: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """(B, C, H, W) by captum's class of that name. Raises InvalidValue for a network that it has no meaning for."""
    from captum import attr

    network = Unrolled(model, is_relu)
    found = getattr(attr, method)(network).attribute(inputs, targets)
    advice = "Choose smoothgrad or integrated-gradients, which suit any network."
    if others := sorted(network.seen & OTHER_RECTIFIERS):
        raise InvalidValue(f"{name} changes the backward of ReLU, and this network also uses {', '.join(others)}.\n{advice}")
    if not network.taken:
        raise InvalidValue(f"{name} changes the backward of ReLU, and this network calls none.\n{advice}")
    return found
