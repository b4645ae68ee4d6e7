"""The CAM family on real networks, beside pytorch-grad-cam, torchcam and captum; where a library computes something else, what.

pytorch-grad-cam stretches every map to [0, 1], so ours is stretched before the two are compared; torchcam and captum give the
map in units of the logit, and it is compared as it is. All agreement is to 1e-4 of the largest value of a map.
"""

import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
import torchcam.methods as torchcam
from captum.attr import LayerFeatureAblation, LayerGradCam, LayerGradientXActivation
from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from bench import testing
from bench.errors import InvalidValue
from bench.interfaces import Layer
from bench_plugins.gradcam import GradCam
from bench_plugins.gradient_cams import Cam, GradCamPlusPlus, HiResCam, LayerCam, XGradCam
from bench_plugins.masking_cams import AblationCam, ScoreCam

TOLERANCE = 1e-4
SUBJECTS = ["resnet56", "efficientnet", "vit", "vgg"]
SHOWN = {"resnet56": 16, "efficientnet": 4, "vit": 2, "vgg": 2}  # Images of each.
PAIRS = {
    GradCam(): (pytorch_grad_cam.GradCAM, torchcam.GradCAM),
    XGradCam(): (pytorch_grad_cam.XGradCAM, torchcam.XGradCAM),
    LayerCam(): (pytorch_grad_cam.LayerCAM, torchcam.LayerCAM),
    HiResCam(relu=True): (pytorch_grad_cam.HiResCAM, None),
}


@pytest.fixture(params=SUBJECTS)
def subject(request):
    return request.getfixturevalue(request.param).first(SHOWN[request.param])


@pytest.fixture(params=["target layer", "stage before"])
def layer(request, subject):
    """Behind global average pooling a map's gradients are all alike and several methods are one; a stage earlier they differ."""
    return subject.layers[-1 if request.param == "target layer" else -2]


def ours(subject, explainer, layer):
    """(B, 1, H, W) as the harness gets it."""
    return testing.explain(subject.model, explainer, subject.images, subject.targets, [layer])


def wanted(subject):
    return [ClassifierOutputTarget(int(target)) for target in subject.targets]


def asking(images):
    """Images that ask for a gradient, for libraries that need someone to: the networks' weights do not."""
    return images.clone().requires_grad_()


def of_grad_cam(kind, subject, layer, **options):
    """pytorch-grad-cam's maps (B, 1, H, W), stretched to [0, 1]."""
    with kind(subject.model, [layer.module], reshape_transform=subject.tokens_to_map, **options) as library:
        return torch.from_numpy(library(asking(subject.images), wanted(subject)))[:, None]


def of_torchcam(kind, subject, layer, **options):
    """torchcam's maps (B, 1, H, W): it leaves them at the layer's size."""
    images = asking(subject.images)
    with kind(subject.model, layer.module, input_shape=images.shape[1:], reshape_transform=subject.tokens_to_map, **options) as library:
        scores = subject.model(images)
        return upsampled(library(subject.targets.tolist(), scores, normalized=False)[0].detach()[:, None], images)


def upsampled(maps, images):
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)


def stretched(maps):
    """(B, C, H, W) each map from 0 to 1; a constant one 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1)


def agree(found, expected, tolerance=TOLERANCE):
    """To the tolerance, of the largest value of each map; and there is something to compare."""
    largest = expected.abs().amax((1, 2, 3), keepdim=True)
    assert largest.min() > 0
    return torch.allclose(found / largest, expected / largest, rtol=0, atol=tolerance)


def maps_and_gradients(subject, layer):
    """(B, C, h, w) twice, in double precision."""
    kept = []
    handle = layer.module.register_forward_hook(lambda module, arguments, output: kept.append(output))
    logits = subject.model(asking(subject.images))
    handle.remove()
    gradients = torch.autograd.grad(logits.gather(1, subject.targets[:, None]).sum(), kept[0])[0]
    return [subject.tokens_to_map(each) if subject.tokens_to_map else each for each in (kept[0].detach().double(), gradients.double())]


# From gradients


@pytest.mark.parametrize("explainer", PAIRS, ids=lambda explainer: explainer.name)
def test_the_map_agrees_with_pytorch_grad_cam(subject, layer, explainer):
    assert agree(stretched(ours(subject, explainer, layer)), of_grad_cam(PAIRS[explainer][0], subject, layer))


@pytest.mark.parametrize("explainer", [each for each in PAIRS if PAIRS[each][1]], ids=lambda explainer: explainer.name)
def test_the_map_agrees_with_torchcam_before_any_stretching(subject, layer, explainer):
    assert agree(ours(subject, explainer, layer), of_torchcam(PAIRS[explainer][1], subject, layer))


def test_the_signed_maps_agree_with_captum(subject, layer):
    arguments = asking(subject.images), subject.targets
    products = LayerGradientXActivation(subject.model, layer.module).attribute(*arguments).detach()
    products = (subject.tokens_to_map or (lambda output: output))(products)
    assert agree(ours(subject, HiResCam(), layer), upsampled(products.sum(1, keepdim=True), subject.images))
    if subject.tokens_to_map is None:  # captum's own averages over the places of a map, which tokens do not lie in.
        expected = LayerGradCam(subject.model, layer.module).attribute(*arguments).detach()
        assert agree(ours(subject, GradCam(relu=False), layer), upsampled(expected, subject.images))


def gradcam_plus_plus(maps, gradients, added=0.0):
    """(B, 1, h, w) by equations 10 and 19, with a number added to the denominator of alpha."""
    denominator = 2 * gradients**2 + maps.sum((2, 3), keepdim=True) * gradients**3 + added
    alpha = torch.where(gradients == 0, 0, gradients**2 / denominator)
    return ((alpha * gradients.relu()).sum((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()


def test_gradcam_plus_plus_is_its_formula_and_pytorch_grad_cam_adds_a_millionth_to_the_denominator(subject, layer):
    """The millionth outweighs twice the square of the gradients where they are small, as in a network that averages large maps."""
    maps, gradients = maps_and_gradients(subject, layer)
    exact, with_a_millionth = (upsampled(gradcam_plus_plus(maps, gradients, added), subject.images) for added in (0.0, 1e-6))
    assert agree(ours(subject, GradCamPlusPlus(), layer), exact.float())
    library = of_grad_cam(pytorch_grad_cam.GradCAMPlusPlus, subject, layer)
    assert agree(library, stretched(with_a_millionth).float(), 1e-3)  # In single precision, signed maps cost it digits near a zero denominator.


def test_torchcam_loses_the_division_in_gradcam_plus_plus(subject, layer, only_in):
    """It divides a copy: alpha stays the square of the gradient, and the weight is the sum of the cubes of the positive ones."""
    only_in("torchcam", "0.5.0")
    maps, gradients = maps_and_gradients(subject, layer)
    cubes = (gradients.relu() ** 3).sum((2, 3), keepdim=True)
    assert agree(of_torchcam(torchcam.GradCAMpp, subject, layer), upsampled((cubes * maps).sum(1, keepdim=True).relu(), subject.images).float())


# From the classifier


@pytest.mark.parametrize("name", ["resnet56", "efficientnet"])
def test_cam_agrees_with_torchcam(request, name):
    subject = request.getfixturevalue(name).first(16)
    classifier = [module for module in subject.model.modules() if isinstance(module, nn.Linear)][-1]
    assert agree(ours(subject, Cam(), subject.layers[-1]), of_torchcam(torchcam.CAM, subject, subject.layers[-1], fc_layer=classifier))


@pytest.mark.parametrize("name", ["vit", "vgg"])
def test_cam_refuses_a_transformer_and_a_network_with_more_than_one_linear_layer(request, name):
    subject = request.getfixturevalue(name)
    with pytest.raises(InvalidValue, match="global average pooling"):
        ours(subject, Cam(), subject.layers[-1])


# From masks


class Masked:
    """A subject with a layer of few channels, and a network that takes images in model space: what is hidden there is zero, our mean colour."""

    def __init__(self, subject, layer):
        self.subject, self.layer = subject, layer
        self.images = subject.normalised
        self.network = subject._replace(model=subject.model.network, images=self.images)
        kept = []
        handle = layer.module.register_forward_hook(lambda module, arguments, output: kept.append(output))
        subject.model(subject.images)
        handle.remove()
        self.maps = (subject.tokens_to_map or (lambda output: output))(kept[0])

    def logits(self, masks):
        """(B, C, K) of each image seen through each of its masks (B, C, H, W)."""
        rows = (image * mask[:, None] for image, mask in zip(self.images, masks, strict=True))
        return torch.stack([torch.cat([self.subject.model.network(part) for part in row.split(32)]) for row in rows])

    def summed(self, weights):
        """(B, 1, H, W) of weights (B, C)."""
        return upsampled((weights[:, :, None, None] * self.maps).sum(1, keepdim=True).relu(), self.images)

    def of_target(self, scores):
        """(B, …) of scores (B, …, K)."""
        return torch.stack([rows[..., target] for rows, target in zip(scores, self.subject.targets, strict=True)])


MASKED = {  # A layer, few enough images and a side small enough for a forward per channel.
    "resnet56": ("layer3", 2, 32),
    "efficientnet": ("blocks.1", 1, 224),
    "small_vit": ("blocks.11.norm1", 1, 64),
    "vgg": ("features.3", 1, 32),
}


@pytest.fixture(scope="module")
def masked(request):
    layer, count, side = MASKED[request.param]
    subject = request.getfixturevalue(request.param).first(count)
    subject = subject._replace(images=subject.images[:, :, :side, :side])
    return Masked(subject, subject.model.layer(layer))


both_with_weights = pytest.mark.parametrize("masked", ["resnet56", "efficientnet"], indirect=True)


@pytest.mark.parametrize("masked", ["resnet56", "efficientnet", "small_vit"], indirect=True)
def test_scorecam_softmax_agrees_with_pytorch_grad_cam_where_its_masks_are_resized_as_ours(masked, monkeypatch):
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear", align_corners=False))
    found = ours(masked.subject, ScoreCam(weights="softmax"), masked.layer)
    assert agree(stretched(found), of_grad_cam(pytorch_grad_cam.ScoreCAM, masked.network, masked.layer))


@pytest.mark.parametrize("masked", ["vgg"], indirect=True)
def test_scorecam_softmax_agrees_with_both_libraries_where_maps_are_as_large_as_the_image(masked):
    assert masked.maps.shape[2:] == masked.images.shape[2:]
    found = ours(masked.subject, ScoreCam(weights="softmax"), masked.layer)
    assert agree(stretched(found), of_grad_cam(pytorch_grad_cam.ScoreCAM, masked.network, masked.layer))
    assert agree(found, of_torchcam(torchcam.ScoreCAM, masked.network, masked.layer))


@both_with_weights
def test_pytorch_grad_cams_score_cam_keeps_the_corners_when_it_resizes_its_masks(masked):
    masks = stretched(F.interpolate(masked.maps, masked.images.shape[2:], mode="bilinear", align_corners=True))
    expected = masked.summed(masked.of_target(masked.logits(masks)).softmax(1))
    assert agree(of_grad_cam(pytorch_grad_cam.ScoreCAM, masked.network, masked.layer), stretched(expected))


@both_with_weights
def test_torchcams_score_cam_stretches_its_masks_before_it_resizes_them(masked):
    masks = upsampled(stretched(masked.maps), masked.images)
    expected = masked.summed(masked.of_target(masked.logits(masks)).softmax(1))
    assert agree(of_torchcam(torchcam.ScoreCAM, masked.network, masked.layer), expected)


@both_with_weights
def test_every_scorecam_is_its_formula(masked):
    """No library has the increase over the background, which is the paper's, nor the probability, which is its authors' code's."""
    logits = masked.logits(stretched(upsampled(masked.maps, masked.images)))
    background = masked.of_target(masked.subject.model.network(torch.zeros_like(masked.images)).softmax(1))
    probabilities = masked.of_target(logits.softmax(2))
    expected = {
        "softmax": masked.of_target(logits).softmax(1),
        "probability": probabilities,
        "increase": probabilities - background[:, None],
    }
    for weights, each in expected.items():
        assert agree(ours(masked.subject, ScoreCam(weights=weights), masked.layer), masked.summed(each)), weights


# By ablation


@pytest.mark.parametrize("masked", ["resnet56", "vgg"], indirect=True)
def test_ablationcam_agrees_with_pytorch_grad_cam_where_maps_are_not_negative(masked):
    assert masked.maps.min() == 0
    found = ours(masked.subject, AblationCam(), masked.layer)
    assert agree(stretched(found), of_grad_cam(pytorch_grad_cam.AblationCAM, masked.subject, masked.layer))


@both_with_weights
def test_ablationcam_agrees_with_captum_whatever_the_sign_of_the_maps(masked):
    logits = masked.of_target(masked.subject.model(masked.subject.images))[:, None]
    lost = lost_by_captum(masked.subject.model, masked.layer.module, masked.subject)
    assert agree(ours(masked.subject, AblationCam(), masked.layer), masked.summed(lost / logits))


def lost_by_captum(model, module, subject):
    """(B, C) what the target's logit loses with each channel, by captum. One channel at a time: it cannot tell more rows' targets apart."""
    kept = []
    handle = module.register_forward_hook(lambda module, arguments, output: kept.append(output))
    model(subject.images)
    handle.remove()
    channels = torch.arange(kept[0].shape[1]).view(1, -1, 1, 1).expand(1, *kept[0].shape[1:])
    lost = LayerFeatureAblation(model, module).attribute(subject.images, 0, subject.targets, layer_mask=channels)
    return lost[:, :, 0, 0]


class Tail(nn.Module):
    """The network behind its last maps, with a layer in front to be ablated."""

    def __init__(self, network):
        super().__init__()
        self.maps, self.pool, self.classifier = nn.Identity(), network.global_pool, network.classifier

    def forward(self, maps):
        return self.classifier(self.pool(self.maps(maps)))


def test_ablationcam_through_the_head_alone_agrees_with_pytorch_grad_cam_and_captum(efficientnet):
    """All 1,280 channels. The libraries are given the head as a network, too: they have no other way but 1,280 whole forwards."""
    subject, layer = efficientnet.first(2), efficientnet.layers[-1]
    maps = Masked(subject, layer).maps
    tail = Tail(subject.model.network)
    logits = tail(maps)
    torch.testing.assert_close(logits, subject.model(subject.images), atol=1e-4, rtol=1e-4)
    behind = subject._replace(model=tail, images=maps)
    found = ours(subject, AblationCam(), layer)
    library = of_grad_cam(pytorch_grad_cam.AblationCAM, behind, Layer("maps", tail.maps))
    assert agree(stretched(found), stretched(upsampled(library, subject.images)))
    weights = lost_by_captum(tail, tail.maps, behind) / logits.gather(1, subject.targets[:, None])
    assert agree(found, upsampled((weights[:, :, None, None] * maps).sum(1, keepdim=True).relu(), subject.images))


class ZeroPatches(AblationLayerVit):
    """The library's own, but for what stands in the ablated channel: zero, and in the patches alone."""

    def __call__(self, _):
        tokens = self.activations.clone()
        for row, channel in enumerate(self.indices[: len(tokens)]):
            tokens[row, 1:, channel] = 0
        return tokens


@pytest.mark.parametrize("masked", ["small_vit"], indirect=True)
def test_ablationcam_of_tokens_agrees_with_pytorch_grad_cam_where_it_sets_patches_to_zero(masked):
    found = ours(masked.subject, AblationCam(), masked.layer)
    assert agree(stretched(found), of_grad_cam(pytorch_grad_cam.AblationCAM, masked.subject, masked.layer, ablation_layer=ZeroPatches()))


@pytest.mark.parametrize(("kind", "shape", "channel"), [(AblationLayer, (1, 3, 2, 2), 1), (AblationLayerVit, (1, 5, 3), -1)])
def test_pytorch_grad_cam_ablates_maps_with_negative_values_by_ten_million_more_in_each_row(kind, shape, channel, only_in):
    """Not by zero, as the paper does; every token is hit, the class token too; and what a row gets depends on the rows before it."""
    only_in("grad-cam", "1.5.7")
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ablation = kind()
    ablation.indices = [0, 1, 2]
    ablation.set_next_batch(0, output, 3)
    changed = ablation(None).movedim(channel, 1)
    for row in range(3):
        torch.testing.assert_close(changed[row, row], torch.full_like(changed[row, row], -1e7 * (row + 1)), atol=10, rtol=0)
