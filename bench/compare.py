"""Compare two sets of result lines: which numbers and ranks changed, and what else differs that may be the reason. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.leaderboard.tables import Board, Cell, Column, Row, boards
from bench.leaderboard.text import with_interval
from bench.results import ABOUT_PARTS, Line

MADE_OF = ("dataset", "images", "model", "trainer", "augmenter", "noise", "recipe", "explainer", "metric")  # Decides a number.
SAME = 1e-9
WORDS = ({*ABOUT_PARTS} - {"distribution"}) | {"licence", "redistributable"}  # Of a part or the data: no reason for another number.


@dataclass(frozen=True)
class Standing:
    """A number in its table: the cell, its place from 1, and how many are ranked there. The place of an unranked one is None."""

    cell: Cell
    place: int | None
    ranked: int


@dataclass(frozen=True)
class Change:
    """What became of one number. `before` or `after` is None where it is new or gone."""

    table: str
    column: Column
    row: Row
    before: Standing | None
    after: Standing | None
    reasons: tuple[str, ...]

    @property
    def moved(self) -> bool:
        """Did its place change?"""
        return self.before is not None and self.after is not None and self.before.place != self.after.place

    @property
    def differs(self) -> bool:
        """Is the number another one, or on one side only?"""
        values = [standing.cell.value if standing else None for standing in (self.before, self.after)]
        if values[0] is None or values[1] is None:
            return values[0] is not values[1]
        return abs(values[0] - values[1]) > SAME * max(1.0, abs(values[0]))

    def regressed(self, tolerance: float | None = None) -> bool:
        """Is a number gone, or worse by more than the tolerance, or, without one, by more than the two intervals allow? Times and costs never are."""
        if not self.column.judged or self.before is None or self.before.cell.value is None:
            return False
        if self.after is None or self.after.cell.value is None:
            return True
        sign = 1 if self.column.higher_is_better else -1
        worse = sign * (self.before.cell.value - self.after.cell.value)
        return worse > (_room(self.before.cell, self.after.cell) if tolerance is None else tolerance) + SAME


def _room(before: Cell, after: Cell) -> float:
    """How far the two may be apart with intervals that still touch."""
    return sum(max(abs(cell.value - end) for end in cell.interval) for cell in (before, after) if cell.interval and cell.value is not None)


def diff(before: Sequence[Line], after: Sequence[Line]) -> list[Change]:
    """Every number that is new, gone, another one or in another place, table by table.

    Tables are matched by what they hold, and, where that has changed, by the names of data, network, trainer, noise and kind.
    """
    lines = [{line["key"]: line for line in each} for each in (before, after)]
    found = []
    for old, new in _matched(boards(before, whole=True), boards(after, whole=True)):
        found += [change for change in _changes(old, new, lines) if change.differs or change.moved]
    return found


def _matched(before: Sequence[Board], after: Sequence[Board]) -> Iterator[tuple[Board | None, Board | None]]:
    new = {board.identity: board for board in after}
    pairs: list[tuple[Board | None, Board | None]] = [(board, new.pop(board.identity, None)) for board in before]
    for old, match in pairs:
        if match is None and old is not None:
            match = next((board for board in new.values() if _name(board) == _name(old)), None)
            if match is not None:
                del new[match.identity]
        yield old, match
    yield from ((None, board) for board in new.values())


def _name(board: Board) -> str:
    parts = [board.about[kind]["label"] for kind in ("model", "trainer", "noise") if board.about[kind]]
    return f"{', '.join([board.dataset, *parts])}: {board.kind}"


def _changes(old: Board | None, new: Board | None, lines: Sequence[Mapping[str, Line]]) -> Iterator[Change]:
    name = _name(old or new)  # type: ignore[arg-type]
    sides = [_standings(board) for board in (old, new)]
    columns = {column.label: column for board in (old, new) if board for column in board.columns}
    for label, column in columns.items():
        rows = {row.name: row for side in sides for row, _ in side.get(label, {}).values()}
        for row_name, row in sorted(rows.items()):
            standings = [side.get(label, {}).get(row_name, (row, None))[1] for side in sides]
            reasons = tuple(_reasons(standings, lines) or _passed(row_name, sides, label))
            yield Change(name, column, row, standings[0], standings[1], reasons)


Standings = dict[str, dict[str, tuple[Row, Standing]]]


def _standings(board: Board | None) -> Standings:
    """The numbers of a table by the names of column and row."""
    found: Standings = {}
    for column in board.columns if board else ():
        assert board is not None
        order = board.ranked(column) if column.judged else []
        values = [board.value(row, column) for row in order]
        places = {row: values.index(board.value(row, column)) + 1 for row in order}  # Equal numbers share a place.
        cells = {row: cell for row in board.rows if (cell := board.cell(row, column)) is not None}
        found[column.label] = {row.name: (row, Standing(cell, places.get(row), len(order))) for row, cell in cells.items()}
    return found


def _reasons(standings: Sequence[Standing | None], lines: Sequence[Mapping[str, Line]]) -> list[str]:
    """What differs between the lines of two numbers: what they are made of, else the weights, else where they were made."""
    if standings[0] is None or standings[1] is None:
        return []
    (old, new) = (
        {item.seed: sides[item.key] for item in standing.cell.numbers} for standing, sides in zip(standings, lines, strict=True) if standing
    )
    told = [f"seeds {_listed(old)} → {_listed(new)}"] if old.keys() != new.keys() else []
    for seed in sorted(old.keys() & new.keys(), key=str):
        if old[seed]["key"] != new[seed]["key"] or old[seed]["value"] != new[seed]["value"]:
            return told + (made_of(old[seed], new[seed]) or _made_where(old[seed], new[seed]))
    return told


def _listed(seeds: Mapping[int | None, Any]) -> str:
    return ", ".join(sorted(map(str, seeds)))


def made_of(old: Line, new: Line) -> list[str]:
    """What differs in what two numbers are made of: data, parts, parameters, recipe."""
    return [text for name in MADE_OF for text in _differences(old[name], new[name], name)]


def _made_where(old: Line, new: Line) -> list[str]:
    weights = ["the weights differ"] if old["weights"] != new["weights"] else []
    where = list(_differences(old["environment"], new["environment"], ""))
    return weights + where or ["nothing that is recorded differs"]


def _differences(old: Any, new: Any, name: str) -> Iterator[str]:
    """`augmenter.tau_u 0.5 → 0.4`, for everything that differs below a name."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for inner in sorted(old.keys() | new.keys()):
            if inner not in WORDS:
                below = name if inner in ("parameters", "versions") else f"{name}.{inner}" if name else inner
                yield from _differences(old.get(inner), new.get(inner), below)
    elif old != new:
        yield f"{name} {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = str(value["label"]) if isinstance(value, Mapping) and "label" in value else "none" if value is None else str(value)
    return text[:19] + "…" if text.startswith("sha256:") else text


def _passed(name: str, sides: Sequence[Standings], label: str) -> list[str]:
    """Whose coming, going or other number moved a row that is what it was."""
    ahead = []
    for side in sides:
        found = side.get(label, {})
        own = found[name][1].place if name in found else None
        ahead.append({other for other, (_, standing) in found.items() if own and standing.place and standing.place < own})
    if not ahead[0] and not ahead[1]:
        return []
    now, before = sorted(ahead[1] - ahead[0]), sorted(ahead[0] - ahead[1])
    return [*([f"now ahead of it: {', '.join(now)}"] if now else []), *([f"no longer ahead of it: {', '.join(before)}"] if before else [])]


def report(changes: Sequence[Change], tolerance: float | None = None, every: bool = False) -> str:
    """The changed places, the regressions and what is gone or new; with `every`, every number that is another one."""
    shown = [change for change in changes if every or change.moved or change.regressed(tolerance) or change.before is None or change.after is None]
    lines: list[str] = []
    table = None
    for change in shown:
        if change.table != table:
            table = change.table
            lines.append(f"{chr(10) if lines else ''}{table}")
        mark = "  REGRESSION" if change.regressed(tolerance) else ""
        lines.append(f"  {change.column.label} {change.column.arrow}  {change.row.name}: {_told(change)}{mark}")
        lines += [f"      {reason}" for reason in change.reasons]
    moved, worse = sum(change.moved for change in changes), sum(change.regressed(tolerance) for change in changes)
    numbers = sum(change.differs for change in changes)
    lines.append(f"{chr(10) if lines else ''}{numbers} numbers differ, {moved} places changed, {worse} regressions")
    return "\n".join(lines)


def _told(change: Change) -> str:
    if change.before is None or change.before.cell.value is None:
        return f"new, {_value(change.after)}" if change.after and change.after.cell.value is not None else "still missing"
    if change.after is None or change.after.cell.value is None:
        return f"gone, was {_value(change.before)}"
    values = f"{_value(change.before)} → {_value(change.after)}" if change.differs else f"{_value(change.after)} as before"
    if not change.moved:
        return values
    places = " → ".join("unranked" if side.place is None else f"{side.place} of {side.ranked}" for side in (change.before, change.after))
    return f"place {places}, {values}"


def _value(standing: Standing | None) -> str:
    assert standing is not None
    return with_interval(standing.cell)
