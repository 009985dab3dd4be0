"""Refused arguments: their words, and what is taken."""

from fractions import Fraction

import numpy as np
import pytest

from lightning_weightwatch._arguments import choice, flag, patterns, refuse, tag_prefix, whole_number


def whole(value, **options):
    return whole_number("Saw", "teeth", value, **{"least": 1, "remedy": "Use 24 for wood."} | options)


@pytest.mark.parametrize(("wrong_type", "error"), [(False, ValueError), (True, TypeError)])
def test_the_words_are_who_argument_value_expectation_and_remedy(wrong_type, error):
    with pytest.raises(error) as raised:
        refuse("Saw", "teeth", "many", "a number", "Count them.", wrong_type=wrong_type)
    assert str(raised.value) == "Saw(teeth='many'): expected a number. Count them."


@pytest.mark.parametrize("value", [1, 24, np.int64(24), np.uint8(3), 10**30], ids=repr)
def test_whole_numbers_are_taken_and_made_plain(value):
    assert whole(value) == value
    assert type(whole(value)) is int


@pytest.mark.parametrize("value", [True, False, np.True_, 1.0, np.float32(2), "3", None, [1], Fraction(3)], ids=repr)
def test_what_is_no_whole_number_is_a_wrong_type(value):
    with pytest.raises(TypeError, match=r"expected a whole number of at least 1\. Use 24 for wood\."):
        whole(value)


@pytest.mark.parametrize(("value", "options"), [(0, {}), (-1, {}), (11, {"most": 10}), (0, {"nothing": True})])
def test_out_of_range_is_a_wrong_value(value, options):
    with pytest.raises(ValueError, match=f"teeth={value}"):
        whole(value, **options)


def test_none_is_taken_where_it_is_allowed_and_then_named():
    assert whole(None, nothing=True) is None
    with pytest.raises(TypeError, match="a whole number from 1 to 9 or None"):
        whole("x", nothing=True, most=9)


@pytest.mark.parametrize("value", ["c", True, 1.0, None, "", ["a"]], ids=repr)
def test_a_choice_must_equal_an_option_and_be_of_its_type(value):
    with pytest.raises(ValueError, match=r"expected one of 'a', 1\. Use a\."):
        choice("Saw", "kind", value, ("a", 1), "Use a.")


@pytest.mark.parametrize("value", ["a", 1])
def test_an_option_is_taken(value):
    assert choice("Saw", "kind", value, ("a", 1), "") == value


@pytest.mark.parametrize("value", [0, 1, "yes", None, np.True_], ids=repr)
def test_a_flag_is_a_bool_and_nothing_like_one(value):
    with pytest.raises(TypeError, match="expected True or False"):
        flag("Saw", "sharp", value, "Use True.")


def test_flags_pass():
    assert flag("Saw", "sharp", True, "") is True
    assert flag("Saw", "sharp", False, "") is False


@pytest.mark.parametrize("value", [["*.bias"], ("a", "b c"), []], ids=repr)
def test_patterns_become_a_tuple(value):
    assert patterns("Saw", "only", value) == tuple(value)


@pytest.mark.parametrize("value", ["*", b"*", None, {"a"}, 3, [3], ["a", None]], ids=repr)
def test_a_bare_string_or_anything_but_texts_is_no_list_of_patterns(value):
    with pytest.raises(TypeError, match="expected a list of non-empty parameter name patterns"):
        patterns("Saw", "only", value)


@pytest.mark.parametrize("value", [[""], ["a", "  "]], ids=repr)
def test_an_empty_pattern_is_refused(value):
    with pytest.raises(ValueError, match="non-empty"):
        patterns("Saw", "only", value)


@pytest.mark.parametrize("value", ["health", "my run-2.0_b"])
def test_a_prefix_every_logger_takes_is_taken(value):
    assert tag_prefix("Saw", "prefix", value) == value


@pytest.mark.parametrize("value", ["", " ", "a/b", "a:b", "größe", "a\n"], ids=repr)
def test_a_prefix_some_logger_refuses_is_refused(value):
    with pytest.raises(ValueError, match="prefix"):
        tag_prefix("Saw", "prefix", value)


def test_a_prefix_is_text():
    with pytest.raises(TypeError, match="expected text"):
        tag_prefix("Saw", "prefix", 3)
