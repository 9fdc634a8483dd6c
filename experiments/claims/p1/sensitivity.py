"""P1.sensitivity: which of Algorithm 1's numbers matter, which must be chosen together, and what `bilevel tune` finds.

Around the theorem's schedule at one ε, on the two-state MDP at w = 3 (one maximum of Φ), σ and each of the step sizes vary
in pairs on a grid, then K, n, B and L alone. What is measured is Φ* − Φ(φ_T) with the exact Φ. Φ* is the largest that
ascents from a square find; farther away Φ can be larger, and a run that ends above Φ* is counted. Then searches that know
none of the constants (`p1.tuning`).

If two numbers could be tuned one after the other, the mean log gap would be additive in them: log gap = row + column. The
*interaction share* of `experiments.statistics.interaction` is the part of its variance over the grid that this leaves.
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.claims import panels
from experiments.claims.claim import Budget, Claim, Measurement, Number, Table
from experiments.claims.p1 import tuning, two_states
from experiments.claims.p1.base_point import KL_WEIGHT, Runs, base_point, learn, stacked
from experiments.claims.p1.tuning import Tuning, TuningSizes
from experiments.claims.p1.two_states import ROUNDING, Numbers
from experiments.statistics import intervals
from experiments.statistics.interaction import Interaction, interaction
from experiments.statistics.intervals import Interval

AXES = {
    "sigma": "σ",
    "critic_step_size": "β′",
    "policy_step_size": "τ",
    "proxy_step_ratio": "τ′/τ",
    "reward_step_size": "η",
}
COUNTS = {"num_policy_steps": "K", "num_transitions": "n", "batch_size": "B", "num_targets": "L"}


class Sizes(NamedTuple):
    """How much is computed."""

    epsilon: float = 0.4  # of the schedule that the base point follows
    factors: tuple[float, ...] = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)  # of each real number, rising, 1 in the middle
    # name -> values of K, n, B and L; each value that is not the base point's is a program of its own
    counts: dict[str, tuple[int, ...]] = {  # noqa: RUF012
        "num_policy_steps": (1, 4, 16),
        "num_transitions": (144, 576, 2304),
        "batch_size": (10, 40, 160),
        "num_targets": (1, 2, 8),
    }
    num_seeds: int = 24  # the same for all points
    chunk: int = 4  # outer steps a call of a program
    num_starts: int = 64  # of the ascents by which Φ* is found
    ascent_steps: int = 1500  # of each
    tuning: TuningSizes = TuningSizes()  # of the searches


FULL = Sizes()
FEW = {"num_policy_steps": (2, 4), "num_transitions": (64,), "batch_size": (16,), "num_targets": (2,)}
QUICK = Sizes(1.0, (1 / 3, 1.0, 3.0), FEW, 8, num_starts=16, ascent_steps=600, tuning=TuningSizes(4, 6, 9, 12, 2))


class Line(NamedTuple):
    """One count alone, at each of its values."""

    samples: np.ndarray  # [value] a run
    runs: Runs  # [value, seed]


class Sensitivity(NamedTuple):
    """What was measured: Φ*, the runs of the grids' points and of each line, and the searches."""

    sizes: Sizes
    best: float  # Φ*
    runs: Runs  # of the grids' points
    lines: dict[str, Line]
    tuning: Tuning


def measure(budget: Budget, sizes: Sizes | None = None) -> Sensitivity:
    """The grids, the lines, and the searches beside the best point of the grids; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else FULL)
    counts, base = base_point(sizes.epsilon)
    best = float(two_states.assumption(KL_WEIGHT, sizes.num_starts, sizes.ascent_steps).best)
    points, _ = grids(base, sizes.factors)
    seeds = np.arange(sizes.num_seeds)
    runs = budget.keep("grids", Runs, partial(learn, best, counts, stacked(points), seeds, sizes.chunk))
    budget.say(f"{runs.gap.size} runs on the grids; {int(runs.diverged.sum())} diverged")
    lines = {}
    for name, values in sizes.counts.items():
        compute = partial(line, best, [counts._replace(**{name: x}) for x in values], base, seeds, sizes.chunk)
        lines[name] = budget.keep(name, Line, compute)
        shown = ", ".join(f"{x:.4f}" for x in lines[name].runs.gap.mean(axis=1))
        budget.say(f"{COUNTS[name]} = {values}: mean gap {shown}")
    cell = points[int(np.argmin(runs.gap.mean(axis=1)))]
    compute = partial(tuning.compare, best, sizes.epsilon, cell, sizes.tuning, sizes.chunk)
    return Sensitivity(sizes, best, runs, lines, budget.keep("tuning", Tuning, compute))


def grids(base: Numbers, factors: tuple[float, ...]) -> tuple[list[Numbers], dict[tuple[str, str], np.ndarray]]:
    """Every pair of axes around the base point: the points, each once; (row axis, column axis) -> which, [level, level]."""
    middle, places = len(factors) // 2, {}
    index = {pair: np.empty((len(factors), len(factors)), int) for pair in itertools.combinations(AXES, 2)}
    for pair, table in index.items():
        for levels in np.ndindex(table.shape):
            place = dict.fromkeys(AXES, middle) | dict(zip(pair, levels, strict=True))
            table[levels] = places.setdefault(tuple(place.values()), len(places))

    def point(place):
        return Numbers(**{name: getattr(base, name) * factors[i] for name, i in zip(AXES, place, strict=True)})

    return [point(place) for place in places], index


def line(best: float, counts, base: Numbers, seeds: np.ndarray, chunk: int) -> Line:
    """The base point's numbers with each of the counts."""
    ends = [learn(best, each, stacked([base]), seeds, chunk) for each in counts]
    samples = [two_states.step_transitions("weighted", each) * each.num_steps for each in counts]
    return Line(np.array(samples), jax.tree.map(lambda *x: np.concatenate(x), *ends))


def interactions(data: Sensitivity) -> dict[tuple[str, str], Interaction]:
    """Of every pair of axes, by falling share; those with nothing to share last."""
    _, index = grids(base_point(data.sizes.epsilon)[1], data.sizes.factors)
    gap, alive = data.runs.gap, ~data.runs.diverged.any(axis=-1)
    found = {pair: interaction(gap[table], alive[table]) for pair, table in index.items()}
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1].share, nan=-1)))


def judge(data: Sensitivity) -> Measurement:
    """Interaction shares, gaps along the lines, and what the searches found."""
    sizes, shares, numbers = data.sizes, interactions(data), {}
    for pair, of in shares.items():
        why = "" if np.isfinite(of.share) else "the gap hardly varies"
        numbers[f"interaction share, {named(pair)}"] = Number(of.share, *of.interval, why)
    for name, along in data.lines.items():
        for value, *of in zip(sizes.counts[name], *intervals.mean(along.runs.gap, axis=1), strict=True):
            numbers[f"gap, {COUNTS[name]} = {value}"] = Number(*of)
    counts, base = base_point(sizes.epsilon)
    one = counts.num_steps * two_states.step_transitions("weighted", counts)
    cost = one * (data.runs.gap.size + data.tuning.pool.gap.size)
    cost += sizes.num_seeds * sum(float(np.sum(along.samples)) for along in data.lines.values())
    cost += sizes.tuning.repetitions * sum(data.tuning.samples.values())
    notes = (
        f"{int(np.sum(data.runs.gap <= ROUNDING))} of {data.runs.gap.size} runs on the grids ended above Φ*, and "
        f"{int(data.runs.diverged.sum())} diverged, whose gap is at their last finite reward; cells with such runs are left "
        "out of the interactions",
        tuning.note_of(data.tuning),
    )
    rows = [
        {"pair": named(pair), "share with noise": of.with_noise, "factor": of.factor, "cells": of.cells}
        for pair, of in shares.items()
    ]
    tables = Table("Interactions", rows), Table("Every point of the grids", points_of(data, base))
    numbers |= tuning.numbers_of(data.tuning)
    return Measurement(numbers, {"transitions": cost}, notes, (*tables, *tuning.tables_of(data.tuning)))


def named(pair: tuple[str, str]) -> str:
    """Both symbols of a pair of axes."""
    return " and ".join(AXES[name] for name in pair)


def points_of(data: Sensitivity, base: Numbers) -> list[dict[str, float]]:
    """The numbers of every point of the grids, its mean gap with the 95 % interval, nats, and the seeds that diverged."""
    points, _ = grids(base, data.sizes.factors)
    ends = zip(*intervals.mean(data.runs.gap, axis=1), data.runs.diverged.sum(axis=1), strict=True)
    return [
        {AXES[name]: getattr(point, name) for name in AXES}
        | dict(zip(("gap", "low", "high", "diverged"), of, strict=True))
        for point, of in zip(points, ends, strict=True)
    ]


def draw(data: Sensitivity) -> Figure:
    """A heat map for each pair, by falling interaction; the shares, and a panel for each count; then what searches found."""
    figure = Figure(figsize=(21, 18), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(12.5, 5))
    axes, shares = top.subplots(3, 5), interactions(data)
    points, index = grids(base_point(data.sizes.epsilon)[1], data.sizes.factors)
    mean = intervals.mean(data.runs.gap, axis=1)
    scale = LogNorm(mean.center.min(), mean.center.max())
    for panel, (pair, of) in zip(axes[:2].ravel(), shares.items(), strict=True):
        image = _heat_map(panel, pair, index[pair], points, mean, data.runs.diverged, scale)
        shown = "{:.2f} [{:.2f}, {:.2f}]".format(of.share, *of.interval)
        shown = shown if np.isfinite(of.share) else "undefined, hardly varies"
        panel.set_title(f"{named(pair)}: interaction {shown}", fontsize=11)
    top.colorbar(image, ax=axes[:2], label="mean Φ* − Φ(φ_T), nats", shrink=0.6)
    _draw_shares(axes[2, 0], shares)
    base = data.runs.gap[index["sigma", "critic_step_size"][2 * (len(data.sizes.factors) // 2,)]]
    for panel, (name, along) in zip(axes[2, 1:], data.lines.items(), strict=True):
        _draw_line(panel, COUNTS[name], data.sizes.counts[name], along, base)
    ends = np.concatenate([intervals.mean(x.runs.gap, axis=1)[1:] for x in data.lines.values()], axis=1)
    for panel in axes[2, 1:]:
        panel.set_ylim(0.5 * ends[0].min(), 2 * ends[1].max())
    about = (
        "×: seeds that diverged, whose gap is at their last finite reward; such cells are left out of the interaction"
    )
    title = f"Algorithm 1 around one point, {len(base)} seeds a cell: mean gap ± half of its 95 % interval, nats"
    top.suptitle(f"{title} ({about})")
    tuning.draw(bottom.subplots(1, 3), data.tuning)
    return figure


def _heat_map(panel, pair, index: np.ndarray, points, mean: Interval, diverged: np.ndarray, scale):
    """Mean gap by colour, in numbers with its half width, and the number of seeds that diverged."""
    image = panel.imshow(mean.center[index], norm=scale, cmap="viridis_r", origin="lower", aspect="auto")
    for (i, j), point in np.ndenumerate(index):
        center, half, died = mean.center[point], (mean.high - mean.low)[point] / 2, int(diverged[point].sum())
        text = f"{float(f'{center:.2g}'):g}\n±{float(f'{half:.1g}'):g}" + (f"\n× {died}" if died else "")
        color = "white" if scale(center) > 0.55 else "black"
        panel.text(j, i, text, ha="center", va="center", fontsize=7.5, color=color)
    for axis, name, along in zip((panel.yaxis, panel.xaxis), pair, (index[:, 0], index[0]), strict=True):
        axis.set_ticks(range(len(index)), [f"{getattr(points[point], name):.2g}" for point in along])
        axis.set_label_text(AXES[name])
    return image


def _draw_shares(panel, shares: dict[tuple[str, str], Interaction]) -> None:
    of = Interval(*np.array([(x.share, *x.interval) for x in shares.values()]).T)
    rows = range(len(shares))
    style = dict(fmt="o", color=panels.BLUE, label="without the seeds' noise")
    panel.errorbar(of.center, rows, xerr=intervals.bars(of), **style)
    panel.plot([x.with_noise for x in shares.values()], rows, "x", color="0.4", label="with it")
    panel.axvline(0, color="0.5", linewidth=1)
    panel.set_yticks(rows, [named(pair) for pair in shares])
    panel.invert_yaxis()
    panel.set(xlabel="interaction share of the variance of mean log gap")
    panel.set_title("What row + column leaves, 95 % intervals", fontsize=11)
    panel.legend(fontsize=8, loc="lower right")
    panel.grid(alpha=0.3)


def _draw_line(panel, symbol: str, counts: tuple[int, ...], along: Line, base: np.ndarray) -> None:
    """The mean gap against one count; at each point the samples, and the gap over the base point's with equal seeds."""
    mean = intervals.mean(along.runs.gap, axis=1)
    panels.curve(panel, counts, mean, panels.VERMILION)
    ratio = Interval(*map(np.exp, intervals.mean(np.log(along.runs.gap / base), axis=1)))
    for i, (count, samples) in enumerate(zip(counts, along.samples, strict=True)):
        center, low, high = (x[i] for x in ratio)
        beside = "" if np.allclose(low, high, rtol=1e-2) else f"\n×{center:.2f}\n[{low:.2f}, {high:.2f}]"
        place = dict(xytext=(0, 4), textcoords="offset points", fontsize=8, ha="center")
        panel.annotate(f"{samples / 1e6:.2f} M{beside}", (count, mean.high[i]), **place)
    panels.log_log(panel, symbol, "mean Φ* − Φ(φ_T), nats")
    panel.set_title(f"{symbol} alone: samples a run; × the base point's gap\n(geometric mean over seeds)", fontsize=10)
    panels.ticks(panel, counts)
    panel.set_xlim(min(counts) / 1.7, max(counts) * 1.7)
    panel.grid(alpha=0.3)


CLAIM = Claim(
    statement="Some of Algorithm 1's numbers must be chosen together, and a search finds them without knowing the problem.",
    source="this project's; 2410.15610 leaves them open",
    prediction="none: how far the log gap is from additive in two numbers, and what a search reaches beside the schedule",
    minutes=(2, 40),
    measure=measure,
    judge=judge,
    draw=draw,
)
