"""The two-state MDP on which rates are measured: its Φ, the theorem's schedule, and Algorithm 1 at any counts and numbers.

What several claims share; no claim itself. The second state is rare and pays; r_φ(s, a) = φ₁ s + φ₂ a from standard normal
φ: few enough parameters to look at Φ all over a square. No instance satisfies the theorem's assumption everywhere: far away,
where policies are nearly deterministic, Φ is flat in some directions, and may be higher there than at any maximum nearby,
and in others it falls linearly, so that ‖∇Φ‖/(Φ* − Φ) → 0. So the theorem is tried locally, on the square |φ_i| ≤ `RADIUS`
where runs are. Φ* is the highest to which ascents lead: at w = 3 within the square; at w = 0.5 outside, while runs end in a
lower maximum.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import models
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper, bilevel_rlhf, line_7, step_cost
from bilevel.exact import landscape, meters
from bilevel.exact.bilevel import Bilevel, exact_bilevel, tabular_problem
from bilevel.gradients.critics import TDHyper, TDSizes, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.gradients.types import Gradients
from bilevel.run import run, start
from bilevel.types import Algorithm, Array, Coefficients, Model, Problem
from envs.base import MDP
from experiments.claims.seeds import for_each_seed
from experiments.statistics import intervals
from experiments.statistics.intervals import Interval
from experiments.statistics.rates import Fit, power_law, unfitted

DISCOUNT, LENGTH, ROLLOUT = 0.5, 3, 14  # 0.5^14 = 6e-5
RADIUS, GRID = 4.0, 9  # of the square in which the assumption is looked at, and points a side from which it is searched
FAR, FAR_GRID = 100.0, 49  # of the square in which a higher Φ is looked for, and points a side, denser in the middle
POLICY_STEP, REWARD_STEP, CRITIC_STEP = 0.5, 2.0, 1.5  # τ: the curvature of J is at most w/(2 (1 − γ)) = 3
ONE_MAXIMUM, SEVERAL = "one maximum", "several maxima"
WEIGHTS = {ONE_MAXIMUM: 3.0, SEVERAL: 0.5}  # w, and what ascent on the exact Φ finds
ESTIMATORS, EXACT = ("independent", "weighted"), "exact gradients"
ROUNDING = 1e-9  # a gap below it is none


def instance() -> MDP:
    """The MDP with its true reward."""
    transition = jnp.array([[[0.9, 0.1], [0.1, 0.9]], [[1.0, 0.0], [0.7, 0.3]]])
    return MDP(jnp.array([0.8, 0.2]), transition, jnp.array([[-0.8, 0.1], [1.7, 0.9]]))


def coefficients(kl_weight: Array | float) -> Coefficients:
    """γ, w and κ of the problem."""
    return Coefficients(DISCOUNT, kl_weight, 1.0)


def problem(kl_weight: Array | float, reward: Model | None = None) -> Problem:
    """Of the linear r_φ, or of another model: a table as policy, Bradley–Terry labels, a uniform reference."""
    if reward is None:
        reward = models.linear(lambda state, action: jnp.array([state, action], float), 2)
        reward = reward._replace(init=lambda key: jax.random.normal(key, (2,)))
    return tabular_problem(instance(), coefficients(kl_weight), reward)


def bilevel(kl_weight: Array | float) -> Bilevel:
    """Φ of the linear r_φ, φ [2], and what belongs to it, exactly."""
    return exact_bilevel(problem(kl_weight), instance(), LENGTH, coefficients(kl_weight))


def gaps(best: float, params: np.ndarray, kl_weight: float) -> np.ndarray:
    """Φ* − Φ at each φ [..., 2], in nats and float64, [...]; `ROUNDING` where Φ is above Φ* = best."""
    return np.maximum(best - values(params, kl_weight), ROUNDING)


def values(params: np.ndarray, kl_weight: float) -> np.ndarray:
    """Φ at each φ [..., 2], in float64, [...]."""
    with jax.enable_x64(True):
        return np.asarray(_values(jnp.asarray(params, float).reshape(-1, 2), kl_weight)).reshape(params.shape[:-1])


@jax.jit
def _values(params, kl_weight):
    return jax.vmap(bilevel(kl_weight).value)(params)


class Assumption(NamedTuple):
    """Weak gradient domination, as far as it was looked at."""

    best: np.ndarray  # [] Φ*: the largest Φ to which plain ascents climb from random φ and from a grid on the square
    reached: np.ndarray  # [] share of the random φ from which they get there
    domination: np.ndarray  # [] μ̂₁ over these ascents, in 1/(unit of φ)²; 0 with a stationary point below Φ*
    below: np.ndarray  # [] the number of such points in the square
    beyond: np.ndarray  # [] the largest Φ seen outside of the square, up to |φ_i| = `FAR`, less Φ*, at least; nats
    start: np.ndarray  # [3] the mean gap of the random φ, drawn as those of runs, with its 95 % interval, nats


def assumption(kl_weight: float, num_starts: int = 64, num_steps: int = 1500) -> Assumption:
    """What ascents of so many steps, from so many random φ and a grid, and searches for ∇Φ = 0 find; in float64."""
    with jax.enable_x64(True):
        random = jax.random.normal(jax.random.key(2), (num_starts, 2))
        square = _grid(jnp.linspace(-RADIUS, RADIUS, GRID))
        far = _grid(jnp.sinh(jnp.linspace(-jnp.arcsinh(FAR), jnp.arcsinh(FAR), FAR_GRID)))
        looked = _looked_at(jnp.concatenate([random, square]), square, kl_weight, num_steps)
        ends, climbed, norms, found = jax.tree.map(np.asarray, looked)
        best = np.nanmax(climbed[:, -1])
        inside = np.all(np.abs(found.params) <= RADIUS, axis=-1) & np.asarray(landscape.is_stationary(found))
        below = inside & (found.value < best - 1e-5)
        along = meters.domination(climbed.ravel(), norms.ravel(), best)
    outside = values(np.asarray(far), kl_weight)[np.any(np.abs(far) > RADIUS, axis=-1)]
    left = np.any(np.abs(ends) > RADIUS, axis=-1)
    different = len(np.unique(np.round(found.params[below], 4), axis=0))
    gap = best - climbed[:num_starts]
    return Assumption(
        best,
        reached=np.mean(gap[:, -1] < 1e-6),
        domination=np.where(below.any(), 0.0, along),
        below=np.array(different),
        beyond=np.nanmax([*outside, *climbed[left, -1]]) - best,
        start=np.array(intervals.mean(gap[:, 0])),
    )


def _grid(line: Array) -> Array:
    return jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)


@partial(jax.jit, static_argnames="num_steps")
def _looked_at(starts, square, kl_weight, num_steps):
    slope = jax.value_and_grad(bilevel(kl_weight).value)

    def body(params, _):
        value, gradient = slope(params)
        return params + 1.5 * gradient, (value, jnp.linalg.norm(gradient))

    ends, (climbed, norms) = jax.vmap(lambda start: jax.lax.scan(body, start, length=num_steps))(starts)
    land = landscape.landscape(problem(kl_weight), instance(), LENGTH, coefficients(kl_weight))
    return ends, climbed, norms, jax.lax.map(lambda start: landscape.search(land, start, False, 200), square)


class Counts(NamedTuple):
    """The counts of Algorithm 1 and of its critic, with the paper's letters."""

    num_steps: int  # T
    num_policy_steps: int  # K
    batch_size: int  # B
    num_transitions: int  # n
    num_targets: int = 2  # L
    num_chains: int = 16  # that give the n transitions


class Numbers(NamedTuple):
    """The real numbers of Algorithm 1 and of its critic, each of which may be traced: σ, τ, η, β′ and τ′/τ."""

    sigma: Array | float
    policy_step_size: Array | float = POLICY_STEP
    reward_step_size: Array | float = REWARD_STEP
    critic_step_size: Array | float = CRITIC_STEP
    proxy_step_ratio: Array | float = 1.0


def schedule(epsilon: float) -> tuple[Counts, Numbers]:
    """Of the theorem for a gap of ε: σ = c √ε, B = c/ε, T = c/ε, K = c/√ε, n = c/ε², so that gap ∝ samples^(−2/7).

    The paper leaves the split over T, K and n, the constants and η_t open (2410.15610): this is one with the right total,
    with η_t ∝ 1/t, and with √n chains in Algorithm 2, since with a fixed number of them a bias stays (claim P1.critic).
    """
    chains = 8 * math.ceil(1 / epsilon)
    counts = Counts(
        num_steps=math.ceil(8 / epsilon),
        num_policy_steps=math.ceil(2 / math.sqrt(epsilon)),
        batch_size=2 * math.ceil(8 / epsilon),
        num_transitions=chains**2,
        num_chains=chains,
    )
    return counts, Numbers(2 * math.sqrt(epsilon))


def gradients_of(arm: str, counts: Counts, of: Problem, kl_weight, critic_step_size=CRITIC_STEP) -> Gradients:
    """Exact, or sampled with Algorithm 2 as the critic and that estimator of line 7."""
    mdp, about = instance(), coefficients(kl_weight)
    if arm == EXACT:
        return exact_gradients(of, mdp, LENGTH, about)
    sizes = TDSizes(counts.num_targets, counts.num_transitions, counts.num_chains)
    hyper = TDHyper(critic_step_size, float("inf"))
    critic = td_critic(of, models.table(*mdp.reward.shape), sizes, about, hyper)
    sampling = SampleSizes(counts.batch_size, rollout_length=ROLLOUT, segment_length=LENGTH, estimator=arm)
    return sampled_gradients(of, critic, sampling, about)


def algorithm_1(arm: str, counts: Counts, numbers: Numbers, kl_weight, halved: int = 20) -> Algorithm:
    """Algorithm 1 with η_t = η/(1 + t/halved)."""
    task = problem(kl_weight)
    gradients = gradients_of(arm, counts, task, kl_weight, numbers.critic_step_size)
    hyper = BilevelHyper(numbers.sigma, numbers.policy_step_size, numbers.reward_step_size, numbers.proxy_step_ratio)

    def falling(step_size):
        return optax.sgd(lambda count: step_size / (1 + count / halved))

    config = BilevelConfig(counts.num_policy_steps, reward_optimizer=falling)
    return bilevel_rlhf(task, gradients, config, hyper)


def step_transitions(arm: str, counts: Counts) -> int:
    """Transitions of one outer step."""
    kl_weight, task = WEIGHTS[ONE_MAXIMUM], problem(WEIGHTS[ONE_MAXIMUM])
    gradients = gradients_of(arm, counts, task, kl_weight)
    hypergradient = line_7(task, gradients, BilevelHyper())
    return step_cost(gradients, BilevelConfig(counts.num_policy_steps), hypergradient).transitions


class Learned(NamedTuple):
    """params [seed, 2] φ_T, transitions [] a seed."""

    params: np.ndarray  # [seed, 2] φ_T
    transitions: np.ndarray  # [] a seed


def learn(arm: str, counts: Counts, numbers: Numbers, kl_weight: float, num_seeds: int) -> Learned:
    """The ends of that many runs."""

    def single(key):
        return end_of(key, arm, counts, numbers, kl_weight)

    params = for_each_seed(single, num_seeds, jax.random.key(0))
    return Learned(params, np.array(counts.num_steps * step_transitions(arm, counts), float))


def end_of(key: Array, arm: str, counts: Counts, numbers: Numbers, kl_weight) -> Array:
    """φ_T [2] of one run."""
    algorithm = algorithm_1(arm, counts, numbers, kl_weight)
    state, _ = run(algorithm, key, start(algorithm, key), counts.num_steps)
    return algorithm.params(state.algorithm).reward


def law(budgets: np.ndarray, gap: np.ndarray) -> Fit:
    """The power law of gaps, without a floor: the claim is that the gap goes to zero. It decides nothing with runs lost."""
    why = without_gap(gap)
    return unfitted(why) if why else power_law(budgets, gap, floor=False)


def without_gap(gap: np.ndarray) -> str:
    """At which level, and in how many runs, gaps first are no numbers, in words; "" if all are."""
    for level, seeds in enumerate((~np.isfinite(gap)).sum(axis=1), 1):
        if seeds:
            return f"{seeds} of {gap.shape[1]} runs at level {level} of {len(gap)} ended with a gap that is no number"
    return ""


def means(gap: np.ndarray) -> Interval:
    """Over seeds, each [level]; not a number where a seed has no gap: the others alone would flatter."""
    whole = np.isfinite(gap).all(axis=1)
    return Interval(*(np.where(whole, x, np.nan) for x in intervals.mean(gap, axis=1)))
