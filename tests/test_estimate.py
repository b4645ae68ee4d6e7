"""How long a run will take: rehearsals of trainings against the trainings themselves, counted in passes, which no clock disturbs."""

from contextlib import contextmanager

import pytest
import torch
from conftest import PARTS

from bench import environment, estimate, plugins
from bench import plan as plans
from bench import spec as specs
from bench.errors import InvalidValue
from bench.train import FitContext, fit, training_data

REGISTRY = plugins.load([PARTS]).registry
RECIPE = {"epochs": 8, "batch_size": 16, "crop_padding": 2, "learning_rate": 0.05}


def training(trainer, augmenter, noise="none", **recipe):
    """A training job on tiny data."""
    tiny = {"name": "tiny", "train_images": 32}
    asked = {"datasets": [tiny], "models": "tiny-net", "trainers": [trainer], "augmenters": [augmenter], "label_noise": noise, "floors": False}
    spec = specs.make({**asked, "explainers": "random", "metrics": "accuracy", "recipe": {**RECIPE, **recipe}})
    plan = plans.make(spec.completed(REGISTRY), REGISTRY, None, "cpu")
    return plan, plan.trainings[0]


def rehearsed(job):
    return estimate.rehearse(job, estimate.subject_of(job, "cpu"), job.recipe.batch_size)


def trained(job):
    """What the training really takes: passes, forward and backward."""
    subject = estimate.subject_of(job, "cpu")
    context = FitContext(job.recipe, subject.info, 0, "key", "cpu", subject.target_layers, subject.stages, estimate._explainer_of(job))
    noise = None if job.noise is None else lambda labels: job.noise.part(labels, subject.info, torch.Generator().manual_seed(0))
    cost = fit(job.trainer.part, subject.model, training_data(job.data.train, job.recipe, noise, None), job.augmenter.part, context)
    return cost["forward"] + cost["backward"]


PES = {"name": "pes", "warm_up": 0.4, "refinements": [2]}
LPA3 = {"name": "lpa3", "iterations": 2}
CASES = {
    "plain": ("standard", "none", "none"),
    "mixup": ("standard", "mixup", "none"),
    "edda": ("standard", "edda", "none"),
    "augmix, three rows an image": ("standard", "augmix", "none"),
    "lpa3": ("standard", LPA3, "none"),
    "lpa3 from half of the training on": ("standard", {**LPA3, "start": 0.5}, "none"),
    "lpa3 from three quarters on": ("standard", {**LPA3, "start": 0.75}, "none"),
    "two joined": ("standard", {"of": [LPA3, "mixup"]}, "none"),
    "proxies": ("standard", "proxy-attention", "none"),
    "pes": (PES, "none", "symmetric:0.5"),
    "pes with lpa3": (PES, LPA3, "symmetric:0.5"),
    "pes on confident images": ({"name": "pes-confident", "warm_up": 0.3, "refinements": [2]}, "mixup", "symmetric:0.5"),
    "supcon": ("supcon", "plain-views", "none"),
    "supcon with excon": ("supcon", "excon", "none"),
}


@pytest.mark.parametrize(("trainer", "augmenter", "noise"), CASES.values(), ids=CASES)
def test_a_rehearsal_tells_what_the_training_takes_within_one_half(trainer, augmenter, noise):
    plan, job = training(trainer, augmenter, noise)
    expected = rehearsed(job).passes * estimate._images(job, plan)
    assert 1 / 1.5 < expected / trained(job) < 1.5


@pytest.mark.parametrize(("trainer", "augmenter"), [(PES, "none"), ("standard", {**LPA3, "start": 0.75})], ids=str)
def test_some_of_its_epochs_tell_of_a_long_training(trainer, augmenter):
    plan, job = training(trainer, augmenter, "symmetric:0.5", epochs=30)
    expected = rehearsed(job).passes * estimate._images(job, plan)
    assert 1 / 1.5 < expected / trained(job) < 1.5


@pytest.fixture
def a_second_an_epoch(monkeypatch):
    """A clock on which every epoch of a rehearsal takes one second, and a look at which they are."""

    @contextmanager
    def measuring(device):
        yield environment.Measured(1.0)

    monkeypatch.setattr(estimate, "measuring", measuring)


def test_seconds_are_those_of_an_image_in_an_epoch(a_second_an_epoch):
    plan, job = training("standard", "none")
    assert rehearsed(job).seconds == pytest.approx(1 / 16)
    assert estimate.seconds(plan, [job], "cpu") == pytest.approx(32 * 8 / 16)


def test_images_held_out_are_not_trained_on(a_second_an_epoch):
    plan, job = training("standard", "none", validation=0.25)
    assert estimate.seconds(plan, [job], "cpu") == pytest.approx(24 * 8 / 16)


def test_with_equal_passes_every_augmenter_takes_about_as_long(a_second_an_epoch):
    """An LP-A3 step of one iteration takes 3 + 1 passes to attack and 2 + 2 to learn: four times as many as a plain one."""
    plain = training("standard", "none", equal_passes=True)
    costly = training("standard", {"name": "lpa3", "iterations": 1}, equal_passes=True)
    assert estimate.seconds(plain[0], [plain[1]], "cpu") == pytest.approx(4 * estimate.seconds(costly[0], [costly[1]], "cpu"))


def test_a_slow_network_is_rehearsed_in_few_epochs(monkeypatch):
    seen = []

    @contextmanager
    def measuring(device):
        seen.append(1)
        yield environment.Measured(100.0)

    monkeypatch.setattr(estimate, "measuring", measuring)
    rehearsed(training("standard", "none")[1])
    assert len(seen) == 1 + estimate.FEWEST_EPOCHS


@pytest.mark.parametrize("epochs", [1, 2, 3, 8, 12])
def test_all_epochs_of_a_short_training_are_rehearsed(epochs):
    assert sorted(estimate.spread(epochs)) == list(range(epochs))


@pytest.mark.parametrize("epochs", [24, 40, 300])
def test_the_epochs_of_a_long_training_are_spread_over_it_however_few_are_tried(epochs):
    chosen = estimate.spread(epochs)
    assert len(set(chosen)) == 12
    assert sorted(int(12 * epoch / epochs) for epoch in chosen) == list(range(12))
    first = sorted(epoch / epochs for epoch in chosen[:3])
    assert first[0] < 1 / 3 < first[1] < 2 / 3 < first[2]


def test_a_rehearsal_leaves_the_global_stream_as_it_found_it():
    job = training("standard", "mixup")[1]
    subject = estimate.subject_of(job, "cpu")
    before = torch.random.get_rng_state()
    estimate.rehearse(job, subject, 16)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_training_that_cannot_be_rehearsed_has_no_estimate():
    plan, job = training("pes", "augmix")
    with pytest.raises(InvalidValue, match="the loss"):
        rehearsed(job)
    assert estimate.seconds(plan, [job], "cpu") is None
