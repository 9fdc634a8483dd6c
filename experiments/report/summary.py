"""What a run came to: numbers with intervals over seeds, as JSON values and as a table to print.

A seed is the unit of every interval. Numbers are given over all seeds, where one that diverged counts with its last
finite values, and over the survivors alone, which is the kinder and the more biased of the two.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import xarray as xr

from experiments.files import as_json
from experiments.report.signs import Goal, find_signs
from experiments.statistics import intervals
from experiments.statistics.intervals import MIN_SEEDS

# As in `bilevel.run`, which needs JAX: a report is read without.
COUNTS = ("transitions", "queries", "labels", "gradient_evaluations")
RUNNING, CONVERGED, DIVERGED = 0, 1, 2  # the values of the variable `status`

WIDTH = 100
MOST_NAMED = 8  # seeds, in a sentence

Baselines = dict[str, dict[str, float | None]]  # metric -> label -> what is known of the world beforehand


class Extent(TypedDict, total=False):
    """What `summary.json` says that it is of: outer steps, and seeds at each point."""

    steps: int
    seeds: int


class Metric(NamedTuple):
    """What a variable is called where people read it, and its unit ("" if it has none)."""

    label: str
    unit: str


METRICS = {
    "true_score": Metric("true score", "true reward"),
    "true_return": Metric("true return", "true reward"),
    "upper_objective": Metric("upper objective", "nats"),
    "kl_to_reference": Metric("KL to the reference", "nats"),
    "policy_entropy": Metric("policy entropy", "nats"),
    "learned_return": Metric("learned return", "learned reward"),
    "gradient_norm": Metric("gradient norm", "nats / unit of φ"),
    "implicit_gradient_norm": Metric("implicit gradient norm", "nats / unit of φ"),
    "policy_gradient_norm": Metric("policy gradient norm", "learned reward / unit of λ"),
    "proxy_gradient_norm": Metric("proxy gradient norm", "learned reward / unit of λ′"),
    "critic_loss": Metric("critic loss", "squared learned reward"),
    "weight_ess": Metric("rollouts that count in line 7", "share"),
}
SURVIVORS = "survivors: last, 95 %"  # the column of a table
KEY_METRICS = ("true_score", "true_return", "upper_objective", "kl_to_reference")


def describe(name: str, attributes: Mapping[str, Any] | None = None) -> Metric:
    """The label and unit of a variable: its own attributes `long_name` and `units`, where it has them, before `METRICS`; of
    an unknown one, its name in words and no unit."""
    known, own = METRICS.get(name, Metric(name.replace("_", " "), "")), attributes or {}
    return Metric(own.get("long_name", known.label), own.get("units", known.unit))


def metric_names(dataset: xr.Dataset) -> list[str]:
    """The variables that are measurements, neither counts nor `status`: known ones first, in the order of `METRICS`."""
    found = [str(name) for name, x in dataset.items() if set(x.dims) == {"hyper", "seed", "step"}]
    found = [name for name in found if name not in (*COUNTS, "status")]
    return [name for name in METRICS if name in found] + sorted(set(found) - set(METRICS))


def shown_metrics(dataset: xr.Dataset) -> list[str]:
    """Those of `metric_names` that tell something of their own. Left out are a loss that is 0 throughout, since nothing
    is fitted, and the gradient norm where it is the same numbers as the policy's, whose name and unit are right then:
    where the reward rests."""
    names = metric_names(dataset)
    idle = [name for name in names if name.endswith("_loss") and _is_zero(dataset[name].values)]
    norms = [dataset[name].values for name in ("gradient_norm", "policy_gradient_norm") if name in names]
    if len(norms) == 2 and np.array_equal(*norms, equal_nan=True):
        idle.append("gradient_norm")
    return [name for name in names if name not in idle]


def _is_zero(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and not finite.any()


def key_metrics(names: list[str]) -> list[str]:
    """Those of `names` that a sweep is judged by; where none is known, the first three."""
    return [name for name in KEY_METRICS if name in names] or names[:3]


def headline_metric(names: list[str]) -> str | None:
    """The one of `names` that a run is judged by first: the score, where the world has one; None where there are no
    names."""
    return next(iter(key_metrics(names)), None)


def metric(dataset: xr.Dataset, name: str, hyper: int = 0) -> np.ndarray:
    """One variable at one hyperparameter point, [seed, step] float64, NaN where it is not finite."""
    values = dataset[name].transpose("hyper", "seed", "step").values[hyper].astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def counts(dataset: xr.Dataset, name: str, hyper: int = 0) -> np.ndarray:
    """A cost of each outer step at one hyperparameter point, [seed, step] int64; its sums are exact."""
    values = dataset[name].transpose("hyper", "seed", "step").values[hyper]
    return np.nan_to_num(values).astype(np.int64)


def final_status(dataset: xr.Dataset, hyper: int = 0) -> np.ndarray:
    """How each seed stands after the last step, [seed]; a dataset without `status` has no dead."""
    if "status" not in dataset:
        return np.full(dataset.sizes["seed"], RUNNING)
    return counts(dataset, "status", hyper).max(axis=1)  # the two final ones never change, and are never mixed


def last_finite(values: np.ndarray) -> np.ndarray:
    """The last finite value along the last axis, NaN where there is none: [seed, step] -> [seed]."""
    finite = np.isfinite(values)
    last = values.shape[-1] - 1 - np.argmax(finite[..., ::-1], axis=-1)
    return np.take_along_axis(values, last[..., None], axis=-1)[..., 0]


def hyper_points(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """The value of each swept hyperparameter at each point along `hyper`; empty dictionaries where nothing is swept."""
    names = [name for name, x in dataset.coords.items() if x.dims == ("hyper",) and name != "hyper"]
    return [{str(n): dataset[n].values[i].item() for n in names} for i in range(dataset.sizes["hyper"])]


def summarise(
    dataset: xr.Dataset, timing: dict[str, Any] | None = None, baselines: Baselines | None = None
) -> dict[str, Any]:
    """A run, dims (hyper, seed, step), in numbers, all of them JSON values: what is no number is null, and so is the
    interval of a single seed. Timing, seconds and speeds of the run, is copied; a "reference policy" among the
    baselines, metric -> label -> value, is what seeds are compared with.

    Returns `steps` and `seeds`, how many it is of, and `points`, one a hyperparameter point: `hyper` its values,
    `seeds` who lives, `metrics` by name, then `first` and `last`, then `all` and `survivors`, then each statistic;
    `cost` its exact counts; `signs` of failure, each with the numbers of the `seeds` that show it, and
    `seeds_with_signs`, how many show any; `alike` tells whether all of several seeds have equal values throughout.
    Beside them `cost`, summed over the points, `configured_steps` (null where unknown), `seconds`, and by metric
    `labels`, `units`, and `ranges` where what is possible is known.
    """
    goal = _goal(dataset, baselines or {})
    points = [_summarise_point(dataset, i, point, goal) for i, point in enumerate(hyper_points(dataset))]
    about = {name: dataset[name].attrs for name in shown_metrics(dataset)}
    names = [name for name in COUNTS if name in dataset]
    return {
        "steps": dataset.sizes["step"],
        "seeds": dataset.sizes["seed"],
        "configured_steps": json.loads(dataset.attrs.get("config", "{}")).get("steps"),
        "points": points,
        "cost": {name: sum(point["cost"][name]["total"] for point in points) for name in names},
        "seconds": as_json(timing or {}),
        "labels": {name: describe(name, own).label for name, own in about.items()},
        "units": {name: describe(name, own).unit for name, own in about.items()},
        "ranges": {n: [x.get("valid_min"), x.get("valid_max")] for n, x in about.items() if "valid_max" in x},
    }


def _goal(dataset: xr.Dataset, baselines: Baselines) -> Goal | None:
    name = headline_metric([name for name in ("true_score", "true_return") if name in metric_names(dataset)])
    if name is None:
        return None
    known = {label: value for label, value in baselines.get(name, {}).items() if value is not None}
    own = dataset[name].attrs
    bounds = [*known.values(), *([own["valid_max"]] if "valid_max" in own else [])]
    # The reference alone does not tell what is possible.
    best = max(bounds) if set(known) - {"reference policy"} or "valid_max" in own else None
    return Goal(name, describe(name, own).label, known.get("reference policy"), best)


def _summarise_point(dataset: xr.Dataset, hyper: int, point: dict[str, Any], goal: Goal | None) -> dict[str, Any]:
    values = {name: metric(dataset, name, hyper) for name in metric_names(dataset)}
    cost = {name: counts(dataset, name, hyper).sum(axis=1).tolist() for name in COUNTS if name in dataset}
    alive = final_status(dataset, hyper) != DIVERGED
    signs = find_signs(values, ~alive, goal)
    seeds = dataset["seed"].values
    return {
        "hyper": as_json(point),
        "seeds": seed_counts(dataset, hyper),
        "metrics": {name: _ends(x, alive) for name, x in values.items()},
        "cost": {name: {"total": sum(per_seed), "per_seed": per_seed} for name, per_seed in cost.items()},
        "signs": [{"sign": x.what, "seeds": seeds[x.seeds].tolist(), "helps": x.helps} for x in signs],
        "seeds_with_signs": int(np.sum(np.any([np.zeros_like(alive), *(x.seeds for x in signs)], axis=0))),
        "alike": len(seeds) > 1 and all(np.array_equal(x[1:], x[:-1], equal_nan=True) for x in values.values()),
    }


def seed_counts(dataset: xr.Dataset, hyper: int = 0) -> dict[str, Any]:
    """How many seeds there are, are alive (converged ones too), converged and diverged, and when each of those died."""
    status = final_status(dataset, hyper)
    dead = np.flatnonzero(status == DIVERGED)
    died_at = [int(np.argmax(counts(dataset, "status", hyper)[i] == DIVERGED)) for i in dead]
    seeds, steps = dataset["seed"].values, dataset["step"].values
    return {
        "total": len(status),
        "alive": len(status) - len(dead),
        "converged": int(np.sum(status == CONVERGED)),
        "diverged": len(dead),
        "deaths": [{"seed": int(seeds[i]), "step": int(steps[t])} for i, t in zip(dead, died_at, strict=True)],
    }


def _ends(values: np.ndarray, alive: np.ndarray) -> dict[str, Any]:
    """Statistics of the first and last values of [seed, step], over all seeds and over those alive [seed]."""
    ends = {"first": values[:, 0], "last": last_finite(values)}
    return {name: {"all": _statistics(x), "survivors": _statistics(x[alive])} for name, x in ends.items()}


def _statistics(values: np.ndarray) -> dict[str, Any]:
    num, found = int(np.sum(np.isfinite(values))), {}
    for name, of in (("interquartile_mean", intervals.interquartile_mean), ("mean", intervals.mean)):
        center, *ends = as_json(of(values))
        found |= {name: center, f"{name}_interval": ends if num > 1 else None}
    return found | {"seeds": num}


def point_label(point: dict[str, Any]) -> str:
    """A hyperparameter point in words, as in `sigma = 0.1, kl_weight = 1`."""
    return ", ".join(f"{name} = {number(value, 6)}" for name, value in point.items())


def number(value: Any, digits: int = 4) -> str:
    """A number as people read it; a dash for one that is not there."""
    if value is None or value != value:
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def bracket(interval: list[float] | None, digits: int = 4) -> str:
    """An interval in brackets; a dash for one that is not there."""
    return "–" if interval is None else f"[{number(interval[0], digits)}, {number(interval[1], digits)}]"


def counted(num: int, noun: str) -> str:
    """So many of something, as in `1 seed` or `7,500 outer steps`."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def time_words(name: str, value: Any) -> str:
    """An entry of a run's timing in words, as in `compile 4.2 s`."""
    words = name.removesuffix("_seconds").replace("_", " ")
    return f"{words} {number(value)}{' s' if name.endswith('_seconds') else ''}"


def unfinished(summary: dict[str, Any]) -> str:
    """A sentence that says how far a run has come that has not come to its end; "" of one that has."""
    done, configured = summary["steps"], summary["configured_steps"]
    return f"Unfinished: {done:,} of {counted(configured, 'outer step')} are done." if done < (configured or 0) else ""


def sign_sentences(summary: dict[str, Any]) -> list[str]:
    """Each sign of failure in one sentence: what, which seeds at which points of a sweep, and what usually helps."""
    found: dict[tuple[str, str], list[str]] = {}
    for point in summary["points"]:
        where = f" at {point_label(point['hyper'])}" if point["hyper"] else ""
        for sign in point["signs"]:
            named = f"{'seed' if len(sign['seeds']) == 1 else 'seeds'} {_first_named(sign['seeds'])}"
            who = f"{len(sign['seeds']):,} of {counted(point['seeds']['total'], 'seed')} ({named}){where}"
            found.setdefault((sign["sign"], sign["helps"]), []).append(who)
    return [f"{what}: {'; '.join(who)}. What usually helps: {helps}." for (what, helps), who in found.items()]


def _first_named(items: Sequence[Any], separator: str = ", ") -> str:
    more = f" and {len(items) - MOST_NAMED:,} more" if len(items) > MOST_NAMED else ""
    return separator.join(map(str, items[:MOST_NAMED])) + more


def format_table(summary: dict[str, Any]) -> str:
    """The summary as a text of at most 100 columns: a row a metric; of a sweep, for each key metric a row a point."""
    points, labels, names = summary["points"], summary["labels"], list(summary["units"])
    if len(points) == 1:
        blocks = {"metric": [(labels[name], points[0], name) for name in names]}
    else:
        names = key_metrics(names)
        blocks = {labels[name]: [(point_label(point["hyper"]), point, name) for point in points] for name in names}
    more = ["signs"] if any(point["seeds_with_signs"] for point in points) else []
    more += [SURVIVORS] if any(point["seeds"]["diverged"] for point in points) else []
    lines = [line for title, rows in blocks.items() for line in [*_format_block(title, rows, more), ""]]
    notes = [line for note in _notes(summary, names) for line in textwrap.wrap(note, WIDTH, break_on_hyphens=False)]
    return "\n".join([*lines, *notes])


def _format_block(title: str, rows: list[tuple[str, dict, str]], more: list[str]) -> list[str]:
    """Rows under a title, in as many digits as leave room for the labels; a label without room stands above its row."""
    labels = [title, *(label for label, _, _ in rows)]
    for digits in (4, 3):
        head = ["first", "last", "95 % interval", "alive", *more]
        cells = [head, *(_format_row(point, name, more, digits) for _, point, name in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        room = WIDTH - sum(widths) - 2 * len(widths)
        if room >= max(map(len, labels)):
            break
    indent = next((size for size in (max(map(len, labels)), len(title)) if size <= room), 2)
    lines = []
    for label, row in zip(labels, cells, strict=True):
        above, beside = ([], label) if len(label) <= indent else (textwrap.wrap(label, WIDTH), "")
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        lines += [*above, beside.ljust(indent) + numbers] + ([] if lines else ["─" * (indent + len(numbers))])
    return lines


def _format_row(point: dict, name: str, more: list[str], digits: int) -> list[str]:
    seeds, metrics = point["seeds"], point["metrics"][name]
    center, interval = "interquartile_mean", "interquartile_mean_interval"
    first, last, survivors = metrics["first"]["all"], metrics["last"]["all"], metrics["last"]["survivors"]
    beside = {
        "signs": f"{point['seeds_with_signs']}/{seeds['total']}",
        SURVIVORS: f"{number(survivors[center], digits)} {bracket(survivors[interval], digits)}",
    }
    row = [number(first[center], digits), number(last[center], digits), bracket(last[interval], digits)]
    return [*row, f"{seeds['alive']}/{seeds['total']}", *(beside[column] for column in more)]


def _notes(summary: dict[str, Any], names: list[str]) -> list[str]:
    """What stands below the table, a paragraph each: what its numbers are, of which seeds, in which units, at what cost."""
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(summary["units"][name] or "no unit known", []).append(summary["labels"][name])
    deaths = [
        f"seed {death['seed']} at step {death['step']}"
        + (f" ({point_label(point['hyper'])})" if point["hyper"] else "")
        for point in summary["points"]
        for death in point["seeds"]["deaths"]
    ]
    lists = {
        "Units": "; ".join(f"{unit} for {', '.join(labels)}" for unit, labels in units.items()),
        "Diverged": _first_named(deaths),
    }
    costs = {
        "Cost over all seeds": ", ".join(f"{x:,} {name.replace('_', ' ')}" for name, x in summary["cost"].items()),
        "Time": ", ".join(time_words(name, value) for name, value in summary["seconds"].items()),
    }
    return [
        f"Interquartile mean over all seeds after the first and the last of {counted(summary['steps'], 'outer step')}, 95 % "
        "bootstrap interval over seeds. A diverged seed counts with its last finite values, if it ever had any.",
        unfinished(summary),
        *_about_seeds(summary, headline_metric(names)),
        *(f"{subject}: {said}." for subject, said in lists.items() if said),
        *(f"Sign of failure. {sentence}" for sentence in sign_sentences(summary)),
        *(f"{subject}: {said}." for subject, said in costs.items() if said),
    ]


def _about_seeds(summary: dict[str, Any], name: str | None) -> list[str]:
    """What must be known of the seeds of means and intervals: sentences, each with the points of which it is true."""
    found: dict[str, list[str]] = {}
    for point in summary["points"] if name else []:
        total, num = point["seeds"]["total"], point["metrics"][name]["last"]["all"]["seeds"]
        few = f"An interval over {counted(num, 'seed')} covers less than 95 %; {MIN_SEEDS} or more are needed"
        alike = "Seeds do not differ, their values are equal throughout, and an interval over them tells nothing"
        never = f"{total - num:,} of {counted(total, 'seed')} never had a finite value and count in no mean"
        true = {alike: point["alike"] and num, few: not point["alike"] and 1 < num < MIN_SEEDS, never: num < total}
        for sentence in (x for x, holds in true.items() if holds):
            found.setdefault(sentence, []).append(point_label(point["hyper"]))
    everywhere = len(summary["points"])
    return [
        f"{sentence}." if len(where) == everywhere else f"{sentence}: at {_first_named(where, '; ')}."
        for sentence, where in found.items()
    ]
