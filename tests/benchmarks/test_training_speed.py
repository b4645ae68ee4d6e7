"""What augmenters add to a training step: for EDDA and LP-A3 beside the passes they are made of, for the others beside the step.

Run with `make bench`.
"""

import dataclasses
import time
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import contexts, plugins, testing
from bench.interfaces import Batch, Recipe
from bench.train import FitContext
from bench_plugins.cifar_resnets import CifarResNet
from bench_plugins.edda import Edda
from bench_plugins.gradcam import GradCam
from bench_plugins.lpa3 import LPA3
from bench_plugins.torchvision_models import ResNet
from benchmarks.timing import Row, enter, in_turn, seconds

CLASSES, SIDE, ROWS = 10, 32, 64
WITHIN, SHARE = 1.15, 0.05

pytestmark = pytest.mark.benchmark(timer=time.process_time)


class Training:
    """A network, a batch to train it on, and the steps of the plain training loop, which can be taken again from the start."""

    def __init__(self, part, explainer=None):
        self.info = testing.dataset_info(CLASSES, (SIDE, SIDE), 3)
        torch.manual_seed(0)
        self.model = part.build(self.info).to(memory_format=torch.channels_last)
        inputs = torch.rand(ROWS, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            self.model.train()(inputs)
        labels = contexts.forward(self.model.eval(), inputs, ROWS).argmax(1)  # All are recognised: the most that EDDA can have to do.
        self.batch = Batch.of(inputs, F.one_hot(labels, CLASSES).float())
        layers = part.target_layers(self.model), part.stages(self.model)
        self.fit = FitContext(Recipe(), self.info, 0, "", "cpu", *layers, explainer)
        self.context = partial(contexts.step_context, self.model, self.info, *layers, explainer)
        self.optimizer = self.fit.optimizer(self.model.parameters(), 1e-3)
        self.start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def restart(self):
        self.model.load_state_dict(self.start)
        self.model.train()

    def augmented(self, augmenter):
        return augmenter(self.model, self.batch, self.context())

    def step(self, augmenter):
        """As in the trainer `standard`."""
        loss = self.fit.loss(self.model, augmenter, self.augmented(augmenter), self.context())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def bare_step(self, rows):
        """A forward and a backward pass of so many rows, and the optimiser's step."""
        repeats = -(-rows // ROWS)
        inputs, targets = self.batch.inputs.repeat(repeats, 1, 1, 1)[:rows], self.batch.targets.repeat(repeats, 1)[:rows]
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()

    def bare_forward(self, rows):
        """In parts of a batch."""
        with torch.no_grad():
            for _ in range(rows // ROWS):
                self.model(self.batch.inputs)

    def bare_gradient(self):
        """Of the batch's images."""
        inputs = self.batch.inputs.detach().requires_grad_()
        torch.autograd.grad(self.model(inputs).sum(), inputs)


def test_a_step_of_edda_costs_little_more_than_its_passes(benchmark):
    training = Training(CifarResNet(), GradCam())
    training.restart()
    rows = len(training.augmented(Edda()))

    def passes():
        """One forward to explain, two of masked images, and the step on all that were added."""
        with contexts.untouched(training.model):
            training.bare_forward(3 * ROWS)
        training.bare_step(rows)

    hold(benchmark, "EDDA, a training step", training, Edda(), passes, f"bare: {3 * ROWS} forward, a step of {rows}")


def test_a_step_of_lpa3_costs_little_more_than_its_passes(benchmark):
    training, method = Training(CifarResNet()), LPA3()

    def passes():
        """One forward, for each iteration a forward with its backward and another forward, and the step on originals and twins."""
        with contexts.untouched(training.model):
            training.bare_forward((1 + method.iterations) * ROWS)
            for _ in range(method.iterations):
                training.bare_gradient()
        training.bare_step(2 * ROWS)

    bare = f"bare: {(1 + 2 * method.iterations) * ROWS} forward, {method.iterations * ROWS} of them backward, a step of {2 * ROWS}"
    hold(benchmark, "LP-A3, a training step", training, method, passes, bare)


def hold(benchmark, what, training, augmenter, passes, described):
    own, theirs = in_turn(benchmark, partial(training.step, augmenter), {"floor": partial(seconds, passes)}, before=training.restart)
    setting, milliseconds = f"channels last, batch {ROWS}", (own * 1000 / ROWS, theirs["floor"] * 1000 / ROWS)
    enter(benchmark, Row(what, "CIFAR ResNet-20, 32²", setting, described, setting, *milliseconds, "within", WITHIN))


class Asked(Exception):
    """An augmenter asked the network something."""


class Unasked(nn.Module):
    """A network that must not be asked."""

    def __init__(self):
        super().__init__()
        self.normalisation = testing.Plain(3)

    def forward(self, inputs):
        raise Asked


def at_work_on_a_batch():
    """Every augmenter of bench whose work is all done on the batch: not in views for one trainer, nor between epochs."""
    registry = plugins.load().registry
    for entry in registry.entries("augmenter"):
        elsewhere = any(hasattr(entry.factory, trait) for trait in ("end_epoch", "trainers"))
        if entry.distribution.startswith("bench-xai ") and entry.name != "none" and not elsewhere:
            yield entry.name, registry.resolve("augmenter", entry.name).part


def test_augmenters_that_ask_no_network_cost_less_than_a_twentieth_of_a_step(benchmark):
    training = Training(ResNet())
    shares = {}

    def asked(*arguments, **options):
        raise Asked

    def call(augmenter, step):
        context = training.context(step=step, epoch=5, epochs=10, progress=0.5)
        return augmenter(Unasked(), training.batch, dataclasses.replace(context, explain=asked, predict=asked, features=asked))

    step, _ = in_turn(benchmark, partial(training.bare_step, ROWS), {})
    for name, augmenter in at_work_on_a_batch():
        try:
            rows = len(call(augmenter, 0))
        except Asked:
            continue
        taken = min(seconds(partial(call, augmenter, number)) for number in range(1, 8))
        shares[name] = {"ms": 1000 * taken / ROWS, "share": taken / (step * rows / ROWS)}
    benchmark.extra_info["shares"] = {"step": 1000 * step / ROWS, "augmenters": shares}
    assert len(shares) > 20
    assert {name: found["share"] for name, found in shares.items() if found["share"] >= SHARE} == {}
