"""Errors of Algorithm 2 on a GridWorld where Q is known: what three claims on critics share; it is no claim itself.

The critic is learned at two policies, by a table and by networks of several widths, on C chains that share a step. Along a
chain the error of θ at (s, a) is correlated with the next visit of (s, a), which biases SGD with constant steps by O(β′/C),
whether iterates are averaged or not. A pass forgets its start as C/(β′n). So C grows like √n at a constant β′: both then
vanish like n^(−1/2), and a pass has n/C ∝ √n steps. β′ is half the largest stable step of SGD on batches of C:
1/β′ = (R² + (C − 1) λ)/C for the smallest C, R² a bound on ‖∇_θ Q‖² and λ ≤ R² on the largest eigenvalue of E ∇Q ∇Qᵀ.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import exact, models
from bilevel.ascent import maximise
from bilevel.gradients.critics import TDHyper, TDSizes, td_critic
from bilevel.lookup import bind, pair_table
from bilevel.types import Array, Coefficients, Model, Problem
from envs.base import MDP
from envs.gridworld import gridworld
from envs.tabular import tabular
from experiments.claims.instances import true_lower_level
from experiments.claims.seeds import for_each_seed
from experiments.statistics.intervals import Interval, bootstrap, mean
from experiments.statistics.rates import undecided

COEFFICIENTS = Coefficients(discount=0.8, kl_weight=0.3)
POLICIES = ("random", "optimised")
TABLE, FIXED = "table", "table, C fixed"
MIN_UPDATES = 4  # that show a factor


class Sizes(NamedTuple):
    """How much is computed."""

    layout: str = "open"  # of the GridWorld
    num_seeds: int = 32  # independent runs of Algorithm 2
    num_targets: int = 40  # L
    transitions: tuple[int, ...] = (1024, 4096, 16384, 65536, 262144)  # n of the table's runs, each four times the last
    num_chains: int = 8  # C at the first n
    network_transitions: tuple[int, ...] = (1024, 4096, 16384, 65536)  # the same for networks
    network_chains: int = 2  # the same for networks
    hidden_sizes: tuple[tuple[int, ...], ...] = ((), (2,), (2, 2), (8,), (8, 8))  # of networks; () is affine
    fit_steps: int = 10_000  # of the direct fits
    num_restarts: int = 8  # of the direct fits


class Known(NamedTuple):
    """What is known exactly, in float64 but for what is learned from; first axes [policy]."""

    mdp: MDP  # of the GridWorld, in float32
    logits: np.ndarray  # [2, S, A] of each policy, in float32
    values: np.ndarray  # [2, S, A] its exact Q, in float32
    weights: np.ndarray  # [2, S, A] discounted occupancy d(s) π(a|s), which errors are weighted by, in float32
    bias: np.ndarray  # [2, L] RMS error after l target updates without noise, from Q = 0
    limit: np.ndarray  # [2] RMS error · √n of sample means at every pair, from the central limit theorem


class Learner(NamedTuple):
    """A critic's model and its schedule: n, C at each n, and β′."""

    model: Model  # of the critic
    transitions: tuple[int, ...]  # n
    chains: tuple[int, ...]  # C at each n
    step_size: float  # β′


def known_exactly(layout: str, num_targets: int) -> Known:
    """Oracles at a policy of normal logits and at the KL-optimal one of the true reward."""
    with jax.enable_x64(True):
        mdp = gridworld(layout)
        lower = true_lower_level(mdp, COEFFICIENTS)
        random = jax.random.normal(jax.random.key(0), mdp.reward.shape, jnp.float32)
        logits = [jnp.asarray(random, float), jnp.log(exact.optimal_policy(lower).policy)]
        found = [jax.jit(oracle, static_argnums=2)(lower, jax.nn.softmax(x), num_targets) for x in logits]
    values, weights, bias, limit = (np.stack(x) for x in zip(*found, strict=True))
    learned = [np.asarray(x, np.float32) for x in (np.stack(logits), values, weights)]
    return Known(gridworld(layout), *learned, bias, limit)


def oracle(lower: exact.LowerLevel, policy: Array, num_targets: int) -> tuple[Array, Array, Array, Array]:
    """Exact Q, occupancy, the errors of exact target updates from zero [L], and the central limit of the noise.

    In the limit each pass makes Q_l(s, a) a mean of n d(s, a) targets, whose variance is γ² Var h(s′, a′) with
    h = Q − w log π/π_ref, and e_l = γ P_π e_{l−1} + noise.
    """
    values = exact.action_values(lower, policy)
    weights = (exact.occupancy(lower, policy)[:, None] * policy).ravel()
    moves = pair_moves(lower.transition, policy)
    after = (exact.regularised_reward(lower, policy) - lower.reward + values).ravel()
    noise = lower.discount**2 * (moves @ after**2 - (moves @ after) ** 2) / weights

    def body(carry, _):
        error, power = carry  # e_l without noise, and (γ P_π)^l
        error = lower.discount * moves @ error
        variance = weights @ (power**2 @ noise)
        return (error, lower.discount * moves @ power), (jnp.sqrt(weights @ error**2), variance)

    _, (bias, variances) = jax.lax.scan(body, (values.ravel(), jnp.eye(values.size)), length=num_targets)
    return values, weights.reshape(values.shape), bias, jnp.sqrt(jnp.sum(variances))


def pair_moves(transition: Array, policy: Array) -> Array:
    """P_π [S·A, S·A] of transitions [S, A, S] and a policy [S, A]: the chances of (s, a) -> (s′, a′)."""
    return (transition[..., None] * policy).reshape(policy.size, policy.size)


def learners(known: Known, sizes: Sizes) -> dict[str, Learner]:
    """What is run, networks named by their hidden sizes. With C fixed the table's last n is left out, for time.

    A table has R² = 1, and λ is its largest occupancy. For networks both are bounded by the last layer's share, width + 1;
    an affine function sees two ones and a 1.
    """

    def growing(first, transitions):
        return tuple(first * math.isqrt(n // transitions[0]) for n in transitions)  # ∝ √n

    n, first, table = sizes.transitions, sizes.num_chains, models.table(*known.values.shape[1:])
    step_size = first / (1 + (first - 1) * float(np.max(known.weights)))
    found = {
        TABLE: Learner(table, n, growing(first, n), step_size),
        FIXED: Learner(table, n[:-1], (first,) * (len(n) - 1), step_size),
    }
    n, features = sizes.network_transitions, models.pair_features(tabular(known.mdp))
    for hidden in sizes.hidden_sizes:
        bound = hidden[-1] + 1 if hidden else 3
        name = "×".join(map(str, hidden)) or "affine"
        found[name] = Learner(models.mlp(*features, hidden), n, growing(sizes.network_chains, n), 1 / bound)
    return found


def learn(known: Known, learner: Learner, run: int, sizes: Sizes) -> np.ndarray:
    """Q_l − Q at every pair after each target update, at the learner's n of that number, [policy, seed, L, S, A]."""
    world, model, shape = tabular(known.mdp), learner.model, known.values.shape[1:]
    reference = models.uniform_reference(world.env)
    problem = Problem(world.env, None, models.table(*shape), models.table_policy(*shape), reference)
    counts = TDSizes(1, learner.transitions[run], learner.chains[run])
    critic = td_critic(problem, model, counts, COEFFICIENTS, TDHyper(learner.step_size, math.inf))

    def single(key):
        key_init, key_fits = jax.random.split(key)

        def errors(logits, values):
            def body(state, key):
                state, _ = critic.fit(key, state, logits, world.mdp.reward)
                return state, pair_table(world.env, bind(model, state.params)) - values

            return jax.lax.scan(body, critic.init(key_init), jax.random.split(key_fits, sizes.num_targets))[1]

        return jax.vmap(errors)(known.logits, known.values)

    return np.swapaxes(for_each_seed(single, sizes.num_seeds, jax.random.key(1)), 0, 1)


def direct_fit(known: Known, model: Model, sizes: Sizes) -> np.ndarray:
    """The floor of a class: RMS errors of weighted least squares on the exact Q, by full gradients, [policy, restart]."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, sizes.fit_steps))
    env = tabular(known.mdp).env

    def fit(params, values, weights):
        def error(params):
            return jnp.sqrt(jnp.sum(weights * (pair_table(env, bind(model, params)) - values) ** 2))

        return error(maximise(lambda x: -(error(x) ** 2), optimizer, params, sizes.fit_steps))

    def single(key):
        return jax.vmap(fit, in_axes=(None, 0, 0))(model.init(key), known.values, known.weights)

    return for_each_seed(single, sizes.num_restarts, jax.random.key(2)).T


def occupancy_rms(known: Known, errors: np.ndarray) -> np.ndarray:
    """√ Σ d(s) π(a|s) (Q_θ − Q)² of errors [policy, seed, L, S, A], [policy, seed, L]."""
    return np.sqrt(np.einsum("psa,pklsa->pkl", np.asarray(known.weights, float), np.square(errors, dtype=float)))


def over_seeds(errors: np.ndarray) -> Interval:
    """RMS over seeds [x] with its interval, of errors [x, seed]."""
    return Interval(*np.sqrt(mean(errors**2, axis=-1)))


def per_update(errors: np.ndarray) -> np.ndarray:
    """What errors [L, …] are multiplied by at each target update, […], by least squares on logs."""
    return np.exp(np.polyfit(np.arange(len(errors)), np.log(errors), 1)[0])


def contraction(
    known: Known, policy: int, n: int, errors: np.ndarray, expected: np.ndarray
) -> tuple[Interval, float, int, str]:
    """What a target update multiplies errors [L, seed] by while the error without noise is 10 × the noise of n transitions:
    its interval, what it is for those expected [L], the target updates that it is over, and why it decides nothing, if so.
    """
    visible = int(np.sum(known.bias[policy] > 10 * known.limit[policy] / np.sqrt(n)))
    few = f"noise hides all but {visible} target updates; {MIN_UPDATES} are needed" if visible < MIN_UPDATES else ""
    last, num = max(2, visible), errors.shape[1]
    factor = bootstrap(lambda picks: per_update(np.sqrt(np.mean(errors[:last, picks] ** 2, axis=-1))), num)
    return factor, float(per_update(expected[:last])), last, few or undecided(num)
