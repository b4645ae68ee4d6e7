"""Tables: which result lines may stand together, and what stands in each cell."""

from __future__ import annotations

import json
import marshal
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from bench.intervals import Interval, over_seeds
from bench.results import ABOUT_PARTS, Line

COMPARABLE = ("model", "trainer", "noise", "recipe")  # What two rows of one table must have in common, besides the images.
SETTING = ("dataset", *COMPARABLE, "images", "environment")
FIRST = ("prediction", "robustness", "calibration", "faithfulness", "localisation")  # Categories in the order of reading; others follow.
LONG, FEW = 60, 3  # Rows that one table can hold; augmenters that are worth a table of their own.
AS_GIVEN = "as given"  # Stands for the augmenter where nothing was trained.

Part = Mapping[str, Any]
Seeds = frozenset[int | None]


class Number(NamedTuple):
    """One result line, reduced to what a table needs of it."""

    key: str
    seed: int | None
    value: float | None
    interval: Interval | None
    n: int
    unscored: int
    curve: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Cell:
    """One number: the mean over seeds, its interval and what the interval is over. `numbers` are the seeds it comes from."""

    value: float | None
    interval: Interval | None
    images: int
    seeds: int
    unscored: int
    numbers: tuple[Number, ...] = ()

    @property
    def interval_over(self) -> str:
        return "seeds" if self.seeds > 1 else "images"


class Column(NamedTuple):
    """A metric. What differs from another metric of the same name (a parameter, the version) stands behind the label."""

    label: str
    unit: str
    higher_is_better: bool
    category: str
    machine: str | None = None
    per_image: bool = True  # Are the values behind the number those of single images?

    @property
    def judged(self) -> bool:
        """Is there a best? What a method costs says nothing of what it is worth."""
        return self.machine is None and self.category != "cost"

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


class Row(NamedTuple):
    """What was scored: a network trained with an augmenter, and an explainer where the metric is about maps.

    floor: the augmenter of a row about networks, or the explainer of a row about maps, is one that does nothing.
    plain: the network was trained with the floor augmenter.
    """

    augmenter: str
    explainer: str | None
    floor: bool
    plain: bool = False

    @property
    def name(self) -> str:
        return f"{self.augmenter} × {self.explainer}" if self.explainer else self.augmenter


@dataclass(frozen=True)
class Board:
    """One table: rows that may be compared, columns of metrics, and the cells that there are.

    about: model, trainer, noise, recipe, dataset, images and weights of the first line. parts: the augmenters, explainers
    and metrics by their labels. environments: what the numbers were made with. identity: text that is equal for lines that may
    stand in this table. view: which part of the comparable rows these are, if not all; the cells are there for all of them.
    """

    dataset: str
    about: Mapping[str, Any]
    kind: str  # "networks" or "explanations"
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[Row, Column], Cell]
    parts: Mapping[str, Mapping[str, Part]] = field(default_factory=dict)
    environments: tuple[str, ...] = ()
    identity: str = ""
    view: str = ""

    @property
    def heading(self) -> str:
        """Network, trainer and label noise, in a line."""
        noise = f", label noise {self.about['noise']['label']}" if self.about["noise"] else ""
        return f"{self.about['model']['label']}, {self.about['trainer']['label']}{noise}"

    def cell(self, row: Row, column: Column) -> Cell | None:
        return self.cells.get((row, column))

    def value(self, row: Row, column: Column) -> float | None:
        cell = self.cells.get((row, column))
        return None if cell is None else cell.value

    @property
    def ranked_columns(self) -> tuple[Column, ...]:
        """Times belong to a machine and are not ranked."""
        return tuple(column for column in self.columns if column.judged)

    def valued(self, column: Column) -> list[Row]:
        """The rows with a value, best first."""
        values = {row: cell.value for row in self.rows if (cell := self.cells.get((row, column))) and cell.value is not None}
        return sorted(values, key=lambda row: values[row], reverse=column.higher_is_better)

    def ranked(self, column: Column) -> list[Row]:
        """The same without the rows that lack some of the seeds that most rows have."""
        wanted = self.usual_seeds(column)
        return [row for row in self.valued(column) if wanted <= _seeds(self.cells[row, column])]

    def best(self, column: Column) -> set[Row]:
        """The rows with the best value. With one row there is nothing to be better than."""
        order = self.ranked(column)
        return {row for row in order if self.value(row, column) == self.value(order[0], column)} if len(order) > 1 else set()

    def usual_seeds(self, column: Column) -> Seeds:
        """The seeds that the most rows have; of equally usual sets, the smallest."""
        return self._usual_seeds.get(column, frozenset())

    @cached_property
    def _usual_seeds(self) -> dict[Column, Seeds]:
        counts: dict[Column, Counter[Seeds]] = defaultdict(Counter)
        for (_, column), cell in self.cells.items():
            if cell.value is not None:
                counts[column][_seeds(cell)] += 1
        return {column: max(found, key=lambda seeds: (found[seeds], -len(seeds), str(sorted(seeds, key=str)))) for column, found in counts.items()}

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({number.seed for cell in self.cells.values() for number in cell.numbers if number.seed is not None})


def _seeds(cell: Cell) -> Seeds:
    return frozenset(number.seed for number in cell.numbers)


def boards(lines: Iterable[Line], curves: bool = False, whole: bool = False) -> list[Board]:
    """Tables of lines that agree in data, images, model, trainer, label noise and recipe, in a settled order.

    Each line is reduced to a number as it comes, so that a million of them fit; `curves` keeps their curves too. What has more rows
    than can be read comes as several views of it, unless it is wanted whole.
    """
    groups: dict[str, _Group] = {}
    known: dict[bytes, _Group] = {}
    for line in lines:
        mark = _mark(*(line[name] for name in SETTING), line["explainer"] is None)
        group = known.get(mark)
        if group is None:
            group = known[mark] = groups.setdefault(_group_name(line), _Group(line))
            group.environments.add(_environment(line["environment"]))
        group.add(line, curves)
    floors = {name for group in groups.values() for name in group.floor_augmenters}
    found = [group.board(name, floors) for name, group in sorted(groups.items())]
    return found if whole else [view for board in found for view in _views(board)]


def count(tables: Iterable[Board]) -> int:
    """The result lines in some tables, each once."""
    return len({number.key for table in tables for cell in table.cells.values() for number in cell.numbers})


def _views(board: Board) -> list[Board]:
    """The board; or where explainers and augmenters cross in more rows than can be read, the questions that are asked of it.

    The augmenters as the explainer sees them that saw the most, and for each augmenter its explainers. A row is ranked and
    tested among the rows of its question alone.
    """
    rows = [row for row in board.rows if not row.floor]
    seen = Counter(row.explainer for row in rows)
    explained = Counter(row.augmenter for row in rows)
    if board.kind == "networks" or len(board.rows) <= LONG or len(seen) < 2 or len(explained) < 2:
        return [board]
    plain = {row.augmenter for row in board.rows if row.plain}
    questions = []
    for explainer, augmenters in sorted(seen.items(), key=str):
        if augmenters == max(seen.values()) and augmenters > max(FEW, len(plain)):
            chosen = [row for row in board.rows if row.explainer == explainer or (row.floor and row.plain)]
            questions.append((f"augmenters, explained by {explainer}", chosen))
    for augmenter in dict.fromkeys(row.augmenter for row in board.rows):
        if explained[augmenter] > 1:
            chosen = [row for row in board.rows if row.augmenter == augmenter]
            questions.append((f"explainers, trained with {augmenter}", chosen))
    return [replace(board, rows=tuple(chosen), identity=f"{board.identity} {view}", view=view) for view, chosen in questions]


def _mark(*values: Any) -> bytes:
    """The same bytes for the same plain data: cheaper than JSON, and where the order differs it only costs another look-up."""
    return marshal.dumps(values, 2)


def _group_name(line: Line) -> str:
    """Text that is equal for lines that may be compared; it also orders the tables."""
    dataset = line["dataset"]
    same = {name: _identity(line[name]) for name in COMPARABLE}
    images = {name: value for name, value in line["images"].items() if name != "images"} | {
        "test": dataset["fingerprint"],
        "train": dataset.get("train_fingerprint"),
    }
    about_maps = line["explainer"] is not None
    names = [dataset["name"], *(_label(line[part]) for part in ("model", "trainer", "noise"))]
    return json.dumps([*names, same, about_maps, images], sort_keys=True)


def _identity(part: Any) -> Any:
    return {name: value for name, value in part.items() if name not in ABOUT_PARTS} if isinstance(part, dict) else part


def _label(part: Any) -> str:
    return str(part["label"]) if part else ""


class _Group:
    """The lines of one table, gathered."""

    def __init__(self, line: Line) -> None:
        self.about = {name: line[name] for name in (*COMPARABLE, "dataset", "images", "weights")}
        self.kind = "networks" if line["explainer"] is None else "explanations"
        self.floor_augmenters: set[str] = set()
        self.environments: set[str] = set()
        self._parts: dict[str, dict[str, Part | None]] = {"augmenter": {}, "explainer": {}}
        self._metrics: dict[str, tuple[Part, Any, str | None]] = {}
        self._rows: dict[bytes, tuple[str, str]] = {}
        self._floors: dict[tuple[str, str], bool] = {}
        self._columns: dict[bytes, str] = {}
        self._numbers: dict[tuple[tuple[str, str], str], list[Number]] = defaultdict(list)

    def add(self, line: Line, curves: bool) -> None:
        """Keep a line's number. Two runs may share a job: a key that is there already is not taken twice."""
        numbers = self._numbers[self._row(line), self._column(line)]
        if any(number.key == line["key"] for number in numbers):
            return
        interval = line["interval"] and (line["interval"][0], line["interval"][1])
        curve = line["curve"] if curves else None
        numbers.append(Number(line["key"], line["seed"], line["value"], interval, line["n"], line["unscored"], curve))

    def _row(self, line: Line) -> tuple[str, str]:
        mark = _mark(line["augmenter"], line["explainer"])
        if mark not in self._rows:
            place = self._part(line, "augmenter"), self._part(line, "explainer")
            self._rows[mark] = place
            self._floors[place] = line["floor"]
            augmenter = line["augmenter"]
            if augmenter and (augmenter.get("floor") or (line["floor"] and self.kind == "networks")):
                self.floor_augmenters.add(augmenter["name"])
        return self._rows[mark]

    def _part(self, line: Line, kind: str) -> str:
        """The identity of a part. Of several labels of one part the first in the alphabet stands, whichever came first."""
        identity = json.dumps(_identity(line[kind]), sort_keys=True)
        known = self._parts[kind].setdefault(identity, line[kind])
        if _label(line[kind]) < _label(known):
            self._parts[kind][identity] = line[kind]
        return identity

    def _column(self, line: Line) -> str:
        metric, count, machine = line["metric"], line["images"]["images"], line["machine"]
        mark = _mark(metric, count, machine)
        if mark not in self._columns:
            where = machine and f"{machine['hardware']}, {_threads(machine)}"
            identity = json.dumps([_identity(metric), count, where], sort_keys=True)
            known, _, _ = self._metrics.setdefault(identity, (metric, count, where))
            if _label(metric) < _label(known):
                self._metrics[identity] = (metric, count, where)
            self._columns[mark] = identity
        return self._columns[mark]

    def board(self, identity: str, floors: set[str]) -> Board:
        rows, columns = self._named_rows(floors), self._named_columns()
        cells = {(rows[row], columns[column]): _cell(numbers) for (row, column), numbers in self._numbers.items()}
        self._numbers.clear()
        return Board(
            self.about["dataset"]["name"],
            self.about,
            self.kind,
            tuple(sorted(rows.values(), key=lambda row: (not row.plain, row.augmenter, not row.floor, row.explainer or ""))),
            tuple(sorted(columns.values(), key=_reading_order)),
            cells,
            self._labelled_parts(columns),
            tuple(sorted(self.environments)),
            identity,
        )

    def _named_rows(self, floors: set[str]) -> dict[tuple[str, str], Row]:
        augmenters, explainers = (_distinct_labels(self._parts[kind]) for kind in ("augmenter", "explainer"))
        found = {}
        for place, floor in self._floors.items():
            augmenter = self._parts["augmenter"][place[0]]
            plain = bool(augmenter and augmenter["name"] in floors)
            found[place] = Row(augmenters[place[0]] or AS_GIVEN, explainers[place[1]] or None, floor, plain)
        return found

    def _named_columns(self) -> dict[str, Column]:
        shown = {
            identity: {**metric, "parameters": {**metric.get("parameters", {}), "images": count, "machine": machine}}
            for identity, (metric, count, machine) in self._metrics.items()
        }
        labels = _distinct_labels(shown)
        return {
            identity: Column(labels[identity], metric["unit"], metric["higher_is_better"], metric["category"], machine, metric.get("per_image", True))
            for identity, (metric, _, machine) in self._metrics.items()
        }

    def _labelled_parts(self, columns: Mapping[str, Column]) -> dict[str, dict[str, Part]]:
        found: dict[str, dict[str, Part]] = {}
        for kind, parts in self._parts.items():
            labels = _distinct_labels(parts)
            found[kind] = {labels[identity]: part for identity, part in parts.items() if part is not None}
        found["metric"] = {columns[identity].label: metric for identity, (metric, _, _) in self._metrics.items()}
        return found


def _reading_order(column: Column) -> tuple[bool, bool, int, str, str]:
    known = FIRST.index(column.category) if column.category in FIRST else len(FIRST)
    return not column.judged, column.machine is not None, known, column.category, column.label


def _environment(environment: Mapping[str, Any]) -> str:
    versions = environment.get("versions", {})
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("bench-xai", "torch") if name in versions)
    return f"{libraries} on {environment.get('hardware', 'an unnamed machine')}, {_threads(environment)}".strip()


def _threads(where: Mapping[str, Any]) -> str:
    count = where.get("threads", "?")
    return f"{count} thread{'' if count == 1 else 's'}"


def _distinct_labels(parts: Mapping[str, Part | None]) -> dict[str, str]:
    """A label per part; parts that are not the same and are called the same get behind it what sets them apart."""
    named: dict[str, list[str]] = defaultdict(list)
    for identity, part in parts.items():
        named[_label(part)].append(identity)
    labels = {}
    for label, identities in named.items():
        details = [_flat(parts[identity] or {}) for identity in identities]
        differing = sorted({name for each in details for name in each if len({str(other.get(name)) for other in details}) > 1})
        for number, (identity, detail) in enumerate(zip(identities, details, strict=True), 1):
            told = ", ".join(f"{name} {detail[name]}" for name in differing if name in detail) or str(number)
            labels[identity] = label if len(identities) == 1 else f"{label} ({told})"
    return labels


def _flat(part: Part, prefix: str = "") -> dict[str, Any]:
    """Version and parameters of a part, nested ones by dotted names."""
    found: dict[str, Any] = {} if prefix else {"version": part.get("version")}
    for name, value in (part if prefix else part.get("parameters", {})).items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found


def _cell(numbers: Sequence[Number]) -> Cell:
    """The mean over seeds; a seed without a value makes the cell a missing one, for a mean over what happened to finish is no mean."""
    chosen = tuple(_one_a_seed(numbers))
    values = [number.value for number in chosen if number.value is not None]
    n, unscored = min(number.n for number in chosen), max(number.unscored for number in chosen)
    if len(values) < len(chosen):
        return Cell(None, None, n, len(chosen), unscored, chosen)
    if len(values) == 1:
        return Cell(values[0], chosen[0].interval, n, 1, unscored, chosen)
    return Cell(sum(values) / len(values), over_seeds(values), n, len(values), unscored, chosen)


def _one_a_seed(numbers: Sequence[Number]) -> Iterable[Number]:
    """One number per seed, in order. Two of one seed that contradict each other leave it without a value."""
    if len(numbers) == 1:
        yield numbers[0]
        return
    seeds: dict[int | None, list[Number]] = defaultdict(list)
    for number in numbers:
        seeds[number.seed].append(number)
    for _, found in sorted(seeds.items(), key=lambda item: (item[0] is not None, item[0] or 0)):
        known = sorted((number for number in found if number.value is not None), key=lambda number: number.key)
        if len({number.value for number in known}) > 1:
            yield known[0]._replace(value=None, interval=None)
        else:
            yield (known or found)[0]
