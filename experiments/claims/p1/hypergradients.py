"""∇Φ in five ways on small random MDPs: bias, variance at equal samples, cost, and where an ascent along each ends.

The bias is exact, at λ*(φ) and at policies that K′ steps of gradient ascent from π_ref reach, which is where Algorithm 1
evaluates its line 7. The ascent is Algorithm 1 with exact gradients and another line 7, from φ = 0, against one along ∇Φ
with the same steps. The step τ = (1 − γ)/w comes from the curvature of J at λ*, which is at most w/(2 (1 − γ)).
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from experiments.claims.claim import Budget, Claim, Measurement, Number, Table
from experiments.claims.p1 import hypergradient_ways
from experiments.claims.p1.hypergradient_ways import KL_WEIGHTS, TARGET, Measured, Sizes
from experiments.claims.panels import BLUE, GREEN, ORANGE, PINK, SKY, VERMILION, log_log, panels
from experiments.statistics.intervals import Interval, bars, interquartile_mean

FULL = Sizes()
QUICK = Sizes(
    num_instances=6,
    num_ascents=5,
    policy_steps=(10, 100),
    unrolled_steps=(10, 100),
    num_batches=50,
    batch_size=16,
    rollout_length=20,
    outer_steps=40,
    repeats=1,
)
UNSOLVED = 1e-8  # relative residual of a linear solve above which it counts as unsolved
BY_WEIGHT = (BLUE, VERMILION)
FAMILIES = {
    "naive": ("#888888",),
    "proxy": (ORANGE, VERMILION, "#8C3B00"),
    "closed form": (BLUE,),
    "implicit": (GREEN, SKY),
    "unrolled": ("#E0A3C8", PINK, "#7A3B60"),
}


class Data(NamedTuple):
    """What was measured of each way, and how much."""

    sizes: Sizes
    ways: dict[str, Measured]


def measure(budget: Budget, sizes: Sizes | None = None) -> Data:
    """Every way, in float64, with `sizes` in place of the budget's."""
    sizes, found = sizes or (QUICK if budget.quick else FULL), {}
    with jax.enable_x64(True):
        lanes, fewer = map(hypergradient_ways.lanes_of, (sizes.num_instances, sizes.num_ascents))
        where = hypergradient_ways.program(hypergradient_ways.points, sizes.policy_steps)(lanes)
        end = hypergradient_ways.program(hypergradient_ways.exact_ascent, sizes)(fewer)
        for name, way in hypergradient_ways.ways(sizes).items():
            one = partial(hypergradient_ways.measure_way, way, sizes, where, end)
            found[name] = budget.keep(name, Measured, one)
            budget.say(f"{name}: done")
    return Data(sizes, found)


averages = partial(interquartile_mean, axis=-1)  # over instances


def geometric(values: np.ndarray) -> Interval:
    """`averages` of the logarithms, taken back; what is below rounding counts as rounding."""
    return Interval(*np.exp(averages(np.log(np.maximum(values, np.finfo(float).eps)))))


def judge(data: Data) -> Measurement:
    """Interquartile means over instances, of logarithms but for the ends of ascents, for each way and w."""
    numbers, rows = {}, []
    for (name, of), (i, weight) in itertools.product(data.ways.items(), enumerate(KL_WEIGHTS)):
        row = {"way": name, "w": weight}
        if of.error is not None:
            errors, unsolved = geometric(of.error[i]), np.mean(of.residual[i] > UNSOLVED, axis=-1)
            numbers[f"relative bias at λ*, {name}, w = {weight}"] = Number(*(x[-1] for x in errors))
            row |= {f"bias, K′ = {k}": list(x) for k, *x in zip(data.sizes.policy_steps, *errors, strict=False)}
            row |= {"unsolved, by K′": unsolved.tolist(), "gradients": of.evaluations, "ms": 1e3 * of.seconds}
        if of.transitions is not None:
            numbers[f"transitions, {name}, w = {weight}"] = Number(*geometric(of.transitions[i]))
        if of.gap is not None:
            numbers[f"gap of the ascent, {name}, w = {weight}"] = Number(*averages(of.gap[i]))
            row |= {"gaps": [np.nanmin(of.gap[i]), np.nanmax(of.gap[i])], "diverged": int(np.sum(np.isnan(of.gap[i])))}
        rows.append(row)
    notes = (
        f"transitions are those for a standard error of {TARGET:g} ‖∇Φ‖, at λ* and λ*_σ",
        "the gap of an ascent is its last Φ less that of an ascent along ∇Φ, in nats",
    )
    return Measurement(numbers, {}, notes, (Table("away from λ*, cost, and the range of the gaps", rows),))


def draw(data: Data) -> Figure:
    """Bias at each w, cost, variance, and the ends of the ascents."""
    exactly = {name: of for name, of in data.ways.items() if of.error is not None}
    num = next(iter(exactly.values())).error.shape[-1]
    title = f"Hypergradients of Φ on {num} random MDPs: interquartile means over instances with 95 % intervals"
    figure, (top, bottom) = panels(15, 8.6, 2, 3, title)
    colors = colors_of(exactly)
    for i, panel in enumerate(top[:2]):
        draw_bias(panel, exactly, data.sizes.policy_steps, i, colors)
    draw_cost(top[2], exactly, colors)
    taken = {name: of.transitions for name, of in data.ways.items() if of.transitions is not None}
    draw_intervals(bottom[0], {name: geometric(x) for name, x in taken.items()})
    bottom[0].set(xscale="log", title="Variance of the sampled forms, at λ* and λ*_σ")
    bottom[0].set(xlabel=f"transitions for a standard error of {TARGET:g} ‖∇Φ‖")
    draw_ascents(bottom[1], data)
    bottom[2].axis("off")
    bottom[2].legend(*top[0].get_legend_handles_labels(), loc="center", title="top row", fontsize=10)
    return figure


def colors_of(names) -> dict[str, str]:
    """A colour for each way; ways of one kind share a family of colours."""
    members = {kind: [name for name in names if name.startswith(kind)] for kind in FAMILIES}
    return {name: FAMILIES[x][k % len(FAMILIES[x])] for x, each in members.items() for k, name in enumerate(each)}


def draw_bias(panel: Axes, exactly: dict[str, Measured], policy_steps, i: int, colors) -> None:
    """Relative error against K′ at one w."""
    places = [*policy_steps, 10 * policy_steps[-1]]
    for name, measured in exactly.items():
        of, style = geometric(measured.error[i]), "--" if name == "implicit, dense" else "-"
        line = dict(marker="o", markersize=3, linewidth=1.2, color=colors[name], linestyle=style)
        panel.errorbar(places, of.center, bars(of), label=name, **line)
    log_log(panel, "K′, ascent steps of λ and λ′ before the estimate", "‖estimate − ∇Φ‖ / ‖∇Φ‖")
    panel.set(ylim=(1e-13, 1e2), title=f"Bias at w = {KL_WEIGHTS[i]}")
    panel.set_xticks(places, [*map(str, policy_steps), "∞ (λ*)"])
    panel.minorticks_off()


def draw_cost(panel: Axes, exactly: dict[str, Measured], colors) -> None:
    """Milliseconds of a call, and gradient evaluations beside."""
    times = [1e3 * of.seconds for of in exactly.values()]
    panel.barh(list(exactly), times, color=[colors[name] for name in exactly])
    for place, of in enumerate(exactly.values()):
        panel.text(times[place] + 0.02 * max(times), place, f"{of.evaluations:,}", va="center", fontsize=8)
    lanes = np.prod(next(iter(exactly.values())).error.shape[::2])
    panel.set(xlim=(0, 1.2 * max(times)), title="Cost; numbers: gradient evaluations")
    panel.set_xlabel(f"ms a jitted call for {lanes} instances")
    panel.locator_params(axis="x", nbins=6)  # labels of more would touch
    panel.invert_yaxis()


def draw_intervals(panel: Axes, values: dict[str, Interval]) -> None:
    """An interval for each way and w, one above the other."""
    for i, (weight, color) in enumerate(zip(KL_WEIGHTS, BY_WEIGHT, strict=True)):
        of = Interval(*np.transpose([[end[i] for end in x] for x in values.values()]))
        places, style = np.arange(len(values)) + 0.2 * (2 * i - 1), dict(fmt="o", color=color, markersize=4)
        panel.errorbar(of.center, places, xerr=bars(of), label=f"w = {weight}", **style)
    panel.set_yticks(range(len(values)), list(values))
    panel.invert_yaxis()
    panel.legend(fontsize=9)


def draw_ascents(panel: Axes, data: Data) -> None:
    """What each ascent loses to the exact one; a mark an instance."""
    gaps = {name: of.gap for name, of in data.ways.items() if of.gap is not None}
    draw_intervals(panel, {name: averages(gap) for name, gap in gaps.items()})
    for place, gap in enumerate(gaps.values()):
        for i, color in enumerate(BY_WEIGHT):
            panel.plot(gap[i], np.full(gap.shape[1], place + 0.2 * (2 * i - 1)), "|", color=color, alpha=0.5)
    panel.set_xscale("symlog", linthresh=1e-6)
    panel.xaxis.set_major_locator(SymmetricalLogLocator(base=100, linthresh=1e-6))  # labels of every decade would touch
    about = f"{data.sizes.outer_steps} steps, K = {data.sizes.inner_steps}"
    panel.set(title=f"Ends of ascents of {about} (marks: instances)")
    panel.set_xlabel("Φ at the end, less that of an ascent along ∇Φ, nats")


CLAIM = Claim(
    statement="Φ can be ascended along line 7, its closed form, an implicit or an unrolled derivative alike.",
    source="derived, after 2410.15610, HPGD (2406.01575) and PARL (2308.02585)",
    prediction="at λ* line 7 has a relative bias ∝ σ, the closed form and implicit differentiation none, unrolled ascents "
    "one that falls with K, and what leaves out λ's response (naive) one that stays",
    minutes=(1.5, 8),
    measure=measure,
    judge=judge,
    draw=draw,
)
