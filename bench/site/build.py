"""Build: read a folder of boards and write the site of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from bench.errors import InvalidValue
from bench.leaderboard import exports, reported
from bench.leaderboard.comparisons import verdicts
from bench.leaderboard.pages import drawn_by_metrics
from bench.leaderboard.tables import Board, Column, boards, count
from bench.leaderboard.text import MISSING, with_interval
from bench.results import read, rows_of, slug
from bench.site import content
from bench.site.cards import card, paragraphs

HERE = Path(__file__).parent


@dataclass
class Site:
    """What is gathered while the lines go by."""

    source: Path
    printed: list[reported.Reported] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    boards: list[Board] = field(default_factory=list)
    runs: dict[str, content.Run] = field(default_factory=dict)
    methods: dict[tuple[str, str], content.Method] = field(default_factory=dict)
    galleries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def build(source: Path, folder: Path) -> list[Path]:
    """Write the site of the boards in `source` (lines under data/, pictures under gallery/) to a folder, and return its pages."""
    site = Site(source, reported.read(source / reported.FILE), galleries=_galleries(source))
    pages = list(_dataset_pages(site))
    if not site.boards:
        raise InvalidValue(f"there are no result lines in {source / 'data'}.\nMake some: bench run")
    pages += _other_pages(site)
    shared = {"printed": bool(site.printed)}
    written = [_write(folder / name, template, {**values, **shared, "root": "../" * name.count("/")}) for name, template, values in pages]
    for asset in sorted((HERE / "assets").iterdir()):
        shutil.copyfile(asset, _made(folder / "assets") / asset.name)
    for found in site.galleries.values():
        for gallery in found:
            _copy_gallery(gallery, folder)
    for figure in sorted((source / "figures" / "networks").glob("*.png")):
        shutil.copyfile(figure, _made(folder / "networks") / figure.name)
    papers = exports.papers(site.boards)
    if papers:
        (folder / "methods.bib").write_text(exports.bibtex(papers), encoding="utf-8")
    return written


Page = tuple[str, str, dict[str, Any]]  # File name, template, what the template is given.


def _dataset_pages(site: Site) -> Iterator[Page]:
    for place in sorted({path.parent for path in (site.source / "data").glob("*/*.jsonl")}):
        lines = (line for path in sorted(place.glob("*.jsonl")) for line in read(path))
        tables = boards(content.noted(lines, site.runs), curves=True)
        per_image = rows_of(place)
        for name, group in groupby(tables, key=lambda table: table.dataset):
            found = list(group)
            page = f"{slug(name)}.html"
            site.boards += found
            site.methods = _merged(site.methods, content.methods(found))
            settings = []
            for heading, alike in groupby(enumerate(found), key=lambda item: item[1].heading):
                shown = []
                for number, board in alike:
                    judged = verdicts(board, per_image)
                    content.place_methods(site.methods, board, judged, page)
                    shown.append({"setting": _setting(board), **content.table(board, judged, per_image, f"table-{number + 1}")})
                settings.append({"title": heading, "tables": shown})
            site.datasets.append(_overview(name, page, found, settings, site.galleries.get(name, [])))
            about = found[0].about["dataset"]
            galleries = site.galleries.get(name, [])
            drawn = {caption: f"networks/{figure.name}" for caption, figure in drawn_by_metrics(name, site.source).items()}
            shown_too = {"licence": about["licence"], "galleries": galleries, "drawn": drawn}
            yield page, "dataset.html", {"name": name, "settings": settings, "current": page, **shown_too}
            for gallery in galleries:
                yield gallery["page"], "gallery.html", {"gallery": gallery, "dataset_page": page, "current": page}


def _merged(known: dict[tuple[str, str], content.Method], more: Mapping[tuple[str, str], content.Method]) -> dict[tuple[str, str], content.Method]:
    for name, method in more.items():
        known.setdefault(name, method).parts.update(method.parts)
    return dict(sorted(known.items()))


def _setting(board: Board) -> list[tuple[str, str]]:
    """What the rows of a table have in common, as terms and values."""
    about, recipe = board.about, board.about["recipe"]
    found = [("Test images", about["dataset"]["fingerprint"][:19])]
    if about["images"].get("target"):
        found.append(("Explained class", about["images"]["target"]))
    if recipe is None:
        return [*found, ("Weights", about["weights"][:19])]
    size = recipe["train_images"] or "all"
    length = f"the passes of {recipe['epochs']} plain epochs" if recipe.get("equal_passes") else f"{recipe['epochs']} epochs"
    training = f"{size} images, {length}, batches of {recipe['batch_size']}"
    optimizer = f"{recipe['optimizer']} at {recipe['learning_rate']:g}, {recipe['schedule']}, {recipe['precision']}"
    return [*found, ("Training", training), ("Optimiser", optimizer), ("Seeds", ", ".join(map(str, board.seeds)))]


def _overview(
    name: str, page: str, found: Sequence[Board], settings: Sequence[Mapping[str, Any]], galleries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    first = galleries[0]["networks"][0] if galleries and galleries[0]["networks"] else None
    picture = f"{galleries[0]['folder']}/{first['images']}" if first else None
    return {
        "name": name,
        "page": page,
        "networks": [setting["title"] for setting in settings],
        "augmenters": len({row.augmenter for board in found for row in board.rows}),
        "explainers": len({row.explainer for board in found for row in board.rows if row.explainer}),
        "results": count(found),
        "picture": picture,
        "pictures": len(first["labels"]) if first else 0,
    }


def _other_pages(site: Site) -> list[Page]:
    networks = {key for run in site.runs.values() for key in run.networks}  # Runs may share some.
    totals = {"results": sum(dataset["results"] for dataset in site.datasets), "networks": len(networks)}
    pages: list[Page] = [
        ("index.html", "index.html", {"datasets": site.datasets, "totals": totals, "current": "index.html"}),
        ("methods/index.html", "methods.html", {"methods": _by_kind(site.methods), "current": "methods/index.html"}),
        ("runs/index.html", "runs.html", {"runs": sorted(site.runs.values(), key=lambda run: run.name), "current": "runs/index.html"}),
    ]
    if site.printed:
        pages.append(("reported.html", "reported.html", {"papers": _reported(site.printed, site.boards), "current": "reported.html"}))
    for method in site.methods.values():
        pages.append((method.page, "method.html", {"method": method, "card": paragraphs(card(method.plugin) or ""), "current": "methods/index.html"}))
    for run in site.runs.values():
        pages.append((run.page, "run.html", {"run": run, "spec": _spec(site.source, run.name), "current": "runs/index.html"}))
    return pages


def _by_kind(methods: Mapping[tuple[str, str], content.Method]) -> list[tuple[str, list[content.Method]]]:
    order = ("augmenter", "explainer", "metric", "trainer", "model", "noise")
    return [(kind, found) for kind in order if (found := [method for (of, _), method in methods.items() if of == kind])]


def _spec(source: Path, run: str) -> str | None:
    """The spec that was saved with the run: beside published boards, or beside the boards of a store."""
    paths = (source / "runs" / f"{slug(run)}.toml", source.parent / "runs" / f"{slug(run)}.toml")
    return next((path.read_text(encoding="utf-8") for path in paths if path.is_file()), None)


def _reported(printed: Sequence[reported.Reported], found: Sequence[Board]) -> list[dict[str, Any]]:
    papers, known = [], reported.columns_of(found)
    for paper, group in reported.by_paper(printed):
        tables = []
        for table in group:
            here = reported.matches(table, found)
            rows = [[method, *_side_by_side(method, values, table, here)] for method, values in table.rows.items()]
            heads = [_head(metric, known.get(metric)) for metric in table.metrics]
            tables.append({"title": table.title, "note": table.note, "compares": table.compares, "metrics": heads, "rows": rows, "any": bool(here)})
        papers.append({"paper": paper, "tables": tables, "elsewhere": reported.elsewhere(group, found)})
    return papers


def _head(metric: str, column: Column | None) -> str:
    """`deletion ↓ (area)`; the name alone where no board has the metric."""
    return metric if column is None else f"{metric} {column.arrow}" + (f" ({column.unit})" if column.unit else "")


def _side_by_side(
    method: str,
    values: Sequence[reported.Printed],
    table: reported.Reported,
    found: Mapping[tuple[str, str], Sequence[reported.Match]],
) -> Iterator[str]:
    for metric, (value, half) in zip(table.metrics, values, strict=True):
        yield reported.printed(value, half)
        if found:
            yield "; ".join(with_interval(match.cell) for match in found.get((method, metric), [])) or MISSING


# Galleries


def _galleries(source: Path) -> dict[str, list[dict[str, Any]]]:
    """The galleries by dataset, with the folder and the page that each gets on the site."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((source / "gallery").glob("*/index.json")):
        gallery = json.loads(path.read_text(encoding="utf-8"))
        for network in gallery["networks"]:
            network["images"] = Path(network["images"]).name  # A list from elsewhere must not point out of its folder.
            network["maps"] = [{**each, "file": Path(each["file"]).name} for each in network["maps"]]
            network["augmenters"] = list(dict.fromkeys(each["augmenter"] for each in network["maps"]))
            network["explainers"] = list(dict.fromkeys(each["explainer"] for each in network["maps"]))
        name = slug(path.parent.name)
        gallery |= {"folder": f"gallery/{name}", "page": f"gallery/{name}.html", "source": path.parent}
        found.setdefault(gallery["dataset"], []).append(gallery)
    return found


def _copy_gallery(gallery: Mapping[str, Any], folder: Path) -> None:
    place = _made(folder / gallery["folder"])
    for network in gallery["networks"]:
        for name in (network["images"], *(each["file"] for each in network["maps"])):
            if (gallery["source"] / name).is_file():
                shutil.copyfile(gallery["source"] / name, place / name)


# Writing


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["slug"] = slug
    return environment


def _write(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    _made(path.parent)
    path.write_text(_environment().get_template(template).render(**values).rstrip() + "\n", encoding="utf-8", newline="")
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
