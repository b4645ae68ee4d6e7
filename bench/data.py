"""Data on its way to the network: selections of images, batches of [0, 1] tensors, crops and flips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contexts import generator
from bench.interfaces import ArrayData, DatasetInfo, ImageData, Sample

WHITE = 255.0  # uint8 storage


@dataclass(frozen=True)
class Images:
    """Test images as the model sees them: inputs (B, C, H, W), labels (B,) or (B, K), indices (B,), masks and boxes as in `Explained`."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    masks: Tensor | None
    boxes: list[Tensor] | None


def labels_of(data: ImageData) -> Tensor:
    """(N,) or (N, K) labels of a whole dataset; datasets that keep a `labels` tensor are not decoded for it."""
    labels = getattr(data, "labels", None)
    if labels is not None:
        return torch.as_tensor(labels)
    return torch.stack([torch.as_tensor(data[index].label) for index in range(len(data))])


def select(labels: Tensor, count: int | None, *seed: object) -> Tensor:
    """Positions of a seeded selection, in ascending order: as many of each class as can be, or a plain draw for multi-label data."""
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    shuffled = torch.randperm(len(labels), generator=generator("selection", *seed))
    if labels.ndim == 1:
        shuffled = shuffled[_rank_in_class(labels[shuffled]).argsort(stable=True)]
    return shuffled[:count].sort().values


def _rank_in_class(labels: Tensor) -> Tensor:
    """(N,) how many earlier items have the same label."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks


def fetch(data: ImageData, indices: Tensor, size: tuple[int, int] | None = None) -> Images:
    """Some items of a dataset; images in [0, 1], resized (antialiased bilinear) where the model has another size.

    All masks of an image become their union, but for multi-label data with one per class; boxes are scaled with the image.
    """
    if isinstance(data, ArrayData):
        images, labels = data.images[indices], data.labels[indices]
        masks = None if data.masks is None else _of_the_labelled(data.masks[indices], data.info)
        return _resized(_unit(images), labels, indices, masks, None, size)
    samples = [data[int(index)] for index in indices]
    images = torch.stack([_unit(sample.image) for sample in samples])
    labels = torch.stack([torch.as_tensor(sample.label) for sample in samples])
    masks = None if samples[0].masks is None else torch.cat([_masks_of(sample, data.info) for sample in samples])
    known = any(sample.boxes is not None for sample in samples)
    boxes = [torch.zeros(0, 5) if sample.boxes is None else sample.boxes for sample in samples] if known else None
    return _resized(images, labels, indices, masks, boxes, size)


def _masks_of(sample: Sample, info: DatasetInfo) -> Tensor:
    assert sample.masks is not None
    return _of_the_labelled(sample.masks.unsqueeze(0), info)


def _of_the_labelled(masks: Tensor, info: DatasetInfo) -> Tensor:
    """(B, 1, H, W) the union of masks (B, M, H, W); the masks themselves where there is one per class of multi-label data."""
    return masks if info.multi_label and masks.shape[1] == info.num_classes else masks.any(1, keepdim=True)


def _unit(images: Tensor) -> Tensor:
    return images.float().div_(WHITE) if images.dtype == torch.uint8 else images.float()


def _resized(
    inputs: Tensor, labels: Tensor, indices: Tensor, masks: Tensor | None, boxes: list[Tensor] | None, size: tuple[int, int] | None
) -> Images:
    have = tuple(inputs.shape[-2:])
    if size is None or have == tuple(size):
        return Images(inputs, labels, indices, masks, boxes)
    inputs = F.interpolate(inputs, size=size, mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)
    if masks is not None:
        masks = F.interpolate(masks.float(), size=size, mode="nearest-exact").bool()
    if boxes is not None:
        scale = torch.tensor([size[1] / have[1], size[0] / have[0]] * 2)
        boxes = [torch.cat([box[:, :4] * scale, box[:, 4:]], 1) for box in boxes]
    return Images(inputs, labels, indices, masks, boxes)


def batches(data: ImageData, indices: Tensor, batch_size: int, size: tuple[int, int] | None, device: str) -> Iterator[Images]:
    """The chosen items in order, `batch_size` at a time, on the device."""
    for part in indices.split(batch_size):
        images = fetch(data, part, size)
        masks = None if images.masks is None else images.masks.to(device)
        boxes = None if images.boxes is None else [box.to(device) for box in images.boxes]
        yield Images(images.inputs.to(device), images.labels.to(device), part, masks, boxes)


@dataclass(frozen=True)
class Preparation:
    """A seeded part of the training images, for explainers that look at data before they explain."""

    data: ImageData
    indices: Tensor
    size: tuple[int, int] | None
    device: str

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs (B, C, H, W), labels) of `size` images at a time."""
        for images in batches(self.data, self.indices, size, self.size, self.device):
            yield images.inputs, images.labels


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `padding` pixels (black comes in at the border, as in torchvision) and mirror every other one."""
    rows, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, rows), generator=generator)
    mirrored = torch.rand(rows, generator=generator) < 0.5 if flip else torch.zeros(rows, dtype=torch.bool)
    if padding:
        padded = F.pad(images, [padding] * 4)
        y = (offsets[0].view(-1, 1) + torch.arange(height)).to(images.device)  # (B, H)
        x = (offsets[1].view(-1, 1) + torch.arange(width)).to(images.device)  # (B, W)
        row = torch.arange(rows, device=images.device).view(-1, 1, 1)
        images = padded.permute(0, 2, 3, 1)[row, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(B, K) targets: 0 and 1; multi-label targets pass through."""
    return labels.float() if labels.ndim == 2 else F.one_hot(labels, num_classes).float()


def class_counts(labels: Tensor, num_classes: int) -> tuple[int, ...]:
    """How many images of each class there are."""
    counts: Sequence[int] = (labels.sum(0) if labels.ndim == 2 else torch.bincount(labels, minlength=num_classes)).tolist()
    return tuple(int(count) for count in counts)
