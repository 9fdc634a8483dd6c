"""The nouns that every method shares: records of functions, records of arrays, no logic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Action, Env, Observation, State

Array = jax.Array
Key = jax.Array
Params = Any  # a pytree of arrays
Distribution = Any  # a distrax distribution: sample(seed=), log_prob, kl_divergence, entropy
Behaviour = Callable[[Observation], Distribution]  # a policy with its parameters bound


class Algorithm(NamedTuple):
    """An algorithm is a value: two pure functions, which jit, scan, vmap, sharding and checkpoints act on from outside.

    Attributes:
        init: key -> state, a NamedTuple of arrays (no function, Python number or key in it).
        step: (key, state) -> (state, info), one outer step; info is a dict of scalar arrays that holds at least
            `gradient_norm` (of the outer step, for the convergence check) and the step's exact costs as int32:
            `transitions`, `queries`, `labels`, `gradient_evaluations`. Same keys and dtypes every step.
        params: state -> `Learned`, what is measured, saved and reported.
    """

    init: Callable[[Key], Any]
    step: Callable[[Key, Any], tuple[Any, dict[str, Array]]]
    params: Callable[[Any], "Learned"]


class Learned(NamedTuple):
    """What an algorithm has learned so far: parameters of r_φ and of π_λ."""

    reward: Params
    policy: Params


class Model(NamedTuple):
    """A parametrised function. A reward maps (params, observation, action) -> [], a policy (params, observation) ->
    distribution, a critic (params, observation, action) -> []."""

    init: Callable[[Key], Params]
    apply: Callable[..., Any]


class Trajectory(NamedTuple):
    """H steps of one rollout; leading axes are batch axes.

    Attributes:
        state: [H, ...] hidden states, for annotators and measurements alone; None in data without them.
        obs: [H] int32 on a finite world, [H, D] otherwise.
        action: [H] int32, or [H, action_size] float.
    """

    state: State
    obs: Observation
    action: Action


class Comparison(NamedTuple):
    """A labelled pair of segments; leading axes are batch axes.

    Attributes:
        first: segment τ⁰.
        second: segment τ¹.
        label: [] 1 if the first is preferred, 0 if the second, ½ for a tie; the probability itself where exact
            expectations over labels are taken.
        second_label: [] a second label, independent of the first given the pair; None where there is none.
        probability: [] the annotator's P*(τ⁰ ≻ τ¹); None where it is unknown.
        weight: [] 0 for a skipped query, 1 otherwise.
    """

    first: Trajectory | None
    second: Trajectory | None
    label: Array
    second_label: Array | None
    probability: Array | None
    weight: Array


class Problem(NamedTuple):
    """All that an algorithm may touch: functions, no true reward.

    Attributes:
        env: the dynamics.
        annotate: (key, first, second) -> Comparison, for one pair of segments.
        reward: r_φ, a Model (params, observation, action) -> [].
        policy: π_λ, a Model (params, observation) -> Distribution.
        reference: observation -> Distribution, π_ref.
    """

    env: Env
    annotate: Callable[[Key, Trajectory, Trajectory], Comparison]
    reward: Model
    policy: Model
    reference: Behaviour


class Hyper(NamedTuple):
    """Real-valued hyperparameters: each number has one home. Every leaf may be traced, so a sweep is a vmap over it.

    Attributes:
        sigma: σ > 0, weight of G in the penalised lower level.
        kl_weight: w ≥ 0, weight of KL(π ‖ π_ref); the exact oracles of π*(φ) need w > 0.
        discount: γ in (0, 1); 0 for a bandit.
        rationality: κ > 0, of the Bradley–Terry model that the learner fits.
        policy_step_size: τ > 0, of the policy's optimizer.
        reward_step_size: η > 0, of the reward's optimizer.
        critic_step_size: β′ > 0, of Algorithm 2's SGD.
        critic_radius: radius > 0 of the ball around θ_0 that Algorithm 2 projects on; inf: no projection.
        proxy_step_ratio: τ′/τ > 0, of λ′ to λ.
    """

    sigma: Array | float = 0.1
    kl_weight: Array | float = 0.1
    discount: Array | float = 0.9
    rationality: Array | float = 1.0
    policy_step_size: Array | float = 0.1
    reward_step_size: Array | float = 0.1
    critic_step_size: Array | float = 0.1
    critic_radius: Array | float = float("inf")
    proxy_step_ratio: Array | float = 1.0


class Cost(NamedTuple):
    """What a computation costs, in exact Python ints: known before it runs.

    Attributes:
        transitions: environment transitions; the *samples* of the paper.
        queries: pairs shown to the annotator (a skipped query yields no label; labels are counted as they come).
        gradient_evaluations: stochastic or exact gradients computed, one for each minibatch.
    """

    transitions: int = 0
    queries: int = 0
    gradient_evaluations: int = 0

    def as_info(self) -> dict[str, Array]:
        """The counts as the int32 scalars that a step reports."""
        return {name: jnp.int32(count) for name, count in self._asdict().items()}


def total_cost(*terms: tuple[int, Cost]) -> Cost:
    """The sum of `count × cost` over the terms.

    Raises:
        ValueError: one step would cost 2³¹ or more of anything, which an int32 could not report.
    """
    total = Cost(*(sum(count * getattr(cost, field) for count, cost in terms) for field in Cost._fields))
    for field, value in zip(Cost._fields, total, strict=True):
        if value >= 2**31:
            raise ValueError(f"one outer step would take {value} {field}; required: below 2^31; reduce its counts")
    return total


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
        return_difference: (key, reward_params, policy_params, proxy_params) -> ((∇_φ J(λ′, φ) − ∇_φ J(λ, φ)) / σ, share);
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
