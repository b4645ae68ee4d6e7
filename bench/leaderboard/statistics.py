"""Statistics of a board: paired differences, who is tied with the best, how stable the order is, and whether metrics agree.

Every test names its unit. Over *images* it speaks about one pair of trained networks; over *seeds*, about the methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.intervals import LEVEL, Interval, over_images, over_seeds

Values = NDArray[np.float64]
Unit = Literal["images", "seeds"]
ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Difference:
    """First less second, paired. `effect` is the signed rank-biserial correlation over images, Cohen's d_z over seeds."""

    mean: float
    interval: Interval | None
    p: float
    effect: float
    unit: Unit
    n: int


def over_paired_images(first: Values, second: Values) -> Difference | None:
    """Wilcoxon's signed-rank test over images scored by both. None where fewer than two images are left."""
    differences = first - second
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return None
    p = 1.0 if not differences.any() else float(stats.wilcoxon(differences, zero_method="wilcox", method="auto").pvalue)
    return Difference(float(differences.mean()), over_images(differences), p, rank_biserial(differences), "images", len(differences))


def over_paired_seeds(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Paired t-test over seeds. A signed-rank test on five seeds cannot fall below .0625, so it is of no use here."""
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    spread = float(differences.std(ddof=1))
    mean = float(differences.mean())
    if spread == 0:
        return Difference(mean, (mean, mean), 1.0 if mean == 0 else 0.0, math.copysign(math.inf, mean) if mean else 0.0, "seeds", len(differences))
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Difference(mean, over_seeds(differences.tolist()), p, mean / spread, "seeds", len(differences))


def rank_biserial(differences: Values) -> float:
    """(W+ - W-) / (W+ + W-) of Wilcoxon's rank sums, in [-1, 1]: 0 says that neither side wins."""
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 0.0
    ranks = stats.rankdata(np.abs(nonzero))
    return float((ranks[nonzero > 0].sum() - ranks[nonzero < 0].sum()) / ranks.sum())


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction of several p-values, in their order."""
    order = np.argsort(ps)
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for place, position in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[position]))
        adjusted[int(position)] = highest
    return adjusted


def tied_with_best(differences: Mapping[str, Difference | None]) -> set[str]:
    """Of the rows compared with the best one, those that Holm's correction does not tell apart from it, or that have no test."""
    tested = {name: found for name, found in differences.items() if found is not None}
    adjusted = dict(zip(tested, holm([found.p for found in tested.values()]), strict=True))
    return {name for name in differences if name not in tested or adjusted[name] >= ALPHA}


def mean_ranks(values: Values, higher_is_better: bool) -> Values:
    """(methods,) mean rank over images of values (methods, images); 1 is best, ties share their ranks."""
    signed = -values if higher_is_better else values
    ranks: Values = stats.rankdata(signed, axis=0).mean(1)
    return ranks


def critical_difference(methods: int, images: int) -> float:
    """Nemenyi's critical difference of mean ranks at the level of the boards (Demšar 2006)."""
    quantile = float(stats.studentized_range.ppf(1 - ALPHA, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * images))


def friedman(values: Values) -> float:
    """p of Friedman's test that all methods (rows) rank alike over the images (columns); needs three methods."""
    return float(stats.friedmanchisquare(*values).pvalue)


def rank_stability(values: Values, higher_is_better: bool, resamples: int = 1000, seed: int = 0) -> tuple[Values, NDArray[np.int64]]:
    """How the order of means holds up when the images are drawn again: (share of first places, [low, high] rank (methods, 2))."""
    generator = np.random.default_rng(seed)
    methods, images = values.shape
    ranks = np.empty((resamples, methods))
    for number in range(resamples):
        means = values[:, generator.integers(0, images, images)].mean(1)
        ranks[number] = stats.rankdata(-means if higher_is_better else means, method="min")
    limits = np.percentile(ranks, [50 * ALPHA, 100 - 50 * ALPHA], axis=0, method="nearest").T.astype(np.int64)
    return (ranks == 1).mean(0), limits


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
