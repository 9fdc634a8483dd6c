"""Which of Algorithm 1's numbers matter, and which must be chosen together: grids over pairs of them, lines over counts.

Around the schedule of `complexity` at one ε, on its two-state MDP at w = 3 (one maximum of Φ): σ, the step sizes of the
critic, of λ, of λ′ relative to λ, and of φ, each pair on a grid; then K, n, B and L, each alone. What is measured is
Φ* − Φ(φ_T), in nats, with the exact Φ. Φ* is `complexity.assumption`'s, the largest that ascents from a square find; farther
away Φ can be larger, and a run that ends above Φ* is counted.

If two numbers could be tuned one after the other, the mean log gap would be additive in them: log gap = row + column. The
*interaction share* of `experiments.statistics.interaction` is the part of its variance over the grid that this leaves.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bilevel.types import Hyper
from experiments.commands.tune import step_transitions
from experiments.files import write_figure, write_json
from experiments.report.summary import estimate
from experiments.statistics.interaction import Interaction, interaction
from experiments.studies import complexity, tuning
from experiments.studies.around import KL_WEIGHT, Runs, base_point, learn, make_of
from experiments.studies.complexity import ROUNDING, Level

AXES = {
    "sigma": "σ",
    "critic_step_size": "β′",
    "policy_step_size": "τ",
    "proxy_step_ratio": "τ′/τ",
    "reward_step_size": "η",
}
COUNTS = {"num_policy_steps": "K", "num_transitions": "n", "batch_size": "B", "num_targets": "L"}


# The grids ------------------------------------------------------------------------------------------------------------


class Grids(NamedTuple):
    """Points of all pairs of axes, each once.

    Attributes:
        axes: name -> values [level], the middle one the base point's.
        points: Hyper of arrays [point].
        index: (row axis, column axis) -> points of the grid [level, level].
    """

    axes: dict[str, np.ndarray]
    points: Hyper
    index: dict[tuple[str, str], np.ndarray]


def grids(base: Hyper, factors: tuple[float, ...]) -> Grids:
    """Every pair of axes around the base point."""
    axes = {name: getattr(base, name) * np.array(factors) for name in AXES}
    middle, found = len(factors) // 2, {}
    index = {}
    for pair in itertools.combinations(AXES, 2):
        index[pair] = np.empty((len(factors), len(factors)), int)
        for levels in np.ndindex(index[pair].shape):
            place = dict.fromkeys(AXES, middle) | dict(zip(pair, levels, strict=True))
            index[pair][levels] = found.setdefault(tuple(place.values()), len(found))
    points = [base._replace(**{n: axes[n][i] for n, i in zip(AXES, place, strict=True)}) for place in found]
    return Grids(axes, Hyper(*(np.array(x) for x in zip(*points, strict=True))), index)


# The study ------------------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        epsilon: of the schedule that the base point follows.
        factors: by which each real number is multiplied, rising, 1 in the middle.
        counts: name -> values of K, n, B and L; each value that is not the base point's is a program of its own.
        num_seeds: the same for all points.
        chunk: outer steps a call of a program.
        ascents: how Φ* is found.
    """

    epsilon: float = 0.4
    factors: tuple[float, ...] = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
    counts: dict[str, tuple[int, ...]] = {  # noqa: RUF012
        "num_policy_steps": (1, 4, 16),
        "num_transitions": (144, 576, 2304),
        "batch_size": (10, 40, 160),
        "num_targets": (1, 2, 8),
    }
    num_seeds: int = 24
    chunk: int = 4
    ascents: complexity.Sizes = complexity.Sizes()


class Line(NamedTuple):
    """One count alone: values [level], samples [level] a run, runs [level, seed]."""

    values: tuple[int, ...]
    samples: np.ndarray
    runs: Runs


class Sensitivity(NamedTuple):
    """The result: Φ*, the base point's counts, and the runs of the grids' points and of each line."""

    best: float
    counts: Level
    grids: Grids
    runs: Runs
    lines: dict[str, Line]


def study(sizes: Sizes = Sizes(), say=lambda line: None) -> Sensitivity:  # noqa: B008
    """Everything; `say` hears of each part as it ends."""
    best = float(complexity.assumption(KL_WEIGHT, sizes.ascents).best)
    counts, base = base_point(sizes.epsilon)
    found = grids(base, sizes.factors)
    seeds = np.arange(sizes.num_seeds)
    runs = learn(best, counts, found.points, seeds, sizes.chunk)
    say(f"{runs.gap.size} runs on {len(found.index)} grids; {int(runs.diverged.sum())} diverged")
    point = Hyper(*(np.full(1, x) for x in base))
    lines = {}
    for name, values in sizes.counts.items():
        ours = [counts._replace(**{name: value}) for value in values]
        ends_of = [learn(best, x, point, seeds, sizes.chunk) for x in ours]
        samples = np.array([step_transitions(make_of(x)) * x.num_steps for x in ours])
        lines[name] = Line(values, samples, Runs(*(np.concatenate(x) for x in zip(*ends_of, strict=True))))
        say(f"{COUNTS[name]} = {values}: mean gap " + ", ".join(f"{x:.4f}" for x in lines[name].runs.gap.mean(axis=1)))
    return Sensitivity(best, counts, found, runs, lines)


def interactions(result: Sensitivity) -> dict[tuple[str, str], Interaction]:
    """Of every pair of axes, by falling share; those with nothing to share last."""
    found = {
        pair: interaction(result.runs.gap[index], ~result.runs.diverged[index].any(axis=-1))
        for pair, index in result.grids.index.items()
    }
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1].share, nan=-1)))


# What it shows --------------------------------------------------------------------------------------------------------


def draw(result: Sensitivity) -> Figure:
    """A heat map for each pair, by falling interaction; then the shares, and a panel for each count."""
    figure = Figure(figsize=(21, 12.5), layout="constrained")
    axes = figure.subplots(3, 5)
    found = interactions(result)
    mean, (low, high) = mean_interval(result.runs.gap)
    scale = LogNorm(mean.min(), mean.max())
    for panel, (pair, about) in zip(axes.ravel(), found.items(), strict=False):
        image = heat_map(panel, result, pair, mean, (high - low) / 2, scale)
        panel.set_title(f"{AXES[pair[0]]} and {AXES[pair[1]]}: interaction {share_of(about)}", fontsize=11)
    figure.colorbar(image, ax=axes[:2], label="mean Φ* − Φ(φ_T), nats", shrink=0.6)
    draw_shares(axes[2, 0], found)
    middle = result.runs.gap[result.grids.index["sigma", "critic_step_size"]]
    base = middle[len(middle) // 2, len(middle) // 2]
    for panel, (name, line) in zip(axes[2, 1:], result.lines.items(), strict=True):
        draw_line(panel, COUNTS[name], line, base)
    lowest, highest = np.concatenate([mean_interval(x.runs.gap)[1] for x in result.lines.values()], axis=1)
    for panel in axes[2, 1:]:
        panel.set_ylim(0.5 * lowest.min(), 2 * highest.max())
    figure.suptitle(
        f"Algorithm 1 around one point, {len(base)} seeds a cell: mean gap ± half of its 95 % interval, nats "
        "(×: seeds that diverged, whose gap is at their last finite reward; such cells are left out of the interaction)"
    )
    return figure


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis (seeds) [...], and its 95 % bootstrap interval [2, ...]."""
    mean, low, high, _ = estimate(np.moveaxis(values, -1, 0), trim=0.0)
    return mean, np.stack([low, high])


def share_of(about: Interaction) -> str:
    """The share with its interval, in words where there is none."""
    low, high = about.interval
    return f"{about.share:.2f} [{low:.2f}, {high:.2f}]" if about.share == about.share else "undefined, hardly varies"


def heat_map(panel, result: Sensitivity, pair, mean: np.ndarray, half: np.ndarray, scale):
    """Mean gap by colour, in numbers with its half width, and the number of seeds that diverged."""
    index = result.grids.index[pair]
    image = panel.imshow(mean[index], norm=scale, cmap="viridis_r", origin="lower", aspect="auto")
    for (i, j), point in np.ndenumerate(index):
        dark = scale(mean[point]) > 0.55
        died = int(result.runs.diverged[point].sum())
        text = f"{float(f'{mean[point]:.2g}'):g}\n±{float(f'{half[point]:.1g}'):g}" + (f"\n× {died}" if died else "")
        panel.text(j, i, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    for axis, name in zip((panel.yaxis, panel.xaxis), pair, strict=True):
        axis.set_ticks(range(len(index)), [f"{x:.2g}" for x in result.grids.axes[name]])
        axis.set_label_text(AXES[name])
    return image


def draw_shares(panel, found: dict[tuple[str, str], Interaction]) -> None:
    """The interaction share of every pair with its interval."""
    names = [" and ".join(AXES[x] for x in pair) for pair in found]
    shares = np.array([x.share for x in found.values()])
    low, high = np.array([x.interval for x in found.values()]).T
    bars = np.maximum([shares - low, high - shares], 0)
    panel.errorbar(shares, range(len(names)), xerr=bars, fmt="o", color="#0072B2", label="without the seeds' noise")
    panel.plot([x.with_noise for x in found.values()], range(len(names)), "x", color="0.4", label="with it")
    panel.axvline(0, color="0.5", linewidth=1)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set(xlabel="interaction share of the variance of mean log gap")
    panel.set_title("What row + column leaves, 95 % intervals", fontsize=11)
    panel.legend(fontsize=8, loc="lower right")
    panel.grid(alpha=0.3)


def draw_line(panel, symbol: str, line: Line, base: np.ndarray) -> None:
    """The mean gap against one count; at each point the samples, and the gap over the base point's with equal seeds."""
    mean, (low, high) = mean_interval(line.runs.gap)
    panel.errorbar(line.values, mean, np.maximum([mean - low, high - mean], 0), marker="o", color="#D55E00")
    ratio, interval = mean_interval(np.log(line.runs.gap / base))
    for i, (value, top, samples) in enumerate(zip(line.values, high, line.samples, strict=True)):
        low, high = np.exp(interval[:, i])
        beside = "" if np.allclose(low, high, rtol=1e-2) else f"\n×{np.exp(ratio[i]):.2f}\n[{low:.2f}, {high:.2f}]"
        text = f"{samples / 1e6:.2f} M{beside}"
        panel.annotate(text, (value, top), xytext=(0, 4), textcoords="offset points", fontsize=8, ha="center")
    panel.set(xscale="log", yscale="log", xlabel=symbol, ylabel="mean Φ* − Φ(φ_T), nats")
    panel.set_title(f"{symbol} alone: samples a run; × the base point's gap\n(geometric mean over seeds)", fontsize=10)
    panel.set_xticks(line.values, [str(x) for x in line.values])
    panel.xaxis.minorticks_off()
    panel.set_xlim(min(line.values) / 1.7, max(line.values) * 1.7)
    panel.grid(alpha=0.3)


def summarise(result: Sensitivity) -> dict:
    """Means with 95 % intervals, divergence and interactions, as JSON values."""
    mean, interval = mean_interval(result.runs.gap)
    died = result.runs.diverged.sum(axis=1)
    shares = [{"pair": pair, **x._asdict()} for pair, x in interactions(result).items()]
    for row in shares:
        if not np.isfinite(row["share"]):
            row |= {"share": None, "interval": None}
    grid = {
        " × ".join(pair): {
            "rows": result.grids.axes[pair[0]].tolist(),
            "columns": result.grids.axes[pair[1]].tolist(),
            "gap": mean[index].tolist(),
            "interval": interval[:, index].tolist(),
            "diverged": died[index].tolist(),
        }
        for pair, index in result.grids.index.items()
    }
    lines = {}
    for name, line in result.lines.items():
        mean, interval = mean_interval(line.runs.gap)
        lines[name] = {"values": line.values, "samples": line.samples.tolist()}
        lines[name] |= {"gap": mean.tolist(), "interval": interval.tolist()}
    about = {"counts": result.counts._asdict(), "seeds": result.runs.gap.shape[1], "best": result.best}
    about |= {"above_best": int(np.sum(result.runs.gap <= ROUNDING))}
    return about | {"interactions": shares, "grids": grid, "lines": lines}


def main(out: Path, say=print) -> None:
    """Runs the study and writes `sensitivity.png` and `.json`, and of `tuning` likewise."""
    result = study(Sizes(), say)
    write_json(out, "sensitivity.json", summarise(result))
    write_figure(out, "sensitivity.png", draw(result), dpi=90)
    for pair, about in interactions(result).items():
        names = " and ".join(AXES[x] for x in pair)
        say(
            f"{names:14s} interaction {share_of(about)} of the variance ({about.with_noise:.3f} with noise); "
            f"a factor {about.factor:.2f}; {about.cells} cells"
        )
    say(f"figure: {out / 'sensitivity.png'}")
    found = tuning.study(result.best, result.counts, result.grids.points, result.runs, say=say)
    tuning.report(found, out, say)
