"""P1.alignment: what each method is worth under the true reward, beside the objective Φ that the paper maximises.

With a table of rewards, which holds the true one, and with a function of the state alone, which does not. With exact
gradients what is lost is lost by the objective; the table once more with sampled gradients shows what sampling adds.

Φ of the paper pays for policies whose pairs are easy to tell apart: its maximiser is not the true reward, even where that is
in the class. Maximum likelihood on the policy's own pairs, which is what alternating follows, is consistent there.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.claims import panels
from experiments.claims.claim import INF, Budget, Claim, Margin, Measurement, Number, Table
from experiments.claims.p1 import methods
from experiments.claims.p1.methods import ALTERNATING, EXCESS, PAPER, REALISABLE, Ends, Sizes, climb_all
from experiments.statistics import intervals
from experiments.statistics.intervals import Interval

FEWEST = 60  # instances of which a mean is judged: of fewer, failures on a twentieth are too easily missed by all
SMALL_WEIGHT = 0.5  # w at which the paper's objective is judged
FULL = Sizes()
QUICK = Sizes(16, (0.5, 1.5), 300, num_reward_steps=1000, kinds=(REALISABLE,), methods=(ALTERNATING, PAPER, EXCESS))


class Alignment(NamedTuple):
    """What was measured: by class and method, where the runs ended."""

    sizes: Sizes
    ends: dict[tuple[str, str], Ends]


def measure(budget: Budget, sizes: Sizes | None = None) -> Alignment:
    """Every method on every class, two at a time; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else FULL)
    pairs = list(itertools.product(sizes.kinds, sizes.methods))

    def one(pair):
        return budget.keep(", ".join(pair), Ends, partial(climb_all, *pair, sizes, budget.say))

    with ThreadPoolExecutor(2) as pool:
        return Alignment(sizes, dict(zip(pairs, pool.map(one, pairs), strict=True)))


GAIN, ABOVE = "share of the gain", "Φ(φ) − Φ(r*)"
BELOW, CONVERGED = "share of runs below the reference", "share of runs converged"
MEAN, MIDDLE = "mean", "interquartile mean"


def name(label: str, kind: str, method: str, kl_weight: float) -> str:
    """What a number is called."""
    return f"{label}, {kind}, {method}, w = {kl_weight:g}"


MARGINS = {
    name(f"{MEAN} {GAIN}", REALISABLE, ALTERNATING, kl_weight): Margin(0.99, INF) for kl_weight in FULL.kl_weights
} | {
    name(f"{MEAN} {GAIN}", REALISABLE, PAPER, SMALL_WEIGHT): Margin(-INF, 0.5),
    name(f"{MEAN} {ABOVE}", REALISABLE, PAPER, SMALL_WEIGHT): Margin(0.0, INF),
}


def statistics(values: np.ndarray) -> dict[str, Interval]:
    """Of numbers [w, seed], over seeds, each [w]: the mean, which a few failures move, and one that they do not."""
    return {MEAN: intervals.mean(values, axis=-1), MIDDLE: intervals.interquartile_mean(values, axis=-1)}


def numbers_of(ends: Ends) -> dict[str, Interval]:
    """What is reported of the runs, each [w]; a run without a return counts as one below the reference's."""
    gain, above = (statistics(x) for x in (methods.relative(ends), ends.upper - ends.upper_truth))
    shares = {BELOW: ~(methods.relative(ends) >= 0), CONVERGED: methods.converged(ends)}
    found = {f"{key} {GAIN}": x for key, x in gain.items()}
    found |= {key: intervals.proportion(events, axis=-1) for key, events in shares.items()}
    return found | {f"{key} {ABOVE}": x for key, x in above.items()}


def judge(data: Alignment) -> Measurement:
    """Means and shares over MDPs; the claim is judged by means."""
    numbers, rows, num = {}, [], data.sizes.num_seeds
    for (kind, method), ends in data.ends.items():
        found = numbers_of(ends)
        for i, kl_weight in enumerate(methods.weights_of(kind, data.sizes)):
            why = undecided(ends, i, num)
            here = {key: Number(*(end[i] for end in x), why) for key, x in found.items()}
            rows.append({"class": kind, "method": method, "w": kl_weight} | row_of(ends, i))
            if kind == methods.SAMPLED:
                del here[CONVERGED]  # the gradients' estimates do not tell
            numbers |= {name(key, kind, method, kl_weight): x for key, x in here.items()}
    labels = [f"{row['method']} {row['labels']:,.0f}" for row in rows if row["class"] == methods.SAMPLED]
    notes = (
        "the gain is the KL-optimal policy's over the reference policy's, under the true reward with the KL term; means are "
        "judged, over random MDPs, since a few failures move them: an interquartile mean leaves out a quarter on each side",
        f"no interval knows of failures that no run showed: {num} MDPs may all miss one that {unseen(num):.1%} of MDPs "
        "would show",
        f"converged: both exact gradients below {methods.TOLERANCE:g}; Φ is in nats",
        f"labels a run with sampled gradients: {', '.join(dict.fromkeys(labels)) or 'none are run'}",
    )
    cost = {"runs": sum(x.regularised.size for x in data.ends.values())}
    cost["transitions"] = sum(x.transitions.sum() for x in data.ends.values())
    return Measurement(numbers, cost, notes, (Table("Means over runs, and the largest gradient", rows),))


def row_of(ends: Ends, i: int) -> dict[str, float]:
    """Of the runs at the i-th w, means of what is not judged, and the largest gradient in which one ended."""
    means = {
        "share of the gain without KL": methods.relative(ends, plain=True),
        "return with KL": ends.regularised,
        "return": ends.plain,
        "Φ, nats": ends.upper,
        "share diverged": ends.diverged,
        "labels": ends.labels,
        "transitions": ends.transitions,
    }
    about = {name: np.nanmean(values[i]) for name, values in means.items()}
    return about | {"largest gradient": methods.worst_gradient(ends)[i].max()}


def undecided(ends: Ends, i: int, num: int) -> str:
    """Why the numbers at the i-th w decide nothing, in words; "" if they may."""
    if lost := int(np.isnan(ends.regularised[i]).sum()):
        return f"{lost} of {num} runs ended without a return and are left out"
    return f"{num} MDPs are too few; {FEWEST} are needed" if num < FEWEST else ""


def unseen(num: int) -> float:
    """The most, at 97.5 %, that a failure's share of all instances is which none of `num` shows."""
    return float(intervals.proportion(np.zeros(num, bool)).high)


COLORS = dict(zip(methods.METHODS, (panels.ORANGE, panels.PINK, "#000000", panels.VERMILION, panels.BLUE), strict=True))
TITLES = {
    REALISABLE: "realisable: a table",
    methods.MISSPECIFIED: "misspecified: a function of the state alone",
    methods.SAMPLED: "realisable, with sampled gradients",
}
PANELS = {
    GAIN: "return under the true reward with its\nKL term (0: reference, 1: KL-optimal)",
    ABOVE: "what the paper maximises:\nΦ(φ) − Φ(r*), nats",
    BELOW: "share of runs below\nthe reference's return",
    CONVERGED: "share of runs\nconverged",
}
LINEAR = {GAIN: 1.0, ABOVE: 0.1}  # up to where the axis is linear; beyond it is logarithmic, and nothing is cut
MARKS = {
    MEAN: dict(marker="o", markersize=5, linestyle="-"),
    MIDDLE: dict(marker="D", markersize=5, markerfacecolor="white", linestyle="none"),
}


def draw(data: Alignment) -> Figure:
    """A column for each class: return under the true reward, the objective that the paper maximises, and shares of runs."""
    sizes = data.sizes
    kinds = list(dict.fromkeys(kind for kind, _ in data.ends))
    compared = [method for method in methods.METHODS if any(method == other for _, other in data.ends)]
    title = f"What each method is worth under r*, and under Φ\n{sizes.num_seeds} random MDPs, intervals over them"
    figure, axes = panels.panels(1.5 + 5.2 * len(kinds), 13, 4, len(kinds), title, share_x=True, share_y="row")
    for (kind, method), ends in data.ends.items():
        aside = compared.index(method) - (len(compared) - 1) / 2
        beside = np.array(methods.weights_of(kind, sizes)) * 1.07**aside  # so that bars do not hide each other
        _draw_runs(axes[:, kinds.index(kind)], beside, ends, COLORS[method], kind)
    for column, kind in zip(axes.T, kinds, strict=True):
        column[0].set(title=TITLES[kind], xscale="log")
        column[-1].set_xlabel("w, weight of KL(π ‖ π_ref), units of reward")
        panels.ticks(column[-1], sizes.kl_weights)
        for panel, height in zip(column[[0, 0, 1]], (0, 1, 0), strict=True):
            panel.axhline(height, color="gray", linestyle="--", linewidth=1)
    for row, (label, text) in zip(axes, PANELS.items(), strict=True):
        row[0].set_ylabel(text)
        row[0].set_ylim(-0.05, 1.05)
        if linear := LINEAR.get(label):
            ends = np.array([panel.dataLim.intervaly for panel in row])
            row[0].set_yscale("symlog", linthresh=linear, linscale=4.0)
            row[0].set_ylim(min(1.5 * ends.min(), -linear / 10), max(1.5 * ends.max(), linear / 10))
            row[0].yaxis.set_major_formatter("{x:g}")
    # Methods by color, and what is drawn of each by mark.
    shown = [Line2D([], [], color=COLORS[method], linewidth=3, label=method) for method in compared]
    shown.append(Line2D([], [], color="0.4", marker=".", linestyle="none", alpha=0.5, label="one MDP"))
    shown += [Line2D([], [], color="0.4", label=f"{key}, 95 % interval", **mark) for key, mark in MARKS.items()]
    figure.legend(handles=shown, loc="outside lower center", ncols=1 if len(kinds) == 1 else 3, fontsize=9)
    return figure


def _draw_runs(column, beside: np.ndarray, ends: Ends, color: str, kind: str) -> None:
    style = dict(color=color, linewidth=1.2, elinewidth=1)
    for panel, values in zip(column, (methods.relative(ends), ends.upper - ends.upper_truth), strict=False):
        panel.plot(0.98 * beside, values, ".", color=color, alpha=0.5, markersize=5, markeredgewidth=0)
        for key, of in statistics(values).items():
            panel.errorbar(beside, of.center, intervals.bars(of), **style, **MARKS[key])
    for panel, label in zip(column[2:], (BELOW, CONVERGED), strict=True):
        of = numbers_of(ends)[label]
        if label == CONVERGED and kind == methods.SAMPLED:
            panel.annotate("estimates do not tell", (0.5, 0.5), xycoords="axes fraction", ha="center", color="gray")
        else:
            panel.errorbar(beside, of.center, intervals.bars(of), **style, marker="o", markersize=4)


CLAIM = Claim(
    statement="Φ is a proxy of the true return: where a class of rewards holds the true one, alternating RLHF is "
    "KL-optimal, and Algorithm 1 at a small w far from it, at a Φ above the true reward's.",
    source="2410.15610, its objective; the comparison is this project's",
    prediction="in the mean over random MDPs, exact gradients, a table: alternating's share of the attainable gain at least "
    f"0.99 at every w; at w = {SMALL_WEIGHT:g} Algorithm 1's below 0.5, and its Φ above Φ(r*)",
    margins=MARGINS,
    minutes=(0.6, 8),
    measure=measure,
    judge=judge,
    draw=draw,
)
