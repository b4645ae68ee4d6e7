"""What holds for every augmenter that erases, mixes or changes images."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from augmenter_cases import augment, batch_of, copies, layers, marked, network

from bench import contexts, testing
from bench.errors import InvalidValue
from bench.interfaces import Passes
from bench.registry import Registry
from bench_plugins import (
    augmix,
    blending,
    cam_mixing,
    comixup,
    cowmask,
    distortion,
    erasing,
    gradcam,
    keepaugment,
    latent,
    mixing_masks,
    mixing_regions,
    policies,
    puzzlemix,
    saliency_mixing,
    smote,
)
from bench_plugins.gradcam import GradCam

MODULES = [augmix, blending, cam_mixing, comixup, cowmask, distortion, erasing, keepaugment, latent]
MODULES += [mixing_masks, mixing_regions, policies, puzzlemix, saliency_mixing, smote]

PARTS = {}
for module in MODULES:
    module.register_augmenters(lambda factory, name=None, **defaults: PARTS.update({name or factory.name: factory(**defaults)}))

KEEP_TARGETS = ["cutout", "random-erasing", "hide-and-seek", "gridmask", "cowout", "keepaugment", "keepaugment-paste", "samplepairing", "intrapart"]
KEEP_TARGETS += ["randaugment", "trivialaugment", "autoaugment", "augmix", "augmix-plain", "smote", "random-distortion"]
BY_AREA = ["cowmix", "fmix", "smoothmix", "gridmix", "ricap", "resizemix", "saliencymix", "attentive-cutmix", "attributemix", "puzzlemix", "comixup"]
SAME_PLACE = [name for name in BY_AREA if name not in ("ricap", "resizemix", "puzzlemix")]
ONE_LABEL = ["remix", "snapmix", "intrapart", "attributemix", "smote", "augmix"]
LEAVES_INPUTS = ["manifold-mixup", "smote"]  # One mixes inside the network, the other adds images after an epoch.
all_parts = pytest.mark.parametrize("name", sorted(PARTS))


def per_image(name, **options):
    """The part with its step drawn for each image where it can be."""
    part = PARTS[name]
    return replace(part, mode="elem", **options) if hasattr(part, "mode") else replace(part, **options)


def add(registry, kind, factory, name=None, **defaults):
    registry.add(kind, factory, name=name, defaults=defaults, plugin="plugin", distribution="distribution")


@all_parts
def test_a_part_resolves_through_the_registry_and_says_what_it_is(name):
    registry = Registry()
    for module in [*MODULES, gradcam]:
        for kind in ("augmenter", "explainer"):
            if hook := getattr(module, f"register_{kind}s", None):
                hook(
                    lambda factory, name=None, kind=kind, **more: registry.add(kind, factory, name=name, defaults=more, plugin="p", distribution="d")
                )
    resolved = registry.resolve("augmenter", name)
    assert resolved.part == PARTS[name]
    assert resolved.part.paper.count(";") >= 2
    assert resolved.part.claim in ("formula verified", "unverified")
    assert resolved.entry.summary.endswith(".")


@all_parts
def test_the_same_step_gives_the_same_batch_and_another_step_another(name):
    batch, part = batch_of(12), per_image(name)
    first, again, other = (augment(part, batch, explainer=GradCam(), step=step) for step in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    if name not in LEAVES_INPUTS:
        assert not torch.equal(first.inputs, other.inputs)


@all_parts
def test_images_stay_in_range_and_targets_are_probabilities(name):
    batch = batch_of(12)
    result = augment(per_image(name), batch, explainer=GradCam())
    assert result.inputs.shape[1:] == batch.inputs.shape[1:]
    assert result.inputs.dtype == torch.float32
    assert result.inputs.min() >= 0
    assert result.inputs.max() <= 1
    assert (result.targets >= 0).all()
    torch.testing.assert_close(result.targets.sum(1), torch.ones(len(result)))
    assert (result.weights > 0).all()


@pytest.mark.parametrize("name", KEEP_TARGETS)
def test_targets_are_kept_where_the_method_says_so(name):
    batch = batch_of(12)
    result = augment(per_image(name), batch, explainer=GradCam())
    assert torch.equal(result.targets, batch.targets.repeat(len(result) // len(batch), 1))


@all_parts
def test_nothing_the_caller_holds_is_changed(name):
    batch, model = batch_of(12), network()
    tensors = [batch.inputs, batch.targets, batch.weights]
    held = [tensor.clone() for tensor in tensors]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model[3].eval()
    model[0].weight.requires_grad_(False)
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    augment(per_image(name), batch, model, GradCam())
    assert all(torch.equal(before, after) for before, after in zip(held, tensors, strict=True))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [True] * 3 + [False] + [True] * 4
    assert [parameter.requires_grad for parameter in model[0].parameters()] == [False, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(streams[0], torch.get_rng_state())
    assert (streams[1] == np.random.get_state()[1]).all()
    assert streams[2] == random.getstate()


@pytest.mark.parametrize("name", BY_AREA)
@pytest.mark.parametrize("step", range(3))
def test_targets_are_the_shares_of_the_pixels(name, step):
    result = augment(per_image(name), marked(9), explainer=GradCam(), step=step)
    torch.testing.assert_close(result.targets, result.inputs.mean((2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SAME_PLACE)
def test_an_image_mixed_with_its_copies_stays_itself(name):
    batch = copies(6)
    result = augment(per_image(name), batch, explainer=GradCam())
    torch.testing.assert_close(result.inputs, batch.inputs, atol=2e-7, rtol=0)
    torch.testing.assert_close(result.targets, batch.targets)


@pytest.mark.parametrize("name", [name for name in sorted(PARTS) if hasattr(PARTS[name], "prob") and name not in ("gridmask",)])
def test_prob_0_changes_nothing(name):
    batch = batch_of(8)
    result = augment(per_image(name, prob=0.0), batch, explainer=GradCam())
    assert torch.equal(result.inputs, batch.inputs)
    torch.testing.assert_close(result.targets, batch.targets)


@pytest.mark.parametrize("shape", [(1, (16, 16)), (3, (12, 20))], ids=["grey", "oblong"])
@all_parts
def test_grey_and_oblong_images_are_taken(name, shape):
    batch = batch_of(6, *shape)
    if name == "puzzlemix" and shape[0] == 3:
        with pytest.raises(InvalidValue, match="square images"):
            augment(PARTS[name], batch, explainer=GradCam())
    else:
        assert augment(per_image(name), batch, explainer=GradCam()).inputs.shape[1:] == batch.inputs.shape[1:]


@all_parts
def test_multi_label_data_is_taken_or_refused_in_words(name):
    batch = batch_of(8).replace(targets=(torch.arange(32).view(8, 4) % 3 == 0).float())
    info = testing.dataset_info(4, (16, 16), 3, multi_label=True)
    if name in ONE_LABEL:
        with pytest.raises(InvalidValue, match=f"augmenter '{name}' .* label"):
            augment(PARTS[name], batch, explainer=GradCam(), info=info)
    else:
        targets = augment(per_image(name), batch, explainer=GradCam(), info=info).targets
        assert ((targets >= 0) & (targets <= 1)).all()


@pytest.mark.parametrize("name", ["keepaugment", "puzzlemix", "comixup", "attentive-cutmix", "snapmix", "intrapart"])
def test_passes_are_those_of_the_cost_line(name):
    batch, model, passes = batch_of(8), network(), Passes()
    with contexts.counting(model, passes):
        augment(per_image(name), batch, model, GradCam(), stages=layers(model))
    backward = 0 if name == "attentive-cutmix" else 8
    assert (passes.forward, passes.backward) == (8, backward)
