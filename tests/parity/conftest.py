"""What the parity tests share: networks as their plugins build them, with images and the classes they see in them.

Two have published weights and look at photographs, from the folder that BENCH_TEST_DATA names; where it names none, their
tests are skipped. Two have random weights and need no file.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from bench import testing
from bench.interfaces import Layer
from bench_plugins.cifar_resnets import CifarResNet
from bench_plugins.timm_models import Timm
from bench_plugins.torchvision_models import Vgg

TEST_DATA = os.environ.get("BENCH_TEST_DATA")
SIDE = 32  # Of an image in CIFAR's tars, where a class is one strip of them.
PER_CLASS = 3


class Subject(NamedTuple):
    """A network, its target layer last among `layers`, and images (B, 3, H, W) with the classes (B,) that it sees in them."""

    model: nn.Module
    layers: Sequence[Layer]
    images: Tensor
    targets: Tensor
    tokens_to_map: Callable[[Tensor], Tensor] | None = None  # For libraries, which cannot ask the model.

    def first(self, count: int) -> "Subject":
        return self._replace(images=self.images[:count], targets=self.targets[:count])

    @property
    def normalised(self) -> Tensor:
        """The images in model space, where zero is the model's mean colour: what `model.network` takes."""
        return self.model.normalisation(self.images)


def built(part, classes: int, images: Tensor, loud: float = 1.0, tokens_to_map=None) -> Subject:
    """`loud` multiplies the last linear layer: an untaught network hardly tells its classes apart, and its gradients vanish."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = part.build(testing.dataset_info(classes, tuple(images.shape[2:]), 3)).eval().requires_grad_(False)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    linear.weight.mul_(loud)
    return Subject(model, part.stages(model), images, model(images).argmax(1), tokens_to_map)


@pytest.fixture(scope="session")
def test_data() -> Path:
    if not TEST_DATA:
        pytest.skip("BENCH_TEST_DATA names no folder of published weights and images")
    return Path(TEST_DATA).expanduser()


@pytest.fixture(scope="session")
def cifar100(test_data) -> tuple[Tensor, Tensor]:
    """Test images (300, 3, 32, 32) and their labels (300,): the first of each class, then the second, then the third."""
    classes = []
    with tarfile.open(test_data / "cifar100/cifar100_test.tar") as tar:
        for name in sorted(tar.getnames()):  # By the alphabet, as the labels are numbered.
            pixels = picture(tar, name)[: PER_CLASS * SIDE]
            classes.append(pixels.view(PER_CLASS, SIDE, SIDE, 3).permute(0, 3, 1, 2))
    images = torch.stack(classes, 1).flatten(0, 1) / 255
    return images, torch.arange(len(classes)).repeat(PER_CLASS)


@pytest.fixture(scope="session")
def resnet56(test_data, cifar100) -> Subject:
    """ResNet-56 of chenyaofo, 72.63 % on CIFAR-100, and 64 test images of as many classes."""
    part = CifarResNet(depth=56, weights=test_data / "weights/cifar100_resnet56-f2eff4c8.pt")
    return built(part, 100, cifar100[0][:64])


@pytest.fixture(scope="session")
def efficientnet(test_data) -> Subject:
    """EfficientNet-Lite0 and four photographs of ImageNet's validation images."""
    rows = json.loads((test_data / "imagenet_val1300/boxes.json").read_text(encoding="utf-8"))["images"][:4]
    with tarfile.open(test_data / "imagenet_val1300/images.tar") as tar:
        pictures = torch.stack([picture(tar, row["file"]).permute(2, 0, 1) / 255 for row in rows])
    part = Timm("tf_efficientnet_lite0", weights=test_data / "weights/efficientnet-lite0-57934424.pth")
    return built(part, 1000, F.interpolate(pictures, (224, 224), mode="bilinear", antialias=True))


@pytest.fixture(scope="session")
def vit() -> Subject:
    """An untaught ViT-tiny: 14 x 14 patches behind a class token."""
    return built(Timm("vit_tiny_patch16_224"), 10, testing.tiny_images(2, 224), 10, lambda tokens: patches(tokens, 14))


@pytest.fixture(scope="session")
def small_vit() -> Subject:
    """The same for an image of 4 x 4 patches: quick enough to be asked about each of its 192 channels."""
    return built(Timm("vit_tiny_patch16_224", input_size=64), 10, testing.tiny_images(1, 64), 10, lambda tokens: patches(tokens, 4))


@pytest.fixture(scope="session")
def vgg() -> Subject:
    """An untaught VGG-16 in its large form, with three linear layers behind the maps."""
    return built(Vgg(stem="large"), 10, testing.tiny_images(2, 64), 100)


@pytest.fixture
def only_in() -> Callable[[str, str], None]:
    """Skips a test of what is wrong with one version of a library where another is installed: it may be mended there."""

    def check(library: str, version: str) -> None:
        if (installed := metadata.version(library)) != version:
            pytest.skip(f"this was seen in {library} {version}, and {installed} is installed")

    return check


def picture(tar: tarfile.TarFile, name: str) -> Tensor:
    """(H, W, 3) of 0 to 255."""
    file = tar.extractfile(name)
    assert file is not None
    return torch.from_numpy(np.array(Image.open(io.BytesIO(file.read())).convert("RGB")))


def patches(tokens: Tensor, side: int) -> Tensor:
    """(B, C, side, side) of a class token and its patches, row by row, as both libraries' manuals write it."""
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)
