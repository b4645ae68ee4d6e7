"""Bench beside the libraries that explain and score the same way: as they come, and with what makes bench fast given to them too.

Run with `make bench`.
"""

import time
from functools import partial

import pytest
import torch

from benchmarks.timing import LEVEL, Row, enter, fastest, in_turn, seconds
from benchmarks.ways import CHANNELS_LAST, CONTIGUOUS, NETWORKS, WAYS, Case

BATCHES = {"lite0": (8, 16), "resnet56": (32, 64)}
AS_IT_COMES, AS_BENCH = "as it comes", "as bench runs"  # The second: memory kept, and the better memory format.
NO_SLOWER = {"target": 1.0, "least": LEVEL}

pytestmark = pytest.mark.benchmark(timer=time.process_time)


def compare(benchmark, another_process, what, network, images, claims, agree):
    """Enter a row for each of `claims`, by library and how it runs; `agree(found, wanted)` holds the outputs of each to bench's."""
    settings = [Case(network, images, layout, batch) for layout in (CHANNELS_LAST, CONTIGUOUS) for batch in BATCHES[network]]
    as_it_comes = [case for case in settings if case.layout == CONTIGUOUS]
    own_case, ours = fastest(WAYS[what]["bench"], settings)
    wanted, cases, others = ours(), {}, {}
    for library, how in claims:
        side = library, how
        if how == AS_IT_COMES:
            cases[side], found = another_process.fastest(what, library, as_it_comes)
            others[side] = partial(another_process.seconds, what, library)
        else:
            cases[side], way = fastest(WAYS[what][library], settings)
            found, others[side] = way(), partial(seconds, way)
        agree(found, wanted)
    own, theirs = in_turn(benchmark, ours, others)
    title, rows = NETWORKS[network].title, []
    for side, claim in claims.items():
        milliseconds = own * 1000 / images, theirs[side] * 1000 / images
        rows.append(Row(what, title, str(own_case), ", ".join(side), str(cases[side]), *milliseconds, "faster", **claim))
    enter(benchmark, *rows)


def stretched(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def same_maps(found, wanted):
    """To rounding, after the rescaling that pytorch-grad-cam cannot leave out."""
    torch.testing.assert_close(stretched(found), stretched(wanted), atol=1e-4, rtol=0)


def alike_maps(found, wanted):
    """The libraries enlarge the masks in two other ways, which moves the maps a little."""
    for pair in zip(found.flatten(1), wanted.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.98


def same_areas(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_gradcam_is_faster_than_the_libraries(benchmark, another_process):
    forward = "both take one forward pass and the gradient of the last layers alone, and the forward pass is nearly all of the time"
    claims = {
        ("pytorch-grad-cam", AS_IT_COMES): {"target": 3.0},
        ("pytorch-grad-cam", AS_BENCH): {"target": 3.0},
        ("captum", AS_IT_COMES): {"target": 1.3, "least": 1.0, "missed": forward},
        ("captum", AS_BENCH): {"target": 1.3, "least": 0.9, "missed": forward},
    }
    compare(benchmark, another_process, "Grad-CAM", "lite0", 16, claims, same_maps)


@pytest.mark.parametrize(("network", "images"), [("lite0", 3), ("resnet56", 3)])
def test_scorecam_is_as_fast_as_its_forwards_let_the_libraries_be(benchmark, another_process, network, images):
    claims = {
        ("pytorch-grad-cam", AS_IT_COMES): {"target": 1.0},
        ("pytorch-grad-cam", AS_BENCH): NO_SLOWER,
        ("torchcam", AS_IT_COMES): {"target": 1.0},
        ("torchcam", AS_BENCH): NO_SLOWER,
    }
    compare(benchmark, another_process, "Score-CAM", network, images, claims, alike_maps)


@pytest.mark.parametrize(("network", "images"), [("lite0", 1), ("resnet56", 2)])
def test_deletion_and_insertion_are_faster_than_torchcam(benchmark, another_process, network, images):
    forwards = "nine tenths of the time of either are the same forward passes"
    claims = {
        ("torchcam", AS_IT_COMES): {"target": 1.3, "least": 1.0, "missed": forwards},
        ("torchcam", AS_BENCH): {"target": 1.3, "least": LEVEL, "missed": forwards},
    }
    compare(benchmark, another_process, "deletion + insertion", network, images, claims, same_areas)
