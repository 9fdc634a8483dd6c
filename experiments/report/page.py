"""One page about a run, complete in itself: what was run, what came out, what it cost, and what looks wrong."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import xarray as xr

from experiments.files import RunFolderError, read_arrays, read_json, write_atomically
from experiments.report.figures import MOVES, draw, save_pngs
from experiments.report.html import Markup, element, items, page, picture, section, styled, svg, table
from experiments.report.signs import looked_for
from experiments.report.summary import (
    Baselines,
    bracket,
    counted,
    format_table,
    headline_metric,
    number,
    point_label,
    sign_sentences,
    time_words,
    unfinished,
)

CAPTIONS = {
    "outcomes": "What was reached, after each outer step. Dashed lines: what is known of the world.",
    "optimisation": "How the optimisation went, after each outer step.",
    "cost": "What was reached, against what it cost.",
    "seeds": "Every seed: its last value, a dot, beside the interquartile mean of all with its 95 % interval.",
    "sweep": "What was reached at the end, for each value of what was swept; lines join points that differ in nothing else.",
    "rewards": "The learned reward beside the true one, in one colour scale. Arrows, on a map: from each cell, each "
    "move, as long as it is probable.",
}


class Notes(TypedDict, total=False):
    """What `notes.json` holds: sentences that a reader must know, and the command line that was run."""

    notes: list[str]
    command: str


def write_report(folder: str | os.PathLike[str], dataset: xr.Dataset, summary: dict[str, Any]) -> Path:
    """Writes `report.html` and `figures/*.png` into the run's folder, from its metrics, dims (hyper, seed, step), their
    summary, and what there is of config.json, manifest.json, notes.json, baselines.json and tables.npz; the path of the
    former. Raises RunFolderError where one of these files is damaged, or the folder cannot be written."""
    folder = Path(folder)
    baselines = read_json(folder, "baselines.json", Baselines, {})
    told = read_json(folder, "notes.json", Notes, {})
    config, manifest = (read_json(folder, f"{name}.json", dict, {}) for name in ("config", "manifest"))
    made_with = {"command": told.get("command") or "not recorded"} | {
        k: x for k, x in manifest.items() if k != "config"
    }
    figures = draw(dataset, baselines, _read_tables(folder, dataset.sizes["hyper"]))
    save_pngs(figures, folder)
    content = page(
        folder.resolve().name,
        styled("p", "headline", headline(summary, baselines)),
        *(styled("p", "note", note) for note in told.get("notes", [])),
        section("Signs of failure", items(sign_items(summary))),
        section("Results", element("pre", format_table(summary))),
        section("Figures", *(picture(svg(x, name), CAPTIONS[name.split("_")[0]]) for name, x in figures.items())),
        section("Cost", *_costs(summary)),
        section("What was run", _facts(config)),
        section("What it was run with", _facts(made_with)),
    )
    write_atomically(folder, "report.html", content.encode(errors="replace"))  # names of files may be no text
    return folder / "report.html"


def headline(summary: dict[str, Any], baselines: Baselines) -> str:
    """The run in one or two sentences: where the metric that matters most began and ended, and who is alive."""
    name, points = headline_metric(list(summary["units"])), summary["points"]
    if name is None:
        return "Nothing was measured."

    def reached(point):
        value = point["metrics"][name]["last"]["all"]["interquartile_mean"]
        return -np.inf if value is None else value

    best = max(points, key=reached)
    ends, seeds, label = best["metrics"][name], best["seeds"], summary["labels"][name]
    first, final = ends["first"]["all"], ends["last"]["all"]
    among = f"At {point_label(best['hyper'])}, the best of {len(points)} points by this number: {label}"
    where = among if len(points) > 1 else label[0].upper() + label[1:]
    interval = f" {bracket(final['interquartile_mean_interval'])}" if final["seeds"] > 1 else ""
    low, high = summary["ranges"].get(name, (None, None))
    possible = f" of {number(high)}" if high is not None and low == 0 else ""
    known = "".join(
        f"{', ' if i else '; '}{who} {number(x)}" for i, (who, x) in enumerate(baselines.get(name, {}).items())
    )
    return (
        f"{where} from {number(first['interquartile_mean'])} after the first step to "
        f"{number(final['interquartile_mean'])}{interval}{possible} in {counted(summary['steps'], 'outer step')} "
        f"({_averaged(final['seeds'], seeds['total'])}){known}. "
        f"{seeds['alive']} of {counted(seeds['total'], 'seed')} alive, {seeds['converged']} converged. "
        f"Signs of failure: in {_failing(points)}. {unfinished(summary)}".rstrip()
    )


def _averaged(num: int, total: int) -> str:
    """What the numbers of a headline are, over `num` of `total` seeds."""
    never = f"; {total - num:,} never had a finite value" if num < total else ""
    return f"interquartile mean{' and 95 % interval' if num > 1 else ''} over {counted(num, 'seed')}{never}"


def _failing(points: Sequence[dict[str, Any]]) -> str:
    """In how many runs signs of failure are seen."""
    total, failing = sum(p["seeds"]["total"] for p in points), sum(p["seeds_with_signs"] for p in points)
    runs = f"{counted(total, 'run')} (seeds of all {len(points)} points)" if len(points) > 1 else counted(total, "seed")
    return f"{failing or 'none'} of {runs}"


def sign_items(summary: dict[str, Any]) -> list[str]:
    """The signs of failure, one sentence each, or one that says that no seed shows any and what was looked for."""
    return sign_sentences(summary) or [
        f"None found in any seed. Looked for: {looked_for(summary['points'][0]['metrics'])}."
    ]


def _facts(tree: Mapping[str, Any]) -> Markup:
    """A tree of settings as a table of dotted names."""
    return styled("div", "facts", table([*_flatten(tree)]) if tree else element("p", "not recorded"))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            items = value if isinstance(value, list) else [value]
            yield prefix + name, ", ".join(number(item, 6) for item in items)


def _costs(summary: dict[str, Any]) -> tuple[Markup, Markup]:
    """What each point cost a seed and all cost together, as a table; and the seconds."""
    rows = []
    for point in summary["points"]:
        ends = [sorted({min(x["per_seed"]), max(x["per_seed"])}) for x in point["cost"].values()]
        ranges = [" – ".join(f"{end:,}" for end in pair) for pair in ends]
        rows.append([f"a seed, least – most{', ' if point['hyper'] else ''}{point_label(point['hyper'])}", *ranges])
    rows.append(["all seeds", *(f"{total:,}" for total in summary["cost"].values())])
    head = ["", *(name.replace("_", " ") for name in summary["cost"])]
    seconds = ", ".join(time_words(name, value) for name, value in summary["seconds"].items())
    return table(rows, head), element("p", seconds)


def _read_tables(folder: Path, num_hyper: int) -> dict[str, np.ndarray] | None:
    """The arrays of `tables.npz`, once they are seen to fit the run; None if there is no such file."""
    path = folder / "tables.npz"
    if not path.exists():
        return None
    try:
        tables = read_arrays(path)
        if not _fit(tables, num_hyper):
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in tables.items())
            raise ValueError(f"it does not fit the run: {shapes}")
        return tables
    except ValueError as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}); required: the file as it was written: restore it from a copy, or remove it"
        ) from error


def _fit(tables: Mapping[str, np.ndarray], num_hyper: int) -> bool:
    """Whether these are a policy [hyper, seed, S, A], a true reward [S, A], a learned one like the policy if there is one,
    and a grid of states and walls, −1, if there is one."""
    policy, true = (tables.get(name, np.zeros(0)) for name in ("policy", "true_reward"))
    learned = tables.get("learned_reward", policy)
    of_numbers = all(x.size and x.dtype.kind == "f" for x in (learned, policy, true))
    of_one_run = policy.ndim == 4 and policy.shape == learned.shape == (num_hyper, policy.shape[1], *true.shape)
    if not of_numbers or not of_one_run or "grid" not in tables:
        return of_numbers and of_one_run
    grid, (num_states, num_actions) = tables["grid"], true.shape
    is_map = grid.ndim == 2 and grid.size > 0 and grid.dtype.kind == "i" and num_actions <= len(MOVES)
    return bool(is_map and grid.min() >= -1 and grid.max() < num_states)
