"""The papers' data sets: small files of the published layouts come out with the right labels, boxes and masks."""

import json

import numpy as np
import pytest
import torch
import torchvision.datasets
from numpy.random import RandomState
from PIL import Image
from scipy.io import savemat

from bench.errors import DataError
from bench.registry import Registry
from bench_plugins import paper_datasets
from bench_plugins.paper_datasets import Asl, Food101, Imagenette, OxfordPet, PlantVillage, StanfordDogs, TinyImageNet, Voc


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


def write_image(path, seed=0, width=20, height=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RandomState(seed).randint(256, size=(height, width, 3)).astype(np.uint8)).save(path)


def write_text(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def write_annotation(path, *objects):
    """Each object: name, xmin, ymin, xmax, ymax, difficult."""
    form = (
        "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
    )
    rows = [form.format(name, difficult, *box) for name, *box, difficult in objects]
    write_text(path, "<annotation>", *rows, "</annotation>")


def by_file(data):
    """Samples by the name of their file."""
    return {item.file.split("/")[-1].split(".")[0]: data[row] for row, item in enumerate(data.items)}


@pytest.fixture
def tiny(tmp_path):
    home = tmp_path / "tiny-imagenet-200"
    write_text(home / "words.txt", "n02\tsecond, another", "n01\tfirst", "n99\tnever")
    for seed, wnid in enumerate(("n02", "n01")):
        write_image(home / f"train/{wnid}/images/{wnid}_0.JPEG", seed, 64, 64)
        write_text(home / f"train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t10\t63\t58")
    write_image(home / "val/images/val_0.JPEG", 7, 64, 64)
    write_text(home / "val/val_annotations.txt", "val_0.JPEG\tn02\t3\t4\t10\t20")
    return tmp_path


def test_tiny_imagenet_has_boxes_and_its_validation_images_for_test(tiny):
    train, test = (TinyImageNet().load(split, tiny) for split in ("train", "test"))
    assert train.info.class_names == ("first", "second, another")
    assert {name: sample.label for name, sample in by_file(train).items()} == {"n01_0": 0, "n02_0": 1}
    assert train[0].boxes.tolist() == [[0, 10, 64, 59, 0]]
    assert test[0].label == 1
    assert test[0].boxes.tolist() == [[3, 4, 11, 21, 0]]
    assert test.info.image_size == (64, 64)


@pytest.fixture
def voc(tmp_path):
    """Two images of 40x20: a difficult dog beside two cats, and a person."""
    home = tmp_path / "VOCdevkit/VOC2012"
    for seed, name in enumerate(("a", "b", "c")):
        write_image(home / f"JPEGImages/{name}.jpg", seed, 40, 20)
    write_annotation(home / "Annotations/a.xml", ("cat", 1, 1, 10, 20, 0), ("dog", 11, 1, 40, 20, 1), ("cat", 5, 5, 6, 6, 0))
    write_annotation(home / "Annotations/b.xml", ("person", 21, 11, 40, 20, 0))
    write_annotation(home / "Annotations/c.xml", ("dog", 1, 1, 40, 20, 0))
    write_text(home / "ImageSets/Main/train.txt", "a", "b")
    write_text(home / "ImageSets/Main/val.txt", "c")
    write_text(home / "ImageSets/Segmentation/val.txt", "b")
    write_text(home / "ImageSets/Segmentation/train.txt", "a")
    for name, value in (("a", 8), ("b", 15)):  # cat is the 8th class, person the 15th
        values = np.zeros((20, 40), np.uint8)
        values[10:, 20:] = value
        values[9, :] = 255
        mask = Image.fromarray(values, "P")
        mask.putpalette(list(range(256)) * 3)
        (home / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(home / f"SegmentationClass/{name}.png")
    return tmp_path


def test_voc_has_several_labels_an_image_and_a_difficult_object_gives_none(voc):
    data = Voc().load("train", voc)
    assert data.info.multi_label
    assert data.info.name == "voc2012"
    names = {name: [data.info.class_names[k] for k in torch.nonzero(sample.label).flatten()] for name, sample in by_file(data).items()}
    assert names == {"a": ["cat"], "b": ["person"]}
    assert data[0].label.shape == (20,)
    assert data.info.class_counts[data.info.class_names.index("cat")] == 1
    assert len(Voc().load("test", voc)) == 1


def test_voc_boxes_are_scaled_with_the_image_and_say_what_is_difficult_and_of_which_class(voc):
    data = Voc(size=80).load("train", voc)
    cat, dog = (data.info.class_names.index(name) for name in ("cat", "dog"))
    boxes = by_file(data)["a"].boxes  # 40x20 squashed to 80x80: twice as wide, four times as high.
    assert boxes.tolist() == [[0, 0, 20, 80, 0, cat], [20, 0, 80, 80, 1, dog], [8, 16, 12, 24, 0, cat]]


def test_voc_masks_are_one_a_class_with_the_border_left_out(voc):
    data = Voc(size=40, segmentation=True).load("test", voc)
    (masks,) = (data[row].masks for row in range(len(data)))
    assert masks.shape == (20, 40, 40)
    assert masks.dtype == torch.bool
    person = data.info.class_names.index("person")
    assert masks[person, 20:, 20:].all()
    assert masks.sum() == 20 * 20
    assert data.info.has_masks
    assert not Voc().load("train", voc).info.has_masks


def test_voc_is_read_as_torchvision_reads_it(voc):
    ours = by_file(Voc(size=20).load("train", voc))
    for image, target in torchvision.datasets.VOCDetection(str(voc), year="2012", image_set="train"):
        objects = target["annotation"]["object"]
        sample = ours[next(name for name in ours if len(ours[name].boxes) == len(objects))]
        assert [float(each["bndbox"]["xmax"]) for each in objects] == [box[2] * 2 for box in sample.boxes.tolist()]
        assert np.array_equal(np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR)), sample.image.permute(1, 2, 0).numpy())


def test_voc_2007_trains_on_trainval_and_has_its_test_images(tmp_path):
    registry = Registry()

    def register(factory, name=None, **defaults):
        registry.add("dataset", factory, name=name, defaults=defaults, plugin="paper_datasets", distribution="test")

    paper_datasets.register_datasets(register)
    part = registry.resolve("dataset", "voc2007").part
    home = tmp_path / "VOCdevkit/VOC2007"
    for seed, (name, chosen) in enumerate((("a", "trainval"), ("b", "test"))):
        write_image(home / f"JPEGImages/{name}.jpg", seed)
        write_annotation(home / f"Annotations/{name}.xml", ("bird", 1, 1, 20, 20, 0))
        write_text(home / f"ImageSets/Main/{chosen}.txt", name)
    assert part.load("train", tmp_path).items[0].file == "JPEGImages/a.jpg"
    assert part.load("test", tmp_path).items[0].file == "JPEGImages/b.jpg"
    assert part.load("test", tmp_path).info.name == "voc2007"


def test_imagenette_is_read_as_torchvision_reads_it(tmp_path):
    for part in ("train", "val"):
        for seed, wnid in enumerate(paper_datasets.IMAGENETTE_CLASSES):
            write_image(tmp_path / f"imagenette2-160/{part}/{wnid}/{part}_{wnid}.JPEG", seed + 20 * (part == "val"))
    for split, part in (("train", "train"), ("test", "val")):
        ours, theirs = Imagenette(size=20).load(split, tmp_path), torchvision.datasets.Imagenette(str(tmp_path), split=part, size="160px")
        wanted = {np.asarray(image).tobytes(): theirs.classes[label][0] for image, label in theirs}
        assert {sample.image.permute(1, 2, 0).numpy().tobytes(): ours.info.class_names[sample.label] for sample in ours} == wanted
        assert len(wanted) == 10


def test_stanford_dogs_takes_its_published_lists_and_boxes(tmp_path):
    home = tmp_path / "stanford_dogs"
    files = {"train": ["n02-Great_Dane/n02_1.jpg"], "test": ["n01-Pug/n01_5.jpg", "n02-Great_Dane/n02_3.jpg"]}
    for split, names in files.items():
        for seed, name in enumerate(names):
            write_image(home / "Images" / name, seed + 5 * (split == "test"))
            write_annotation((home / "Annotation" / name).with_suffix(""), ("dog", 2, 3, 15, 18, 0))
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = names
        savemat(home / f"{split}_list.mat", {"file_list": cells})
    train, test = (StanfordDogs(size=20).load(split, tmp_path) for split in ("train", "test"))
    assert train.info.class_names == ("Pug", "Great Dane")
    assert [train[0].label, len(train)] == [1, 1]
    assert {name: sample.label for name, sample in by_file(test).items()} == {"n01_5": 0, "n02_3": 1}
    assert test[0].boxes.tolist() == [[2, 3, 15, 18, 0]]


def test_food101_is_read_as_torchvision_reads_it(tmp_path):
    home = tmp_path / "food-101"
    write_text(home / "meta/classes.txt", "apple_pie", "beet_salad")
    for split, first in (("train", 0), ("test", 10)):
        lists = {"apple_pie": [f"apple_pie/{first}"], "beet_salad": [f"beet_salad/{first + 1}", f"beet_salad/{first + 2}"]}
        write_text(home / f"meta/{split}.json", json.dumps(lists))
        for number, dish in enumerate(("apple_pie", "beet_salad", "beet_salad"), start=first):
            write_image(home / f"images/{dish}/{number}.jpg", number)
    for split in ("train", "test"):
        ours, theirs = Food101(size=20).load(split, tmp_path), torchvision.datasets.Food101(str(tmp_path), split=split)
        wanted = {np.asarray(image).tobytes(): label for image, label in theirs}
        assert {sample.image.permute(1, 2, 0).numpy().tobytes(): sample.label for sample in ours} == wanted
        assert ours.info.class_names == ("apple pie", "beet salad")
        assert ours.info.class_counts == (1, 2)


@pytest.fixture
def pets(tmp_path):
    home = tmp_path / "oxford-iiit-pet"
    write_text(home / "annotations/trainval.txt", "Abyssinian_1 1 1 1", "pug_2 2 2 1")
    write_text(home / "annotations/test.txt", "pug_3 2 2 1")
    (home / "annotations/trimaps").mkdir()
    for seed, name in enumerate(("Abyssinian_1", "pug_2", "pug_3")):
        write_image(home / f"images/{name}.jpg", seed)
        trimap = np.full((20, 20), 2, np.uint8)
        trimap[4:12, 5:15] = 3
        trimap[5:11, 6:14] = 1
        Image.fromarray(trimap).save(home / f"annotations/trimaps/{name}.png")
    return tmp_path


def test_a_pets_mask_is_the_inside_of_its_trimap(pets):
    sample = OxfordPet(size=20).load("test", pets)[0]
    wanted = torch.zeros(1, 20, 20, dtype=torch.bool)
    wanted[0, 5:11, 6:14] = True
    assert torch.equal(sample.masks, wanted)
    assert sample.boxes is None


def test_pets_are_read_as_torchvision_reads_them(pets):
    for split, part in (("train", "trainval"), ("test", "test")):
        ours, theirs = OxfordPet(size=20).load(split, pets), torchvision.datasets.OxfordIIITPet(str(pets), split=part)
        wanted = {np.asarray(image).tobytes(): label for image, label in theirs}
        assert {sample.image.permute(1, 2, 0).numpy().tobytes(): sample.label for sample in ours} == wanted
        assert ours.info.class_names == ("Abyssinian", "pug")


def test_a_mask_of_another_size_than_its_image_is_named(pets):
    Image.new("L", (19, 20)).save(pets / "oxford-iiit-pet/annotations/trimaps/pug_3.png")
    with pytest.raises(DataError, match=r"pug_3\.png is 19x20"):
        OxfordPet(size=20).load("test", pets)[0]


@pytest.mark.parametrize("part", [PlantVillage, Asl])
def test_image_folders_of_a_known_name_are_divided_by_content(tmp_path, part):
    for number in range(10):
        write_image(tmp_path / part.name / f"{'ab'[number % 2]}/{number}.png", number)
    train, test = (part(size=20).load(split, tmp_path) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert train.info.name == part.name
    assert train.info.class_names == ("a", "b")
    with pytest.raises(DataError, match="--data FOLDER"):
        part().load("train", tmp_path / part.name)


PUBLISHED = [TinyImageNet(), Voc(), Imagenette(), StanfordDogs(), Food101(), OxfordPet()]


@pytest.mark.parametrize("part", PUBLISHED, ids=lambda part: part.name)
def test_what_is_missing_is_said_with_what_is_there(tmp_path, part):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(DataError) as error:
        part.load("train", tmp_path)
    for words in (part._place(), "holiday", "--data", part.source):
        assert words in str(error.value)
    assert ("download = true" in str(error.value)) == (part.name not in ("tiny-imagenet", "stanford-dogs"))


@pytest.mark.parametrize("part", PUBLISHED, ids=lambda part: part.name)
def test_a_folder_of_another_layout_is_said(tmp_path, part):
    (tmp_path / part._place()).mkdir(parents=True)
    with pytest.raises(DataError, match="does not have the layout"):
        part.load("train", tmp_path)


def test_an_annotation_that_is_broken_is_said(voc):
    (voc / "VOCdevkit/VOC2012/Annotations/a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="does not have the layout"):
        Voc().load("train", voc)


def test_an_image_that_a_list_names_and_that_is_not_there_is_named(pets):
    (pets / "oxford-iiit-pet/images/pug_2.jpg").unlink()
    with pytest.raises(DataError, match=r"pug_2\.jpg"):
        OxfordPet().load("train", pets)


@pytest.mark.parametrize(
    ("part", "loader"),
    [(Voc, "VOCDetection"), (Imagenette, "Imagenette"), (Food101, "Food101"), (OxfordPet, "OxfordIIITPet")],
)
def test_only_download_fetches_and_a_failure_is_said(tmp_path, monkeypatch, part, loader):
    asked = []

    def fetch(root, **options):
        asked.append((root, options["download"]))
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, loader, fetch)
    with pytest.raises(DataError, match="was looked for"):
        part().load("train", tmp_path)
    assert not asked
    with pytest.raises(DataError, match="no network"):
        part(download=True).load("train", tmp_path)
    assert asked == [(str(tmp_path), True)]


def test_downloading_is_no_part_of_the_identity():
    assert Voc(download=True).identity() == Voc().identity()
    assert Voc(year="2007").identity() != Voc().identity()
