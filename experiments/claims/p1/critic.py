"""Algorithm 2 on GridWorld: its error to the exact Q against n and L, for a table and for networks, at two policies.

Too few target updates leave γ^L, n transitions a noise n^{−1/2}, the model what it cannot represent (its floor). The bias of
constant steps vanishes like the noise with chains C ∝ √n (`critic_errors`); with C fixed it stays, which is drawn beside.
Networks with hidden layers end above the floor of their class: gradient descent finds local minima, with exact targets too.

Exact target updates contract by γ in the sup norm over all pairs, and by √γ in L²(dπ), d the discounted occupancy. In a pass
of SGD pairs which are rarely visited hardly move; they weigh little in L²(dπ), and all in the sup norm (`critic_sup`).
"""

import itertools
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims.claim import Budget, Claim, Margin, Measurement, Number, Table, exponent
from experiments.claims.p1 import critic_errors
from experiments.claims.p1.critic_errors import FIXED, POLICIES, TABLE, Known, Learner, Sizes, over_seeds
from experiments.claims.panels import BLUE, GREEN, ORANGE, PINK, SKY, VERMILION, band, curve, exponent_label, panels
from experiments.statistics.intervals import Interval
from experiments.statistics.rates import MIN_LEVELS, Fit, power_law, unfitted

FULL = Sizes()
QUICK = Sizes(
    num_seeds=16,
    transitions=(512, 2048, 8192, 32768),
    network_transitions=(512, 2048, 8192, 32768),
    hidden_sizes=((),),
    fit_steps=2000,
    num_restarts=4,
)
RATIO = "error a target update over its value without noise, "
COLORS = (BLUE, VERMILION, ORANGE, SKY, GREEN, PINK)


class Errors(NamedTuple):
    """One learner's RMS errors over pairs, weighted by occupancy, in units of reward."""

    transitions: np.ndarray  # [n]
    errors: np.ndarray  # [n, policy, seed, L] after each target update
    floors: np.ndarray  # [policy, restart] of direct fits to the exact Q, of which a table has none


class Data(NamedTuple):
    """What was to be learned, and each learner's errors by its name."""

    known: Known  # what was to be learned
    learners: dict[str, Errors]


def measure(budget: Budget, sizes: Sizes | None = None) -> Data:
    """Every learner at every n, and the direct fits, with `sizes` in place of the budget's; learned in float32."""
    sizes = sizes or (QUICK if budget.quick else FULL)
    known, found = critic_errors.known_exactly(sizes.layout, sizes.num_targets), {}
    for name, learner in critic_errors.learners(known, sizes).items():
        found[name] = budget.keep(name, Errors, partial(errors_of, known, name, learner, sizes))
        budget.say(f"{name}: run at n = {', '.join(map(str, learner.transitions))}")
    return Data(known, found)


def errors_of(known: Known, name: str, learner: Learner, sizes: Sizes) -> Errors:
    """Every n of one learner, and its direct fits; a table needs none."""
    runs = [critic_errors.learn(known, learner, run, sizes) for run in range(len(learner.transitions))]
    is_table, no_fit = name in (TABLE, FIXED), np.zeros((len(POLICIES), 0))
    floors = no_fit if is_table else critic_errors.direct_fit(known, learner.model, sizes)
    return Errors(
        np.array(learner.transitions), np.stack([critic_errors.occupancy_rms(known, x) for x in runs]), floors
    )


def law(n: np.ndarray, errors: np.ndarray, floor: float = 0.0) -> Fit:
    """The power law in n of √(RMS² − floor²) of errors [n, seed] over seeds, without burn-in: what exceeds it is noise,
    whose order is claimed at every n. Where there are too few n, or errors reach the floor, it decides nothing."""
    if len(n) < MIN_LEVELS:
        return unfitted(f"{len(n)} n are too few for an exponent; {MIN_LEVELS} are needed")

    def above(values, axis):
        return np.sqrt(np.maximum(np.mean(values**2, axis=axis) - floor**2, 0.0))

    try:
        return power_law(n, errors, above, burn_in=False, floor=False)
    except ValueError as error:
        return unfitted(str(error))


def floor_of(found: Errors, policy: int) -> float:
    """The best direct fit of the learner's class, 0 for a table."""
    return float(found.floors[policy].min()) if found.floors.size else 0.0


def contraction(data: Data, policy: int) -> tuple[Interval, float, int, str]:
    """`critic_errors.contraction` of the table's RMS error at the largest n, beside what it is without noise."""
    table, without_noise = data.learners[TABLE], data.known.bias[policy]
    errors = table.errors[-1, policy].T  # [L, seed]
    return critic_errors.contraction(data.known, policy, table.transitions[-1], errors, without_noise)


def judge(data: Data) -> Measurement:
    """Exponents in n, floors, and factors a target update, of measured errors."""
    numbers, rows = {}, []
    for (name, found), (p, policy) in itertools.product(data.learners.items(), enumerate(POLICIES)):
        floor, errors = floor_of(found, p), found.errors[:, p, :, -1]
        fit = law(found.transitions, errors, floor)
        numbers[f"exponent in n, {name}, {policy}"] = exponent(fit, "transitions an update")
        if found.floors.size:
            numbers[f"floor, {name}, {policy}"] = Number(*[floor] * 3)
        for n, rms, low, high in zip(found.transitions, *over_seeds(errors), strict=True):
            row = {"learner": f"{name}, {policy}", "n": int(n), "error": rms, "low": low, "high": high}
            row["over the table's central limit"] = rms * np.sqrt(n) / data.known.limit[p]
            rows.append(row | {"median fit": np.median(found.floors[p]) if found.floors.size else 0.0})
    for p, policy in enumerate(POLICIES):
        factor, without_noise, last, why = contraction(data, p)
        over = f"over the first {last} target updates"
        numbers[RATIO + policy] = Number(*(x / without_noise for x in factor), why, over)
    transitions = sum(x.transitions.sum() * x.errors[0].size for x in data.learners.values())
    notes = (
        "exponents of networks are above the best direct fit of their class; gradient descent finds local minima of those "
        "with hidden layers",
        "with C fixed a bias of order β′/C stays, which averaging does not remove",
    )
    table = Table("errors after the last target update", rows)
    return Measurement(numbers, {"transitions": transitions}, notes, (table,))


def draw(data: Data) -> Figure:
    """A row for each policy: the table against n, against L, and the networks against n."""
    title = "Algorithm 2 on GridWorld: RMS over seeds with 95 % bootstrap intervals"
    figure, axes = panels(15, 8.4, 2, 3, title)
    table, networks = data.learners[TABLE], [name for name, x in data.learners.items() if x.floors.size]
    for p, (of_table, of_targets, of_networks) in enumerate(axes):
        draw_transitions(of_table, data, p, (TABLE, FIXED))
        limit = data.known.limit[p] / np.sqrt(table.transitions)
        of_table.plot(table.transitions, limit, "k:", label="central limit of sample means ∝ n^(−1/2)")
        of_table.set_title(f"Table, C ∝ √n, {POLICIES[p]} policy, L = {table.errors.shape[-1]}", fontsize=9)
        draw_targets(of_targets, data, p)
        draw_transitions(of_networks, data, p, networks)
        of_networks.set_title(f"tanh networks, {POLICIES[p]} policy; dashed: best direct fit", fontsize=9)
    for panel in axes.ravel():
        panel.set(yscale="log")
        panel.set_ylabel("error of Q, RMS over (s, a) ~ dπ, units of reward", fontsize=8)
        panel.legend(fontsize=7)
    return figure


def draw_transitions(panel: Axes, data: Data, p: int, names) -> None:
    """Errors against n with their intervals, and the floors of networks where they are in sight."""
    lowest = min(data.learners[name].errors[:, p, :, -1].min() for name in names) / 2
    for name, color in zip(names, COLORS, strict=False):
        found, floor = data.learners[name], floor_of(data.learners[name], p)
        n, errors = found.transitions, found.errors[:, p, :, -1]
        about = f"floor {floor:.2g}, above it " * (floor > 0) + exponent_label(law(n, errors, floor))
        curve(panel, n, over_seeds(errors), color, f"{name}: {about}")
        if floor > lowest:
            panel.axhline(floor, color=color, linestyle="--", linewidth=1)
    panel.set(xscale="log", xlabel="n, transitions a target update")


def draw_targets(panel: Axes, data: Data, p: int) -> None:
    """The table's error against L for each n, and what exact target updates would leave."""
    table, (factor, without_noise, last, _) = data.learners[TABLE], contraction(data, p)
    errors = table.errors[:, p]  # [n, seed, L]
    updates = np.arange(1, errors.shape[-1] + 1)
    for n, shade, of_n in zip(table.transitions, np.linspace(0.75, 0.1, len(errors)), errors, strict=True):
        band(panel, updates, over_seeds(of_n.T), (shade, shade, 1 - shade / 3), f"n = {n}")
    panel.plot(updates, data.known.bias[p], "k--", label=f"exact targets: × {without_noise:.3f} an update")
    panel.set(xlabel="L, target updates", ylim=(errors[-1].min() / 2, None))
    shown = "× {:.3f} [{:.3f}, {:.3f}]".format(*factor)
    panel.set_title(f"{POLICIES[p]} policy, largest n: {shown} an update up to L = {last}; γ = 0.8", fontsize=9)


LINEAR = [f"exponent in n, {model}, {policy}" for model in (TABLE, "affine") for policy in POLICIES]
CLAIM = Claim(
    statement="Algorithm 2's error is a sum of γ^L, n^(−1/2) and the approximation error of its model.",
    source="2410.15610, the critic's lemma",
    prediction="error ∝ n^(−1/2) with a table or an affine model, above its floor (averaged SGD at a noise that C ∝ √n "
    "chains keep unbiased); in L the factor of exact target updates in L²(dπ), where they contract by √γ or better",
    margins=dict.fromkeys(LINEAR, Margin(0.45, 0.55)) | {RATIO + policy: Margin(0.98, 1.02) for policy in POLICIES},
    minutes=(1, 6),
    measure=measure,
    judge=judge,
    draw=draw,
)
