"""For tests, ours and a plugin author's: a network small enough to work out by hand, and contexts to call a part with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench import contexts
from bench.interfaces import ArrayData, DatasetInfo, ExplainContext, Explained, Layer, MetricContext, StepContext

TWO_CHANNEL_IMAGE = torch.tensor([[[[1.0, -2.0], [3.0, 0.5]]]])  # (1, 1, 2, 2)


class TwoChannelNetwork(nn.Module):
    """Two feature maps, relu(x) and relu(-x), averaged to P and Q; logits (2P - Q, -P + 3Q).

    For `TWO_CHANNEL_IMAGE` the logits are (1.75, 0.375) and the softmax (0.798187, 0.201813).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[2.0, -1.0], [-1.0, 3.0]]))
        self.normalisation = Plain(1)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.flatten(self.pool(self.relu(self.conv(inputs))), 1))
        return logits

    @property
    def layers(self) -> list[Layer]:
        return [Layer("relu", self.relu)]


class Plain(nn.Module):
    """A normalisation that changes nothing: mean 0, standard deviation 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))


def dataset_info(num_classes: int = 2, image_size: tuple[int, int] = (2, 2), channels: int = 1, **changes: Any) -> DatasetInfo:
    """A `DatasetInfo` for tests."""
    values: dict[str, Any] = {
        "name": "test",
        "num_classes": num_classes,
        "class_names": tuple(f"class {number}" for number in range(num_classes)),
        "class_counts": (10,) * num_classes,
        "image_size": image_size,
        "fingerprint": "sha256:test",
        "licence": "none",
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    return DatasetInfo(**{**values, **changes})


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    """One generator per image, from the seed and its position."""
    return [contexts.generator(seed, position) for position in range(count)]


def explain_context(model: nn.Module, layers: Sequence[Layer], rows: int, info: DatasetInfo | None = None, **options: Any) -> ExplainContext:
    """A context whose target layers and stages are the given ones."""
    return contexts.explain_context(model, info or dataset_info(), layers, layers, generators(rows), **options)


def explain(
    model: nn.Module, explainer: Any, inputs: Tensor, targets: Tensor, layers: Sequence[Layer], info: DatasetInfo | None = None, **options: Any
) -> Tensor:
    """(B, 1, H, W): what the harness would get from this explainer."""
    return contexts.explain(model, explainer, inputs, targets, explain_context(model, layers, len(inputs), info, **options))


def step_context(
    model: nn.Module, layers: Sequence[Layer] = (), explainer: Any = None, info: DatasetInfo | None = None, **options: Any
) -> StepContext:
    """The context of one training step."""
    return contexts.step_context(model, info or dataset_info(), layers, layers, explainer, **options)


def explained(model: nn.Module, inputs: Tensor, attributions: Tensor | None = None, labels: Tensor | None = None, **extra: Any) -> Explained:
    """Test images with the model's predictions as targets."""
    with torch.no_grad():
        logits = model(inputs)
    predicted = logits.argmax(1)
    return Explained(inputs, predicted if labels is None else labels, torch.arange(len(inputs)), predicted, logits, attributions, **extra)


def metric_context(model: nn.Module, images: Explained, info: DatasetInfo | None = None, **options: Any) -> MetricContext:
    """The context of the metrics on one batch."""
    return contexts.metric_context(model, images, info or dataset_info(), generators(len(images)), **options)


class TinyNetwork(nn.Module):
    """Two stages of convolution, batch norm and ReLU, then pooling and a linear head; 3-channel images, seeded weights."""

    def __init__(self, num_classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU())
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(12, num_classes)
        self.normalisation = Plain(3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))

    def features(self, inputs: Tensor) -> Tensor:
        """The last stage's map (B, 12, H / 2, W / 2)."""
        maps: Tensor = self.second(self.first(inputs))
        return maps

    def head(self, maps: Tensor) -> Tensor:
        """Logits (B, K) from the last stage's map."""
        logits: Tensor = self.fc(torch.flatten(self.pool(maps), 1))
        return logits

    @property
    def layers(self) -> list[Layer]:
        return [Layer("first", self.first), Layer("second", self.second)]


def tiny_images(count: int = 6, size: int = 16, seed: int = 0) -> Tensor:
    """(N, 3, size, size) smooth random images in [0, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=contexts.generator("tiny images", seed))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)


def tiny_data(count: int = 64, num_classes: int = 4, size: int = 16, seed: int = 0) -> ArrayData:
    """Images whose class is the quarter that is bright; the mask is that quarter."""
    labels = torch.arange(count) % num_classes
    images = tiny_images(count, size, seed) * 0.5
    masks = torch.zeros(count, 1, size, size, dtype=torch.bool)
    half = size // 2
    for position, label in enumerate(labels.tolist()):
        top, left = half * (label // 2 % 2), half * (label % 2)
        masks[position, 0, top : top + half, left : left + half] = True
    images = torch.where(masks, images + 0.5, images)
    counts = tuple(torch.bincount(labels, minlength=num_classes).tolist())
    info = dataset_info(num_classes, (size, size), 3, name="tiny", fingerprint=f"sha256:tiny-{count}-{seed}", class_counts=counts, has_masks=True)
    return ArrayData(info, (images * 255).round().to(torch.uint8), labels, masks)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a part must leave as it found it."""
    return {
        "weights and buffers": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "mode": [module.training for module in model.modules()],
        "gradients": [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks) + len(module._backward_pre_hooks)
            for module in model.modules()
        ],
        "random state": torch.random.get_rng_state(),
    }


def changed(before: dict[str, Any], model: nn.Module) -> list[str]:
    """What is not as it was in the snapshot; an empty list is what one wants."""
    after = snapshot(model)
    return [name for name, value in before.items() if not _same(value, after[name])]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(_same(*pair) for pair in zip(first, second, strict=True))
    return bool(first == second)
