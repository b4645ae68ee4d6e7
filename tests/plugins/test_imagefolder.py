"""Any folder of images: both layouts, one size, boxes that follow the image, ImageNet's labels, and errors that name the file."""

import json
import os

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from torchvision import datasets, transforms

from bench.errors import DataError
from bench.interfaces import ImageData
from bench_plugins import _files
from bench_plugins._files import Shown
from bench_plugins.imagefolder import ImageFolder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed, width=12, height=8):
    return Image.fromarray(RandomState(seed).randint(256, size=(height, width, 3)).astype(np.uint8))


def write(folder, names, seed=0, **size):
    """One picture per name, `<class>/<file>`, each of another content."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed + number, **size).save(folder / name)


def contents(data):
    return {data[row].image.numpy().tobytes(): data[row].label for row in range(len(data))}


@pytest.fixture
def parted(tmp_path):
    """Three classes, eleven pictures of cats, two of dogs, one of an owl, no split folders."""
    write(tmp_path / "pets", [*(f"cat/{number}.png" for number in range(11)), "dog/a.png", "dog/b.png", "owl/o.png"])
    return tmp_path / "pets"


def test_split_folders_are_read_as_torchvision_reads_them(tmp_path):
    write(tmp_path / "p/train", ["b/1.png", "a/deep/2.png", "a/3.jpg", "c/4.bmp"])
    write(tmp_path / "p/test", ["c/1.png", "a/2.png"], seed=50)
    for split in ("train", "test"):
        ours, theirs = ImageFolder(str(tmp_path / "p")).load(split, None), datasets.ImageFolder(str(tmp_path / "p" / split), allow_empty=True)
        names = [theirs.classes[label] for _, label in theirs]
        wanted = {np.asarray(image).transpose(2, 0, 1).tobytes(): name for (image, _), name in zip(theirs, names, strict=True)}
        assert {content: ours.info.class_names[label] for content, label in contents(ours).items()} == wanted
        assert ours.info.class_names == ("a", "b", "c")  # Test images have no b, and c is still the third class.


def test_it_says_what_it_is(tmp_path):
    write(tmp_path / "p/train", ["b/1.png", "a/2.png", "a/3.png"])
    data = ImageFolder(str(tmp_path / "p")).load("train", None)
    assert isinstance(data, ImageData)
    assert data.info.name == "p"
    assert data.info.class_counts == (2, 1)
    assert data.info.image_size == (8, 12)
    assert not data.info.has_boxes
    assert data[1].boxes is None
    assert data[1].masks is None
    assert data[1].index == 1
    assert data.labels.tolist() == [data[row].label for row in range(3)]


def test_val_stands_in_for_test(tmp_path):
    write(tmp_path / "p/val", ["a/1.png", "b/2.png"])
    assert len(ImageFolder(str(tmp_path / "p")).load("test", None)) == 2
    with pytest.raises(DataError, match="no images for train: train was looked for, and there is val"):
        ImageFolder(str(tmp_path / "p")).load("train", None)


def test_a_folder_without_split_folders_is_divided_class_by_class(parted):
    train, test = (ImageFolder(str(parted), test_share=0.25).load(split, None) for split in ("train", "test"))
    assert test.info.class_counts == (3, 1, 0)  # 11/4 and 2/4 rounded, at least one of two; a single image is for training.
    assert train.info.class_counts == (8, 1, 1)
    assert not contents(train).keys() & contents(test).keys()


def test_the_division_depends_on_content_and_seed_and_not_on_names(parted):
    first = contents(ImageFolder(str(parted)).load("test", None))
    for number in range(11):
        (parted / f"cat/{number}.png").rename(parted / f"cat/z{10 - number}.png")
    assert contents(ImageFolder(str(parted)).load("test", None)) == first
    assert any(contents(ImageFolder(str(parted), split_seed=seed).load("test", None)) != first for seed in (1, 2, 3))


def test_names_change_neither_fingerprint_nor_order_and_content_label_and_size_do(tmp_path):
    write(tmp_path / "p/train", ["a/1.png", "a/2.png", "b/3.png"])

    def load(**parameters):
        data = ImageFolder(str(tmp_path / "p"), **parameters).load("train", None)
        return data.info.fingerprint, [(sample.image.tolist(), sample.label) for sample in data]

    first, sized, squashed = load(), load(size=4), load(size=4, resize="squash")
    (tmp_path / "p/train/a/1.png").rename(tmp_path / "p/train/a/9.png")
    assert load() == first
    (tmp_path / "p/train/a/9.png").rename(tmp_path / "p/train/b/9.png")
    moved = load()
    picture(99).save(tmp_path / "p/train/b/3.png")
    changed = load()
    assert len({each[0] for each in (first, sized, squashed, moved, changed)}) == 5


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 31), (17, 17), (9, 40)])
@pytest.mark.parametrize("size", [7, 16, 24])
def test_cropping_is_torchvisions_resize_and_centre_crop(width, height, size):
    image = picture(1, width, height)
    wanted = transforms.CenterCrop(size)(transforms.Resize(size)(image))
    assert np.array_equal(np.asarray(Shown(size, "crop").image(image)), np.asarray(wanted))


def test_squashing_shows_the_whole_image():
    assert Shown(6, "squash").image(picture(1, 30, 10)).size == (6, 6)


@pytest.mark.parametrize("how", ["crop", "squash"])
@pytest.mark.parametrize(("width", "height"), [(60, 30), (30, 60), (40, 40)])
def test_a_box_follows_its_object_into_the_image_shown(how, width, height):
    left, top, right, bottom = 0.4 * width, 0.3 * height, 0.6 * width, 0.7 * height
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[int(top) : int(bottom), int(left) : int(right)] = 255
    shown = Shown(20, how)
    bright = np.asarray(shown.image(Image.fromarray(pixels)))[..., 0] > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    box = shown.boxes(torch.tensor([[left, top, right, bottom, 1.0]]), width, height)[0]
    assert box.tolist() == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 1], abs=0.6)


def test_a_box_is_cut_at_the_border_and_dropped_beyond_it():
    boxes = torch.tensor([[0.0, 0, 20, 10, 0], [0, 0, 5, 10, 1]])  # 40x20 shown as 10x10: halved, the middle 5..15 of 20 columns.
    assert Shown(10, "crop").boxes(boxes, 40, 20).tolist() == [[0, 0, 5, 5, 0]]


def test_boxes_are_read_by_file_and_a_file_without_any_has_none(tmp_path):
    write(tmp_path / "p/val", ["a/1.png", "a/2.png"])
    rows = {"a/1.png": {"label": 0, "boxes": [[1, 2, 5, 6], [0, 0, 2, 2, 1]]}}
    (tmp_path / "p/boxes.json").write_text(json.dumps(rows))
    data = ImageFolder(str(tmp_path / "p")).load("test", None)
    found = {item.file: data[row].boxes.tolist() for row, item in enumerate(data.items)}
    assert data.info.has_boxes
    assert found == {"a/1.png": [[1, 2, 5, 6, 0], [0, 0, 2, 2, 1]], "a/2.png": []}
    (tmp_path / "p/boxes.json").write_text(json.dumps({"val/" + name: row for name, row in rows.items()}))
    assert ImageFolder(str(tmp_path / "p")).load("test", None).info == data.info


def test_boxes_are_part_of_the_fingerprint(tmp_path):
    write(tmp_path / "p/val", ["a/1.png"])
    before = ImageFolder(str(tmp_path / "p")).load("test", None).info.fingerprint
    (tmp_path / "p/boxes.json").write_text('{"a/1.png": {"boxes": [[1, 2, 5, 6]]}}')
    assert ImageFolder(str(tmp_path / "p")).load("test", None).info.fingerprint != before


CLASSES = [{"wnid": "n03", "words": "third"}, {"wnid": "n01", "words": "first"}, {"wnid": "n02", "words": "second"}]


def test_imagenet_labels_are_places_in_the_class_list(tmp_path):
    write(tmp_path / "p/val", ["n01/1.png", "n02/2.png", "n02/3.png"])
    (tmp_path / "p/classes.json").write_text(json.dumps(CLASSES))
    data = ImageFolder(str(tmp_path / "p"), classes="imagenet").load("test", None)
    assert data.info.num_classes == 3
    assert data.info.class_names == ("third", "first", "second")
    assert data.info.class_counts == (0, 1, 2)
    assert {item.file[:3]: item.label for item in data.items} == {"n01": 1, "n02": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        ("[", "not a list of classes"),
        ('["n01"]', "not a list of classes"),
        (json.dumps(CLASSES[:1]), "'n01' is not among the 1"),
    ],
)
def test_a_class_list_that_does_not_fit_is_said(tmp_path, content, words):
    write(tmp_path / "p/val", ["n01/1.png"])
    if content is not None:
        (tmp_path / "p/classes.json").write_text(content)
    with pytest.raises(DataError, match=words):
        ImageFolder(str(tmp_path / "p"), classes="imagenet").load("test", None)


@pytest.mark.parametrize("content", ["[", "[1]", '{"a/1.png": [[1, 2, 3, 4]]}', '{"a/1.png": {"boxes": [[1, 2, 3]]}}', '{"a/1.png": {"boxes": 5}}'])
def test_a_box_file_of_another_form_is_refused(tmp_path, content):
    write(tmp_path / "p/val", ["a/1.png"])
    (tmp_path / "p/boxes.json").write_text(content)
    with pytest.raises(DataError, match="is not of the form"):
        ImageFolder(str(tmp_path / "p")).load("test", None)


def test_a_relative_path_is_looked_for_here_and_in_the_data_folder(tmp_path, monkeypatch):
    write(tmp_path / "data/p/val", ["a/1.png"])
    monkeypatch.chdir(tmp_path)
    assert len(ImageFolder("p").load("test", tmp_path / "data")) == 1
    assert len(ImageFolder("data/p").load("test", None)) == 1
    with pytest.raises(DataError) as error:
        ImageFolder("q").load("test", tmp_path / "data")
    assert str(tmp_path / "q") in str(error.value)
    assert str(tmp_path / "data/q") in str(error.value)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("", "holds no folders"),
        (".hidden", "holds no folders"),
        ("train", "holds no class folders"),
        ("train/a", "no images"),
        ("a", "no images"),
    ],
)
def test_a_folder_with_nothing_in_it_is_said(tmp_path, folder, words):
    (tmp_path / "p" / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        ImageFolder(str(tmp_path / "p")).load("train", None)


def test_a_test_class_that_training_does_not_have_is_named(tmp_path):
    write(tmp_path / "p/train", ["cats/1.png"])
    write(tmp_path / "p/test", ["cat/1.png"])
    with pytest.raises(DataError, match="Did you mean 'cats'"):
        ImageFolder(str(tmp_path / "p")).load("test", None)


def test_images_of_several_sizes_ask_for_a_size(tmp_path):
    write(tmp_path / "p/train", ["a/1.png"])
    picture(5, 20, 20).save(tmp_path / "p/train/a/2.png")
    with pytest.raises(DataError, match="size = 224"):
        ImageFolder(str(tmp_path / "p")).load("train", None)
    data = ImageFolder(str(tmp_path / "p"), size=6).load("train", None)
    assert data.info.image_size == (6, 6)
    assert all(data[row].image.shape == (3, 6, 6) for row in range(2))


def test_a_file_that_is_no_image_and_one_that_is_cut_short_are_named(tmp_path):
    write(tmp_path / "p/train", ["a/1.png", "a/2.png"])
    content = (tmp_path / "p/train/a/1.png").read_bytes()
    (tmp_path / "p/train/a/1.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"a/1\.png cannot be read"):
        ImageFolder(str(tmp_path / "p")).load("train", None)
    (tmp_path / "p/train/a/1.png").write_bytes(content[:-60])  # The header is whole: found when the image is decoded.
    data = ImageFolder(str(tmp_path / "p")).load("train", None)
    with pytest.raises(DataError, match=r"a/1\.png cannot be read"):
        [data[row] for row in range(2)]


def test_grey_and_palette_images_come_out_as_rgb(tmp_path):
    (tmp_path / "p/train/a").mkdir(parents=True)
    picture(1).convert("L").save(tmp_path / "p/train/a/1.png")
    picture(2).convert("P").save(tmp_path / "p/train/a/2.png")
    data = ImageFolder(str(tmp_path / "p")).load("train", None)
    assert all(data[row].image.shape == (3, 8, 12) for row in range(2))


def test_an_image_is_decoded_once_while_there_is_room(tmp_path, monkeypatch):
    write(tmp_path / "p/train", ["a/1.png", "a/2.png"])
    monkeypatch.setattr(_files, "KEPT_BYTES", 3 * 8 * 12)  # Room for one
    data = ImageFolder(str(tmp_path / "p")).load("train", None)
    first = [data[row].image for row in range(2)]
    for item in data.items:
        os.remove(data.folder / item.file)
    assert torch.equal(data[0].image, first[0])
    with pytest.raises(DataError):
        data[1]


def test_the_path_is_no_part_of_the_identity_and_the_size_is():
    assert ImageFolder("here").identity() == ImageFolder("there").identity()
    assert ImageFolder("here", size=8).identity() != ImageFolder("here").identity()
