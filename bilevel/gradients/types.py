"""What estimates derivatives: critics, the gradients that an algorithm asks for, and hypergradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bilevel.types import Array, Behaviour, Cost, Key, Params, Trajectory


class Critic(NamedTuple):
    """An estimator of the advantage A(s, a) = Q(s, a) − w log π/π_ref(a|s) − V(s) under r_φ (up to a baseline).

    Attributes:
        init: key -> state.
        fit: (key, state, policy_params, reward_params) -> (state, loss []): update to the current policy and reward.
        advantage: (key, state, policy_params, reward_params, trajectories [B, T]) -> [B, T], without gradient.
        cost: of one fit.
    """

    init: Callable[[Key], Any]
    fit: Callable[[Key, Any, Params, Params], tuple[Any, Array]]
    advantage: Callable[[Key, Any, Params, Params, Trajectory], Array]
    cost: Cost = Cost()


class Gradients(NamedTuple):
    """Everything that Algorithm 1 asks of the world: labelled pairs, and derivatives of J and G.

    Attributes:
        init: key -> critic state.
        collect: (key, behave) -> pairs drawn from a policy and labelled; what the next two take.
        labels: pairs -> [] int32, labels received for them.
        preference_in_policy: (pairs, policy_params, reward_params) -> ∇_λ G.
        preference_in_reward: (pairs, policy, reward_params) -> (G, ∇_φ G), at the policy (observation -> distribution).
        return_in_policy: (key, critic_state, policy_params, reward_params) -> (∇_λ J, critic_state, critic loss).
        return_difference: (key, reward_params, policy_params, proxy_params) -> (∇_φ J(λ′, φ) − ∇_φ J(λ, φ), share);
            `share` in (0, 1] is the part of the rollouts that counts where importance weights make some count for more than
            others ([]), and None where nothing is weighted.
        preference_through_policy: (key, pairs, policy_params, reward_params) -> E[ℓ Σ_i Σ_h ∂_φ log π*(a_h^i|s_h^i)] with
            ∂_φ log π* = (∂_φ Q − ∂_φ V)/w at the policy, as if it were π*(φ); needs w > 0.
        collect_cost, return_cost, difference_cost, through_policy_cost: of one call each.
        differentiable: whether `return_in_policy` may itself be differentiated, in λ and φ. The derivative of a sample is
            not a sample of the derivative: it misses the change of the sample's law.
    """

    init: Callable[[Key], Any]
    collect: Callable[[Key, Behaviour], Any]
    labels: Callable[[Any], Array]
    preference_in_policy: Callable[[Any, Params, Params], Params]
    preference_in_reward: Callable[[Any, Behaviour, Params], tuple[Array, Params]]
    return_in_policy: Callable[[Key, Any, Params, Params], tuple[Params, Any, Array]]
    return_difference: Callable[[Key, Params, Params, Params], tuple[Params, Array | None]]
    preference_through_policy: Callable[[Key, Any, Params, Params], Params]
    collect_cost: Cost = Cost()
    return_cost: Cost = Cost()
    difference_cost: Cost = Cost()
    through_policy_cost: Cost = Cost()
    differentiable: bool = False


class UpperGradient(NamedTuple):
    """An estimate of ∇Φ(φ) in two parts, whose sum it is.

    Attributes:
        value: [] G, at the policy where `direct` is taken.
        direct: ∇_φ G at a fixed policy.
        implicit: what the policy's dependence on φ adds; NaN where it needs a solve that did not converge.
        residual: [] what that solve left, relative to its right-hand side; 0 where nothing is solved.
        weight_ess: [] effective sample size of the importance weights in it, as a share of the rollouts in (0, 1]; None
            where nothing is weighted.
    """

    value: Array
    direct: Params
    implicit: Params
    residual: Array
    weight_ess: Array | None = None


class Hypergradient(NamedTuple):
    """An estimator of ∇Φ(φ): what line 7 of Algorithm 1 computes, or another in its place.

    Attributes:
        estimate: (key, pairs, reward_params, policy_params, proxy_params) -> UpperGradient, at φ, λ and λ′; the pairs
            were drawn from π_λ′.
        cost: of one estimate; a product with a second derivative of J counts as two gradient evaluations.
    """

    estimate: Callable[[Key, Any, Params, Params, Params], UpperGradient]
    cost: Cost = Cost()
