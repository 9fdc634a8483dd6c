"""What a claim is: a statement of a paper, what it predicts, how that is measured, and the rule by which it holds.

`measure` does the costly part alone, and what it returns is kept. `judge` and `draw` are cheap and read nothing else, so
that another margin, another number and another figure measure nothing again.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from experiments.claims.data import keep
from experiments.statistics.rates import Fit, Slope, verdict

INF = float("inf")
Data = TypeVar("Data", bound=tuple)


class Number(NamedTuple):
    """A measured number with its 95 % interval over seeds or instances; ends equal it where nothing is random."""

    # center, low, high: in the quantity's units
    center: float
    low: float
    high: float
    undecided: str = ""  # why nothing may be concluded from it, in words; "" if it may
    # the range over which it was measured and is judged, in words, such as an exponent's; "" if it has none
    over: str = ""
    # of an exponent, the interval of the slope of its last levels, which must clear the margin too
    tail: tuple[float, float] | None = None


def exponent(found: Fit | Slope, unit: str) -> Number:
    """Returns the exponent of a power law as a number of a claim, which names its range in that unit."""
    first, last = found.range
    over = f"from {first:.2g} to {last:.2g} {unit}" if math.isfinite(first) else ""
    return Number(found.exponent, *found.interval, found.undecided, over, found.tail)


class Margin(NamedTuple):
    """Where a number must lie, stated before it is measured; ends may be infinite."""

    low: float = -INF
    high: float = INF


class Budget(NamedTuple):
    """How much a claim may compute, and where."""

    quick: bool  # a run of a minute or two
    folder: Path  # of this claim, for what it keeps to resume from
    say: Callable[[str], None] = lambda line: None  # takes the lines that a person should see

    def keep(self, name: str, kind: type[Data], compute: Callable[[], Data]) -> Data:
        """Returns what `compute` returns, or what it returned in a measurement of the same code that was interrupted.

        Whatever the part depends on beside the code and `quick` must show in its name.
        """
        return keep(self.folder, name, kind, compute, self.say)


class Table(NamedTuple):
    """Rows that a reader wants beside the numbers, each a dictionary from column to text or number."""

    title: str
    rows: list[dict[str, Any]]  # that a reader wants beside the numbers: column -> text or number


class Measurement(NamedTuple):
    """What was measured, as it is reported."""

    numbers: dict[str, Number]  # name -> number; those named in the claim's margins decide, the others are reported
    cost: dict[str, float]  # what it took, such as transitions, labels, gradient evaluations
    notes: tuple[str, ...] = ()  # sentences on what was seen, such as why a claim fails
    tables: tuple[Table, ...] = ()  # what does not fit into numbers


class Claim(NamedTuple):
    """A claim of the list in `experiments.claims`."""

    statement: str  # what is said, in one sentence
    source: str  # paper and place; *derived* where a paper does not say it
    prediction: str  # what the theory predicts, in words
    minutes: tuple[float, float]  # on two idle cores, quick and in full, said beforehand
    # budget -> what was computed, the costly part alone: a NamedTuple that `experiments.claims.data` can keep, of
    # the class with which the function is annotated
    measure: Callable[[Budget], Any]
    judge: Callable[[Any], Measurement]  # that -> numbers, cost, notes and tables
    draw: Callable[[Any], Figure] | None = None  # that -> what a reader looks at; None: there is no figure
    margins: dict[str, Margin] = {}  # noqa: RUF012  # number -> where it must lie. Empty: there is no verdict
    exact: bool = False  # nothing is sampled; otherwise Monte Carlo over seeds
    # of an assumption, which no measurement can prove: how the names of those numbers begin that are shares of
    # instances on which it is refuted. They decide instead of margins. "": the claim is no assumption
    refuting: str = ""


def judge(claim: Claim, numbers: dict[str, Number]) -> dict[str, str]:
    """Returns the verdict on each number that has a margin: *holds* if its interval lies inside, *fails* if outside.

    An exponent's tail must clear the margin too, for it to hold (`rates.verdict`). A share of instances that refute an
    assumption is *refuted* if it is above 0: one instance is enough, the assumption being one of every instance.
    """
    if claim.refuting:
        shares = {name: x for name, x in numbers.items() if name.startswith(claim.refuting)}
        return {name: "refuted" if x.low > 0 and not x.undecided else "not refuted" for name, x in shares.items()}
    found = {}
    for name, margin in claim.margins.items():
        number = numbers[name]
        sound = math.isfinite(number.center) and number.low <= number.high and not number.undecided  # false for NaN
        found[name] = verdict((number.low, number.high), *margin, number.tail) if sound else "not decided"
    return found


def together(verdicts: dict[str, str]) -> str:
    """Returns the claim's verdict: it fails, or is refuted, if a number is, and holds if all do; *reported* without any."""
    by_rank = ("fails", "not decided", "refuted", "not refuted", "holds")
    return next((one for one in by_rank if one in verdicts.values()), "reported")
