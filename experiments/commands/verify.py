"""Measure claims of the papers and judge each.

A claim holds when the 95 % interval of each of its numbers lies inside a margin that was stated beforehand, fails when one
lies outside, and is otherwise not decided. An assumption of a theorem is refuted where an instance refutes it, with the
share of such instances, or not refuted. A claim without margins is reported.

Prints a table; writes summary.json, a figure a claim and report.html to OUT/full, or to OUT/quick. What is there already is
not computed again, unless code that it depends on has changed; interrupted by Ctrl-C or SIGTERM, the same command goes on.
Exit code: 3 if a claim is stopped by an error, 1 if one fails, 2 for a mistake in what was asked, 130 when interrupted,
otherwise 0, also with an assumption refuted, which is no failure of the code.
"""

import dataclasses
import importlib.util
import os
import traceback
from collections.abc import Sequence

import tyro

from experiments.claims import CLAIMS
from experiments.claims.readme import publish_results
from experiments.claims.runner import chosen, folder_of, load_each, verify
from experiments.files import RunFolderError, read_json
from experiments.output import Voice
from experiments.settings.options import OptionError
from experiments.settings.parsing import parse


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Which claims, and how much of them."""

    claims: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of claims, or patterns such as 'P1.*'; by default all that get a verdict."""
    quick: bool = False
    """Small budgets: at most five minutes a paper."""
    all: bool = False
    """Also the claims without margins, which are reported; a name in full needs no --all."""
    list: bool = False
    """Measure nothing: print each claim and what it costs."""
    publish: bool = False
    """Afterwards write the results in full into the source tree: experiments/claims/results.json and README.md."""
    out: str = "runs/verify"
    """Folder of the results, which are kept in its subfolders full and quick."""


def main(arguments: Sequence[str], voice: Voice) -> int:
    """Measures the claims that the arguments choose; the exit code: 0, 1 if one fails, 3 if one is stopped by an error."""
    required = "names or patterns of claims, --quick, --all, --list, --publish and --out FOLDER alone"
    options = parse(VerifyOptions(), arguments, "verify", __doc__, required)
    if options.publish and options.quick:
        raise OptionError("--publish got --quick; required: results of full budgets, without --quick")
    compile_fast()
    if options.list:
        voice.numbers(list_claims(options.claims, voice))
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
    voice.numbers(read_json(folder, "summary.json"))
    return int(any(result["verdict"] == "fails" for result in results.values()))


def list_claims(patterns: Sequence[str], voice: Voice) -> dict[str, dict]:
    """Says each claim that the patterns choose, all by default; name -> statement, minutes, and whether it is judged."""
    loaded, broken = load_each(CLAIMS)
    voice.say(f"  {'claim':18s}minutes (quick, full)")
    found = {}
    for name in chosen(patterns, True, loaded, broken):
        if name in broken:
            voice.say(f"  {name:18s}cannot be loaded: {broken[name]!r}")
        else:
            claim, is_judged = loaded[name].claim, loaded[name].is_judged
            found[name] = {"statement": claim.statement, "minutes": claim.minutes, "judged": is_judged}
            quick, full = claim.minutes
            unjudged = "" if is_judged else "without a verdict: "
            voice.say(f"  {name:18s}{quick:5g} {full:5g}   {unjudged}{claim.statement}")
    return found


def compile_fast() -> None:
    """Where there are CPUs alone, XLA optimises less, as for the programs of a run (`bilevel.lanes`): half the compile
    time. Claims compile many programs outside of runs. Has no effect once a device was used."""
    from importlib import metadata

    accelerators = metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not accelerators:
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_backend_optimization_level" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=1".strip()
