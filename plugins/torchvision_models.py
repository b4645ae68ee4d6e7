"""ResNet-18, ResNet-50 and VGG-16 as torchvision builds them, with a small-image form for images of at most 64 pixels.

Paper: the residual networks (tables 1; ResNet-50 with the stride in its 3x3 convolutions, as torchvision has it) and VGG's configuration D.

Choices: `stem = "auto"` takes the small form where neither side of the images exceeds 64 pixels. A small ResNet begins with a
3x3 convolution of stride 1 and has no max pooling; a small VGG leaves out its last two poolings and puts one linear layer behind a
global average, so that both end in maps of an eighth of the image (4x4 for 32x32). VGG's stages end before each pooling. Plain VGG
has no batch norm and trains slowly from a random start; `vgg16-bn` has it. `normalisation = "auto"` takes ImageNet's colours with
weights and the dataset's without; weights written by bench bring their own. Torchvision's blocks use one rectifier two or three
times, and in place; here each use is a module of its own, not in place. All weights keep torchvision's names, so its files load
into the large form.

Checked against: torchvision's own networks, whose weights load here and give the same logits.

Cost: per image of 224x224, 1.8 (ResNet-18), 4.1 (ResNet-50) and 15.5 (VGG-16) thousand million multiplications; of 32x32, 0.56, 1.3 and 0.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torchvision.models import resnet, vgg

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import DatasetInfo, WeightsFile
from bench_plugins._networks import (
    IMAGENET,
    Addition,
    Classifier,
    Colours,
    NetworkPart,
    SplitClassifier,
    averaged,
    load_weights,
    read_weights,
    without_in_place,
)

SMALL = 64  # Pixels.
RESNET_PAPER = "Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun; Deep Residual Learning for Image Recognition; CVPR 2016; arXiv:1512.03385"
VGG_PAPER = "Karen Simonyan, Andrew Zisserman; Very Deep Convolutional Networks for Large-Scale Image Recognition; ICLR 2015; arXiv:1409.1556"


class BasicBlock(resnet.BasicBlock):
    """Torchvision's block with a second rectifier instead of a second use of the first."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.add, self.relu2 = Addition(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(residual, x if self.downsample is None else self.downsample(x)))


class Bottleneck(resnet.Bottleneck):
    """Torchvision's block with three rectifiers instead of three uses of one."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.add, self.relu2, self.relu3 = Addition(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.relu2(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu3(self.add(self.bn3(self.conv3(narrow)), x if self.downsample is None else self.downsample(x)))


class SmallVgg(nn.Module):
    """VGG's configuration D without its last two poolings, then a global average and one linear layer."""

    def __init__(self, num_classes: int, batch_norm: bool) -> None:
        super().__init__()
        configuration: list[str | int] = list(vgg.cfgs["D"])
        for _ in range(2):
            del configuration[_last_pooling(configuration)]
        self.features = vgg.make_layers(configuration, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return vgg_tail(self, self.features(inputs))


def _last_pooling(configuration: list[str | int]) -> int:
    return max(position for position, entry in enumerate(configuration) if entry == "M")


def resnet_network(block: type[nn.Module], blocks: list[int], small: bool, num_classes: int) -> nn.Module:
    network = resnet.ResNet(block, blocks, num_classes=num_classes)
    if small:
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


def vgg_network(batch_norm: bool, small: bool, num_classes: int) -> nn.Module:
    if small:
        return SmallVgg(num_classes, batch_norm)
    return vgg.VGG(vgg.make_layers(vgg.cfgs["D"], batch_norm), num_classes=num_classes)


def vgg_stages(network: nn.Module) -> list[str]:
    """The last rectifier before each pooling, and the last of all."""
    before = [position - 1 for position, module in enumerate(network.features) if isinstance(module, nn.MaxPool2d)]
    ends = dict.fromkeys([*before, _last_rectifier(network)])
    return [f"features.{position}" for position in ends]


def vgg_tail(network: nn.Module, maps: Tensor) -> Tensor:
    """From the last rectifier's maps on, with the pooling behind it if there is one."""
    behind = network.features[_last_rectifier(network) + 1 :]
    return network.classifier(network.avgpool(behind(maps)).flatten(1))


def _last_rectifier(network: nn.Module) -> int:
    return max(position for position, module in enumerate(network.features) if isinstance(module, nn.ReLU))


@dataclass(frozen=True)
class _Torchvision(NetworkPart):
    """What the parts of this file have in common."""

    stem: Literal["auto", "small", "large"] = "auto"
    normalisation: Literal["auto", "dataset", "imagenet"] = "auto"
    weights: WeightsFile = None

    version: ClassVar[int] = 1
    claim: ClassVar[str] = "formula verified"

    def _small(self, info: DatasetInfo) -> bool:
        return self.stem == "small" or (self.stem == "auto" and max(info.image_size) <= SMALL)

    def _classifier(self, network: nn.Module, stages: list[str], tail: Callable[[nn.Module, Tensor], Tensor], info: DatasetInfo) -> Classifier:
        imagenet = self.normalisation == "imagenet" or (self.normalisation == "auto" and self.weights is not None)
        model = SplitClassifier(without_in_place(network), IMAGENET if imagenet else Colours.of(info), stages, tail)
        if self.weights is not None:
            load_weights(model, read_weights(self.weights), self.weights)
        return model


@dataclass(frozen=True)
class ResNet(_Torchvision):
    """Torchvision's residual network of 18 or 50 layers."""

    depth: Literal[18, 50] = 18

    name: ClassVar[str] = "resnet18"
    paper: ClassVar[str] = RESNET_PAPER

    def build(self, info: DatasetInfo) -> Classifier:
        block, blocks = (BasicBlock, [2, 2, 2, 2]) if self.depth == 18 else (Bottleneck, [3, 4, 6, 3])
        network = resnet_network(block, blocks, self._small(info), info.num_classes)
        return self._classifier(network, ["layer1", "layer2", "layer3", "layer4"], averaged, info)


@dataclass(frozen=True)
class Vgg(_Torchvision):
    """Torchvision's VGG of 16 layers, with or without batch norm."""

    batch_norm: bool = False

    name: ClassVar[str] = "vgg16"
    paper: ClassVar[str] = VGG_PAPER

    def build(self, info: DatasetInfo) -> Classifier:
        network = vgg_network(self.batch_norm, self._small(info), info.num_classes)
        return self._classifier(network, vgg_stages(network), vgg_tail, info)


@hookimpl
def register_models(register: Register) -> None:
    register(ResNet)
    register(ResNet, name="resnet50", depth=50)
    register(Vgg)
    register(Vgg, name="vgg16-bn", batch_norm=True)
