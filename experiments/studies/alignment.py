"""What each method is worth under the true reward, and under its own objective Φ, with exact gradients, then with samples.

Two-stage (on pairs of the reference policy, and on those of a worse one), alternating, and Algorithm 1 with the paper's
objective and with the excess log-likelihood, over w; with a table of rewards, which holds the true one, and with a reward
that is a function of the state alone, which does not. With exact gradients what is lost is lost by the objective. The table
once more with sampled pairs and rollouts and Algorithm 2 as the critic shows what sampling adds.

Φ of the paper pays for policies whose pairs are easy to tell apart: its maximiser is not the true reward, even where that is
in the class. Maximum likelihood on the policy's own pairs, which is what alternating follows, is consistent there.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bilevel import exact, models
from bilevel.algorithms.alternating import AlternatingConfig, alternating
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf
from bilevel.algorithms.two_stage import TwoStageConfig, two_stage
from bilevel.gradients.critics import TDSizes, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.lookup import bind, pair_table, policy_table
from bilevel.preferences import annotator, excess_log_likelihood, log_likelihood
from bilevel.run import DIVERGED, run, start
from bilevel.types import Algorithm, Array, Gradients, Hyper, Model, Problem
from envs.tabular import garnet, tabular
from experiments.files import write_figure, write_json
from experiments.report.summary import TRIM, Estimate, bars, estimate, share
from experiments.runs.folder import kept

NUM_STATES, NUM_ACTIONS, DISCOUNT, LENGTH = 3, 2, 0.9, 2
SIGMA, REWARD_STEP = 0.02, 0.3
# τ, and at most τ w: J's curvature is up to w/(2 (1 − γ)) = 5 w, and ascent needs τ below 2/(5 w).
POLICY_STEP, CURVED_STEP = 0.2, 0.32
MOMENTUM = 0.9  # of the reward
FALL = 100  # outer steps after which a sampled reward step is half its first
WORSE_WEIGHT = 1.0  # w of the worse policy, which is KL-optimal for minus the true reward
TOLERANCE = 1e-3  # of the gradients of a converged run: nats and learned reward, a unit of parameters
TWO_STAGE, WORSE, ALTERNATING = "two-stage", "two-stage, worse data", "alternating"
PAPER, EXCESS = "bilevel, log-likelihood (the paper's)", "bilevel, excess log-likelihood"
METHODS = {TWO_STAGE: "#E69F00", WORSE: "#CC79A7", ALTERNATING: "#000000", PAPER: "#D55E00", EXCESS: "#0072B2"}
REALISABLE, MISSPECIFIED, SAMPLED = "table", "state alone", "table, sampled"
CLASSES = {
    REALISABLE: "realisable: a table",
    MISSPECIFIED: "misspecified: a function of the state alone",
    SAMPLED: "realisable, with sampled gradients",
}
SAMPLES = SampleSizes(batch_size=32, rollout_length=40, segment_length=LENGTH, num_pairs=128)  # 0.9^40 = 0.015
CRITIC = TDSizes(num_targets=2, num_transitions=256, num_chains=16)
FIT_BATCHES = 16  # of SAMPLES' pairs, for the two-stage methods' fit


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        num_seeds: random MDPs, each with a random first reward, the same for every method and w; the unit of the intervals.
        kl_weights: w.
        num_steps: T, outer steps.
        num_policy_steps: K, inner steps.
        num_reward_steps: of the two-stage methods' fit.
        num_sampled_steps: T with sampled gradients.
        sampled_kl_weights: w with sampled gradients.
    """

    num_seeds: int = 64
    kl_weights: tuple[float, ...] = (0.2, 0.5, 1.0, 1.5, 3.0)
    num_steps: int = 1000
    num_policy_steps: int = 4
    num_reward_steps: int = 4000
    num_sampled_steps: int = 600
    sampled_kl_weights: tuple[float, ...] = (0.5, 1.5)

    def weights(self, kind: str) -> tuple[float, ...]:
        """w of a class."""
        return self.sampled_kl_weights if kind == SAMPLED else self.kl_weights


class Ends(NamedTuple):
    """Where runs ended; leading axes [w, seed]. Returns are in units of the true reward.

    Attributes:
        regularised: [] J of the learned policy under r*, with its KL term.
        plain: [] the same without.
        reference: [] J of the reference policy, which has no KL term.
        best: [2] J of the KL-optimal policy of r*, regularised and plain.
        upper: [] Φ(φ) with the paper's objective at the learned φ, in nats; and
        upper_truth: [] Φ(r*).
        upper_gradient: [] norm of what the reward follows, nats a unit of φ; and
        lower_gradient: [] ‖∇_λ J(λ, φ)‖, learned reward a unit of λ: of the last estimates, where they are sampled.
        labels, transitions: [] that the run took.
        diverged: [] bool.
    """

    regularised: Array
    plain: Array
    reference: Array
    best: Array
    upper: Array
    upper_truth: Array
    upper_gradient: Array
    lower_gradient: Array
    labels: Array
    transitions: Array
    diverged: Array


def reward_model(kind: str) -> Model:
    """The class of rewards, started at independent standard normal parameters."""
    if kind != MISSPECIFIED:
        model = models.table(NUM_STATES, NUM_ACTIONS)
    else:
        model = models.linear(lambda obs, action: jax.nn.one_hot(obs, NUM_STATES, dtype=float), NUM_STATES)

    def init(key):
        zeros = model.init(key)
        return jax.random.normal(key, zeros.shape, zeros.dtype)

    return model._replace(init=init)


def build(method: str, problem: Problem, gradients: Gradients, hyper: Hyper, kind: str, sizes: Sizes) -> Algorithm:
    """The method; `problem.reference` is where the two-stage ones take their pairs."""

    # Not of the policy: overshooting next to a vertex, where its gradient vanishes, it stays there.
    def ascent(step_size):
        return optax.sgd(step_size, momentum=MOMENTUM)

    def falling(step_size):  # noise asks for steps ∝ 1/t
        return ascent(lambda count: step_size / (1 + count / FALL))

    steps = sizes.num_policy_steps
    online = falling if kind == SAMPLED else ascent
    if method in (PAPER, EXCESS):
        return bilevel_rlhf(problem, gradients, BilevelConfig(steps, reward_optimizer=online), hyper)
    if method == ALTERNATING:
        return alternating(problem, gradients, AlternatingConfig(steps, reward_optimizer=online), hyper)
    num_batches = FIT_BATCHES if kind == SAMPLED else 1
    config = TwoStageConfig(num_batches, sizes.num_reward_steps, steps, reward_optimizer=ascent)
    return two_stage(problem, gradients, config, hyper)


def climb(key: Array, kl_weight: Array, method: str, kind: str, sizes: Sizes) -> Ends:
    """One run, on the MDP and from the reward that the key draws."""
    key_mdp, key_run = jax.random.split(key)
    mdp = garnet(key_mdp, NUM_STATES, NUM_ACTIONS)
    world = tabular(mdp)
    step_size = jnp.minimum(POLICY_STEP, CURVED_STEP / kl_weight)
    hyper = Hyper(SIGMA, kl_weight, DISCOUNT, policy_step_size=step_size, reward_step_size=REWARD_STEP)
    policy, uniform = models.table_policy(NUM_STATES, NUM_ACTIONS), models.uniform_reference(world.env)
    problem = Problem(world.env, annotator(world.reward, DISCOUNT), reward_model(kind), policy, uniform)
    objective = excess_log_likelihood if method == EXCESS else log_likelihood
    gradients = exact_gradients(problem, mdp, LENGTH, hyper, objective)
    followed = gradients
    if kind == SAMPLED:
        critic = td_critic(problem, models.table(NUM_STATES, NUM_ACTIONS), CRITIC, hyper)
        followed = sampled_gradients(problem, critic, SAMPLES, hyper, objective)
    reference = policy_table(world.env, uniform)
    truth = exact.lower_level(mdp, mdp.reward, reference, DISCOUNT, kl_weight)
    if method == WORSE:
        adversary = truth._replace(reward=-mdp.reward, kl_weight=WORSE_WEIGHT)
        problem = problem._replace(reference=models.given_reference(exact.optimal_policy(adversary).policy))

    algorithm = build(method, problem, followed, hyper, kind, sizes)
    num_steps = sizes.num_sampled_steps if kind == SAMPLED else sizes.num_steps
    state, taken = run(algorithm, key_run, start(algorithm, key_run), num_steps)
    learned, norms = algorithm.params(state.algorithm), state.metrics
    upper_gradient = norms["gradient_norm"]
    if method in (TWO_STAGE, WORSE):  # whose steps report the policy's
        _, slope = gradients.preference_in_reward((), problem.reference, learned.reward)
        upper_gradient = optax.tree.norm(slope)

    segments = exact.enumerate_segments(NUM_STATES, NUM_ACTIONS, LENGTH)
    comparisons = exact.exact_comparisons(problem.annotate, segments)

    def upper(reward):
        policy = exact.optimal_policy(truth._replace(reward=reward)).policy
        return exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, DISCOUNT)

    def returns(policy):
        return jnp.stack([exact.regularised_return(truth._replace(kl_weight=w), policy) for w in (kl_weight, 0.0)])

    ours = returns(policy_table(world.env, bind(policy, learned.policy)))
    return Ends(
        regularised=ours[0],
        plain=ours[1],
        reference=returns(reference)[1],
        best=returns(exact.optimal_policy(truth).policy),
        upper=upper(pair_table(world.env, bind(problem.reward, learned.reward))),
        upper_truth=upper(mdp.reward),
        upper_gradient=upper_gradient,
        lower_gradient=norms["policy_gradient_norm"],
        labels=jnp.sum(taken["labels"].astype(float)),
        transitions=jnp.sum(taken["transitions"].astype(float)),
        diverged=state.status == DIVERGED,
    )


def climb_all(kind: str, method: str, sizes: Sizes, say) -> Ends:
    """Every run of a method on a class of rewards, one program; in float64."""
    weights = sizes.weights(kind)
    shape = len(weights), sizes.num_seeds
    weight, seed = (x.ravel() for x in np.indices(shape))
    with jax.enable_x64(True):
        lanes = jax.random.split(jax.random.key(0), sizes.num_seeds)[seed], jnp.asarray(weights)[weight]
        single = partial(climb, method=method, kind=kind, sizes=sizes)
        program = jax.jit(lambda lanes: jax.lax.map(lambda lane: single(*lane), lanes, batch_size=sizes.num_seeds))
        ends = jax.tree.map(lambda x: np.asarray(x).reshape(*shape, *x.shape[1:]), program(lanes))
    how = f"{ends.labels.mean():.3g} labels each" if kind == SAMPLED else f"{converged(ends).mean():.0%} converged"
    say(f"{kind}, {method}: {len(seed)} runs, {how}")
    return ends


def study(
    sizes: Sizes = Sizes(),  # noqa: B008
    say=lambda line: None,
    methods=tuple(METHODS),
    kinds=tuple(CLASSES),
    keep: Path | None = None,
) -> dict[tuple[str, str], Ends]:
    """Every method on every class, (class, method) -> Ends, two at a time.

    Args:
        sizes: how much is computed.
        say: hears of each pair as it ends.
        methods, kinds: of `METHODS` and `CLASSES`.
        keep: folder from which pairs that are there are read, and to which the others are written; None: none.
    """
    pairs = list(itertools.product(kinds, methods))

    def one(pair):
        return kept(keep, ", ".join(pair), Ends, partial(climb_all, *pair, sizes, say))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(pairs, pool.map(one, pairs), strict=True))


# What it shows --------------------------------------------------------------------------------------------------------

GAIN, ABOVE = "relative_regularised_return", "upper_objective_above_truth"


def relative(ends: Ends, plain: bool = False) -> np.ndarray:
    """Return under r* where 0 is the reference policy's and 1 the KL-optimal policy's of r*, [w, seed].

    With the KL term nothing exceeds 1; without it (`plain`) policies further from the reference may.
    """
    ours = ends.plain if plain else ends.regularised
    return (ours - ends.reference) / (ends.best[..., int(plain)] - ends.reference)


def converged(ends: Ends) -> np.ndarray:
    """Runs that ended with both gradients below `TOLERANCE`, [w, seed] bool."""
    return (np.maximum(ends.upper_gradient, ends.lower_gradient) < TOLERANCE) & ~ends.diverged


def measures(ends: Ends) -> dict[str, np.ndarray]:
    """What is reported of the runs, [w, seed] each."""
    return {
        GAIN: relative(ends),
        "relative_return": relative(ends, plain=True),
        "regularised_return": ends.regularised,
        "return": ends.plain,
        "upper_objective": ends.upper,
        ABOVE: ends.upper - ends.upper_truth,
    }


def statistics(values: np.ndarray) -> dict[str, Estimate]:
    """Of numbers [w, seed], over seeds, each [w]: the mean, which a few failures move, and one that they do not."""
    return {f"{name}mean": estimate(values.T, trim) for name, trim in (("", 0.0), ("interquartile_", TRIM))}


def shares(ends: Ends) -> dict[str, Estimate]:
    """Of the runs, each [w]: what ended below the reference policy's return, or with none, and what converged."""
    return {"below_reference": share(~(relative(ends) >= 0)), "converged": share(converged(ends))}


def summarise(found: dict[tuple[str, str], Ends], sizes: Sizes) -> list[dict]:
    """A row for each class, method and w, as JSON values: means, interquartile means and shares with 95 % intervals."""
    rows = []
    for (kind, method), ends in found.items():
        numbers = {f"{name}_{key}": x for name, of in measures(ends).items() for key, x in statistics(of).items()}
        for i, kl_weight in enumerate(sizes.weights(kind)):
            row = {"class": kind, "method": method, "kl_weight": kl_weight}
            row |= {name: [float(x[i]) for x in of[:3]] for name, of in (numbers | shares(ends)).items()}
            row |= {
                "diverged": float(ends.diverged[i].mean()),
                "without_return": int(np.isnan(ends.regularised[i]).sum()),
            }
            row |= {"labels": float(ends.labels[i].mean()), "transitions": float(ends.transitions[i].mean())}
            row |= {"worst_gradient": float(np.maximum(ends.upper_gradient, ends.lower_gradient)[i].max())}
            rows.append(row)
    return rows


PANELS = {
    GAIN: "return under the true reward with its\nKL term (0: reference, 1: KL-optimal)",
    ABOVE: "what the paper maximises:\nΦ(φ) − Φ(r*), nats",
    "below_reference": "share of runs below\nthe reference's return",
    "converged": "share of runs\nconverged",
}
LINEAR = {GAIN: 1.0, ABOVE: 0.1}  # up to where the axis is linear
MARKS = {
    "mean": dict(marker="o", markersize=5, linestyle="-"),
    "interquartile mean": dict(marker="D", markersize=5, markerfacecolor="white", linestyle="none"),
}


def draw(found: dict[tuple[str, str], Ends], sizes: Sizes) -> Figure:
    """A column for each class: return under the true reward, the objective that the paper maximises, and shares of runs."""
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    methods = [method for method in METHODS if any(method == other for _, other in found)]
    figure = Figure(figsize=(1.5 + 5.2 * len(kinds), 13), layout="constrained")
    axes = figure.subplots(4, len(kinds), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 4, 2, 2))
    for (kind, method), ends in found.items():
        aside = methods.index(method) - (len(methods) - 1) / 2
        beside = np.array(sizes.weights(kind)) * 1.07**aside  # so that bars do not hide each other
        _draw_runs(axes[:, kinds.index(kind)], beside, ends, METHODS[method], kind)
    for column, kind in zip(axes.T, kinds, strict=True):
        column[0].set(title=CLASSES[kind], xscale="log")
        column[-1].set_xlabel("w, weight of KL(π ‖ π_ref), units of reward")
        column[-1].set_xticks(sizes.kl_weights, [f"{w:g}" for w in sizes.kl_weights])
        column[-1].minorticks_off()
        for panel in column:
            panel.grid(alpha=0.3)
        for panel, height in zip(column[[0, 0, 1]], (0, 1, 0), strict=True):
            panel.axhline(height, color="gray", linestyle="--", linewidth=1)
    for row, (name, label) in zip(axes, PANELS.items(), strict=True):
        row[0].set_ylabel(label)
        if name in LINEAR:
            _show_tails(row, LINEAR[name])
        else:
            row[0].set_ylim(-0.05, 1.05)
    _legend(figure, methods, 1 if len(kinds) == 1 else 3)
    over = f"{sizes.num_seeds} random MDPs, intervals over them"
    figure.suptitle(f"What each method is worth under the true reward, and under Φ\n{over}", fontsize=11)
    return figure


def _show_tails(row, linear: float) -> None:
    """Makes the common axis of a row of panels linear up to there, and logarithmic beyond; nothing is cut."""
    ends = np.array([panel.dataLim.intervaly for panel in row])
    row[0].set_yscale("symlog", linthresh=linear, linscale=4.0)
    row[0].set_ylim(min(1.5 * ends.min(), -linear / 10), max(1.5 * ends.max(), linear / 10))
    row[0].yaxis.set_major_formatter("{x:g}")


def _draw_runs(panels, beside: np.ndarray, ends: Ends, color: str, kind: str) -> None:
    """One method's runs in the column of a class."""
    style = dict(color=color, linewidth=1.2, elinewidth=1)
    for panel, name in zip(panels, (GAIN, ABOVE), strict=False):
        values = measures(ends)[name]
        panel.plot(0.98 * beside, values, ".", color=color, alpha=0.5, markersize=5, markeredgewidth=0)
        for of, mark in zip(statistics(values).values(), MARKS.values(), strict=True):
            panel.errorbar(beside, of.center, bars(of), **style, **mark)
    for panel, (name, of) in zip(panels[2:], shares(ends).items(), strict=True):
        if name == "converged" and kind == SAMPLED:
            panel.annotate("estimates do not tell", (0.5, 0.5), xycoords="axes fraction", ha="center", color="gray")
        else:
            panel.errorbar(beside, of.center, bars(of), **style, marker="o", markersize=4)


def _legend(figure: Figure, methods: list[str], num_columns: int) -> None:
    """Of the methods by color, and of what is drawn of each by mark; below the panels."""
    shown = [Line2D([], [], color=METHODS[method], linewidth=3, label=method) for method in methods]
    shown.append(Line2D([], [], color="0.4", marker=".", linestyle="none", alpha=0.5, label="one MDP"))
    shown += [Line2D([], [], color="0.4", label=f"{name}, 95 % interval", **mark) for name, mark in MARKS.items()]
    figure.legend(handles=shown, loc="outside lower center", ncols=num_columns, fontsize=9)


def main(out: Path, say=print) -> None:
    """Runs the study and writes `alignment.png` and `alignment.json`."""
    sizes = Sizes()
    report(study(sizes, say), sizes, out, say)


def report(found: dict[tuple[str, str], Ends], sizes: Sizes, out: Path, say=print) -> None:
    """Writes the figure and the numbers, and says a table."""
    rows = summarise(found, sizes)
    write_json(out, "alignment.json", rows)
    write_figure(out, "alignment.png", draw(found, sizes), dpi=120)
    layout = "{:15s}{:40s}{:>5s}{:>26s}{:>9s}{:>26s}{:>8s}{:>11s}"
    head = "class", "method", "w", "mean share of the gain", "(IQM)", "mean Φ(φ) − Φ(r*), nats", "below", "converged"
    say(layout.format(*head))
    for row in rows:
        gain, above = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[f"{name}_mean"]) for name in (GAIN, ABOVE))
        middle = f"{row[f'{GAIN}_interquartile_mean'][0]:.3f}"
        ends = (f"{row[name][0]:.0%}" for name in ("below_reference", "converged"))
        say(layout.format(row["class"], row["method"], f"{row['kl_weight']:g}", gain, middle, above, *ends))
    say(f"figure: {out / 'alignment.png'}")
