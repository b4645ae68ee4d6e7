"""Which batch size to propose: what is tried, where it ends, and what is said. Memory that runs out is played, for no processor is short here."""

from contextlib import contextmanager

import pytest
import torch

from bench import batch_size, estimate
from bench.batch_size import Trial, proposal, tried
from bench.interfaces import Recipe
from bench.testing import TinyNetwork

SPEC = {"datasets": {"name": "tiny", "train_images": 600}, "augmenters": ["none", "shade"], "recipe": {"epochs": 4, "batch_size": 32}}


@pytest.fixture
def clock(monkeypatch):
    """Makes a batch of n images take overhead + n seconds."""

    def play(overhead=0.0, growth=1.0):
        class Measured:
            seconds = 0.0

        seen = {"images": 0}  # In the network's last forward.
        forward = TinyNetwork.forward

        def counted(self, inputs):
            seen["images"] = len(inputs)
            return forward(self, inputs)

        @contextmanager
        def measuring(device):
            measured = Measured()
            yield measured
            measured.seconds = overhead + seen["images"] ** growth

        monkeypatch.setattr(TinyNetwork, "forward", counted)
        monkeypatch.setattr(estimate, "measuring", measuring)

    return play


@pytest.fixture
def short_of_memory(monkeypatch):
    """Lets torch run out of memory when a network with gradients gets more images than given."""

    def play(most, error):
        forward = TinyNetwork.forward

        def limited(self, inputs):
            if len(inputs) > most and torch.is_grad_enabled():
                raise error
            return forward(self, inputs)

        monkeypatch.setattr(TinyNetwork, "forward", limited)

    return play


def job_of(planned, **changes):
    return planned(**{**SPEC, **changes}).trainings[0]


# Trying


def test_batches_double_until_the_data_run_out(planned, clock):
    clock(overhead=1000.0)
    trial = tried("plain", job_of(planned, datasets={"name": "tiny", "train_images": 300}), "cpu")
    assert list(trial.seconds) == [16, 32, 64, 128, 256]
    assert trial.seconds[64] == pytest.approx((1000 + 64) / 64)
    assert trial.refused is None
    assert list(tried("part", job_of(planned, recipe={"epochs": 4, "train_images": 40}), "cpu").seconds) == [16, 32]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_memory_runs_out_the_sizes_before_are_kept(planned, clock, short_of_memory, error):
    clock(overhead=1000.0)
    short_of_memory(100, error)
    trial = tried("plain", job_of(planned), "cpu")
    assert (list(trial.seconds), trial.refused) == ([16, 32, 64], 128)


def test_another_error_is_not_taken_for_memory(planned, short_of_memory):
    short_of_memory(20, RuntimeError("the shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        tried("plain", job_of(planned), "cpu")


def test_on_a_processor_it_ends_where_larger_is_no_longer_quicker(planned, clock):
    clock(overhead=0.0)  # Every size takes a second an image.
    assert list(tried("plain", job_of(planned), "cpu").seconds) == [16, 32, 64]


def test_every_kind_of_training_is_tried_once(planned, clock):
    clock(overhead=0.0)
    plan = planned(**SPEC, seeds=3, trainers=["standard", "pretrained"])
    assert [trial.name for trial in batch_size.trials(plan, "cpu")] == ["tiny tiny-net standard none", "tiny tiny-net standard shade"]


def test_the_last_epoch_is_tried_where_every_augmenter_is_at_work(planned, registry, clock, monkeypatch):
    seen = []
    shade = registry.entry("augmenter", "shade").factory
    monkeypatch.setattr(shade, "__call__", lambda self, model, batch, context: seen.append(context.epoch) or batch)
    clock(overhead=0.0)
    tried("shade", next(job for job in planned(**SPEC).trainings if job.augmenter.label == "shade"), "cpu")
    assert set(seen) == {3}


# Proposing


def test_the_smallest_of_the_quickest_is_proposed_for_all_together():
    plain = Trial("plain", {16: 4.0, 32: 2.0, 64: 1.0, 128: 1.0, 256: 1.0})
    costly = Trial("costly", {16: 8.0, 32: 6.0, 64: 5.0, 128: 4.0}, refused=256)
    found = proposal([plain, costly], Recipe(batch_size=32, learning_rate=0.1))
    assert (found.batch_size, found.largest, found.refused) == (128, 128, 256)  # 16: 12, 32: 8, 64: 6, 128: 5 seconds.
    assert found.learning_rate == pytest.approx(0.4)


def test_what_is_within_a_twentieth_is_as_quick_and_the_recipes_own_size_is_kept_then():
    trial = Trial("plain", {16: 1.04, 32: 1.03, 64: 1.0, 128: 1.2})
    assert proposal([trial], Recipe(batch_size=128)).batch_size == 16
    assert proposal([trial], Recipe(batch_size=64)).batch_size == 64
    assert "as quick as any" in proposal([trial], Recipe(batch_size=64)).text(Recipe(batch_size=64))


def test_the_rate_of_an_adaptive_optimiser_grows_by_the_root():
    trial = Trial("plain", {64: 3.0, 128: 2.0, 256: 1.0})
    recipe = Recipe(batch_size=64, optimizer="adamw", learning_rate=0.001)
    found = proposal([trial], recipe)
    assert (found.batch_size, found.learning_rate) == (256, pytest.approx(0.002))
    assert "by the root of that" in found.text(recipe)


def test_the_proposal_says_what_to_type_and_takes_nothing():
    text = proposal([Trial("plain", {64: 2.0, 128: 1.0}, refused=256)], Recipe(batch_size=64)).text(Recipe(batch_size=64))
    assert "128 is the largest that fits; 256 does not" in text
    assert "--set recipe.batch_size=128" in text
    assert "--set recipe.learning_rate=0.2" in text
    assert "another training" in text


def test_there_is_nothing_to_propose_where_nothing_fits():
    assert proposal([Trial("plain", {16: 1.0}), Trial("costly", {}, refused=16)], Recipe()) is None
    assert proposal([], Recipe()) is None
