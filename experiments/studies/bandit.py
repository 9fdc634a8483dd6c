"""The lower level alone: policy gradient on a contextual bandit with a known linear reward, to the Gibbs policy.

J(π) = E_x[E_π r − w KL(π ‖ π_ref)] is maximal at π*(a|x) ∝ π_ref(a|x) exp(r(x, a)/w), and J* − J(π) = w E_x KL(π ‖ π*).
Near π*, J's curvature in a table of logits at x is w d_0(x) (diag π* − π* π*ᵀ), at most w d_0(x)/2. So the table's step is
τ = 1/(w d_0), half the largest stable one for any π*; a network shares its parameters between contexts, and the width + 1 of
its last layer takes the place of d_0: τ = 1/(w (width + 1)).

At π* every advantage is zero, and with it the noise of a gradient that a critic's advantages weigh: constant steps converge
geometrically, sampled or not. Monte Carlo returns less the mean over the batch keep their noise, which constant steps never
get below; with τ/(1 + t/t_0), t_0 = 1/(τ μ), μ the smallest curvature at π*, the slowest error too falls like t^{−1/2}.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.ascent import Level, ascend
from bilevel.gradients.critics import TDSizes, exact_critic, monte_carlo_critic, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.lookup import bind, policy_table
from bilevel.preferences import annotator
from bilevel.types import Array, Gradients, Hyper, Problem
from envs.bandit import bandit, linear_bandit
from envs.base import World
from experiments.files import write_figure, write_json
from experiments.report.summary import Estimate, estimate
from experiments.statistics.rates import interval

NUM_CONTEXTS, NUM_ACTIONS, DIMENSION, NORM_BOUND = 8, 4, 4, 3.0
KL_WEIGHT, WIDTH = 1.0, 16
TARGET = 0.01  # of total variation


class Rung(NamedTuple):
    """One way to climb: the policy's model, the critic (None: exact gradients), and whether its steps fall."""

    policy: str
    critic: str | None
    falling: bool = False


RUNGS = {
    "table, exact gradients": Rung("table", None),
    "table, sampled, exact critic": Rung("table", "exact"),
    "table, sampled, Algorithm 2": Rung("table", "td"),
    "table, sampled, Monte Carlo, falling steps": Rung("table", "monte_carlo", falling=True),
    "table, sampled, Monte Carlo, constant steps": Rung("table", "monte_carlo"),
    "network, exact gradients": Rung("network", None),
    "network, sampled, exact critic": Rung("network", "exact"),
}
COLORS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#E69F00", "#888888", "#CC79A7")


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        num_seeds: of each rung.
        num_steps: policy gradient steps.
        batch_size: B, contexts with one action each, a gradient.
        num_transitions: n of Algorithm 2, with one target update: at γ = 0 the target does not depend on Q.
    """

    num_seeds: int = 32
    num_steps: int = 4000
    batch_size: int = 256
    num_transitions: int = 256


class Setting(NamedTuple):
    """The bandit, and what is known of it exactly.

    Attributes:
        world: the bandit.
        lower: max_π J(π) with the true reward.
        target: [X, A] π*, the Gibbs policy.
        best: [] J*.
        curvature: [] μ, the smallest of J in a table of logits at π*, constants apart.
    """

    world: World
    lower: exact.LowerLevel
    target: Array
    best: Array
    curvature: Array


class Curves(NamedTuple):
    """One rung: [seed, step] after each step.

    Attributes:
        total_variation: E_x ½ Σ_a |π(a|x) − π*(a|x)|.
        suboptimality: J* − J(π), in units of reward.
        transitions: of one step, exactly.
    """

    total_variation: np.ndarray
    suboptimality: np.ndarray
    transitions: int


def setting() -> Setting:
    """The bandit with a uniform reference policy."""
    draw = jax.jit(linear_bandit, static_argnums=(1, 2, 3))
    mdp, features = draw(jax.random.key(0), NUM_CONTEXTS, NUM_ACTIONS, DIMENSION, NORM_BOUND)
    reference = jnp.full(mdp.reward.shape, 1 / NUM_ACTIONS)
    lower = exact.lower_level(mdp, mdp.reward, reference, 0.0, KL_WEIGHT)
    target = jax.nn.softmax(jnp.log(reference) + mdp.reward / KL_WEIGHT)
    covariance = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(target)
    curvature = KL_WEIGHT * jnp.min(mdp.initial * jnp.linalg.eigvalsh(covariance)[:, 1])  # the first is of constants, 0
    return Setting(bandit(mdp, features), lower, target, exact.regularised_return(lower, target), curvature)


def climb(known: Setting, rung: Rung, sizes: Sizes) -> Curves:
    """Policy gradient ascent on J by one rung, all seeds in one program."""
    env, reward = known.world.env, models.table(NUM_CONTEXTS, NUM_ACTIONS)
    policy, scale = models.table_policy(NUM_CONTEXTS, NUM_ACTIONS), jnp.max(known.lower.initial)
    if rung.policy == "network":
        policy, scale = models.mlp_policy(*models.state_features(known.world), NUM_ACTIONS, (WIDTH,)), WIDTH + 1
    hyper = Hyper(kl_weight=KL_WEIGHT, discount=0.0, policy_step_size=1 / (KL_WEIGHT * scale), critic_step_size=2.0)
    problem = Problem(env, annotator(known.world.reward, 0.0), reward, policy, models.uniform_reference(env))
    gradients = derivatives(problem, known, rung, sizes, hyper)
    optimizer = optax.sgd(step_sizes(known, rung, hyper))

    def measure(params):
        ours = policy_table(env, bind(policy, params))
        distance = 0.5 * known.lower.initial @ jnp.sum(jnp.abs(ours - known.target), axis=-1)
        return distance, known.best - exact.regularised_return(known.lower, ours)

    def step(actor, key):
        grad, critic, _ = gradients.return_in_policy(key, actor.critic, actor.params, known.lower.reward)
        actor = ascend(optimizer, actor._replace(critic=critic), grad)
        return actor, measure(actor.params)

    def run(key):
        key_policy, key_critic, key_steps = jax.random.split(key, 3)
        params = policy.init(key_policy)
        actor = Level(params, optimizer.init(params), gradients.init(key_critic))
        return jax.lax.scan(step, actor, jax.random.split(key_steps, sizes.num_steps))[1]

    curves = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), sizes.num_seeds))
    return Curves(*map(np.asarray, curves), gradients.return_cost.transitions)


def derivatives(problem: Problem, known: Setting, rung: Rung, sizes: Sizes, hyper: Hyper) -> Gradients:
    """Exact gradients, or sampled ones with the rung's critic."""
    if rung.critic is None:
        return exact_gradients(problem, known.world.mdp, 1, hyper)
    critic = {
        "exact": lambda: exact_critic(problem, known.world.mdp, hyper),
        "td": lambda: td_critic(problem, problem.reward, TDSizes(1, sizes.num_transitions), hyper),
        "monte_carlo": lambda: monte_carlo_critic(problem, hyper),
    }[rung.critic]()
    return sampled_gradients(problem, critic, SampleSizes(sizes.batch_size, 1, 1), hyper)


def step_sizes(known: Setting, rung: Rung, hyper: Hyper):
    """τ, or count -> τ/(1 + t/t_0), t_0 = 1/(τ μ)."""
    first = hyper.policy_step_size
    return (lambda count: first / (1 + count * first * known.curvature)) if rung.falling else first


def study(sizes: Sizes = Sizes(), say=lambda line: None, names=tuple(RUNGS)) -> dict[str, Curves]:  # noqa: B008
    """Climbs by the named rungs, in float64; `say` hears of each as it ends."""
    found = {}
    with jax.enable_x64(True):
        known = setting()
        for name in names:
            found[name] = climb(known, RUNGS[name], sizes)
            say(f"{name}: {sizes.num_steps} steps")
    return found


# What it shows --------------------------------------------------------------------------------------------------------


def mean(values: np.ndarray) -> Estimate:
    """Mean over seeds [step] with its 95 % bootstrap interval, of values [seed, step]."""
    return estimate(values, trim=0)


def steps_to_target(total_variation: np.ndarray) -> int | None:
    """Steps after which the mean over seeds of [seed, step] stays below the target; None where it does not."""
    above = np.flatnonzero(np.mean(total_variation, axis=0) >= TARGET)
    last = int(above[-1]) + 1 if len(above) else 0  # steps are counted from 1
    return last + 1 if last < total_variation.shape[1] else None


def late_slope(values: np.ndarray, num_resamples: int = 2000) -> list[float]:
    """Slope of the log mean of [seed, step] in log steps over the last three quarters, and its interval over seeds."""
    steps = np.unique(np.geomspace(values.shape[1] / 4, values.shape[1], 30).astype(int))
    seeds = np.arange(len(values))
    picks = np.random.default_rng(0).choice(seeds, size=(num_resamples, len(seeds)))

    def fit(picks):
        return np.polyfit(np.log(steps), np.log(np.mean(values[:, steps - 1][picks], axis=1)).T, 1)[0]

    return [float(fit(seeds[None])[0]), *interval(fit(picks), len(seeds))]


def summarise(found: dict[str, Curves]) -> list[dict]:
    """Each rung's last values with their intervals, and what it took to reach the target, as JSON values."""
    rows = []
    for name, curves in found.items():
        row = {"rung": name, "steps": curves.total_variation.shape[1], "transitions_a_step": curves.transitions}
        for quantity in ("total_variation", "suboptimality"):
            last = mean(getattr(curves, quantity)[:, -1])
            row[quantity] = [float(last.center), float(last.low), float(last.high)]
        row["largest_total_variation"] = float(np.max(curves.total_variation[:, -1]))
        row["steps_to_target"] = steps_to_target(curves.total_variation)
        if "Monte Carlo" in name:
            row["late_slope"] = late_slope(curves.total_variation)
        rows.append(row)
    return rows


def draw(found: dict[str, Curves]) -> Figure:
    """Total variation and suboptimality, a row each, against steps and against transitions."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for name, curves in found.items():
        for row, values in zip(axes, curves[:2], strict=True):
            draw_curve(row, name, values, curves.transitions)
    labels = "total variation from π*, mean over contexts", "J* − J(π), units of reward"
    for row, label, bottom in zip(axes, labels, (1e-5, 1e-7), strict=True):
        row[0].set(ylabel=label, ylim=(bottom, 1))
        for panel, x_label in zip(row, ("policy gradient steps", "transitions"), strict=True):
            panel.set(xscale="log", yscale="log", xlabel=x_label)
            panel.grid(alpha=0.3)
    for panel in axes[0]:
        panel.axhline(TARGET, color="black", linestyle=":", linewidth=1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle("Policy gradient to the Gibbs policy: mean over seeds, 95 % bootstrap intervals", fontsize=11)
    return figure


def draw_curve(row, name: str, values: np.ndarray, transitions: int) -> None:
    """Values [seed, step] of one rung against steps, and against transitions if it takes any; exact gradients lie below."""
    steps = np.unique(np.geomspace(1, values.shape[1], 200).astype(int))
    center, low, high, _ = mean(np.maximum(values[:, steps - 1], 1e-9))  # rounding leaves ±1e-16 of a suboptimality
    color = dict(zip(RUNGS, COLORS, strict=True))[name]
    style = dict(color=color, linestyle="--" if RUNGS[name].policy == "network" else "-")
    width = 1.3 if transitions else 3.5
    for panel, scale in zip(row, (1, transitions), strict=True):
        if scale:
            panel.plot(scale * steps, center, linewidth=width, label=name, **style)
            panel.fill_between(scale * steps, low, high, color=color, alpha=0.2, linewidth=0)


def main(out: Path, say=print) -> None:
    """Runs the study and writes `bandit.png` and `bandit.json`."""
    found = study(say=say)
    rows = summarise(found)
    write_json(out, "bandit.json", rows)
    write_figure(out, "bandit.png", draw(found), dpi=120)
    say(f"{'rung':46s}{'total variation':34s}{'steps to below 0.01':>20s}{'transitions':>14s}")
    for row in rows:
        variation = "{:.2e} [{:.2e}, {:.2e}]".format(*row["total_variation"])
        steps = row["steps_to_target"]
        transitions = "–" if steps is None else f"{steps * row['transitions_a_step']}"
        say(f"{row['rung']:46s}{variation:34s}{'never' if steps is None else steps:>20}{transitions:>14s}")
        if "late_slope" in row:
            say("  slope of total variation in steps {:.3f} [{:.3f}, {:.3f}]".format(*row["late_slope"]))
    say(f"figure: {out / 'bandit.png'}")
