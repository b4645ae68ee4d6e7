"""Tables: which result lines may stand together, and what stands in each cell."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.intervals import Interval, over_seeds
from bench.results import Line

COMPARABLE = ("model", "trainer", "noise", "recipe")  # What two rows of one table must have in common, besides the images.
WHERE_FROM = ("plugin", "distribution", "label")  # Of a part: says who brought it, not what it does.


@dataclass(frozen=True)
class Cell:
    """One number: the mean over seeds, its interval and what the interval is over."""

    value: float | None
    interval: Interval | None
    images: int
    seeds: int
    unscored: int

    @property
    def interval_over(self) -> str:
        return "seeds" if self.seeds > 1 else "images"


@dataclass(frozen=True)
class Column:
    """A metric, with its version and parameters told apart from others of the same name."""

    label: str
    unit: str
    higher_is_better: bool
    category: str
    machine: str | None = None

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True)
class Row:
    """What was scored: a network trained with an augmenter, and an explainer where the metric is about maps."""

    augmenter: str
    explainer: str | None
    floor: bool


@dataclass(frozen=True)
class Board:
    """One table: rows that may be compared, columns of metrics, and the cells that there are."""

    dataset: str
    about: dict[str, Any]
    kind: str  # "networks" or "explanations"
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[Row, Column], Cell]
    lines: tuple[Line, ...]

    def cell(self, row: Row, column: Column) -> Cell | None:
        return self.cells.get((row, column))

    def best(self, column: Column) -> set[Row]:
        """The rows with the best value. With one row there is nothing to be better than."""
        values = {row: cell.value for row in self.rows if (cell := self.cell(row, column)) and cell.value is not None}
        if len(values) < 2:
            return set()
        top = (max if column.higher_is_better else min)(values.values())
        return {row for row, value in values.items() if value == top}

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({line["seed"] for line in self.lines if line["seed"] is not None})


def boards(lines: Iterable[Line]) -> list[Board]:
    """Tables of lines that agree in data, images, model, trainer, label noise and recipe, in a settled order."""
    groups: dict[str, list[Line]] = defaultdict(list)
    for line in {line["key"]: line for line in lines}.values():  # Two runs may share a job.
        groups[_group(line)].append(line)
    return [_board(group) for _, group in sorted(groups.items())]


def _group(line: Line) -> str:
    """Text that is equal for lines that may be compared; it also orders the tables."""
    dataset = line["dataset"]
    same = {name: _identity(line[name]) for name in COMPARABLE}
    images = {name: value for name, value in line["images"].items() if name != "images"} | {
        "test": dataset["fingerprint"],
        "train": dataset.get("train_fingerprint"),
    }
    kind = "explanations" if line["explainer"] else "networks"
    return json.dumps(
        [dataset["name"], _label(line["model"]), _label(line["trainer"]), _label(line["noise"]), same, images, kind != "networks"], sort_keys=True
    )


def _identity(part: Any) -> Any:
    return {name: value for name, value in part.items() if name not in WHERE_FROM} if isinstance(part, dict) else part


def _label(part: Any) -> str:
    return str(part["label"]) if part else ""


def _board(lines: Sequence[Line]) -> Board:
    rows = _distinct(lines, lambda line: (_identity(line["augmenter"]), _identity(line["explainer"])), _row)
    columns = _distinct(lines, lambda line: (_identity(line["metric"]), line["images"]["images"], _machine(line)), _column)
    cells: dict[tuple[Row, Column], list[Line]] = defaultdict(list)
    for line in lines:
        cells[
            rows[_text(_identity(line["augmenter"]), _identity(line["explainer"]))],
            columns[_text(_identity(line["metric"]), line["images"]["images"], _machine(line))],
        ].append(line)
    first = lines[0]
    about = {name: first[name] for name in ("model", "trainer", "noise", "recipe", "dataset", "images")}
    ordered = sorted(set(rows.values()), key=lambda row: (row.augmenter, not row.floor, row.explainer or ""))
    named = sorted(set(columns.values()), key=lambda column: (column.machine is not None, column.category, column.label))
    kind = "explanations" if first["explainer"] else "networks"
    return Board(
        first["dataset"]["name"], about, kind, tuple(ordered), tuple(named), {place: _cell(found) for place, found in cells.items()}, tuple(lines)
    )


def _text(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def _machine(line: Line) -> str | None:
    return None if line["machine"] is None else f"{line['machine']['hardware']}, {line['machine']['threads']} threads"


def _distinct(lines: Sequence[Line], identity: Any, make: Any) -> dict[str, Any]:
    """One thing per identity; things that are not the same and would be called the same get a version and parameters behind their name."""
    found: dict[str, Any] = {}
    taken: dict[Any, str] = {}
    for line in lines:
        text = _text(*identity(line))
        if text in found:
            continue
        thing = make(line, "")
        if thing in taken:
            thing = make(line, f" ({len([other for other in taken if str(other).startswith(str(thing)[:8])]) + 1})")
        found[text] = thing
        taken[thing] = text
    return found


def _row(line: Line, suffix: str) -> Row:
    explainer = _label(line["explainer"]) or None
    augmenter = _label(line["augmenter"]) or "as given"
    return Row(augmenter + (suffix if not explainer else ""), explainer and explainer + suffix, line["floor"])


def _column(line: Line, suffix: str) -> Column:
    metric = line["metric"]
    return Column(metric["label"] + suffix, metric["unit"], metric["higher_is_better"], metric["category"], _machine(line))


def _cell(lines: Sequence[Line]) -> Cell:
    """The mean over seeds; a seed without a value makes the cell a missing one, for a mean over what happened to finish is no mean."""
    values = [line["value"] for line in lines]
    images, unscored = min(line["n"] for line in lines), max(line["unscored"] for line in lines)
    if any(value is None for value in values):
        return Cell(None, None, images, len(lines), unscored)
    if len(lines) == 1:
        interval = lines[0]["interval"]
        return Cell(values[0], interval and (interval[0], interval[1]), images, 1, unscored)
    return Cell(sum(values) / len(values), over_seeds(values), images, len(lines), unscored)
