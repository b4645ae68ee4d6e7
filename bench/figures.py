"""Figures: a grid of test images with their maps, one column for each augmenter and explainer; and one photograph with its maps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]

LETTERS = 18  # Of a title above a small image, before it goes on in the next line.
ACROSS = 5  # Panels side by side before the next row begins.
INK, FAINT = "#1f2328", "#6e7781"
EVIDENCE, BOTH_SIGNS = ("inferno", "least", "most"), ("RdBu_r", "against", "for")  # A scale of colours, and its two ends.
COVER = 0.68  # What the strongest place of a map hides of the photograph.
STRONG = 99.5  # The percentile at which a colour is at its fullest: one bright pixel is not to darken all others.
SIGNED = 0.02  # Less than this part of the largest value below zero is rounding.


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


@dataclass(frozen=True)
class Overlay:
    """One map (H, W) of a photograph, and what is written above and below it."""

    title: str
    values: Picture
    caption: str = ""


def side_by_side(photograph: Picture, classes: Sequence[tuple[str, float]], overlays: Sequence[Overlay], path: Path, title: str) -> None:
    """Draw a photograph (h, w, 3) in [0, 1] with the likeliest classes, beside it each map over the photograph in grey; write a PNG.

    A map without negative values is stretched from its least to its largest, one with both signs about zero; a map may have
    another number of pixels than the photograph.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = len(overlays) + 1
    rows = -(-panels // ACROSS)
    wide = -(-panels // rows)
    height, width = photograph.shape[:2]
    figure, axes = pyplot.subplots(
        rows, wide, figsize=(2.3 * wide + 0.2, (2.3 * height / width + 1.15) * rows + 0.35), squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=11, color=INK, x=0.012, ha="left", weight="bold")
    for axis in axes.flat:
        axis.set_axis_off()
    first, *others = axes.flat
    first.imshow(photograph)
    first.set_title("photograph", fontsize=9, color=INK)
    _bars(first, classes)
    for axis, overlay in zip(others, overlays, strict=False):
        _lay_over(axis, photograph, overlay)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
    pyplot.close(figure)


def _bars(axis: Any, classes: Sequence[tuple[str, float]]) -> None:
    """The probabilities of the likeliest classes, below the photograph."""
    bars = axis.inset_axes((0, -0.12 * len(classes) - 0.04, 1, 0.12 * len(classes)))
    for row, (name, share) in enumerate(classes):
        bars.barh(-row, share, height=0.82, color="#f7c59f" if row == 0 else "#e6e8eb")
        bars.text(0.015, -row, name if len(name) < 24 else name[:23] + "…", fontsize=7.5, color=INK, va="center")
        bars.text(0.99, -row, f"{share:.1%}", fontsize=7.5, color=INK if row == 0 else FAINT, va="center", ha="right")
    bars.set_xlim(0, 1)
    bars.set_axis_off()


def _lay_over(axis: Any, photograph: Picture, overlay: Overlay) -> None:
    """A map over the grey photograph: the stronger, the less of the photograph shows through."""
    grey = np.repeat(photograph.mean(2, keepdims=True), 3, axis=2)
    axis.imshow(0.25 + 0.7 * grey, vmin=0, vmax=1)
    place, strength, scale = coloured(overlay.values)
    colours, low, high = scale
    height, width = photograph.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(place, cmap=colours, alpha=COVER * strength, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
    axis.set_title(overlay.title, fontsize=9, color=INK)
    bar = axis.inset_axes((0.25, -0.075, 0.5, 0.025))
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto")
    bar.set_axis_off()
    for x, end, side in ((0.22, low, "right"), (0.78, high, "left")):
        axis.text(x, -0.0625, end, transform=axis.transAxes, fontsize=7, color=FAINT, ha=side, va="center")
    axis.text(0.5, -0.11, overlay.caption, transform=axis.transAxes, fontsize=7.5, color=FAINT, ha="center", va="top")


def coloured(values: Picture) -> tuple[Picture, Picture, tuple[str, str, str]]:
    """A map's place on its scale of colours and its strength, both in [0, 1], and the scale: for maps of both signs one with a middle."""
    largest = float(np.percentile(np.abs(values), STRONG)) or float(np.abs(values).max())
    if largest and float(values.min()) < -SIGNED * largest:
        signed = np.clip(values / largest, -1, 1)
        return (signed + 1) / 2, np.abs(signed) ** 0.6, BOTH_SIGNS
    place = stretched(np.minimum(values, largest))
    return place, place**0.6, EVIDENCE


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
        axis.set_title(_wrapped(title), fontsize=7)  # type: ignore[attr-defined]
    if caption:
        axis.set_xlabel(caption, fontsize=6, labelpad=2)  # type: ignore[attr-defined]


def _wrapped(title: str) -> str:
    """Long names go on in the next line, after a hyphen: they have the width of an image."""
    lines = []
    for line in title.splitlines():
        lines += textwrap.wrap(line, LETTERS, break_long_words=False) or [""]
    return "\n".join(lines)
