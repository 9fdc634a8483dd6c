"""The lower level alone: policy gradient on a contextual bandit with a known linear reward, to the Gibbs policy.

J(π) = E_x[E_π r − w KL(π ‖ π_ref)] is maximal at π*(a|x) ∝ π_ref(a|x) exp(r(x, a)/w), and J* − J(π) = w E_x KL(π ‖ π*).
Near π*, J's curvature in a table of logits at x is w d_0(x) (diag π* − π* π*ᵀ), at most w d_0(x)/2: the table's step
τ = 1/(w d_0) is half the largest stable one for any π*. A network shares its parameters between contexts, and the width + 1
of its last layer takes the place of d_0: τ = 1/(w (width + 1)).

At π* every advantage is zero, and with it the noise of a gradient that a critic's advantages weigh: constant steps converge
geometrically, sampled or not. Monte Carlo returns less the mean over the batch keep their noise, which constant steps never
get below; with τ/(1 + t τ μ), μ the smallest curvature at π*, the slowest error too falls like t^{−1/2}.
"""

import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.ascent import Level, ascend
from bilevel.exact.bilevel import tabular_problem
from bilevel.gradients.critics import TDHyper, TDSizes, exact_critic, monte_carlo_critic, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.gradients.types import Gradients
from bilevel.lookup import bind, policy_table
from bilevel.types import Array, Coefficients, Problem
from envs.bandit import bandit, linear_bandit
from envs.base import MDP, World
from experiments.claims.claim import Budget, Claim, Measurement, Number, Table
from experiments.claims.instances import true_lower_level
from experiments.claims.panels import BLUE, GREEN, ORANGE, PINK, VERMILION, band, log_log, panels
from experiments.claims.seeds import for_each_seed
from experiments.statistics.intervals import Interval, bootstrap, mean

NUM_CONTEXTS, NUM_ACTIONS, DIMENSION, NORM_BOUND = 8, 4, 4, 3.0
COEFFICIENTS, WIDTH = Coefficients(discount=0.0, kl_weight=1.0), 16
TARGET = 0.01  # of total variation


class Rung(NamedTuple):
    """One way to climb: the policy's model, the critic ("none": exact gradients), and whether its steps fall."""

    policy: str  # its model
    critic: str  # "none": exact gradients
    falling: bool = False  # whether the steps are


RUNGS = {
    "table, exact gradients": Rung("table", "none"),
    "table, sampled, exact critic": Rung("table", "exact"),
    "table, sampled, Algorithm 2": Rung("table", "Algorithm 2"),
    "table, sampled, Monte Carlo, falling steps": Rung("table", "Monte Carlo", falling=True),
    "table, sampled, Monte Carlo, constant steps": Rung("table", "Monte Carlo"),
    "network, exact gradients": Rung("network", "none"),
    "network, sampled, exact critic": Rung("network", "exact"),
}
COLORS = dict(zip(RUNGS, ("#000000", BLUE, GREEN, VERMILION, ORANGE, "#888888", PINK), strict=True))


class Sizes(NamedTuple):
    """Seeds and policy gradient steps of each rung, B contexts with one action each a gradient, and n of Algorithm 2, with
    one target update: at γ = 0 the target does not depend on Q."""

    num_seeds: int = 32
    num_steps: int = 4000  # of policy gradient
    batch_size: int = 256  # contexts with one action each a gradient
    num_transitions: int = 256  # of Algorithm 2's one target update: at γ = 0 the target does not depend on Q


FULL = Sizes()
QUICK = Sizes(num_seeds=8, num_steps=600, batch_size=64, num_transitions=64)


class Curves(NamedTuple):
    """One rung after each step, [seed, step]."""

    total_variation: np.ndarray  # E_x ½ Σ_a |π(a|x) − π*(a|x)|
    suboptimality: np.ndarray  # J* − J(π), units of reward
    transitions: int  # of one step, exactly


class Data(NamedTuple):
    """The curves of each rung."""

    rungs: dict[str, Curves]


def measure(budget: Budget, sizes: Sizes | None = None, names=tuple(RUNGS)) -> Data:
    """Climbs by the named rungs, in float64, with `sizes` in place of the budget's."""
    sizes, found = sizes or (QUICK if budget.quick else FULL), {}
    with jax.enable_x64(True):
        world, lower = linear_instance()
        for name in names:
            found[name] = budget.keep(name, Curves, partial(climb, world, lower, RUNGS[name], sizes))
            budget.say(f"{name}: {sizes.num_steps} steps")
    return Data(found)


def linear_instance() -> tuple[World, exact.LowerLevel]:
    """The bandit, and max_π J(π) with its true reward and a uniform reference policy."""
    draw = jax.jit(linear_bandit, static_argnums=(1, 2, 3))
    mdp, features = draw(jax.random.key(0), NUM_CONTEXTS, NUM_ACTIONS, DIMENSION, NORM_BOUND)
    return bandit(mdp, features), true_lower_level(mdp, COEFFICIENTS)


def gibbs(lower: exact.LowerLevel) -> Array:
    """π* [X, A] ∝ π_ref exp(r/w), the maximum of J at γ = 0."""
    return jax.nn.softmax(jnp.log(lower.reference) + lower.reward / lower.kl_weight)


def smallest_curvature(lower: exact.LowerLevel) -> Array:
    """μ of J in a table of logits at π*, [], constants apart."""
    covariance = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(gibbs(lower))
    second = jnp.linalg.eigvalsh(covariance)[:, 1]  # the first is of constants, 0
    return lower.kl_weight * jnp.min(lower.initial * second)


def climb(world: World, lower: exact.LowerLevel, rung: Rung, sizes: Sizes) -> Curves:
    """Policy gradient ascent on J by one rung, all seeds in one program."""
    policy, scale = models.table_policy(NUM_CONTEXTS, NUM_ACTIONS), jnp.max(lower.initial)
    if rung.policy == "network":
        policy, scale = models.mlp_policy(*models.state_features(world), NUM_ACTIONS, (WIDTH,)), WIDTH + 1
    first, curvature = 1 / (COEFFICIENTS.kl_weight * scale), smallest_curvature(lower)
    optimizer = optax.sgd((lambda count: first / (1 + count * first * curvature)) if rung.falling else first)
    problem = tabular_problem(world.mdp, COEFFICIENTS)._replace(env=world.env, policy=policy)
    gradients = gradients_of(problem, world.mdp, rung, sizes)
    target = gibbs(lower)
    best = exact.regularised_return(lower, target)

    def step(actor, key):
        grad, critic, _ = gradients.return_in_policy(key, actor.critic, actor.params, lower.reward)
        actor = ascend(optimizer, actor._replace(critic=critic), grad)
        reached = policy_table(world.env, bind(policy, actor.params))
        distance = 0.5 * lower.initial @ jnp.sum(jnp.abs(reached - target), axis=-1)
        return actor, (distance, best - exact.regularised_return(lower, reached))

    def run(key):
        key_policy, key_critic, key_steps = jax.random.split(key, 3)
        params = policy.init(key_policy)
        actor = Level(params, optimizer.init(params), gradients.init(key_critic))
        return jax.lax.scan(step, actor, jax.random.split(key_steps, sizes.num_steps))[1]

    curves = for_each_seed(run, sizes.num_seeds, jax.random.key(1))
    return Curves(*curves, gradients.return_cost.transitions)


def gradients_of(problem: Problem, mdp: MDP, rung: Rung, sizes: Sizes) -> Gradients:
    """Exact gradients, or sampled ones with the rung's critic."""
    match rung.critic:
        case "none":
            return exact_gradients(problem, mdp, 1, COEFFICIENTS)
        case "exact":
            critic = exact_critic(problem, mdp, COEFFICIENTS)
        case "Algorithm 2":
            counts = TDSizes(num_targets=1, num_transitions=sizes.num_transitions, num_chains=16)
            critic = td_critic(problem, problem.reward, counts, COEFFICIENTS, TDHyper(2.0, math.inf))
        case "Monte Carlo":
            critic = monte_carlo_critic(problem, COEFFICIENTS)
    samples = SampleSizes(sizes.batch_size, rollout_length=1, segment_length=1)
    return sampled_gradients(problem, critic, samples, COEFFICIENTS)


def steps_to_target(total_variation: np.ndarray) -> int | None:
    """Steps after which the mean over seeds of [seed, step] stays below the target; None where it does not."""
    above = np.flatnonzero(np.mean(total_variation, axis=0) >= TARGET)
    last = int(above[-1]) + 1 if len(above) else 0  # steps are counted from 1
    return last + 1 if last < total_variation.shape[1] else None


def late_slope(values: np.ndarray) -> Interval:
    """Slope of the log mean of [seed, step] in log steps over the last three quarters, with its interval."""
    steps = np.unique(np.geomspace(values.shape[1] / 4, values.shape[1], 30).astype(int))

    def fit(picks):
        return np.polyfit(np.log(steps), np.log(np.mean(values[:, steps - 1][picks], axis=1)).T, 1)[0]

    return bootstrap(fit, len(values))


def judge(data: Data) -> Measurement:
    """Each rung's last values with their intervals, and what it took to reach the target."""
    numbers, rows, transitions = {}, [], 0
    for name, of in data.rungs.items():
        numbers[f"total variation, {name}"] = Number(*mean(of.total_variation[:, -1]))
        numbers[f"suboptimality, {name}"] = Number(*mean(of.suboptimality[:, -1]))
        if RUNGS[name].critic == "Monte Carlo":
            over = "over the last three quarters of the steps"
            numbers[f"slope of total variation in steps, {name}"] = Number(*late_slope(of.total_variation), over=over)
        steps, per_step = steps_to_target(of.total_variation), of.transitions
        row = {"rung": name, f"steps to below {TARGET}": steps or "never"}
        row |= {"transitions a step": per_step, "transitions to there": steps * per_step if steps else "–"}
        rows.append(row | {"largest total variation": np.max(of.total_variation[:, -1])})
        transitions += per_step * of.total_variation.size
    return Measurement(numbers, {"transitions": transitions}, (), (Table("what each rung took", rows),))


def draw(data: Data) -> Figure:
    """Total variation and suboptimality, a row each, against steps and against transitions."""
    title = "Policy gradient to the Gibbs policy: mean over seeds, 95 % bootstrap intervals"
    figure, axes = panels(11, 8, 2, 2, title, share_y="row")
    for (name, of), (row, every) in itertools.product(data.rungs.items(), enumerate(axes)):
        values = of.suboptimality if row else of.total_variation
        steps = np.unique(np.geomspace(1, values.shape[1], 200).astype(int))
        curve = mean(np.maximum(values[:, steps - 1], 1e-9))  # rounding leaves ±1e-16 of a suboptimality
        style = COLORS[name], name, "--" if RUNGS[name].policy == "network" else "-"
        # Exact gradients take no transitions; they lie below the others.
        for panel, scale in zip(every, (1, of.transitions), strict=True):
            if scale:
                band(panel, scale * steps, curve, *style, width=1.3 if of.transitions else 3.5)
    for steps, transitions in axes:
        log_log(steps, "policy gradient steps", "")
        log_log(transitions, "transitions", "")
    axes[0, 0].set(ylabel="total variation from π*, mean over contexts", ylim=(1e-5, 1))
    axes[1, 0].set(ylabel="J* − J(π), units of reward", ylim=(1e-7, 1))
    for panel in axes[0]:
        panel.axhline(TARGET, color="black", linestyle=":", linewidth=1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


CLAIM = Claim(
    statement="Policy gradient on J with its KL term finds the Gibbs policy, sampled or not.",
    source="derived; the lower level of 2410.15610 at γ = 0",
    prediction="total variation from π* falls geometrically with constant steps where the noise vanishes with the advantage "
    "(exact gradients, an exact critic, Algorithm 2); with Monte Carlo returns as t^(−1/2), and with falling steps alone",
    minutes=(0.5, 3),
    measure=measure,
    judge=judge,
    draw=draw,
)
