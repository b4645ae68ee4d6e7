"""Corruptions: each against its definition by NumPy, Pillow or scipy, and what all of them must keep."""

from io import BytesIO

import numpy as np
import pytest
import torch
from metric_cases import images, in_parts, maps, score, small_network
from PIL import Image
from scipy import ndimage

from bench.errors import InvalidValue
from bench.testing import generators
from bench_plugins import _corruptions as make
from bench_plugins.corruptions import CORRUPTIONS, AccuracyUnderCorruptions, corrupt

NAMES = list(CORRUPTIONS)


def test_every_kind_has_numbers_for_five_severities_of_both_sizes():
    assert len(NAMES) == 14
    assert all(len(kind.small) == len(kind.large) == 5 for kind in CORRUPTIONS.values())


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("name", NAMES)
def test_more_severity_changes_more(name, side):
    clean = images(4, side)
    changes = [(corrupt(clean, generators(4), name, severity) - clean).abs().mean().item() for severity in (1, 5)]
    assert changes[0] > 0
    assert changes[0] < changes[1] or name == "elastic"  # Whose displacements grow finer, not larger, by the authors' numbers.


@pytest.mark.parametrize("name", NAMES)
def test_images_stay_in_range_and_each_has_draws_of_its_own(name):
    clean, streams = images(3, 20).round(), generators(3)
    together = corrupt(clean, generators(3), name, 5)
    assert 0 <= together.min() <= together.max() <= 1
    for row in range(3):
        torch.testing.assert_close(corrupt(clean[row : row + 1], [streams[row]], name, 5)[0], together[row], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 24, 24), (3, 20, 28)])
def test_grey_and_oblong_images_keep_their_shape(name, channels, height, width):
    clean = torch.rand(2, channels, height, width)
    assert corrupt(clean, generators(2), name, 3).shape == clean.shape


def test_small_images_are_refused():
    with pytest.raises(InvalidValue, match="16 pixels"):
        corrupt(torch.rand(1, 3, 8, 8), generators(1), "snow", 1)


def test_noise_has_the_spread_it_says():
    grey, streams = torch.full((64, 3, 16, 16), 0.5), generators(64)
    assert (make.gaussian_noise(grey, streams, 0.1) - grey).std().item() == pytest.approx(0.1, rel=0.02)
    shot = make.shot_noise(grey, streams, 100)  # Poisson of mean 50: variance 50 photons.
    assert (shot.mean().item(), shot.std().item()) == pytest.approx((0.5, 50**0.5 / 100), rel=0.02)
    struck = make.impulse_noise(grey, streams, 0.2)
    assert [(struck == value).float().mean().item() for value in (0, 1)] == pytest.approx([0.1, 0.1], rel=0.05)


def test_defocus_spreads_a_point_over_a_disk():
    point = torch.zeros(1, 1, 33, 33)
    point[0, 0, 16, 16] = 1
    spread = make.defocus_blur(point, [], 3, 0.1)[0, 0]
    rows, columns = np.mgrid[-16:17, -16:17]
    inside = rows**2 + columns**2 <= 9
    assert spread.numpy() == pytest.approx(inside / inside.sum(), abs=1e-6)  # Sigma .1 softens nothing.


def test_a_softened_disk_is_scipys():
    rows, columns = np.mgrid[-8:9, -8:9]
    even = (rows**2 + columns**2 <= 16).astype(float)
    taps = np.exp(-np.array([1, 0, 1]) / (2 * 0.5**2))
    expected = ndimage.correlate(even / even.sum(), np.outer(taps, taps) / taps.sum() ** 2, mode="constant")
    assert make.disk(4, 0.5)[0, 0].numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("edge", "truncate", "sigma"), [("nearest", 4, 1.3), ("reflect", 3, 2.0), ("reflect", 3, 30.0)])
def test_the_gaussian_is_scipys(edge, truncate, sigma):
    image = torch.rand(1, 1, 20, 26)
    expected = ndimage.gaussian_filter(image[0, 0].double().numpy(), sigma, mode=edge, truncate=truncate)
    assert make.blurred(image, sigma, sigma, truncate, edge)[0, 0].numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.25, 3.0])
def test_zoom_is_scipys(factor):
    image = torch.rand(32, 32, dtype=torch.float64)
    inner = int(np.ceil(32 / factor))
    top = (32 - inner) // 2
    larger = ndimage.zoom(image[top : top + inner, top : top + inner].numpy(), factor, order=1)
    trim = (len(larger) - 32) // 2
    assert make.zoomed(image[None, None], factor)[0, 0].numpy() == pytest.approx(larger[trim : trim + 32, trim : trim + 32], abs=1e-6)


def test_brightness_raises_the_value_and_nothing_else():
    from colorsys import hsv_to_rgb, rgb_to_hsv

    colours = [(0.2, 0.4, 0.6), (0.0, 0.0, 0.0), (0.9, 0.1, 0.5)]
    expected = [hsv_to_rgb(hue, saturation, min(value + 0.3, 1)) for hue, saturation, value in (rgb_to_hsv(*colour) for colour in colours)]
    raised = make.brightness(torch.tensor(colours).view(3, 3, 1, 1), [], 0.3)
    assert raised.view(3, 3).numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_contrast_shrinks_each_channel_towards_its_mean():
    image = images(2)
    mean = image.mean((2, 3), keepdim=True)
    torch.testing.assert_close(make.contrast(image, [], 0.3), 0.3 * (image - mean) + mean)


@pytest.mark.parametrize("share", [0.95, 0.65, 0.3])
def test_pixelate_is_pillows_box(share):
    pixels = torch.randint(256, (1, 3, 32, 40), dtype=torch.uint8)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    expected = picture.resize((int(40 * share), int(32 * share)), Image.Resampling.BOX).resize((40, 32), Image.Resampling.BOX)
    found = make.pixelate(pixels.float() / 255, [], share)[0].permute(1, 2, 0).numpy()
    assert found == pytest.approx(np.array(expected) / 255, abs=1.01 / 255)  # Pillow rounds in between.


def test_jpeg_is_pillows():
    pixels = (images(1, 32)[0] * 255).round().byte()
    buffer = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=40)
    expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(make.jpeg(pixels[None].float() / 255, [], 40)[0], expected)


def test_motion_leaves_an_even_image_and_draws_a_point_out():
    torch.testing.assert_close(make.motion_blur(torch.full((2, 1, 20, 20), 0.4), generators(2), 6, 2.0), torch.full((2, 1, 20, 20), 0.4))
    point = torch.zeros(1, 1, 31, 31)
    point[0, 0, 15, 15] = 1
    trail = make.motion_blur(point, generators(1), 6, 2.0)[0, 0]
    assert trail.sum().item() == pytest.approx(1)
    assert trail.argmax() == 15 * 31 + 15
    assert 5 < (trail > 0).sum() <= 13


def test_an_affine_map_fetches_moved_points_from_where_they_were():
    shifts = torch.tensor([[[2.0, -1], [0.5, 1], [-1, 3]]])
    anchors = 15 + 10 * torch.tensor([[1.0, 1], [1, -1], [-1, -1]])
    positions = (anchors + shifts[0]).T.view(1, 2, 1, 3)
    grid = torch.zeros(1, 2, 30, 30)
    grid[..., :1, :3] = positions
    torch.testing.assert_close(make.affine_positions(grid, shifts)[..., 0, :3], anchors.T[None], atol=1e-4, rtol=1e-5)


def test_sampling_each_pixel_at_its_place_gives_the_image():
    image = torch.rand(1, 3, 6, 9)
    here = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij"))[None]
    torch.testing.assert_close(make.sampled(image, here), image)
    torch.testing.assert_close(make.sampled(image, here + torch.tensor([1.0, 0]).view(1, 2, 1, 1))[..., 5, :], image[..., 4, :])  # Mirrored.


def test_a_row_holds_the_severities_of_one_kind_after_another():
    metric = AccuracyUnderCorruptions(corruptions=("contrast", "brightness"), severities=(1, 3, 5))
    assert score(metric, small_network(), images(4)).shape == (4, 6)
    curve = metric.curve(torch.tensor([[100.0, 100, 0, 100, 0, 0]]))
    assert curve[:2] == ([1, 3, 5], [100, 50, 0])


def test_numbers_do_not_depend_on_the_batch():
    metric, model = AccuracyUnderCorruptions(severities=(3,)), small_network()
    whole = score(metric, model, images(64))
    for size in (1, 7):
        assert torch.equal(in_parts(metric, model, images(64), maps(64), size), whole)
