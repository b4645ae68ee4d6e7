"""Gallery: a few test images and their maps as picture files with a list of what is what, for the site to show.

<folder>/<dataset>-<run>/index.json      data, run, licence; networks, each with its images and maps
<folder>/<dataset>-<run>/images-0.png    the images of network 0 side by side
<folder>/<dataset>-<run>/map-0-3.png     the maps of one explainer and augmenter, in the same order
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.data import fetch
from bench.figures import stretched
from bench.plan import Explaining, Plan
from bench.results import slug
from bench.store import Store

IMAGES = 8
MAPS = 400  # Of one network; of more, the first are shown.


def write(plan: Plan, store: Store, folder: Path) -> list[Path]:
    """Write a gallery per dataset of the run, in place of the one before, and return their lists. Only the first seed is shown."""
    first = min(plan.spec.seeds)
    shown = [job for job in plan.explainings if store.has(job.key) and (not job.training.fits or job.training.seed == first)]
    by_data: dict[str, list[Explaining]] = {}
    for job in shown:
        by_data.setdefault(job.training.data.test.info.name, []).append(job)
    return [_gallery(plan, store, jobs, folder / f"{slug(name)}-{slug(plan.spec.name)}") for name, jobs in by_data.items()]


def _gallery(plan: Plan, store: Store, jobs: Sequence[Explaining], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    info = jobs[0].training.data.test.info
    networks = [_network(plan, store, list(group), number, folder) for number, (_, group) in enumerate(groupby(jobs, key=_setting))]
    about = {"dataset": info.name, "run": plan.spec.name, "licence": info.licence, "redistributable": info.redistributable}
    path = folder / "index.json"
    path.write_text(json.dumps({**about, "networks": networks}, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _setting(job: Explaining) -> tuple[str, str, str | None]:
    training = job.training
    return training.model.label, training.trainer.label, training.noise.label if training.noise else None


def _network(plan: Plan, store: Store, jobs: Sequence[Explaining], number: int, folder: Path) -> dict[str, Any]:
    """The images and maps of all networks of one kind, whatever they were trained with."""
    training = jobs[0].training
    test, selection = training.data.test, plan.selection(training.data)
    chosen = torch.linspace(0, len(selection) - 1, min(IMAGES, len(selection))).round().long()
    maps = [_map(store, job, chosen, folder / f"map-{number}-{place}.png", test.info.class_names) for place, job in enumerate(jobs[:MAPS])]
    size = store.tensors(jobs[0].key, "attributions")["attributions"].shape[-2:]
    images = fetch(test, selection[chosen], (size[0], size[1]))
    _strip((images.inputs.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8), folder / f"images-{number}.png")
    labels = [_names(label, test.info.class_names) for label in images.labels]
    model, trainer, noise = _setting(jobs[0])
    about = {"model": model, "trainer": trainer, "noise": noise, "seed": training.seed if training.fits else None}
    return {**about, "images": f"images-{number}.png", "labels": labels, "height": size[0], "width": size[1], "maps": maps}


def _map(store: Store, job: Explaining, chosen: torch.Tensor, path: Path, classes: Sequence[str]) -> dict[str, Any]:
    found = store.tensors(job.key, "attributions")
    values = [stretched(values) for values in found["attributions"][chosen, 0].numpy()]
    _strip(np.stack([(each * 255).round().astype(np.uint8) for each in values]), path)
    augmenter = job.training.augmenter.label if job.training.augmenter else None
    targets = [classes[int(target)] for target in found["targets"][chosen]]
    return {"augmenter": augmenter, "explainer": job.explainer.label, "file": path.name, "targets": targets}


def _strip(pictures: NDArray[np.uint8], path: Path) -> None:
    """Pictures (N, H, W, 3), or values (N, H, W) in the colours of `inferno`, side by side in one PNG."""
    image = Image.fromarray(np.concatenate(list(pictures), axis=1))
    if pictures.ndim == 3:
        image.putpalette(_palette())
    image.save(path, optimize=True)


def _palette() -> list[int]:
    import matplotlib

    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3]
    return [round(float(value) * 255) for value in colours.reshape(-1)]


def _names(label: torch.Tensor, classes: Sequence[str]) -> str:
    if label.ndim == 0:
        return classes[int(label)]
    return ", ".join(classes[index] for index in label.nonzero().flatten().tolist())
