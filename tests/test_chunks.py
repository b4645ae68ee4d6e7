"""Chunks: the fastest number of images per forward, and half as many where memory runs out."""

import ctypes
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from bench import chunks, contexts, environment
from bench.explain import Selection, Subject, explain
from bench.score import score
from bench.testing import TinyNetwork, tiny_data
from bench_plugins.deletion import Deletion


class Clock:
    """Time as the networks of these tests tell it, so that a busy machine changes nothing."""

    seconds = 0.0

    @staticmethod
    @contextmanager
    def measuring(device):
        measured, start = environment.Measured(), Clock.seconds
        yield measured
        measured.seconds = Clock.seconds - start


class Timed(nn.Module):
    """A network whose forwards take as long as it is told: so many milliseconds each, and so many per image."""

    def __init__(self, each, per_image):
        super().__init__()
        self.each, self.per_image, self.seen = each, per_image, []

    def forward(self, inputs):
        self.seen.append(len(inputs))
        Clock.seconds += (self.each + self.per_image(len(inputs)) * len(inputs)) / 1000
        return torch.zeros(len(inputs), 2)


class Cramped:
    """Wraps a part; more than `room` rows do not fit into its memory."""

    def __init__(self, part, room):
        self.part, self.room, self.asked = part, room, []

    def __call__(self, model, rows, *others):
        self.asked.append(len(rows))
        if len(rows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.part(model, rows, *others)


class Brightness:
    """The image itself as its map."""

    def __call__(self, model, inputs, targets, context):
        return inputs.mean(1, keepdim=True)


@pytest.fixture
def subject():
    model = TinyNetwork().eval()
    return Subject(model, tiny_data().info, model.layers[-1:], model.layers, "cpu")


# The probe


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(chunks, "measuring", Clock.measuring)


@pytest.mark.parametrize(("size", "count"), [((32, 32), 64), ((112, 112), 64), ((224, 224), 16), ((448, 448), 4), ((2000, 2000), 2)])
def test_the_usual_chunk_holds_as_many_pixels_whatever_the_size(size, count):
    assert chunks.usual(size) == count


def test_a_network_that_is_quick_is_not_probed_further(clock):
    network = Timed(0, lambda images: 0.01)
    assert chunks.fastest(network, (32, 32), 3) == 64
    assert set(network.seen) == {64}


def test_where_small_chunks_cost_less_per_image_a_small_one_is_taken(clock):
    network = Timed(0, lambda images: 4.0 if images > 8 else 2.0)
    assert chunks.fastest(network, (224, 224), 3) == 4


def test_where_each_forward_costs_a_large_chunk_is_taken(clock):
    network = Timed(60, lambda images: 0.5)
    assert chunks.fastest(network, (224, 224), 3) == 64


def test_a_chunk_that_does_not_fit_is_not_taken(clock):
    class Small(Timed):
        def forward(self, inputs):
            if len(inputs) > 32:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return super().forward(inputs)

    assert chunks.fastest(Small(60, lambda images: 0.5), (224, 224), 3) == 32


def test_another_error_of_the_network_is_not_taken_for_a_lack_of_memory():
    class Broken(nn.Module):
        def forward(self, inputs):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        chunks.fastest(Broken(), (32, 32), 3)


# The walk


def test_rows_that_do_not_fit_come_again_in_halves_and_none_is_lost():
    done = []

    def work(rows, chunk):
        if rows.stop - rows.start > 5:
            raise MemoryError
        done.extend(range(rows.start, rows.stop))

    chunks.walk(41, 16, work)
    assert done == list(range(41))


def test_where_two_rows_do_not_fit_the_error_is_the_user_s():
    with pytest.raises(torch.OutOfMemoryError):
        chunks.walk(8, 4, lambda rows, chunk: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")))


def test_maps_and_their_cost_are_the_same_where_memory_ran_out(subject):
    selection = Selection(tiny_data(), torch.arange(20))
    cramped = Cramped(Brightness(), 4)
    found, cost = explain(subject, cramped, selection, None, batch_size=16)
    wanted, usual = explain(subject, Brightness(), selection, None, batch_size=4)
    assert cramped.asked[:3] == [16, 8, 4]
    assert torch.equal(found["attributions"], wanted["attributions"])
    assert torch.equal(found["indices"], wanted["indices"])
    assert [cost[name] for name in ("images", "forward", "backward")] == [usual[name] for name in ("images", "forward", "backward")]


def test_scores_are_the_same_where_memory_ran_out_for_the_second_of_two_metrics(subject):
    selection = Selection(tiny_data(), torch.arange(20))
    explanation, _ = explain(subject, Brightness(), selection, None)
    cramped = Cramped(Deletion(4), 8)
    found = score(subject, {"first": Deletion(4), "second": cramped}, selection, explanation, batch_size=16)
    wanted = score(subject, {"first": Deletion(4)}, selection, explanation, batch_size=8)["first"]
    for each in found.values():
        assert torch.allclose(each.rows, wanted.rows, atol=1e-6)


# Memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_kept_memory_changes_no_number_and_can_be_given_back():
    torch.manual_seed(0)
    network, images = TinyNetwork().eval(), torch.rand(64, 3, 32, 32)
    before = contexts.forward(network, images, 16)
    environment.keep_memory()
    assert torch.equal(contexts.forward(network, images, 16), before)
    environment.release_memory()
    assert torch.equal(contexts.forward(network, images, 16), before)
