"""Ranges of numbers, as types: a record says in its annotations what its fields may be.

`Annotated[int, Range(...)]` is an int to everybody but those who look: `check` here, and the command line, which shows the
same words.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_type_hints

MOST = 2**20  # of anything that is counted, where nothing else is said


class Range(NamedTuple):
    """What a value must be, in words, and the test of it."""

    required: str
    test: Callable[[Any], bool]


def counts(least: int = 1, most: int = MOST) -> Range:
    """The whole numbers between `least` and `most`."""
    return Range(f"a whole number, at least {least} and at most {most}", lambda x: least <= x <= most)


Count = Annotated[int, counts()]
Positive = Annotated[float, Range("a finite number above 0", lambda x: 0 < x < float("inf"))]
PositiveOrInf = Annotated[float, Range("a number above 0, or inf", lambda x: x > 0)]
NotNegative = Annotated[float, Range("a finite number, at least 0", lambda x: 0 <= x < float("inf"))]
BelowOne = Annotated[float, Range("a number in [0, 1)", lambda x: 0 <= x < 1)]
Share = Annotated[float, Range("a number in (0, 1]", lambda x: 0 < x <= 1)]


def range_of(annotation: Any) -> Range | None:
    """The range that an annotation carries; None if it carries none."""
    return next((x for x in getattr(annotation, "__metadata__", ()) if isinstance(x, Range)), None)


def check(record: Any) -> None:
    """Raises ValueError for the first field of a NamedTuple of static numbers that is out of its range."""
    for name, annotation in get_type_hints(type(record), include_extras=True).items():
        value, bounds = getattr(record, name), range_of(annotation)
        if bounds is not None and not bounds.test(value):
            raise ValueError(f"{name} is {value}; required: {bounds.required}")
