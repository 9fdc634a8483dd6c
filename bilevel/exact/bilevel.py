"""The bilevel objective of a finite instance, exactly: Φ(φ) = G(φ, λ*(φ)), its proxy Φ_σ, and their gradients.

Everything that asks for Φ asks here: a problem, its MDP and the length of a segment become a record of functions of φ, the
reward model's pytree of parameters. Policies are tables [S, A]. Dimensions: S states, A actions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from bilevel import models
from bilevel.exact.penalised import penalised_policy
from bilevel.exact.segments import enumerate_segments, exact_comparisons, preference_objective
from bilevel.exact.values import LowerLevel, lower_level, optimal_policy, regularised_return, require_kl
from bilevel.lookup import bind, pair_table, policy_table
from bilevel.preferences import Objective, annotator, check_objective, log_likelihood
from bilevel.types import Array, Coefficients, Comparison, Model, Params, Problem, Trajectory
from envs.base import MDP
from envs.tabular import tabular


class Bilevel(NamedTuple):
    """One exact instance of the bilevel problem (2410.15610) as functions, to be traced, vmapped and differentiated.

    Attributes:
        table: φ -> r_φ [S, A].
        lower: φ -> the lower-level problem under r_φ.
        preference: (φ, policy [S, A]) -> G(φ, λ), []; differentiable in both.
        regularised_return: (φ, policy [S, A]) -> J(λ, φ), []; differentiable in both.
        optimum: φ -> λ*(φ) [S, A]; differentiable once; needs w > 0.
        penalised: (φ, σ) -> λ*_σ(φ) ∈ argmax_λ J + σ G, [S, A]; not differentiable (`exact.penalised_policy`).
        value: φ -> Φ(φ) = G(φ, λ*(φ)), [].
        gradient: φ -> ∇Φ(φ), a pytree like φ.
        proxy_value: (φ, σ) -> Φ_σ(φ) = G(φ, λ*_σ) − (J(λ*, φ) − J(λ*_σ, φ))/σ, []; differentiable once in both.
        proxy_gradient: (φ, σ) -> ∇Φ_σ(φ) = ∇_φ G(φ, λ*_σ) + (∇_φ J(λ*_σ, φ) − ∇_φ J(λ*, φ))/σ, by the envelope theorem.
    """

    table: Callable[[Params], Array]
    lower: Callable[[Params], LowerLevel]
    preference: Callable[[Params, Array], Array]
    regularised_return: Callable[[Params, Array], Array]
    optimum: Callable[[Params], Array]
    penalised: Callable[[Params, Array | float], Array]
    value: Callable[[Params], Array]
    gradient: Callable[[Params], Params]
    proxy_value: Callable[[Params, Array | float], Array]
    proxy_gradient: Callable[[Params, Array | float], Params]


def exact_bilevel(
    problem: Problem,
    mdp: MDP,
    segment_length: int,
    coefficients: Coefficients,
    objective: Objective = log_likelihood,
) -> Bilevel:
    """The functions of one instance: optima by linear solves, preferences by enumeration of segments.

    Args:
        problem: its reward model, annotator and reference policy; its policy model is not used.
        mdp: arrays, whose dynamics are those of `problem.env`.
        segment_length: H ≥ 1.
        coefficients: γ, w and κ. At w = 0 values of given policies remain; what needs λ* is NaN.
        objective: ℓ, of `bilevel.preferences`.

    Raises:
        ValueError: the segments are too many to enumerate, or the objective needs labels that the annotator does not give.
    """
    segments, comparisons = enumerated(problem, segment_length, objective)
    reference = policy_table(problem.env, problem.reference)

    def table(params):
        return pair_table(problem.env, bind(problem.reward, params))

    def lower(params):
        return lower_level(mdp, table(params), reference, coefficients.discount, coefficients.kl_weight)

    def preference(params, policy):
        discount, rationality = coefficients.discount, coefficients.rationality
        return preference_objective(mdp, policy, table(params), segments, comparisons, objective, discount, rationality)

    def of_policy(params, policy):
        return regularised_return(lower(params), policy)

    def optimum(params):
        require_kl(coefficients.kl_weight)
        return optimal_policy(lower(params)).policy

    def penalised(params, sigma):
        require_kl(coefficients.kl_weight)
        return penalised_policy(lower(params), lambda policy: preference(params, policy), sigma).policy

    def value(params):
        return preference(params, optimum(params))

    def proxy_value(params, sigma):
        # Both policies are maximisers: by the envelope theorem their own change drops out of the gradient.
        frozen, weight = jax.lax.stop_gradient((params, sigma))
        best, proxy = optimum(frozen), penalised(frozen, weight)
        return preference(params, proxy) - (of_policy(params, best) - of_policy(params, proxy)) / sigma

    return Bilevel(
        table,
        lower,
        preference,
        of_policy,
        optimum,
        penalised,
        value,
        jax.grad(value),
        proxy_value,
        jax.grad(proxy_value),
    )


def enumerated(problem: Problem, segment_length: int, objective: Objective) -> tuple[Trajectory, Comparison]:
    """All N segments [N, H] of the problem's world, and their comparisons [N, N] as the objective needs them.

    Raises:
        ValueError: they are too many, or the objective needs labels that the annotator does not give.
    """
    segments = enumerate_segments(problem.env.num_states, problem.env.num_actions, segment_length)
    comparisons = exact_comparisons(problem.annotate, segments)
    check_objective(objective, comparisons)
    return segments, comparisons


def tabular_problem(
    mdp: MDP, coefficients: Coefficients, reward: Model | None = None, reference: Array | None = None
) -> Problem:
    """The problem of a finite MDP: a softmax table as policy, labels by Bradley–Terry with the true reward.

    Args:
        mdp: arrays.
        coefficients: γ and κ of the labels.
        reward: r_φ; None: a table [S, A], initially zero.
        reference: [S, A] π_ref; None: uniform.
    """
    world, shape = tabular(mdp), mdp.reward.shape
    annotate = annotator(world.reward, coefficients.discount, coefficients.rationality)
    prior = models.uniform_reference(world.env) if reference is None else models.given_reference(reference)
    return Problem(world.env, annotate, reward or models.table(*shape), models.table_policy(*shape), prior)
