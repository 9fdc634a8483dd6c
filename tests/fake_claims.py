"""Two claims in place of the papers', for tests of the runner, of the command and of what is published."""

import sys
import types
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.claims import CLAIMS, runner
from experiments.claims.claim import INF, Claim, Margin, Measurement, Number, Table

NAMES = ("P0.one", "P0.two")


class Data(NamedTuple):
    """What the two measure."""

    value: np.ndarray


def measurement(found):
    """What is judged of it: a number with a margin, and one without interval."""
    value = float(found.value)
    numbers = {"x": Number(value, value, value), "y": Number(0, -INF, INF, "never")}
    table = Table("A table", [{"seed": 1, "gap": 0.25, "ends": [0.1, INF]}])
    return Measurement(numbers, {"transitions": 12345.0}, ("a < b",), (table,))


class Claims:
    """The two, and what happened to them.

    Attributes:
        measured, judged, drawn: name -> how often.
        codes: what the digests of their code are, of `measured` and of `reported`.
    """

    def __init__(self):
        self.measured, self.judged, self.drawn = (dict.fromkeys(NAMES, 0) for _ in range(3))
        self.codes = {"measured": "m", "reported": "r"}

    def claim(self, name, value):
        """The claim of that name, which holds for 1 and fails for 2."""

        def measure(budget) -> Data:
            self.measured[name] += 1
            budget.say("half")
            return Data(np.array(value))

        def judge(found):
            self.judged[name] += 1
            return measurement(found)

        def draw(found):
            self.drawn[name] += 1
            return Figure()

        margins = {"x": Margin(0.5, 1.5)}
        return Claim("A < B & C.", "a paper", "one", (0.1, 0.2), measure, judge, draw, margins)

    def change(self, name, **fields):
        """Replaces fields of a claim."""
        module = sys.modules[f"experiments.claims.{name.lower()}"]
        module.CLAIM = module.CLAIM._replace(**fields)

    def of(self, name):
        """The claim of that name, as it is now."""
        return sys.modules[f"experiments.claims.{name.lower()}"].CLAIM


def only_claims(monkeypatch):
    """Yields the two claims, which are the only ones that there are until it goes on."""
    found = Claims()
    package = types.ModuleType("experiments.claims.p0")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for i, name in enumerate(NAMES):
        module = types.ModuleType(f"experiments.claims.{name.lower()}")
        module.CLAIM = found.claim(name, 1.0 + i)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(runner, "digest", lambda *places: found.codes["measured" if len(places) == 1 else "reported"])
    real = list(CLAIMS)
    CLAIMS[:] = NAMES
    yield found
    CLAIMS[:] = real
