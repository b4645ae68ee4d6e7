"""Running: carry a plan out, network by network, skipping what the store has, and let a failed job stop nothing else."""

from __future__ import annotations

import dataclasses
import datetime
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import chunks, contexts, environment
from bench.data import Preparation, class_counts, labels_of, select
from bench.errors import BenchError, StoreError
from bench.explain import Selection, Subject, explain, prepare
from bench.interfaces import Layer
from bench.keys import derived_seed, key
from bench.lines import lines
from bench.observers import Observer
from bench.plan import PREPARATION_IMAGES, Explaining, Job, Plan, Scoring, Training
from bench.results import Line
from bench.score import Costs, Score, score
from bench.store import FIGURE, Store, tensors_digest
from bench.train import FitContext, fit, training_data

Drawing = Callable[[Path], None]


@dataclass
class Outcome:
    """What a run came to: a result line per score job that is stored, and each failure with its reason."""

    lines: list[Line] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    done: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Settings:
    """What changes how a run is carried out; beyond the rounding of another device, no number in it."""

    device: str = "cpu"
    batch_size: int | None = None
    retry_failed: bool = True


def execute(plan: Plan, store: Store, settings: Settings = Settings(), observers: Sequence[Observer] = ()) -> Outcome:
    """Do every job of the plan that the store does not have, and gather the result lines of all.

    A job that fails leaves its traceback in the store, its dependents undone, and the others as they were.
    """
    store.check_writable()
    runner = _Runner(plan, store, settings, observers)
    for training in plan.trainings:
        _Network(runner, training).carry_out()
    runner.outcome.lines = list(lines(plan, store))
    return runner.outcome


def drop_stale(plan: Plan, training: Training, store: Store) -> list[Job]:
    """Remove finished jobs that rest on other weights than the training's present ones, and return them: they are done again."""
    weights = store.record(training.key)["weights"]
    explainings = plan.explainings_of(training)
    resting: list[Job] = [*explainings, *plan.scores_of(training), *(job for each in explainings for job in plan.scores_of(each))]
    stale = [job for job in resting if store.has(job.key) and store.record(job.key)["weights"] != weights]
    for job in stale:
        store.remove(job.key)
    return stale


def pending(plan: Plan, store: Store) -> list[Job]:
    """The jobs that are still to do."""
    return [job for job in plan.jobs if not store.has(job.key)]


@dataclass
class _Runner:
    """What the jobs of one run share."""

    plan: Plan
    store: Store
    settings: Settings
    observers: Sequence[Observer]
    outcome: Outcome = field(default_factory=Outcome)

    def wanted(self, job: Job) -> bool:
        """Is the job still to do? A failed one is, unless told otherwise."""
        if self.store.has(job.key):
            self.outcome.skipped += 1
            return False
        failure = self.store.failure(job.key)
        if not self.settings.retry_failed and failure.exists():
            self.outcome.failures[job.key] = failure.read_text().strip().splitlines()[-1]
            return False
        return True

    def attempt(self, jobs: Sequence[Job], work: Any) -> bool:
        """Do some work for the jobs; on an error of any kind store its traceback under each and go on."""
        environment.release_memory()
        for observer in self.observers:
            observer.started(jobs[0])
        try:
            work()
        except StoreError:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
            for job in jobs:
                self.store.fail(job.key, traceback.format_exc())
                self.outcome.failures[job.key] = reason
                for observer in self.observers:
                    observer.failed(job, reason)
            return False
        return True

    def put(self, job: Job, record: dict[str, Any], files: dict[str, dict[str, Tensor]], figure: Drawing | None = None) -> None:
        stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        full = {"identity": job.identity, "finished": stamp, "environment": environment.describe(self.settings.device), **record}
        self.store.put(job.key, full, files, {} if figure is None else {FIGURE: figure})
        self.outcome.done += 1
        for observer in self.observers:
            observer.finished(job, full)

    def progress(self, job: Job) -> Any:
        def report(values: dict[str, Any]) -> None:
            for observer in self.observers:
                observer.progress(job, values)

        return report


@dataclass
class _Network:
    """One trained network and all that is asked of it. It is built or loaded only if something is left to do."""

    runner: _Runner
    training: Training

    def carry_out(self) -> None:
        runner, training = self.runner, self.training
        if runner.wanted(training) and not runner.attempt([training], self._train):
            return
        if not runner.store.has(training.key):
            return
        drop_stale(runner.plan, training, runner.store)
        alone = [job for job in runner.plan.scores_of(training) if runner.wanted(job)]
        for all_images in (True, False):
            self._score([job for job in alone if job.all_images is all_images], None)
        for explaining in runner.plan.explainings_of(training):
            scorings = [job for job in runner.plan.scores_of(explaining) if runner.wanted(job)]
            if runner.wanted(explaining):
                runner.attempt([explaining], lambda job=explaining: self._explain(job))
            if runner.store.has(explaining.key):
                self._score(scorings, explaining)

    # Training

    def _train(self) -> None:
        runner, job = self.runner, self.training
        module, layers, stages, size = self._build()
        record: dict[str, Any] = {"stage": "train", "cost": None}
        if job.fits:
            context = FitContext(
                recipe=job.recipe,
                info=job.data.train.info,
                seed=job.seed,
                key=job.key,
                device=runner.settings.device,
                target_layers=layers,
                stages=stages,
                explainer=_explainer_of(job),
                folder=runner.store.partial(job.key),
                report=runner.progress(job),
            )
            noise = None if job.noise is None else lambda labels: _noisy(job, labels)
            data = training_data(job.data.train, job.recipe, noise, size)
            assert job.augmenter is not None
            record["cost"] = fit(job.trainer.part, module, data, job.augmenter.part, context)
            record["label_noise"] = _noise_record(job, data)
        weights = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
        for explaining in runner.plan.explainings_of(job):
            runner.store.drop_partial(explaining.key)  # Shards of other weights.
        runner.put(job, {**record, "weights": tensors_digest(weights)}, {"weights": weights})

    def _build(self) -> tuple[Any, Sequence[Layer], Sequence[Layer], tuple[int, int] | None]:
        job, device = self.training, self.runner.settings.device
        info = job.data.train.info if job.fits else job.data.test.info
        torch.manual_seed(derived_seed(job.seed, "weights"))
        module = job.model.part.build(info).to(device)
        if job.recipe.memory_format == "channels_last":
            module = module.to(memory_format=torch.channels_last)
        return module, job.model.part.target_layers(module), job.model.part.stages(module), getattr(module, "input_size", None)

    @cached_property
    def _record(self) -> dict[str, Any]:
        return self.runner.store.record(self.training.key)

    @cached_property
    def _subject(self) -> Subject:
        """The trained network, its weights checked against the record."""
        module, layers, stages, size = self._build()
        weights = self.runner.store.tensors(self.training.key, "weights")
        if tensors_digest(weights) != self._record["weights"]:
            raise StoreError(
                f"the weights in {self.runner.store.path(self.training.key)} are not those of its record.\n"
                "Remove the folder; the next run trains again."
            )
        module.load_state_dict(weights)
        info, device = self.training.data.test.info, self.runner.settings.device
        subject = Subject(module.eval(), info, layers, stages, device, size)
        return dataclasses.replace(subject, chunk=self._chunk(subject))

    def _chunk(self, subject: Subject) -> int:
        """Images per forward: as asked, or what a probe found when this store first met such a network on such a machine."""
        runner, job = self.runner, self.training
        if runner.settings.batch_size:
            return runner.settings.batch_size
        channels = len(subject.info.mean)
        about = {
            "model": job.model.identity(),
            "shape": [subject.info.num_classes, channels, *subject.image_size],
            "memory_format": job.recipe.memory_format,
            "machine": [environment.hardware(subject.device), torch.get_num_threads()],
        }
        return runner.store.remembered(key(about), lambda: chunks.fastest(subject.model, subject.image_size, channels, subject.device))

    # Explaining and scoring

    def _selection(self, all_images: bool = False) -> Selection:
        data = self.training.data
        indices = torch.arange(len(data.test)) if all_images else self.runner.plan.selection(data)
        return Selection(data.test, indices, self.runner.plan.spec.target, self.training.seed)

    @cached_property
    def _preparation(self) -> Preparation:
        data = self.training.data.preparation
        indices = select(labels_of(data), PREPARATION_IMAGES, "preparation", data.info.fingerprint)
        return Preparation(data, indices, self._subject.size, self.runner.settings.device)

    def _explain(self, job: Explaining) -> None:
        runner, explainer = self.runner, job.explainer.part
        preparation = self._preparation if hasattr(explainer, "prepare") else None
        folder = runner.store.partial(job.key)
        found, cost = explain(
            self._subject,
            explainer,
            self._selection(),
            preparation,
            folder=folder,
            batch_size=runner.settings.batch_size,
            report=runner.progress(job),
        )
        runner.put(job, {"stage": "explain", "weights": self._record["weights"], "cost": cost}, {"attributions": found})

    def _score(self, jobs: Sequence[Scoring], explaining: Explaining | None) -> None:
        """Score all together, so that they share forwards; where that fails, each by itself, to find out which one does."""
        if not jobs:
            return
        together = [jobs] if len(jobs) > 1 else []
        if together and self._scored(jobs, explaining):
            return
        for job in jobs:
            self.runner.attempt([job], lambda job=job: self._score_now([job], explaining))

    def _scored(self, jobs: Sequence[Scoring], explaining: Explaining | None) -> bool:
        for observer in self.runner.observers:
            observer.started(jobs[0])
        try:
            self._score_now(jobs, explaining)
        except StoreError:
            raise
        except Exception:
            return False
        return True

    def _score_now(self, jobs: Sequence[Scoring], explaining: Explaining | None) -> None:
        runner, start = self.runner, time.perf_counter()
        self._check_machine(jobs, explaining)
        selection = self._selection(jobs[0].all_images)
        explanation = state = explainer = None
        costs = Costs(self._record["cost"], self._floor_cost(jobs))
        if explaining is not None:
            record = runner.store.record(explaining.key)
            if record["weights"] != self._record["weights"]:
                raise StoreError(
                    f"the maps in {runner.store.path(explaining.key)} were made with other weights. Remove the folder; the next run explains again."
                )
            explanation, explainer = runner.store.tensors(explaining.key, "attributions"), explaining.explainer.part
            costs = Costs(costs.training, costs.floor_training, record["cost"])
            if any("explainer" in job.metric.part.needs for job in jobs) and hasattr(explainer, "prepare"):
                state = prepare(self._subject, explainer, self._preparation, {})
        metrics = {job.key: job.metric.part for job in jobs}
        scores = score(
            self._subject,
            metrics,
            selection,
            explanation,
            explainer,
            state,
            costs,
            batch_size=runner.settings.batch_size,
            report=runner.progress(jobs[0]),
        )
        seconds = time.perf_counter() - start
        for job in jobs:
            found = scores[job.key]
            runner.put(job, _score_record(found, self._record["weights"], seconds / len(jobs)), _score_files(found), self._figure(job, selection))

    def _figure(self, job: Scoring, selection: Selection) -> Drawing | None:
        """How the metric draws this network, where it does."""
        draw = getattr(job.metric.part, "figure", None)
        if draw is None:
            return None
        subject = self._subject
        data = Preparation(selection.data, selection.indices, subject.size, subject.device)
        streams = [contexts.generator(selection.seed, "figure")]
        context = contexts.explain_context(subject.model, subject.info, subject.target_layers, subject.stages, streams, subject.at_once)
        return lambda path: draw(subject.model, data, context, path)

    def _floor_cost(self, jobs: Sequence[Scoring]) -> Any:
        floor = self.training.floor
        if floor is None or not any("training" in job.metric.part.needs for job in jobs):
            return None
        if not self.runner.store.has(floor):
            raise BenchError("the same training without augmentation, to compare with, is not there. The next run tries it again.")
        return self.runner.store.record(floor)["cost"]

    def _check_machine(self, jobs: Sequence[Scoring], explaining: Explaining | None) -> None:
        """A time is a fact about the machine that took it. Raises BenchError where that is not this one."""
        for job in jobs:
            if not job.timed:
                continue
            sources = [each for each in (self.training.key, self.training.floor) if each and "training" in job.metric.part.needs]
            sources += [explaining.key] if explaining and "explain_cost" in job.metric.part.needs else []
            for source in sources:
                taken = self.runner.store.record(source)["environment"]
                if {name: taken[name] for name in ("hardware", "threads")} != job.identity["machine"]:
                    raise BenchError(f"the time was taken on {taken['hardware']} with {taken['threads']} threads, not here.")


def _explainer_of(job: Training) -> Any:
    """The explainer that the augmenter (or the trainer) names as a parameter."""
    for part in (job.augmenter, job.trainer):
        for reference in part.references.values() if part else ():
            if reference.kind == "explainer":
                return reference.part
    return None


def _noisy(job: Training, labels: Tensor) -> Tensor:
    assert job.noise is not None
    stream = contexts.generator(job.seed, "label noise")
    if getattr(job.noise.part, "needs_images", False):
        return job.noise.part(labels, job.data.train.info, stream, images=job.data.train)  # type: ignore[no-any-return]
    return job.noise.part(labels, job.data.train.info, stream)  # type: ignore[no-any-return]


def _noise_record(job: Training, data: Any) -> dict[str, Any] | None:
    """How many training labels are wrong, and how often each class became which."""
    if job.noise is None:
        return None
    clean, noisy = labels_of(job.data.train)[data.indices], data.labels[data.indices]
    classes = data.info.num_classes
    table = torch.bincount(clean * classes + noisy, minlength=classes * classes).view(classes, classes)
    return {"rate": float((clean != noisy).float().mean()), "transitions": table.tolist(), "class_counts": list(class_counts(noisy, classes))}


def _score_record(found: Score, weights: str, seconds: float) -> dict[str, Any]:
    known = int(found.values.isfinite().sum())
    value = found.value if found.value == found.value else None
    outcome = {
        "value": value,
        "interval": found.interval and list(found.interval),
        "n": known,
        "unscored": len(found.values) - known,
        "curve": found.curve,
    }
    return {"stage": "score", "weights": weights, "seconds": seconds, "outcome": outcome}


def _score_files(found: Score) -> dict[str, dict[str, Tensor]]:
    return {"rows": {"rows": found.rows, "values": found.values.clone()}}  # Two names for one memory are refused by safetensors.
