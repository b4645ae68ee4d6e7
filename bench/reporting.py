"""Reporting: the files a run leaves beside its store, the table at its end, and what is published from them. Needs no torch."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import leaderboard, results
from bench.errors import InvalidValue, did_you_mean
from bench.leaderboard import exports, pages
from bench.leaderboard.tables import Board, Column, boards
from bench.leaderboard.text import with_interval
from bench.results import Line
from bench.store import Store

COLUMN_WIDTH = 18  # Of a number in the terminal, its heading included.


def store_folder(given: Path | str | None = None) -> Path:
    """The store: what was given, `$BENCH_STORE`, or `bench-runs` where the command runs."""
    return Path(given or os.environ.get("BENCH_STORE") or "bench-runs")


def boards_folder(store: Path) -> Path:
    """The boards of the store's own runs."""
    return store / "boards"


def keep(store: Store, name: str, spec: str, lines: Sequence[Line]) -> Path:
    """Write what a run found beside the store: its spec, its lines and the local boards. Returns the folder of the boards."""
    folder = boards_folder(store.root)
    runs = store.root / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    (runs / f"{name}.toml").write_text(spec, encoding="utf-8")
    for old in (folder / "data").glob(f"*/{name}.*"):
        old.unlink(missing_ok=True)
    for old in folder.glob("*.md"):
        old.unlink(missing_ok=True)  # A page that no line speaks of any more would stay.
    results.add(lines, _rows(store, lines), folder / "data", name)
    leaderboard.write(folder / "data", folder)
    return folder


def _rows(store: Store, lines: Sequence[Line]) -> dict[str, list[float]]:
    """Each line's value per image."""
    return {line["key"]: _values(store, line["key"]) for line in lines if store.has(line["key"])}


def print_boards(console: Console, lines: Iterable[Line]) -> None:
    """The tables of these lines, as wide as the terminal lets them be."""
    for board in boards(lines):
        fitting = max(1, (console.width - 36) // COLUMN_WIDTH)
        for start in range(0, len(board.columns), fitting):
            console.print(_terminal_table(board, board.columns[start : start + fitting]))


def _terminal_table(board: Board, columns: Sequence[Column]) -> Table:
    title = escape(f"{board.dataset}, {board.heading}: {board.view or board.kind}")
    table = Table(title=title, title_justify="left")
    for heading in ["augmenter", *(["explainer"] if board.kind == "explanations" else [])]:
        table.add_column(heading)
    for column in columns:
        table.add_column(escape(f"{column.label} {column.arrow}"), justify="right")
    best = {column: board.best(column) if column.judged else set() for column in columns}
    for row in board.rows:
        cells = [(board.cell(row, column), row in best[column]) for column in columns]
        texts = ["–" if cell is None or cell.value is None else (f"[bold]{_short(cell)}[/bold]" if first else _short(cell)) for cell, first in cells]
        names = [row.augmenter, *([row.explainer] if row.explainer else [])]
        table.add_row(*map(escape, names), *texts, style="dim" if row.floor else None)
    return table


def _short(cell: Any) -> str:
    return with_interval(cell).split(" [")[0]


def show_results(source: Path | None, form: str = "table") -> None:
    """Print result lines of a file or folder: as tables, or in one of the other `FORMS`."""
    chosen = source or boards_folder(store_folder()) / "data"
    lines = results.lines_of(chosen)
    if form == "csv":
        click.echo(results.frame(chosen).to_csv(index=False), nl=False)
    elif form == "table":
        print_boards(Console(), lines)
    else:
        click.echo(FORMS[form](boards(lines)), nl=False)


def _markdown(tables: Sequence[Board]) -> str:
    return "\n\n".join(f"## {pages.title(table)}\n\n{pages.table_text(table)}" for table in tables) + "\n"


FORMS = {
    "cells": exports.boards_csv,
    "latex": exports.latex,
    "markdown": _markdown,
    "bibtex": lambda tables: exports.bibtex(exports.papers(tables)),
}


def publish_run(name: str, store: Path | None, folder: Path) -> None:
    """Add a run's lines, rows and pictures to the published boards. Nothing is written where a line contradicts a published one."""
    place = store_folder(store)
    local = boards_folder(place)
    files = sorted((local / "data").glob(f"*/{name}.jsonl"))
    if not files:
        known = sorted({path.stem for path in (local / "data").glob("*/*.jsonl")})
        raise InvalidValue(f"the store {place} has no run called '{name}'.{did_you_mean(name, known)}\nRuns: {', '.join(known) or 'none'}")
    lines = [line for file in files for line in results.read(file)]
    for path in results.publish(lines, _rows(Store(place), lines), folder / "data", name):
        click.echo(path)
    begins = {f"{results.slug(line['dataset']['name'])}--{results.slug(name)}--" for line in lines}
    for drawn in sorted(path for path in (local / "figures" / "networks").glob("*.png") if path.name.startswith(tuple(begins))):
        (folder / "figures" / "networks").mkdir(parents=True, exist_ok=True)  # They show no image.
        click.echo(shutil.copyfile(drawn, folder / "figures" / "networks" / drawn.name))
    free = {line["dataset"]["name"] for line in lines if line["dataset"]["redistributable"]}
    for dataset in sorted(free):
        pages = re.compile(re.escape(f"{dataset}-{name}") + r"(-\d+-\d+)?\.png")  # Not those of a run whose name goes on.
        for figure in sorted(path for path in (local / "figures").glob("*.png") if pages.fullmatch(path.name)):
            (folder / "figures").mkdir(parents=True, exist_ok=True)
            click.echo(shutil.copyfile(figure, folder / "figures" / figure.name))
        gallery = local / "gallery" / f"{results.slug(dataset)}-{results.slug(name)}"
        if gallery.is_dir():
            click.echo(shutil.copytree(gallery, folder / "gallery" / gallery.name, dirs_exist_ok=True))
    if (spec := place / "runs" / f"{name}.toml").exists():
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        click.echo(shutil.copyfile(spec, folder / "runs" / spec.name))
    for path in leaderboard.write(folder / "data", folder):
        click.echo(path)


def _values(store: Store, key: str) -> list[float]:
    from safetensors.numpy import load_file

    return [float(value) for value in load_file(store.path(key) / "rows.safetensors")["values"]]


def store_command(store: Path | None, forget: tuple[str, ...]) -> None:
    """Print what the store holds, or remove jobs from it."""
    place = Store(store_folder(store))
    for prefix in forget:
        _forget(place, prefix)
    stages = Counter(place.record(key)["stage"] for key in place.finished())
    partial = [path.name for path in sorted((place.root / "partial").glob("*"))]
    failed = sorted((place.root / "failed").glob("*.txt"))
    size = sum(path.stat().st_size for path in place.root.rglob("*") if path.is_file())
    counted = ", ".join(f"{count} {stage}" for stage, count in sorted(stages.items())) or "none"
    click.echo(f"{place.root}: {sum(stages.values())} finished jobs ({counted}), {size / 1e6:.1f} MB")
    if partial:
        click.echo(f"unfinished: {', '.join(key[:12] for key in partial)}; the same run carries on from there")
    for path in failed:
        last = path.read_text(encoding="utf-8").strip().splitlines()[-1]
        click.echo(f"failed: {path.stem[:12]} {last}\n    {path}")


def _forget(store: Store, prefix: str) -> None:
    found = [key for key in store.finished() if key.startswith(prefix)]
    if len(found) != 1 or len(prefix) < 4:
        raise InvalidValue(f"--forget {prefix}: {len(found)} jobs begin so. Give at least four digits of one key; `bench plan -v` prints them.")
    store.remove(found[0])
    click.echo(f"forgot {found[0]}")
