"""Classes of rewards from affine to deep on random MDPs: Φ, its meters, and Algorithm 1's ends, with exact gradients.

The upper level's part of the claim nonlinearity; no claim itself. The true reward is additive, r(s) + r(a), which every
class holds or approaches at any accuracy, plus `interaction` times the rest of a random table.
"""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from bilevel import models
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper, bilevel_rlhf
from bilevel.exact import landscape, meters
from bilevel.exact.bilevel import tabular_problem
from bilevel.exact.landscape import Stationary
from bilevel.gradients.exact import exact_gradients
from bilevel.lookup import bind, policy_table
from bilevel.run import DIVERGED, run, start
from bilevel.types import Array, Coefficients, Model, Problem
from envs.base import MDP
from envs.tabular import garnet, tabular
from experiments.claims.instances import relative_return, true_lower_level
from experiments.claims.p1.landscapes import GAP
from experiments.claims.p1.methods import LENGTH, MOMENTUM, POLICY_STEP, REWARD_STEP, SIGMA, TOLERANCE
from experiments.statistics.intervals import Interval, rank_correlation

NUM_STATES, NUM_ACTIONS, COEFFICIENTS = 3, 2, Coefficients(discount=0.9, kl_weight=1.0)
TRUTHS = {"additive truth": 0.0, "truth with interaction": 1.0}  # how much of the true reward is not additive
TABLE = "table"
HIDDEN = {"affine": (), "2": (2,), "4": (4,), "8": (8,), "16": (16,), "4×4": (4, 4), "4×4×4": (4, 4, 4)}
SCALE = 0.5  # standard deviation of the first reward of a table, about that of the networks'
NUM_POLICY_STEPS, NUM_PARTS = 4, 5  # K of Algorithm 1; fifths of the instances


class Sizes(NamedTuple):
    """How much is computed."""

    num_instances: int = 32  # random MDPs, the same for every class and truth; the unit of the intervals
    num_points: int = 16  # φ drawn as networks are initialised (tables: normal), where μ̂₁ is measured
    num_starts: int = 6  # of the ascents on Φ, the first of the points; Algorithm 1 starts at the first
    max_steps: int = 50  # of each ascent
    num_steps: int = 1000  # T of Algorithm 1


class Rewards(NamedTuple):
    """One class of rewards; leading axes [interaction, instance], M starts."""

    best: np.ndarray  # [] the largest Φ found in the class, in nats
    ascents: Stationary  # [M] where second-order ascents on Φ ended
    domination: np.ndarray  # [] μ̂₁ over the points, with the best of the class for Φ*, in 1/(unit of φ)²
    reached: np.ndarray  # [] Φ at the end of Algorithm 1
    returned: np.ndarray  # [] J of Algorithm 1's policy under the true reward: 0 the reference's, 1 the optimum
    converged: np.ndarray  # [] bool, whether both gradients were below `TOLERANCE` at its end


def reward_class(name: str, sizes: Sizes) -> Rewards:
    """One class on every instance, one program, in float64: Algorithm 1 side by side, ascents one after another."""

    def all_lanes(lanes):
        ends, returned, converged = jax.vmap(partial(algorithm_1, name=name, sizes=sizes))(*lanes)
        explored = jax.lax.map(lambda lane: explore(*lane, name=name, sizes=sizes), (*lanes, ends))
        return Rewards(*explored, returned, converged)

    truth, seed = (x.ravel() for x in np.indices((len(TRUTHS), sizes.num_instances)))
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), sizes.num_instances)[seed]
        found = jax.device_get(jax.jit(all_lanes)((keys, jnp.array([*TRUTHS.values()])[truth])))
    return jax.tree.map(lambda x: x.reshape(len(TRUTHS), sizes.num_instances, *x.shape[1:]), found)


def instance(key: Array, interaction: Array) -> MDP:
    """A random MDP with r(s, a) = additive part + interaction · the rest."""
    mdp = garnet(key, NUM_STATES, NUM_ACTIONS)
    mean = jnp.mean(mdp.reward)
    additive = jnp.mean(mdp.reward, axis=1, keepdims=True) + jnp.mean(mdp.reward, axis=0, keepdims=True) - mean
    return mdp._replace(reward=additive + interaction * (mdp.reward - additive))


def setting(key: Array, interaction: Array, name: str, sizes: Sizes) -> tuple[MDP, Problem, Array]:
    """The bilevel problem of one instance and class, policies being tables, and its points φ [P, D]."""
    mdp = instance(key, interaction)
    problem = tabular_problem(mdp, COEFFICIENTS, reward_model(mdp, name))
    initial = jax.vmap(lambda key: ravel_pytree(problem.reward.init(key))[0])
    return mdp, problem, initial(jax.random.split(jax.random.fold_in(key, 1), sizes.num_points))


def reward_model(mdp: MDP, name: str) -> Model:
    """The class of rewards of that name; all but the table see a one-hot state and a one-hot action side by side."""
    if name != TABLE:
        return models.mlp(*models.pair_features(tabular(mdp)), HIDDEN[name])
    table = models.table(NUM_STATES, NUM_ACTIONS)
    return table._replace(init=lambda key: SCALE * jax.random.normal(key, (NUM_STATES, NUM_ACTIONS)))


def algorithm_1(key: Array, interaction: Array, name: str, sizes: Sizes) -> tuple[Array, Array, Array]:
    """From the first point, with exact gradients: the last φ [D], the policy's return [], whether it converged."""
    mdp, problem, points = setting(key, interaction, name, sizes)
    _, unravel = landscape.flat(problem.reward)
    problem = problem._replace(reward=models.started_at(problem.reward, unravel(points[0])))
    config = BilevelConfig(NUM_POLICY_STEPS, reward_optimizer=lambda size: optax.sgd(size, momentum=MOMENTUM))
    gradients = exact_gradients(problem, mdp, LENGTH, COEFFICIENTS)
    algorithm = bilevel_rlhf(problem, gradients, config, BilevelHyper(SIGMA, POLICY_STEP, REWARD_STEP))
    nothing_is_drawn = jax.random.key(0)
    state, _ = run(algorithm, nothing_is_drawn, start(algorithm, nothing_is_drawn), sizes.num_steps)
    learned = algorithm.params(state.algorithm)
    policy = policy_table(problem.env, bind(problem.policy, learned.policy))
    returned = relative_return(true_lower_level(mdp, COEFFICIENTS), policy)
    norms = jnp.stack([state.metrics["gradient_norm"], state.metrics["policy_gradient_norm"]])
    converged = (jnp.max(norms) < TOLERANCE) & (state.status != DIVERGED)
    return ravel_pytree(learned.reward)[0], returned, converged


def explore(key: Array, interaction: Array, end: Array, name: str, sizes: Sizes) -> tuple[Array, ...]:
    """(best Φ, ascents, μ̂₁, Φ at `end`)."""
    mdp, problem, points = setting(key, interaction, name, sizes)
    land, num = landscape.landscape(problem, mdp, LENGTH, COEFFICIENTS), sizes.num_starts
    # Points, and where Algorithm 1 ended, are ascents of one step, which stay where they are: one program to compile.
    begin = jnp.concatenate([points[:num], points, end[None]])
    steps = jnp.where(jnp.arange(len(begin)) < num, sizes.max_steps, 1)
    found = jax.lax.map(lambda x: landscape.search(land, x[0], True, x[1]), (begin, steps))
    ascents, at_points = (jax.tree.map(lambda x, of=of: x[of], found) for of in (slice(num), slice(num, -1)))
    best = jnp.nanmax(found.value)
    return best, ascents, meters.domination(at_points.value, at_points.gradient_norm, best), found.value[-1]


def losses(rewards: dict[str, Rewards]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the best of a class lacks and what Algorithm 1 leaves in it, [interaction, instance] each, as shares of what the
    best of any class gains over a constant reward, whose Φ is −log 2."""
    best = np.max([found.best for found in rewards.values()], axis=0)
    gain = best + np.log(2)
    return {name: ((best - found.best) / gain, (found.best - found.reached) / gain) for name, found in rewards.items()}


def ends_below(found: Rewards) -> np.ndarray:
    """Runs of Algorithm 1 that ended more than `GAP` below the best of their class, [interaction, instance] bool."""
    return found.best - found.reached > GAP


def correlations(rewards: dict[str, Rewards], truth: int) -> dict[str, dict[str, Interval]]:
    """ρ of μ̂₁ with what Algorithm 1 leaves in its class, and with what its policy lacks."""
    domination = np.stack([found.domination[truth] for found in rewards.values()])
    left = np.stack([(found.best - found.reached)[truth] for found in rewards.values()])
    lacking = np.stack([1 - found.returned[truth] for found in rewards.values()])
    left = np.where(left < GAP, 0.0, left)  # which σ and rounding leave
    return {"left": rank_correlation(domination, left), "lacking": rank_correlation(domination, lacking)}


def by_meter(rewards: dict[str, Rewards]) -> np.ndarray:
    """Runs that end below, [instance, part, interaction]: means over those classes in which the instance's μ̂₁ falls in that
    fifth (from the lowest) of the class's; NaN where there is none."""
    rank = np.stack([np.argsort(np.argsort(found.domination, axis=-1), axis=-1) for found in rewards.values()])
    events = np.stack([ends_below(found) for found in rewards.values()])
    part = rank * NUM_PARTS // rank.shape[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an instance that is in no class in that part
        means = [np.nanmean(np.where(part == k, events, np.nan), axis=0) for k in range(NUM_PARTS)]
    return np.moveaxis(means, -1, 0)
