"""A small residual network for small images, quick to train on a processor: the default model.

Paper: none; residual blocks as in He et al., far fewer of them.

Choices: a 3x3 stem of stride 2, then three stages of one block of two convolutions (`width`, 2 and 4 times as many channels),
then the mean of each last map and one linear layer, so that CAM is exact. Only the second stage halves the maps again: the 8x8 maps
of a 32x32 image are fine enough to say where something is. Every rectifier is a module of its own and nothing is done in place.

Checked against: its shapes and its number of parameters.

Cost: 78 thousand parameters and 6 million multiplications per 32x32 image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import DatasetInfo, WeightsFile
from bench_plugins._networks import (
    IMAGENET,
    BasicBlock,
    Classifier,
    Colours,
    NetworkPart,
    SplitClassifier,
    averaged,
    load_weights,
    projection,
    read_weights,
)


class MiniResNet(nn.Module):
    """Three blocks behind a stem, for normalised images (B, 3, H, W)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = BasicBlock(width, width, 1, None)
        self.layer2 = BasicBlock(width, 2 * width, 2, projection(width, 2 * width, 2))
        self.layer3 = BasicBlock(2 * width, 4 * width, 1, projection(2 * width, 4 * width, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        stem = self.relu(self.bn1(self.conv1(inputs)))
        return averaged(self, self.layer3(self.layer2(self.layer1(stem))))


@dataclass(frozen=True)
class ResNetMini(NetworkPart):
    """A small residual network for small images, quick to train on a processor."""

    width: Annotated[int, Field(ge=4)] = 16
    normalisation: Literal["dataset", "imagenet"] = "dataset"
    weights: WeightsFile = None

    name: ClassVar[str] = "resnet-mini"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"
    default: ClassVar[bool] = True

    def build(self, info: DatasetInfo) -> Classifier:
        colours = IMAGENET if self.normalisation == "imagenet" else Colours.of(info)
        model = SplitClassifier(MiniResNet(self.width, info.num_classes), colours, ("layer1", "layer2", "layer3"), averaged)
        if self.weights is not None:
            load_weights(model, read_weights(self.weights), self.weights)
        return model


@hookimpl
def register_models(register: Register) -> None:
    register(ResNetMini)
