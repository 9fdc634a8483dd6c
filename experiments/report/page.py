"""One page about a run, complete in itself: what was run, what came out, what it cost, and what looks wrong."""

import html
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.files import RunFolderError, read_arrays, read_json, write_atomically
from experiments.report.figures import MOVES, draw, save_pngs
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
STYLE = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
.headline { font-size: 1.1rem } .note { background: #fff4d6; padding: .5rem 1rem; border-left: 4px solid #e69f00 }
figure { margin: 1rem 0 } figcaption { color: #555; font-size: .9rem } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .9rem } pre { font-size: .75rem; line-height: 1.35; overflow-x: auto }
td, th { text-align: left; padding: .1rem 1.2rem .1rem 0; vertical-align: top; border-bottom: 1px solid #eee }
.facts { columns: 2 22rem } .facts td:last-child { overflow-wrap: anywhere } .facts tr { break-inside: avoid }
"""
FONTS = "DejaVu Sans, Verdana, sans-serif"
SVG_SAVINGS = {  # inside tags; a third of the bytes
    r' id="[\w.]+_\d+"': "",  # matplotlib numbers groups from one in every figure; a page may hold an id only once
    r'font-family: [^;"]+;? ?': "",
    r' transform="rotate\(-0 [^)]*\)"': "",
    r' (?:d|x|y|transform)="[^"]+"': lambda place: re.sub(r"(\d\.\d\d)\d+", r"\1", place[0]),
    r' d="[^"]+"': lambda path: re.sub(r"\s*([A-Zz])\s*", r"\1", path[0]),
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
    page = _page(folder, summary, baselines, figures, told, notes)
    write_atomically(folder, "report.html", page.encode(errors="replace"))  # names of files may be no text
    return folder / "report.html"


def _page(
    folder: Path,
    summary: dict[str, Any],
    baselines: Baselines,
    figures: Mapping[str, Figure],
    told: Notes,
    notes: Sequence[str],
) -> str:
    config, manifest = (read_json(folder, f"{name}.json", dict, {}) for name in ("config", "manifest"))
    made_with = {"command": told.get("command") or "not recorded"} | manifest
    made_with.pop("config", None)
    name = html.escape(folder.resolve().name)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta name="viewport" content="width=device-width"><title>{name}</title>',
            f"<style>{STYLE}</style></head>\n<body><h1>{name}</h1>",
            f'<p class="headline">{html.escape(headline(summary, baselines))}</p>',
            *(f'<p class="note">{html.escape(note)}</p>' for note in [*told.get("notes", []), *notes]),
            _section("Signs of failure", _items(sign_items(summary))),
            _section("Results", f"<pre>{html.escape(format_table(summary))}</pre>"),
            _section("Figures", "".join(_figure(name, figure) for name, figure in figures.items())),
            _section("Cost", _cost_table(summary)),
            _section("What was run", f'<div class="facts">{_facts(config)}</div>'),
            _section("What it was run with", f'<div class="facts">{_facts(made_with)}</div>'),
            "</body></html>\n",
        ]
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


def to_svg(figure: Figure, title: str) -> str:
    """A figure as an `<svg>` element to stand inside HTML; its text stays text.

    Args:
        figure: of `experiments.report.figures.draw`.
        title: for readers who cannot see it; figures of one page need different ones.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", _short_tag, re.sub(r">\s+<", "><", svg))
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" font-family="{FONTS}" ', 1)


def _short_tag(tag: re.Match[str]) -> str:
    short = tag[0]
    for pattern, replacement in SVG_SAVINGS.items():
        short = re.sub(pattern, replacement, short)
    return short


def _figure(name: str, figure: Figure) -> str:
    caption = html.escape(CAPTIONS.get(name.split("_")[0], name))
    return f"<figure>{to_svg(figure, name)}<figcaption>{caption}</figcaption></figure>\n"


def _section(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n{body}"


def _items(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)] if head else []
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _facts(tree: Mapping[str, Any]) -> str:
    return _table(list(_flatten(tree))) if tree else "<p>not recorded</p>"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            items = value if isinstance(value, list) else [value]
            yield prefix + name, ", ".join(number(item, 6) for item in items)


def _cost_table(summary: dict[str, Any]) -> str:
    rows = []
    for point in summary["points"]:
        ends = [sorted({min(x["per_seed"]), max(x["per_seed"])}) for x in point["cost"].values()]
        ranges = [" – ".join(f"{end:,}" for end in pair) for pair in ends]
        rows.append([f"a seed, least – most{', ' if point['hyper'] else ''}{point_label(point['hyper'])}", *ranges])
    rows.append(["all seeds", *(f"{total:,}" for total in summary["cost"].values())])
    head = ["", *(name.replace("_", " ") for name in summary["cost"])]
    seconds = ", ".join(time_words(name, value) for name, value in summary["seconds"].items())
    return _table(rows, head) + f"<p>{html.escape(seconds)}</p>"


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
