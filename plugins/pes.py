"""PES: late layers learn wrong labels first, so they are trained anew for a short while, and then sort the labels.

Paper: the whole network is trained for T1 epochs. Then its late parts are started afresh and trained by themselves for few epochs,
the part in front of them frozen: last block and classifier, then the classifier alone. From there on the network sorts
the images before every epoch: those to which it gives the label they carry are confident. The confident form goes on with these
alone, class c weighed by w_c = mean_c'(n_c') / n_c, n_c its number of confident images. The semi-supervised form is MixMatch: two
views of every image; targets of the others guessed by the mean of their views' probabilities, raised to 1/T and normalised; all
views mixed with λ = max(Beta, 1 - Beta); the loss is -Σ w_c t_c log p_c of labelled rows plus
lambda_u · ramp · the mean of (p - t)² over rows and classes of the others. With LP-A3 the two views of each image without a label are attacked;
the twins, mixed by the same draws, go through batch norms of their own, and their squared error is added to the others'.

Differs from the paper: in the published code the layers that start afresh are new objects that the optimiser does not know, so
that they stay as the refinement left them; and batch norm in the frozen part still follows the batches. `variant = "reference"`
keeps both; "fixed" goes on training those layers, without the momentum of the old ones, and freezes the statistics. The code
attacks in training mode through the second batch norms; here the attack is LP-A3's own, in eval mode through the first. Where the
published accuracy is the best one on the test images, the recipe's `report` decides here.

Choices: T1 and the ramp are shares of the training (35 and 16 of 300 epochs), so that short recipes have every phase. Layers start afresh
in place, as torch initialises them. The rate falls with every step, not every epoch, and a cosine ends at a hundredth. Images are
sorted by two crops in eval mode. Confident images and others fill half a batch each or, if the confident are more, as much as
they are many, at least one having no label; each list starts over when it ends. An epoch for which nothing or everything is
confident takes all images with their labels. An augmenter with `attack` is used for the attack alone; any other is called
wherever there are labels, and for MixMatch it may have no loss or forward of its own. `lambda_u` was 15 to 25 for CIFAR-10 and
75 to 100 for CIFAR-100.

Checked against: class weights, ramp, batch sizes and the losses by hand; which weights move in which phase; resuming gives the
same weights to the bit. Published accuracies were not reproduced.

Cost: besides T1 and the refinement, two forwards per image and epoch to sort; a step of MixMatch on a batch of B images takes
2B forwards and backwards and two more forwards for each image without a label; LP-A3 adds its attack on two views of each of
these, and one forward and backward for each twin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import contexts, hookimpl
from bench.errors import InvalidValue
from bench.interfaces import Batch, Fraction, Layer, StepContext
from bench.keys import derived_seed
from bench.layers import evaluating
from bench.norms import AuxiliaryNorms
from bench.train import FitContext, TrainingData, row_losses
from bench_plugins.mixing import draw_shares
from bench_plugins.plain import Plain

Epochs = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]

WEIGHT_CAP = 3.0  # Of the published semi-supervised code; the confident form has none.
AUXILIARY_MOMENTUM = 0.01  # Of LP-A3's second batch norms.


@dataclass(frozen=True)
class Pes:
    """Trains late layers anew, then sorts the labels into confident ones and others before every epoch."""

    name: ClassVar[str] = "pes"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Bai, Yang, Han, Yang, Li, Mao, Niu, Liu; Understanding and Improving Early Stopping for Learning with Noisy Labels; "
        "NeurIPS 2021; arXiv:2106.15853"
    )
    claim: ClassVar[str] = "formula verified"
    optional_methods: ClassVar[tuple[str, ...]] = ("attack",)

    form: Literal["semi", "confident"] = "semi"
    variant: Literal["fixed", "reference"] = "fixed"
    warm_up: Fraction = 35 / 300
    refinements: tuple[Epochs, ...] = (5,)  # Epochs for each late part, the largest first, the classifier alone last.
    refinement_rate: Positive = 1e-4
    lambda_u: Annotated[float, Field(ge=0)] = 25.0
    ramp: Fraction = 16 / 300
    temperature: Positive = 0.5
    alpha: Positive = 4.0
    late_alpha: Positive = 0.75  # From half of the training on.
    auxiliary_norm: bool = True
    least_rate: Fraction = 0.01

    def fit(self, model: nn.Module, data: TrainingData, augmenter: Any, context: FitContext) -> None:
        self.refuse_misfits(augmenter, context)
        late = late_parts(model, context.stages, len(self.refinements))
        attacked = self.form == "semi" and hasattr(augmenter, "attack")
        taught = Plain() if attacked else augmenter
        norms = AuxiliaryNorms(model, AUXILIARY_MOMENTUM) if attacked and self.auxiliary_norm else None
        optimizer = context.optimizer(groups(model, norms, late[0] if late else []))
        turn = round(self.warm_up * context.recipe.epochs)
        for epoch in context.epochs(model, data, optimizer=optimizer, norms=norms, augmenter=augmenter):
            if epoch == turn:
                self.refine(model, data, taught, optimizer, late, epoch, context)
            if epoch < turn:
                self.learn(model, data, taught, optimizer, epoch, context)
            elif self.form == "semi":
                self.mixmatch_epoch(model, data, augmenter, norms, optimizer, epoch, context)
            elif epoch > turn:
                self.confident_epoch(model, data, taught, optimizer, epoch, context)
            data = context.extended(augmenter, model, data, epoch)

    def refuse_misfits(self, augmenter: Any, context: FitContext) -> None:
        """Raises InvalidValue for data with several labels, and for augmenters that MixMatch cannot serve."""
        if context.info.multi_label:
            raise InvalidValue(f"trainer 'pes' needs one label per image, and data set '{context.info.name}' has several.")
        own = [name for name in ("forward", "loss") if hasattr(augmenter, name)]
        if self.form == "semi" and own:
            raise InvalidValue(
                f"trainer 'pes' mixes images itself and has no place for the {own[0]} that augmenter '{augmenter.name}' brings.\n"
                "Its confident form has: {name = 'pes-confident'}."
            )

    # Plain epochs

    def learn(
        self,
        model: nn.Module,
        data: TrainingData,
        augmenter: Any,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        context: FitContext,
        positions: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """One epoch on the labels as they are, of all images or some, each class weighed (K,)."""
        for batch, step in context.batches(model, data, epoch, positions=positions):
            if weights is not None:
                batch = batch.replace(weights=weights.to(batch.targets)[batch.labels])
            context.set_rate(optimizer, step.progress, self.least_rate)
            descend(optimizer, context.loss(model, augmenter, augmenter(model, batch, step), step))

    def confident_epoch(
        self, model: nn.Module, data: TrainingData, augmenter: Any, optimizer: torch.optim.Optimizer, epoch: int, context: FitContext
    ) -> None:
        """One epoch on the confident images."""
        positions = data.positions()
        sure = positions[self.confident(model, data, epoch, context)]
        chosen = sure if len(sure) else positions
        self.learn(model, data, augmenter, optimizer, epoch, context, chosen, class_weights(data.targets(chosen).sum(0)))

    def confident(self, model: nn.Module, data: TrainingData, epoch: int, context: FitContext) -> Tensor:
        """(N,) whether two crops of an image are, on average, given the label that it carries."""
        found = []
        for step, rows in enumerate(data.positions().split(context.recipe.batch_size)):
            images = data.inputs(rows)
            views = torch.cat([context.cropped(images, f"sort {view}", epoch, step) for view in range(2)]).to(context.device)
            with evaluating(model):
                logits = contexts.forward(model, views, len(views)).cpu()
            chances = logits.softmax(1).view(2, len(rows), -1).mean(0)
            found.append(chances.argmax(1) == data.targets(rows).argmax(1))
        sure = torch.cat(found)
        context.average(pes_confident=sure.float().mean())
        return sure

    # The refinement

    def refine(
        self,
        model: nn.Module,
        data: TrainingData,
        augmenter: Any,
        optimizer: torch.optim.Optimizer,
        late: Sequence[Sequence[nn.Module]],
        epoch: int,
        context: FitContext,
    ) -> None:
        """Start each late part afresh and train it alone."""
        for number, (modules, epochs) in enumerate(zip(late, self.refinements, strict=True)):
            torch.manual_seed(derived_seed(context.seed, "renew", number))
            for module in modules:
                module.reset_parameters()  # type: ignore[operator]
            with alone(model, modules, still=self.variant == "fixed"):
                own = torch.optim.Adam(parameters_of(modules), self.refinement_rate)
                for again in range(epochs):
                    for batch, step in context.batches(model, data, epoch, stream=f"refine {number} {again}"):
                        descend(own, context.loss(model, augmenter, augmenter(model, batch, step), step))
        if self.variant == "reference":
            optimizer.param_groups[-1]["initial_lr"] = 0.0  # The published optimiser does not know the layers from here on.
        else:
            for parameter in parameters_of(late[0] if late else []):
                optimizer.state.pop(parameter, None)

    # MixMatch

    def mixmatch_epoch(
        self,
        model: nn.Module,
        data: TrainingData,
        augmenter: Any,
        norms: AuxiliaryNorms | None,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        context: FitContext,
    ) -> None:
        """One epoch on the confident images with their labels and on the others without."""
        positions = data.positions()
        sure = self.confident(model, data, epoch, context)
        if sure.all() or not sure.any():
            self.learn(model, data, Plain() if hasattr(augmenter, "attack") else augmenter, optimizer, epoch, context)
            return
        labelled, unlabelled = positions[sure], positions[~sure]
        weights = class_weights(data.targets(labelled).sum(0), WEIGHT_CAP).to(context.device)
        with_label, without = batch_sizes(len(labelled), len(unlabelled), context.recipe.batch_size)
        steps = context.steps_per_epoch(data)
        first = endless(labelled, steps * with_label, "labelled", epoch, context).view(steps, with_label)
        then = endless(unlabelled, steps * without, "unlabelled", epoch, context).view(steps, without)
        order = torch.cat([first, then], dim=1).flatten()
        for batch, step in context.batches(model, data, epoch, positions=order, stream="mixmatch", shuffle=False, crop=False):
            context.set_rate(optimizer, step.progress, self.least_rate)
            descend(optimizer, self.mixmatch_loss(model, batch, with_label, augmenter, norms, weights, step, context))

    def mixmatch_loss(
        self,
        model: nn.Module,
        batch: Batch,
        labelled_rows: int,
        augmenter: Any,
        norms: AuxiliaryNorms | None,
        weights: Tensor,
        step: StepContext,
        context: FitContext,
    ) -> Tensor:
        """The loss of one step; the first rows of the batch have labels."""
        first, second = (context.cropped(batch.inputs, f"view {view}", step.epoch, step.step) for view in range(2))
        rows = slice(labelled_rows)
        labelled = Batch.of(torch.cat([first[rows], second[rows]]), batch.targets[rows].repeat(2, 1), batch.indices[rows].repeat(2))
        attacked = hasattr(augmenter, "attack")
        if not attacked:
            labelled = augmenter(model, labelled, step)
        first, second = first[labelled_rows:], second[labelled_rows:]
        unlabelled, guesses = torch.cat([first, second]), self.guesses(model, first, second, context)

        mix = Mix.drawn(self.alpha_at(step), len(labelled) + len(unlabelled), contexts.generator(context.seed, "mixmatch", step.epoch, step.step))
        targets = mix(torch.cat([labelled.targets, guesses]))
        known, guessed = targets[: len(labelled)], targets[len(labelled) :]
        with context.autocast():
            logits = model(mix(torch.cat([labelled.inputs, unlabelled]))).float()
        context.record(rows=len(logits))
        loss = weighted_cross_entropy(logits[: len(labelled)], known, weights, labelled.weights)
        error = squared_error(logits[len(labelled) :], guessed)
        if attacked:
            twins = mix(torch.cat([labelled.inputs, augmenter.attack(model, unlabelled, step)]))[len(labelled) :]
            with context.autocast():
                logits = model(twins) if norms is None else norms(model, twins)
            context.record(rows=len(twins))
            error = error + squared_error(logits.float(), guessed)
        context.average(labelled_loss=loss.detach(), unlabelled_error=error.detach())
        loss = loss + self.lambda_u * self.ramp_at(step) * error
        context.average(loss=loss.detach())
        return loss

    @torch.no_grad()
    def guesses(self, model: nn.Module, first: Tensor, second: Tensor, context: FitContext) -> Tensor:
        """(2n, K) sharpened targets of both views, from forwards in training mode, each view by itself, as published."""
        with context.autocast():
            chances = (model(first).float().softmax(1) + model(second).float().softmax(1)) / 2
        sharpened = chances ** (1 / self.temperature)
        return (sharpened / sharpened.sum(1, keepdim=True)).repeat(2, 1)

    def ramp_at(self, step: StepContext) -> float:
        """The share of `lambda_u`: 0 at the end of the warm-up, then growing to 1."""
        since = step.progress - round(self.warm_up * step.epochs) / step.epochs
        return min(1.0, max(0.0, since / self.ramp)) if self.ramp else 1.0

    def alpha_at(self, step: StepContext) -> float:
        return self.alpha if step.epoch < step.epochs / 2 else self.late_alpha


# Parts of the network


def late_parts(model: nn.Module, stages: Sequence[Layer], count: int) -> list[list[nn.Module]]:
    """What each refinement starts afresh: all layers behind one stage less from the end each time, and at last the classifier.

    Raises InvalidValue where the network has too few stages.
    """
    if count > len(stages):
        raise InvalidValue(f"trainer 'pes' is to refine {count} late parts, and the network has {len(stages)} stages. Give fewer `refinements`.")
    modules = list(model.modules())
    layers = [module for module in modules if hasattr(module, "reset_parameters") and any(True for _ in module.parameters(recurse=False))]
    parts = []
    for stage in reversed(stages[-count:-1] if count else ()):
        inside = set(stage.module.modules())
        end = max(place for place, module in enumerate(modules) if module in inside)
        parts.insert(0, [layer for layer in layers if modules.index(layer) > end])
    return [*parts, layers[-1:]] if count else []


def parameters_of(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


def groups(model: nn.Module, norms: nn.Module | None, late: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """Two groups for the optimiser: what stays, and what is to start afresh."""
    renewed = parameters_of(late)
    known = {id(parameter) for parameter in renewed}
    kept = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": kept + ([] if norms is None else list(norms.parameters()))}, {"params": renewed}]


@contextmanager
def alone(model: nn.Module, modules: Sequence[nn.Module], still: bool) -> Iterator[None]:
    """Only the parameters of these modules learn; `still` keeps the statistics of the others' batch norms as they are too."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    learning = {id(parameter) for parameter in parameters_of(modules)}
    for parameter, _ in asked:
        parameter.requires_grad_(id(parameter) in learning)
    model.train(not still)
    for module in modules:
        module.train()
    try:
        yield
    finally:
        for parameter, required in asked:
            parameter.requires_grad_(required)
        model.train()


# Numbers


def class_weights(counts: Tensor, cap: float | None = None) -> Tensor:
    """(K,) the mean count of the classes that occur, divided by each count; 0 for a class that does not occur."""
    weights = counts[counts > 0].mean() / counts
    weights[counts == 0] = 0
    return weights if cap is None else weights.clamp(max=cap)


def batch_sizes(labelled: int, unlabelled: int, size: int) -> tuple[int, int]:
    """How many images of a batch have a label and how many, one at least, have none."""
    without = size // 2 if unlabelled > labelled else max(1, int(unlabelled / (labelled + unlabelled) * size))
    return size - without, without


def endless(positions: Tensor, count: int, stream: str, epoch: int, context: FitContext) -> Tensor:
    """(count,) positions, shuffled anew whenever all have been used."""
    rounds = -(-count // len(positions))
    return torch.cat([context.shuffled(positions, f"{stream} {number}", epoch) for number in range(rounds)])[:count]


@dataclass(frozen=True)
class Mix:
    """One draw of MixMatch: each row's partner, and the share that a row keeps of itself, one half at least."""

    partners: Tensor
    share: float

    @classmethod
    def drawn(cls, alpha: float, rows: int, generator: torch.Generator) -> Mix:
        share = float(draw_shares(alpha, 1.0, 1, generator))
        return cls(torch.randperm(rows, generator=generator), max(share, 1 - share))

    def __call__(self, values: Tensor) -> Tensor:
        return torch.lerp(values[self.partners.to(values.device)], values, self.share)


def weighted_cross_entropy(logits: Tensor, targets: Tensor, class_weights: Tensor, row_weights: Tensor) -> Tensor:
    """The mean over rows of -Σ w_c t_c log p_c."""
    losses = row_losses(logits, targets * class_weights, multi_label=False)
    return (losses * row_weights).sum() / row_weights.sum()


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over rows and classes of (p - t)²."""
    return F.mse_loss(logits.softmax(1), targets)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@hookimpl
def register_trainers(register: Any) -> None:
    confident = {"form": "confident", "warm_up": 30 / 200, "refinements": (7, 5)}  # CIFAR-100's.
    register(Pes)
    register(Pes, name="pes-reference", variant="reference")
    register(Pes, name="pes-confident", **confident)
    register(Pes, name="pes-confident-reference", variant="reference", **confident)
