"""`bilevel verify`: measures the papers' claims and gives each a verdict."""

import dataclasses
import traceback
from typing import Annotated

import tyro

from experiments.claims import CLAIMS
from experiments.claims.readme import publish_results
from experiments.claims.runner import Loaded, chosen, folder_of, load_each, verify
from experiments.files import RunFolderError
from experiments.output import Voice
from experiments.settings.options import OptionError


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Measure claims of the papers and judge each.

    A claim holds when the 95 % interval of each of its numbers lies inside a margin that was stated beforehand, fails when one
    lies outside, and is otherwise not decided. An assumption of a theorem is refuted where an instance refutes it, with the
    share of such instances, or not refuted. Claims without margins are reported.

    Prints a table; writes summary.json, a figure a claim and report.html to FOLDER/full, or to FOLDER/quick. What is there
    already is not computed again, unless code that it depends on has changed; interrupted by Ctrl-C or SIGTERM, the same
    command goes on. Exit code: 3 if a claim is stopped by an error, 1 if one fails, 2 for a mistake in what was asked, 130
    when interrupted, otherwise 0, also with an assumption refuted, which is no failure of the code.
    """

    claims: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names, or patterns such as 'P1.*'; by default every claim that gets a verdict."""
    quick: bool = False
    """Small budgets: at most five minutes a paper."""
    all: bool = False
    """Also the claims without a verdict, which are reported."""
    list: bool = False
    """Measure nothing: print each claim with what it costs."""
    publish: bool = False
    """Afterwards write the results of full budgets into the source tree: experiments/claims/results.json and README.md."""
    out: str = "runs/verify"
    """Folder of the results."""


def verify_command(options: VerifyOptions, voice: Voice) -> int:
    """Runs `bilevel verify`; its exit code.

    Raises:
        OptionError: with one line.
        RunFolderError: the results cannot be written.
    """
    if options.publish and options.quick:
        raise OptionError("--publish got --quick; required: results of full budgets, without --quick")
    if options.list:
        voice.numbers(list_claims(options, voice))
        return 0
    try:
        results = verify(options.claims, options.out, options.quick, options.all, voice.say)
    except (OptionError, RunFolderError):
        raise
    except Exception:
        traceback.print_exc()
        return 3
    folder = folder_of(options.out, options.quick)
    if options.publish:
        voice.say(f"published: {publish_results(folder)}")
    voice.table(folder / "summary.json")
    return int(any(result["verdict"] == "fails" for result in results.values()))


def list_claims(options: VerifyOptions, voice: Voice) -> dict[str, dict]:
    """Says each claim that the patterns choose, of all by default; name -> statement, minutes and whether it is judged."""
    loaded, broken = load_each(CLAIMS)
    names = chosen(options.claims, True, loaded, broken)
    voice.say(f"  {'claim':18s}minutes (quick, full)")
    for name in names:
        voice.say(_line(name, loaded[name]) if name in loaded else f"  {name:18s}cannot be loaded: {broken[name]!r}")
    return {name: _entry(loaded[name]) for name in names if name in loaded}


def _line(name: str, loaded: Loaded) -> str:
    quick, full = loaded.claim.minutes
    minutes = f"{quick:g}, {full:g}"
    return f"  {name:18s}{minutes:9s}{'' if loaded.is_judged else 'without verdict: '}{loaded.claim.statement}"


def _entry(loaded: Loaded) -> dict:
    return {"statement": loaded.claim.statement, "minutes": loaded.claim.minutes, "judged": loaded.is_judged}
