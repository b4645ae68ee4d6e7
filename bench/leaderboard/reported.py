"""Reported numbers: what papers print, beside what the boards have for the same data, network, method and metric."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.errors import InvalidValue
from bench.leaderboard.tables import Board, Cell, Row
from bench.leaderboard.text import MISSING, column_digits, escaped, number, with_interval
from bench.results import slug

FILE = "reported.toml"
KNOWN = ("paper", "where", "compares", "dataset", "model", "trainer", "noise", "explainer", "augmenter", "metrics", "factor", "note", "rows")
REQUIRED = ("paper", "where", "compares", "dataset", "model", "metrics", "rows")


@dataclass(frozen=True)
class Reported:
    """One table of a paper. `rows` holds, for each method, a value per metric and half its interval where the paper gives one."""

    paper: str
    where: str
    compares: str  # "augmenter", "explainer" or "trainer"
    dataset: str
    model: str
    metrics: tuple[str, ...]
    rows: Mapping[str, tuple[tuple[float, float | None], ...]]
    fixed: Mapping[str, str] = field(default_factory=dict)  # Other parts by kind, where the paper names them.
    factor: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class Match:
    """A number here that answers to a reported one."""

    board: Board
    row: Row
    cell: Cell
    part: Mapping[str, Any]


def read(path: Path) -> list[Reported]:
    """The tables of a file of reported numbers; none where there is no file. Raises InvalidValue naming what is wrong."""
    if not path.exists():
        return []
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("table", [])
    except tomllib.TOMLDecodeError as error:
        raise InvalidValue(f"{path} is not valid TOML: {error}.") from None
    return [_table(values, f"{path}, table {place}") for place, values in enumerate(tables, 1)]


def _table(values: Mapping[str, Any], where: str) -> Reported:
    missing, unknown = [name for name in REQUIRED if name not in values], [name for name in values if name not in KNOWN]
    if missing or unknown:
        raise InvalidValue(
            f"{where}: missing {', '.join(missing) or 'nothing'}; unknown {', '.join(unknown) or 'nothing'}.\nFields: {', '.join(KNOWN)}"
        )
    metrics = tuple(values["metrics"])
    rows = {}
    for method, numbers in values["rows"].items():
        if len(numbers) != len(metrics):
            raise InvalidValue(f"{where}: '{method}' has {len(numbers)} numbers for {len(metrics)} metrics.")
        rows[method] = tuple((float(each[0]), float(each[1])) if isinstance(each, list) else (float(each), None) for each in numbers)
    fixed = {kind: values[kind] for kind in ("trainer", "noise", "explainer", "augmenter") if kind in values}
    plain = {name: values[name] for name in ("paper", "where", "compares", "dataset", "model", "note", "factor") if name in values}
    return Reported(metrics=metrics, rows=rows, fixed=fixed, **plain)


def matches(reported: Reported, boards: Sequence[Board]) -> dict[tuple[str, str], list[Match]]:
    """The numbers here by method and metric: same data, network, metric and every part that the paper names. Recipes may differ."""
    found: dict[tuple[str, str], list[Match]] = {}
    for board in boards:
        if board.dataset != reported.dataset or _name(board.about["model"]) != reported.model:
            continue
        for row, column, cell, parts in _cells(board):
            named = {kind: _name(part) for kind, part in parts.items()}
            method, metric = named.get(reported.compares), _name(board.parts["metric"].get(column.label))
            if method is None or method not in reported.rows or metric not in reported.metrics or cell.value is None:
                continue
            if all(named.get(kind) == name for kind, name in reported.fixed.items()) and ("noise" in reported.fixed or named["noise"] is None):
                found.setdefault((method, metric), []).append(Match(board, row, cell, parts[reported.compares] or {}))
    return found


def _cells(board: Board) -> Iterator[tuple[Row, Any, Cell, dict[str, Mapping[str, Any] | None]]]:
    for (row, column), cell in board.cells.items():
        parts = {"trainer": board.about["trainer"], "noise": board.about["noise"], "augmenter": board.parts["augmenter"].get(row.augmenter)}
        yield row, column, cell, {**parts, "explainer": board.parts["explainer"].get(row.explainer or "")}


def _name(part: Mapping[str, Any] | None) -> str | None:
    return None if part is None else str(part["name"])


def page(tables: Sequence[Reported], boards: Sequence[Board], header: str) -> str:
    """Every reported table with the numbers from here beside it."""
    parts = [header, "# Reported and measured here\n", READING]
    for paper, group in groupby(tables, key=lambda table: table.paper):
        parts.append(f"## {escaped(paper)}\n")
        for table in group:
            fixed = "".join(f", {kind} {name}" for kind, name in table.fixed.items())
            parts.append(f"### {escaped(f'{table.where}: {table.dataset}, {table.model}{fixed}')}\n")
            parts += [f"{escaped(table.note)}.\n"] if table.note else []
            parts.append(_text(table, matches(table, boards)) + "\n")
    return "\n".join(parts)


READING = """What papers print, and what is measured here for the same data, network, method and metric, by the recipe of our boards.
Where the recipes differ the two need not agree; what can be compared is which method is ahead. – stands for what has not been measured here.
"""


def _text(table: Reported, found: Mapping[tuple[str, str], Sequence[Match]]) -> str:
    claims = {method: match.part["claim"] for (method, _), matched in found.items() for match in matched if match.part.get("claim")}
    pairs = (text for metric in table.metrics for text in (f"{escaped(metric)}: reported", "here"))
    headers = [table.compares, *pairs, *(["what is shown of it"] if claims else [])]
    digits = [column_digits(numbers[place][0] * table.factor for numbers in table.rows.values()) for place in range(len(table.metrics))]
    body = []
    for method, numbers in table.rows.items():
        cells = []
        for metric, (value, half), decimals in zip(table.metrics, numbers, digits, strict=True):
            cells.append(printed(value, half, table.factor, decimals))
            cells.append("; ".join(_here(match, decimals) for match in found.get((method, metric), [])) or MISSING)
        body.append([escaped(method), *cells, *([escaped(claims.get(method, MISSING))] if claims else [])])
    return tabulate(body, headers, tablefmt="pipe", disable_numparse=True)


def printed(value: float, half: float | None, factor: float, digits: int | None = None) -> str:
    """A number as the paper gives it, in our unit."""
    digits = column_digits([value * factor]) if digits is None else digits
    return number(value * factor, digits) + ("" if half is None else f" ± {number(half * factor, digits)}")


def _here(match: Match, digits: int) -> str:
    return f"[{with_interval(match.cell, digits).replace('[', '(').replace(']', ')')}]({slug(match.board.dataset)}.md)"
