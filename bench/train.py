"""Training: what a trainer plugin is given, and the loop around it that counts, logs, saves and resumes."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import contexts
from bench.data import class_counts, crop_and_flip, fetch, labels_of, one_hot, select
from bench.environment import measuring
from bench.errors import InvalidValue, TrainingDiverged
from bench.interfaces import ArrayData, Batch, DatasetInfo, ImageData, Layer, Passes, Recipe, StepContext
from bench.keys import derived_seed
from bench.norms import BranchNorms
from bench.store import write_bytes, writing


@dataclass
class TrainingData:
    """The images a trainer sees: the dataset, the labels to believe (N,) or (N, K), and which positions to train on.

    Only `extra` changes during a training, and it is saved with the checkpoint.
    """

    data: ImageData
    labels: Tensor
    indices: Tensor
    validation: Tensor
    size: tuple[int, int] | None = None
    extra: ArrayData | None = None  # Made by an augmenter's `end_epoch`; their positions follow the dataset's own.

    def __len__(self) -> int:
        return len(self.indices) + (len(self.extra) if self.extra else 0)

    @property
    def info(self) -> DatasetInfo:
        return self.data.info

    def positions(self) -> Tensor:
        """Every position to train on, the augmenter's extra images included."""
        if self.extra is None:
            return self.indices
        return torch.cat([self.indices, len(self.data) + torch.arange(len(self.extra))])

    def inputs(self, positions: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], on the CPU."""
        own = positions < len(self.data)
        images = fetch(self.data, positions[own], self.size).inputs if own.any() else None
        if own.all() and images is not None:
            return images
        assert self.extra is not None
        added = fetch(self.extra, positions[~own] - len(self.data), self.size).inputs
        merged = added.new_empty(len(positions), *added.shape[1:])
        merged[~own] = added
        if images is not None:
            merged[own] = images
        return merged

    def targets(self, positions: Tensor) -> Tensor:
        """(B, K) targets."""
        labels = self.labels if self.extra is None else torch.cat([self.labels, self.extra.labels])
        return one_hot(labels[positions], self.info.num_classes)

    def state_dict(self) -> dict[str, Tensor]:
        """The augmenter's extra images, for a checkpoint."""
        return {} if self.extra is None else {"images": self.extra.images, "labels": self.extra.labels}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.extra = ArrayData(self.info, state["images"].cpu(), state["labels"].cpu()) if state else None


def training_data(data: ImageData, recipe: Recipe, noise: Callable[[Tensor], Tensor] | None, size: tuple[int, int] | None) -> TrainingData:
    """Choose the images, split the validation part off, and only then put noise on the labels of both."""
    labels = labels_of(data)
    chosen = select(labels, recipe.train_images, "train", data.info.fingerprint)
    held_out = (
        select(labels[chosen], round(recipe.validation * len(chosen)), "validation", data.info.fingerprint) if recipe.validation else chosen[:0]
    )
    kept = torch.ones(len(chosen), dtype=torch.bool)
    kept[held_out] = False
    if not kept.any():
        raise InvalidValue(f"recipe.validation = {recipe.validation} holds out all {len(chosen)} training images.")
    return TrainingData(data, labels if noise is None else noise(labels), chosen[kept], chosen[held_out], size)


def row_losses(logits: Tensor, targets: Tensor, multi_label: bool, smoothing: float = 0.0) -> Tensor:
    """(B,) cross-entropy against soft targets, or binary cross-entropy averaged over the classes."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


ALMOST_1 = math.nextafter(1.0, 0.0)
PLAIN_PASSES = 2  # One forward and one backward for each image.


@dataclass
class FitContext:
    """What a trainer is given: the recipe, and the loops that seed, count, time, log, save and resume for it.

    Every random stream depends on (seed, epoch, step) and its purpose alone, so a resumed training continues bit for bit and
    two augmenters see the same images in the same order with the same crops.
    """

    recipe: Recipe
    info: DatasetInfo
    seed: int
    key: str
    device: str
    target_layers: Sequence[Layer]
    stages: Sequence[Layer]
    explainer: Any = None
    folder: Path | None = None  # Where the checkpoint lies.
    report: Callable[[dict[str, Any]], None] = lambda progress: None
    log: list[dict[str, Any]] = field(default_factory=list)
    passes: Passes = field(default_factory=Passes)
    total_epochs: int | None = None
    budget: float | None = None  # Passes that may be spent, where the recipe gives every augmenter equally many.
    _sums: dict[str, Tensor | float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _best: tuple[float, dict[str, Tensor]] | None = None

    @property
    def epochs_in_all(self) -> int:
        return self.total_epochs or self.recipe.epochs

    # What a trainer calls, in the order it does

    def optimizer(self, parameters: Any, learning_rate: float | None = None) -> torch.optim.Optimizer:
        """The recipe's optimiser over the given parameters."""
        recipe, rate = self.recipe, learning_rate or self.recipe.learning_rate
        if recipe.optimizer == "sgd":
            nesterov = recipe.nesterov and recipe.momentum > 0
            return torch.optim.SGD(parameters, rate, momentum=recipe.momentum, nesterov=nesterov, weight_decay=recipe.weight_decay)
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, rate, weight_decay=recipe.weight_decay)

    def set_rate(self, optimizer: torch.optim.Optimizer, progress: float, least: float = 0.0) -> None:
        """Set the recipe's learning rate for a share of the training in [0, 1]; call it before each step.

        It is a part of what each group started with (`initial_lr`). `least` is the part at which a cosine ends.
        """
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate_at(self.recipe, progress, least)

    def steps_per_epoch(self, data: TrainingData, batch_size: int | None = None) -> int:
        return max(1, len(data) // (batch_size or self.recipe.batch_size))

    def epochs(self, model: nn.Module, data: TrainingData, epochs: int | None = None, **state: Any) -> Iterator[int]:
        """The epochs that are left. The model, the data's extra images and anything in `state` with a `state_dict` are saved
        after each and restored at a restart. With equal passes they end, in the midst of one, when the passes are spent.

        Raises TrainingDiverged after an epoch whose loss is not a number.
        """
        self.total_epochs = epochs or self.recipe.epochs
        if self.recipe.equal_passes:
            size = min(self.recipe.batch_size, len(data.indices))
            self.budget = PLAIN_PASSES * self.epochs_in_all * (len(data.indices) // size) * size
        everything = {"model": model, "data": data, **state}
        for epoch in range(self._resume(everything), self.epochs_in_all):
            if self._spent() >= 1:
                break
            start, before = time.perf_counter(), Passes(self.passes.forward, self.passes.backward)
            self._sums, self._counts = {}, {}
            model.train()
            yield epoch
            self._close_epoch(epoch, time.perf_counter() - start, before)
            self._validate(model, data, epoch)
            self._save(everything, epoch)
        if self._best is not None:
            model.load_state_dict(self._best[1])

    def batches(
        self,
        model: nn.Module,
        data: TrainingData,
        epoch: int,
        *,
        positions: Tensor | None = None,
        batch_size: int | None = None,
        stream: str = "train",
        shuffle: bool = True,
        crop: bool = True,
    ) -> Iterator[tuple[Batch, StepContext]]:
        """Shuffled, cropped and mirrored batches, each with the context of its step. The last, smaller one is left out.

        stream: a name for the draws of order, crops and dropout; loops over one epoch's data that are to differ need another.
        shuffle=False takes the positions as they come; crop=False leaves the images whole, to be cropped by `cropped` or not at all.
        """
        size = batch_size or self.recipe.batch_size
        order = data.positions() if positions is None else positions
        if shuffle:
            order = self.shuffled(order, stream, epoch)
        steps = max(1, len(order) // size)
        for step in range(steps):
            if self._spent() >= 1:
                return
            rows = order[step * size : (step + 1) * size]
            inputs = data.inputs(rows)
            inputs = self.cropped(inputs, stream, epoch, step) if crop else self._laid_out(inputs)
            torch.manual_seed(derived_seed(self.seed, "dropout", stream, epoch, step))
            batch = Batch.of(inputs.to(self.device), data.targets(rows).to(self.device), rows.to(self.device))
            self.record(images=len(rows), steps=1)
            yield batch, self.step(model, data, epoch, step, steps, stream)
            self.report({"epoch": epoch, "epochs": self.epochs_in_all, "step": step + 1, "steps": steps})

    def shuffled(self, positions: Tensor, stream: str, epoch: int) -> Tensor:
        """The positions in the order of this stream and epoch."""
        return positions[torch.randperm(len(positions), generator=contexts.generator(self.seed, "order", stream, epoch))]

    def cropped(self, inputs: Tensor, stream: str, epoch: int, step: int) -> Tensor:
        """The images cropped and mirrored as the recipe says; another stream gives another view of them."""
        draws = contexts.generator(self.seed, "crop", stream, epoch, step)
        return self._laid_out(crop_and_flip(inputs, self.recipe.crop_padding, self.recipe.flip and self.info.flippable, draws))

    def _laid_out(self, inputs: Tensor) -> Tensor:
        """In the recipe's memory format."""
        if self.recipe.memory_format == "channels_last":
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs.contiguous()

    def step(self, model: nn.Module, data: TrainingData, epoch: int, step: int, steps: int, stream: str = "train") -> StepContext:
        """The context for one call of the augmenter."""
        return contexts.step_context(
            model,
            self.info,
            self.target_layers,
            self.stages,
            self.explainer,
            key=self.key + stream,
            epoch=epoch,
            epochs=self.epochs_in_all,
            step=step,
            progress=min(self._spent(), ALMOST_1) if self.budget else (epoch * steps + step) / (steps * self.epochs_in_all),
            class_counts=class_counts(data.labels[data.indices], self.info.num_classes),
            log=self.average,
        )

    def branch_norms(self, model: nn.Module, augmenter: Any) -> BranchNorms | None:
        """The batch norms of the augmenter's further branches, to be trained and given to `epochs` and `loss`, if it has any."""
        momenta = getattr(augmenter, "branches", ())
        return BranchNorms(model, momenta) if momenta else None

    def loss(self, model: nn.Module, augmenter: Any, batch: Batch, step: StepContext, norms: BranchNorms | None = None) -> Tensor:
        """The weighted mean of the rows' losses; augmenters may bring their own forward or loss, and rows norms of their own."""
        own_forward, own_loss = getattr(augmenter, "forward", None), getattr(augmenter, "loss", None)
        with self.autocast():
            if own_forward:
                logits = own_forward(model, batch, step)
            elif norms is not None and batch.branch.any():
                logits = norms(model, batch.inputs, batch.branch)
            else:
                logits = model(batch.inputs)
        logits = logits.float()
        losses = own_loss(logits, batch) if own_loss else row_losses(logits, batch.targets, self.info.multi_label, self.recipe.label_smoothing)
        loss: Tensor = (losses * batch.weights).sum() / batch.weights.sum()
        self.record(rows=len(batch))
        self.average(loss=loss.detach())
        return loss

    def autocast(self) -> torch.autocast:
        """bf16 where the recipe says so, for forward passes of a training step."""
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def extended(self, augmenter: Any, model: nn.Module, data: TrainingData, epoch: int) -> TrainingData:
        """The data of the next epoch: an augmenter with `end_epoch` may add images, in place of those it added before."""
        end_epoch = getattr(augmenter, "end_epoch", None)
        if end_epoch is None:
            return data
        added = end_epoch(model, data, self.step(model, data, epoch, 0, 1, "end"))
        if added is not None:
            data.extra = added
        return data

    def average(self, **values: Any) -> None:
        """Log values; their mean over the epoch is kept."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def record(self, **counts: int) -> None:
        """Count images, rows and steps; their sum over the epoch is kept."""
        for name, value in counts.items():
            self._counts["sum " + name] = self._counts.get("sum " + name, 0) + value

    def _spent(self) -> float:
        """The share of the budget that is spent, 0 without one."""
        return (self.passes.forward + self.passes.backward) / self.budget if self.budget else 0.0

    # Around an epoch

    def _close_epoch(self, epoch: int, seconds: float, before: Passes) -> None:
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        sums = {name.removeprefix("sum "): count for name, count in self._counts.items() if name.startswith("sum ")}
        if not math.isfinite(means.get("loss", 0.0)):
            raise TrainingDiverged(
                f"the loss is {means['loss']} in epoch {epoch + 1} of {self.epochs_in_all}. A smaller recipe.learning_rate usually mends it."
            )
        passes = {"forward": self.passes.forward - before.forward, "backward": self.passes.backward - before.backward}
        self.log.append({"epoch": epoch, "seconds": seconds, **sums, **passes, **means})
        self.report({"epoch": epoch, "epochs": self.epochs_in_all, "step": 1, "steps": 1, "log": self.log[-1]})

    def _validate(self, model: nn.Module, data: TrainingData, epoch: int) -> None:
        if not len(data.validation):
            return
        model.eval()
        right, forwards = 0.0, self.passes.forward
        for rows in data.validation.split(self.recipe.batch_size):
            logits = contexts.forward(model, data.inputs(rows).to(self.device), len(rows)).cpu()
            labels = data.labels[rows]
            hits = (logits.argmax(1) == labels).double() if labels.ndim == 1 else ((logits > 0) == (labels > 0)).double().mean(1)
            right += float(hits.sum())
        self.passes.forward = forwards  # Choosing a model is not part of what a method costs.
        accuracy = right / len(data.validation)
        self.log[-1]["validation_accuracy"] = accuracy
        if self.recipe.report == "best" and (self._best is None or accuracy > self._best[0]):
            self._best = (accuracy, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    def _save(self, state: dict[str, Any], epoch: int) -> None:
        if self.folder is None:
            return
        saved = {name: part.state_dict() for name, part in state.items() if hasattr(part, "state_dict")}
        passes = [self.passes.forward, self.passes.backward]
        content = io.BytesIO()
        torch.save({"epoch": epoch + 1, "state": saved, "log": self.log, "passes": passes, "best": self._best}, content)
        with writing(self.folder):
            write_bytes(self.folder / "checkpoint.pt", content.getvalue())

    def _resume(self, state: dict[str, Any]) -> int:
        path = None if self.folder is None else self.folder / "checkpoint.pt"
        if path is None or not path.is_file():
            return 0
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
        except Exception:  # The reader raises whatever it stumbles on. Half a file helps nobody: begin again.
            path.unlink()
            return 0
        for name, part in state.items():
            if name in saved["state"]:
                part.load_state_dict(saved["state"][name])
        self.log[:] = saved["log"]
        self.passes.forward, self.passes.backward = saved["passes"]
        self._best = saved["best"]
        return int(saved["epoch"])


def rate_at(recipe: Recipe, progress: float, least: float = 0.0) -> float:
    """The learning rate as a part of the recipe's own, at a share of the training in [0, 1]; a cosine ends at `least`."""
    match recipe.schedule:
        case "constant":
            return 1.0
        case "cosine":
            return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        case "one-cycle":  # Up over the first quarter, down to nothing at the end.
            return max(0.0, progress / 0.25 if progress < 0.25 else (1 - progress) / 0.75)
        case "step":
            return float(0.1 ** sum(progress >= milestone for milestone in recipe.milestones))


def fit(trainer: Any, model: nn.Module, data: TrainingData, augmenter: Any, context: FitContext) -> dict[str, Any]:
    """Train, and return what it took: images, rows, steps, passes (and how many it might spend, where the recipe says so), seconds,
    peak memory, and the log of each epoch.
    """
    with contexts.counting(model, context.passes), measuring(context.device) as measured:
        trainer.fit(model, data, augmenter, context)
    model.eval()
    totals = {name: sum(epoch.get(name, 0) for epoch in context.log) for name in ("images", "rows", "steps", "forward", "backward", "seconds")}
    allowed = {} if context.budget is None else {"budget": context.budget}
    return {**totals, **allowed, "peak_memory": measured.peak_memory, "epochs": context.log}
