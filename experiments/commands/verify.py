"""`bilevel verify`: measures claims of the papers, each with a verdict."""

import dataclasses
import importlib.util
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.files import RunFolderError
from experiments.output import Voice
from experiments.settings.options import OptionError
from experiments.settings.parsing import ASKS_HELP, parse
from experiments.verify import CLAIMS
from experiments.verify.runner import load_each, verify

VERIFY_HELP = """usage: bilevel verify [CLAIM …] [--quick] [--out FOLDER]

Measure claims of the papers and judge each: it holds when the 95 % interval lies inside a margin that was stated beforehand,
fails when it lies outside, and is otherwise not decided. An assumption of a theorem is refuted where an instance refutes it,
with the share of such instances, or not refuted. Prints a table; writes summary.json, a figure a claim and report.html to
FOLDER/full, or with --quick (smaller budgets) to FOLDER/quick; FOLDER is runs/verify by default. What is there already is
not measured again, unless the code that it depends on has changed; interrupted by Ctrl-C or SIGTERM, the same command goes
on. Exit code: 3 if a claim is stopped by an error, 1 if one fails, 2 for a mistake in what was asked, 130 when interrupted,
otherwise 0, also with an assumption refuted, which is no failure of the code.

  claim              minutes (quick, full)
"""


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Measure claims of the papers and judge each."""

    claims: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of claims; none: all of them."""
    quick: bool = False
    """Smaller budgets, of a minute or two each."""
    out: str = "runs/verify"
    """Folder of the results, which are kept in its subfolders full and quick."""


def main(arguments: Sequence[str], voice: Voice) -> int:
    """Measures the claims that the arguments name; the exit code: 0, 1 if a claim fails, 3 if one is stopped by an error."""
    if ASKS_HELP & set(arguments):
        loaded, broken = load_each(CLAIMS)
        print(VERIFY_HELP + "\n".join(_about_claim(name, claim) for name, (claim, _) in loaded.items()))
        for name, error in broken.items():
            print(f"  {name:18s}cannot be loaded: {error!r}")
        return 0
    options = parse(VerifyOptions(), arguments, "verify", __doc__, "names of claims, --quick and --out FOLDER alone")
    compile_fast()
    try:
        results = verify(options.claims, options.out, options.quick, voice.say)
    except (OptionError, RunFolderError):
        raise
    except Exception:
        traceback.print_exc()
        return 3
    voice.table(Path(options.out) / ("quick" if options.quick else "full") / "summary.json")
    return int(any(result["verdict"] == "fails" for result in results.values()))


def _about_claim(name: str, claim) -> str:
    quick, full = claim.minutes
    return f"  {name:18s}{quick:5g} {full:5g}   {claim.statement}"


def compile_fast() -> None:
    """Where there are CPUs alone, XLA optimises less, as for the programs of a run (`bilevel.lanes`): half the compile time.

    Studies compile many programs outside of runs. Has no effect once a device was used.
    """
    from importlib import metadata

    accelerators = metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not accelerators:
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_backend_optimization_level" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=1".strip()
