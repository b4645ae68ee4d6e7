"""Reported numbers: what papers print, beside what the boards have for the same data, network, method and metric."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.errors import InvalidValue
from bench.leaderboard.tables import Board, Cell, Column, Row
from bench.leaderboard.text import MISSING, column_digits, column_name, escaped, setting, with_interval
from bench.results import slug

FILE = "reported.toml"
KNOWN = ("paper", "where", "compares", "dataset", "model", "trainer", "noise", "explainer", "augmenter", "metrics", "factor", "note", "rows")
REQUIRED = ("paper", "where", "compares", "dataset", "model", "metrics", "rows")

Printed = tuple[Decimal, Decimal | None]  # A number with the decimals that the paper prints, and half its interval.


@dataclass(frozen=True)
class Reported:
    """One table of a paper. `rows` holds, for each method, a value per metric in our unit and half its interval where the paper gives one."""

    paper: str
    where: str
    compares: str  # "augmenter", "explainer" or "trainer"
    dataset: str
    model: str
    metrics: tuple[str, ...]
    rows: Mapping[str, tuple[Printed, ...]]
    fixed: Mapping[str, str] = field(default_factory=dict)  # Other parts by kind, where the paper names them.
    note: str = ""

    @property
    def title(self) -> str:
        fixed = "".join(f", {kind} {name}" for kind, name in self.fixed.items())
        return f"{self.where}: {self.dataset}, {self.model}{fixed}"


@dataclass(frozen=True)
class Match:
    """A number here that answers to a reported one."""

    board: Board
    row: Row
    column: Column
    cell: Cell
    part: Mapping[str, Any]


def read(path: Path) -> list[Reported]:
    """The tables of a file of reported numbers; none where there is no file. Raises InvalidValue naming what is wrong."""
    if not path.exists():
        return []
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal).get("table", [])
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
    factor = values.get("factor", 1.0)
    factors = factor if isinstance(factor, list) else [factor] * len(metrics)
    if len(factors) != len(metrics):
        raise InvalidValue(f"{where}: factor has {len(factors)} numbers for {len(metrics)} metrics.")
    rows = {}
    for method, numbers in values["rows"].items():
        if len(numbers) != len(metrics):
            raise InvalidValue(f"{where}: '{method}' has {len(numbers)} numbers for {len(metrics)} metrics.")
        rows[method] = tuple(_in_our_unit(each, unit) for each, unit in zip(numbers, factors, strict=True))
    fixed = {kind: values[kind] for kind in ("trainer", "noise", "explainer", "augmenter") if kind in values}
    plain = {name: values[name] for name in ("paper", "where", "compares", "dataset", "model", "note") if name in values}
    return Reported(metrics=metrics, rows=rows, fixed=fixed, **plain)


def _in_our_unit(printed: Any, factor: Any) -> Printed:
    value, half = (*printed, None)[:2] if isinstance(printed, list) else (printed, None)
    return Decimal(value) * Decimal(factor), None if half is None else Decimal(half) * Decimal(factor)


def matches(reported: Reported, boards: Sequence[Board]) -> dict[tuple[str, str], list[Match]]:
    """The numbers here by method and metric: same data, network, metric and every part that the paper names. Recipes may differ."""
    same = [board for board in boards if (board.dataset, _name(board.about["model"])) == (reported.dataset, reported.model)]
    return _matches(reported, same)


@dataclass(frozen=True)
class Elsewhere:
    """A paper's comparison on data, a network or a recipe that the paper does not have: a text per method and metric."""

    title: str
    dataset: str
    setting: str
    compares: str
    metrics: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]


def elsewhere(tables: Sequence[Reported], boards: Sequence[Board]) -> list[Elsewhere]:
    """What there is here of the comparisons in a paper's tables, on other data or another network, if of two methods at least."""
    printed = {(table.dataset, table.model) for table in tables}
    others = [board for board in boards if (board.dataset, _name(board.about["model"])) not in printed]
    found: dict[tuple[str, str, str, str], dict[tuple[str, str], list[Match]]] = {}
    for table in tables:
        for method_and_metric, matched in _matches(table, others).items():
            for match in matched:
                board = match.board
                place = found.setdefault((board.dataset, board.heading, setting(board), table.compares), {})
                known = place.setdefault(method_and_metric, [])
                if match not in known:  # Two tables of a paper may ask for the same number.
                    known.append(match)
    columns = list(dict.fromkeys(metric for table in tables for metric in table.metrics))
    methods = list(dict.fromkeys(method for table in tables for method in table.rows))
    return [
        _of_place(place, [method for method in methods if any(of == method for of, _ in matched)], columns, matched)
        for place, matched in found.items()
        if len({method for method, _ in matched}) > 1
    ]


def _of_place(
    place: tuple[str, str, str, str], methods: Sequence[str], metrics: Sequence[str], found: Mapping[tuple[str, str], Sequence[Match]]
) -> Elsewhere:
    dataset, heading, about, compares = place
    of_metric = {metric: [match for (_, of), matched in found.items() if of == metric for match in matched] for metric in metrics}
    there = {metric: matched for metric, matched in of_metric.items() if matched}
    digits = {metric: column_digits(match.cell.value for match in matched) for metric, matched in there.items()}

    def text(method: str, metric: str) -> str:
        return "; ".join(with_interval(match.cell, digits[metric]) for match in found.get((method, metric), [])) or MISSING

    def name(method: str) -> str:
        labels = {str(match.part["label"]) for (of, _), matched in found.items() if of == method for match in matched}
        return method if labels == {method} else f"{method} (as {', '.join(sorted(labels))})"

    shown = sorted({match.row.explainer for matched in there.values() for match in matched if match.row.explainer})
    by = f" Explained by {', '.join(shown)}." if shown and compares != "explainer" else ""
    heads = tuple(column_name(matched[0].column, metric) for metric, matched in there.items())
    rows = {name(method): tuple(text(method, metric) for metric in there) for method in methods}
    return Elsewhere(f"{dataset}, {heading}", dataset, about.strip() + by, compares, heads, rows)


def _matches(reported: Reported, boards: Sequence[Board]) -> dict[tuple[str, str], list[Match]]:
    found: dict[tuple[str, str], list[Match]] = {}
    whole = {(each.identity, each.kind): each for each in boards}  # The views of a board have the same cells.
    for board in (each for each in whole.values() if _concerns(reported, each)):
        for row, column, cell, parts in _cells(board):
            method, metric = _name(parts[reported.compares]), _name(board.parts["metric"].get(column.label))
            if method not in reported.rows or metric not in reported.metrics or cell.value is None:
                continue
            if all(_is(parts[kind], reported.fixed.get(kind), usual) for kind, usual in USUAL.items() if kind != reported.compares):
                found.setdefault((str(method), str(metric)), []).append(Match(board, row, column, cell, parts[reported.compares] or {}))
    return found


def _concerns(reported: Reported, board: Board) -> bool:
    """Does the board have a method and a metric of the table? It may have a million cells, and only then are they looked at."""
    parts = [board.about["trainer"]] if reported.compares == "trainer" else board.parts.get(reported.compares, {}).values()
    metrics = board.parts.get("metric", {}).values()
    return any(_name(part) in reported.rows for part in parts) and any(_name(part) in reported.metrics for part in metrics)


USUAL = {"trainer": None, "noise": {""}, "explainer": None, "augmenter": {"", "none"}}  # Where a paper names none: any (None), or none at all.


def _is(part: Mapping[str, Any] | None, wanted: str | None, usual: set[str] | None) -> bool:
    names = {""} if part is None else {part["name"], part["label"]}
    return wanted in names if wanted else usual is None or bool(usual & names)


def _cells(board: Board) -> Iterator[tuple[Row, Any, Cell, dict[str, Mapping[str, Any] | None]]]:
    for (row, column), cell in board.cells.items():
        parts = {"trainer": board.about["trainer"], "noise": board.about["noise"], "augmenter": board.parts["augmenter"].get(row.augmenter)}
        yield row, column, cell, {**parts, "explainer": board.parts["explainer"].get(row.explainer or "")}


def _name(part: Mapping[str, Any] | None) -> str | None:
    return None if part is None else str(part["name"])


def by_paper(tables: Sequence[Reported]) -> list[tuple[str, list[Reported]]]:
    """The tables of each paper, in the file's order."""
    return [(paper, list(group)) for paper, group in groupby(tables, key=lambda table: table.paper)]


def page(tables: Sequence[Reported], boards: Sequence[Board], header: str) -> str:
    """Every reported table with the numbers from here beside it, and after those of a paper what is measured here on other data."""
    parts, known = [header, "# Reported and measured here\n", READING], columns_of(boards)
    for paper, group in by_paper(tables):
        parts.append(f"## {escaped(paper)}\n")
        for table in group:
            parts.append(f"### {escaped(table.title)}\n")
            parts += [f"{escaped(table.note)}.\n"] if table.note else []
            parts.append(_text(table, matches(table, boards), known) + "\n")
        for other in elsewhere(group, boards):
            parts.append(f"### Measured here: [{escaped(other.title)}]({slug(other.dataset)}.md)\n")
            parts.append(f"{other.setting}\n")
            rows = [[escaped(method), *texts] for method, texts in other.rows.items()]
            parts.append(tabulate(rows, [other.compares, *map(escaped, other.metrics)], tablefmt="pipe", disable_numparse=True) + "\n")
    return "\n".join(parts)


READING = """What papers print, and what is measured here: beside it for the same data, network, method and metric, and below it on the data and
networks of our boards, with the setting of each. Where data, network or recipe differ the numbers need not agree; what can be compared is which
method is ahead, and the boards say which differences are sure.
"""


def columns_of(boards: Sequence[Board]) -> dict[str, Column]:
    """A column of each metric that the boards have, by the metric's name: its direction and unit."""
    return {name: column for board in boards for column in board.columns if (name := _name(board.parts["metric"].get(column.label)))}


def _text(table: Reported, found: Mapping[tuple[str, str], Sequence[Match]], known: Mapping[str, Column]) -> str:
    """Without the columns for numbers from here where there are none."""
    claims = {method: match.part["claim"] for (method, _), matched in found.items() for match in matched if match.part.get("claim")}
    names = [escaped(column_name(known[metric], metric) if metric in known else metric) for metric in table.metrics]
    heads = [text for name in names for text in ((f"{name}: reported", "here") if found else (name,))]
    headers = [table.compares, *heads, *(["what is shown of it"] if claims else [])]
    body = []
    for method, numbers in table.rows.items():
        cells = []
        for metric, number in zip(table.metrics, numbers, strict=True):
            cells.append(printed(*number))
            cells += ["; ".join(_here(match) for match in found.get((method, metric), [])) or MISSING] if found else []
        body.append([escaped(method), *cells, *([escaped(claims.get(method, MISSING))] if claims else [])])
    return tabulate(body, headers, tablefmt="pipe", disable_numparse=True)


def printed(value: Decimal, half: Decimal | None) -> str:
    """A number as the paper gives it, in our unit."""
    return f"{value:f}" + ("" if half is None else f" ± {half:f}")


def _here(match: Match) -> str:
    return f"[{with_interval(match.cell).replace('[', '(').replace(']', ')')}]({slug(match.board.dataset)}.md)"
