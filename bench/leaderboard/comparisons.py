"""Comparisons: each row of a table paired with the best row and with its floors, on the same seeds or the same images only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from bench.leaderboard import statistics
from bench.leaderboard.statistics import ALPHA, Difference, Values
from bench.leaderboard.tables import Board, Column, Number, Row

Against = Literal["best", "floor", "plain", "control"]
"""The best row; the better of the floors; the same explainer on the network that was trained without augmentation; and the same of a floor,
which looks at no network: what changes there, too, is the network and not its explanation."""

PerImage = Mapping[str, Values]  # Of each result line, by its key: one value per image.
MEAN_TOLERANCE = 2e-6  # Published rows have six decimals.


@dataclass(frozen=True)
class Comparison:
    """How far a row is from another one, in the column's unit; `p` is corrected by Holm over all comparisons of its kind."""

    row: Row
    other: Row
    against: Against
    difference: Difference
    p: float
    better: bool

    @property
    def told_apart(self) -> bool:
        """Over images the test is one of ranks: where they point another way than the mean, neither row is called the better one."""
        return self.p < ALPHA and self.difference.mean * self.difference.effect > 0


class Stability(NamedTuple):
    """The order of the rows when the images are drawn again: how often each comes first, and where 95 % of its ranks lie."""

    rows: tuple[Row, ...]
    firsts: Values
    limits: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    images: int

    def share(self, row: Row) -> float:
        return float(self.firsts[self.rows.index(row)])


@dataclass(frozen=True)
class Verdict:
    """What the tests say about one column. Rows without common seeds or images are compared with nothing."""

    column: Column
    order: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    stability: Stability | None = None
    _found: dict[tuple[Row, Against], Comparison] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        self._found.update({(each.row, each.against): each for each in self.comparisons})

    def of(self, row: Row, against: Against) -> Comparison | None:
        return self._found.get((row, against))

    @property
    def best(self) -> Row:
        return self.order[0]

    @property
    def tied(self) -> list[Row]:
        """The rows that the tests do not tell apart from the best."""
        return [row for row in self.order if (found := self.of(row, "best")) and not found.told_apart]

    def beats(self, row: Row, against: Against) -> bool | None:
        """Is the row better than the other by more than luck? None where there is no test."""
        found = self.of(row, against)
        return None if found is None else found.told_apart and found.better

    def counted(self, against: Against) -> str:
        """`3 of 8, 1 worse`: the rows that are better than the other by more than luck, of those that were tested; empty if none was."""
        tested = [each for each in self.comparisons if each.against == against]
        better, worse = (sum(each.told_apart and each.better == way for each in tested) for way in (True, False))
        return f"{better} of {len(tested)}" + (f", {worse} worse" if worse else "") if tested else ""

    @property
    def tested_over(self) -> str:
        """`seeds (n = 3)`, `images (n = 500)`, both, or nothing."""
        counts: dict[str, set[int]] = defaultdict(set)
        for each in self.comparisons:
            counts[each.difference.unit].add(each.difference.n)
        return ", ".join(f"{unit} (n = {_span(found)})" for unit, found in sorted(counts.items(), reverse=True))


def _span(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def verdicts(board: Board, per_image: PerImage) -> dict[Column, Verdict]:
    """A verdict for every column that ranks at least two rows."""
    found = {}
    for column in board.ranked_columns:
        order = board.ranked(column)
        if len(order) > 1:
            comparisons = tuple(_compared(board, column, order, per_image))
            found[column] = Verdict(column, tuple(order), comparisons, stability(board, column, per_image))
    return found


def _compared(board: Board, column: Column, order: Sequence[Row], per_image: PerImage) -> list[Comparison]:
    """Against the best: the data chose it, so the family is every pair of rows. Against floors: every row with every floor it has."""
    valued = board.valued(column)
    every = valued if not board.view else replace(board, rows=tuple({row: None for row, _ in board.cells})).valued(column)
    best = [(row, order[0]) for row in order[1:]]
    floors = _floors(board, every)
    floor = [(row, floors[row.augmenter][0]) for row in valued if not row.floor and row.augmenter in floors]
    unaugmented: dict[str | None, Row] = {}
    for row in every if board.kind == "explanations" else ():
        if row.plain:
            unaugmented.setdefault(row.explainer, row)  # The better one, if there are several.
    plain = [(row, unaugmented[row.explainer]) for row in valued if not row.plain and not row.floor and row.explainer in unaugmented]
    changed = {row.augmenter for row, _ in plain}
    control = [(row, unaugmented[row.explainer]) for row in every if row.floor and row.augmenter in changed and row.explainer in unaugmented]
    families = {"best": pairs_of(order), "floor": sum(len(floors[row.augmenter]) for row, _ in floor), "plain": len(plain), "control": len(control)}
    comparisons = []
    for against, pairs in (("best", best), ("floor", floor), ("plain", plain), ("control", control)):
        differences = _differences(board, column, pairs, per_image)
        tested = [(pair, found) for pair, found in zip(pairs, differences, strict=True) if found is not None]
        corrected = statistics.holm([found.p for _, found in tested], families[against])
        for ((row, other), found), p in zip(tested, corrected, strict=True):
            better = found.mean > 0 if column.higher_is_better else found.mean < 0
            comparisons.append(Comparison(row, other, against, found, p, better))  # type: ignore[arg-type]
    return comparisons


def pairs_of(rows: Sequence[Row]) -> int:
    return len(rows) * (len(rows) - 1) // 2


def _floors(board: Board, order: Sequence[Row]) -> dict[str, list[Row]]:
    """What a row has to beat, best first, by its augmenter: networks without augmentation, or explainers that look at nothing on the same network."""
    floors = [row for row in order if row.floor]
    if board.kind == "networks":
        return {row.augmenter: floors for row in board.rows} if floors else {}
    found: dict[str, list[Row]] = defaultdict(list)
    for row in floors:
        found[row.augmenter].append(row)
    return found


def _differences(board: Board, column: Column, pairs: Sequence[tuple[Row, Row]], per_image: PerImage) -> list[Difference | None]:
    """Over seeds where two or more are common, else over the images of the one that is."""
    found: list[Difference | None] = [None] * len(pairs)
    seeds: dict[int, list[int]] = defaultdict(list)
    images: dict[int, list[int]] = defaultdict(list)
    data: list[Values] = []
    for place, (row, other) in enumerate(pairs):
        ours, theirs = _by_seed(board, row, column), _by_seed(board, other, column)
        common = sorted(ours.keys() & theirs.keys(), key=str)
        data.append(np.empty(0))
        if len(common) >= 2:
            data[place] = np.asarray([ours[seed].value - theirs[seed].value for seed in common])  # type: ignore[operator]
            seeds[len(common)].append(place)
        elif common:
            first, second = (values_of(number[common[0]], column, per_image) for number in (ours, theirs))
            if first is not None and second is not None and len(first) == len(second):
                data[place] = first - second
                images[len(first)].append(place)
    _fill(found, data, seeds, statistics.seed_differences)
    _fill(found, data, images, statistics.image_differences)
    return found


def _fill(
    found: list[Difference | None], data: Sequence[Values], places: Mapping[int, list[int]], test: Callable[[Values], Sequence[Difference | None]]
) -> None:
    """Test the pairs that have equally many seeds, or images, together."""
    for group in places.values():
        for place, difference in zip(group, test(np.stack([data[place] for place in group])), strict=True):
            found[place] = difference


def _by_seed(board: Board, row: Row, column: Column) -> dict[int | None, Number]:
    return {number.seed: number for number in board.cells[row, column].numbers if number.value is not None}


def values_of(number: Number, column: Column, per_image: PerImage) -> Values | None:
    """One value per image of a result, or None where they are not published or the number is not their mean (as with ECE)."""
    values = per_image.get(number.key)
    if values is None or number.value is None or not column.per_image or len(values) != number.n + number.unscored:
        return None
    known = values[np.isfinite(values)]
    near = len(known) > 0 and abs(float(known.mean()) - number.value) <= MEAN_TOLERANCE * max(1.0, abs(number.value))
    return values if near else None


def image_matrix(board: Board, column: Column, rows: Sequence[Row], per_image: PerImage) -> tuple[list[Row], Values]:
    """(rows, images) the values of those rows that have them, averaged over the usual seeds; only images that every row has."""
    found: dict[Row, Values] = {}
    for row in rows:
        numbers = _by_seed(board, row, column)
        columns = [values_of(numbers[seed], column, per_image) for seed in board.usual_seeds(column) if seed in numbers]
        known = [values for values in columns if values is not None]
        if known and len(known) == len(columns) and len({len(values) for values in known}) == 1:
            found[row] = np.mean(known, axis=0)
    lengths = {len(values) for values in found.values()}
    if len(lengths) != 1:
        return [], np.empty((0, 0))
    matrix = np.stack(list(found.values()))
    return list(found), matrix[:, np.isfinite(matrix).all(0)]


def stability(board: Board, column: Column, per_image: PerImage) -> Stability | None:
    """How often each row comes first when the images are drawn again. None where values per image are missing."""
    order = board.ranked(column)
    rows, matrix = image_matrix(board, column, order, per_image)
    if len(rows) < len(order) or matrix.shape[1] < 2:
        return None
    firsts, limits = statistics.rank_stability(matrix, column.higher_is_better)
    return Stability(tuple(rows), firsts, limits, matrix.shape[1])


def disagreements(board: Board, columns: Sequence[Column]) -> dict[tuple[Column, Column], float]:
    """Kendall's tau between columns over the rows that have all of them: 1 the same order, -1 the opposite one."""
    rows = [row for row in board.rows if all(board.value(row, column) is not None for column in columns)]
    if len(rows) < 3:
        return {}
    named = {str(place): ([board.value(row, column) for row in rows], column.higher_is_better) for place, column in enumerate(columns)}
    found = statistics.agreement(named)  # type: ignore[arg-type]
    return {(columns[int(first)], columns[int(second)]): tau for (first, second), tau in found.items()}
