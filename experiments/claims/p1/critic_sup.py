"""A target update of Algorithm 2 in the sup norm over all pairs, in which exact target updates contract by γ.

On the GridWorld of `critic_errors`, a table at its largest n. A pass of SGD leaves at each pair, up to noise,

    e_l = κ e_{l−1} + (1 − κ) γ P_π e_{l−1},    κ = (1 − e^(−x))/x,    x = β′ n d(s) π(a|s)/C,

κ the share of its error that the averaged iterate keeps: near 1 at pairs which are seldom visited, however large n is at
others. So the sup norm shrinks by no better than that, while the RMS error, weighted by visits, does as without noise.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import softmax

from experiments.claims.claim import Budget, Claim, Margin, Measurement, Number
from experiments.claims.p1 import critic_errors
from experiments.claims.p1.critic_errors import POLICIES, TABLE, Known, Sizes, over_seeds
from experiments.claims.panels import BLUE, VERMILION, band, log_log, panels
from experiments.statistics.intervals import Interval, bars, mean

ROUNDING = 1e-5  # of float32, in a factor
SUP = "sup-norm factor over γ, all pairs, "
DISCOUNT = critic_errors.COEFFICIENTS.discount
FULL = Sizes(num_targets=24)
QUICK = Sizes(num_seeds=16, num_targets=16, transitions=(1024, 4096, 16384))


class Data(NamedTuple):
    """What was to be learned by a table at its largest n, how often a pass renews each pair, x [policy, S·A], and Q_l − Q
    [policy, seed, L, S, A]."""

    known: Known  # what was to be learned by a table
    transitions: int  # its largest n
    renewals: np.ndarray  # x [policy, S·A], how often a pass renews each pair
    errors: np.ndarray  # Q_l − Q [policy, seed, L, S, A]


def measure(budget: Budget, sizes: Sizes | None = None) -> Data:
    """Runs the table at the largest n of the budget's sizes, or of those given."""
    sizes = sizes or (QUICK if budget.quick else FULL)
    known = critic_errors.known_exactly(sizes.layout, sizes.num_targets)
    table = critic_errors.learners(known, sizes)[TABLE]
    n, run = table.transitions[-1], len(table.transitions) - 1
    times = table.step_size * n / table.chains[-1] * np.asarray(known.weights, float).reshape(len(POLICIES), -1)
    return Data(known, n, times, critic_errors.learn(known, table, run, sizes))


def share(x: np.ndarray) -> np.ndarray:
    """κ, the share of its error at a pair that the averaged iterate of a pass keeps, in the mean."""
    return -np.expm1(-x) / x


def shrink(known: Known, policy: int, error: np.ndarray) -> np.ndarray:
    """γ P_π e of an error [S·A]: what an exact target update leaves of it."""
    moves = critic_errors.pair_moves(np.asarray(known.mdp.transition, float), softmax(known.logits[policy], axis=-1))
    return DISCOUNT * moves @ error


def expected(data: Data, policy: int) -> np.ndarray:
    """Errors after each target update by the formula above, from Q_0 = 0, [L, S·A]."""
    keeps, rows = share(data.renewals[policy]), []
    error = -np.asarray(data.known.values[policy], float).ravel()
    for _ in range(data.errors.shape[2]):
        error = keeps * error + (1 - keeps) * shrink(data.known, policy, error)
        rows.append(error)
    return np.stack(rows)


def measured_share(data: Data, policy: int) -> np.ndarray:
    """κ as the first target update shows it, [seed, S·A]."""
    before = -np.asarray(data.known.values[policy], float).ravel()
    exactly = shrink(data.known, policy, before)
    return (data.errors[policy, :, 0].reshape(-1, before.size) - exactly) / (before - exactly)


def sup_norm(data: Data, policy: int) -> np.ndarray:
    """max |Q_l − Q| over all pairs, [L, seed]."""
    return np.abs(data.errors[policy]).max(axis=(-2, -1)).T


def contraction(data: Data, policy: int) -> tuple[Interval, float, int, str]:
    """`critic_errors.contraction` of the sup norm, beside `expected`'s."""
    norms, by_formula = sup_norm(data, policy), np.abs(expected(data, policy)).max(axis=1)
    return critic_errors.contraction(data.known, policy, data.transitions, norms, by_formula)


def judge(data: Data) -> Measurement:
    """Factors over γ, as measured and as predicted, and the share of the error that a pass keeps at the rarest pair."""
    numbers, notes = {}, []
    for p, policy in enumerate(POLICIES):
        factor, by_formula, last, why = contraction(data, p)
        rarest = np.argmin(data.renewals[p])
        times, kept = data.renewals[p, rarest], mean(measured_share(data, p)[:, rarest])
        over = f"over the first {last} target updates"
        numbers[SUP + policy] = Number(*(x / DISCOUNT for x in factor), why, over)
        numbers[f"that factor from what passes keep, {policy}"] = Number(*[by_formula / DISCOUNT] * 3)
        numbers[f"share kept at the rarest pair, {policy}"] = Number(*kept)
        numbers[f"that share as predicted, {policy}"] = Number(*[share(times)] * 3)
        notes.append(
            f"one pass of SGD is no Bellman update: it renews the {policy} policy's rarest pair {times:.2g} times, and what "
            f"all pairs keep gives a sup-norm factor of {by_formula / DISCOUNT:.3f} γ without noise"
        )
    transitions = float(np.prod(data.errors.shape[:3])) * data.transitions
    return Measurement(numbers, {"transitions": transitions}, tuple(notes))


def draw(data: Data) -> Figure:
    """A row for each policy: the sup norm against L beside what γ allows, and what a pass keeps at each pair."""
    about = f"table, n = {data.transitions}, γ = {DISCOUNT}"
    figure, axes = panels(11.5, 8.4, 2, 2, f"Algorithm 2 on GridWorld in the sup norm over all pairs: {about}")
    for p, (of_targets, of_pairs) in enumerate(axes):
        draw_targets(of_targets, data, p)
        draw_pairs(of_pairs, data, p)
    for panel in axes.ravel():
        panel.set(yscale="log")
        panel.legend(fontsize=8)
    return figure


def draw_targets(panel: Axes, data: Data, p: int) -> None:
    """The sup norm with its interval, what a contraction by γ would leave at most, and what is expected of passes."""
    norms, (factor, by_formula, last, _) = sup_norm(data, p), contraction(data, p)
    updates, passes = np.arange(1, len(norms) + 1), np.abs(expected(data, p)).max(axis=1)
    band(panel, updates, over_seeds(norms), VERMILION, "measured: × {:.3f} [{:.3f}, {:.3f}] an update".format(*factor))
    panel.plot(updates, passes, "--", color=BLUE, label=f"κ e + (1 − κ) γ P e: × {by_formula:.3f}")
    bound = np.abs(data.known.values[p]).max() * DISCOUNT**updates
    panel.plot(updates, bound, "k:", label=f"the lemma's bound: × γ = {DISCOUNT}")
    panel.axvline(last, color="0.6", linewidth=0.8)
    panel.set(xlabel="L, target updates; factors are up to the vertical line", ylabel="max |Q_l − Q|, units of reward")
    over = "factor over γ {:.3f} [{:.3f}, {:.3f}], at most 1 claimed".format(*[x / DISCOUNT for x in factor])
    panel.set_title(f"{POLICIES[p]} policy: {over}", fontsize=9)


def draw_pairs(panel: Axes, data: Data, p: int) -> None:
    """The share κ of the error that the first pass keeps at each pair against how often the pass renews it."""
    x, kept = data.renewals[p], mean(measured_share(data, p))
    sure = kept.low * kept.high > 0  # the others are hidden by noise, and a log axis has no room for them
    label = f"measured, 95 % intervals ({np.sum(~sure)} pairs are hidden by noise)"
    style = dict(fmt="o", color=VERMILION, markersize=3, linewidth=0.8)
    panel.errorbar(x[sure], kept.center[sure], bars(kept)[:, sure], label=label, **style)
    line = np.geomspace(x.min(), x.max(), 200)
    panel.plot(line, share(line), "--", color=BLUE, label="κ = (1 − e^(−x))/x")
    log_log(panel, "x = β′ n d(s) π(a|s)/C, how often a pass renews the pair", "share κ of its error that a pass keeps")
    panel.set(ylim=(share(x.max()) / 2, 1.5))
    panel.set_title(f"{POLICIES[p]} policy: pairs that are rarely visited hardly move", fontsize=9)


CLAIM = Claim(
    statement="A target update of Algorithm 2 contracts the error by γ in the sup norm.",
    source="2410.15610, the critic's lemma, which takes one for a Bellman update",
    prediction="factor at most γ, over all pairs, while the error is above the noise",
    margins={SUP + policy: Margin(0.0, 1.0 + ROUNDING) for policy in POLICIES},
    minutes=(0.5, 2),
    measure=measure,
    judge=judge,
    draw=draw,
)
