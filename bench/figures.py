"""Figures: a grid of test images with their maps, one column for each augmenter and explainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]


@dataclass(frozen=True)
class Column:
    """The maps (N, H, W) of one explainer on one network, and what is written above and below them."""

    title: str
    maps: Picture
    captions: Sequence[str] = ()


def grid(images: Picture, names: Sequence[str], columns: Sequence[Column], path: Path, title: str) -> None:
    """Draw images (N, H, W, 3) in [0, 1] down the side and each column's maps over them, and write a PNG.

    Each map is stretched to its own range for the eye; numbers are never taken from pictures.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, wide = len(images), len(columns) + 1
    figure, axes = pyplot.subplots(rows, wide, figsize=(1.25 * wide + 0.4, 1.32 * rows + 0.9), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for row in range(rows):
        _show(axes[row][0], images[row], None, "image" if row == 0 else "", names[row])
        for number, column in enumerate(columns, 1):
            caption = column.captions[row] if column.captions else ""
            _show(axes[row][number], images[row], column.maps[row], column.title if row == 0 else "", caption)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def stretched(values: Picture) -> Picture:
    """One map to [0, 1]; a constant map to 0."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _show(axis: object, image: Picture, values: Picture | None, title: str, caption: str) -> None:
    grey = image if values is None else np.repeat(image.mean(2, keepdims=True), 3, axis=2)
    axis.imshow(grey, interpolation="nearest")  # type: ignore[attr-defined]
    if values is not None:
        axis.imshow(stretched(values), cmap="inferno", alpha=0.6, vmin=0, vmax=1, interpolation="nearest")  # type: ignore[attr-defined]
    axis.set_xticks([])  # type: ignore[attr-defined]
    axis.set_yticks([])  # type: ignore[attr-defined]
    if title:
        axis.set_title(title, fontsize=7)  # type: ignore[attr-defined]
    if caption:
        axis.set_xlabel(caption, fontsize=6, labelpad=2)  # type: ignore[attr-defined]
