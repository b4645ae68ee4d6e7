"""Lines: from a finished score job to its result line, which says everything about one number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.keys import SCHEMA
from bench.plan import Plan, Scoring
from bench.results import Line
from bench.store import Store


def lines(plan: Plan, store: Store) -> Iterable[Line]:
    """The result lines of the plan's finished score jobs."""
    for job in plan.scorings:
        if store.has(job.key):
            yield result_line(plan, job, store.record(job.key))


def result_line(plan: Plan, job: Scoring, record: dict[str, Any]) -> Line:
    """Everything about one number: what it is, what it was measured on, and what made it."""
    training, metric = job.training, job.metric
    test = training.data.test.info
    dataset = {
        "name": test.name,
        "label": training.data.part.label,
        "fingerprint": test.fingerprint,
        "licence": test.licence,
        "redistributable": test.redistributable,
    }
    if training.fits:
        dataset["train_fingerprint"] = training.data.train.info.fingerprint
    traits = {name: getattr(metric.part, name) for name in ("higher_is_better", "category", "unit")}
    traits["per_image"] = getattr(metric.part, "per_image", True)
    floor = job.explaining.explainer if job.explaining else training.augmenter
    return {
        "schema": SCHEMA,
        "key": job.key,
        "training": training.key,
        "explaining": job.explaining.key if job.explaining else None,
        "run": plan.spec.name,
        "dataset": dataset,
        "model": _shown(training.model),
        "trainer": _shown(training.trainer),
        "augmenter": _shown(training.augmenter),
        "noise": _shown(training.noise),
        "recipe": training.identity.get("recipe"),
        "seed": training.seed if training.fits else None,
        "explainer": _shown(job.explaining.explainer if job.explaining else None),
        "floor": bool(floor is not None and getattr(floor.part, "floor", False)),
        "metric": {**(_shown(metric) or {}), **traits},
        "images": job.identity["images"],
        "weights": record["weights"],
        "machine": job.identity.get("machine"),
        "seconds": record["seconds"],
        "finished": record["finished"],
        "environment": record["environment"],
        **record["outcome"],
    }


def _shown(part: Any) -> dict[str, Any] | None:
    if part is None:
        return None
    said = {name: getattr(part.part, name) for name in ("paper", "claim", "floor") if getattr(part.part, name, None)}
    return {"label": part.label, **part.identity(), "plugin": part.entry.plugin, "distribution": part.entry.distribution, **said}
