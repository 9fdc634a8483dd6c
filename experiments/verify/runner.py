"""Runs claims, each once: what was measured before is read, so that an interrupted run goes on where it was."""

import ast
import collections
import functools
import hashlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.bench import usable_cores
from experiments.options import choose
from experiments.run_folder import RunFolderError, open_run, read_json, write_json
from experiments.verify import CLAIMS
from experiments.verify.claims import Budget, Claim, Measurement, judge, together
from experiments.verify.page import short, write_page

RESULT, STARTED = "result.json", "started.json"
REPORTED = 6  # numbers without a margin that the table shows
KEYS = frozenset(
    ("statement", "source", "prediction", "kind", "verdict", "numbers", "cost", "notes", "seconds", "quick")
)
# What a measurement and its verdict depend on.
OURS = ("bilevel", "envs", "experiments.studies.", "experiments.summary", "experiments.verify.")


def verify(
    names: Sequence[str] = (), out: str | Path = "runs/verify", quick: bool = False, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Measures claims and judges them; writes `summary.json`, a figure each and `report.html`. Name -> result.

    Args:
        names: of `CLAIMS`; none: all of them.
        out: folder of the results; what is in it already is not measured again, unless the code has changed.
        quick: small budgets, in a folder of their own below `out`.
        say: takes the lines that a person should see.

    Raises:
        OptionError: there is no claim of that name.
        RunFolderError: another process writes to the folder, or it cannot be written, or holds something else.
        Exception: of the first claim that stopped with one, after the others are measured and written.
    """
    chosen = {name: load(name) for name in (names or CLAIMS)}
    with open_run(Path(out) / ("quick" if quick else "full")) as folder:
        minutes = {name: claim.minutes[0 if quick else 1] for name, (claim, _) in chosen.items()}
        # In silence: what is wrong with a result is said when its turn comes.
        left = [minutes[name] for name in chosen if not measured_before(name, folder / name, lambda line: None)]
        say(
            f"{len(chosen)} claims, {len(left)} to measure: at most about {max([sum(left) / 2, *left]):.2g} minutes on two "
            f"cores; results and resumption in {folder}"
        )
        # Two at a time, the longest first: most of the time is compilation, which one thread does.
        order = sorted(chosen, key=lambda name: -minutes[name])
        pool = ThreadPoolExecutor(min(2, usable_cores()))
        try:
            futures = {name: pool.submit(one, name, folder / name, quick, say) for name in order}
            follow(futures, say)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # interrupted: what runs is left to end with the process
        results = {name: futures[name].result() for name in chosen if not futures[name].exception()}
        say("\n" + format_table(results) + "\n")
        verdicts = collections.Counter(result["verdict"] for result in results.values())
        verdicts += collections.Counter({"stopped by an error": len(chosen) - len(results)})
        say(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
        everything = {name: result for name in CLAIMS if (result := measured_before(name, folder / name, say))}
        write_json(folder, "summary.json", everything)
        say(f"report: {write_page(folder, everything)}")
    for name in chosen:
        futures[name].result()  # the first error, if there is one, now that what the others found is written
    return results


def follow(futures: dict[str, Future], say: Callable[[str], None]) -> None:
    """Waits for all, with a bar that names those that run; says which stopped with an error, and lets the others go on."""
    with tqdm(total=len(futures), unit="claim", disable=None, dynamic_ncols=True) as bar:
        waiting = futures
        while waiting:
            bar.set_postfix_str(", ".join(name for name, future in waiting.items() if future.running()))
            done = wait(waiting.values(), timeout=1, return_when=FIRST_COMPLETED).done
            for name, future in waiting.items():
                if future in done and future.exception():
                    say(f"{name:18s}stopped by an error, shown at the end: {future.exception()!r}")
            waiting = {name: future for name, future in waiting.items() if future not in done}
            bar.update(len(done))


def load(name: str) -> tuple[Claim, str]:
    """The claim of that name, and the digest of all that its measurement depends on here."""
    module = f"experiments.verify.{choose('claim', name, CLAIMS)}"
    return importlib.import_module(module).CLAIM, digest(module)


def digest(module: str) -> str:
    """Of the sources of a module, and of what it imports here."""
    sources = (Path(importlib.util.find_spec(name).origin).read_bytes() for name in sorted(imported(module)))
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


@functools.cache
def imported(name: str) -> frozenset[str]:
    """The module of that name, and those of `OURS` that it imports, and so on."""
    found, waiting = set(), {name}
    while waiting:
        found.add(current := waiting.pop())
        path = Path(importlib.util.find_spec(current).origin)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            else:
                continue
            waiting |= {x for x in names if x.startswith(OURS) and _is_module(x)} - found
    return frozenset(found)


def _is_module(name: str) -> bool:
    """Whether it is one, not what one defines."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


def measured_before(name: str, folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The result in the claim's folder, if it is whole and this code's; says why not."""
    if not (folder / RESULT).exists():
        return None
    before = _read(folder, RESULT)
    if before.get("digest") == load(name)[1] and before.keys() >= KEYS:
        return before
    say(f"{name:18s}has a result that is damaged or of other code: left out until it is measured again")
    return None


def _read(folder: Path, name: str) -> dict[str, Any]:
    """The object in the file; {} if there is none, or a damaged one."""
    try:
        return read_json(folder, name)
    except RunFolderError:
        return {}


def one(name: str, folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The result of one claim, from its folder if it is there."""
    claim, ours = load(name)
    if before := measured_before(name, folder, say):
        say(f"{name:18s}{before['verdict']} (measured before)")
        return before
    say(f"{name:18s}measuring, about {claim.minutes[0 if quick else 1]:.2g} minutes")
    started = {"digest": ours}
    if folder.exists() and _read(folder, STARTED) != started:
        shutil.rmtree(folder)  # parts of another code's measurement
    write_json(folder, STARTED, started)
    begin = time.perf_counter()
    measured = claim.measure(Budget(quick, folder, say))
    result = describe(claim, measured) | {"digest": ours, "seconds": time.perf_counter() - begin, "quick": quick}
    if measured.figure is not None:
        measured.figure.savefig(folder / "figure.png", dpi=120)
    write_json(folder, RESULT, result)  # last: a claim without it is measured again
    say(f"{name:18s}{result['verdict']}")
    return result


def describe(claim: Claim, measured: Measurement) -> dict[str, Any]:
    """Claim, numbers and verdicts as JSON values."""
    verdicts = judge(claim, measured.numbers)
    numbers = {
        name: {
            "center": _json(x.center),
            "interval": [_json(x.low), _json(x.high)],
            "margin": [_json(end) for end in claim.margins[name]] if name in claim.margins else None,
            "verdict": verdicts.get(name, "reported"),
            "undecided": x.undecided,
        }
        for name, x in measured.numbers.items()
    }
    about = {"statement": claim.statement, "source": claim.source, "prediction": claim.prediction}
    about |= {"kind": "exact" if claim.exact else "Monte Carlo", "verdict": together(verdicts), "numbers": numbers}
    return about | {"cost": {k: float(v) for k, v in measured.cost.items()}, "notes": list(measured.notes)}


def _json(x: float) -> float | str:
    """JSON has no infinities."""
    return float(x) if np.isfinite(x) else str(float(x))


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """Each claim with its numbers; of those that decide nothing only the first few."""
    return "\n\n".join(_format(name, result) for name, result in results.items())


def _format(name: str, result: dict[str, Any]) -> str:
    lines = [f"{name}  {result['verdict'].upper()}", result["statement"], f"({result['source']}; {result['kind']})"]
    lines.append(f"Predicted: {result['prediction']}")
    deciding = {name: x for name, x in result["numbers"].items() if x["margin"] is not None}
    others = {name: x for name, x in result["numbers"].items() if x["margin"] is None}
    shown = deciding | dict(list(others.items())[:REPORTED])
    layout = "{:46s}{:>11s}  {:25s}{:19s}{}"
    lines.append(layout.format("", "measured", "95 % interval", "must lie in", "verdict"))
    for number, x in shown.items():
        margin = "" if x["margin"] is None else "[{}, {}]".format(*map(short, x["margin"]))
        why = f": {x['undecided']}" if x["undecided"] else ""
        interval = "[{}, {}]".format(*map(short, x["interval"]))
        lines.append(layout.format(number, short(x["center"]), interval, margin, x["verdict"] + why))
    if len(others) > REPORTED:
        lines.append(f"… and {len(others) - REPORTED} more in summary.json")
    cost = ", ".join(f"{value:,.0f} {what}" for what, value in result["cost"].items())
    return "\n  ".join([*lines, f"Cost: {cost or 'no samples'}; {result['seconds']:,.0f} s"])
