"""Exact oracles on finite worlds: values, occupancy, π*(φ), G, Φ, Φ_σ and their gradients, without sampling.

Dimensions: S states, A actions, H steps of a segment, N = (S·A)^H segments. Tables are arrays: a reward [S, A], a
policy [S, A] whose rows sum to one. Everything is differentiable once where it says so, and may be vmapped over
instances. Meant for float64; in float32 the same formulas hold to about 1e-5.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.returns import discount_powers
from bilevel.types import Array, Comparison, Trajectory
from envs.base import MDP

MAX_SEGMENTS = 4096  # pairs are enumerated: 4096² numbers are 134 MB in float64


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
    """The lower-level problem of `mdp` with `reward` [S, A] in place of its true reward."""
    return LowerLevel(mdp.initial, mdp.transition, reward, reference, discount, kl_weight)


# Values of a given policy ---------------------------------------------------------------------------------------------


def regularised_reward(problem: LowerLevel, policy: Array) -> Array:
    """r(s, a) − w log π(a|s)/π_ref(a|s), [S, A]; finite where π(a|s) = 0, since such entries are weighted by zero."""
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
    start = (1 - problem.discount) * problem.initial
    return solve_dominant(_resolvent(problem, policy).T, start)


def divergence(problem: LowerLevel, policy: Array) -> Array:
    """E_{s~d} KL(π(·|s) ‖ π_ref(·|s)), [] in nats, d the occupancy of π."""
    costs = problem._replace(reward=jnp.zeros_like(problem.reward), kl_weight=1.0)
    return occupancy(problem, policy) @ -jnp.sum(policy * regularised_reward(costs, policy), axis=-1)


def _resolvent(problem: LowerLevel, policy: Array) -> Array:
    chain = jnp.einsum("sa,sat->st", policy, problem.transition)
    return jnp.eye(len(problem.initial), dtype=policy.dtype) - problem.discount * chain


def solve_dominant(matrix: Array, right: Array) -> Array:
    """x with matrix x = right, [S], for a matrix [S, S] that is diagonally dominant by rows or by columns, as I − γP is.

    Elimination then needs no pivots. Not LAPACK's: on several CPU devices its batched calls wait for threads that wait
    for them, and a program can stand still for ever.
    """

    def eliminate(matrix, right):
        def body(k, rows):
            row = rows[k] / rows[k, k]
            return (rows - rows[:, k, None] * row).at[k].set(row)

        rows = jnp.concatenate([matrix, right[:, None]], axis=1)
        return jax.lax.fori_loop(0, len(right), body, rows)[:, -1]

    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x,
        right,
        solve=lambda _, b: eliminate(matrix, b),
        transpose_solve=lambda _, b: eliminate(matrix.T, b),
    )


# The lower level's solution -------------------------------------------------------------------------------------------


def optimal_policy(problem: LowerLevel, tolerance: float | None = None, max_iterations: int = 200) -> Solution:
    """π*(r) ∝ π_ref exp(Q*/w), by soft policy iteration (each sweep a linear solve; converges quadratically).

    The residual bounds ‖V − V*‖_∞: it is ‖TV − V‖_∞ / (1 − γ) with T the soft Bellman operator. The policy is NaN when
    `max_iterations` did not bring the residual below `tolerance`, so that no unconverged answer passes for exact.
    Differentiable once in the reward: ∂ log π*(a|s) = (∂Q* − ∂V*)/w with ∂V* = E_π* Σ_t γ^t ∂r (HPGD 2406.01575; the
    envelope theorem makes the policy's own change drop out of ∂V*).

    Args:
        problem: needs w > 0; see `require_kl`.
        tolerance: largest residual accepted, relative to (1 + max|r| + w)/(1 − γ); None: 1e-10 in float64, else 1e-4.
        max_iterations: sweeps at most.
    """
    frozen = jax.lax.stop_gradient(problem)
    scale = (1.0 + jnp.max(jnp.abs(frozen.reward)) + frozen.kl_weight) / (1 - frozen.discount)
    tolerance = _tolerance(frozen.reward, tolerance) * scale

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
    values = jnp.where(error <= tolerance, values, jnp.nan)
    # One Newton step on V = T V: it changes nothing at the solution, and carries the exact derivative in the reward.
    backup = _soft_backup(problem, values)
    values = values + solve_dominant(_resolvent(frozen, _gibbs(frozen, values)), backup - values)
    return Solution(_gibbs(problem, values), error)


def best_return(problem: LowerLevel) -> Array:
    """max_π E Σ_t γ^t r without the KL term, [], by value iteration to rounding: what no policy exceeds."""

    def backup(values):
        return jnp.max(problem.reward + problem.discount * problem.transition @ values, axis=-1)

    def moving(carry):
        values, sweeps = carry
        slack = 8 * jnp.finfo(values.dtype).eps * jnp.maximum(jnp.max(jnp.abs(values)), 1.0)
        return (jnp.max(jnp.abs(backup(values) - values)) > slack) & (sweeps < 100_000)

    start = jnp.zeros_like(problem.initial)
    values, _ = jax.lax.while_loop(moving, lambda carry: (backup(carry[0]), carry[1] + 1), (start, jnp.int32(0)))
    return problem.initial @ values


def _soft_backup(problem: LowerLevel, values: Array) -> Array:
    """(T V)(s) = w log E_{a~π_ref} exp((r + γ P V)/w), [S]."""
    scores = problem.reward + problem.discount * problem.transition @ values
    logits = jnp.log(problem.reference) + scores / problem.kl_weight
    return problem.kl_weight * jax.nn.logsumexp(logits, axis=-1)


def _gibbs(problem: LowerLevel, values: Array) -> Array:
    """π_ref exp((r + γ P V)/w), normalised, [S, A]."""
    scores = problem.reward + problem.discount * problem.transition @ values
    return jax.nn.softmax(jnp.log(problem.reference) + scores / problem.kl_weight, axis=-1)


def _tolerance(like: Array, tolerance: float | None) -> float:
    return tolerance if tolerance is not None else (1e-10 if like.dtype == jnp.float64 else 1e-4)


def require_kl(kl_weight: float) -> None:
    """Raises ValueError unless w > 0: without it a tabular optimum is a vertex, Φ has jumps, and no gradient exists."""
    if not kl_weight > 0:
        raise ValueError(f"kl_weight is {kl_weight:g}; exact oracles of the optimal policy need kl_weight > 0")


# Segments and the preference objective --------------------------------------------------------------------------------


def enumerate_segments(num_states: int, num_actions: int, length: int) -> Trajectory:
    """All N = (S·A)^H segments, as a Trajectory of int32 [N, H]; of use up to N = 4096 (say S=3, A=2, H=4).

    Raises:
        ValueError: N is above `MAX_SEGMENTS`; the message says how large it is.
    """
    count = (num_states * num_actions) ** length
    if count > MAX_SEGMENTS:
        raise ValueError(
            f"(S·A)^H = ({num_states}·{num_actions})^{length} = {count} segments; exact preference objectives "
            f"enumerate pairs of at most {MAX_SEGMENTS}; shorten the segments, or use sampled gradients"
        )
    pairs = np.indices((num_states * num_actions,) * length).reshape(length, -1).T
    states, actions = (jnp.asarray(x, jnp.int32) for x in np.divmod(pairs, num_actions))
    return Trajectory(states, states, actions)


def enumerate_classes(classes: np.ndarray, length: int) -> tuple[Trajectory, Callable[[MDP, Array, Trajectory], Array]]:
    """Segments by the classes of their pairs (s, a), where rewards take few values; also their law, for `law` below.

    Every r* and r_φ must be constant on each class. What a segment is worth then depends on its C^H possible sequences of
    classes alone, whose law is a dynamic programme over states, S² C^H operations: of use up to C^H = 4096 for any number
    of states that fits (say S = 1000, A = 4, C = 3, H = 7).

    Args:
        classes: [S, A] ints 0 … C − 1, static; from `reward_classes`.
        length: H ≥ 1.

    Returns:
        One segment [C^H, H] of each sequence, to compute returns and comparisons from, which no dynamics need allow; and
        (mdp, policy, segments) -> [C^H], the probability of each sequence.

    Raises:
        ValueError: C^H is above `MAX_SEGMENTS`; the message says how large it is.
    """
    classes = np.asarray(classes)
    num_classes = int(classes.max()) + 1
    count = num_classes**length
    if count > MAX_SEGMENTS:
        raise ValueError(
            f"C^H = {num_classes}^{length} = {count} sequences of reward classes; exact preference objectives enumerate "
            f"pairs of at most {MAX_SEGMENTS}; shorten the segments, or use sampled gradients"
        )
    member = classes == np.arange(num_classes)[:, None, None]  # [C, S, A]
    first = np.argmax(member.reshape(num_classes, -1), axis=1)  # a pair of each class
    sequences = np.indices((num_classes,) * length).reshape(length, -1).T
    states, actions = (jnp.asarray(x, jnp.int32) for x in np.divmod(first[sequences], classes.shape[1]))

    def law(mdp, policy, segments):
        moves = jnp.einsum("csa,sa,sat->cst", member.astype(policy.dtype), policy, mdp.transition)
        reached = mdp.initial[None]  # [sequences so far, S]: their probability, with the state that they lead to
        for _ in range(length):
            reached = jnp.einsum("ns,cst->nct", reached, moves).reshape(-1, reached.shape[1])
        return jnp.sum(reached, axis=1)

    return Trajectory(states, states, actions), law


def reward_classes(*tables) -> np.ndarray:
    """[S, A] ints: pairs are in one class if all tables [S, A, …], such as r* and the features of r_φ, agree on them."""
    shape = np.shape(tables[0])[:2]
    rows = np.concatenate([np.reshape(table, (shape[0] * shape[1], -1)) for table in tables], axis=1)
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(shape)


def segment_law(mdp: MDP, policy: Array, segments: Trajectory) -> Array:
    """Probability of each segment, ρ(s_0) Π_h π(a_h|s_h) Π_h P(s_{h+1}|s_h, a_h), [N]."""
    state, action = segments.state, segments.action
    moves = mdp.transition[state[:, :-1], action[:, :-1], state[:, 1:]]
    return mdp.initial[state[:, 0]] * jnp.prod(policy[state, action], axis=1) * jnp.prod(moves, axis=1)


def segment_returns(reward: Array, segments: Trajectory, discount) -> Array:
    """R(τ) = Σ_{h<H} γ^h r(s_h, a_h), [N]."""
    powers = discount_powers(discount, segments.state.shape[1], reward.dtype)
    return reward[segments.state, segments.action] @ powers


def exact_comparisons(annotate: Callable, segments: Trajectory) -> Comparison:
    """Every pair of segments [N, N] with the annotator's probability in place of both labels: exact expectations.

    Raises:
        ValueError: the annotator does not give its probability.
    """
    key = jax.random.key(0)  # the probability of a label does not depend on how the label is drawn
    probe = jax.vmap(jax.vmap(annotate, in_axes=(None, None, 0)), in_axes=(None, 0, None))(key, segments, segments)
    probability = probe.probability
    if probability is None:
        raise ValueError(
            "this annotator gives no label probability, which exact expectations need; use sampled gradients"
        )
    return Comparison(None, None, probability, probability, probability, probe.weight)


def preference_objective(
    mdp: MDP,
    policy: Array,
    reward: Array,
    segments: Trajectory,
    comparisons: Comparison,
    objective: Callable[[Array, Comparison], Array],
    discount,
    rationality=1.0,
    law: Callable[[MDP, Array, Trajectory], Array] = segment_law,
) -> Array:
    """G(φ, λ) = E_{τ⁰,τ¹~π, y}[ℓ], [], by enumeration; skipped queries count 0. Differentiable in policy and reward.

    Args:
        mdp: arrays; only its dynamics are used.
        policy: [S, A].
        reward: [S, A], r_φ.
        segments: from `enumerate_segments`, or from `enumerate_classes`.
        comparisons: [N, N] from `exact_comparisons`.
        objective: (logit, comparison) -> ℓ, from `bilevel.preferences`.
        discount: [] γ of the segment returns.
        rationality: [] κ of the learner's Bradley–Terry model.
        law: (mdp, policy, segments) -> [N], the one that came with the segments.
    """
    probability = law(mdp, policy, segments)
    returns = segment_returns(reward, segments, discount)
    logits = rationality * (returns[:, None] - returns[None, :])
    return probability @ (comparisons.weight * objective(logits, comparisons)) @ probability


# The penalised lower level --------------------------------------------------------------------------------------------


def penalised_policy(
    problem: LowerLevel, penalty: Callable[[Array], Array], sigma, tolerance: float | None = None, max_iterations=100
) -> Solution:
    """λ*_σ ∈ argmax_π { J(π) + σ G(π) } near π*(r), by Newton's method on logits with a line search.

    Curvature is made negative by taking absolute eigenvalues, so each step ascends; near the solution it is Newton's.
    The residual is the largest entry of the gradient in the logits; the policy is NaN where it stays above `tolerance`.
    Dense: S·A up to a few hundred. Not differentiable (the envelope theorem makes that unnecessary for ∇Φ_σ).

    Args:
        problem: needs w > 0.
        penalty: policy [S, A] -> G, [].
        sigma: [] σ ≥ 0.
        tolerance: largest gradient entry accepted; None: 1e-10 in float64, 1e-4 in float32.
        max_iterations: Newton steps at most.
    """
    start = jnp.log(optimal_policy(problem).policy)
    shape, tolerance = start.shape, _tolerance(start, tolerance)

    def value(logits):
        policy = jax.nn.softmax(logits.reshape(shape), axis=-1)
        return regularised_return(problem, policy) + sigma * penalty(policy)

    def unsolved(carry):
        logits, iteration = carry
        return (jnp.max(jnp.abs(jax.grad(value)(logits))) > tolerance) & (iteration < max_iterations)

    def newton(carry):
        logits, iteration = carry
        curvature, basis = jnp.linalg.eigh(jax.hessian(value)(logits))
        curvature = jnp.maximum(jnp.abs(curvature), 1e-8 * jnp.max(jnp.abs(curvature)))
        direction = basis @ ((basis.T @ jax.grad(value)(logits)) / curvature)
        sizes = 0.5 ** jnp.arange(12, dtype=logits.dtype)
        candidates = logits + sizes[:, None] * direction
        values = jax.vmap(value)(candidates)
        # Close to the solution values differ by rounding alone; then the full step is the right one.
        slack = 8 * jnp.finfo(values.dtype).eps * jnp.abs(values[0])
        best = jnp.where(values[0] >= value(logits) - slack, 0, jnp.argmax(values))
        return candidates[best], iteration + 1

    logits, _ = jax.lax.while_loop(unsolved, newton, (start.ravel(), jnp.int32(0)))
    error = jnp.max(jnp.abs(jax.grad(value)(logits)))
    policy = jax.nn.softmax(logits.reshape(shape), axis=-1)
    return Solution(jnp.where(error <= tolerance, policy, jnp.nan), error)
