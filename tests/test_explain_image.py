"""One photograph: the command finds the classes, reads the image upright, and draws the maps that the explainers give."""

import json
import re
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import FINISHED, PARTS
from PIL import Image

from bench import explain_image, figures, plugins, testing
from bench.cli import main
from bench.errors import BenchError, DataError, InvalidValue, WeightsError
from bench.explain_image import Names, explained, find_class, head_sizes, middle, read_names, read_photograph
from bench.store import write_tensors

BIRDS = [{"wnid": "n1", "words": "crane, hoist"}, {"wnid": "n2", "words": "jay, blue jay"}, {"wnid": "n3", "words": "crane, bird"}]
SIDE = 24


@pytest.fixture(scope="module")
def parts():
    return plugins.load([PARTS], only=(*FINISHED, "resnet_mini")).registry


@pytest.fixture
def network(parts):
    """A `resnet-mini` of three classes with weights of its own."""
    torch.manual_seed(3)
    part = parts.resolve("model", "resnet-mini").part
    return part, part.build(testing.dataset_info(3, (SIDE, SIDE), 3)).eval()


@pytest.fixture
def weights(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, network[1].state_dict())
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def image(pixels, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(BIRDS))
    return path


@pytest.fixture
def explain(parts, image, weights):
    """Explains the photograph by `slope` and `gradcam` with the saved weights, unless told otherwise."""

    def call(explainers=("slope", "gradcam"), model=None, path=image, **options):
        chosen = parts.resolve("model", model or {"name": "resnet-mini", "weights": str(weights)})
        return explained(parts, path, chosen, [parts.resolve("explainer", name) for name in explainers], **{"size": SIDE, **options})

    return call


# What is explained


def test_the_maps_and_probabilities_are_those_of_the_image(explain, network, parts, pixels):
    part, model = network
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        probabilities = model(inputs.repeat(2, 1, 1, 1))[0].softmax(0)
    found = explain()
    torch.testing.assert_close(found.probabilities, probabilities)
    assert found.target == int(probabilities.argmax())
    for each in found.maps:
        explainer = parts.resolve("explainer", each.explainer).part
        expected = testing.explain(model, explainer, inputs, torch.tensor([found.target]), part.target_layers(model))
        torch.testing.assert_close(each.values, expected[0, 0], rtol=1e-4, atol=1e-6)


def test_passes_are_counted_per_map(explain):
    slope, gradcam, random = explain(["slope", "gradcam", "random"]).maps
    assert (slope.forward, slope.backward) == (gradcam.forward, gradcam.backward) == (1, 1)
    assert (random.forward, random.backward) == (0, 0)


def test_another_class_has_another_map_and_the_same_probabilities(explain):
    first, second = explain(["slope"], target="0"), explain(["slope"], target="class 2")
    assert (first.target, second.target) == (0, 2)
    assert not torch.allclose(first.maps[0].values, second.maps[0].values)
    assert torch.equal(first.probabilities, second.probabilities)


def test_an_earlier_layer_gives_another_map(explain):
    usual = explain(["gradcam"]).maps[0].values
    assert torch.equal(explain(["gradcam"], layer="network.layer3").maps[0].values, usual)
    assert not torch.allclose(explain(["gradcam"], layer="network.layer1").maps[0].values, usual)


def test_the_data_set_gives_names_size_and_images_to_prepare_on(explain):
    found = explain(["far-from-mean"], {"name": "tiny-net"}, size=None, dataset="tiny", untrained=True)
    assert found.names == ("class 0", "class 1", "class 2", "class 3")
    assert found.maps[0].values.shape == (16, 16)


# The photograph


def test_a_photograph_lying_on_its_side_is_put_upright(pixels, tmp_path):
    tag = Image.Exif()
    tag[274] = 6  # To be shown turned by 90 degrees clockwise.
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=tag)
    upright = np.rot90(pixels, -1)
    assert np.array_equal(read_photograph(tmp_path / "turned.png").permute(1, 2, 0), upright)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_a_photograph_of_any_mode_has_three_colours(mode, tmp_path):
    Image.new(mode, (5, 4)).save(tmp_path / "image.tiff")
    assert read_photograph(tmp_path / "image.tiff").shape == (3, 4, 5)


def test_the_middle_with_the_proportions_of_the_input_is_kept():
    columns = torch.arange(10).expand(3, 4, 10)
    assert middle(columns, (8, 8))[0, 0].tolist() == [3, 4, 5, 6]
    assert middle(columns.transpose(1, 2), (2, 2))[0, :, 0].tolist() == [3, 4, 5, 6]
    assert middle(columns, (2, 4))[0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_large_photograph_is_shrunk_with_antialiasing(explain, tmp_path):
    """Black and white lines, four to a pixel, become grey. Without antialiasing they would not."""
    lines = np.zeros((SIDE * 4, SIDE * 4, 3), dtype=np.uint8)
    lines[::2] = 255
    Image.fromarray(lines).save(tmp_path / "lines.png")
    Image.fromarray(np.full((SIDE, SIDE, 3), 127, dtype=np.uint8)).save(tmp_path / "grey.png")
    shrunk, grey = (explain([], path=tmp_path / name).probabilities for name in ("lines.png", "grey.png"))
    torch.testing.assert_close(shrunk, grey, rtol=0, atol=0.01)


# Classes


def test_the_number_of_classes_is_read_from_the_weights(network, weights, tmp_path):
    pickled = tmp_path / "weights.pth"
    torch.save({"state_dict": network[1].state_dict()}, pickled)
    assert head_sizes(weights) == head_sizes(pickled) == [3]


def test_the_likeliest_head_is_the_last_matrix(tmp_path):
    torch.save({"embedding": torch.ones(7, 2), "conv": torch.ones(9, 3, 1, 1), "head": torch.ones(5, 4), "bias": torch.ones(5)}, tmp_path / "w.pt")
    assert head_sizes(tmp_path / "w.pt") == [5, 7]


def test_names_of_classes_come_from_a_list_of_tables_or_of_words(classes, tmp_path):
    assert read_names(classes) == Names((("crane", "hoist", "n1"), ("jay", "blue jay", "n2"), ("crane", "bird", "n3")))
    (tmp_path / "plain.json").write_text('["cat", "dog"]')
    assert read_names(tmp_path / "plain.json").shown == ("cat", "dog")


@pytest.mark.parametrize(("wanted", "label"), [("1", 1), ("Jay", 1), ("blue jay", 1), ("n3", 2), ("hoist", 0)])
def test_a_class_is_found_by_number_and_by_any_of_its_names(classes, wanted, label):
    assert find_class(wanted, read_names(classes)) == label


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("3", "3 classes, 0 to 2"),
        ("-1", "3 classes, 0 to 2"),
        ("crane", "the name of classes 0 and 2"),
        ("blu jay", "no class of this network. Did you mean 'blue jay'?"),
    ],
)
def test_a_class_that_is_not_there_is_an_error_that_says_what_is(classes, wanted, words):
    with pytest.raises(InvalidValue, match=re.escape(words)):
        find_class(wanted, read_names(classes))


# Mistakes


def test_an_image_that_is_missing_or_damaged_is_named(image, tmp_path):
    with pytest.raises(DataError, match=r"there is no image .*gone\.jpg"):
        read_photograph(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.jpg is not an image, or is damaged"):
        read_photograph(tmp_path / "text.jpg")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:800])
    with pytest.raises(DataError, match=r"cut\.png cannot be read as an image"):
        read_photograph(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "resnet-mini"}, "given no weights, and the maps of an untrained network mean nothing"),
        ({"model": "resnet-mini", "untrained": True}, "how many classes"),
        ({"size": None}, "takes images of any size.\nSay the size"),
        ({"layer": "network.layer9"}, "no layer 'network.layer9'. Did you mean 'network.layer"),
        ({"layer": "network.fc"}, "--layer network.fc gives no feature map (B, C, h, w). The stages of this network do: network.layer1"),
        ({"target": "3"}, "3 classes, 0 to 2"),
        ({"explainers": ["far-from-mean"]}, "looks at other images before it explains one. Name a data set"),
        ({"classes": "1"}, "two classes or more"),
        ({"classes": "3", "dataset": "tiny"}, "--classes 3 names 3 classes, and the data set has 4"),
        ({"classes": "gone.json"}, "--classes gone.json: there is no such file"),
    ],
)
def test_what_cannot_be_done_is_said(explain, options, words):
    with pytest.raises(InvalidValue if "gone" not in words else DataError, match=re.escape(words)):
        explain(**options)


def test_weights_that_do_not_fit_are_refused_with_a_hint(explain, tmp_path):
    with pytest.raises(WeightsError, match=r"does not fit the model"):
        explain(classes="5")
    torch.save({"head.weight": torch.ones(5, 4)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"does not fit the model(.|\n)*--classes N, --size N"):
        explain(model={"name": "resnet-mini", "weights": str(tmp_path / "other.pt")})
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(WeightsError, match=r"text\.pt is .* file of weights"):
        explain(model={"name": "resnet-mini", "weights": str(tmp_path / "text.pt")})


def test_an_explainer_that_does_not_apply_is_named(explain, parts, monkeypatch):
    def refuse(*arguments):
        raise BenchError("not for this network")

    monkeypatch.setattr(parts.entry("explainer", "slope").factory, "__call__", refuse)
    with pytest.raises(BenchError, match=r"explainer 'slope': not for this network"):
        explain()


# The command


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Calls `bench explain` in a folder of its own: (exit code, what it printed, what it said about errors)."""
    points = [point for point in entry_points(group="bench") if point.name in (*FINISHED, "resnet_mini")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        result = CliRunner().invoke(main, ["explain", *map(str, arguments), "--size", str(SIDE), "--threads", "1"])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def test_the_command_writes_a_picture_and_says_what_was_seen(bench, image, weights, classes, tmp_path):
    code, printed, _ = bench(
        image, "--model", "resnet-mini", "--set", f"weights={weights}", "--classes", classes, "--explainers", "gradcam,random", "--target", "jay"
    )
    assert code == 0
    assert re.search(r"Picture: photo-maps\.png\nPredicted: \w+ \d+\.\d%, .*\nExplained: jay \(class 1\)\n", printed)
    assert re.search(r"gradcam +│ \d+\.\d\d +│ 1 +│ 1 ", printed)
    assert re.search(r"random +│ \d+\.\d\d +│ 0 +│ 0 ", printed)
    with Image.open(tmp_path / "photo-maps.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height


def test_parts_may_be_written_in_toml(bench, image, weights):
    model = f'{{name = "resnet-mini", weights = "{weights}"}}'
    code, printed, _ = bench(image, "--model", model, "--explainers", '["gradcam", {name = "random", as = "dice"}]', "--out", "maps/one.png")
    assert code == 0
    assert re.search(r"Picture: maps/one\.png\n(.|\n)*gradcam(.|\n)*dice", printed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet-mini", "--explainers", "gradcom"], "no explainer is called 'gradcom'. Did you mean 'gradcam'?"),
        (["--model", "resnet-minni"], "no model is called 'resnet-minni'. Did you mean 'resnet-mini'?"),
        (["--model", "resnet-mini"], "To see the maps all the same: --untrained"),
        (["--model", "{name ="], "neither a name nor TOML"),
        (["--model", "resnet-mini", "--set", "weight=x"], "no parameter 'weight'. Did you mean 'weights'?"),
        (["--model", "resnet-mini", "--out", "maps.jpg"], "the picture is a PNG. Write maps.png"),
        (["--model", "resnet-mini", "--out", "photo.png"], "is the image itself"),
    ],
)
def test_a_mistake_is_one_paragraph(bench, image, arguments, words):
    code, printed, said = bench(image, "--explainers", "random", *arguments)
    assert (code, printed) == (2, "")
    assert said.startswith("Error: ")
    assert words in " ".join(said.split())


def test_a_folder_that_cannot_be_written_is_said(bench, image, weights, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, said = bench(image, "--model", "resnet-mini", "--set", f"weights={weights}", "--explainers", "random", "--out", "file/x.png")
    assert code == 2
    assert "Error: file/x.png cannot be written" in said


def test_an_untrained_network_is_said_to_be_one(bench, image, monkeypatch):
    titles = []
    monkeypatch.setattr(explain_image, "side_by_side", lambda *arguments: titles.append(arguments[-1]))
    assert bench(image, "--model", "resnet-mini", "--classes", "3", "--untrained", "--explainers", "random")[0] == 0
    assert re.fullmatch(r"resnet-mini: what speaks for “class \d”, untrained", titles[0])


# Colours


def test_a_map_of_one_sign_goes_from_its_least_to_its_largest_value():
    place, strength, scale = figures.coloured(np.array([[1.0, 3.0], [2.0, 3.0]]))
    assert place.tolist() == [[0, 1], [0.5, 1]]
    assert (strength[0, 0], strength[0, 1]) == (0, 1)
    assert scale == figures.EVIDENCE


def test_a_map_of_both_signs_has_nothing_in_the_middle():
    place, strength, scale = figures.coloured(np.array([[-1.0, 0.0], [0.5, 1.0]]))
    assert place.tolist() == [[0, 0.5], [0.75, 1]]
    assert strength[0].tolist() == [1, 0]
    assert scale == figures.BOTH_SIGNS


def test_a_map_that_is_nothing_covers_nothing():
    assert not figures.coloured(np.zeros((2, 2)))[1].any()


@pytest.mark.parametrize("maps", [0, 1, 4, 7])
def test_any_number_of_maps_is_drawn(maps, tmp_path):
    overlays = [figures.Overlay(f"map {number}", np.eye(3) - number % 2, "1 pass") for number in range(maps)]
    figures.side_by_side(np.ones((30, 40, 3), dtype=np.float32), [("a", 0.7), ("b", 0.3)], overlays, tmp_path / "new" / "x.png", "title")
    assert (tmp_path / "new" / "x.png").stat().st_size > 1000
