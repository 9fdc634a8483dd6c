"""Write the figures, summary and report of a run folder anew, from its own files, and print its table.

bilevel report runs/gridworld-bilevel-0123456789
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments.files import read_json
from experiments.output import Voice
from experiments.runs.driver import report
from experiments.settings.parsing import parse


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What is reported."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]] = ""
    """The run's folder."""


def main(arguments: Sequence[str], voice: Voice) -> int:
    """Reports the run that the arguments name; the exit code."""
    options = parse(ReportOptions(), arguments, "report", __doc__, "one run folder, as in bilevel report runs/NAME")
    page = report(Path(options.run), voice.say)
    voice.numbers(read_json(page.parent, "summary.json"))
    return 0
