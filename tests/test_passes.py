"""What is gained against what it costs: which networks stand in the figure, which are unbeaten, and boards at equal passes."""

import xml.etree.ElementTree as ET

import pytest
from synthetic import line, part, published

from bench.leaderboard import pages, passes
from bench.leaderboard.passes import Point, unbeaten
from bench.leaderboard.tables import boards

COST = {**part("training-passes"), "higher_is_better": False, "category": "cost", "unit": "passes/image", "per_image": False}
REACHED = {"none": (90.0, 2.0), "mixup": (92.0, 2.0), "edda": (95.0, 5.0), "lpa3 & <co>": (94.0, 18.0)}


def lines(reached=REACHED, seeds=(0, 1), recipe=None):
    about = {"recipe": recipe} if recipe else {}
    found = []
    for augmenter, (value, cost) in reached.items():
        for seed in seeds:
            found.append(line(value + seed, augmenter=augmenter, seed=seed, **about))
            found.append(line(cost, augmenter=augmenter, seed=seed, metric=COST, interval=None, **about))
    return found


def board(*args, **options):
    (found,) = boards(lines(*args, **options))
    return found


def point(name, spent, reached):
    return Point(name, spent, reached, None)


def test_unbeaten_is_what_nothing_as_cheap_is_better_than():
    plain, mixup, edda, lpa3 = (point(name, spent, reached) for name, (reached, spent) in REACHED.items())
    assert unbeaten([lpa3, edda, mixup, plain], higher_is_better=True) == [mixup, edda]
    assert unbeaten([lpa3, edda, mixup, plain], higher_is_better=False) == [plain]


def test_of_equally_good_ones_the_cheaper_is_unbeaten():
    assert [each.name for each in unbeaten([point("dear", 3, 50), point("cheap", 2, 50)], True)] == ["cheap"]


def test_a_figure_has_every_network_at_its_place():
    ((name, figure),) = passes.against_passes(board(), "scenes-1").items()
    assert name == "scenes-1-passes-accuracy.svg"
    tree = ET.fromstring(figure)
    circles = [node.attrib for node in tree.iter() if node.tag.endswith("circle")]
    texts = [node.text for node in tree.iter() if node.tag.endswith("text")]
    assert [text for text in texts if text in REACHED] == ["edda", "lpa3 & <co>", "mixup", "none"]  # By what they reached.
    x, y = ([float(circle[axis]) for circle in circles] for axis in ("cx", "cy"))
    assert y == sorted(y)
    assert x[2] == x[3] < x[0] < x[1]  # mixup, none, edda, lpa3
    assert (x[0] - x[2]) / (x[1] - x[2]) == pytest.approx(1.3219 / 3.1699, abs=1e-3)  # log2 of 5/2 and of 18/2
    assert ["class" not in circle for circle in circles] == [True, False, True, False]  # Filled: edda and mixup.


def test_the_same_lines_make_the_same_bytes():
    assert passes.against_passes(board(), "a") == passes.against_passes(board(), "a")


@pytest.mark.parametrize(
    "changed",
    [
        {"reached": {"none": (90.0, 2.0), "edda": (95.0, 5.0)}},  # Too few.
        {"reached": {"none": (90.0, 2.0), "mixup": (91.0, 2.0), "cutmix": (92.0, 2.0)}},  # All cost the same.
        {"recipe": {**line()["recipe"], "equal_passes": True}},
    ],
    ids=["two networks", "one cost", "equal passes"],
)
def test_there_is_no_figure_where_it_would_show_nothing(changed):
    assert passes.against_passes(board(**changed), "a") == {}


def test_there_is_no_figure_where_costs_were_not_measured():
    (found,) = boards(each for each in lines() if each["metric"]["category"] != "cost")
    assert passes.against_passes(found, "a") == {}


def test_a_network_without_one_of_the_numbers_or_some_of_the_seeds_is_left_out():
    some = [each for each in lines({**REACHED, "late": (99.0, 3.0)}) if (each["augmenter"]["name"], each["seed"]) != ("late", 1)]
    (found,) = boards([*some, line(97.0, augmenter="uncosted", seed=0), line(97.0, augmenter="uncosted", seed=1)])
    accuracy, cost = (next(column for column in found.columns if column.category == category) for category in ("prediction", "cost"))
    assert {each.name for each in passes.points_of(found, accuracy, cost)} == set(REACHED)


def test_a_page_shows_the_figure_and_the_writer_removes_it_when_its_lines_are_gone(tmp_path):
    folder = published(tmp_path / "data", lines())
    pages.write(folder, tmp_path)
    assert "](figures/scenes-1-passes-accuracy.svg)" in (tmp_path / "scenes.md").read_text()
    pages.check(folder, tmp_path)
    published(folder, [each for each in lines() if each["metric"]["category"] != "cost"])
    pages.write(folder, tmp_path)
    assert not list((tmp_path / "figures").glob("*-passes-*"))


def test_a_board_at_equal_passes_says_so():
    recipe = {**line()["recipe"], "equal_passes": True}
    (equal,) = boards(lines(recipe=recipe))
    assert "for the passes of 2 plain epochs, batches of 16" in pages.setting(equal)
    assert "for 2 epochs, batches of 16" in pages.setting(board())
    assert len(boards([*lines(), *lines(recipe=recipe)])) == 2  # They are never ranked together.


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (91.2, 96.8, [92, 94, 96]), (0.31, 0.34, [0.31, 0.32, 0.33, 0.34]), (5, 5, [5])],
)
def test_a_scale_has_round_numbers(low, high, marks):
    assert passes.round_numbers(low, high) == pytest.approx(marks)


def test_names_do_not_touch_and_stay_in_the_plot():
    assert passes.apart([10, 12, 50], 100) == [10, 26, 50]
    assert passes.apart([90, 95, 99], 100) == [68, 84, 100]
