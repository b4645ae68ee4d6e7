"""The thin residual networks made for CIFAR: a 3x3 stem and three stages of 16, 32 and 64 channels; 20, 32, 44 or 56 layers.

Paper: section 4.2 of the residual networks' paper; 6n + 2 layers, n blocks of two 3x3 convolutions in a stage.

Choices: two families are in use and files of both are read. Where the maps shrink, the shortcut of the first (`padding`, the
paper's option A) takes every second pixel and pads the new channels with zeros; that of the second (`projection`, option B) is a 1x1
convolution with batch norm. `shortcut = "auto"` takes the one that the weights were made for, and `padding` without weights.
`normalisation = "auto"` takes the dataset's colours without weights; with weights it takes what their family was trained with,
ImageNet's colours for `padding`, and the authors' CIFAR-10 or CIFAR-100 colours, by the number of classes, for `projection`.
Weights written by bench bring their own. Both resolved choices are in the key. Every rectifier is a module of its own and nothing is done in place.

Checked against: the number of layers and of parameters, the padding shortcut by hand, files in both layouts. Published weights
reach the accuracy they were published with: ResNet-56 of chenyaofo 72.63 % of CIFAR-100's test images.

Cost: 41 million multiplications per 32x32 image for 20 layers, 126 million for 56.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import DatasetInfo, WeightsFile
from bench.keys import file_digest
from bench_plugins._networks import (
    IMAGENET,
    Arithmetic,
    BasicBlock,
    Classifier,
    Colours,
    NetworkPart,
    SplitClassifier,
    averaged,
    from_bench,
    load_weights,
    projection,
    read_weights,
)

Shortcut = Literal["padding", "projection"]

PAPER = "Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun; Deep Residual Learning for Image Recognition; CVPR 2016; arXiv:1512.03385"
COLOURS = {
    "imagenet": IMAGENET,
    "cifar10": Colours((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Colours((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}
PROJECTION_COLOURS = {10: "cifar10", 100: "cifar100"}
STAGES = ("layer1", "layer2", "layer3")


class PaddedShortcut(Arithmetic):
    """Every second pixel, and zeros for the channels that are new, half before and half after: no parameters."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.each_side = new_channels // 2

    def forward(self, inputs: Tensor) -> Tensor:
        return F.pad(inputs[:, :, ::2, ::2], (0, 0, 0, 0, self.each_side, self.each_side))


class ThinResNet(nn.Module):
    """6n + 2 layers for normalised images (B, 3, H, W)."""

    def __init__(self, depth: int, shortcut: Shortcut, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = stage(16, 16, blocks, shortcut)
        self.layer2 = stage(16, 32, blocks, shortcut)
        self.layer3 = stage(32, 64, blocks, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        stem = self.relu(self.bn1(self.conv1(inputs)))
        return averaged(self, self.layer3(self.layer2(self.layer1(stem))))


def stage(inputs: int, outputs: int, blocks: int, shortcut: Shortcut) -> nn.Sequential:
    """Blocks of one resolution; the first halves it where the number of channels grows."""
    if inputs == outputs:
        first = BasicBlock(inputs, outputs, 1, None)
    else:
        first = BasicBlock(inputs, outputs, 2, PaddedShortcut(outputs - inputs) if shortcut == "padding" else projection(inputs, outputs, 2))
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, None) for _ in range(blocks - 1)))


@dataclass(frozen=True)
class CifarResNet(NetworkPart):
    """A thin residual network with a 3x3 stem, for images of 32x32."""

    depth: Literal[20, 32, 44, 56] = 20
    shortcut: Literal["auto", "padding", "projection"] = "auto"
    normalisation: Literal["auto", "dataset", "cifar10", "cifar100", "imagenet"] = "auto"
    weights: WeightsFile = None

    name: ClassVar[str] = "cifar-resnet20"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    claim: ClassVar[str] = "formula verified"

    def build(self, info: DatasetInfo) -> Classifier:
        tensors = self._tensors()
        colours = COLOURS.get(self._normalisation(tensors), Colours.of(info))
        network = ThinResNet(self.depth, self._shortcut(tensors), info.num_classes)
        model = SplitClassifier(network, colours, STAGES, averaged)
        if self.weights is not None:
            load_weights(model, tensors, self.weights)
        return model

    def identity(self) -> dict[str, Any]:
        """What "auto" stands for, and the content of the weights."""
        tensors = self._tensors()
        return {
            "depth": self.depth,
            "shortcut": self._shortcut(tensors),
            "normalisation": self._normalisation(tensors),
            "weights": None if self.weights is None else file_digest(self.weights),
        }

    def _tensors(self) -> Mapping[str, Tensor]:
        return {} if self.weights is None else read_weights(self.weights)

    def _shortcut(self, tensors: Mapping[str, Tensor]) -> Shortcut:
        if self.shortcut != "auto":
            return self.shortcut
        return "projection" if any(".downsample." in name for name in tensors) else "padding"

    def _normalisation(self, tensors: Mapping[str, Tensor]) -> str:
        if from_bench(tensors):
            return "weights"
        if self.normalisation != "auto" or not tensors:
            return self.normalisation.replace("auto", "dataset")
        if self._shortcut(tensors) == "padding":
            return "imagenet"
        return PROJECTION_COLOURS.get(len(tensors["fc.bias"]) if "fc.bias" in tensors else 0, "dataset")


@hookimpl
def register_models(register: Register) -> None:
    register(CifarResNet)
    for depth in (32, 44, 56):
        register(CifarResNet, name=f"cifar-resnet{depth}", depth=depth)
