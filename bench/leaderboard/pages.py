"""Pages: boards as markdown, the same bytes from the same lines, wherever they are made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from tabulate import tabulate

from bench.errors import BenchError
from bench.leaderboard import changes, exports, figures, passes, reported
from bench.leaderboard.comparisons import Against, PerImage, Verdict, disagreements, pairs_of, verdicts
from bench.leaderboard.tables import Board, Column, Row, boards, count
from bench.leaderboard.text import MISSING, column_digits, column_name, escaped, number, setting, with_interval
from bench.results import read, rows_of, slug

HEADER = "<!-- Written by `bench leaderboard` from the lines in data/. Changes by hand are lost. -->\n"
TIED, NOT_ABOVE_FLOOR = "≈", "°"
WIDE = 6  # Columns; a table with more is split by category, and a category with more into parts.
NAMED = 4  # Rows named in a sentence before "and 3 more".
SPELT = 8  # Augmenters or explainers that the overview names one by one.

Verdicts = Mapping[Column, Verdict]


def build(data: Path) -> dict[str, str]:
    """The text of every page by its file name: README.md, for each dataset a page, its figures and its comparisons, and methods.bib."""
    pages: dict[str, str] = {}
    printed = reported.read(data.parent / reported.FILE)
    cited: list[Board] = []
    overview: list[list[str | int]] = []
    papers: dict[str, list[str]] = {}
    for folder in sorted({path.parent for path in data.glob("*/*.jsonl")}):
        tables = boards(line for path in sorted(folder.glob("*.jsonl")) for line in read(path))
        per_image = rows_of(folder)
        for name, group in groupby(tables, key=lambda table: table.dataset):
            found = list(group)
            pages |= dataset_pages(name, found, per_image, data)
            cited += found if printed else []
            overview.append(_overview_row(name, found))
            for paper, methods in exports.papers(found).items():
                papers[paper] = sorted({*papers.get(paper, ()), *methods})
    pages["README.md"] = _overview(overview, bool(papers), bool(printed))
    if printed:
        pages["reported.md"] = reported.page(printed, cited, HEADER)
    if papers:
        pages["methods.bib"] = exports.bibtex(papers)
    return pages


def write(data: Path, folder: Path) -> list[Path]:
    """Write the pages and remove those of lines that are gone; what stands there already and is the same is left alone."""
    written = []
    pages = build(data)
    for path in _stale(folder, pages):
        path.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is(path, text):
            path.write_text(text, encoding="utf-8", newline="")
        written.append(path)
    return written


def check(data: Path, folder: Path) -> None:
    """Raise BenchError naming the pages that are not what the lines say."""
    pages = build(data)
    wrong = [name for name, text in pages.items() if not _is(folder / name, text)]
    wrong += [str(path.relative_to(folder)) for path in _stale(folder, pages)]
    if wrong:
        raise BenchError(f"{', '.join(wrong)} in {folder} is not what the published lines say.\nWrite it again: bench leaderboard")


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_bytes() == text.encode()


def _stale(folder: Path, pages: Mapping[str, str]) -> list[Path]:
    """Files that only an earlier writing can have left."""
    ours = [path for path in folder.glob("*.md") if path.read_text(encoding="utf-8").startswith(HEADER)]
    ours += [*folder.glob("*-comparisons.csv"), *folder.glob("figures/*-ranks-*.svg"), *folder.glob("figures/*-passes-*.svg")]
    return sorted(path for path in ours if path.relative_to(folder).as_posix() not in pages)


# The overview


def _overview_row(name: str, tables: Sequence[Board]) -> list[str | int]:
    networks = "; ".join(dict.fromkeys(escaped(table.heading) for table in tables))
    augmenters = sorted({row.augmenter for table in tables for row in table.rows})
    explainers = sorted({row.explainer for table in tables for row in table.rows if row.explainer})
    return [f"[{escaped(name)}]({slug(name)}.md)", networks, _spanned(augmenters), _spanned(explainers), count(tables)]


def _spanned(names: Sequence[str]) -> str:
    """All of a few names; how many there are, and the first and the last, of many."""
    if len(names) <= SPELT:
        return ", ".join(map(escaped, names))
    return f"{len(names)}, from {escaped(names[0])} to {escaped(names[-1])}"


def _overview(rows: Sequence[Sequence[str | int]], with_papers: bool, with_reported: bool) -> str:
    beside = "\nWhat papers report, beside what is measured here: [reported.md](reported.md).\n" if with_reported else ""
    if not rows:
        return f"{HEADER}\n# Leaderboards\n\nNothing is published yet.\n{beside}"
    table = tabulate(rows, ["dataset", "networks", "augmenters", "explainers", "results"], tablefmt="pipe")
    papers = "\nThe papers of the methods, to cite: [methods.bib](methods.bib).\n" if with_papers else ""
    return f"{HEADER}\n# Leaderboards\n\n{table}\n{beside}{papers}\n{READING}"


READING = f"""## How to read a board

- A table holds only rows that may be compared: the same images, network, trainer, label noise and recipe.
- ↑ says that more is better, ↓ that less is. The best value of a column is **bold**.
- `0.91 ± 0.02` is a mean over trainings with different seeds and Student's 95 % interval over seeds: it speaks about the method.
  `0.91 [0.88, 0.93]` is one training and the 95 % bootstrap interval over images: it speaks about that one network.
- {TIED} marks what a paired test does not tell apart from the best: same seeds, or same images. The line below a table says which.
- *Italic* rows are floors: a network trained without augmentation, and explainers that look at nothing.
  {NOT_ABOVE_FLOOR} marks what is not better than its floor by more than luck. What does not beat its floor has shown nothing.
- {MISSING} stands for a number that is not there. It is never taken as zero or averaged around.
- ‡ marks a row without some of the seeds that most rows have; it is not ranked.
- What a method costs is not ranked. Columns marked † are times; they belong to the machine named below the table.
- Where neither seeds nor images are shared, nothing is tested and nothing is marked: then only the intervals speak.
- *As given* is a network that came with its weights: nothing was trained. *passes/image* counts forward and backward passes for one image.
- `bench plugins KIND NAME` prints the card of a method or metric: what it computes, and where it differs from its paper. *Formula verified*
  there says that tests hold it to its paper's formulas, *unverified* that they could not; neither says that the paper's results come out.
"""


# A dataset


def dataset_pages(name: str, tables: Sequence[Board], per_image: PerImage, data: Path) -> dict[str, str]:
    """The page of one dataset, its figures, and its comparisons as a table for the machine."""
    page, stem = [HEADER, f"# {escaped(name)}\n", f"Licence of the images: {escaped(tables[0].about['dataset']['licence'])}\n"], slug(name)
    files: dict[str, str] = {}
    tested = []
    for heading, group in groupby(tables, key=lambda table: table.heading):
        page.append(f"## {escaped(heading)}\n")
        told = ""
        for table in group:
            if setting(table) != told:
                told = setting(table)
                page.append(told)
            judged = verdicts(table, per_image)
            tested.append((table, judged))
            drawn = figures.critical_differences(table, judged, per_image, f"{stem}-{len(tested)}")
            costs = passes.against_passes(table, f"{stem}-{len(tested)}")
            files |= {f"figures/{file}": text for file, text in (drawn | costs).items()}
            page += [
                f"### {table.kind.capitalize()}{': ' if table.view else ''}{escaped(table.view)}\n",
                *_sections(table, judged),
                *_figures_list(drawn),
                *passes.section(costs),
            ]
    if any(verdict.comparisons for _, judged in tested for verdict in judged.values()):
        files[f"{stem}-comparisons.csv"] = exports.comparisons_csv(tested)
        page.append(f"Every comparison with its interval, effect and p: [{stem}-comparisons.csv]({stem}-comparisons.csv).\n")
    page += _pictures_section(name, data.parent)
    environments = sorted({each for table in tables for each in table.environments})
    page += [f"Computed with {'; '.join(map(escaped, environments))}.\n", *_methods(tables)]
    page.append("How to read a board: [README](README.md#how-to-read-a-board).\n")
    return {f"{stem}.md": "\n".join(page), **files}


def _sections(table: Board, judged: Verdicts) -> Iterator[str]:
    """The tables, one a category where there are many columns, then what the tests say."""
    for category, columns in categories(table):
        if category:
            yield f"#### {escaped(category.capitalize())}\n"
        yield table_text(table, columns, judged) + "\n"
    if judged:
        yield from changes.section(table, [columns for _, columns in categories(table)], judged)
        yield from _who_is_best(table, judged)
        yield from _agreement(table, judged)


def categories(table: Board) -> list[tuple[str, tuple[Column, ...]]]:
    """The columns by category, or all of them under no name where they fit side by side."""
    if len(table.columns) <= WIDE:
        return [("", table.columns)]
    found = []
    for name, group in groupby(table.columns, key=lambda column: column.category):
        columns = tuple(group)
        size = math.ceil(len(columns) / math.ceil(len(columns) / WIDE))  # Parts of equal width.
        found += [(name if not start else f"{name}, continued", columns[start : start + size]) for start in range(0, len(columns), size)]
    return found


def _pictures_section(name: str, source: Path) -> Iterator[str]:
    maps, drawn = sorted((source / "figures").glob(f"{slug(name)}-*.png")), drawn_by_metrics(name, source)
    if maps or drawn:
        yield "## Pictures\n"
    yield from (f"![Test images with the map of each explainer, by augmenter](figures/{figure.name})\n" for figure in maps)
    if drawn:
        yield f"<details><summary>What metrics draw of single networks, of the first seed ({len(drawn)})</summary>\n"
        for caption, figure in drawn.items():
            yield f"{escaped(caption)}\n\n![{caption}](figures/networks/{figure.name})\n"
        yield "</details>\n"


def drawn_by_metrics(name: str, source: Path) -> dict[str, Path]:
    """The figures that metrics drew of a data set's networks, by run, metric and network."""
    stem = f"{slug(name)}--"
    return {figure.stem.removeprefix(stem).replace("--", ", "): figure for figure in sorted((source / "figures" / "networks").glob(f"{stem}*.png"))}


def title(table: Board) -> str:
    """What the table is about, in a line."""
    return escaped(f"{table.dataset}, {table.heading}: {table.view or table.kind}")


# A table


def table_text(table: Board, columns: Sequence[Column] | None = None, judged: Verdicts | None = None) -> str:
    """Columns of a board as a markdown table with its notes."""
    chosen = table.columns if columns is None else columns
    judged = judged or {}
    headers = ["augmenter", *(["explainer"] if table.kind == "explanations" else []), *(escaped(column_name(column)) for column in chosen)]
    written = [_column_texts(table, column, judged.get(column)) for column in chosen]
    body = []
    for row in table.rows:
        names = [row.augmenter, *([row.explainer] if row.explainer else [])]
        body.append([*(f"*{escaped(name)}*" if row.floor else escaped(name) for name in names), *(texts.get(row, MISSING) for texts in written)])
    notes = [_target_note(table), _images_note(table, chosen), _tests_note(chosen, judged), _machine_note(chosen)]
    return tabulate(body, headers, tablefmt="pipe", disable_numparse=True) + "\n\n" + " ".join(note for note in notes if note)


def _column_texts(table: Board, column: Column, verdict: Verdict | None) -> dict[Row, str]:
    cells = {row: cell for row in table.rows if (cell := table.cell(row, column)) is not None and cell.value is not None}
    digits = column_digits(cell.value for cell in cells.values())
    best = table.best(column) if column.judged else set()
    ranked = set(table.ranked(column)) if column.judged else set(cells)
    marks = {row: ("" if row in ranked else " ‡") + _marks(row, verdict) for row in cells}
    return {row: (f"**{with_interval(cell, digits)}**" if row in best else with_interval(cell, digits)) + marks[row] for row, cell in cells.items()}


def _marks(row: Row, verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    best = verdict.of(row, "best")
    tied = f" {TIED}" if best is not None and not best.told_apart else ""
    return tied + (f" {NOT_ABOVE_FLOOR}" if verdict.beats(row, "floor") is False else "")


def _target_note(table: Board) -> str:
    target = table.about["images"].get("target")
    return f"Explained is the {target} class." if target and table.kind == "explanations" else ""


def _images_note(table: Board, columns: Sequence[Column]) -> str:
    counts: dict[int, list[str]] = {}
    unscored: dict[str, int] = {}
    for column in columns:
        for cell in (table.cell(row, column) for row in table.rows):
            if cell is None or not column.judged:
                continue
            if column.label not in counts.setdefault(cell.images, []):
                counts[cell.images].append(column.label)
            unscored[column.label] = max(unscored.get(column.label, 0), cell.unscored)
    if not counts:
        return ""
    most = max(counts, key=lambda count: (len(counts[count]), count))
    others = "; ".join(f"{', '.join(map(escaped, names))}: {count}" for count, names in sorted(counts.items()) if count != most)
    without = "; ".join(f"{escaped(label)}: up to {count}" for label, count in unscored.items() if count)
    return f"n = {most} images per number{f' ({others})' if others else ''}." + (f" Images without a score: {without}." if without else "")


def _tests_note(columns: Sequence[Column], judged: Verdicts) -> str:
    found: dict[str, list[str]] = {}
    for column in columns:
        if column in judged and judged[column].comparisons:
            found.setdefault(judged[column].tested_over, []).append(column.label)
    if not found:
        return ""
    units = list(found) if len(found) == 1 else [f"{unit} for {', '.join(map(escaped, labels))}" for unit, labels in found.items()]
    pairs = max(pairs_of(judged[column].order) for column in columns if column in judged)
    return (
        f"Tested over {'; '.join(units)}. {TIED} not told apart from the best (corrected for all {pairs} pairs of rows), "
        f"{NOT_ABOVE_FLOOR} not better than its floor."
    )


def _machine_note(columns: Sequence[Column]) -> str:
    machines = sorted({column.machine for column in columns if column.machine})
    return f"† measured on {'; '.join(map(escaped, machines))}." if machines else ""


# What the tests say


def _who_is_best(table: Board, judged: Verdicts) -> Iterator[str]:
    if not any(verdict.comparisons for verdict in judged.values()):
        return
    yield "#### Who is best, and how sure that is\n"
    counted: list[tuple[str, Against]] = [("beat their floor", "floor")]
    if any(each.against == "plain" for verdict in judged.values() for each in verdict.comparisons):
        counted.append(("better with the augmentation than without", "plain"))
    steady = any(verdict.stability for verdict in judged.values())
    headers = ["metric", "best", "not told apart from it", *(heading for heading, _ in counted), *(["still first"] if steady else []), "tested over"]
    body = []
    for column, verdict in judged.items():
        first = verdict.stability and f"{100 * verdict.stability.share(verdict.best):.0f} %"
        counts = [verdict.counted(against) or MISSING for _, against in counted]
        names = [f"{escaped(column.label)} {column.arrow}", escaped(verdict.best.name), _tied(verdict)]
        body.append([*names, *counts, *([first or MISSING] if steady else []), verdict.tested_over or MISSING])
    yield tabulate(body, headers, tablefmt="pipe", disable_numparse=True) + "\n"
    if steady:
        yield "*Still first*: how often the best row stays first when the images are drawn again, for these trained networks.\n"


def _tied(verdict: Verdict) -> str:
    if not any(each.against == "best" for each in verdict.comparisons):
        return MISSING
    return _listed([row.name for row in verdict.tied]) or "nothing"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(escaped, names[:NAMED])) + more


def _agreement(table: Board, judged: Verdicts) -> Iterator[str]:
    """Kendall's tau between the metrics, and the pair that disagrees most."""
    columns = [column for column in judged if judged[column].order]
    taus = {pair: tau for pair, tau in disagreements(table, columns).items() if tau == tau}
    if not taus:
        return
    yield "#### Do the metrics agree?\n"
    (first, second), tau = min(taus.items(), key=lambda item: (item[1], item[0][0].label, item[0][1].label))
    yield _disagreement(judged, first, second, tau)
    if len(columns) > 2:
        short = [escaped(column.label) for column in columns]
        body = [[short[place], *(_tau(taus, columns, place, other) for other in range(len(columns)))] for place in range(len(columns))]
        yield tabulate(body, ["τ", *short], tablefmt="pipe", disable_numparse=True) + "\n"


def _disagreement(judged: Verdicts, first: Column, second: Column, tau: float) -> str:
    leaders = [judged[column].best.name for column in (first, second)]
    who = (
        f"both put {escaped(leaders[0])} first"
        if leaders[0] == leaders[1]
        else f"{escaped(leaders[0])} leads the one, {escaped(leaders[1])} the other"
    )
    names = f"{escaped(first.label)} and {escaped(second.label)}"
    return f"Kendall's τ over the rows: 1 is the same order, -1 the opposite. Furthest apart are {names} (τ = {number(tau, 2)}): {who}.\n"


def _tau(taus: Mapping[tuple[Column, Column], float], columns: Sequence[Column], place: int, other: int) -> str:
    if place == other:
        return ""
    tau = taus.get((columns[min(place, other)], columns[max(place, other)]))
    return MISSING if tau is None else number(tau, 2)


def _figures_list(drawn: Mapping[str, str]) -> list[str]:
    if not drawn:
        return []
    pictures = "\n\n".join(f"![Mean ranks and which of them are not told apart](figures/{file})" for file in drawn)
    return [f"<details><summary>Critical differences of mean ranks over images ({len(drawn)})</summary>\n\n{pictures}\n\n</details>\n"]


# Methods


def _methods(tables: Sequence[Board]) -> list[str]:
    """Every method on the page: its version, what has been shown of it, and its paper."""
    found = {(kind, label): part for table in tables for kind, parts in table.parts.items() for label, part in parts.items()}
    if not any(part.get("paper") or part.get("claim") for part in found.values()):
        return []
    rows = [
        [kind, escaped(label), part.get("version", MISSING), escaped(str(part.get("claim") or MISSING)), escaped(str(part.get("paper") or MISSING))]
        for (kind, label), part in sorted(found.items())
    ]
    table = tabulate(rows, ["kind", "method", "version", "what is shown of it", "paper"], tablefmt="pipe", disable_numparse=True)
    return [f"## Methods on this page\n\n{table}\n"]
