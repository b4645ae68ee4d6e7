"""Label noise: transition matrices written out by hand, flips as often as they say, and each kind from its seed alone."""

import numpy as np
import pytest
import torch

from bench import contexts, testing
from bench.errors import DataError, InvalidValue
from bench.interfaces import ArrayData
from bench.registry import Registry
from bench_plugins import label_noise
from bench_plugins.label_noise import Human, Instance, PairFlip, Symmetric, SymmetricInclusive, features, instance_chances, pick, truncated_normal


class Lazy:
    """A data set that is no array: its images come one by one."""

    def __init__(self, data):
        self.info, self.data = data.info, data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


KINDS = [Symmetric(0.6), SymmetricInclusive(0.6), PairFlip(0.6)]


def info(classes=4, **changes):
    return testing.dataset_info(classes, **changes)


def data(images, labels, **facts):
    return ArrayData(info(**{"mean": (0.5,) * images.shape[1], "std": (0.25,) * images.shape[1], **facts}), images, labels)


def stream(*parts):
    return contexts.generator("noise", *parts)


def observed(noise, classes, count):
    """(C, C) the share of each clean class that came out as each noisy one, from `count` labels a class."""
    labels = torch.arange(classes).repeat_interleave(count)
    noisy = noise(labels, info(classes), stream())
    return torch.stack([(noisy[labels == label]).bincount(minlength=classes) for label in range(classes)]) / count


def test_symmetric_noise_gives_the_rate_to_the_other_classes():
    wanted = [[0.4, 0.2, 0.2, 0.2], [0.2, 0.4, 0.2, 0.2], [0.2, 0.2, 0.4, 0.2], [0.2, 0.2, 0.2, 0.4]]
    torch.testing.assert_close(Symmetric(0.6).transition(info()), torch.tensor(wanted, dtype=torch.float64))


def test_inclusive_symmetric_noise_shares_the_rate_among_all_classes():
    wanted = [[0.55, 0.15, 0.15, 0.15], [0.15, 0.55, 0.15, 0.15], [0.15, 0.15, 0.55, 0.15], [0.15, 0.15, 0.15, 0.55]]
    torch.testing.assert_close(SymmetricInclusive(0.6).transition(info()), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(
    ("classes", "rate", "wrong"),
    [(100, 0.8, 0.792), (100, 0.9, 0.891), (100, 0.5, 0.495), (10, 0.8, 0.72), (10, 0.9, 0.81), (10, 0.5, 0.45)],
)
def test_the_inclusive_rates_of_the_published_runs_leave_these_shares_wrong(classes, rate, wrong):
    transition = SymmetricInclusive(rate).transition(info(classes))
    assert 1 - transition.diagonal() == pytest.approx([wrong] * classes)


def test_pairs_flip_to_the_next_class_and_the_last_to_the_first():
    wanted = [[0.75, 0.25, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]]
    torch.testing.assert_close(PairFlip(0.25).transition(info(3)), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("noise", KINDS, ids=lambda noise: noise.name)
def test_labels_flip_as_often_as_the_matrix_says(noise):
    count = 20_000
    transition = noise.transition(info())
    error = (transition * (1 - transition) / count).sqrt()
    assert ((observed(noise, 4, count) - transition).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("noise", [*KINDS, Instance(0.5)], ids=lambda noise: noise.name)
def test_the_same_stream_gives_the_same_labels_and_the_clean_ones_are_left_alone(noise):
    labels = torch.arange(4).repeat(200)
    more = {"images": data(torch.rand(800, 1, 2, 2, generator=stream("images")), labels)} if isinstance(noise, Instance) else {}
    first, again, other = (noise(labels, info(), stream(part), **more) for part in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert labels.equal(torch.arange(4).repeat(200))
    assert first.dtype == labels.dtype
    assert first.min() >= 0
    assert first.max() < 4


def test_no_noise_changes_nothing_and_full_noise_everything():
    labels = torch.arange(4).repeat(50)
    for kind in (Symmetric, PairFlip):
        assert kind(0.0)(labels, info(), stream()).equal(labels)
        assert (kind(1.0)(labels, info(), stream()) != labels).all()
    assert SymmetricInclusive(0.0)(labels, info(), stream()).equal(labels)
    assert PairFlip(1.0)(labels, info(), stream()).equal((labels + 1) % 4)


def test_no_labels_are_no_labels():
    assert Symmetric(0.5)(torch.zeros(0, dtype=torch.long), info(), stream()).tolist() == []


def test_a_choice_falls_into_the_stretch_of_its_class():
    chances = torch.tensor([[0.0, 0.5, 0.25, 0.25, 0.0]]).expand(6, 5)
    choice = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 0.999999])
    assert pick(chances, choice).tolist() == [1, 1, 2, 2, 3, 3]


def test_rates_follow_a_normal_distribution_cut_to_nought_and_one():
    rates = truncated_normal(0.4, 0.1, 50_000, stream())  # Cut at four deviations: all but whole.
    assert rates.mean().item() == pytest.approx(0.4, abs=0.002)
    assert rates.std().item() == pytest.approx(0.1, abs=0.002)
    half = truncated_normal(0.0, 0.1, 50_000, stream())  # The right half, whose mean is 0.1 * sqrt(2 / pi)
    assert half.min() >= 0
    assert half.mean().item() == pytest.approx(0.1 * (2 / np.pi) ** 0.5, abs=0.002)


def test_instance_chances_by_hand():
    """Scores 0 and ln 3 share a rate of 0.4 as 1 to 3; the own class, whatever its score, keeps 0.6."""
    chances = instance_chances(torch.tensor([[0.0, 50.0, np.log(3)]]), 1, torch.tensor([0.4], dtype=torch.float64))
    assert chances.tolist() == [pytest.approx([0.1, 0.6, 0.3])]


def test_instance_noise_follows_the_formula_image_by_image():
    classes, count = 3, 60
    images, labels = torch.rand(count, 1, 2, 2, generator=stream("images")), torch.randint(3, (count,), generator=stream("labels"))
    known = data(images, labels, classes=classes, mean=(0.4,), std=(0.2,))
    generator = stream()
    rates = truncated_normal(0.5, 0.1, count, generator)
    choice = torch.rand(count, generator=generator, dtype=torch.float64)
    weights = [torch.randn(4, classes, generator=generator) for _ in range(classes)]
    for row, noisy in enumerate(Instance(0.5)(labels, known.info, stream(), images=known).tolist()):
        own = int(labels[row])
        scores = ((images[row].flatten() - 0.4) / 0.2 @ weights[own]).double()
        shares = [0.0 if each == own else float(scores[each].exp()) for each in range(classes)]
        chances = np.array([1 - rates[row] if each == own else rates[row] * shares[each] / sum(shares) for each in range(classes)], float)
        below = chances[:noisy].sum()
        assert below - 1e-6 <= choice[row] <= below + chances[noisy] + 1e-6


def test_instance_noise_has_the_mean_rate_and_depends_on_the_image():
    labels = torch.zeros(4000, dtype=torch.long)
    images = torch.zeros(4000, 3, 4, 4, dtype=torch.uint8)
    images[2000:, :, :2] = 255
    noisy = Instance(0.3)(labels, info(10), stream(), images=data(images, labels))
    assert (noisy != 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    halves = [half[half != 0].bincount(minlength=10) / (half != 0).sum() for half in (noisy[:2000], noisy[2000:])]
    assert (halves[0] - halves[1]).abs().sum() > 0.5


def test_neither_chunks_nor_the_way_images_are_kept_change_anything(monkeypatch):
    labels = torch.arange(3).repeat(30)
    images = data(torch.rand(90, 1, 2, 2, generator=stream("images")), labels)
    whole = [Symmetric(0.5)(labels, info(3), stream()), Instance(0.5)(labels, info(3), stream(), images=images)]
    monkeypatch.setattr(label_noise, "CHUNK", 7)
    parts = [Symmetric(0.5)(labels, info(3), stream()), Instance(0.5)(labels, info(3), stream(), images=Lazy(images))]
    assert all(map(torch.equal, whole, parts))


def test_large_images_are_averaged_down_before_they_decide():
    plain, rows = {"mean": (0.0,), "std": (1.0,)}, torch.tensor([1, 0])
    small = torch.rand(2, 1, 32, 32, generator=stream())
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(features(data(large, rows, **plain), rows), small[rows].flatten(1))
    assert features(data(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), rows, **plain), torch.tensor([0])).tolist() == [[1, 1, 1, 1]]


def test_images_and_labels_have_to_be_of_one_number():
    with pytest.raises(DataError, match="3 images for 2 labels"):
        Instance()(torch.tensor([0, 1]), info(), stream(), images=data(torch.zeros(3, 1, 2, 2), torch.zeros(3)))


@pytest.mark.parametrize("form", ["csv", "confusion", "labels"])
def test_a_confusion_matrix_is_read_from_any_of_its_forms(tmp_path, form):
    if form == "csv":
        (file := tmp_path / "people.csv").write_text("8, 2, 0\n0, 5, 0\n1, 1, 2\n")
    elif form == "confusion":
        np.savez(file := tmp_path / "people.npz", confusion=[[0.8, 0.2, 0], [0, 1, 0], [0.25, 0.25, 0.5]])
    else:
        pairs = [(0, 0)] * 4 + [(0, 1)] + [(1, 1)] + [(2, 0), (2, 1), (2, 2), (2, 2)]
        clean, noisy = np.array(pairs[::-1], np.uint8).T
        np.savez(file := tmp_path / "people.npz", clean_label=clean, noisy_label=noisy, other=clean)
    wanted = torch.tensor([[0.8, 0.2, 0], [0, 1, 0], [0.25, 0.25, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(Human(file).transition(info(3)), wanted)


def test_people_err_as_often_as_their_matrix_says(tmp_path):
    (file := tmp_path / "people.csv").write_text("8,2,0\n0,5,0\n1,1,2\n")
    found = observed(Human(file), 3, 5000)
    assert found[0].tolist() == pytest.approx([0.8, 0.2, 0], abs=0.025)
    assert found[1].tolist() == [0, 1, 0]
    assert found[2].tolist() == pytest.approx([0.25, 0.25, 0.5], abs=0.03)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1,2\n3,4\n", "2 x 2; the data have 3 classes"),
        ("1,0,0\n0,1,0\n0,0,0\n", "nothing in row 2"),
        ("1,0,0\n0,1,0\n0,-1,2\n", "negative or missing"),
        ("1,0,0\n0,1,0\n0,nan,2\n", "negative or missing"),
        ("a,b,c\n", "cannot be read as numbers"),
    ],
)
def test_a_table_that_is_no_confusion_matrix_is_refused(tmp_path, content, words):
    (file := tmp_path / "people.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        Human(file).transition(info(3))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"other": [1]}, "confusion, or two"),
        ({"clean_label": [0, 1]}, "confusion, or two"),
        ({"clean_label": [0, 1], "noisy_label": [0]}, "list the same images"),
        ({"clean_label": [0, 3], "noisy_label": [0, 1]}, "from 0 to 2"),
        ({"clean_label": [0.0, 1.0], "noisy_label": [0, 1]}, "from 0 to 2"),
        ({"clean_label": [0, 1], "noisy_label": [-1, 1]}, "from 0 to 2"),
    ],
)
def test_labels_that_cannot_be_counted_are_refused(tmp_path, arrays, words):
    np.savez(file := tmp_path / "people.npz", **{name: np.array(values) for name, values in arrays.items()})
    with pytest.raises(DataError, match=words):
        Human(file).transition(info(3))


@pytest.mark.parametrize("content", [None, b"rubbish", b"PK\x03\x04rubbish"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "people.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"people\.npz"):
        Human(file).transition(info(3))


@pytest.mark.parametrize("noise", [*KINDS, Instance()], ids=lambda noise: noise.name)
@pytest.mark.parametrize(("facts", "words"), [({"multi_label": True}, "several labels"), ({"classes": 1}, "two classes")])
def test_data_that_cannot_be_flipped_are_refused(noise, facts, words):
    more = {"images": data(torch.zeros(2, 1, 2, 2), torch.zeros(2))} if isinstance(noise, Instance) else {}
    with pytest.raises(InvalidValue, match=words):
        noise(torch.zeros(2, dtype=torch.long), info(**facts), stream(), **more)


def test_the_rate_is_written_after_the_colon():
    registry = Registry()
    label_noise.register_noises(lambda factory: registry.add("noise", factory, name=None, defaults={}, plugin="label_noise", distribution="test"))
    assert registry.resolve("noise", "symmetric:0.8").part == Symmetric(0.8)
    with pytest.raises(InvalidValue, match="rate"):
        registry.resolve("noise", "pairflip:1.2")


def test_a_matrix_file_enters_the_key_by_its_content(tmp_path):
    registry = Registry()
    label_noise.register_noises(lambda factory: registry.add("noise", factory, name=None, defaults={}, plugin="label_noise", distribution="test"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("1,0\n0,1\n")
    identities = [registry.resolve("noise", f"human:{tmp_path / name}.csv").identity() for name in ("a", "b")]
    assert identities[0] == identities[1]
