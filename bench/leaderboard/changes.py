"""Changes: what each augmentation changes against training without one, paired on the same seeds or images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from bench.leaderboard.comparisons import Against, Comparison, Verdict
from bench.leaderboard.tables import Board, Column, Row
from bench.leaderboard.text import MISSING, column_digits, column_name, escaped, number

FOLDED = 40  # Rows from which on the table is folded away.

NOTE = """A row less that of {plain}, on the same {unit}, with the interval of that one difference. **Better** and **worse** are told apart after
Holm's correction over the column."""
RANKS = "Over images the test is one of ranks and finds what the interval of the mean may not."
CONTROLS = "Rows in italics look at no network: what changes there as well is how sure the network is, not what its map shows."


@dataclass(frozen=True)
class Changes:
    """The paired differences of a board: of each column, by row; and what they are taken from and over."""

    rows: tuple[Row, ...]
    of: Mapping[Column, Mapping[Row, Comparison]]

    @property
    def _every(self) -> list[Comparison]:
        return [each for changes in self.of.values() for each in changes.values()]

    @property
    def plain(self) -> str:
        return " or ".join(sorted({each.other.augmenter for each in self._every}))

    @property
    def units(self) -> str:
        return " or ".join(sorted({each.difference.unit for each in self._every}, reverse=True))

    @property
    def notes(self) -> list[str]:
        return [*([RANKS] if "images" in self.units else []), *([CONTROLS] if any(each.against == "control" for each in self._every) else [])]

    @property
    def folded(self) -> bool:
        return len(self.rows) > FOLDED

    @property
    def digits(self) -> dict[Column, int]:
        """Decimals for each column."""
        return {column: column_digits(each.difference.mean for each in known.values()) for column, known in self.of.items()}


def changes(board: Board, judged: Mapping[Column, Verdict]) -> Changes | None:
    """What was compared with training without augmentation, by augmenter as on the board and each with its floors last; None where nothing was.

    A view of a board lacks some of the floors, and they are here.
    """
    against: tuple[Against, ...] = ("floor",) if board.kind == "networks" else ("plain", "control")
    found = {column: {each.row: each for each in verdict.comparisons if each.against in against} for column, verdict in judged.items()}
    found = {column: known for column, known in found.items() if known}
    place = {name: number for number, name in enumerate(dict.fromkeys(row.augmenter for row in board.rows))}
    rows = sorted({row for known in found.values() for row in known}, key=lambda row: (place[row.augmenter], row.floor, row.explainer or ""))
    return Changes(tuple(rows), found) if rows else None


def section(board: Board, groups: Iterable[Sequence[Column]], judged: Mapping[Column, Verdict]) -> Iterator[str]:
    """A table of paired differences for each group of columns; nothing where nothing was compared."""
    found = changes(board, judged)
    if found is None:
        return
    yield "#### What the augmentation changes\n"
    yield " ".join([NOTE.format(plain=escaped(found.plain), unit=found.units), *found.notes]) + "\n"
    if found.folded:
        yield f"<details><summary>{len(found.rows)} rows</summary>\n"
    for columns in groups:
        if known := [column for column in columns if column in found.of]:
            yield _text(found, known, board.kind == "explanations") + "\n"
    if found.folded:
        yield "</details>\n"


def _text(found: Changes, columns: Sequence[Column], explained: bool) -> str:
    heads = (escaped(column_name(column)) for column in columns)
    body, digits = [], found.digits
    for row in found.rows:
        names = [row.augmenter, *([row.explainer or ""] if explained else [])]
        cells = (_cell(found.of[column].get(row), digits[column]) for column in columns)
        body.append([*(f"*{escaped(name)}*" if row.floor else escaped(name) for name in names), *cells])
    return tabulate(body, ["augmenter", *(["explainer"] if explained else []), *heads], tablefmt="pipe", disable_numparse=True)


def _cell(change: Comparison | None, digits: int) -> str:
    """`+1.20 [0.40, 2.00] **better**`."""
    if change is None:
        return MISSING
    found = change.difference
    sign = "+" if found.mean > 0 else ""
    verdict = (" **better**" if change.better else " **worse**") if change.told_apart else ""
    return f"{sign}{number(found.mean, digits)} [{number(found.interval[0], digits)}, {number(found.interval[1], digits)}]{verdict}"
