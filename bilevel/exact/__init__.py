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
    """The lower-level problem of `mdp` with `reward` [S, A] in place of its true reward.

    Raises:
        ValueError: γ or w is out of its range. One that is traced cannot be looked at: optima are NaN then, and values of
            a given policy mean nothing.
    """
    if _known(discount) and not np.all((np.asarray(discount) >= 0) & (np.asarray(discount) < 1)):
        raise ValueError(f"discount is {discount}; required: in [0, 1), or the values of a policy are no numbers")
    if _known(kl_weight) and not np.all((np.asarray(kl_weight) >= 0) & (np.asarray(kl_weight) < np.inf)):
        raise ValueError(f"kl_weight is {kl_weight}; required: at least 0 and finite")
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


def _tolerance(like: Array, tolerance: float | None) -> float:
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


# Segments and the preference objective --------------------------------------------------------------------------------


def enumerate_segments(num_states: int, num_actions: int, length: int) -> Trajectory:
    """All N = (S·A)^H segments, as a Trajectory of int32 [N, H]; of use up to N = 4096 (say S=3, A=2, H=4).

    Raises:
        ValueError: a number is below 1, or N is above `MAX_SEGMENTS`; the message says how large it is.
    """
    for name, number in (("num_states", num_states), ("num_actions", num_actions), ("length", length)):
        if number < 1:
            raise ValueError(f"{name} of the segments is {number}; required: at least 1")
    count = (num_states * num_actions) ** length
    if count > MAX_SEGMENTS:
        raise ValueError(
            f"(S·A)^H = ({num_states}·{num_actions})^{length}{_about(count)} segments; exact preference objectives "
            f"enumerate pairs of at most {MAX_SEGMENTS}; shorten the segments, or use sampled gradients"
        )
    pairs = np.indices((num_states * num_actions,) * length).reshape(length, -1).T
    states, actions = (jnp.asarray(x, jnp.int32) for x in np.divmod(pairs, num_actions))
    return Trajectory(states, states, actions)


def _about(count: int) -> str:
    """A count, unless it has too many digits to help."""
    return f" = {count}" if count < 10**12 else ""


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
        ValueError: the length is below 1, `classes` is no such table, or C^H is above `MAX_SEGMENTS`; the message says
            how large it is.
    """
    if length < 1:
        raise ValueError(f"length of the segments is {length}; required: at least 1")
    classes = np.asarray(classes)
    if classes.ndim != 2 or not classes.size or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"classes are {classes.dtype} of shape {classes.shape}; required: integers of shape [S, A]")
    found = np.unique(classes)
    num_classes = len(found)
    if not np.array_equal(found, np.arange(num_classes)):
        raise ValueError(
            f"classes run from {found[0]} to {found[-1]}, {num_classes} of them in use; required: each of 0 … C − 1 on a "
            f"pair at least, as reward_classes numbers them"
        )
    count = num_classes**length
    if count > MAX_SEGMENTS:
        raise ValueError(
            f"C^H = {num_classes}^{length}{_about(count)} sequences of reward classes; exact preference objectives "
            f"enumerate pairs of at most {MAX_SEGMENTS}; shorten the segments, or use sampled gradients"
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


# Of the steps that a line search tries; the first, none, and the second, the full step, have a part of their own in it.
NEWTON_SIZES = (0.0, 1.0, 0.5, 0.25, 1 / 16, 1 / 256)
MIRROR_SIZES = (16.0, 4.0, 1.0, 0.5, 0.25, 1 / 16, 1 / 256)


def penalised_policy(
    problem: LowerLevel, penalty: Callable[[Array], Array], sigma, tolerance: float | None = None, max_iterations=100
) -> Solution:
    """λ*_σ ∈ argmax_π F(π), F = J + σ G: a local maximum at least; NaN where none was found.

    A policy is stationary where it is the Gibbs policy π_ref exp(q/w) of its own scores, those of F made linear there:

        q(s, a) = Q(s, a) + σ (1 − γ) ∂G/∂π(a|s) / d(s),    ∂F/∂logit(s, a) = d(s) π(a|s) A_q(s, a) / (1 − γ)

    with A_q = q − w log π/π_ref less its mean. The residual is w max |log π − log π_q|, in units of reward: unlike the
    gradient it does not vanish with π(a|s) or d(s). From each of three starts (π*(r), π_ref and one without symmetry) steps
    are Newton's on q = q(π), with pivots made positive, or of mirror ascent, whichever raises F most; they go on below the
    tolerance for as long as the residual halves, which is to rounding. The stationary point with the largest F is returned.

    What is certain: it is stationary to the residual, and no direction there ascends to second order (pivots of the
    Hessian). That is the maximum where F has no other local maximum, as where G is concave in the occupancy or σ is small
    beside w; where it has several, one of them, which need not be the largest. Dense: S·A up to a few hundred. Not
    differentiable (the envelope theorem makes that unnecessary for ∇Φ_σ).

    Args:
        problem: needs w > 0.
        penalty: policy [S, A] -> G, [], differentiable; it must not depend on the policy in states that J never
            visits, which no KL holds: NaN.
        sigma: [] σ ≥ 0; NaN for another.
        tolerance: largest residual accepted, relative to (1 + max|r| + w)/(1 − γ) + max|q|; None: min(1, σ) times 1e-10
            in float64, 1e-4 in float32, and no less than 256 roundings, since ∇Φ_σ divides errors by σ.
        max_iterations: Newton or mirror steps at most, from each start.
    """
    shape, dtype = problem.reward.shape, problem.reward.dtype
    eps = jnp.finfo(dtype).eps
    if tolerance is None:
        tolerance = jnp.maximum(_tolerance(problem.reward, None) * jnp.minimum(1.0, sigma), 256 * eps)
    size = (1.0 + jnp.max(jnp.abs(problem.reward)) + problem.kl_weight) / (1 - problem.discount)

    def value(scores):
        policy = jnp.exp(_log_gibbs(problem, scores))
        return regularised_return(problem, policy) + sigma * penalty(policy)

    def linear(scores):
        """q of the Gibbs policy of these scores, less its mean; and again, for `has_aux`."""
        policy = jnp.exp(_log_gibbs(problem, scores))
        slopes, visits = jax.grad(penalty)(policy), occupancy(problem, policy)[:, None]
        slopes = (1 - problem.discount) * slopes / jnp.where((visits == 0) & (slopes == 0), 1.0, visits)
        own = action_values(problem, policy) + sigma * slopes
        own = own - jnp.sum(jax.lax.stop_gradient(policy) * own, axis=1, keepdims=True)
        return own, own

    def unsolved(carry):
        _, reached, previous, iteration = carry
        return ((reached.error > tolerance) | (reached.error < previous / 2)) & (iteration < max_iterations)

    def ascend(carry):
        scores, reached, _, iteration = carry
        derivative, own = jax.jacfwd(linear, has_aux=True)(scores)
        gap = jnp.max(jnp.abs(_log_gibbs(problem, own) - _log_gibbs(problem, scores))) * problem.kl_weight
        matrix = jnp.eye(scores.size, dtype=dtype) - derivative.reshape(scores.size, scores.size)
        newton, pivot = _solve_definite(matrix, (own - scores).ravel())
        searches = (NEWTON_SIZES, newton.reshape(shape)), (MIRROR_SIZES, own - scores)
        candidates = scores + jnp.concatenate([jnp.array(x, dtype)[:, None, None] * step for x, step in searches])
        values = jax.vmap(value)(candidates)
        ranks = jnp.where(jnp.isfinite(values), values, -jnp.inf)
        scale = size + jnp.max(jnp.abs(own))
        # Close to the solution values differ by rounding alone; then the full step is the right one.
        level = ranks[1] >= jnp.max(ranks) - 8 * eps * scale / (1 - problem.discount)
        close = (pivot > 0) & (gap < jnp.cbrt(eps) * scale)
        best = jnp.where(level | close, 1, jnp.argmax(ranks))
        found = _Reached(scores, ranks[0], gap, jnp.where(pivot > -jnp.sqrt(eps), gap / scale, jnp.inf))
        return candidates[best], found, reached.error, iteration + 1

    def from_start(scores):
        far = jnp.full((), jnp.inf, dtype)
        carry = (scores, _Reached(scores, -far, far, far), far, jnp.int32(0))
        return jax.lax.while_loop(unsolved, ascend, carry)[1]

    optimal = action_values(problem, optimal_policy(problem).policy)
    uneven = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    starts = jnp.stack([optimal, 0.0 * optimal, problem.kl_weight * uneven])
    found = jax.vmap(from_start)(starts)
    found = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), jnp.inf, x), found)
    # Of the starts that end equally high, the one that ends most exactly.
    highest = jnp.max(found.value)
    level = found.value >= highest - 64 * eps * (size + jnp.abs(highest))
    best = jnp.argmin(jnp.where(level, found.error, jnp.inf))
    scores, _, residual, error = jax.tree.map(lambda x: x[best], found)
    policy = jnp.exp(_log_gibbs(problem, scores))
    return Solution(jnp.where((error <= tolerance) & (sigma >= 0), policy, jnp.nan), residual)


class _Reached(NamedTuple):
    """Where an ascent stands: the scores [S, A], their F, the residual, and that over its scale; inf at no maximum."""

    scores: Array
    value: Array
    residual: Array
    error: Array


def _log_gibbs(problem: LowerLevel, scores: Array) -> Array:
    """log π_ref + q/w, normalised, [S, A]."""
    return jax.nn.log_softmax(jnp.log(problem.reference) + scores / problem.kl_weight, axis=-1)


def _solve_definite(matrix: Array, right: Array) -> tuple[Array, Array]:
    """x with matrix x = right, and the least pivot, of which all are positive if the matrix is definite.

    That is, symmetric and positive definite up to a scaling of rows, which changes no pivot. Where it is not, pivots
    are replaced by their sizes, as if something had been added to the diagonal: x is then a direction of ascent.
    """

    def body(k, carry):
        rows, least = carry
        pivot = rows[k, k]
        positive = jnp.maximum(jnp.abs(pivot), 1e-6)
        row = (rows[k] / positive).at[k].set(1.0)
        return (rows - rows[:, k, None] * row).at[k].set(row), jnp.minimum(least, pivot)

    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    rows, least = jax.lax.fori_loop(0, len(right), body, (rows, jnp.full((), jnp.inf, right.dtype)))
    return rows[:, -1], least
