"""Runs claims, each once: what was measured before is read, so that an interrupted run goes on where it was."""

import ast
import collections
import functools
import hashlib
import importlib.util
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from tqdm import tqdm

from experiments.commands.bench import usable_cores
from experiments.files import RunFolderError, read_bytes, read_json, refusing, write_figure, write_json
from experiments.output import silent
from experiments.runs.folder import open_run
from experiments.settings.options import OptionError, choose
from experiments.verify import CLAIMS
from experiments.verify.claims import Budget, Claim, Interval, Measurement, judge, together
from experiments.verify.page import MOST_FIGURE, about, in_brackets, in_words, short, write_page

RESULT, STARTED, FIGURE = "result.json", "started.json", "figure.png"
REPORTED, SHARES = 6, 24  # numbers without a margin that the table shows, and of an assumption
# What a measurement and its verdict depend on.
OURS = (
    "bilevel",
    "envs",
    "experiments.studies.",
    "experiments.files",
    "experiments.runs.folder",
    "experiments.report.summary",
    "experiments.verify.",
)


class Number(TypedDict):
    """A number in a result; text stands for an infinity, and for what is not a number."""

    center: float | str
    interval: list[float | str]
    margin: list[float | str] | None
    verdict: str
    undecided: str


class Result(TypedDict):
    """What `result.json` holds."""

    statement: str
    source: str
    prediction: str
    kind: str
    verdict: str
    numbers: dict[str, Number]
    cost: dict[str, float]
    notes: list[str]
    digest: str
    seconds: float
    quick: bool
    figure: str
    check: str


class Started(TypedDict):
    """What `started.json` holds: the digest of the code, and how long it has been measuring."""

    digest: str
    seconds: float


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
    # With the digest of the code that was imported: the files may change while claims are measured.
    chosen, broken = load_each(names or CLAIMS)
    with open_run(Path(out) / ("quick" if quick else "full")) as folder:
        for name in chosen:
            if (folder / name).is_symlink() or ((folder / name).exists() and not (folder / name).is_dir()):
                raise RunFolderError(
                    f"{folder / name} is not a folder; required: a folder or nothing, to keep {name} in"
                )
        minutes = {name: claim.minutes[0 if quick else 1] for name, (claim, _) in chosen.items()}
        # In silence: what is wrong with a result is said when its turn comes.
        before = {name: measured_before(folder / name, ours) for name, (_, ours) in chosen.items()}
        left = [minutes[name] for name in chosen if not before[name]]
        say(
            f"{len(chosen)} claim{'s' * (len(chosen) > 1)}, {len(left)} to measure: at most about "
            f"{max([sum(left) / 2, *left]):.2g} minutes on two cores; results and resumption in {folder}"
        )

        # Two at a time, the longest first: most of the time is compilation, which one thread does.
        order = sorted(chosen, key=lambda name: -minutes[name])
        pool = ThreadPoolExecutor(min(2, usable_cores()))
        try:
            futures = {name: pool.submit(one, name, *chosen[name], folder / name, quick, say) for name in order}
            follow(futures, say, partial(publish, folder, chosen))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # interrupted: what runs is left to end with the process
        results = {name: futures[name].result() for name in chosen if not futures[name].exception()}
        say("\n" + format_table(results) + "\n")
        verdicts = collections.Counter(result["verdict"] for result in results.values())
        verdicts += collections.Counter({"stopped by an error": len(chosen) + len(broken) - len(results)})
        say(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
        say(f"report: {publish(folder, chosen, lambda name, line: say(f'{name:18s}{line}'))}")
    for name in chosen:
        futures[name].result()  # the first error, if there is one, now that what the others found is written
    for error in broken.values():
        raise error
    return results


def publish(folder: Path, chosen: dict[str, tuple[Claim, str]], say=lambda name, line: None) -> Path:
    """Writes `summary.json` and the page of all results in the folder that are of this code; the page.

    Args:
        folder: of the results.
        chosen: claims that were loaded before, with the digest of their code then.
        say: takes the name of a claim, and why it has no result.
    """
    loaded, lost = load_each(CLAIMS)
    for name, error in lost.items():
        say(name, f"cannot be loaded: {error!r}")
    digests = {name: ours for name, (_, ours) in (loaded | chosen).items()}
    found = {name: measured_before(folder / name, ours, partial(say, name)) for name, ours in digests.items()}
    everything = {name: result for name, result in found.items() if result}
    write_json(folder, "summary.json", everything)
    return write_page(folder, everything)


def follow(futures: dict[str, Future], say: Callable[[str], None], publish: Callable[[], Any]) -> None:
    """Waits for all, with a bar that names those that run, and publishes after each; one that stops with an error is named
    at once, and the others go on.
    """
    hidden = True if say is silent else None  # None: shown where somebody watches
    with tqdm(total=len(futures), unit="claim", disable=hidden, dynamic_ncols=True) as bar:
        waiting = futures
        while waiting:
            bar.set_postfix_str(", ".join(name for name, future in waiting.items() if future.running()))
            done = wait(waiting.values(), timeout=1, return_when=FIRST_COMPLETED).done
            for name, future in waiting.items():
                if future in done and future.exception():
                    say(f"{name:18s}stopped by an error, shown at the end: {future.exception()!r}")
            waiting = {name: future for name, future in waiting.items() if future not in done}
            bar.update(len(done))
            if done:
                publish()


def load_each(names: Iterable[str]) -> tuple[dict[str, tuple[Claim, str]], dict[str, Exception]]:
    """What `load` gives of each name, and its error of those that cannot be loaded.

    Raises:
        OptionError: there is no claim of that name.
    """
    loaded, broken = {}, {}
    for name in names:
        try:
            loaded[name] = load(name)
        except OptionError:
            raise
        except Exception as error:
            broken[name] = error
    return loaded, broken


def load(name: str) -> tuple[Claim, str]:
    """The claim of that name, and the digest of all that its measurement depends on here."""
    module = f"experiments.verify.{choose('claim', name, CLAIMS)}"
    return importlib.import_module(module).CLAIM, digest(module)


def digest(module: str) -> str:
    """Of the sources of a module, and of what it imports here."""
    sources = (Path(importlib.util.find_spec(name).origin).read_bytes() for name in sorted(imported(module)))
    return _hash(b"".join(sources))


@functools.cache
def imported(name: str) -> frozenset[str]:
    """The module of that name, and those of `OURS` that it imports, and so on."""
    found, waiting = set(), {name}
    while waiting:
        found.add(current := waiting.pop())
        spec = importlib.util.find_spec(current)
        path = Path(spec.origin)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
                names = {module, *(f"{module}.{alias.name}" for alias in node.names)}
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


def measured_before(folder: Path, ours: str, say: Callable[[str], None] = lambda line: None) -> dict[str, Any] | None:
    """The result in a claim's folder, if it is whole and of the code with that digest; says why not."""
    if not os.path.lexists(folder / RESULT):
        return None
    before = _read(folder, RESULT, Result)
    if not before or before["check"] != _check(before):
        say("has a damaged result: left out until it is measured again")
    elif before["digest"] != ours:
        say("has a result of other code: left out until it is measured again")
    elif before["figure"] and before["figure"] != _digest_of(folder / FIGURE):
        say(f"has lost its {FIGURE}, or it is damaged: left out until it is measured again")
    else:
        return before
    return None


def _digest_of(path: Path) -> str:
    """Of the file; "" if there is none that can be read."""
    try:
        return _hash(read_bytes(path, MOST_FIGURE))
    except OSError:
        return ""


def _check(result: dict[str, Any]) -> str:
    """A digest of all else in a result."""
    rest = {key: value for key, value in result.items() if key != "check"}
    return _hash(json.dumps(rest, sort_keys=True).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _read(folder: Path, name: str, shape: type) -> dict[str, Any]:
    """The object of that shape in the file; {} if there is none, or a damaged one."""
    try:
        return read_json(folder, name, shape)
    except RunFolderError:
        return {}


def one(name: str, claim: Claim, ours: str, folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The result of one claim by the code with that digest, from its folder if it is there."""
    if before := measured_before(folder, ours, lambda line: say(f"{name:18s}{line}")):
        say(f"{name:18s}{before['verdict']} (measured before)")
        return before
    say(f"{name:18s}measuring, about {claim.minutes[0 if quick else 1]:.2g} minutes")
    started = _read(folder, STARTED, Started)
    if started.get("digest") != ours:
        for part in folder.rglob("*.npz"):  # of another code's measurement
            with refusing(f"{part} cannot be removed"):
                part.unlink()
        started = {"digest": ours, "seconds": 0.0}
    begin = time.perf_counter() - started["seconds"]  # of attempts that were cut short, as far as they had said a line

    lock = threading.Lock()  # parts of a claim may be measured by threads

    def tell(line: str) -> None:
        say(f"{name:18s}{line}")
        with lock:
            write_json(folder, STARTED, started | {"seconds": time.perf_counter() - begin})

    write_json(folder, STARTED, started)
    measured = claim.measure(Budget(quick, folder, tell))
    result = describe(claim, measured) | {"digest": ours, "seconds": time.perf_counter() - begin, "quick": quick}
    if measured.figure is not None:
        write_figure(folder, FIGURE, measured.figure, dpi=120)
    result |= {"figure": "" if measured.figure is None else _digest_of(folder / FIGURE)}
    write_json(folder, RESULT, result | {"check": _check(result)})  # last: a claim without it is measured again
    say(f"{name:18s}{result['verdict']}")
    return result | {"check": _check(result)}


def describe(claim: Claim, measured: Measurement) -> dict[str, Any]:
    """Claim, numbers and verdicts as JSON values."""
    intervals = dict.fromkeys(claim.margins, Interval(np.nan, np.nan, np.nan, "not measured")) | measured.numbers
    verdicts = judge(claim, intervals)
    numbers = {
        name: {
            "center": _json(x.center),
            "interval": [_json(x.low), _json(x.high)],
            "margin": [_json(end) for end in claim.margins[name]] if name in claim.margins else None,
            "verdict": verdicts.get(name, "reported"),
            "undecided": x.undecided,
            "over": x.over,
            "tail": None if x.tail is None else [_json(end) for end in x.tail],
        }
        for name, x in intervals.items()
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
    verdict = result["verdict"]
    lines = [f"{name}  {in_words(result).replace(verdict, verdict.upper(), 1)}", result["statement"]]
    lines.append(f"({result['source']}; {result['kind']})")
    lines.append(f"Predicted: {result['prediction']}")
    deciding = {name: x for name, x in result["numbers"].items() if x["margin"] is not None}
    others = {name: x for name, x in result["numbers"].items() if x["margin"] is None}
    room = SHARES if verdict.endswith("refuted") else REPORTED
    shown = deciding | dict(list(others.items())[:room])
    layout = f"{{:{max(map(len, shown))}s}}{{:>11s}}  {{:25s}}{{:19s}}{{}}"
    lines.append(layout.format("", "measured", "95 % interval", "must lie in", "verdict"))
    for number, x in shown.items():
        margin = "" if x["margin"] is None else "[{}, {}]".format(*map(short, x["margin"]))
        lines.append(
            layout.format(number, short(x["center"]), in_brackets(x), margin, ": ".join([x["verdict"], *about(x)]))
        )
    if len(others) > room:
        lines.append(f"… and {len(others) - room} more in summary.json")
    if verdict not in ("holds", "reported"):
        lines += [f"Note: {note}" for note in result["notes"]]
    cost = ", ".join(f"{value:,.0f} {what}" for what, value in result["cost"].items())
    return "\n  ".join([*lines, f"Cost: {cost or 'no samples'}; {result['seconds']:,.0f} s"])
