"""Result lines without a run: what boards, comparisons and the site are tested on."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.results import Line, dump, slug

METRICS = {
    "accuracy": (True, "prediction", "%"),
    "deletion": (False, "faithfulness", "area"),
    "insertion": (True, "faithfulness", "area"),
    "pointing": (True, "localisation", "%"),
    "throughput": (True, "cost", "images/s"),
}
FLOORS = ("none", "random", "centre")


def part(name: str, plugin: str = "", **more: Any) -> dict[str, Any]:
    """A part of a line; `more` overrides its fields or adds to them."""
    known = {"label": name, "name": name, "version": 1, "parameters": {}, "plugin": plugin or name, "distribution": "bench-xai 0.1.0"}
    return {**known, **({"floor": True} if name in FLOORS else {}), **more}


def line(
    value: float | None = 0.5,
    *,
    augmenter: str | dict[str, Any] | None = "none",
    explainer: str | dict[str, Any] | None = None,
    metric: str | dict[str, Any] = "accuracy",
    seed: int | None = 0,
    dataset: str = "scenes",
    model: str = "small-net",
    n: int = 100,
    **changes: Any,
) -> Line:
    """One result line with everything that a real one has; `changes` replaces whole fields."""
    augmenter, explainer = (part(each) if isinstance(each, str) else each for each in (augmenter, explainer))
    if isinstance(metric, str):
        up, category, unit = METRICS[metric]
        metric = {**part(metric), "higher_is_better": up, "category": category, "unit": unit, "per_image": True}
    timed = metric["name"] == "throughput"
    floor = bool((explainer or augmenter or {}).get("floor"))
    training = digest(dataset, model, augmenter, seed)
    made: Line = {
        "schema": 1,
        "training": training,
        "explaining": digest(training, explainer) if explainer else None,
        "run": "synthetic",
        "dataset": {"name": dataset, "label": dataset, "fingerprint": "sha256:" + digest(dataset), "licence": "CC0", "redistributable": True},
        "model": part(model),
        "trainer": part("standard"),
        "augmenter": augmenter,
        "noise": None,
        "recipe": {
            "epochs": 2, "batch_size": 16, "optimizer": "sgd", "learning_rate": 0.1, "schedule": "one-cycle",
            "precision": "fp32", "report": "last", "train_images": None,
        },
        "seed": seed,
        "explainer": explainer,
        "floor": floor,
        "metric": metric,
        "images": {"fingerprint": "sha256:" + digest(dataset), "images": n, "target": "predicted", "memory_format": "channels_last"},
        "weights": "sha256:" + digest("weights", training),
        "machine": {"hardware": "a processor", "threads": 1} if timed else None,
        "seconds": 0.1,
        "finished": "2026-01-01T00:00:00+00:00",
        "environment": {
            "python": "3.11", "system": "Linux", "hardware": "a processor", "threads": 1,
            "versions": {"bench-xai": "0.1.0", "torch": "2.11.0", "scipy": "1.12.0"},
        },
        "value": value,
        "interval": None if value is None else [value - 0.05, value + 0.05],
        "n": n,
        "unscored": 0,
        "curve": None,
    }  # fmt: skip
    made |= changes
    about = [made[name] for name in ("training", "explaining", "dataset", "trainer", "noise", "recipe", "metric", "images", "machine")]
    return made if "key" in made else {**made, "key": digest(*about)}


def digest(*about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def scored(values: np.ndarray, **about: Any) -> tuple[Line, np.ndarray]:
    """A line whose number is the mean of these values per image, and the values."""
    values = np.round(np.asarray(values, dtype=float), 6)
    known = values[np.isfinite(values)]
    made = line(float(known.mean()), **{"n": len(values), **about})
    return {**made, "n": len(known), "unscored": len(values) - len(known)}, values


def published(folder: Path, lines: Iterable[Line], rows: Mapping[str, Iterable[float]] | None = None, run: str = "synthetic") -> Path:
    """Write lines, and rows by their keys, as they lie in `leaderboards/data`; returns that folder."""
    by_dataset: dict[str, list[Line]] = {}
    for each in lines:
        by_dataset.setdefault(each["dataset"]["name"], []).append(each)
    for dataset, group in by_dataset.items():
        place = folder / slug(dataset)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{run}.jsonl").write_text("".join(dump(each) + "\n" for each in sorted(group, key=lambda each: each["key"])))
        kept = {each["key"]: rows[each["key"]] for each in group if rows and each["key"] in rows}
        if kept:
            text = "".join(json.dumps({"key": key, "values": [None if v != v else v for v in values]}) + "\n" for key, values in sorted(kept.items()))
            (place / f"{run}.rows.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return folder


def star(seeds: int = 1, images: int = 120, augmenters: int = 4, explainers: int = 5) -> tuple[list[Line], dict[str, np.ndarray]]:
    """A board as they are published: every augmenter with one explainer and the floors, every explainer with one augmenter."""
    random = np.random.RandomState(7)
    names = ["none", *(f"augmenter-{number}" for number in range(1, augmenters))]
    maps = ["random", "centre", *(f"explainer-{number}" for number in range(1, explainers - 1))]
    lines, rows = [], {}
    hardness = random.rand(images)
    for seed in range(seeds):
        for place, augmenter in enumerate(names):
            right = 100.0 * (hardness + 0.1 * random.randn(images) < 0.55 + 0.08 * place)
            found = [scored(right, augmenter=augmenter, seed=seed)]
            for rank, explainer in enumerate(maps):
                if place and rank > 2:
                    continue
                about = {"augmenter": augmenter, "explainer": explainer, "seed": seed}
                skill = 0.0 if rank < 2 else 0.05 * rank + 0.02 * place
                found.append(scored(np.clip(0.5 - skill + 0.2 * hardness + 0.1 * random.randn(images), 0, 1), metric="deletion", **about))
                found.append(scored(np.clip(0.4 + skill + 0.2 * hardness + 0.1 * random.randn(images), 0, 1), metric="insertion", **about))
                found.append(scored(100.0 * (hardness < 0.2 + 2 * skill + 0.2 * random.rand(images)), metric="pointing", **about))
                lines.append(line(1000.0 / (rank + 1), metric="throughput", n=5, **about))
            for made, values in found:
                lines.append(made)
                rows[made["key"]] = values
    return lines, rows
