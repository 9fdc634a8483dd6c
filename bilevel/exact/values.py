"""Values, occupancy and the optimum of a regularised finite MDP, without sampling.

Dimensions: S states, A actions. Tables are arrays: a reward [S, A], a policy [S, A] whose rows sum to one. Everything is
differentiable once where it says so, and may be vmapped over instances. Meant for float64; in float32 the same formulas
hold to about 1e-5.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from bilevel.linear import solve_dominant
from bilevel.types import Array
from envs.base import MDP


class LowerLevel(NamedTuple):
    """The lower-level problem max_π J(π): a finite MDP with a reward, regularised by w KL(π ‖ π_ref).

    Attributes:
        initial: [S] ρ.
        transition: [S, A, S] P(s′ | s, a).
        reward: [S, A] r_φ, or any other reward.
        reference: [S, A] π_ref(a | s) > 0 wherever w > 0.
        discount: [] γ in [0, 1).
        kl_weight: [] w ≥ 0.
    """

    initial: Array
    transition: Array
    reward: Array
    reference: Array
    discount: Array | float
    kl_weight: Array | float


class Solution(NamedTuple):
    """What a solver found, and how far it may be off.

    Attributes:
        policy: [S, A].
        residual: [] what the solver could not remove; its meaning stands in the solver's docstring.
    """

    policy: Array
    residual: Array


def lower_level(mdp: MDP, reward: Array, reference: Array, discount, kl_weight) -> LowerLevel:
    """The lower-level problem of `mdp` with `reward` [S, A] in place of its true reward.

    Raises:
        ValueError: γ or w is out of its range. One that is traced cannot be looked at: optima are NaN then, and values of
            a given policy mean nothing.
    """
    chex.assert_shape((mdp.reward, reward, reference), mdp.transition.shape[:2])
    if _known(discount) and not np.all((np.asarray(discount) >= 0) & (np.asarray(discount) < 1)):
        raise ValueError(f"discount is {discount}; required: in [0, 1), or the values of a policy are no numbers")
    if _known(kl_weight) and not np.all((np.asarray(kl_weight) >= 0) & (np.asarray(kl_weight) < np.inf)):
        raise ValueError(f"kl_weight is {kl_weight}; required: at least 0 and finite")
    return LowerLevel(mdp.initial, mdp.transition, reward, reference, discount, kl_weight)


# Values of a given policy ---------------------------------------------------------------------------------------------


def regularised_reward(problem: LowerLevel, policy: Array) -> Array:
    """r(s, a) − w log π(a|s)/π_ref(a|s), [S, A]; finite where π(a|s) = 0, since such entries are weighted by zero."""
    chex.assert_equal_shape((policy, problem.reward))
    ratio = jnp.where(policy > 0, jnp.log(jnp.where(policy > 0, policy, 1.0)) - jnp.log(problem.reference), 0.0)
    return problem.reward - problem.kl_weight * ratio


def state_values(problem: LowerLevel, policy: Array) -> Array:
    """V(s) = E_π[Σ_t γ^t (r − w log π/π_ref) | s_0 = s], [S], by a linear solve (theory: J's Bellman equation)."""
    reward = jnp.sum(policy * regularised_reward(problem, policy), axis=-1)
    return solve_dominant(_resolvent(problem, policy), reward)


def action_values(problem: LowerLevel, policy: Array) -> Array:
    """Q(s, a) = r(s, a) + γ E V(s′), [S, A]: the KL of the first action is not in it."""
    return problem.reward + problem.discount * problem.transition @ state_values(problem, policy)


def advantages(problem: LowerLevel, policy: Array) -> Array:
    """A(s, a) = Q(s, a) − w log π/π_ref(a|s) − V(s), [S, A]; its mean under π is zero at every state."""
    values = state_values(problem, policy)
    expected = problem.discount * problem.transition @ values
    return regularised_reward(problem, policy) + expected - values[:, None]


def regularised_return(problem: LowerLevel, policy: Array) -> Array:
    """J(π) = E_{s~ρ} V(s), []. Differentiable in policy and reward."""
    return problem.initial @ state_values(problem, policy)


def occupancy(problem: LowerLevel, policy: Array) -> Array:
    """d(s) = (1 − γ) Σ_t γ^t P(s_t = s), [S]; sums to one."""
    chex.assert_equal_shape((policy, problem.reward))
    start = (1 - problem.discount) * problem.initial
    return solve_dominant(_resolvent(problem, policy).T, start)


def divergence(problem: LowerLevel, policy: Array) -> Array:
    """E_{s~d} KL(π(·|s) ‖ π_ref(·|s)), [] in nats, d the occupancy of π."""
    costs = problem._replace(reward=jnp.zeros_like(problem.reward), kl_weight=1.0)
    return occupancy(problem, policy) @ -jnp.sum(policy * regularised_reward(costs, policy), axis=-1)


def _resolvent(problem: LowerLevel, policy: Array) -> Array:
    chain = jnp.einsum("sa,sat->st", policy, problem.transition)
    return jnp.eye(len(problem.initial), dtype=policy.dtype) - problem.discount * chain


# The lower level's solution -------------------------------------------------------------------------------------------


def optimal_policy(problem: LowerLevel, tolerance: float | None = None, max_iterations: int = 200) -> Solution:
    """π*(r) ∝ π_ref exp(Q*/w), by soft policy iteration (each sweep a linear solve; converges quadratically).

    The residual bounds ‖V − V*‖_∞: it is ‖TV − V‖_∞ / (1 − γ) with T the soft Bellman operator. The policy is NaN when
    `max_iterations` did not bring the residual below `tolerance`, so that no unconverged answer passes for exact; and
    with an infinite residual where γ ∉ [0, 1) or w ≤ 0, or nothing is a number. Differentiable once in the reward:
    ∂ log π*(a|s) = (∂Q* − ∂V*)/w with ∂V* = E_π* Σ_t γ^t ∂r (HPGD 2406.01575; the envelope theorem makes the policy's
    own change drop out of ∂V*).

    Args:
        problem: needs w > 0; see `require_kl`.
        tolerance: largest residual accepted, relative to (1 + max|r| + w)/(1 − γ); None: 1e-10 in float64, else 1e-4.
        max_iterations: sweeps at most.
    """
    frozen = jax.lax.stop_gradient(problem)
    scale = (1.0 + jnp.max(jnp.abs(frozen.reward)) + frozen.kl_weight) / (1 - frozen.discount)
    tolerance = tolerance_of(frozen.reward, tolerance) * scale

    def residual(values):
        return jnp.max(jnp.abs(_soft_backup(frozen, values) - values)) / (1 - frozen.discount)

    def unsolved(carry):
        values, iteration = carry
        return (residual(values) > tolerance) & (iteration < max_iterations)

    def improve(carry):
        values, iteration = carry
        return state_values(frozen, _gibbs(frozen, values)), iteration + 1

    start = state_values(frozen, frozen.reference)
    values, _ = jax.lax.while_loop(unsolved, improve, (start, jnp.int32(0)))
    error = residual(values)
    solvable = _discounted(frozen) & (frozen.kl_weight > 0) & jnp.isfinite(error)
    values = jnp.where(solvable & (error <= tolerance), values, jnp.nan)
    # One Newton step on V = T V: it changes nothing at the solution, and carries the exact derivative in the reward.
    backup = _soft_backup(problem, values)
    values = values + solve_dominant(_resolvent(frozen, _gibbs(frozen, values)), backup - values)
    return Solution(_gibbs(problem, values), jnp.where(solvable, error, jnp.inf))


def best_return(problem: LowerLevel, max_iterations: int = 1000) -> Array:
    """max_π E Σ_t γ^t r without the KL term, []: what no policy exceeds, to rounding.

    By policy iteration: each sweep a linear solve, and an action changes only where another is better by more than
    rounding. NaN where actions still change after `max_iterations` sweeps, and where γ ∉ [0, 1).
    """

    def evaluate(actions):
        policy = jax.nn.one_hot(actions, problem.reward.shape[1], dtype=problem.reward.dtype)
        values = solve_dominant(_resolvent(problem, policy), _of(problem.reward, actions))
        scores = problem.reward + problem.discount * problem.transition @ values
        sizes = jnp.abs(problem.reward) + problem.discount * problem.transition @ jnp.abs(values)
        best = jnp.argmax(scores, axis=1)
        slack = 8 * jnp.finfo(scores.dtype).eps * (_of(sizes, best) + _of(sizes, actions))
        better = _of(scores, best) - _of(scores, actions) > slack
        return values, jnp.where(better, best, actions)

    def moving(carry):
        actions, _, improved, sweeps = carry
        return jnp.any(actions != improved) & (sweeps < max_iterations)

    def improve(carry):
        _, _, actions, sweeps = carry
        return actions, *evaluate(actions), sweeps + 1

    start = jnp.argmax(problem.reward, axis=1)
    carry = (start - 1, problem.initial, start, jnp.int32(0))
    actions, values, improved, _ = jax.lax.while_loop(moving, improve, carry)
    solved = jnp.all(actions == improved) & _discounted(problem)
    return jnp.where(solved, problem.initial @ values, jnp.nan)


def _of(table: Array, actions: Array) -> Array:
    """The entry [S] of each state's action in a table [S, A]."""
    return jnp.take_along_axis(table, actions[:, None], axis=1)[:, 0]


def _discounted(problem: LowerLevel) -> Array:
    return (problem.discount >= 0) & (problem.discount < 1)


def _soft_backup(problem: LowerLevel, values: Array) -> Array:
    """(T V)(s) = w log E_{a~π_ref} exp((r + γ P V)/w), [S]."""
    scores = problem.reward + problem.discount * problem.transition @ values
    logits = jnp.log(problem.reference) + scores / problem.kl_weight
    return problem.kl_weight * jax.nn.logsumexp(logits, axis=-1)


def _gibbs(problem: LowerLevel, values: Array) -> Array:
    """π_ref exp((r + γ P V)/w), normalised, [S, A]."""
    scores = problem.reward + problem.discount * problem.transition @ values
    return jax.nn.softmax(jnp.log(problem.reference) + scores / problem.kl_weight, axis=-1)


def tolerance_of(like: Array, tolerance: float | None) -> float:
    """The tolerance given, or that of the precision of an array: 1e-10 in float64, else 1e-4."""
    return tolerance if tolerance is not None else (1e-10 if like.dtype == jnp.float64 else 1e-4)


def require_kl(kl_weight: Array | float) -> None:
    """Raises ValueError unless w > 0: without it a tabular optimum is a vertex, Φ has jumps, and no gradient exists.

    A w that is traced cannot be looked at: optima are NaN then.
    """
    if _known(kl_weight) and not np.all(np.asarray(kl_weight) > 0):
        raise ValueError(f"kl_weight is {kl_weight}; exact oracles of the optimal policy need kl_weight > 0")


def _known(number: Array | float) -> bool:
    """Whether its value can be looked at: it is not traced."""
    return not isinstance(number, jax.core.Tracer)
