"""Estimators of the advantage under r_φ, each a `bilevel.gradients.types.Critic`: Algorithm 2, Monte Carlo, exact."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel import exact
from bilevel.gradients.types import Critic
from bilevel.lookup import bind, over_observations, over_pairs, pair_table, policy_table
from bilevel.ranges import Count, Positive, PositiveOrInf, check
from bilevel.returns import leave_one_out_mean, returns_to_go
from bilevel.rollout import restart_chain
from bilevel.types import Array, Coefficients, Cost, Model, Params, Problem
from envs.base import MDP, State


class TDSizes(NamedTuple):
    """Algorithm 2's counts."""

    num_targets: Count = 2
    """L, target updates of Algorithm 2 at every inner step."""
    num_transitions: Count = 256
    """n, transitions a target update; a multiple of num-chains."""
    num_chains: Count = 32
    """Independent chains, the batch of one SGD step of Algorithm 2; 1 is the paper's."""
    average_critic: bool = True
    """Algorithm 2 returns the averaged iterate of its last pass; otherwise the last iterate."""
    reset_critic: bool = False
    """Every pass of Algorithm 2 starts from the initial critic; otherwise from the previous pass's result."""


class TDHyper(NamedTuple):
    """Algorithm 2's real numbers; every leaf may be traced."""

    critic_step_size: Positive = 0.05
    """beta', step size of Algorithm 2's SGD; a network of width W needs about 2/W or less."""
    critic_radius: PositiveOrInf = 20.0
    """Radius of the ball around the initial critic that Algorithm 2 projects on; inf: off."""


class TDState(NamedTuple):
    """Algorithm 2's state: the critic, the centre θ_0 of its ball, and where each chain stands."""

    params: Params
    anchor: Params
    chain: State


def td_critic(problem: Problem, model: Model, sizes: TDSizes, coefficients: Coefficients, hyper: TDHyper) -> Critic:
    """Algorithm 2: fitted evaluation of π_λ by L target updates, each one pass of projected SGD (2410.15610).

    For l = 1 … L: draw n transitions of the policy's own chain; y = r_φ(s,a) + γ (Q_{l−1}(s′,a′) − w log π/π_ref(a′|s′));
    one pass of SGD with step β′ on ½ (Q_θ(s,a) − y)², projected on ‖θ − θ_0‖ ≤ radius; Q_l is the averaged iterate.
    The chains go on from where the last fit left them, as the policy changes under them; they started in ρ, not in d,
    which biases the t-th step by γ^t. Projection, averaging and reset are arguments because the paper leaves them open.
    With constant steps the result has a bias of order β′/num_chains, which neither n, L nor averaging removes: an error
    at (s, a) is correlated with the chain's next visit there. Let num_chains grow like √n (claim P1.critic).

    Raises:
        ValueError: a count is below 1, or num_transitions is not a multiple of num_chains.
    """
    check(sizes)
    num_steps, rest = divmod(sizes.num_transitions, sizes.num_chains)
    if rest:
        raise ValueError(
            f"num_transitions is {sizes.num_transitions} with num_chains {sizes.num_chains}; required: a "
            "multiple of num_chains, so that each pass is a whole number of steps"
        )
    env = problem.env

    def init(key):
        key_model, key_chain = jax.random.split(key)
        params = model.init(key_model)
        return TDState(params, params, jax.vmap(env.init)(jax.random.split(key_chain, sizes.num_chains)))

    def fit(key, state, policy_params, reward_params):
        behave = over_observations(env, bind(problem.policy, policy_params))
        penalty = kl_penalty(problem, policy_params, coefficients)
        reward = over_pairs(problem.env, bind(problem.reward, reward_params))

        def sgd(target_params, transitions):
            value = over_pairs(env, bind(model, target_params))
            next_value = value(transitions.next_obs, transitions.next_action)
            next_value -= penalty(transitions.next_obs, transitions.next_action)
            targets = reward(transitions.obs, transitions.action) + coefficients.discount * next_value
            start = state.anchor if sizes.reset_critic else target_params
            return sgd_pass(model, start, state.anchor, transitions, targets, sizes.average_critic, hyper)

        def target_update(carry, key):
            params, chain = carry
            keys = jax.random.split(key, sizes.num_chains)
            chain, transitions = jax.vmap(
                lambda key, state: restart_chain(env, behave, key, state, num_steps, coefficients.discount),
                out_axes=(0, 1),
            )(keys, chain)
            params, loss = sgd(params, transitions)
            return (params, chain), loss

        keys = jax.random.split(key, sizes.num_targets)
        (params, chain), losses = jax.lax.scan(target_update, (state.params, state.chain), keys)
        return TDState(params, state.anchor, chain), losses[-1]

    def advantage(key, state, policy_params, reward_params, trajectories):
        penalty = kl_penalty(problem, policy_params, coefficients)
        value = over_pairs(env, bind(model, state.params))

        def score(obs, action):
            return value(obs, action) - penalty(obs, action)

        policy = over_observations(env, bind(problem.policy, policy_params))
        return jax.lax.stop_gradient(centred_score(key, env, score, policy, trajectories))

    cost = Cost(sizes.num_targets * sizes.num_transitions, 0, sizes.num_targets * num_steps)
    return Critic(init, fit, advantage, cost)


def sgd_pass(model: Model, start: Params, anchor: Params, transitions, targets: Array, average: bool, hyper: TDHyper):
    """One pass over transitions [n/C, C] with fixed targets: the averaged (or last) iterate and the mean loss."""

    chex.assert_equal_shape((targets, jax.tree.leaves(transitions.next_action)[0]), dims=(0, 1))

    def loss_of(params, batch, target):
        values = jax.vmap(lambda obs, action: model.apply(params, obs, action))(batch.obs, batch.action)
        return 0.5 * jnp.mean((values - target) ** 2)

    def body(carry, data):
        params, mean, count = carry
        loss, grad = jax.value_and_grad(loss_of)(params, *data)
        params = jax.tree.map(lambda x, g: x - (hyper.critic_step_size * g).astype(x.dtype), params, grad)
        params = project(params, anchor, hyper.critic_radius)
        mean = jax.tree.map(lambda m, x: m + (x - m) / (count + 1).astype(m.dtype), mean, params)
        return (params, mean, count + 1), loss

    (params, mean, _), losses = jax.lax.scan(body, (start, start, jnp.int32(0)), (transitions, targets))
    return (mean if average else params), jnp.mean(losses)


def project(params: Params, anchor: Params, radius) -> Params:
    """The nearest point of the ball ‖θ − θ_0‖ ≤ radius; the point itself where radius = inf."""
    offset = jax.tree.map(jnp.subtract, params, anchor)
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(offset)))
    inside = norm <= radius
    scale = jnp.where(inside, 1.0, radius / jnp.where(inside, 1.0, norm))
    return jax.tree.map(lambda p, c, x: jnp.where(inside, p, c + (scale * x).astype(c.dtype)), params, anchor, offset)


def monte_carlo_critic(problem: Problem, coefficients: Coefficients) -> Critic:
    """Discounted returns to go of r_φ − w log π/π_ref along the given rollouts, less their mean over the other rollouts.

    Needs no fit and no state. Truncated where the rollout ends, so that with weights γ^t the policy gradient is exactly
    that of the T-step return; of at least two rollouts.
    """

    def fit(key, state, policy_params, reward_params):
        return state, jnp.zeros(())

    def advantage(key, state, policy_params, reward_params, trajectories):
        reward = over_pairs(problem.env, bind(problem.reward, reward_params))
        penalty = kl_penalty(problem, policy_params, coefficients)
        rewards = reward(trajectories.obs, trajectories.action) - penalty(trajectories.obs, trajectories.action)
        returns = returns_to_go(rewards, coefficients.discount)
        return jax.lax.stop_gradient(returns - leave_one_out_mean(returns))

    return Critic(lambda key: (), fit, advantage)


def exact_critic(problem: Problem, mdp: MDP, coefficients: Coefficients) -> Critic:
    """The exact advantage on a finite MDP, by a linear solve: the twin of every learned critic."""
    env = problem.env

    def fit(key, state, policy_params, reward_params):
        return state, jnp.zeros(())

    def advantage(key, state, policy_params, reward_params, trajectories):
        reward = pair_table(env, bind(problem.reward, reward_params))
        reference = policy_table(env, problem.reference)
        lower = exact.lower_level(mdp, reward, reference, coefficients.discount, coefficients.kl_weight)
        policy = policy_table(env, bind(problem.policy, policy_params))
        return jax.lax.stop_gradient(exact.advantages(lower, policy))[trajectories.obs, trajectories.action]

    return Critic(lambda key: (), fit, advantage)


# What the critics share -----------------------------------------------------------------------------------------------


def kl_penalty(problem: Problem, policy_params: Params, coefficients: Coefficients):
    """(observations, actions) -> w log π_λ/π_ref, batched."""

    def penalty(obs, action):
        ratio = problem.policy.apply(policy_params, obs).log_prob(action) - problem.reference(obs).log_prob(action)
        return coefficients.kl_weight * ratio

    return over_pairs(problem.env, penalty)


def centred_score(key, env, score, policy, trajectories) -> Array:
    """score(s, a) − E_{a~π} score(s, a), [B, T]; by one independent action where actions are continuous."""
    obs, action = trajectories.obs, trajectories.action
    if env.num_actions is None:
        return score(obs, action) - score(obs, policy(obs).sample(seed=key))
    # On a finite world the mean is taken once a state and looked up.
    points = obs if env.num_states is None else jnp.arange(env.num_states, dtype=jnp.int32)
    probs = policy(points).probs
    scores = [score(points, jnp.full(probs.shape[:-1], i, jnp.int32)) for i in range(env.num_actions)]
    mean = jnp.sum(probs * jnp.stack(scores, axis=-1), axis=-1)
    return score(obs, action) - (mean if env.num_states is None else mean[obs])
