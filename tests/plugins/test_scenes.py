"""Scenes: outside its mask an image is a photograph, inside it is a digit, and training and test share neither."""

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from bench.errors import DataError
from bench_plugins import scenes
from bench_plugins.digits import Glyphs, all_glyphs, enlarged
from bench_plugins.scenes import EDGE, Scenes, _paint, colours, paint, pick, pieces, regions, shrunk, with_luminance

BLACK = np.zeros((128, 128, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small(**changes):
    return Scenes(**{"train_images": 60, "test_images": 30, **changes})


def test_items_carry_a_mask_and_every_class_is_equally_frequent():
    data = small().load("train")
    assert len(data) == 60
    assert data.info.class_counts == (6,) * 10
    assert data.info.has_masks
    assert data.info.redistributable
    sample = data[11]
    assert sample.image.shape == (3, 32, 32)
    assert sample.image.dtype == torch.uint8
    assert sample.masks.shape == (1, 32, 32)
    assert sample.masks.dtype == torch.bool
    assert sample.label == int(data.labels[11])


def test_outside_its_mask_a_scene_is_the_photograph_bit_for_bit():
    photograph = RandomState(3).randint(256, size=(32, 32, 3)).astype(np.uint8)
    painted = _paint(all_glyphs(), [photograph], np.arange(100) % 10, RandomState(0))
    assert painted.masks.any((1, 2)).all()
    for image, mask in zip(painted.images, painted.masks, strict=True):
        assert any((image == ground)[~mask].all() for ground in (photograph, photograph[:, ::-1]))


def test_inside_its_mask_a_scene_is_one_ink_in_several_strengths():
    painted = paint(all_glyphs(), [BLACK], 100, RandomState(0))
    for image, mask in zip(painted.images, painted.masks, strict=True):
        inside = image[mask].astype(float)
        strongest = inside[inside.sum(1).argmax()]
        strengths = inside.sum(1, keepdims=True) / strongest.sum()
        assert np.abs(inside - strengths * strongest).max() < 2  # Rounded to whole numbers


def test_the_mask_has_the_shape_of_the_digit():
    square = np.zeros((8, 8))
    square[2:6, 2:6] = 1  # The middle half of the cell grid, so about a quarter of the box.
    digits = Glyphs(np.stack([square] * 10), np.arange(10))
    painted = paint(digits, [BLACK], 40, RandomState(1))
    for mask in painted.masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[np.ix_(rows[1:-1], columns[1:-1])].all()  # Filled, but for the corners
        assert 0.5 * 20 - 1 <= len(rows) <= 0.65 * 29 + 1
        assert 0.75 * len(rows) - 2 <= len(columns) <= len(rows) + 2


def test_the_mask_is_the_scan_of_that_digit_resized():
    digits = Glyphs(all_glyphs().images[:10], all_glyphs().labels[:10])
    painted = paint(digits, [BLACK], 10, RandomState(5))
    for mask, label in zip(painted.masks, painted.labels, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        whole = enlarged(digits.images[label : label + 1], *(np.zeros(1),) * 2, *(np.full(1, 32.0),) * 2)[0] > EDGE[0]
        top, left = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
        scan = whole[top[0] : top[-1] + 1, left[0] : left[-1] + 1]
        ours = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        y = (np.arange(ours.shape[0]) + 0.5) / ours.shape[0] * scan.shape[0]
        x = (np.arange(ours.shape[1]) + 0.5) / ours.shape[1] * scan.shape[1]
        assert (ours == scan[np.ix_(y.astype(int), x.astype(int))]).mean() > 0.85


def test_every_picked_digit_has_its_label():
    marked = Glyphs(
        np.arange(10.0)[[3, 1, 3, 0, 2, 4, 5, 6, 7, 8, 9]][:, None, None] * np.ones((1, 8, 8)), np.array([3, 1, 3, 0, 2, 4, 5, 6, 7, 8, 9])
    )
    labels = RandomState(0).randint(10, size=200)
    assert (pick(marked, labels, RandomState(1))[:, 0, 0] == labels).all()


def test_a_class_is_drawn_from_all_its_digits():
    tones = np.linspace(0, 1, 40)
    digits = Glyphs(tones[:, None, None] * np.ones((1, 8, 8)), np.repeat(np.arange(10), 4))
    found = pick(digits, np.full(300, 7), RandomState(0))[:, 0, 0]
    assert set(found) == set(tones[28:32])


def test_the_two_splits_share_no_pixel_of_the_photographs_and_leave_none_out():
    train, test = regions("train"), regions("test")
    assert len(train) == 20
    assert len(test) == 10
    assert sum(part.shape[0] * part.shape[1] for part in train + test) == 2 * 427 * 640
    assert not any(np.shares_memory(a, b) for a in train for b in test if np.may_share_memory(a, b, max_work=0))


def test_a_piece_is_found_in_its_source_as_it_is_or_mirrored():
    source = RandomState(0).randint(256, size=(33, 34, 3)).astype(np.uint8)
    possible = {source[y : y + 32, x : x + 32].tobytes() for y in range(2) for x in range(3)}
    mirrored = {np.frombuffer(piece, np.uint8).reshape(32, 32, 3)[:, ::-1].tobytes() for piece in possible}
    found = {piece.tobytes() for piece in pieces([source], 300, RandomState(1))}
    assert found == possible | mirrored


def test_shrinking_takes_the_mean_of_each_block():
    picture = np.zeros((5, 4, 3), np.uint8)
    picture[:2, :2, 0] = [[1, 2], [3, 5]]  # The mean, 2.75, is 3 in whole numbers; the fifth row has no block.
    assert shrunk(picture, 2)[..., 0].tolist() == [[3, 0], [0, 0]]
    assert shrunk(picture, 1).tolist() == picture.tolist()


def test_a_colour_moves_towards_black_or_white_until_it_has_the_luminance():
    blue = np.array([[0.0, 0.0, 1.0]])  # Luminance 0.114
    np.testing.assert_allclose(with_luminance(blue, np.array([0.057])), [[0, 0, 0.5]])
    np.testing.assert_allclose(with_luminance(blue, np.array([0.557])), [[0.5, 0.5, 1]])


def test_ink_differs_in_luminance_from_what_it_covers():
    under = np.concatenate([RandomState(0).random_sample((500, 3)), [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]])
    weights = np.array([0.299, 0.587, 0.114])
    apart = np.abs(colours(under, RandomState(1)) @ weights - under @ weights)
    assert apart.min() > 0.45 - 1e-9
    assert apart.max() < 0.75 + 1e-9


def test_the_same_seed_makes_the_same_images_and_another_seed_others():
    first, other = small(), small(seed=1)
    assert first.load("train").info.fingerprint == first.load("train").info.fingerprint
    assert first.load("train").info.fingerprint != other.load("train").info.fingerprint
    assert first.load("train").info.fingerprint != first.load("test").info.fingerprint


def test_the_second_time_the_images_come_from_the_cache(cache, monkeypatch):
    made = small().load("train")
    monkeypatch.setattr(scenes, "paint", lambda *_: pytest.fail("painted again"))
    found = small().load("train")
    assert torch.equal(found.images, made.images)
    assert torch.equal(found.masks, made.masks)
    assert found.info == made.info
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]  # Nothing half-written is left.


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_cache_is_made_again(cache, damage):
    made = small().load("train")
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:1000], "flipped": content, "empty": b""}[damage])
    again = small().load("train")
    assert torch.equal(again.images, made.images)
    assert again.info.fingerprint == made.info.fingerprint
    assert path.stat().st_size == len(content)


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="BENCH_CACHE"):
        assert len(small().load("test")) == 30


def test_a_split_that_does_not_exist_is_named():
    with pytest.raises(DataError, match="'val'"):
        small().load("val")
