"""Intervals, against values from tables and by hand."""

import math

import numpy as np
import pytest

from bench import intervals


def test_the_interval_over_seeds_is_students():
    """Mean 2, standard deviation 1, n = 3; the 97.5 % quantile of t with 2 degrees of freedom is 4.303 in any table."""
    low, high = intervals.over_seeds([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)


def test_two_seeds_have_the_widest_quantile():
    """Mean 0.5, standard error 0.5, t with 1 degree of freedom 12.706."""
    assert intervals.over_seeds([0.0, 1.0]) == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)


def test_seeds_that_agree_have_an_interval_of_no_width():
    assert intervals.over_seeds([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))


def test_five_seeds_reach_2_776_standard_errors():
    """Mean 3, standard deviation √2.5."""
    low, high = intervals.over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (high - low) / 2 == pytest.approx(2.776445 * math.sqrt(2.5 / 5), abs=1e-5)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_less_than_two_seeds_have_no_interval(values):
    assert intervals.over_seeds(values) is None


@pytest.mark.parametrize("values", [[], [1.0]])
def test_less_than_two_images_have_no_interval(values):
    assert intervals.over_images(np.array(values)) is None
    assert intervals.over_images_of(lambda rows: float(rows.mean()), np.array(values)) is None


def test_images_that_agree_have_an_interval_of_no_width():
    assert intervals.over_images(np.full(20, 0.7)) == pytest.approx((0.7, 0.7), abs=1e-12)


def test_the_interval_over_images_is_about_two_standard_errors_to_each_side():
    values = np.arange(400) / 400  # standard deviation 0.2887, standard error 0.01443
    low, high = intervals.over_images(values)
    assert low == pytest.approx(values.mean() - 1.96 * 0.01443, abs=0.003)
    assert high == pytest.approx(values.mean() + 1.96 * 0.01443, abs=0.003)


def test_the_bootstrap_of_two_values_reaches_from_one_to_the_other():
    """Of two images, a quarter of all samples takes the first twice and a quarter the second twice."""
    assert intervals.over_images(np.array([0.0, 1.0])) == (0.0, 1.0)


def test_the_same_images_have_the_same_interval_every_time():
    values = np.random.default_rng(3).random(50)
    assert intervals.over_images(values) == intervals.over_images(values.copy())
    assert intervals.over_images(values) != intervals.over_images(values, seed=1)


def test_a_number_that_is_no_mean_has_the_interval_of_its_own_aggregate():
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    low, high = intervals.over_images_of(lambda part: float(np.max(part)), rows)
    assert high == 10.0
    assert low in (1.0, 2.0, 3.0)
    assert intervals.over_images_of(lambda part: 5.0, rows) == (5.0, 5.0)


def test_what_resampling_adds_to_a_biased_number_is_taken_off_it():
    """The largest of five is the largest of all: what the resamples fall short of it, the truth is expected to lie above it."""
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    low, high = intervals.over_images_of(lambda part: float(np.max(part)), rows)
    assert intervals.over_images_of(lambda part: float(np.max(part)), rows, biased=True) == (2 * 10 - high, 2 * 10 - low)


def test_a_number_that_cannot_be_negative_has_no_negative_interval():
    """|mean| of +1 and -1 in equal numbers is 0, and every resample's is above."""
    rows = np.array([[1.0], [-1.0]] * 5)
    assert intervals.over_images_of(lambda part: abs(float(part.mean())), rows, biased=True) == (0.0, 0.0)
    low, _ = intervals.over_images_of(lambda part: float(part.mean()), rows, biased=True)
    assert low < 0


def test_resamples_in_which_a_number_cannot_be_had_are_left_out():
    rows = np.arange(10.0)[:, None]
    found = intervals.over_images_of(lambda part: math.nan if part.max() == 9 else 1.0, rows)
    assert found == (1.0, 1.0)
    assert intervals.over_images_of(lambda part: math.nan, rows) is None
