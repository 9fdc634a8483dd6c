"""One page about a run, complete in itself: what was run, what came out, what it cost, and what looks wrong."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

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

TABLES = {  # dimensions of the arrays in tables.npz, beside which there may be `grid`
    "learned_reward": ("hyper", "seed", "state", "action"),
    "policy": ("hyper", "seed", "state", "action"),
    "true_reward": ("state", "action"),
}


class Notes(TypedDict, total=False):
    """What `notes.json` holds: sentences that a reader must know, and the command line that was run."""

    notes: list[str]
    command: str


def write_report(
    folder: str | os.PathLike[str], dataset: xr.Dataset, summary: dict[str, Any], notes: Sequence[str] = ()
) -> Path:
    """Writes `report.html` and `figures/*.png` into the run's folder; the path of the former.

    Args:
        folder: of the run. Of config.json, manifest.json, notes.json, baselines.json and tables.npz, it uses what there
            is.
        dataset: its metrics, dims (hyper, seed, step).
        summary: of `experiments.report.summary.summarise`.
        notes: what the reader must know besides those in notes.json, one sentence each.

    Raises:
        RunFolderError: one of these files is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    baselines = read_json(folder, "baselines.json", Baselines, {})
    told = read_json(folder, "notes.json", Notes, {})
    figures = draw(dataset, baselines, _read_tables(folder, dataset.sizes["hyper"]))
    save_pngs(figures, folder)
    content = _page(folder, summary, baselines, figures, told, notes)
    write_atomically(folder, "report.html", content.encode(errors="replace"))  # names of files may be no text
    return folder / "report.html"


def _page(
    folder: Path,
    summary: dict[str, Any],
    baselines: Baselines,
    figures: Mapping[str, Figure],
    told: Notes,
    notes: Sequence[str],
) -> Markup:
    config, manifest = (read_json(folder, f"{name}.json", dict, {}) for name in ("config", "manifest"))
    made_with = {"command": told.get("command") or "not recorded"} | manifest
    made_with.pop("config", None)
    return page(
        folder.resolve().name,
        styled("p", "headline", headline(summary, baselines)),
        *(styled("p", "note", note) for note in [*told.get("notes", []), *notes]),
        section("Signs of failure", items(sign_items(summary))),
        section("Results", element("pre", format_table(summary))),
        section("Figures", *(_figure(name, figure) for name, figure in figures.items())),
        section("Cost", *_costs(summary)),
        section("What was run", styled("div", "facts", _facts(config))),
        section("What it was run with", styled("div", "facts", _facts(made_with))),
    )


def headline(summary: dict[str, Any], baselines: Baselines) -> str:
    """The run in one or two sentences: where the metric that matters most began and ended, and who is alive."""
    name, points = headline_metric(list(summary["units"])), summary["points"]
    if name is None:
        return "Nothing was measured."

    def reached(point):
        value = point["metrics"][name]["last"]["all"]["interquartile_mean"]
        return -np.inf if value is None else value

    best = max(points, key=reached)
    ends, seeds = best["metrics"][name], best["seeds"]
    first, final = ends["first"]["all"]["interquartile_mean"], ends["last"]["all"]
    label = summary["labels"][name]
    known = ", ".join(f"{who} {number(value)}" for who, value in baselines.get(name, {}).items())
    interval = f" {bracket(final['interquartile_mean_interval'])}" if final["seeds"] > 1 else ""
    where = (
        f"At {point_label(best['hyper'])}, the best of {len(points)} points by this number: {label}"
        if len(points) > 1
        else label
    )
    low, high = summary["ranges"].get(name, (None, None))
    possible = f" of {number(high)}" if high is not None and low == 0 else ""
    steps, last = counted(summary["steps"], "outer step"), number(final["interquartile_mean"])
    return (
        f"{where[0].upper()}{where[1:]} from {number(first)} after the first step to {last}{interval}{possible} in {steps} "
        f"({_averaged(final['seeds'], seeds['total'])}){'; ' + known if known else ''}. "
        f"{seeds['alive']} of {counted(seeds['total'], 'seed')} alive, {seeds['converged']} converged. "
        f"Signs of failure: in {_failing(points)}. {unfinished(summary)}".rstrip()
    )


def _averaged(num: int, total: int) -> str:
    """What the numbers of a headline are, over `num` of `total` seeds."""
    never = f"; {total - num:,} never had a finite value" if num < total else ""
    return f"interquartile mean{' and 95 % interval' if num > 1 else ''} over {counted(num, 'seed')}{never}"


def _failing(points: Sequence[dict[str, Any]]) -> str:
    """In how many runs signs of failure are seen."""
    total, failing = (sum(x) for x in zip(*((p["seeds"]["total"], p["seeds_with_signs"]) for p in points), strict=True))
    of_all = (
        counted(total, "seed") if len(points) == 1 else f"{counted(total, 'run')} (seeds of all {len(points)} points)"
    )
    return f"{failing or 'none'} of {of_all}"


def sign_items(summary: dict[str, Any]) -> list[str]:
    """The signs of failure, one sentence each, or one that says that no seed shows any and what was looked for."""
    return sign_sentences(summary) or [
        f"None found in any seed. Looked for: {looked_for(summary['points'][0]['metrics'])}."
    ]


def _figure(name: str, figure: Figure) -> Markup:
    return picture(svg(figure, name), CAPTIONS.get(name.split("_")[0], name))


def _facts(tree: Mapping[str, Any]) -> Markup:
    return table(list(_flatten(tree))) if tree else element("p", "not recorded")


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
    sizes = {"hyper": num_hyper}
    for name, dims in TABLES.items():
        shape = tables[name].shape if name in tables and tables[name].dtype.kind == "f" else ()
        if len(shape) != len(dims) or not all(
            0 < n == sizes.setdefault(dim, n) for dim, n in zip(dims, shape, strict=True)
        ):
            return False
    if "grid" not in tables:
        return True
    grid, states = tables["grid"], range(-1, sizes["state"])  # -1: a wall
    is_map = grid.ndim == 2 and grid.size > 0 and grid.dtype.kind == "i" and sizes["action"] <= len(MOVES)
    return is_map and grid.min() in states and grid.max() in states
