"""Handwritten digits: the right counts, the right pixels, and no digit in both parts."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from bench.errors import DataError
from bench.interfaces import ImageData
from bench_plugins.digits import Digits, all_glyphs, enlarged, glyphs


def test_every_digit_is_in_one_part_and_a_quarter_of_each_class_is_for_test():
    train, test = Digits().load("train"), Digits().load("test")
    stated = np.bincount(load_digits().target)  # 178, 182, 177, …
    assert test.info.class_counts == tuple(int(count) // 4 for count in stated)
    assert tuple(a + b for a, b in zip(train.info.class_counts, test.info.class_counts, strict=True)) == tuple(stated)


def test_the_parts_share_no_digit():
    both = [{digit.tobytes() for digit in glyphs(split, seed=3).images} for split in ("train", "test")]
    assert not both[0] & both[1]


def test_images_are_rgb_bytes_that_say_what_they_are():
    data = Digits().load("test")
    assert isinstance(data, ImageData)
    sample = data[7]
    assert sample.image.shape == (3, 32, 32)
    assert sample.image.dtype == torch.uint8
    assert sample.index == 7
    assert isinstance(sample.label, int)
    assert len(data.info.mean) == len(data.info.std) == 3


def test_enlarging_a_digit_to_the_whole_image_is_pillows_bilinear_enlargement():
    digit = all_glyphs().images[:5]
    zero, full = np.zeros(5), np.full(5, 32.0)
    ours = enlarged(digit, zero, zero, full, full)
    theirs = [Image.fromarray(each.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR) for each in digit]
    np.testing.assert_allclose(ours, np.stack([np.asarray(each) for each in theirs]), atol=1e-6)


def test_a_digit_stretched_over_a_box_is_nought_outside_of_it():
    white = np.ones((1, 8, 8))
    box = enlarged(white, np.array([4.0]), np.array([10.0]), np.array([8.0]), np.array([16.0]))[0]
    wanted = np.zeros((32, 32))
    wanted[10:26, 4:12] = 1
    np.testing.assert_allclose(box, wanted)


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    first, again, other = (Digits(split_seed=seed).load("test") for seed in (0, 0, 1))
    assert first.info.fingerprint == again.info.fingerprint != other.info.fingerprint
    assert torch.equal(first.images, again.images)


def test_a_split_that_does_not_exist_is_named():
    with pytest.raises(DataError, match="'validation'"):
        Digits().load("validation")
