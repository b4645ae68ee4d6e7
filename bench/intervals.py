"""Intervals: how far a number may be from the one that more images or more seeds would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000

Interval = tuple[float, float]
Rows = NDArray[np.float64]


def over_images(values: Rows, seed: int = 0) -> Interval | None:
    """Percentile bootstrap of the mean over images (N,): the unit is the image, for one trained network. None below two."""
    if len(values) < 2:
        return None
    generator = np.random.default_rng(seed)
    means = [float(values[generator.integers(0, len(values), len(values))].mean()) for _ in range(RESAMPLES)]
    return _percentiles(means)


def over_images_of(aggregate: Callable[[Rows], float], rows: Rows, seed: int = 0, resamples: int = 200, biased: bool = False) -> Interval | None:
    """The same for a number that is no mean: the aggregate of resampled rows.

    biased: the aggregate of fewer distinct rows is systematically too high, as a sum of distances is. What resampling adds to the number is
    then taken off it (the basic bootstrap of Davison and Hinkley, 1997), not below zero where no resample is.
    """
    if len(rows) < 2:
        return None
    generator = np.random.default_rng(seed)
    found = [aggregate(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(resamples)]
    finite = [value for value in found if math.isfinite(value)]
    if not finite:
        return None
    low, high = _percentiles(finite)
    if not biased:
        return low, high
    floor = 0.0 if min(finite) >= 0 else -math.inf
    value = aggregate(rows)
    return max(floor, 2 * value - high), max(floor, 2 * value - low)


def over_seeds(values: Sequence[float]) -> Interval | None:
    """Student's t over seeds: the unit is the trained network, so it speaks about the method. None below two."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = t_quantile(len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean + half


@cache
def t_quantile(degrees: int) -> float:
    """How many standard errors Student's interval reaches to each side."""
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))


def _percentiles(found: Sequence[float]) -> Interval:
    low, high = np.percentile(np.asarray(found, dtype=float), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def as_rows(tensor: Any) -> Rows:
    """A tensor of rows as float64 NumPy."""
    return np.asarray(tensor.detach().cpu().double().numpy())
