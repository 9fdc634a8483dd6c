"""∇Φ in several ways on small random MDPs, measured: bias, variance at equal samples, cost, where an ascent along each ends.

What the claim hypergradients measures; no claim itself. Everything is in float64. Arrays of all lanes have a leading axis
L = W · I, every instance at every weight w, which is outermost.
"""

import time
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper, bilevel_rlhf, line_7
from bilevel.ascent import maximise
from bilevel.exact.bilevel import Bilevel, exact_bilevel, tabular_problem
from bilevel.gradients import hypergradients
from bilevel.gradients.critics import monte_carlo_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.hypergradients import Construct, implicit, unrolled
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.gradients.types import Gradients
from bilevel.lookup import bind
from bilevel.run import DIVERGED, run, start
from bilevel.types import Array, Coefficients, Problem
from envs.tabular import garnet

SHAPE, LENGTH, DISCOUNT = (3, 2), 3, 0.9
KL_WEIGHTS = (0.5, 1.5)
SIGMAS = (0.3, 0.1, 0.03)
TARGET = 0.1  # standard error, relative to ‖∇Φ‖, whose price in transitions is reported


class Sizes(NamedTuple):
    """How much is computed."""

    num_instances: int = 16  # random MDPs, each with a reward of its own
    num_ascents: int = 8  # those of them on which Φ is ascended
    policy_steps: tuple[int, ...] = (
        10,
        100,
        1000,
    )  # K′, rising: steps of λ and λ′ before the estimate; ∞ is added
    unrolled_steps: tuple[int, ...] = (10, 100, 1000)  # K of the unrolled ones
    num_batches: int = 200  # independent samples of each estimator, which the variance is over
    batch_size: int = 32  # B trajectories of each, and half as many pairs
    rollout_length: int = 60  # T of each
    outer_steps: int = 200  # of each ascent
    inner_steps: int = 10  # of λ and λ′ in each of these
    repeats: int = 5  # calls that are timed; the fastest counts


class Way(NamedTuple):
    """A hypergradient, σ of line 7 (1 where there is none), and what is measured of it: bias and cost; where an ascent along
    it ends; its variance when sampled, with an estimator of line 7's difference ("": not)."""

    construct: Construct
    sigma: float = 1.0  # of line 7
    exactly: bool = True  # whether its bias and cost are measured
    ascended: bool = True  # whether the end of an ascent along it is
    estimator: str = ""  # of line 7's difference, with which its variance when sampled is measured; "": it is not


class Measured(NamedTuple):
    """What was measured of one way; W weights w, I instances. None: it was not."""

    error: np.ndarray | None = None  # [W, K′, I] ‖estimate − ∇Φ‖/‖∇Φ‖; the last K′ is ∞
    residual: np.ndarray | None = None  # [W, K′, I] relative residual of its linear solve, 0 where nothing is solved
    evaluations: int | None = None  # of gradients, by an estimate
    seconds: float | None = None  # of one jitted call for all W · I
    transitions: np.ndarray | None = None  # [W, I] that a standard error of `TARGET` takes, at λ* and λ*_σ
    gap: np.ndarray | None = None  # [W, I] Φ at the end of its ascent less the exact one's; NaN if it diverged


def ways(sizes: Sizes) -> dict[str, Way]:
    """Every way; solvers' answers are taken with whatever residual they leave. Φ is not ascended along those that are known
    to agree with another, or take the longest."""
    solved, last = partial(implicit, tolerance=jnp.inf), sizes.unrolled_steps[-1]
    proxies = {f"proxy, σ = {sigma}": Way(line_7, sigma) for sigma in SIGMAS}
    return {
        "naive": Way(hypergradients.naive, estimator="weighted"),
        **proxies,
        "closed form": Way(hypergradients.closed_form, estimator="weighted"),
        "implicit, CG": Way(partial(solved, solver=hypergradients.conjugate_gradients())),
        "implicit, dense": Way(partial(solved, solver=hypergradients.dense_elimination()), ascended=False),
        **{f"unrolled, K = {k}": Way(partial(unrolled, num_steps=k), ascended=k < last) for k in sizes.unrolled_steps},
        **{f"{name}, weighted": Way(line_7, way.sigma, False, False, "weighted") for name, way in proxies.items()},
        **{
            f"{name}, independent": Way(line_7, way.sigma, False, False, "independent") for name, way in proxies.items()
        },
    }


class Lane(NamedTuple):
    """Which instance, w, and σ of the way at hand."""

    number: Array  # of the instance
    kl_weight: Array
    sigma: Array  # of the way at hand


class Instance(NamedTuple):
    """The problem of a lane with a table for its reward, φ [S, A] drawn apart from the true one, and everything exact."""

    problem: Problem
    coefficients: Coefficients
    reward: Array
    phi: Bilevel
    gradients: Gradients
    hyper: BilevelHyper


def instance(lane: Lane) -> Instance:
    """The random MDP of that number; step sizes are by the curvature at λ*."""
    key, coefficients = jax.random.key(lane.number), Coefficients(DISCOUNT, lane.kl_weight)
    mdp, reward = garnet(key, *SHAPE), jax.random.normal(jax.random.fold_in(key, 1), SHAPE)
    problem = tabular_problem(mdp, coefficients)
    hyper = BilevelHyper(lane.sigma, policy_step_size=(1 - DISCOUNT) / lane.kl_weight, reward_step_size=1.0)
    known = (of(problem, mdp, LENGTH, coefficients) for of in (exact_bilevel, exact_gradients))
    return Instance(problem, coefficients, reward, *known, hyper)


def points(policy_steps: tuple[int, ...], lane: Lane) -> tuple[Array, Array]:
    """∇Φ [S, A]; and logits [1 + σ, K′, S, A] of λ, then of λ′ at each σ, after K′ steps of gradient ascent from π_ref, the
    last being those of λ* and λ*_σ."""
    of, sigmas = instance(lane), jnp.array((0.0, *SIGMAS))

    def penalised(logits, sigma):
        policy = jax.nn.softmax(logits)
        return of.phi.regularised_return(of.reward, policy) + sigma * of.phi.preference(of.reward, policy)

    def all_sigmas(logits):
        return jnp.sum(jax.vmap(penalised)(logits, sigmas))

    logits, reached = jnp.zeros((len(sigmas), *SHAPE)), []
    for count in np.diff((0, *policy_steps)):
        logits = maximise(all_sigmas, optax.sgd(of.hyper.policy_step_size), logits, int(count))
        reached.append(logits)
    solved = jax.lax.map(lambda sigma: of.phi.penalised(of.reward, sigma), sigmas)
    return of.phi.gradient(of.reward), jnp.stack([*reached, jnp.log(solved)], axis=1)


def estimated(construct: Construct, lane: Lane, actor: Array, behind: Array) -> tuple[Array, Array, Array]:
    """A hypergradient [S, A] without sampling at λ and λ′, the residual of its solve, and its gradient evaluations."""
    of = instance(lane)
    made = construct(of.problem, of.gradients, of.hyper)
    found = made.estimate(jax.random.key(0), (), of.reward, actor, behind)
    return found.direct + found.implicit, found.residual, jnp.int32(made.cost.gradient_evaluations)


def price(construct: Construct, estimator: str, sizes: Sizes, lane: Lane, actor: Array, behind: Array) -> Array:
    """Total variance of a sampled hypergradient at λ and λ′, times the transitions that one takes."""
    of = instance(lane)
    counts = SampleSizes(sizes.batch_size, 0, sizes.rollout_length, LENGTH, estimator)
    gradients = sampled_gradients(of.problem, monte_carlo_critic(of.problem, of.coefficients), counts, of.coefficients)
    made = construct(of.problem, gradients, of.hyper)

    def one(key):
        key_pairs, key_estimate = jax.random.split(key)
        pairs = gradients.collect(key_pairs, bind(of.problem.policy, behind))
        found = made.estimate(key_estimate, pairs, of.reward, actor, behind)
        return found.direct + found.implicit

    samples = jax.lax.map(one, jax.random.split(jax.random.key(0), sizes.num_batches))
    transitions = gradients.collect_cost.transitions + made.cost.transitions
    return jnp.sum(jnp.var(samples, axis=0, ddof=1)) * transitions


def ascent(construct: Construct, sizes: Sizes, lane: Lane) -> Array:
    """Φ at the end of Algorithm 1 with that line 7 and exact gradients, []; NaN if it diverged."""
    of, key = instance(lane), jax.random.key(0)
    config = BilevelConfig(sizes.inner_steps, reward_optimizer=optax.sgd, hypergradient=construct)
    algorithm = bilevel_rlhf(of.problem, of.gradients, config, of.hyper)
    state, _ = run(algorithm, key, start(algorithm, key), sizes.outer_steps)
    value = of.phi.value(algorithm.params(state.algorithm).reward)
    return jnp.where(state.status == DIVERGED, jnp.nan, value)


def exact_ascent(sizes: Sizes, lane: Lane) -> Array:
    """Φ at the end of an ascent along ∇Φ, []."""
    of = instance(lane)
    best = maximise(of.phi.value, optax.sgd(of.hyper.reward_step_size), jnp.zeros(SHAPE), sizes.outer_steps)
    return of.phi.value(best)


@cache
def program(single, *static):
    """A function of a lane, of all lanes and compiled; σ being of the lane, one program serves all σ."""
    return jax.jit(jax.vmap(partial(single, *static)))


def lanes_of(num_instances: int, sigma: float = 1.0) -> Lane:
    """The first instances at every w."""
    num = num_instances * len(KL_WEIGHTS)
    weights = jnp.repeat(jnp.array(KL_WEIGHTS), num_instances)
    return Lane(jnp.arange(num) % num_instances, weights, jnp.full(num, sigma))


def measure_way(way: Way, sizes: Sizes, where: tuple[Array, Array], end: Array) -> Measured:
    """Whatever is to be measured of that way, at `points` of all lanes, and against the exact ascents' Φ."""
    (gradient, logits), lanes, found = where, lanes_of(sizes.num_instances, way.sigma), Measured()
    scale = jnp.linalg.norm(gradient, axis=(-2, -1))
    place = 1 + SIGMAS.index(way.sigma) if way.construct is line_7 else 0  # λ itself where no σ is used
    calls = [(lanes, logits[:, 0, k], logits[:, place, k]) for k in range(logits.shape[2])]
    if way.exactly:
        estimates = program(estimated, way.construct)
        reached, residual, evaluations = (
            jnp.stack(x, axis=1) for x in zip(*(estimates(*x) for x in calls), strict=True)
        )
        error = jnp.linalg.norm(reached - gradient[:, None], axis=(-2, -1)) / scale[:, None]
        seconds = min(seconds_of(estimates, calls[-1]) for _ in range(sizes.repeats))
        found = Measured(by_weight(error), by_weight(residual), int(evaluations[0, 0]), seconds)
    if way.estimator:
        cost = program(price, way.construct, way.estimator, sizes)(*calls[-1])
        found = found._replace(transitions=by_weight(cost / (TARGET * scale) ** 2))
    if way.ascended:
        reached = program(ascent, way.construct, sizes)(lanes_of(sizes.num_ascents, way.sigma))
        found = found._replace(gap=by_weight(reached - end))
    return found


def seconds_of(function, inputs) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*inputs))
    return time.perf_counter() - begin


def by_weight(values: Array) -> np.ndarray:
    """[L, ...] as [W, ..., I]."""
    values = np.asarray(values)
    return np.moveaxis(values.reshape(len(KL_WEIGHTS), -1, *values.shape[1:]), 1, -1)
