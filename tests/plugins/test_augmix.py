"""AugMix: its operations against Pillow, its blend and its loss by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from augmenter_cases import augment, batch_of, network
from PIL import Image, ImageOps
from scipy import stats

from bench import contexts, testing
from bench.interfaces import Batch
from bench_plugins import augmix
from bench_plugins.augmix import AugMix, AugMixPlain, divergence

SIDE = 32


def bilinear(matrix):
    return lambda image, level, sign: image.transform(image.size, Image.Transform.AFFINE, matrix(level, sign), resample=Image.Resampling.BILINEAR)


PILLOW = {
    "autocontrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "posterize": lambda image, level, sign: ImageOps.posterize(image, 4 - int(level * 4)),
    "rotate": lambda image, level, sign: image.rotate(int(level * 30) * sign, resample=Image.Resampling.BILINEAR),
    "solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - int(level * 256)),
    "shear_x": bilinear(lambda level, sign: (1, 0.3 * level * sign, 0, 0, 1, 0)),
    "shear_y": bilinear(lambda level, sign: (1, 0, 0, 0.3 * level * sign, 1, 0)),
    "translate_x": bilinear(lambda level, sign: (1, 0, int(level * SIDE / 3) * sign, 0, 1, 0)),
    "translate_y": bilinear(lambda level, sign: (1, 0, 0, 0, 1, int(level * SIDE / 3) * sign)),
}


def pictures(count):
    """Smooth 8-bit images that do not use the whole range."""
    coarse = 0.1 + 0.7 * torch.rand(count, 3, 5, 5, generator=contexts.generator("pictures"))
    return (F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize("operation", augmix.OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_is_pillows_to_one_level(operation):
    images, stream = pictures(24), contexts.generator("levels")
    levels, signs = 0.01 + 0.6 * torch.rand(24, generator=stream), torch.randint(2, (24,), generator=stream) * 2 - 1
    result = operation(images, levels, signs.float(), torch.zeros_like(images))
    for row, image in enumerate(images):
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        expected = torch.from_numpy(np.array(PILLOW[operation.__name__](picture, float(levels[row]), int(signs[row])))).permute(2, 0, 1) / 255
        assert ((result[row] - expected).abs() > 1.01 / 255).float().mean() < 0.002  # A pixel may fall just outside the border.


def test_what_lies_outside_takes_the_fill():
    images = pictures(3)
    moved = augmix.translate_x(images, torch.full((3,), 0.5), torch.ones(3), torch.full_like(images, 0.25))
    assert (moved[:, :, :, -5:] == 0.25).all()  # int(0.5 · 32 / 3) = 5 columns
    assert torch.equal(moved[:, :, :, :-5], images[:, :, :, 5:])


def counting_operations(monkeypatch):
    """Let every operation add 1/8, so that a black image tells how many it went through."""
    monkeypatch.setattr(augmix, "OPERATIONS", (lambda images, *_: images + 1 / 8,) * 3)


def test_chains_have_one_to_three_operations_or_the_depth_asked_for(monkeypatch):
    counting_operations(monkeypatch)
    black = torch.zeros(300, 1, 4, 4)
    lengths = 8 * AugMixPlain().chains(black, testing.step_context(None))[:, 0, 0, 0]
    assert all(abs((lengths == length).float().mean() - 1 / 3) < 0.1 for length in (1, 2, 3))
    assert (AugMixPlain(depth=5).chains(black, testing.step_context(None)) == 5 / 8).all()


def test_the_chains_mixture_is_blended_with_the_image(monkeypatch):
    monkeypatch.setattr(AugMixPlain, "chains", lambda part, images, context: torch.ones_like(images))
    black = torch.zeros(1000, 1, 2, 2)
    shares = AugMixPlain().blended(black, testing.step_context(None))[:, 0]  # (1 - m) 0 + m Σ w 1 = m
    torch.testing.assert_close(shares, shares[:, :1, :1].expand_as(shares))
    assert stats.kstest(shares[:, 0, 0].numpy(), "uniform").pvalue > 1e-3
    assert (AugMixPlain().blended(torch.ones(4, 1, 2, 2), testing.step_context(None)) == 1).all()


def test_divergence_of_equal_predictions_is_0_and_of_three_known_ones_by_hand():
    same = torch.tensor([0.2, 0.5, 0.3]).expand(4, 3, 3)
    torch.testing.assert_close(divergence(same), torch.zeros(4), atol=1e-6, rtol=0)
    known = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
    assert divergence(known).item() == pytest.approx(2 / 3 * math.log(2), abs=1e-6)  # (ln 2 + ln 2 + 0) / 3 = 0.4621


def test_two_versions_of_every_image_join_it_in_its_group():
    batch = batch_of(7)
    batch = batch.replace(weights=torch.arange(1.0, 8), indices=torch.arange(100, 107), group=torch.zeros(7, dtype=torch.long))
    result = augment(AugMix(), batch)
    assert torch.equal(result.inputs[:7], batch.inputs)
    assert torch.equal(result.group, torch.arange(7).repeat(3))
    assert torch.equal(result.weights, batch.weights.repeat(3))
    assert torch.equal(result.indices, batch.indices.repeat(3))
    versions = result.inputs.unflatten(0, (3, 7))
    assert (versions[1] != versions[2]).flatten(1).any(1).all()


def test_the_mean_of_the_rows_is_the_papers_loss():
    batch = augment(AugMix(), batch_of(6))
    logits = torch.randn(18, 4, generator=contexts.generator("logits"))
    clean = F.cross_entropy(logits[:6], batch.targets[:6])
    probabilities = logits.softmax(1).unflatten(0, (3, 6))
    mixture = probabilities.mean(0)
    spread = sum(F.kl_div(mixture.log(), version, reduction="batchmean") for version in probabilities) / 3
    losses = AugMix(jsd=5.0).loss(logits, batch)
    torch.testing.assert_close(losses.mean(), clean + 5 * spread)
    shuffled = torch.randperm(18, generator=contexts.generator("order")).sort(stable=True).indices
    shuffled = shuffled[(shuffled // 6).argsort(stable=True)]  # Any order in which the originals still come first.
    torch.testing.assert_close(AugMix(jsd=5.0).loss(logits[shuffled], batch.select(shuffled)), losses[shuffled])


def test_the_loss_can_be_trained_on():
    model = network()
    batch = augment(AugMix(), batch_of(6), model)
    AugMix().loss(model(batch.inputs), batch).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    sure = torch.full((3, 2), -200.0).fill_diagonal_(200.0)
    versions = Batch.of(torch.zeros(3, 1, 2, 2), torch.tensor([[1.0, 0.0]] * 3)).replace(group=torch.zeros(3, dtype=torch.long))
    assert AugMix().loss(sure, versions).isfinite().all()


def test_the_plain_part_has_no_loss_of_its_own():
    assert not hasattr(AugMixPlain(), "loss")
    batch = batch_of(5)
    assert len(augment(AugMixPlain(), batch)) == 5
