"""Content: what the templates and the script are given, as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.leaderboard import figures
from bench.leaderboard.changes import changes
from bench.leaderboard.comparisons import Comparison, PerImage, Verdict, disagreements
from bench.leaderboard.tables import Board, Cell, Column, Row
from bench.leaderboard.text import MISSING, column_digits, number
from bench.results import Line, slug

Verdicts = Mapping[Column, Verdict]
CURVE_POINTS = 64


# Tables


def table(board: Board, judged: Verdicts, per_image: PerImage, identifier: str) -> dict[str, Any]:
    """One board: its columns, its rows with their cells, what the tests say, and the data of its figures."""
    columns = [_column(board, column, judged.get(column)) for column in board.columns]
    rows = [_row(board, row, board.columns, columns, judged) for row in board.rows]
    return {
        "id": identifier,
        "kind": board.kind,
        "view": board.view,
        "columns": columns,
        "categories": list(dict.fromkeys(column["category"] for column in columns)),
        "rows": rows,
        "has_explainer": board.kind == "explanations",
        "changes": _changes(board, judged),
        "verdicts": [_verdict(verdict) for verdict in judged.values() if verdict.comparisons],
        "steady": any(verdict.stability for verdict in judged.values()),
        "agreement": _agreement(board, judged),
        "ranks": list(_ranks(board, judged, per_image)),
        "points": _points(board),
        "curves": _curves(board),
        "machines": sorted({column.machine for column in board.columns if column.machine}),
        "seeds": board.seeds,
    }


def _column(board: Board, column: Column, verdict: Verdict | None) -> dict[str, Any]:
    counts = sorted({cell.images for row in board.rows if (cell := board.cell(row, column))})
    part = board.parts["metric"].get(column.label, {})
    return {
        "label": column.label,
        "unit": column.unit,
        "arrow": column.arrow,
        "higher": column.higher_is_better,
        "category": column.category,
        "timed": column.machine is not None,
        "images": f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "",
        "tested_over": verdict.tested_over if verdict else "",
        "method": method_page("metric", part) if part else None,
        "digits": column_digits(board.value(row, column) for row in board.rows),
    }


def _row(board: Board, row: Row, columns: Sequence[Column], shown: Sequence[Mapping[str, Any]], judged: Verdicts) -> dict[str, Any]:
    links = {kind: method_page(kind, part) for kind in ("augmenter", "explainer") if (part := board.parts[kind].get(getattr(row, kind) or ""))}
    cells = [_cell(board, row, column, about["digits"], judged.get(column)) for column, about in zip(columns, shown, strict=True)]
    return {"augmenter": row.augmenter, "explainer": row.explainer, "name": row.name, "floor": row.floor, "links": links, "cells": cells}


def _cell(board: Board, row: Row, column: Column, digits: int, verdict: Verdict | None) -> dict[str, Any]:
    cell = board.cell(row, column)
    if cell is None or cell.value is None:
        return {"value": None}
    best = column.judged and row in board.best(column)
    ranked = not column.judged or row in (verdict.order if verdict else board.ranked(column))
    against = verdict.of(row, "best") if verdict else None
    return {
        "value": cell.value,
        "text": number(cell.value, digits),
        "spread": _spread(cell, digits),
        "about": _about(cell, column),
        "best": best,
        "tied": against is not None and not against.told_apart,
        "at_floor": verdict is not None and verdict.beats(row, "floor") is False,
        "unranked": not ranked,
    }


def _spread(cell: Cell, digits: int) -> str:
    if cell.interval is None:
        return ""
    low, high = cell.interval
    return f"± {number((high - low) / 2, digits)}" if cell.interval_over == "seeds" else f"{number(low, digits)} – {number(high, digits)}"


def _about(cell: Cell, column: Column) -> str:
    seeds = f"mean over {cell.seeds} seeds" if cell.seeds > 1 else "one network"
    images = "" if column.machine else f", {cell.images} images" + (f", {cell.unscored} without a score" if cell.unscored else "")
    return f"{seeds}{images}" + (f"; 95 % interval over {cell.interval_over}" if cell.interval else "")


# What the augmentation changes


def _changes(board: Board, judged: Verdicts) -> dict[str, Any] | None:
    """Each row less the same row without augmentation, as the markdown pages have it; None where nothing was compared."""
    found = changes(board, judged)
    if found is None:
        return None
    digits = found.digits
    return {
        "columns": [{"label": f"{column.label} {column.arrow}", "unit": column.unit} for column in found.of],
        "rows": [{"row": row, "cells": [_change(known.get(row), digits[column]) for column, known in found.of.items()]} for row in found.rows],
        "plain": found.plain,
        "units": found.units,
        "notes": found.notes,
        "folded": found.folded,
    }


def _change(change: Comparison | None, digits: int) -> dict[str, str] | None:
    if change is None:
        return None
    found = change.difference
    low, high = (number(limit, digits) for limit in found.interval)
    told = ("better" if change.better else "worse") if change.told_apart else ""
    return {"text": ("+" if found.mean > 0 else "") + number(found.mean, digits), "interval": f"{low} to {high}", "told": told}


# What the tests say


def _verdict(verdict: Verdict) -> dict[str, Any]:
    column = verdict.column
    return {
        "metric": f"{column.label} {column.arrow}",
        "best": verdict.best.name,
        "tied": [row.name for row in verdict.tied],
        "tested": any(each.against == "best" for each in verdict.comparisons),
        "beats": verdict.counted("floor"),
        "better": verdict.counted("plain"),
        "first": f"{100 * verdict.stability.share(verdict.best):.0f} %" if verdict.stability else "",
        "over": verdict.tested_over,
    }


def _agreement(board: Board, judged: Verdicts) -> dict[str, Any] | None:
    columns = list(judged)
    taus = {pair: tau for pair, tau in disagreements(board, columns).items() if tau == tau}
    if not taus:
        return None
    (first, second), tau = min(taus.items(), key=lambda item: (item[1], item[0][0].label, item[0][1].label))
    grid = [[_tau(taus, columns, row, column) for column in range(len(columns))] for row in range(len(columns))]
    leaders = [judged[column].best.name for column in (first, second)]
    labels = [column.label for column in columns]
    return {"labels": labels, "grid": grid, "furthest": [first.label, second.label], "tau": number(tau, 2), "leaders": leaders}


def _tau(taus: Mapping[tuple[Column, Column], float], columns: Sequence[Column], row: int, column: int) -> dict[str, Any]:
    if row == column:
        return {"text": "", "shade": ""}
    tau = taus.get((columns[min(row, column)], columns[max(row, column)]))
    if tau is None:
        return {"text": "–", "shade": ""}
    shade = ("against" if tau < 0 else "for") + str(min(4, int(abs(tau) * 5)))
    return {"text": number(tau, 2), "shade": shade}


def _ranks(board: Board, judged: Verdicts, per_image: PerImage) -> Iterator[dict[str, str]]:
    """The figures of mean ranks, without colours of their own: the page's style sheet has them, light and dark."""
    for column in judged:
        for about, rows in figures.slices(board, column):
            drawn = figures.critical_difference_figure(board, column, rows, per_image, about)
            if drawn is not None:
                yield {"title": f"{column.label} {column.arrow}" + (f": {about}" if about else ""), "svg": drawn.replace(figures.STYLE, "")}


# Figures that the script draws


def _points(board: Board) -> dict[str, Any]:
    """Every number of the table: what the figure of quality against cost chooses from."""
    columns = [{"label": each.label, "unit": each.unit, "higher": each.higher_is_better, "cost": not each.judged} for each in board.columns]
    rows = [{"name": row.name, "floor": row.floor, "values": [_rounded(board.value(row, column)) for column in board.columns]} for row in board.rows]
    return {"columns": columns, "rows": rows}


def _curves(board: Board) -> list[dict[str, Any]]:
    """The curves of each metric that has them, averaged over seeds where they have the same steps."""
    found = []
    for column in board.columns:
        lines = [each for row in board.valued(column) if (each := _curve(board, row, column))]
        if lines:
            first = board.cells[board.valued(column)[0], column].numbers[0].curve or {}
            about = {"label": f"{column.label} {column.arrow}", "x_label": first.get("x_label", ""), "y_label": first.get("y_label", "")}
            found.append({**about, "lines": lines})
    return found


def _curve(board: Board, row: Row, column: Column) -> dict[str, Any] | None:
    curves = [number.curve for number in board.cells[row, column].numbers if number.curve]
    if not curves or any(curve["x"] != curves[0]["x"] for curve in curves):
        return None
    mean = [sum(values) / len(values) for values in zip(*(curve["y"] for curve in curves), strict=True)]
    step = max(1, len(mean) // CURVE_POINTS)
    kept = sorted({*range(0, len(mean), step), len(mean) - 1})
    xs = [_rounded(curves[0]["x"][place]) for place in kept]
    return {"name": row.name, "floor": row.floor, "x": xs, "y": [_rounded(mean[place]) for place in kept]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


# Methods


@dataclass
class Method:
    """A part as its page shows it."""

    kind: str
    name: str
    plugin: str
    parts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    places: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first(self) -> Mapping[str, Any]:
        return next(iter(self.parts.values()))

    def said(self, name: str) -> str:
        """A text that the part's lines may have: `paper`, `claim`."""
        return str(self.first.get(name) or "")

    @property
    def page(self) -> str:
        return method_page(self.kind, self.first)


def method_page(kind: str, part: Mapping[str, Any]) -> str:
    return f"methods/{kind}-{slug(str(part['name']))}.html"


def methods(boards: Sequence[Board]) -> dict[tuple[str, str], Method]:
    """Every part on the boards by kind and name, with the variants it was used in."""
    found: dict[tuple[str, str], Method] = {}
    for board in boards:
        about = {kind: {str(part["label"]): part} for kind in ("model", "trainer", "noise") if (part := board.about[kind])}
        for kind, parts in {**board.parts, **about}.items():
            for label, part in parts.items():
                method = found.setdefault((kind, str(part["name"])), Method(kind, str(part["name"]), str(part["plugin"])))
                method.parts.setdefault(json.dumps([label, part.get("version"), part.get("parameters")], sort_keys=True), {**part, "shown_as": label})
    return dict(sorted(found.items()))


def place_methods(known: Mapping[tuple[str, str], Method], board: Board, judged: Verdicts, page: str) -> None:
    """Tell each augmenter and explainer where it came in: its best row in every ranked column, and what the tests say of it."""
    for column, verdict in judged.items():
        for kind in ("augmenter", "explainer"):
            for name, row in _best_rows(board, verdict, kind).items():
                known[kind, name].places.append({"page": page, **_place(board, column, verdict, row)})


def _best_rows(board: Board, verdict: Verdict, kind: str) -> dict[str, Row]:
    """The first row of each part. An augmenter is not placed by what an explainer that looks at nothing makes of it."""
    found: dict[str, Row] = {}
    for row in verdict.order:
        part = board.parts[kind].get(getattr(row, kind) or "")
        if part is not None and not (row.floor and kind == "augmenter" and board.kind == "explanations"):
            found.setdefault(str(part["name"]), row)
    return found


def _place(board: Board, column: Column, verdict: Verdict, row: Row) -> dict[str, str]:
    """Its place among the rows that are no floors."""
    rivals = [each for each in verdict.order if not each.floor]
    value = board.value(row, column)
    assert value is not None
    return {
        "dataset": board.dataset,
        "network": f"{board.about['model']['label']}, {board.about['trainer']['label']}" + (f": {board.view}" if board.view else ""),
        "metric": f"{column.label} {column.arrow}",
        "place": "a floor" if row.floor else f"{rivals.index(row) + 1} of {len(rivals)}",
        "tests": _standing(verdict, row),
        "row": row.name,
        "value": number(value, column_digits([value])),
    }


def _standing(verdict: Verdict, row: Row) -> str:
    """`tied with the best, not better than its floor`."""
    against, above_floor = verdict.of(row, "best"), verdict.beats(row, "floor")
    words = (
        [_lead(verdict)] if row == verdict.best else [] if against is None else ["behind the best" if against.told_apart else "tied with the best"]
    )
    words += [] if above_floor is None else ["better than its floor" if above_floor else "not better than its floor"]
    return ", ".join(filter(None, words)) or MISSING


def _lead(verdict: Verdict) -> str:
    """What the tests say of the best row and the others that are no floors."""
    tested = [each for each in verdict.comparisons if each.against == "best" and not each.row.floor]
    tied = sum(not each.told_apart for each in tested)
    return f"tied with {tied} other{'s' if tied > 1 else ''}" if tied else "ahead of all others" if tested else ""


# Runs


@dataclass
class Run:
    """What a run's lines say about it."""

    name: str
    lines: int = 0
    seconds: float = 0.0
    datasets: dict[str, str] = field(default_factory=dict)
    environments: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    distributions: set[str] = field(default_factory=set)
    finished: list[str] = field(default_factory=lambda: ["9999", ""])

    @property
    def page(self) -> str:
        return f"runs/{slug(self.name)}.html"

    @property
    def packages(self) -> list[str]:
        """What to install: `bench-xai==0.1.0`."""
        return sorted(name.replace(" ", "==") for name in self.distributions if "/" not in name)

    @property
    def files(self) -> list[str]:
        """Plugins of one file that were used; only their names, for the path was another machine's."""
        return sorted(name.rsplit("/", 1)[-1] for name in self.distributions if "/" in name)

    @property
    def sorted_networks(self) -> list[dict[str, Any]]:
        wanted = ("dataset", "model", "trainer", "noise", "augmenter")
        return sorted(self.networks.values(), key=lambda each: (*(each[name] for name in wanted), each["seed"] or 0, each["key"]))


def noted(lines: Iterable[Line], runs: dict[str, Run]) -> Iterator[Line]:
    """Pass lines on, and note of each what the page of its run needs."""
    for line in lines:
        run = runs.setdefault(line["run"], Run(line["run"]))
        run.lines += 1
        run.seconds += line["seconds"] or 0.0
        run.finished = [min(run.finished[0], line["finished"]), max(run.finished[1], line["finished"])]
        run.datasets.setdefault(line["dataset"]["name"], line["dataset"]["fingerprint"])
        run.environments.setdefault(json.dumps(line["environment"], sort_keys=True), line["environment"])
        if line["training"] not in run.networks:
            run.networks[line["training"]] = _trained(line)
        run.distributions |= {part["distribution"] for kind in ("model", "trainer", "augmenter", "explainer", "metric") if (part := line[kind])}
        yield line


def _trained(line: Line) -> dict[str, Any]:
    labels = {kind: line[kind]["label"] if line[kind] else "" for kind in ("model", "trainer", "augmenter", "noise")}
    return {**labels, "dataset": line["dataset"]["name"], "seed": line["seed"], "weights": line["weights"], "key": line["training"]}
