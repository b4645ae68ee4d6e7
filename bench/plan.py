"""The plan: every job of a run in order, with its key, before anything is done; and the pairs left out, with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench import composition, environment
from bench.data import labels_of, select
from bench.errors import DataError, InvalidValue
from bench.interfaces import DatasetInfo, ImageData, Recipe
from bench.keys import SCHEMA, key
from bench.registry import Registry, ResolvedPart
from bench.spec import NO_NOISE, Spec

ABOUT_MAPS = {"attributions", "explainer", "explain_cost"}  # Needs of metrics that score an explainer.
PREPARATION_IMAGES = 256  # Training images that an explainer may look at before it explains.


@dataclass(frozen=True)
class Data:
    """A dataset's splits, each loaded when it is first needed."""

    part: ResolvedPart
    root: Path | None

    @cached_property
    def train(self) -> ImageData:
        return self.part.part.load("train", self.root)  # type: ignore[no-any-return]

    @cached_property
    def test(self) -> ImageData:
        return self.part.part.load("test", self.root)  # type: ignore[no-any-return]

    @cached_property
    def preparation(self) -> ImageData:
        """Images to prepare explainers on: the training split, or the test split of data that has no other."""
        try:
            return self.train
        except DataError:
            if self.has_train:
                raise
            return self.test

    @property
    def has_train(self) -> bool:
        """Is there a training split, be it damaged? Data that cannot tell has one if it loads."""
        splits = getattr(self.part.part, "splits", None)
        return bool(splits is not None and "train" in splits(self.root))

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Training:
    """One network to be trained (or loaded), and everything its weights depend on."""

    key: str
    identity: dict[str, Any]
    data: Data
    model: ResolvedPart
    trainer: ResolvedPart
    augmenter: ResolvedPart | None
    noise: ResolvedPart | None
    recipe: Recipe
    seed: int
    floor: str | None = None  # The key of the same training with the floor augmenter.

    @property
    def fits(self) -> bool:
        return bool(getattr(self.trainer.part, "fits", True))


@dataclass(frozen=True)
class Explaining:
    """One explainer on one network."""

    key: str
    identity: dict[str, Any]
    training: Training
    explainer: ResolvedPart


@dataclass(frozen=True)
class Scoring:
    """One metric on one network, or on one explainer's maps for it."""

    key: str
    identity: dict[str, Any]
    training: Training
    explaining: Explaining | None
    metric: ResolvedPart

    @property
    def all_images(self) -> bool:
        return bool(getattr(self.metric.part, "all_images", False))

    @property
    def timed(self) -> bool:
        return bool(getattr(self.metric.part, "timed", False))


Job = Training | Explaining | Scoring
J = TypeVar("J", Training, Explaining, Scoring)


@dataclass(frozen=True)
class Plan:
    """The jobs of a run in the order of their doing, and what was left out."""

    spec: Spec
    trainings: tuple[Training, ...]
    explainings: tuple[Explaining, ...]
    scorings: tuple[Scoring, ...]
    left_out: tuple[str, ...]
    selections: dict[str, Tensor] = field(default_factory=dict)

    @property
    def jobs(self) -> Iterator[Job]:
        """Network by network: train, then explain and score."""
        for training in self.trainings:
            yield training
            yield from self.scores_of(training)
            for explaining in self.explainings_of(training):
                yield explaining
                yield from self.scores_of(explaining)

    def explainings_of(self, training: Training) -> list[Explaining]:
        """The explainers asked of one network."""
        return self._explainings.get(training.key, [])

    def scores_of(self, upstream: Training | Explaining) -> list[Scoring]:
        """The metrics asked of one network, or of one explainer's maps for it."""
        return self._scorings.get(upstream.key, [])

    @cached_property
    def _explainings(self) -> dict[str, list[Explaining]]:
        groups: dict[str, list[Explaining]] = {}
        for job in self.explainings:
            groups.setdefault(job.training.key, []).append(job)
        return groups

    @cached_property
    def _scorings(self) -> dict[str, list[Scoring]]:
        groups: dict[str, list[Scoring]] = {}
        for job in self.scorings:
            groups.setdefault((job.explaining or job.training).key, []).append(job)
        return groups

    def selection(self, data: Data) -> Tensor:
        """The test images that are explained and scored: seeded, as many of each class as can be."""
        name = data.test.info.fingerprint
        if name not in self.selections:
            self.selections[name] = select(labels_of(data.test), self.spec.images, "test", name)
        return self.selections[name]


def make(spec: Spec, registry: Registry, root: Path | None, device: str) -> Plan:
    """Resolve every part and key every job. Raises BenchError for a name, a parameter or data that is not there."""
    parts = {
        kind: [registry.resolve(kind, request) for request in getattr(spec, f"{kind}s")]
        for kind in ("dataset", "model", "trainer", "explainer", "metric")
    }
    parts["augmenter"] = [composition.resolve(registry, request) for request in spec.augmenters]
    noises = [None if request == NO_NOISE else registry.resolve("noise", request) for request in spec.label_noise]
    left_out: list[str] = []
    trainings = list(_trainings(spec, registry, [Data(part, root) for part in parts["dataset"]], parts, noises, left_out))
    explainings = [_explaining(spec, training, explainer) for training in trainings for explainer in parts["explainer"]]
    scorings = list(_scorings(spec, trainings, explainings, parts["metric"], left_out, device))
    return Plan(spec, _distinct(trainings), _distinct(explainings), _distinct(scorings), tuple(dict.fromkeys(left_out)))


def _distinct(jobs: Sequence[J]) -> tuple[J, ...]:
    """A job asked for twice is done once."""
    return tuple({job.key: job for job in jobs}.values())


def _trainings(
    spec: Spec,
    registry: Registry,
    datasets: Sequence[Data],
    parts: dict[str, list[ResolvedPart]],
    noises: Sequence[ResolvedPart | None],
    left_out: list[str],
) -> Iterator[Training]:
    for data, model, trainer in product(datasets, parts["model"], parts["trainer"]):
        _check_weights(data, model, trainer)
        if not getattr(trainer.part, "fits", True):
            yield _training(spec, data, model, trainer, None, None, 0)
            continue
        if spec.recipe.equal_passes and not getattr(trainer.part, "equal_passes", False):
            left_out.append(f"{trainer.label}: recipe.equal_passes ends a training early, and this trainer counts in epochs")
            continue
        augmenters, floor = _fitting(trainer, parts["augmenter"], left_out)
        for noise, augmenter, seed in product(noises, augmenters, spec.seeds):
            if noise is not None and data.train.info.multi_label:
                left_out.append(f"label noise {noise.label} on {data.part.label}: it is for one label per image")
                continue
            training = _training(spec, data, model, trainer, augmenter, noise, seed)
            if floor is not None:
                training = dataclasses.replace(training, floor=_training(spec, data, model, trainer, floor, noise, seed).key)
            yield training


def _check_weights(data: Data, model: ResolvedPart, trainer: ResolvedPart) -> None:
    """Find out now whether the model's weights fit, and that there are some where nothing is trained."""
    fits = bool(getattr(trainer.part, "fits", True))
    weights = getattr(model.part, "weights", None)
    if weights is not None:
        with torch.random.fork_rng(devices=[]):
            model.part.build((data.train if fits else data.test).info)
    elif not fits and hasattr(model.part, "weights"):
        raise InvalidValue(
            f"trainer '{trainer.label}' trains nothing, and model '{model.label}' has no weights: its numbers would be those of chance.\n"
            f'Give them: --set \'models=[{{name="{model.label}", weights="FILE"}}]\''
        )


def _fitting(trainer: ResolvedPart, augmenters: Sequence[ResolvedPart], left_out: list[str]) -> tuple[list[ResolvedPart], ResolvedPart | None]:
    """The augmenters that go with a trainer, its floor first: costs relative to the floor are asked for after it is trained."""
    fitting = []
    for augmenter in augmenters:
        why = _misfit(trainer, augmenter)
        if why is None:
            fitting.append(augmenter)
        elif not getattr(augmenter.part, "floor", False):  # A floor is for the trainers it fits; nobody asked for it by name.
            left_out.append(f"{trainer.label} x {augmenter.label}: {why}")
    floor = next((augmenter for augmenter in fitting if getattr(augmenter.part, "floor", False)), None)
    return sorted(fitting, key=lambda augmenter: augmenter is not floor), floor


def _misfit(trainer: ResolvedPart, augmenter: ResolvedPart) -> str | None:
    """A trainer may ask for methods that not every augmenter has, and an augmenter for a trainer that calls it."""
    missing = [name for name in getattr(trainer.part, "augmenter_methods", ()) if not hasattr(augmenter.part, name)]
    if missing:
        return f"the trainer calls {' and '.join(missing)}, which the augmenter does not have"
    wanted = getattr(augmenter.part, "trainers", None)
    if wanted is not None and trainer.entry.name not in wanted:
        return f"the augmenter is made for {', '.join(wanted)}"
    if getattr(augmenter.part, "branches", ()) and not getattr(trainer.part, "keeps_branches", False):
        return "the augmenter sends rows through batch norms of their own, which the trainer does not keep"
    for part in getattr(augmenter.part, "parts", ()):
        for method in getattr(trainer.part, "optional_methods", ()):
            if hasattr(part.part, method):
                return f"the trainer calls the {method} of {part.label} and nothing else of it, so that nothing can follow it or come before it"
    return None


def _training(
    spec: Spec, data: Data, model: ResolvedPart, trainer: ResolvedPart, augmenter: ResolvedPart | None, noise: ResolvedPart | None, seed: int
) -> Training:
    fits = bool(getattr(trainer.part, "fits", True))
    info = data.train.info if fits else data.test.info
    shape = {"num_classes": info.num_classes, "image_size": list(info.image_size), "mean": list(info.mean), "std": list(info.std)}
    identity: dict[str, Any] = {"schema": SCHEMA, "stage": "train", "classes": shape, "model": model.identity(), "trainer": trainer.identity()}
    if fits:
        assert augmenter is not None
        identity |= {
            "dataset": info.fingerprint,  # What it is called, and where it lies, changes nothing.
            "augmenter": augmenter.identity(),
            "noise": None if noise is None else noise.identity(),
            "recipe": spec.recipe.identity() | {"flip": spec.recipe.flip and info.flippable},
            "seed": seed,
        }
    return Training(key(identity), identity, data, model, trainer, augmenter, noise, spec.recipe, seed)


def _images(spec: Spec, training: Training, all_images: bool = False) -> dict[str, Any]:
    """What says which images were looked at, and how they went through the network."""
    test = training.data.test
    count = len(test) if all_images else min(spec.images, len(test))
    return {"fingerprint": test.info.fingerprint, "images": count, "target": spec.target, "memory_format": spec.recipe.memory_format}


def _explaining(spec: Spec, training: Training, explainer: ResolvedPart) -> Explaining:
    identity = {"schema": SCHEMA, "stage": "explain", "training": training.key, "explainer": explainer.identity(), "images": _images(spec, training)}
    if hasattr(explainer.part, "prepare"):
        identity["preparation"] = {"fingerprint": training.data.preparation.info.fingerprint, "images": PREPARATION_IMAGES}
    return Explaining(key(identity), identity, training, explainer)


def _scorings(
    spec: Spec, trainings: Sequence[Training], explainings: Sequence[Explaining], metrics: Sequence[ResolvedPart], left_out: list[str], device: str
) -> Iterator[Scoring]:
    for metric in metrics:
        needs = metric.part.needs
        about_maps = bool(ABOUT_MAPS & set(needs))
        for training in trainings:
            if why := "nothing is trained" if "training" in needs and not training.fits else lacks(training.data.test.info, needs):
                left_out.append(f"{metric.label} on {training.data.part.label} with {training.trainer.label}: {why}")
                continue
            if not about_maps:
                yield _scoring(spec, training, None, metric, device)
                continue
            for explaining in explainings:
                if explaining.training is training:
                    yield _scoring(spec, training, explaining, metric, device)


def lacks(info: DatasetInfo, needs: Sequence[str]) -> str | None:
    """What a metric needs and the data has not, in words; None where nothing is missing."""
    if "masks" in needs and "boxes" in needs:  # Either will do.
        return None if info.has_masks or info.has_boxes else "the data has neither masks nor boxes"
    if "masks" in needs and not info.has_masks:
        return "the data has no masks"
    if "boxes" in needs and not info.has_boxes:
        return "the data has no boxes"
    if "multi_label" in needs and not info.multi_label:
        return "the data has one label per image"
    if "single_label" in needs and info.multi_label:
        return "the data has several labels per image"
    return None


def _scoring(spec: Spec, training: Training, explaining: Explaining | None, metric: ResolvedPart, device: str) -> Scoring:
    all_images = bool(getattr(metric.part, "all_images", False))
    identity: dict[str, Any] = {
        "schema": SCHEMA,
        "stage": "score",
        "training": training.key,
        "metric": metric.identity(),
        "images": _images(spec, training, all_images),
    }
    if explaining is None:
        del identity["images"]["target"]  # No class is explained.
    else:
        identity["explaining"] = explaining.key
    if "training" in metric.part.needs:
        identity["floor"] = training.floor
    if getattr(metric.part, "timed", False):  # A time is a fact about a machine.
        identity["machine"] = {"hardware": environment.hardware(device), "threads": torch.get_num_threads()}
    return Scoring(key(identity), identity, training, explaining, metric)
