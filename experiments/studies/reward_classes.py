"""Classes of rewards from affine to deep on random MDPs: Φ, its meters, and Algorithm 1's ends, with exact gradients.

The upper level's part of `study nonlinearity`.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from bilevel import exact, models
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf
from bilevel.exact import landscape, meters
from bilevel.exact.landscape import Stationary
from bilevel.gradients.exact import exact_gradients
from bilevel.lookup import bind, policy_table
from bilevel.preferences import annotator
from bilevel.run import DIVERGED, run, start
from bilevel.types import Array, Hyper, Model, Problem
from envs.base import MDP, World
from envs.tabular import garnet, tabular
from experiments.report.summary import rank_correlation
from experiments.studies.alignment import MOMENTUM, POLICY_STEP, REWARD_STEP, SIGMA, TOLERANCE
from experiments.studies.approximation import CLASSES
from experiments.studies.domination import GAP

NUM_STATES, NUM_ACTIONS, DISCOUNT, LENGTH = 3, 2, 0.9, 2
SCALE = 0.5  # standard deviation of the first reward of a table, about that of the networks'


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        num_instances: random MDPs, the same for every class, w and truth; the unit of the intervals.
        kl_weights: w.
        interactions: how much of the true reward is not additive.
        num_points: φ drawn as networks are initialised (tables: standard normal), where μ̂₁ is measured.
        num_starts: of the ascents on Φ, the first of the points; Algorithm 1 starts at the first.
        max_steps: of each ascent.
        num_steps, num_policy_steps: T and K of Algorithm 1.
    """

    num_instances: int = 32
    kl_weights: tuple[float, ...] = (1.0,)
    interactions: tuple[float, ...] = (0.0, 1.0)
    num_points: int = 16
    num_starts: int = 6
    max_steps: int = 50
    num_steps: int = 1000
    num_policy_steps: int = 4


class Measured(NamedTuple):
    """One class of rewards; leading axes [w, interaction, instance], M starts.

    Attributes:
        best: [] the largest Φ found in the class, in nats.
        ascents: [M] where second-order ascents on Φ ended.
        domination: [] μ̂₁ over the points, with the best of the class for Φ*, in 1/(unit of φ)².
        reached: [] Φ at the end of Algorithm 1.
        returned: [] J of Algorithm 1's policy under the true reward, with its KL term: 0 the reference's, 1 the optimum.
        gradients: [2] norms of what reward and policy follow at the end.
        diverged: [] bool.
    """

    best: Array
    ascents: Stationary
    domination: Array
    reached: Array
    returned: Array
    gradients: Array
    diverged: Array


def reward_model(world: World, name: str) -> Model:
    """The class of rewards of that name; all but the table see a one-hot state and a one-hot action side by side."""
    if CLASSES[name] is not None:
        return models.mlp(*models.pair_features(world), CLASSES[name])
    table = models.table(NUM_STATES, NUM_ACTIONS)
    return table._replace(init=lambda key: SCALE * jax.random.normal(key, (NUM_STATES, NUM_ACTIONS)))


def instance(key: Array, interaction: Array) -> MDP:
    """A random MDP with r(s, a) = additive part + interaction · the rest."""
    mdp = garnet(key, NUM_STATES, NUM_ACTIONS)
    mean = jnp.mean(mdp.reward)
    additive = jnp.mean(mdp.reward, axis=1, keepdims=True) + jnp.mean(mdp.reward, axis=0, keepdims=True) - mean
    return mdp._replace(reward=additive + interaction * (mdp.reward - additive))


def setting(key: Array, kl_weight: Array, interaction: Array, name: str) -> tuple[MDP, Problem, Hyper]:
    """The bilevel problem of one instance and class; policies are tables."""
    mdp = instance(key, interaction)
    world = tabular(mdp)
    hyper = Hyper(SIGMA, kl_weight, DISCOUNT, policy_step_size=POLICY_STEP, reward_step_size=REWARD_STEP)
    policy, uniform = models.table_policy(NUM_STATES, NUM_ACTIONS), models.uniform_reference(world.env)
    return mdp, Problem(world.env, annotator(world.reward, DISCOUNT), reward_model(world, name), policy, uniform), hyper


def algorithm_1(mdp: MDP, problem: Problem, hyper: Hyper, first: Array, sizes: Sizes) -> tuple[Array, ...]:
    """From φ = `first` [D] with exact gradients: the last φ [D], the policy's return, gradient norms [2], diverged."""
    _, unravel = landscape.flat(problem.reward)
    problem = problem._replace(reward=models.started_at(problem.reward, unravel(first)))
    config = BilevelConfig(sizes.num_policy_steps, reward_optimizer=lambda size: optax.sgd(size, momentum=MOMENTUM))
    algorithm = bilevel_rlhf(problem, exact_gradients(problem, mdp, LENGTH, hyper), config, hyper)
    key = jax.random.key(0)  # nothing is drawn
    state, _ = run(algorithm, key, start(algorithm, key), sizes.num_steps)
    learned = algorithm.params(state.algorithm)

    reference = policy_table(problem.env, problem.reference)
    truth = exact.lower_level(mdp, mdp.reward, reference, DISCOUNT, hyper.kl_weight)
    policies = policy_table(problem.env, bind(problem.policy, learned.policy)), exact.optimal_policy(truth).policy
    ours, best, lowest = (exact.regularised_return(truth, policy) for policy in (*policies, reference))
    norms = jnp.stack([state.metrics["gradient_norm"], state.metrics["policy_gradient_norm"]])
    return ravel_pytree(learned.reward)[0], (ours - lowest) / (best - lowest), norms, state.status == DIVERGED


def explore(land: landscape.Landscape, points: Array, end: Array, sizes: Sizes) -> tuple[Array, ...]:
    """(best Φ, ascents, μ̂₁, Φ at `end`), from points [P, D]."""
    num = sizes.num_starts
    # Points, and where Algorithm 1 ended, are ascents of one step, which stay where they are: one program to compile.
    begin = jnp.concatenate([points[:num], points, end[None]])
    steps = jnp.where(jnp.arange(len(begin)) < num, sizes.max_steps, 1)
    found = jax.lax.map(lambda x: landscape.search(land, x[0], True, x[1]), (begin, steps))
    ascents, at_points = (jax.tree.map(lambda x, of=of: x[of], found) for of in (slice(num), slice(num, -1)))
    best = jnp.nanmax(found.value)
    return best, ascents, meters.domination(at_points.value, at_points.gradient_norm, best), found.value[-1]


def measure(keys: Array, kl_weights: Array, interactions: Array, name: str, sizes: Sizes) -> Measured:
    """Everything on the instances of these lanes, [lane] each: Algorithm 1 side by side, ascents one after another."""

    def points_of(key, *lane):
        _, problem, _ = setting(key, *lane, name)
        initial = jax.vmap(lambda key: ravel_pytree(problem.reward.init(key))[0])
        return initial(jax.random.split(jax.random.fold_in(key, 1), sizes.num_points))

    def climb(first, *lane):
        return algorithm_1(*setting(*lane, name), first, sizes)

    def look(points, end, *lane):
        mdp, problem, hyper = setting(*lane, name)
        return explore(landscape.landscape(problem, mdp, LENGTH, hyper), points, end, sizes)

    lanes = keys, kl_weights, interactions
    points = jax.vmap(points_of)(*lanes)
    ends, returned, norms, diverged = jax.vmap(climb)(points[:, 0], *lanes)
    best, ascents, constant, reached = jax.lax.map(lambda lane: look(*lane), (points, ends, *lanes))
    return Measured(best, ascents, constant, reached, returned, norms, diverged)


def measure_class(name: str, sizes: Sizes, say=lambda line: None) -> Measured:
    """One class of rewards, one program; in float64."""
    shape = len(sizes.kl_weights), len(sizes.interactions), sizes.num_instances
    weight, truth, seed = (x.ravel() for x in np.indices(shape))
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), sizes.num_instances)[seed]
        lanes = keys, jnp.asarray(sizes.kl_weights)[weight], jnp.asarray(sizes.interactions)[truth]
        program = jax.jit(lambda *lanes: measure(*lanes, name, sizes))
        found = jax.tree.map(lambda x: np.asarray(x).reshape(*shape, *x.shape[1:]), program(*lanes))
    say(f"reward {name}: {len(seed)} runs, {converged(found).mean():.0%} converged")
    return found


def converged(found: Measured) -> np.ndarray:
    """Runs of Algorithm 1 that ended with both gradients below `TOLERANCE`, [...] bool."""
    return (found.gradients.max(axis=-1) < TOLERANCE) & ~found.diverged


# What is lost, and whether the meter tells ----------------------------------------------------------------------------


def losses(rewards: dict[str, Measured]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the best of a class lacks and what Algorithm 1 leaves in it, [w, interaction, instance] each.

    The best Φ of any class less the class's best, and that less Algorithm 1's last, both divided by what the best of any
    class gains over a constant reward, whose Φ is −log 2.
    """
    best = np.max([found.best for found in rewards.values()], axis=0)
    gain = best + np.log(2)
    return {name: ((best - found.best) / gain, (found.best - found.reached) / gain) for name, found in rewards.items()}


def correlations(rewards: dict[str, Measured], at: tuple[int, int]) -> dict[str, dict]:
    """ρ of μ̂₁ with what Algorithm 1 leaves in its class, and with what its policy lacks, at one w and interaction.

    Losses below `GAP`, which σ and rounding leave, count as none.
    """
    domination = np.stack([found.domination[at] for found in rewards.values()])
    left = np.stack([found.best[at] - found.reached[at] for found in rewards.values()])
    lacking = np.stack([1 - found.returned[at] for found in rewards.values()])
    left = np.where(left < GAP, 0.0, left)
    return {"left": rank_correlation(domination, left), "lacking": rank_correlation(domination, lacking)}


def ends_below(rewards: dict[str, Measured]) -> np.ndarray:
    """Runs of Algorithm 1 that ended more than `GAP` below the best of their class, [class, w, interaction, instance]."""
    return np.stack([found.best - found.reached > GAP for found in rewards.values()])


def by_meter(rewards: dict[str, Measured], num_parts: int = 5) -> np.ndarray:
    """Runs that end below, [instance, part, w, interaction]: means over those classes in which the instance's μ̂₁ falls
    in that part (from the lowest) of the class's; NaN where there is none."""
    domination = np.stack([found.domination for found in rewards.values()])
    rank = np.argsort(np.argsort(domination, axis=-1), axis=-1)
    part = rank * num_parts // domination.shape[-1]
    events = ends_below(rewards)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an instance that is in no class in that part
        means = [np.nanmean(np.where(part == k, events, np.nan), axis=0) for k in range(num_parts)]
    return np.moveaxis(means, -1, 0)
