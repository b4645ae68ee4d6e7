"""The metrics on ResNet-56 and 64 test images of CIFAR-100, beside torchcam, pytorch-grad-cam, Quantus, captum and torchmetrics.

The libraries are given the network without its normalisation and images in model space, where the zero that they hide pixels
behind is our mean colour. Where one computes something else, the test says what.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum import metrics as captum
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torchcam.methods import GradCAM
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric
from torchmetrics.classification import MulticlassCalibrationError

from bench import contexts, testing
from bench.interfaces import Explained
from bench_plugins._scoring import copies, drawn
from bench_plugins.calibration import ExpectedCalibrationError
from bench_plugins.complexity import Complexity, Sparseness
from bench_plugins.confidence import DropSoft, IncreaseSoft
from bench_plugins.deletion import Deletion, Insertion
from bench_plugins.gradcam import GradCam
from bench_plugins.infidelity import Infidelity, SensitivityMax
from bench_plugins.localisation import Bbox, EnergyPointingGame, PointingGame

INFO = testing.dataset_info(100, (32, 32), 3)
STEPS = 4


@pytest.fixture(scope="module")
def maps(resnet56):
    """(64, 1, 32, 32) Grad-CAM's."""
    return testing.explain(resnet56.model, GradCam(), resnet56.images, resnet56.targets, resnet56.layers)


@pytest.fixture(scope="module")
def without_ties(resnet56):
    """(64, 1, 32, 32) Grad-CAM's without the ReLU, with noise so small that it hardly does more than part equal pixels."""
    signed = testing.explain(resnet56.model, GradCam(relu=False), resnet56.images, resnet56.targets, resnet56.layers)
    noise = torch.rand(signed.shape, generator=torch.Generator().manual_seed(0))
    found = signed + 1e-3 * signed.abs().amax((1, 2, 3), keepdim=True) * noise
    assert all(len(each.unique()) == each.numel() for each in found)
    return found


@pytest.fixture(scope="module")
def regions(resnet56):
    """(64, 1, 32, 32) bool: a square of 12 x 12 at a random place of each image."""
    draw = torch.Generator().manual_seed(0)
    masks = torch.zeros(len(resnet56.images), 1, 32, 32, dtype=torch.bool)
    for mask, (top, left) in zip(masks, torch.randint(21, (len(masks), 2), generator=draw).tolist(), strict=True):
        mask[0, top : top + 12, left : left + 12] = True
    return masks


def seen_and_context(subject, attributions=None, explainer=None, masks=None):
    seen = testing.explained(subject.model, subject.images, attributions, masks=masks)
    streams = testing.generators(len(seen))
    return seen, contexts.metric_context(subject.model, seen, INFO, streams, subject.layers, explainer=explainer)


def score(metric, subject, attributions=None, **options):
    """The rows of a metric."""
    seen, context = seen_and_context(subject, attributions, **options)
    return metric(subject.model, seen, context)


def mean(metric, subject, attributions):
    rows = score(metric, subject, attributions)
    return (metric.values(rows) if hasattr(metric, "values") else rows).mean().item()


def stretched(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def softmax(logits):
    return logits.softmax(-1)


# torchcam and pytorch-grad-cam


class Ready:
    """Gives torchcam's metrics a map that is there already."""

    def __init__(self, subject, maps):
        self.model, self.maps = subject.model.network, maps[:, 0]

    def __call__(self, class_idx=None, scores=None, **options):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


def by_torchcam(metric, subject):
    metric.update(subject.normalised)
    return metric.summary()


def test_soft_drop_and_increase_agree_with_torchcam_and_pytorch_grad_cam(resnet56, maps):
    drop, increase = (score(metric, resnet56, maps) for metric in (DropSoft(), IncreaseSoft()))
    expected = by_torchcam(ClassificationMetric(Ready(resnet56, stretched(maps)), softmax), resnet56)
    assert 0.05 < expected["avg_drop"] < 0.95
    assert 0.05 < expected["conf_increase"] < 0.95
    assert drop.mean().item() == pytest.approx(100 * expected["avg_drop"], abs=1e-3)
    assert increase.mean().item() == pytest.approx(100 * expected["conf_increase"], abs=1e-3)
    arguments = resnet56.normalised, stretched(maps)[:, 0].numpy(), wanted(resnet56), resnet56.model.network
    probabilities = softmax(resnet56.model(resnet56.images)).amax(1)
    by_grad_cam = torch.from_numpy(DropInConfidence()(*arguments)) / probabilities  # Its drop is not relative to what there was.
    torch.testing.assert_close(drop, 100 * by_grad_cam, atol=1e-2, rtol=0)
    assert increase.tolist() == (100 * IncreaseInConfidence()(*arguments)).tolist()


def wanted(subject):
    return [ClassifierOutputSoftmaxTarget(int(target)) for target in subject.targets]


def of_torchcam(subject, scores):
    """torchcam's Grad-CAM at the layer's size (B, 1, h, w), stretched there, of what `scores` makes of the logits."""
    with GradCAM(subject.model.network, subject.layers[-1].module) as library:
        given = scores(subject.model.network(asking(subject)))
        return library(subject.targets.tolist(), given)[0].detach()[:, None]


def asking(subject):
    """The images in model space, asking for a gradient: torchcam's own extractor needs someone to, and the network's weights do not."""
    return subject.normalised.requires_grad_()


def upsampled(maps):
    return F.interpolate(maps, (32, 32), mode="bilinear", align_corners=False)


def test_torchcams_metrics_explain_the_probability_where_grad_cam_explains_the_logit(resnet56, maps, only_in):
    """Its metrics hand its extractor what the softmax gave: another map than its own Grad-CAM's, which is ours."""
    only_in("torchcam", "0.5.0")
    torch.testing.assert_close(stretched(upsampled(of_torchcam(resnet56, lambda logits: logits))), stretched(maps), atol=1e-4, rtol=0)
    with GradCAM(resnet56.model.network, resnet56.layers[-1].module) as library:
        metric = DeletionInsertionMetric(library, softmax, steps=STEPS)
        metric.update(asking(resnet56))
    theirs, of_probability = metric.summary(), of_torchcam(resnet56, softmax)
    assert abs(theirs["insertion_auc"] - mean(Insertion(steps=STEPS), resnet56, maps)) > 0.01
    assert mean(Deletion(steps=STEPS), resnet56, upsampled(of_probability)) == pytest.approx(theirs["deletion_auc"], abs=1e-5)
    assert mean(Insertion(steps=STEPS), resnet56, upsampled(of_probability)) == pytest.approx(theirs["insertion_auc"], abs=1e-5)


def test_torchcam_stretches_the_map_before_it_resizes_it_so_that_no_pixel_is_shown_in_full(resnet56, maps):
    """Between the centres of large pixels a map does not reach its largest value; ours is stretched at the size of the image."""
    early = upsampled(stretched(of_torchcam(resnet56, lambda logits: logits)))
    assert (early.amax((2, 3)) < 0.999).float().mean() > 0.5
    theirs = by_torchcam(ClassificationMetric(Ready(resnet56, of_torchcam(resnet56, lambda logits: logits)), softmax), resnet56)
    before, after = (
        softmax(resnet56.model.network(images)).gather(1, resnet56.targets[:, None]) for images in (resnet56.normalised, resnet56.normalised * early)
    )
    assert ((before - after).relu() / before).mean().item() == pytest.approx(theirs["avg_drop"], abs=1e-5)
    assert abs(theirs["avg_drop"] - mean(DropSoft(), resnet56, maps) / 100) > 0.001


def test_deletion_and_insertion_agree_with_torchcam(resnet56, maps):
    """Grad-CAM's map, whose many zeros both take by position."""
    expected = by_torchcam(DeletionInsertionMetric(Ready(resnet56, maps), softmax, steps=STEPS), resnet56)
    assert expected["insertion_auc"] - expected["deletion_auc"] > 0.1
    assert mean(Deletion(steps=STEPS), resnet56, maps) == pytest.approx(expected["deletion_auc"], abs=1e-5)
    assert mean(Insertion(steps=STEPS), resnet56, maps) == pytest.approx(expected["insertion_auc"], abs=1e-5)


# Quantus


@pytest.fixture
def quantus():
    return pytest.importorskip("quantus")


def by_quantus(metric, subject, maps, masks=None):
    """One score, or one curve, per image."""
    arrays = {"x_batch": subject.normalised.numpy(), "y_batch": subject.targets.numpy(), "a_batch": maps.numpy().copy()}
    if masks is not None:
        arrays["s_batch"] = masks.numpy()
    return torch.tensor(np.array(metric(model=subject.model.network, device="cpu", softmax=True, batch_size=len(maps), **arrays), dtype=float))


def flipping(quantus, **options):
    return quantus.PixelFlipping(features_in_step=1024 // STEPS, perturb_baseline=0.0, normalise=False, disable_warnings=True, **options)


def test_every_third_step_of_quantus_pixel_flipping_is_a_step_of_deletion(quantus, resnet56, without_ties):
    """It hides numbers, of which a pixel has three, and a step must divide the pixels: between those steps pixels are hidden in part.

    It does not score the untouched image, and it leaves equal pixels in any order, so maps here have none.
    """
    curves = by_quantus(flipping(quantus), resnet56, without_ties)
    rows = score(Deletion(steps=STEPS), resnet56, without_ties)
    assert curves.shape == (64, 3 * STEPS)
    torch.testing.assert_close(curves[:, 2::3].float(), rows[:, 2:], atol=1e-5, rtol=0)
    assert (curves[:, 0] - curves[:, 2]).abs().max() > 0.1


@pytest.mark.skipif(hasattr(np, "trapz"), reason="this NumPy still has the function that Quantus calls")
def test_the_area_of_quantus_cannot_be_had_with_a_new_numpy(quantus, resnet56, without_ties, only_in):
    only_in("quantus", "0.6.0")
    few = resnet56.first(2)
    with pytest.raises(AttributeError, match="trapz"):
        by_quantus(flipping(quantus, return_auc_per_sample=True), few, without_ties[:2])


def test_the_pointing_games_agree_with_quantus(quantus, resnet56, without_ties, regions):
    found = score(PointingGame(), resnet56, without_ties, masks=regions)[:, 0]
    assert 10 < found.mean() < 90
    assert found.tolist() == (100 * by_quantus(quantus.PointingGame(disable_warnings=True), resnet56, without_ties, regions)).tolist()
    covered = by_quantus(quantus.RelevanceRankAccuracy(disable_warnings=True), resnet56, without_ties, regions)
    torch.testing.assert_close(score(Bbox(), resnet56, without_ties, masks=regions).double(), covered)
    energy = without_ties - without_ties.amin((2, 3), keepdim=True)  # Quantus divides by the sum, which a signed map may not have.
    share = by_quantus(quantus.RelevanceMassAccuracy(disable_warnings=True), resnet56, energy, regions)
    torch.testing.assert_close(score(EnergyPointingGame(), resnet56, without_ties, masks=regions).double(), share, atol=1e-5, rtol=0)


def test_quantus_counts_an_image_without_a_region_as_a_hit(quantus, resnet56, without_ties, regions, only_in):
    """It writes "not a number" into an array of true and false, where that is true; here such an image is not scored."""
    only_in("quantus", "0.6.0")
    none = regions.clone()
    none[0] = False
    assert by_quantus(quantus.PointingGame(disable_warnings=True), resnet56, without_ties, none)[0] == 1
    assert score(PointingGame(), resnet56, without_ties, masks=none)[0, 0].isnan()


@pytest.mark.parametrize("name", ["Sparseness", "Complexity"])
def test_sparseness_and_complexity_agree_with_quantus(quantus, resnet56, maps, without_ties, name):
    ours, theirs = {"Sparseness": Sparseness(), "Complexity": Complexity()}[name], getattr(quantus, name)(disable_warnings=True)
    for each in (maps, without_ties):
        torch.testing.assert_close(score(ours, resnet56, each), by_quantus(theirs, resnet56, each), atol=1e-4, rtol=0)


def test_quantus_sparseness_depends_on_the_other_images_of_the_batch(quantus, resnet56, maps, only_in):
    """It divides by the largest value of the batch and then adds a ten-millionth to every pixel: a map of small values is evened out."""
    only_in("quantus", "0.6.0")
    theirs, small = quantus.Sparseness(disable_warnings=True), maps.clone()
    small[0] *= 1e-7
    assert score(Sparseness(), resnet56, small)[0].item() == pytest.approx(score(Sparseness(), resnet56, maps)[0].item(), abs=1e-5)
    assert by_quantus(theirs, resnet56, small)[0] < by_quantus(theirs, resnet56, maps)[0] - 0.05


# captum


@pytest.mark.parametrize("normalise", [True, False])
def test_infidelity_agrees_with_captum(resnet56, without_ties, normalise):
    metric = Infidelity(samples=3, normalise=normalise)
    seen, context = seen_and_context(resnet56, without_ties / without_ties.abs().sum((1, 2, 3), keepdim=True))
    streams = copies(context.generators)

    def hide_a_square(repeated):
        squares = drawn(streams, lambda each: metric.square(repeated.shape[2:], each), repeated).expand_as(repeated)
        return squares / 3, repeated * (1 - squares)

    def probability(images):
        return softmax(resnet56.model.network(images))

    arguments = resnet56.normalised, seen.attributions.expand_as(seen.inputs)
    expected = captum.infidelity(
        probability, hide_a_square, *arguments, target=seen.targets, n_perturb_samples=3, max_examples_per_batch=64, normalize=normalise
    )
    assert expected.max() > 1e-3
    torch.testing.assert_close(metric(resnet56.model, seen, context), expected.double(), rtol=1e-3, atol=1e-5)


def test_sensitivity_agrees_with_captum(resnet56):
    metric = SensitivityMax(samples=2)
    seen, context = seen_and_context(resnet56, explainer=GradCam())
    streams = copies(context.generators)

    def nearby(repeated):
        shares = drawn(streams, lambda each: torch.rand(repeated.shape[1:], generator=each), repeated)
        return (repeated + metric.radius * (2 * shares - 1)).clamp(0, 1)

    def explaining(images):  # captum gives a tuple or a tensor, and reads the maps right only from a tuple.
        return (context.explain(images[0] if isinstance(images, tuple) else images, seen.targets),)

    expected = captum.sensitivity_max(explaining, seen.inputs, nearby, n_perturb_samples=2, max_examples_per_batch=64)
    assert expected.min() > 0.01
    torch.testing.assert_close(metric(resnet56.model, seen, context), expected, rtol=1e-3, atol=1e-4)


# torchmetrics


def calibration(logits, labels, bins):
    """Ours and torchmetrics'."""
    metric = ExpectedCalibrationError(bins=bins)
    seen = Explained(torch.zeros(len(labels), 3, 1, 1), labels, torch.arange(len(labels)), logits.argmax(1), logits)
    found = metric.aggregate(metric(None, seen, SimpleNamespace(probability=softmax)))
    return found, MulticlassCalibrationError(num_classes=100, n_bins=bins, norm="l1")(softmax(logits), labels).item()


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize("bins", [15, 10])
def test_the_calibration_error_agrees_with_torchmetrics(calibrated, bins, temperature):
    logits, labels = calibrated
    found, expected = calibration(logits / temperature, labels, bins)
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_bins_count_where_the_network_is_not_over_confident_in_all_of_them(calibrated):
    """As it is, it is, and any bins give its mean confidence less its accuracy; cooled logits are what tells the bins apart."""
    logits, labels = calibrated
    as_it_is, cooled = ([calibration(logits / temperature, labels, bins)[0] for bins in (15, 10)] for temperature in (1.0, 1.6))
    assert as_it_is[0] == pytest.approx(as_it_is[1], abs=1e-6)
    assert abs(cooled[0] - cooled[1]) > 1e-3


@pytest.fixture(scope="module")
def calibrated(resnet56, cifar100):
    """Logits and labels of 300 test images, of which the network knows about seven in ten."""
    images, labels = cifar100
    logits = contexts.forward(resnet56.model, images, 50)
    assert 0.6 < logits.argmax(1).eq(labels).float().mean() < 0.85
    return logits, labels
