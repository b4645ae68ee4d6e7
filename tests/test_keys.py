"""Content keys: one text for one value, and nothing that has no place in it."""

import hashlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.keys import canonical, derived_seed, file_digest, key

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_the_canonical_text_is_sorted_and_without_spaces():
    assert canonical({"b": [1, 2.0, True, None], "a": "ü"}) == '{"a":"ü","b":[1,2.0,true,null]}'


def test_a_key_is_the_sha256_of_the_canonical_text():
    assert key({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_a_value_that_went_through_json_has_the_same_key(value):
    assert key(json.loads(json.dumps(value))) == key(value)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), VALUES, min_size=2, max_size=5))
def test_the_order_of_names_changes_no_key(value):
    assert key(dict(reversed(value.items()))) == key(value)


def test_a_tuple_is_a_list():
    assert key((1, (2, 3))) == key([1, [2, 3]])


def test_a_whole_float_is_not_an_int_and_true_is_not_one():
    assert len({key(1), key(1.0), key(True), key("1")}) == 4


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [lambda number: number, lambda number: {"a": [{"b": number}]}, lambda number: (1, (number,))])
def test_what_is_no_number_is_refused_wherever_it_is(number, place):
    with pytest.raises(ValueError, match="cannot be part of a key"):
        key(place(number))


def test_names_that_are_no_text_are_refused():
    """json would write 1 and "1" alike."""
    with pytest.raises(TypeError, match="1, which is not text"):
        key({"a": {1: 2}})


def test_what_is_no_json_is_refused():
    with pytest.raises(TypeError):
        key({"a": {1, 2}})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers() | st.text(), max_size=4))
def test_a_derived_seed_is_one_that_generators_take(parts):
    assert 0 <= derived_seed(*parts) < 2**63


def test_a_derived_seed_depends_on_every_part_and_on_their_places():
    assert derived_seed(0, "order", 1) == derived_seed(0, "order", 1)
    assert (
        len({derived_seed(0, "order", 1), derived_seed(1, "order", 0), derived_seed(0, "crop", 1), derived_seed(0, "order1"), derived_seed(0)}) == 5
    )


def test_a_files_digest_is_that_of_its_content(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(b"weights")
    assert file_digest(tmp_path / "one") == file_digest(tmp_path / "other") == "sha256:" + hashlib.sha256(b"weights").hexdigest()
