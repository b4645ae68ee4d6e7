"""CowOut and CowMix."""

import torch
from augmenter_cases import augment, batch_of, marked
from scipy import ndimage, stats

from bench import contexts
from bench_plugins import cowmask
from bench_plugins.cowmask import CowMix, CowOut, blotches


def test_a_mask_is_the_level_set_of_blurred_noise():
    noise = torch.randn(6, 32, 32, generator=contexts.generator("noise"))
    sigmas, shares = torch.tensor([4.0, 6, 8, 10, 13, 16]), torch.tensor([0.25, 0.4, 0.5, 0.6, 0.8, 0.95])
    masks = blotches(noise, sigmas, shares)
    for row in range(6):
        smooth = ndimage.gaussian_filter(noise[row].double().numpy(), float(sigmas[row]), mode="constant", truncate=12)
        expected = smooth <= smooth.mean() + smooth.std() * stats.norm.ppf(float(shares[row]))
        assert (torch.from_numpy(expected) != masks[row]).float().mean() < 0.003


def test_the_area_is_roughly_the_share():
    shares, sigmas = torch.linspace(0.2, 0.8, 2000), torch.full((2000,), 6.0)
    areas = blotches(torch.randn(2000, 32, 32, generator=contexts.generator("area")), sigmas, shares).float().mean((1, 2))
    assert abs((areas - shares).mean()) < 0.01
    assert 0.02 < (areas - shares).std() < 0.1


def test_a_share_of_one_keeps_everything():
    assert blotches(torch.randn(1, 8, 8), torch.tensor([2.0]), torch.tensor([1.0])).all()


def test_cowout_hides_what_is_outside_the_mask():
    batch = batch_of(200, side=32)
    result = augment(CowOut(fill="black"), batch)
    kept = (result.inputs == batch.inputs).all(1)
    assert (result.inputs.mul(~kept[:, None]) == 0).all()
    assert abs(kept.float().mean() - 0.625) < 0.05  # p ~ U(0.25, 1)


def test_cowmix_takes_blotches_from_the_row_before():
    result = augment(CowMix(), marked(12, side=32))
    own = result.targets.diagonal()
    before = result.targets[torch.arange(12), torch.arange(12).roll(1)]
    torch.testing.assert_close(own + before, torch.ones(12))
    assert before.min() > 0.1
    assert before.max() < 0.9


def test_each_image_has_a_mask_of_its_own():
    masks = cowmask.masks(CowMix(), batch_of(5, side=32), contexts.generator("own"))
    assert len(masks.flatten(1).unique(dim=0)) == 5
