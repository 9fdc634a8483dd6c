"""A target update of Algorithm 2 in the sup norm over all pairs, in which exact target updates contract by γ.

On the GridWorld of `critic`, a table at its largest n. A pass of SGD leaves at each pair, up to noise,

    e_l = κ e_{l−1} + (1 − κ) γ P_π e_{l−1},    κ = (1 − e^(−x))/x,    x = β′ n d(s) π(a|s)/C,

κ the share of its error that the averaged iterate keeps: near 1 at pairs which are seldom visited, however large n is at
others. So the sup norm shrinks by no better than that, while the RMS error, weighted by visits, does as without noise.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.files import write_figure, write_json
from experiments.runs.folder import kept
from experiments.statistics.rates import undecided
from experiments.studies.critic import (
    DISCOUNT,
    POLICIES,
    TABLE,
    Learner,
    Setting,
    Sizes,
    factor,
    learn,
    learners,
    over_seeds,
    per_update,
    setting,
    visible,
)


class Measured(NamedTuple):
    """errors [policy, seed, L, S, A]: Q_l − Q."""

    errors: np.ndarray


class Result(NamedTuple):
    """What was to be learned, by which table at which n (its last), and Q_l − Q [policy, seed, L, S, A]."""

    setting: Setting
    learner: Learner
    errors: np.ndarray


def study(
    sizes: Sizes = Sizes(num_targets=24),  # noqa: B008
    say=lambda line: None,
    keep: Path | None = None,
) -> Result:
    """Runs the table at the largest n; arguments as of `critic.study`."""
    known = setting(sizes.layout, sizes.num_targets)
    learner = learners(known, sizes)[TABLE]
    run = len(learner.transitions) - 1
    found = kept(keep, "sup norm", Measured, lambda: Measured(learn(known, learner, run, sizes)))
    say(f"table: run at n = {learner.transitions[run]}")
    return Result(known, learner, found.errors)


def renewals(result: Result) -> np.ndarray:
    """x = β′ n d(s) π(a|s)/C at each pair, [policy, S·A]."""
    learner = result.learner
    times = learner.step_size * learner.transitions[-1] / learner.chains[-1]
    return times * np.asarray(result.setting.weights, float).reshape(len(POLICIES), -1)


def share(x: np.ndarray) -> np.ndarray:
    """κ, the share of its error at a pair that the averaged iterate of a pass keeps, in the mean."""
    return -np.expm1(-x) / x


def shrink(known: Setting, policy: int, error: np.ndarray) -> np.ndarray:
    """γ P_π e of an error [S·A]: what an exact target update leaves of it."""
    chances = np.asarray(jax.nn.softmax(known.logits[policy]), float)
    moves = np.asarray(known.world.mdp.transition, float)[..., None] * chances  # [S, A, S, A]
    return DISCOUNT * moves.reshape(error.size, error.size) @ error


def expected(result: Result, policy: int) -> np.ndarray:
    """Errors after each target update by the formula above, from Q_0 = 0, [L, S·A]."""
    known, keeps, rows = result.setting, share(renewals(result)[policy]), []
    error = -np.asarray(known.values[policy], float).ravel()
    for _ in range(result.errors.shape[2]):
        error = keeps * error + (1 - keeps) * shrink(known, policy, error)
        rows.append(error)
    return np.stack(rows)


def measured_share(result: Result, policy: int) -> np.ndarray:
    """κ as the first target update shows it, [seed, S·A]."""
    before = -np.asarray(result.setting.values[policy], float).ravel()
    exactly = shrink(result.setting, policy, before)
    after = result.errors[policy, :, 0].reshape(-1, before.size)
    return (after - exactly) / (before - exactly)


def sup_norm(result: Result, policy: int) -> np.ndarray:
    """max |Q_l − Q| over all pairs, [L, seed]."""
    return np.abs(result.errors[policy]).max(axis=(-2, -1)).T


def contraction(result: Result, policy: int) -> dict:
    """The sup norm's factor a target update while noise is small, measured and `expected`; and κ of the rarest pair."""
    last, why = visible(result.setting, policy, result.learner.transitions[-1])
    norms, rarest = sup_norm(result, policy), np.argmin(renewals(result)[policy])
    kept_there = measured_share(result, policy)[:, rarest]
    error = 2 * kept_there.std(ddof=1) / np.sqrt(len(kept_there))
    return {
        "policy": POLICIES[policy],
        "last": last,
        "undecided": why or undecided(norms.shape[1]),
        "factor": factor(norms[:last]),
        "expected": float(per_update(np.abs(expected(result, policy)).max(axis=1)[:last])),
        "renewals": float(renewals(result)[policy, rarest]),
        "share": [float(kept_there.mean() + x) for x in (0, -error, error)],
        "expected_share": float(share(renewals(result)[policy, rarest])),
    }


# What it shows --------------------------------------------------------------------------------------------------------


def draw(result: Result) -> Figure:
    """A row for each policy: the sup norm against L beside what γ allows, and what a pass keeps at each pair."""
    figure = Figure(figsize=(11.5, 8.4), layout="constrained")
    panels = figure.subplots(2, 2)
    for p, (of_targets, of_pairs) in enumerate(panels):
        draw_targets(of_targets, result, p)
        draw_pairs(of_pairs, result, p)
    for panel in panels.ravel():
        panel.set(yscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    n = result.learner.transitions[-1]
    figure.suptitle(
        f"Algorithm 2 on GridWorld in the sup norm over all pairs: table, n = {n}, γ = {DISCOUNT}", fontsize=11
    )
    return figure


def draw_targets(panel, result: Result, p: int) -> None:
    """The sup norm with its interval, what a contraction by γ would leave at most, and what is expected of passes."""
    norms, rate = sup_norm(result, p), contraction(result, p)
    rms, (low, high) = over_seeds(norms)
    updates = np.arange(1, len(norms) + 1)
    panel.plot(
        updates, rms, color="#D55E00", label="measured: × {:.3f} [{:.3f}, {:.3f}] an update".format(*rate["factor"])
    )
    panel.fill_between(updates, low, high, color="#D55E00", alpha=0.25, linewidth=0)
    passes = np.abs(expected(result, p)).max(axis=1)
    panel.plot(updates, passes, "--", color="#0072B2", label=f"κ e + (1 − κ) γ P e: × {rate['expected']:.3f}")
    start = np.abs(np.asarray(result.setting.values[p])).max()
    panel.plot(updates, start * DISCOUNT**updates, "k:", label=f"the lemma's bound: × γ = {DISCOUNT}")
    over = [x / DISCOUNT for x in rate["factor"]]
    panel.axvline(rate["last"], color="0.6", linewidth=0.8)
    panel.set(xlabel="L, target updates; factors are up to the vertical line", ylabel="max |Q_l − Q|, units of reward")
    panel.set_title(
        f"{POLICIES[p]} policy: factor over γ {over[0]:.3f} [{over[1]:.3f}, {over[2]:.3f}], at most 1 claimed",
        fontsize=9,
    )


def draw_pairs(panel, result: Result, p: int) -> None:
    """The share κ of the error that the first pass keeps at each pair against how often the pass renews it."""
    x, found = renewals(result)[p], measured_share(result, p)
    error = 1.96 * found.std(axis=0, ddof=1) / np.sqrt(len(found))
    sure = np.abs(found.mean(axis=0)) > error  # the others are hidden by noise, and a log axis has no room for them
    bars = dict(fmt="o", color="#D55E00", markersize=3, linewidth=0.8)
    label = f"measured, 95 % intervals ({np.sum(~sure)} pairs are hidden by noise)"
    panel.errorbar(x[sure], found.mean(axis=0)[sure], error[sure], label=label, **bars)
    line = np.geomspace(x.min(), x.max(), 200)
    panel.plot(line, share(line), "--", color="#0072B2", label="κ = (1 − e^(−x))/x")
    panel.set(xscale="log", ylim=(share(x.max()) / 2, 1.5), ylabel="share κ of its error that a pass keeps")
    panel.set(xlabel="x = β′ n d(s) π(a|s)/C, how often a pass renews the pair")
    panel.set_title(f"{POLICIES[p]} policy: pairs that are rarely visited hardly move", fontsize=9)


def main(out: Path, say=print) -> None:
    """Runs the study and writes `critic_sup.png` and `critic_sup.json`; `bilevel verify P1.critic_sup` does it resumably."""
    result = study(say=say)
    rates = [contraction(result, p) for p in range(len(POLICIES))]
    write_json(out, "critic_sup.json", rates)
    write_figure(out, "critic_sup.png", draw(result), dpi=120)
    for rate in rates:
        shown = "{:.3f} [{:.3f}, {:.3f}]".format(*rate["factor"])
        say(
            f"{rate['policy']:10s} sup norm × {shown} a target update, × {rate['expected']:.3f} expected; γ = {DISCOUNT}"
        )
    say(f"figure: {out / 'critic_sup.png'}")
