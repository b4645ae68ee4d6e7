"""Grad-CAM beside pytorch-grad-cam and captum on one network at 224²: the same maps first, then the time of each.

Run with `pytest tests/benchmarks/test_gradcam_speed.py --benchmark-enable --benchmark-only`.
"""

import statistics
import time

import pytest
import timm
import torch
from captum.attr import LayerAttribution, LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from bench import contexts, testing
from bench.interfaces import Layer
from bench_plugins.gradcam import GradCam

IMAGES, SIZE, ROUNDS = 8, 224, 7


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()


@pytest.fixture(scope="module")
def ways(network):
    """Each library's way from images to maps (B, 1, H, W), by name."""
    inputs = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        targets = network(inputs).argmax(1)
    context = testing.explain_context(network, [Layer("bn2", network.bn2)], IMAGES)
    wanted = [ClassifierOutputTarget(int(target)) for target in targets]
    captum = LayerGradCam(network, network.bn2)

    def ours():
        return contexts.explain(network, GradCam(), inputs, targets, context)

    def library():
        with GradCAM(network, [network.bn2]) as explainer:
            return torch.from_numpy(explainer(inputs, wanted))[:, None]

    def captums():
        maps = captum.attribute(inputs, targets, relu_attributions=True)
        return LayerAttribution.interpolate(maps, (SIZE, SIZE), "bilinear").detach()

    return {"ours": ours, "pytorch-grad-cam": library, "captum": captums}


def stretched(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


@pytest.mark.benchmark(group="gradcam", timer=time.process_time)
def test_gradcam_is_no_slower_than_the_libraries(benchmark, ways):
    maps = {name: stretched(way()) for name, way in ways.items()}  # Warms each up, too.
    for name, found in maps.items():
        assert torch.allclose(found, maps["ours"], atol=1e-4), name
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS):  # In turn, so that a machine that slows down slows all of them.
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    benchmark.extra_info.update({f"{name}: ms per image": round(1000 * median / IMAGES, 2) for name, median in medians.items()})
    benchmark.pedantic(ways["ours"], rounds=ROUNDS)
    assert medians["ours"] <= min(medians.values())
