"""Bench beside the passes through the network that a method cannot do without, run bare: what it does besides is to cost little.

Run with `make bench`.
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial

import pytest
import torch

from bench import contexts
from bench.interfaces import Layer, Passes
from bench.layers import recording
from bench_plugins.masking_cams import AblationCam, ScoreCam
from bench_plugins.rise import Rise
from bench_plugins.sise import AdaSise, Sise
from benchmarks.timing import Row, enter, fastest, in_turn, seconds
from benchmarks.ways import CHANNELS_LAST, CONTIGUOUS, NETWORKS, Case, Subject, Way, deletion, integrated_gradcam, of
from benchmarks.ways import integrated_gradcam_through_the_whole_network as through_the_whole_network

WITHIN = 1.15
BATCHES = {"lite0": (8, 16, 32), "resnet56": (32, 64, 128)}

pytestmark = pytest.mark.benchmark(timer=time.process_time)


@lru_cache
def best(network: str) -> Case:
    """The memory format and the chunk in which bare forward passes are fastest."""

    def forwards(case: Case) -> Way:
        it = of(case)
        return lambda: contexts.forward(it.model, it.inputs, case.batch)

    images = max(BATCHES[network])
    return fastest(forwards, [Case(network, images, layout, batch) for layout in (CHANNELS_LAST, CONTIGUOUS) for batch in BATCHES[network]])[0]


def counted(it: Subject, way: Way) -> tuple[Passes, int]:
    """The images that went through the network, and the maps that went through its head alone."""
    passes, heads = Passes(), 0

    def head(maps):
        nonlocal heads
        heads += len(maps)
        return type(it.model).head(it.model, maps)

    def features(images):
        passes.add(forward=len(images))
        return type(it.model).features(it.model, images)

    it.model.head, it.model.features = head, features
    try:
        with contexts.counting(it.model, passes):
            way()
    finally:
        del it.model.head, it.model.features
    return passes, heads


def bare(case: Case, passes: Passes, heads: int, start: Layer) -> Callable[[], None]:
    """The same passes on images and maps that are at hand; gradients are taken back to `start`."""
    it = of(case)
    images = torch.rand(case.batch, *it.inputs.shape[1:])
    with recording([it.target]) as outputs, torch.no_grad():
        it.model(images)
    (maps,) = outputs

    def full(count: float) -> list[int]:
        whole, rest = divmod(int(count), case.batch)
        return [case.batch] * whole + [rest] * (rest > 0)

    def run() -> None:
        with torch.no_grad():
            for rows in full(passes.forward - passes.backward):
                it.model(images[:rows])
            for rows in full(heads):
                it.model.head(maps[:rows])
        with contexts.untouched(it.model):
            for rows in full(passes.backward):
                with recording([start], lambda _, output: output.detach().requires_grad_()) as outputs:
                    logits = it.model(images[:rows])
                torch.autograd.grad(logits.sum(), outputs[0])

    return run


def hold(benchmark, what: str, case: Case, way: Way, start: Layer | None = None) -> None:
    it = of(case)
    way()  # Whatever is done once is done now.
    passes, heads = counted(it, way)
    floor = bare(case, passes, heads, start or it.stages[0])
    floor()
    own, theirs = in_turn(benchmark, way, {"floor": partial(seconds, floor)})
    milliseconds = own * 1000 / case.images, theirs["floor"] * 1000 / case.images
    enter(benchmark, Row(what, NETWORKS[case.network].title, str(case), described(passes, heads), str(case), *milliseconds, "within", WITHIN))


def described(passes: Passes, heads: int) -> str:
    """What the bare side does."""
    parts = [f"{passes.forward:.0f} images forward"]
    parts += [f"{passes.backward:.0f} of them backward"] * (passes.backward > 0) + [f"{heads} maps through the head"] * (heads > 0)
    return "bare: " + ", ".join(parts)


# How many images, so that a run takes half a second or a whole one; two at least, for a lone one goes through as two.
EXPLAINERS = {
    ("RISE", "lite0"): (Rise(masks=24), 2),
    ("RISE", "resnet56"): (Rise(masks=64), 2),
    ("Score-CAM", "lite0"): (ScoreCam(layer=NETWORKS["lite0"].scored), 2),
    ("Score-CAM", "resnet56"): (ScoreCam(layer=NETWORKS["resnet56"].scored), 3),
    ("SISE", "lite0"): (Sise(), 2),
    ("SISE", "resnet56"): (Sise(), 3),
    ("Ada-SISE", "lite0"): (AdaSise(), 2),
    ("Ada-SISE", "resnet56"): (AdaSise(), 3),
    ("Ablation-CAM", "lite0"): (AblationCam(), 4),
    ("Ablation-CAM", "resnet56"): (AblationCam(), 32),
}
EARLY_STAGES = 3  # SISE's masks are this many stages' maps: EfficientNet-Lite0 has two more, with 1,392 maps.


@pytest.mark.parametrize(("what", "network"), EXPLAINERS)
def test_explainers_cost_little_more_than_their_passes(benchmark, what, network):
    explainer, images = EXPLAINERS[what, network]
    case = best(network)._replace(images=images)
    it = of(case)
    hold(benchmark, what, case, lambda: contexts.explain(it.model, explainer, it.inputs, it.targets, it.context(case.batch, EARLY_STAGES)))


@pytest.mark.parametrize(("network", "images"), [("lite0", 2), ("resnet56", 4)])
def test_deletion_and_insertion_cost_little_more_than_their_forwards(benchmark, network, images):
    case = best(network)._replace(images=images)
    hold(benchmark, "deletion + insertion", case, deletion(case))


@pytest.mark.parametrize(("network", "images"), [("lite0", 2), ("resnet56", 4)])
def test_integrated_gradcam_takes_no_gradient_before_its_layer(benchmark, network, images):
    case = best(network)._replace(images=images)
    it, ours, naive = of(case), integrated_gradcam(case), through_the_whole_network(case)
    with recording([it.stages[0]]) as outputs:
        wanted = ours()
    assert not outputs[0].requires_grad
    torch.testing.assert_close(naive(), wanted, atol=1e-6, rtol=1e-3)
    own, theirs = in_turn(benchmark, ours, {"naive": partial(seconds, naive)})
    milliseconds = own * 1000 / images, theirs["naive"] * 1000 / images
    usual = "forward and backward() through all"
    enter(benchmark, Row("Integrated Grad-CAM", NETWORKS[network].title, str(case), usual, str(case), *milliseconds, "faster", 1.5))
