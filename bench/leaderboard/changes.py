"""Changes: what each augmentation changes against training without one, paired on the same seeds or images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tabulate import tabulate

from bench.leaderboard.comparisons import Against, Comparison, Verdict
from bench.leaderboard.tables import Board, Column, Row
from bench.leaderboard.text import MISSING, column_digits, column_name, escaped, number

FOLDED = 40  # Rows from which on the table is folded away.

NOTE = """A row less that of {plain}, on the same {unit}, with the interval of that one difference. **Better** and **worse** are told apart after
Holm's correction over the column."""
RANKS = "Over images the test is one of ranks and finds what the interval of the mean may not."
CONTROLS = "Rows in italics look at no network: what changes there as well is how sure the network is, not what its map shows."


def section(board: Board, groups: Iterable[Sequence[Column]], judged: Mapping[Column, Verdict]) -> Iterator[str]:
    """A table of paired differences for each group of columns; nothing where nothing was compared."""
    found = {column: _changes(board, verdict) for column, verdict in judged.items()}
    rows = _in_order(board, {row: None for changes in found.values() for row in changes})
    if not rows:
        return
    yield "#### What the augmentation changes\n"
    yield _note([each for changes in found.values() for each in changes.values()]) + "\n"
    if len(rows) > FOLDED:
        yield f"<details><summary>{len(rows)} rows</summary>\n"
    for columns in groups:
        if known := [column for column in columns if found.get(column)]:
            yield _text(board, rows, {column: found[column] for column in known}) + "\n"
    if len(rows) > FOLDED:
        yield "</details>\n"


def _in_order(board: Board, rows: Iterable[Row]) -> list[Row]:
    """By augmenter as on the board, each with its floors last; a view of a board lacks some of them."""
    augmenters = list(dict.fromkeys(row.augmenter for row in board.rows))
    return sorted(rows, key=lambda row: (augmenters.index(row.augmenter), row.floor, row.explainer or ""))


def _changes(board: Board, verdict: Verdict) -> dict[Row, Comparison]:
    against: tuple[Against, ...] = ("floor",) if board.kind == "networks" else ("plain", "control")
    return {each.row: each for each in verdict.comparisons if each.against in against}


def _note(found: Sequence[Comparison]) -> str:
    units = sorted({each.difference.unit for each in found}, reverse=True)
    plain = " or ".join(sorted({escaped(each.other.augmenter) for each in found}))
    parts = [NOTE.format(plain=plain, unit=" or ".join(units)), *([RANKS] if "images" in units else [])]
    return " ".join([*parts, *([CONTROLS] if any(each.against == "control" for each in found) else [])])


def _text(board: Board, rows: Sequence[Row], found: Mapping[Column, Mapping[Row, Comparison]]) -> str:
    heads = (escaped(column_name(column)) for column in found)
    digits = {column: column_digits(each.difference.mean for each in changes.values()) for column, changes in found.items()}
    explained = board.kind == "explanations"
    body = [
        [
            *(f"*{escaped(name)}*" if row.floor else escaped(name) for name in (row.augmenter, *([row.explainer or ""] if explained else []))),
            *(_cell(changes.get(row), digits[column]) for column, changes in found.items()),
        ]
        for row in rows
    ]
    return tabulate(body, ["augmenter", *(["explainer"] if explained else []), *heads], tablefmt="pipe", disable_numparse=True)


def _cell(change: Comparison | None, digits: int) -> str:
    """`+1.20 [0.40, 2.00] **better**`."""
    if change is None:
        return MISSING
    found = change.difference
    sign = "+" if found.mean > 0 else ""
    verdict = (" **better**" if change.better else " **worse**") if change.told_apart else ""
    return f"{sign}{number(found.mean, digits)} [{number(found.interval[0], digits)}, {number(found.interval[1], digits)}]{verdict}"
