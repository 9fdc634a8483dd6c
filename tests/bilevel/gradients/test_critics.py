"""Critics against the exact advantage: Algorithm 2's error, projection and averages, Monte Carlo, continuous worlds."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close
from reference_instances import Reference, load_reference

from bilevel import exact, models
from bilevel.gradients.critics import (
    TDHyper,
    TDSizes,
    TDState,
    exact_critic,
    monte_carlo_critic,
    project,
    sgd_pass,
    td_critic,
)
from bilevel.lookup import bind
from bilevel.rollout import Transition, rollouts
from bilevel.types import Coefficients, Cost, Model, Params, Problem, Trajectory
from envs.base import MDP, Env
from envs.tabular import tabular_env

pytestmark = pytest.mark.usefixtures("x64")


class Setting(NamedTuple):
    """A problem on a reference instance, and a policy far from π_ref, so that the KL counts."""

    problem: Problem
    reference: Reference
    coefficients: Coefficients
    params: Params  # of the policy

    def lower(self, **changes):
        return self.reference.lower._replace(**changes)

    @property
    def policy(self):
        return jax.nn.softmax(self.params)


FULL_STEP = TDHyper(critic_step_size=1.0)


@functools.cache
def setting() -> Setting:
    reference = load_reference(1)
    params = jax.random.normal(jax.random.key(0), (3, 2))
    return Setting(reference.problem, reference, reference.coefficients, params)


def every_pair(num_states=3, num_actions=2):
    """Trajectories [S, A] that visit each state and action once."""
    obs, action = jnp.indices((num_states, num_actions), dtype=jnp.int32)
    return Trajectory(obs, obs, action)


def fit_table(sizes, coefficients, repetitions):
    """Tables [R, S, A] fitted from zero by independent runs, and their advantages at every pair."""
    problem, reference, _, params = setting()
    critic = td_critic(problem, models.table(3, 2), sizes, coefficients, FULL_STEP)

    def run(key):
        key_init, key_fit, key_advantage = jax.random.split(key, 3)
        state, _ = critic.fit(key_fit, critic.init(key_init), params, reference.params)
        return state.params, critic.advantage(key_advantage, state, params, reference.params, every_pair())

    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), repetitions))


# Algorithm 2 ----------------------------------------------------------------------------------------------------------


def test_the_fitted_table_approaches_the_exact_values_like_the_root_of_the_transitions():
    # γ = ½ and twelve targets leave γ^12 = 2e-4 of the first error: what remains is the noise of the samples.
    coefficients = setting().coefficients._replace(discount=0.5)
    lower = setting().lower(discount=0.5)
    values = exact.action_values(lower, setting().policy)
    weights = exact.occupancy(lower, setting().policy)[:, None] * setting().policy
    errors = []
    for num_transitions in (1024, 16384):
        tables, advantages = fit_table(TDSizes(12, num_transitions, 16), coefficients, 16)
        errors.append(float(jnp.sqrt(jnp.mean(jnp.sum(weights * (tables - values) ** 2, axis=(1, 2))))))
    assert abs(np.log(errors[1] / errors[0]) / np.log(16) + 0.5) < 0.15
    assert errors[1] < 0.02
    close(advantages, jnp.broadcast_to(exact.advantages(lower, setting().policy), advantages.shape), 0.08)


def test_each_target_update_shrinks_the_error_by_the_discount_from_fit_to_fit():
    problem, reference, coefficients, params = setting()
    values = exact.action_values(reference.lower, setting().policy)
    sizes = TDSizes(num_targets=4, num_transitions=16384, num_chains=64)
    critic = td_critic(problem, models.table(3, 2), sizes, coefficients, FULL_STEP)

    @jax.jit
    def fits(key):
        def body(state, key):
            state, loss = critic.fit(key, state, params, reference.params)
            return state, (jnp.max(jnp.abs(state.params - values)), loss)

        return jax.lax.scan(body, critic.init(key), jax.random.split(key, 6))[1]

    errors, losses = fits(jax.random.key(0))
    foreseen = 0.9 ** (4 * jnp.arange(1, 7)) * jnp.max(jnp.abs(values))
    assert jnp.all(errors <= foreseen + 0.05)
    assert jnp.all(errors >= 0.5 * foreseen)
    assert jnp.all(jnp.isfinite(losses))


@pytest.mark.parametrize("radius", [0.4, float("inf")])
@pytest.mark.parametrize("average", [True, False])
def test_one_pass_equals_a_loop(average, radius):
    keys = jax.random.split(jax.random.key(2), 4)
    obs, action = (jax.random.randint(key, (25, 4), 0, n) for key, n in zip(keys, (3, 2), strict=False))
    targets = jax.random.normal(keys[2], (25, 4))
    anchor = 0.1 * jax.random.normal(keys[3], (3, 2))
    start = anchor + 0.1
    hyper = TDHyper(critic_step_size=0.7, critic_radius=radius)
    batch = Transition(obs, action, obs, action)
    fit = jax.jit(lambda start: sgd_pass(models.table(3, 2), start, anchor, batch, targets, average, hyper))
    ours, loss = fit(start)
    table, iterates, losses, projections = np.array(start), [], [], 0
    for states, actions, ys in zip(*map(np.asarray, (obs, action, targets)), strict=True):
        errors = table[states, actions] - ys
        losses.append(np.mean(errors**2) / 2)
        gradient = np.zeros((3, 2))
        np.add.at(gradient, (states, actions), errors / 4)
        table = table - 0.7 * gradient
        distance = np.linalg.norm(table - anchor)
        if distance > radius:
            table = anchor + (table - anchor) * radius / distance
            projections += 1
        iterates.append(table)
    assert (projections > 0) == (radius < 1)
    close(ours, np.mean(iterates, axis=0) if average else table)
    close(loss, np.mean(losses))


def test_projection_by_hand():
    anchor = {"a": jnp.array([1.0]), "b": jnp.array([0.0])}
    params = {"a": jnp.array([4.0]), "b": jnp.array([4.0])}
    inside = project(params, anchor, 5.0)
    assert (inside["a"], inside["b"]) == (4.0, 4.0)
    halved = project(params, anchor, 2.5)
    close((halved["a"], halved["b"]), [[2.5], [2.0]])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, project(params, anchor, jnp.inf), params))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, project(params, anchor, 0.0), anchor))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, project(anchor, anchor, 0.0), anchor))


def test_a_fit_stays_in_its_ball_and_an_infinite_radius_is_no_ball():
    problem, reference, coefficients, params = setting()

    @jax.jit
    def fit(radius):
        hyper = FULL_STEP._replace(critic_radius=radius)
        critic = td_critic(problem, models.table(3, 2), TDSizes(2, 1024, 16), coefficients, hyper)
        state, _ = critic.fit(jax.random.key(1), critic.init(jax.random.key(0)), params, reference.params)
        return state.params

    free = fit(jnp.inf)
    assert jnp.linalg.norm(free) > 0.5
    assert jnp.array_equal(free, fit(1e6))
    bound = jnp.linalg.norm(fit(0.3))
    assert 0.25 < bound <= 0.3 + 1e-12


@pytest.mark.parametrize("reset", [True, False])
def test_a_fit_goes_on_from_its_chains_and_from_its_parameters_unless_they_are_reset(reset):
    # On a ring without restarts, two targets of three steps each move every chain by six; steps of size 0 show where a
    # pass starts.
    mdp = MDP(jnp.full(5, 0.2), jnp.roll(jnp.eye(5), 1, axis=1)[:, None], jnp.zeros((5, 1)))
    env = tabular_env(mdp)
    problem = Problem(env, None, models.table(5, 1), models.table_policy(5, 1), models.uniform_reference(env))
    sizes, coefficients = TDSizes(2, 24, 8, reset_critic=reset), Coefficients(discount=1.0)
    critic = td_critic(problem, models.table(5, 1), sizes, coefficients, TDHyper(critic_step_size=0.0))
    fresh = jax.jit(critic.init)(jax.random.key(0))
    assert len(np.unique(fresh.chain)) > 1
    moved = fresh._replace(params=fresh.params + 1.0)
    after, _ = jax.jit(critic.fit)(jax.random.key(1), moved, jnp.zeros((5, 1)), jnp.zeros((5, 1)))
    assert jnp.array_equal(after.chain, (fresh.chain + 6) % 5)
    assert jnp.array_equal(after.params, fresh.params if reset else moved.params)
    assert jnp.array_equal(after.anchor, fresh.params)


def test_the_cost_is_the_transitions_and_gradients_of_one_fit():
    problem, _, coefficients, _ = setting()
    critic = td_critic(problem, models.table(3, 2), TDSizes(5, 96, 8), coefficients, FULL_STEP)
    assert critic.cost == Cost(transitions=480, queries=0, gradient_evaluations=60)


@pytest.mark.parametrize(
    ("num_transitions", "num_chains", "message"),
    [
        (10, 4, "num_transitions is 10 with num_chains 4; required: a multiple of num_chains"),
        (2, 4, "num_transitions is 2 with num_chains 4; required: a multiple of num_chains"),
        (0, 4, "num_transitions is 0; required: a whole number, at least 1"),
        (8, 0, "num_chains is 0; required: a whole number, at least 1"),
    ],
)
def test_transitions_that_are_no_multiple_of_the_chains_are_refused(num_transitions, num_chains, message):
    problem, _, coefficients, _ = setting()
    sizes = TDSizes(1, num_transitions, num_chains)
    with pytest.raises(ValueError, match=message):
        td_critic(problem, models.table(3, 2), sizes, coefficients, FULL_STEP)


def test_targets_that_are_not_one_a_transition_are_refused():
    visits = jnp.zeros((5, 4), jnp.int32)
    start = jnp.zeros((3, 2))
    with pytest.raises(AssertionError, match=r"different shapes at dims \(0, 1\): \[\[4, 4\], \[5, 4\]\]"):
        sgd_pass(models.table(3, 2), start, start, Transition(*[visits] * 4), jnp.zeros((4, 4)), True, FULL_STEP)


# Exact and Monte Carlo ------------------------------------------------------------------------------------------------


def test_the_exact_critic_looks_the_exact_advantage_up():
    problem, reference, coefficients, params = setting()
    critic = exact_critic(problem, reference.mdp, coefficients)
    advantages = jax.jit(lambda: critic.advantage(None, (), params, reference.params, every_pair()))()
    close(advantages, exact.advantages(reference.lower, setting().policy))
    assert jnp.max(jnp.abs(advantages)) > 0.1


def test_the_monte_carlo_advantage_has_the_exact_one_as_its_mean():
    # All rollouts start in one state, so that the mean over the others estimates its value.
    problem, reference, coefficients, params = setting()

    @jax.jit
    @jax.vmap
    def first_steps(key, initial):
        env = tabular_env(reference.mdp._replace(initial=initial))
        ours = problem._replace(env=env)
        drawn = rollouts(env, bind(problem.policy, params), key, 10_000, 80)
        advantages = monte_carlo_critic(ours, coefficients).advantage(None, (), params, reference.params, drawn)
        return drawn.action[:, 0], advantages[:, 0]

    actions, advantages = first_steps(jax.random.split(jax.random.key(0), 3), jnp.eye(3))
    expected = exact.advantages(reference.lower, setting().policy)
    for state in range(3):
        for action in range(2):
            samples = np.asarray(advantages[state][actions[state] == action])
            error = np.std(samples, ddof=1) / np.sqrt(len(samples))
            assert error < 0.05
            assert abs(np.mean(samples) - expected[state, action]) <= 4 * error


def test_the_monte_carlo_advantage_of_two_rollouts_by_hand():
    # r_φ(s, a) = φ_s, w = 0, γ = ½: returns to go of (1, 2, 4) are (3, 4, 4), of (0, 4, 2) they are (2.5, 5, 2).
    problem = setting().problem._replace(reward=Model(None, lambda params, s, a: params[s]))
    obs = jnp.array([[1, 2, 3], [0, 3, 2]])
    problem = problem._replace(
        env=problem.env._replace(num_states=4),
        policy=models.table_policy(4, 2),
        reference=models.given_reference(jnp.full((4, 2), 0.5)),
    )
    critic = monte_carlo_critic(problem, Coefficients(discount=0.5, kl_weight=0.0))
    drawn = Trajectory(obs, obs, jnp.zeros((2, 3), jnp.int32))
    rewards = jnp.array([0.0, 1.0, 2.0, 4.0])
    advantages = jax.jit(lambda: critic.advantage(None, (), jnp.zeros((4, 2)), rewards, drawn))()
    close(advantages, [[0.5, -1.0, 2.0], [-0.5, 1.0, -2.0]])


def test_no_gradient_flows_through_an_advantage():
    problem, reference, coefficients, params = setting()
    learned = td_critic(problem, models.table(3, 2), TDSizes(), coefficients, FULL_STEP)
    state = TDState(jnp.ones((3, 2)), jnp.ones((3, 2)), None)
    for critic, held in (
        (learned, state),
        (monte_carlo_critic(problem, coefficients), ()),
        (exact_critic(problem, reference.mdp, coefficients), ()),
    ):

        @jax.jit
        @jax.grad
        def gradient(params, critic=critic, held=held):
            key, weights = jax.random.key(0), jnp.arange(6.0).reshape(3, 2)
            return jnp.sum(weights * critic.advantage(key, held, params[0], params[1], every_pair()))

        assert not any(jnp.any(x) for x in gradient((params, reference.params)))


# Worlds that are not finite -------------------------------------------------------------------------------------------


def test_a_network_on_float_observations_learns_the_values_of_its_finite_twin():
    successors = jnp.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.0, 1.0]]])
    mdp = MDP(jnp.array([0.3, 0.7]), successors, jnp.array([[1.0, -0.5], [0.0, 0.7]]))
    finite = tabular_env(mdp)

    def show(state):
        return jax.nn.one_hot(state, 2, dtype=float)

    env = finite._replace(observe=show, num_states=None)
    logits = jnp.array([[0.5, -0.5], [0.0, 1.0]])
    policy = Model(None, lambda params, obs: models.Categorical(obs @ params))
    reward = Model(None, lambda params, obs, action: obs @ params[:, action])
    problem = Problem(env, None, reward, policy, models.uniform_reference(env))
    features = lambda obs, action: jnp.outer(obs, jax.nn.one_hot(action, 2, dtype=float)).ravel()  # noqa: E731
    coefficients, hyper = Coefficients(discount=0.5, kl_weight=0.3), TDHyper(critic_step_size=0.2)
    critic = td_critic(problem, models.mlp(features, 4, (8,)), TDSizes(12, 2048, 16), coefficients, hyper)
    pairs = every_pair(2, 2)
    pairs = pairs._replace(obs=show(pairs.state))

    @jax.jit
    def advantages(key):
        state, loss = critic.fit(key, critic.init(key), logits, mdp.reward)
        return critic.advantage(key, state, logits, mdp.reward, pairs), loss

    lower = exact.lower_level(mdp, mdp.reward, jnp.full((2, 2), 0.5), 0.5, 0.3)
    expected = exact.advantages(lower, jax.nn.softmax(logits))
    assert jnp.max(jnp.abs(expected)) > 0.3
    learned, loss = advantages(jax.random.key(0))
    close(learned, expected, 0.1)
    assert loss < 1


def test_a_gaussian_policys_advantage_is_its_score_less_a_fresh_ones():
    # One state; r(a) = −(a − 1)², π = N(m, s²), π_ref = N(0, 1): Q is r and a constant, and
    # A(a) = r(a) − w log π/π_ref(a) − E[the same], with E r = −(m − 1)² − s² and KL = (s² + m² − 1)/2 − log s.
    env = Env(lambda key: jnp.ones(1), lambda key, state, action: state, lambda state: state, action_size=1)
    mean, std, weight = 0.4, 0.6, 0.3
    policy = Model(None, lambda params, obs: models.gaussian(params[:1], params[1:]))
    reward = Model(None, lambda params, obs, action: -((action[0] - params) ** 2))
    problem = Problem(env, None, reward, policy, models.uniform_reference(env))
    features = lambda obs, action: jnp.array([1.0, action[0], action[0] ** 2])  # noqa: E731
    coefficients, hyper = Coefficients(discount=0.5, kl_weight=weight), TDHyper(critic_step_size=0.3)
    critic = td_critic(problem, models.linear(features, 3), TDSizes(12, 8192, 16), coefficients, hyper)
    params, best = jnp.array([mean, std]), jnp.float64(1.0)
    action = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3, 1)
    visits = Trajectory(None, jnp.ones((2, 3, 1)), action)

    @jax.jit
    def advantages(key):
        state, _ = critic.fit(key, critic.init(key), params, best)
        keys = jax.random.split(key, 4000)
        return state.params, jax.vmap(lambda key: critic.advantage(key, state, params, best, visits))(keys)

    learned, samples = advantages(jax.random.key(0))
    close(learned[1:], [2.0, -1.0], 0.05)
    x = np.asarray(action)[..., 0]
    log_ratio = -np.log(std) - 0.5 * ((x - mean) / std) ** 2 + 0.5 * x**2
    divergence = (std**2 + mean**2 - 1) / 2 - np.log(std)
    expected = -((x - 1) ** 2) - weight * log_ratio + (mean - 1) ** 2 + std**2 + weight * divergence
    error = np.std(samples, axis=0, ddof=1) / np.sqrt(4000)
    assert samples.shape == (4000, 2, 3)
    assert np.all(np.abs(np.mean(samples, axis=0) - expected) < 4 * error + 0.05)
    # Every visit is compared with an action of its own.
    assert abs(np.corrcoef(samples[:, 0, 0], samples[:, 1, 2])[0, 1]) < 4 / np.sqrt(4000)
