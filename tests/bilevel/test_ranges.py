"""Ranges: the words that a refusal shows, and the values that it refuses."""

import math
from typing import Annotated, NamedTuple

import pytest

from bilevel.ranges import (
    MOST,
    BelowOne,
    Count,
    NotNegative,
    Positive,
    PositiveOrInf,
    Share,
    check,
    counts,
    range_of,
)

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (Count, [1, MOST], [0, -3, MOST + 1]),
        (Annotated[int, counts(2, 5)], [2, 5], [1, 6]),
        (Positive, [1e-300, 3.0], [0.0, -1.0, INF, NAN]),
        (PositiveOrInf, [1e-300, INF], [0.0, -1.0, NAN]),
        (NotNegative, [0.0, 3.0], [-1e-300, INF, NAN]),
        (BelowOne, [0.0, 0.999], [-0.1, 1.0, NAN]),
        (Share, [0.001, 1.0], [0.0, 1.001, NAN]),
    ],
)
def test_a_range_holds_its_ends_as_its_words_say(kind, inside, outside):
    test = range_of(kind).test
    assert [x for x in inside if not test(x)] == []
    assert [x for x in outside if test(x)] == []


def test_the_words_of_a_range_say_what_is_required():
    assert range_of(Count).required == "a whole number, at least 1 and at most 1048576"
    assert range_of(PositiveOrInf).required == "a number above 0, or inf"


def test_what_carries_no_range_has_none():
    assert range_of(int) is None
    assert range_of(Annotated[int, "a count"]) is None


class Sizes(NamedTuple):
    """Two numbers with ranges and a text without."""

    rows: Count = 3
    share: Share = 0.5
    name: str = ""


def test_a_record_is_refused_by_its_first_field_out_of_range_and_taken_otherwise():
    check(Sizes())
    check(Sizes(rows=1, share=1.0, name="any"))
    with pytest.raises(ValueError, match=r"^rows is 0; required: a whole number, at least 1 and at most 1048576$"):
        check(Sizes(rows=0, share=2.0))
    with pytest.raises(ValueError, match=r"^share is 2.0; required: a number in \(0, 1\]$"):
        check(Sizes(share=2.0))
