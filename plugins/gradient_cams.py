"""Relatives of Grad-CAM: the same maps A and gradients g = dy/dA of the target's logit y, put together in other ways.

Paper: `gradcam++` weighs channel k by w_k = sum over pixels of alpha · ReLU(g), alpha = g² / (2 g² + (sum of A_k) · g³), and
0 where g is 0. `xgradcam` weighs by w_k = (sum of g A_k) / (sum of A_k). `layercam` sums ReLU(g) · A_k, `hirescam` sums
g · A_k, both pixel by pixel without a weight per channel. `cam` takes for w_k the weight of channel k for the target in
a linear classifier behind global average pooling. All upsample the summed map bilinearly.

Choices: `gradcam++`, `xgradcam` and `layercam` end with a ReLU, `hirescam` and `cam` do not (`relu` says otherwise).
`gradcam++` leaves out the factor exp(y) of the gradients of exp(y): it is one positive number per image. The authors' code
makes alpha add up to 1 over the pixels with a positive gradient, which the equations do not; here it is left as it is.
`xgradcam` gives no weight to a channel whose activations add up to zero. `cam` looks for the linear layer by itself and
compares pooling and that layer with the logits; a network that is built otherwise is refused.

Checked against: a two-channel network worked out by hand; `cam` against h·w times Grad-CAM; the sum of the unclamped `xgradcam`
against the sum of g A. On ResNet-56, EfficientNet-Lite0, ViT-tiny and VGG-16, to 1e-4 of the map's largest value: `xgradcam` and
`layercam` against pytorch-grad-cam (after its rescaling) and torchcam, `hirescam` against pytorch-grad-cam (with the ReLU) and captum
(without), `cam` against torchcam, which alone has it. `gradcam++` is compared there with its formula in double precision, because both
libraries compute something else: pytorch-grad-cam adds 1e-6 to the denominator of alpha, which counts beside small gradients (.02 of a
rescaled map of ResNet-56; none where gradients are large, and there the two agree); torchcam 0.5.0 divides a copy, so that its weight
is the sum of ReLU(g)³.

Cost: one forward; one backward that ends at the layer, and none for `cam`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import hookimpl
from bench.errors import InvalidValue
from bench.interfaces import ExplainContext
from bench_plugins._maps import logits_and_maps, maps_and_gradients, upsample


@dataclass(frozen=True)
class GradientCam:
    """What the methods share; each says in `combine` how maps and gradients make one map."""

    layer: str | None = None
    relu: bool = True

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W); zero or above with the ReLU."""
        maps, gradients = maps_and_gradients(model, inputs, targets, context.layer(self.layer, model), context.chunk)
        heat = self.combine(maps, gradients)
        return upsample(heat.relu() if self.relu else heat, inputs.shape)

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """(B, 1, h, w) from (B, C, h, w) twice."""
        raise NotImplementedError


@dataclass(frozen=True)
class GradCamPlusPlus(GradientCam):
    """Positive gradients weighed by how alone they stand, so that several objects of one class all show."""

    name: ClassVar[str] = "gradcam++"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Chattopadhyay, Sarkar, Howlader, Balasubramanian; "
        "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional Networks; WACV 2018; arXiv:1710.11063"
    )
    claim: ClassVar[str] = "formula verified"

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        # g² cancels in alpha. Left in, it would round to zero for the small gradients of large networks.
        denominator = 2 + maps.sum((2, 3), keepdim=True) * gradients
        alpha = torch.where(denominator == 0, 0, 1 / denominator)  # (B, C, h, w)
        weights = (alpha * gradients.relu()).sum((2, 3), keepdim=True)  # (B, C, 1, 1)
        return (weights * maps).sum(1, keepdim=True)


@dataclass(frozen=True)
class XGradCam(GradientCam):
    """Gradients averaged with the activations as weights: the map adds up to the sum of gradient times activation."""

    name: ClassVar[str] = "xgradcam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Fu, Hu, Dong, Guo, Gao, Li; Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs; BMVC 2020; arXiv:2008.02312"
    )
    claim: ClassVar[str] = "formula verified"

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        total = maps.sum((2, 3), keepdim=True)
        products = (gradients * maps).sum((2, 3), keepdim=True)
        weights = torch.where(total == 0, 0, products / total)  # (B, C, 1, 1)
        return (weights * maps).sum(1, keepdim=True)


@dataclass(frozen=True)
class LayerCam(GradientCam):
    """Each activation times its own positive gradient; sharp enough for early layers."""

    name: ClassVar[str] = "layercam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Jiang, Zhang, Hou, Cheng, Wei; LayerCAM: Exploring Hierarchical Class Activation Maps for Localization; IEEE TIP 2021"
    claim: ClassVar[str] = "formula verified"

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        return (gradients.relu() * maps).sum(1, keepdim=True)


@dataclass(frozen=True)
class HiResCam(GradientCam):
    """Each activation times its own gradient: shows only places that the network used."""

    relu: bool = False

    name: ClassVar[str] = "hirescam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Draelos, Carin; Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks; arXiv 2020; arXiv:2011.08891"
    )
    claim: ClassVar[str] = "formula verified"

    def combine(self, maps: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * maps).sum(1, keepdim=True)


@dataclass(frozen=True)
class Cam:
    """Feature maps weighed by the linear classifier behind global average pooling; other networks are refused."""

    layer: str | None = None
    relu: bool = False

    name: ClassVar[str] = "cam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Zhou, Khosla, Lapedriza, Oliva, Torralba; Learning Deep Features for Discriminative Localization; CVPR 2016; arXiv:1512.04150"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W), whose mean before upsampling is the target's logit without the bias."""
        layer = context.layer(self.layer, model)
        logits, maps = logits_and_maps(model, inputs, layer, context.chunk)
        classifier = linear_classifier(model, maps, logits, layer.name)
        weights = classifier.weight[targets][:, :, None, None]  # (B, C, 1, 1)
        heat = (weights * maps).sum(1, keepdim=True)
        return upsample(heat.relu() if self.relu else heat, inputs.shape)


def linear_classifier(model: nn.Module, maps: Tensor, logits: Tensor, layer: str) -> nn.Linear:
    """The linear layer that makes these logits of the averaged maps. Raises InvalidValue where none does."""
    averages = maps.mean((2, 3))  # (B, C)
    for module in model.modules():
        if isinstance(module, nn.Linear) and (module.in_features, module.out_features) == (averages.shape[1], logits.shape[1]):
            error = (F.linear(averages, module.weight, module.bias) - logits).abs().amax()
            if error <= 1e-2 * logits.abs().amax():  # Loose enough for TF32; another form of network is far off.
                return module
    raise InvalidValue(
        f"cam needs a network that ends in global average pooling and one linear layer, and behind layer '{layer}' this one does not.\n"
        "Choose gradcam, which gives the same map for such networks and takes any other, or name the layer before the pooling."
    )


@hookimpl
def register_explainers(register: Any) -> None:
    for factory in (GradCamPlusPlus, XGradCam, LayerCam, HiResCam, Cam):
        register(factory)
