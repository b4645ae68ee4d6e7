"""Statistics of a board: paired differences, who is tied with the best, how stable the order is, and whether metrics agree.

Every test names its unit. Over *images* it speaks about one pair of trained networks; over *seeds*, about the methods.
docs/statistics.md explains the choice of tests and works an example by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.intervals import LEVEL, Interval, t_quantile

Values = NDArray[np.float64]
Unit = Literal["images", "seeds"]
ALPHA = 1 - LEVEL
RESAMPLES = 1000
DIGITS = 9  # Differences are rounded to this many decimals, so that what is equal but for the last bits counts as equal.


@dataclass(frozen=True)
class Difference:
    """First less second, paired. `effect` is the signed rank-biserial correlation over images, Cohen's d_z over seeds."""

    mean: float
    interval: Interval
    p: float
    effect: float
    unit: Unit
    n: int


# Paired differences


def over_paired_images(first: Values, second: Values) -> Difference | None:
    """Wilcoxon's signed-rank test over images scored by both. None where fewer than two images are left."""
    return image_differences((first - second)[None])[0]


def image_differences(differences: Values) -> list[Difference | None]:
    """The same for many pairs at once: (pairs, images), NaN where one of the two has no value. Intervals by bootstrap."""
    differences = np.round(differences, DIGITS)
    enough = np.isfinite(differences).sum(1) >= 2
    intervals = iter(mean_intervals(differences[enough]).tolist())
    return [_over_images(row[np.isfinite(row)], next(intervals)) if tested else None for row, tested in zip(differences, enough, strict=True)]


def _over_images(known: Values, interval: Sequence[float]) -> Difference:
    low, high = interval
    return Difference(float(known.mean()), (low, high), signed_rank_p(known), rank_biserial(known), "images", len(known))


def signed_rank_p(differences: Values) -> float:
    """Wilcoxon's p, zeros left out. Where all sizes are equal (right or wrong, say) the exact sign test is the same test."""
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0
    if np.ptp(np.abs(nonzero)) == 0:
        return float(stats.binomtest(int((nonzero > 0).sum()), len(nonzero)).pvalue)
    return float(stats.wilcoxon(nonzero, correction=True).pvalue)


def rank_biserial(differences: Values) -> float:
    """(W+ - W-) / (W+ + W-) of Wilcoxon's rank sums, in [-1, 1]: 0 says that neither side wins."""
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 0.0
    ranks = stats.rankdata(np.abs(nonzero))
    return float((ranks[nonzero > 0].sum() - ranks[nonzero < 0].sum()) / ranks.sum())


def over_paired_seeds(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Paired t-test over seeds. A signed-rank test on five seeds cannot fall below .0625, so it is of no use here."""
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    return seed_differences(differences[None])[0]


def seed_differences(differences: Values) -> list[Difference]:
    """The same for many pairs at once: (pairs, seeds), two seeds or more, every value known.

    Where a pair's differences are all the same, t has no spread to divide by; the sign test's smallest p stands in.
    """
    differences = np.round(differences, DIGITS)
    seeds = differences.shape[1]
    means, spreads = differences.mean(1), differences.std(1, ddof=1)
    same = np.ptp(differences, axis=1) == 0
    halves = t_quantile(seeds - 1) * spreads / math.sqrt(seeds)
    with np.errstate(all="ignore"):
        effects = np.where(same, np.where(means == 0, 0.0, np.copysign(np.inf, means)), means / spreads)
        ps = np.where(same, np.where(means == 0, 1.0, 2.0 ** (1 - seeds)), 2 * stats.t.sf(np.abs(effects) * math.sqrt(seeds), seeds - 1))
    halves = np.where(same, 0.0, halves)
    rows = zip(*(column.tolist() for column in (means, means - halves, means + halves, ps, effects)), strict=True)
    return [Difference(mean, (low, high), p, effect, "seeds", seeds) for mean, low, high, p, effect in rows]


def mean_intervals(values: Values) -> Values:
    """(rows, 2) percentile bootstrap of each row's mean over images (rows, images), the same resamples for every row.

    Images without a value (NaN) are drawn like the others and left out of the mean.
    """
    known = np.isfinite(values)
    weights = resamples(values.shape[1])
    with np.errstate(invalid="ignore"):
        means = (np.where(known, values, 0.0) @ weights) / (known @ weights)  # (rows, resamples)
    percentiles = np.percentile if np.isfinite(means).all() else np.nanpercentile
    limits: Values = percentiles(means, [50 * ALPHA, 100 - 50 * ALPHA], axis=1)
    return np.round(limits, DIGITS).T


@lru_cache(maxsize=2)
def resamples(images: int) -> Values:
    """(images, RESAMPLES) how often each image is drawn. RandomState, because its stream is the same for good."""
    random = np.random.RandomState(0)
    drawn = (np.bincount(random.randint(0, images, images), minlength=images) for _ in range(RESAMPLES))
    return np.stack(list(drawn), axis=1).astype(np.float64)


# Several comparisons


def holm(ps: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's correction of several p-values, in their order.

    family: how many comparisons could have been looked at, where it was the data that chose these among them.
    """
    size = len(ps) if family is None else family
    order = np.argsort(ps, kind="stable")
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for place, position in enumerate(order):
        highest = max(highest, min(1.0, (size - place) * ps[position]))
        adjusted[int(position)] = highest
    return adjusted


# Ranks


def mean_ranks(values: Values, higher_is_better: bool) -> Values:
    """(methods,) mean rank over images of values (methods, images); 1 is best, ties share their ranks."""
    signed = np.round(-values if higher_is_better else values, DIGITS)
    ranks: Values = stats.rankdata(signed, axis=0).mean(1)
    return ranks


def critical_difference(methods: int, images: int) -> float:
    """Nemenyi's critical difference of mean ranks at the level of the boards (Demšar 2006)."""
    return _studentized_range(methods) / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * images))


@lru_cache
def _studentized_range(methods: int) -> float:
    return float(stats.studentized_range.ppf(1 - ALPHA, methods, np.inf))


def friedman(values: Values) -> float:
    """p of Friedman's test that all methods (rows) rank alike over the images (columns); needs three methods."""
    values = np.round(values, DIGITS)
    if (values == values[0]).all():
        return 1.0
    return float(stats.friedmanchisquare(*values).pvalue)


def groups(ranks: Values, width: float) -> list[tuple[int, int]]:
    """Runs of methods, by their places in the order of mean ranks, that lie within `width`: those not told apart. Longest runs only."""
    ordered = np.sort(ranks)
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(ordered):
        last = int(np.searchsorted(ordered, rank + width, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def rank_stability(values: Values, higher_is_better: bool) -> tuple[Values, NDArray[np.int64]]:
    """How the order of means holds up when the images are drawn again: (share of first places, [low, high] rank (methods, 2))."""
    images = values.shape[1]
    means = np.round(values @ resamples(images) / images, DIGITS)  # (methods, resamples)
    ranks = stats.rankdata(-means if higher_is_better else means, method="min", axis=0)
    limits = np.percentile(ranks, [50 * ALPHA, 100 - 50 * ALPHA], axis=1, method="nearest").T.astype(np.int64)
    return (ranks == 1).mean(1), limits


def agreement(columns: Mapping[str, tuple[Sequence[float], bool]]) -> dict[tuple[str, str], float]:
    """Kendall's tau-b between metrics over the rows, each turned so that more is better. NaN where one orders nothing."""
    found = {}
    names = list(columns)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            (ours, up), (theirs, also_up) = columns[first], columns[second]
            tau = stats.kendalltau(np.asarray(ours) * (1 if up else -1), np.asarray(theirs) * (1 if also_up else -1)).statistic
            found[first, second] = float(tau)
    return found
