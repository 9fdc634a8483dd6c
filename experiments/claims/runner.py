"""Runs claims, two at a time. What was computed is kept: it is judged and drawn again when the code of that changes, and
computed again when code that it depends on does; an interrupted run goes on where it was.

Of each claim the folder `<out>/full/<claim>/`, or `quick`, holds `data.npz`, what was computed, beside parts of it;
`started.json`, by which code and for how long; `result.json` and `figure.png`, what it says.
"""

import collections
import fnmatch
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_type_hints

from tqdm import tqdm

from experiments.claims import CLAIMS
from experiments.claims.claim import Budget, Claim
from experiments.claims.data import keep
from experiments.claims.digest import digest
from experiments.claims.page import write_page
from experiments.claims.results import FIGURE, RESULT, current_result, describe, figure_digest, format_table, sealed
from experiments.files import RunFolderError, read_json, refusing, write_figure, write_json
from experiments.output import silent, usable_cores
from experiments.report.summary import counted
from experiments.runs.folder import open_run
from experiments.settings.options import OptionError, choose

DATA, STARTED = "data", "started.json"
WILD = set("*?[")
Say = Callable[[str], None]


class Started(TypedDict):
    """What `started.json` holds: the digest of the code that measures, and for how long it has."""

    digest: str  # of the code that measures
    seconds: float  # for how long it has


class Loaded(NamedTuple):
    """A claim, and the digests of its code when it was imported: of what measures, and of what judges and draws too."""

    claim: Claim
    measured: str  # digest of the code that measures, when it was imported
    reported: str  # digest of what judges and draws too

    @property
    def is_judged(self) -> bool:
        """Whether it gets a verdict."""
        return bool(self.claim.margins or self.claim.refuting)

    def minutes(self, quick: bool) -> float:
        """How long it takes on its own, as it was said beforehand."""
        return self.claim.minutes[0 if quick else 1]


def verify(
    patterns: Sequence[str] = (), out: str | Path = "runs/verify", quick=False, everything=False, say: Say = print
) -> dict[str, dict[str, Any]]:
    """Measures the claims that are `chosen`, with small budgets if quick, and judges them; returns name -> result.

    Writes `summary.json`, a figure each and `report.html` to a folder by budget below `out`. What is there already is not
    computed again, unless code that it depends on has changed.

    Raises:
        OptionError: a pattern chooses nothing.
        RunFolderError: another process writes to the folder, or it cannot be written, or holds something else.
        Exception: of the first claim that stopped with one, after the others are measured and written.
    """
    # With the digest of the code that was imported: the files may change while claims are measured.
    loaded, broken = load_each(CLAIMS)
    names = chosen(patterns, everything, loaded, broken)
    claims = {name: loaded[name] for name in names if name in loaded}
    with open_run(folder_of(out, quick)) as folder:
        refuse_what_is_no_folder(folder, claims)
        say(f"{announced(claims, folder, quick)}; results and resumption in {folder}")
        # Two at a time, the longest first: most of the time is compilation, which one thread does.
        pool, futures = ThreadPoolExecutor(min(2, usable_cores())), {}
        try:
            for name, one in sorted(claims.items(), key=lambda item: -item[1].minutes(quick)):
                futures[name] = pool.submit(verify_one, one, folder / name, quick, named(name, say))
            follow(futures, say, partial(publish, folder, loaded))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # interrupted: what runs is left to end with the process
        results = {name: futures[name].result() for name in claims if not futures[name].exception()}
        say("\n" + format_table(results) + "\n")
        verdicts = collections.Counter(result["verdict"] for result in results.values())
        verdicts += collections.Counter({"stopped by an error": len(names) - len(results)})
        say(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
        for name, error in broken.items():
            named(name, say)(f"cannot be loaded: {error!r}")
        say(f"report: {publish(folder, loaded, say)}")
    for name in names:  # the first error, if there is one, now that what the others found is written
        if name in broken:
            raise broken[name]
        futures[name].result()
    return results


def refuse_what_is_no_folder(folder: Path, names: Iterable[str]) -> None:
    """Raises RunFolderError where something else lies in place of a claim's folder."""
    for path in (folder / name for name in names):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise RunFolderError(f"{path} is not a folder; required: a folder or nothing, to keep {path.name} in")


def announced(claims: dict[str, Loaded], folder: Path, quick: bool) -> str:
    """Returns how many claims there are, how many are to be measured, and how long that takes at most, in words."""
    left = [x.minutes(quick) for name, x in claims.items() if not is_measured(folder / name, x.measured)]
    most = max([sum(left) / 2, *left], default=0)
    return f"{counted(len(claims), 'claim')}, {len(left)} to measure: at most about {most:.2g} minutes on two cores"


def named(name: str, say: Say) -> Say:
    """Returns a function that says lines about the claim of that name."""
    return lambda line: say(f"{name:18s}{line}")


def folder_of(out: str | Path, quick: bool) -> Path:
    """Returns the folder of the results, by budget."""
    return Path(out) / ("quick" if quick else "full")


def chosen(
    patterns: Sequence[str], everything: bool, loaded: dict[str, Loaded], broken: Iterable[str] = ()
) -> list[str]:
    """Returns the names of the claims that patterns such as `P1.*` match, without patterns all, in the order of the list.

    A pattern with a wildcard, or none, takes those that get a verdict, and with `everything` the others too; a whole name
    takes its claim. Claims that cannot be loaded are taken for such that get a verdict.

    Raises:
        OptionError: a pattern chooses nothing.
    """
    taken = set()
    for pattern in patterns or ("*",):
        if not WILD & set(pattern):
            choose("claim", pattern, dict.fromkeys(CLAIMS))
        matching = {name for name in CLAIMS if fnmatch.fnmatchcase(name, pattern)}
        found = {x for x in matching if everything or x == pattern or x in broken or loaded[x].is_judged}
        if patterns and not found:
            others = f" but those without a verdict, {', '.join(sorted(matching))}; --all takes them" * bool(matching)
            required = f"names or patterns of {', '.join(CLAIMS)}"
            raise OptionError(f"{pattern!r} matches no claim{others}; required: {required}")
        taken |= found
    return [name for name in CLAIMS if name in taken]


def load_each(names: Iterable[str]) -> tuple[dict[str, Loaded], dict[str, Exception]]:
    """Returns what `load` returns for each name, and its error for those that cannot be loaded."""
    loaded, broken = {}, {}
    for name in names:
        try:
            loaded[name] = load(name)
        except Exception as error:
            broken[name] = error
    return loaded, broken


def load(name: str) -> Loaded:
    """Returns the claim of that name in the list, with its digests."""
    module = f"experiments.claims.{name.lower()}"
    claim = importlib.import_module(module).CLAIM
    reported = digest((module, "CLAIM"), (describe.__module__, "describe"))
    return Loaded(claim, digest((module, "CLAIM.measure")), reported)


def verify_one(loaded: Loaded, folder: Path, quick: bool, say: Say) -> dict[str, Any]:
    """Returns the result of one claim; as much of it as is there and of the same code is not made again."""
    claim = loaded.claim
    if before := current_result(folder, loaded.measured, loaded.reported, say):
        say(f"{before['verdict']} (measured before)")
        return before
    data, seconds = measured(loaded, folder, quick, say)
    result = describe(claim, claim.judge(data))
    if claim.draw:
        write_figure(folder, FIGURE, claim.draw(data), dpi=120)
    result |= {"measured": loaded.measured, "reported": loaded.reported, "seconds": seconds, "quick": quick}
    result = sealed(result | {"figure": figure_digest(folder) if claim.draw else ""})
    write_json(folder, RESULT, result)  # last: a claim without it is judged again
    say(result["verdict"])
    return result


def measured(loaded: Loaded, folder: Path, quick: bool, say: Say) -> tuple[Any, float]:
    """Returns what a claim computes, from its folder if it is there, and how many seconds that took."""
    claim, started = loaded.claim, _started(folder)
    if started["digest"] != loaded.measured:
        for part in folder.rglob("*.npz"):  # of another code's measurement
            with refusing(f"{part} cannot be removed"):
                part.unlink()
        started = {"digest": loaded.measured, "seconds": 0.0}
    begin = time.perf_counter() - started["seconds"]  # of attempts that were cut short, as far as they had said a line
    lock = threading.Lock()  # parts of a claim may be measured by threads

    def tell(line: str = "") -> None:
        if line:
            say(line)
        with lock:
            write_json(folder, STARTED, started | {"seconds": time.perf_counter() - begin})

    def measure() -> Any:
        tell(f"measuring, about {loaded.minutes(quick):.2g} minutes")
        found = claim.measure(Budget(quick, folder, tell))
        tell()
        return found

    data = keep(folder, DATA, get_type_hints(claim.measure)["return"], measure, say)
    return data, _started(folder)["seconds"]


def is_measured(folder: Path, digest: str) -> bool:
    """Returns whether a claim's folder holds what the code with that digest has computed."""
    return (folder / f"{DATA}.npz").exists() and _started(folder)["digest"] == digest


def _started(folder: Path) -> Started:
    try:
        return read_json(folder, STARTED, Started)
    except RunFolderError:
        return {"digest": "", "seconds": 0.0}


def publish(folder: Path, loaded: dict[str, Loaded], say: Say = silent) -> Path:
    """Writes `summary.json` and the page of results that are of this code, names those that are not; returns the page."""
    results = {}
    for name, x in loaded.items():
        if result := current_result(folder / name, x.measured, x.reported, named(name, say)):
            results[name] = result
    write_json(folder, "summary.json", results)
    return write_page(folder, results)


def follow(futures: dict[str, Future], say: Say, publish: Callable[[], Any]) -> None:
    """Waits for all, with a bar of those that run, publishes after each, and names at once one that stops with an error."""
    hidden = True if say is silent else None  # None: shown where somebody watches
    with tqdm(total=len(futures), unit="claim", disable=hidden, dynamic_ncols=True) as bar:
        waiting = futures
        while waiting:
            bar.set_postfix_str(", ".join(name for name, future in waiting.items() if future.running()))
            done = wait(waiting.values(), timeout=1, return_when=FIRST_COMPLETED).done
            for name, future in waiting.items():
                if future in done and future.exception():
                    named(name, say)(f"stopped by an error, shown at the end: {future.exception()!r}")
            waiting = {name: future for name, future in waiting.items() if future not in done}
            bar.update(len(done))
            if done:
                publish()
