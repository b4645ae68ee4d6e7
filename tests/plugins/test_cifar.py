"""CIFAR: the same images are the same data set, stored as a folder or as the original files; what is missing is said."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from torchvision import datasets

from bench.errors import DataError
from bench_plugins import cifar
from bench_plugins.cifar import Cifar10, Cifar100


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(count, seed=0):
    return RandomState(seed).randint(256, size=(count, 32, 32, 3)).astype(np.uint8)


def write_folder(root, part, images, labels, name="cifar10", classes=Cifar10.classes):
    for each in classes:
        (root / name / part / each).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(root / name / part / classes[label] / f"{number:04d}.png")


def write_original(root, images, labels, monkeypatch):
    """The layout of cifar-10-batches-py, with every batch holding a fifth; its published sums cannot be met."""
    folder = root / Cifar10.original
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name, rows in zip(names, [*np.array_split(np.arange(len(labels)), 5), np.arange(len(labels))], strict=True):
        content = {"data": images[rows].transpose(0, 3, 1, 2).reshape(len(rows), -1), "labels": [labels[row] for row in rows]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(Cifar10.classes)}))
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)


def test_the_classes_are_the_published_ones_in_alphabetical_order():
    assert Cifar10.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for part, count in ((Cifar10, 10), (Cifar100, 100)):
        assert len(set(part.classes)) == count
        assert list(part.classes) == sorted(part.classes)
    published = {0: "apple", 1: "aquarium_fish", 20: "chair", 33: "forest", 52: "oak_tree", 69: "rocket", 81: "streetcar", 99: "worm"}
    assert {number: Cifar100.classes[number] for number in published} == published


def test_a_folder_and_the_original_files_are_the_same_data_set_image_by_image(tmp_path, monkeypatch):
    images, labels = pictures(20), [number % 10 for number in range(20)]
    write_folder(tmp_path / "a", "train", images, labels)
    write_original(tmp_path / "b", images, labels, monkeypatch)
    folder, original = (Cifar10().load("train", tmp_path / where) for where in "ab")
    assert folder.info == original.info
    assert torch.equal(folder.images, original.images)
    assert torch.equal(folder.labels, original.labels)


def test_the_original_files_are_read_as_torchvision_reads_them(tmp_path, monkeypatch):
    images, labels = pictures(20), [(3 * number) % 10 for number in range(20)]
    write_original(tmp_path, images, labels, monkeypatch)
    ours, theirs = Cifar10().load("test", tmp_path), datasets.CIFAR10(str(tmp_path), train=False)
    pairs = {(np.asarray(image).tobytes(), label) for image, label in theirs}
    assert {(sample.image.permute(1, 2, 0).numpy().tobytes(), sample.label) for sample in (ours[row] for row in range(20))} == pairs


def test_names_and_order_of_the_files_change_nothing_and_a_changed_pixel_or_label_does(tmp_path):
    images, labels = pictures(10), list(range(10))
    write_folder(tmp_path / "a", "test", images, labels)
    write_folder(tmp_path / "b", "test", images[::-1], labels[::-1])
    changed = images.copy()
    changed[4, 0, 0, 0] ^= 1
    write_folder(tmp_path / "c", "test", changed, labels)
    write_folder(tmp_path / "d", "test", images, [1, 0, *labels[2:]])
    first, renamed, pixel, label = (Cifar10().load("test", tmp_path / where) for where in "abcd")
    assert first.info.fingerprint == renamed.info.fingerprint
    assert torch.equal(first.images, renamed.images)
    assert len({each.info.fingerprint for each in (first, pixel, label)}) == 3


def test_part_of_the_images_will_do_and_the_counts_say_so(tmp_path):
    write_folder(tmp_path, "test", pictures(4), [2, 2, 2, 5])
    data = Cifar10().load("test", tmp_path)
    assert data.info.class_counts == (0, 0, 3, 0, 0, 1, 0, 0, 0, 0)
    assert data.info.image_size == (32, 32)
    assert not data.info.redistributable


def test_cifar100_is_read_from_its_own_folder(tmp_path):
    write_folder(tmp_path, "test", pictures(2), [99, 0], "cifar100", Cifar100.classes)
    data = Cifar100().load("test", tmp_path)
    assert data.info.num_classes == 100
    assert sorted(data.labels.tolist()) == [0, 99]


def test_a_folder_is_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    write_folder(tmp_path, "test", pictures(10), range(10))
    first = Cifar10().load("test", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cifar, "read_image", lambda path: pytest.fail(f"{path} decoded again"))
        assert torch.equal(Cifar10().load("test", tmp_path).images, first.images)
    file = tmp_path / "cifar10/test/cat/0003.png"
    Image.fromarray(pictures(1, seed=9)[0]).save(file)
    os.utime(file, ns=(1, 1))
    assert Cifar10().load("test", tmp_path).info.fingerprint != first.info.fingerprint


def test_nothing_there_is_said_with_what_was_looked_for_found_and_to_type(tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(DataError) as error:
        Cifar100().load("train", tmp_path)
    for words in ("cifar100/train/<class>", "cifar-100-python", "holiday", "--data", "download = true"):
        assert words in str(error.value)


def test_a_missing_split_is_said_with_the_splits_there_are(tmp_path):
    write_folder(tmp_path, "test", pictures(1), [0])
    with pytest.raises(DataError, match="cifar10: test"):
        Cifar10().load("train", tmp_path)


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_a_data_folder_is_asked_for(tmp_path, root):
    with pytest.raises(DataError, match="--data"):
        Cifar10().load("test", root and tmp_path / root)


def test_other_classes_are_named(tmp_path):
    write_folder(tmp_path, "test", pictures(1), [0])
    (tmp_path / "cifar10/test/truck").rename(tmp_path / "cifar10/test/lorry")
    with pytest.raises(DataError, match="missing: truck; unknown: lorry"):
        Cifar10().load("test", tmp_path)


def test_class_folders_without_images_are_no_data_set(tmp_path):
    write_folder(tmp_path, "test", [], [])
    with pytest.raises(DataError, match="no images"):
        Cifar10().load("test", tmp_path)


def test_a_broken_file_and_one_of_another_size_are_named(tmp_path):
    write_folder(tmp_path, "test", pictures(1), [0])
    file = tmp_path / "cifar10/test/airplane/0000.png"
    Image.new("RGB", (33, 32)).save(file)
    with pytest.raises(DataError, match=r"0000\.png is 33x32"):
        Cifar10().load("test", tmp_path)
    file.write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match=r"0000\.png cannot be read"):
        Cifar10().load("test", tmp_path)


def test_original_files_that_are_not_whole_are_refused_before_they_are_read(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        write_original(tmp_path, pictures(10), list(range(10)), patch)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(DataError, match="not whole"):
        Cifar10().load("test", tmp_path)


def test_only_download_fetches(tmp_path, monkeypatch):
    asked = []

    class Fetched:
        def __init__(self, root, train, download):
            asked.append((root, train, download))
            self.data, self.targets = pictures(3), [0, 1, 2]

    monkeypatch.setattr(datasets, "CIFAR10", Fetched)
    with pytest.raises(DataError):
        Cifar10().load("train", tmp_path)
    assert not asked
    assert len(Cifar10(download=True).load("train", tmp_path)) == 3
    assert asked == [(str(tmp_path), True, True)]


def test_downloading_is_no_part_of_the_identity():
    assert Cifar10(download=True).identity() == Cifar10().identity() == {}


def test_moving_the_folder_keeps_the_fingerprint(tmp_path):
    write_folder(tmp_path / "a", "test", pictures(3), [0, 1, 2])
    before = Cifar10().load("test", tmp_path / "a").info
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert Cifar10().load("test", tmp_path / "b").info == before
