"""The methods and measures that bench-xai promises are there, and every measure says which way is better, in what unit, of what kind."""

import re
import sys

import pytest

from bench import plugins

INSTALLED = plugins.load().registry
CAMS = "gradcam gradcam-signed gradcam++ xgradcam layercam hirescam cam scorecam scorecam-softmax scorecam-reference ablationcam"
OWN = "integrated-gradcam integrated-gradcam-reference rise rise-8000 rise-per-pixel sise sise-soft adasise parameter-saliency random centre edges"
CAPTUM = """
    saliency input-x-gradient integrated-gradients smoothgrad smoothgrad-squared vargrad deconvnet guided-backprop guided-gradcam
    deeplift gradient-shap kernel-shap shapley lime lrp lrp-gamma occlusion conductance
"""
GRADCAM_LIBRARY = "eigencam eigengradcam fullgrad gradcam-elementwise kpca-cam finercam shapleycam"
METRICS = """
    faithfulness, lower: drop drop-30 drop-50 drop-soft deletion deletion-black deletion-blur deletion-accuracy road-morf infidelity
    faithfulness, higher: increase increase-30 increase-50 increase-count increase-soft sufficiency comprehensiveness
    faithfulness, higher: insertion insertion-black insertion-blur insertion-accuracy road road-lerf
    localisation, higher: energy-pointing-game pointing-game pointing-game-15 miou bbox
    stability, lower: sensitivity-max
    sanity, lower: model-randomisation model-randomisation-cascade
    complexity, higher: sparseness
    complexity, lower: complexity
    prediction, higher: accuracy top5-accuracy mean-average-precision
    calibration, lower: ece ece-10 nll brier
    robustness, higher: accuracy-under-noise accuracy-under-corruptions fgsm-accuracy pgd-accuracy
    parameters, higher: filter-saliency
    cost, higher: throughput training-throughput
    cost, lower: latency passes-forward passes-backward peak-memory training-passes training-slowdown
"""
PROMISED = [(name, *line.split(":")[0].split(", ")) for line in METRICS.strip().splitlines() for name in line.split(":")[1].split()]


@pytest.mark.parametrize("name", f"{CAMS} {OWN} {CAPTUM} {GRADCAM_LIBRARY}".split())
def test_an_explainer_that_was_promised_is_there(name):
    assert INSTALLED.entry("explainer", name).version >= 1


@pytest.mark.parametrize(("name", "category", "better"), PROMISED, ids=[name for name, *_ in PROMISED])
def test_a_metric_that_was_promised_is_there_and_turned_the_right_way(name, category, better):
    factory = INSTALLED.entry("metric", name).factory
    assert (factory.category, factory.higher_is_better) == (category.strip(), better == "higher")
    assert factory.unit
    assert factory.needs


@pytest.mark.parametrize("kind", ["explainer", "metric"])
def test_every_card_has_the_parts_that_a_reader_looks_for(kind):
    ours = [entry for entry in INSTALLED.entries(kind) if entry.distribution.startswith("bench-xai ")]
    assert ours
    for entry in ours:
        card = sys.modules[entry.factory.__module__].__doc__ or ""
        assert re.search(r"^Paper: ", card, re.MULTILINE), entry.name
        assert re.search(r"^(Choices|Differs from \w+( \w+)?): ", card, re.MULTILINE), entry.name
        assert re.search(r"^Checked against: ", card, re.MULTILINE), entry.name
        assert re.search(r"^Cost: ", card, re.MULTILINE), entry.name
        assert entry.factory.claim in ("formula verified", "unverified"), entry.name


def test_the_bins_of_the_calibration_errors_are_those_of_their_names():
    bins = {name: INSTALLED.resolve("metric", name).part.bins for name in ("ece", "ece-10")}
    assert bins == {"ece": 15, "ece-10": 10}
