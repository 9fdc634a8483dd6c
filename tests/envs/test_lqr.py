"""The linear-quadratic regulator: closed forms against hand numbers, sampling, quadrature, scipy and differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from envs import lqr as module
from envs.lqr import LQR, LinearGaussian, check_lqr, check_stable, double_integrator, lqr

pytestmark = pytest.mark.usefixtures("x64")

GAMMA = 0.8
KL_WEIGHT = 0.3

# Compiled once: most of the time of these tests would go into dispatching single operations.
optimal_gain = jax.jit(lambda system, discount: module.lqr_optimal_gain(system, discount))
regularised_gain = jax.jit(module.lqr_optimal_gain)
lqr_return = jax.jit(lambda system, gain, std, discount: module.lqr_return(system, gain, std, discount))
regularised_return = jax.jit(module.lqr_return)
return_gradient = jax.jit(jax.grad(module.lqr_return, argnums=(1, 2)))
value_matrices = jax.jit(module.lqr_value_matrices)


def scalar(dynamics=0.0, control=0.0, noise=0.0, mean=0.0, spread=0.0):
    """A system of one state and one action, both costs one."""
    one = jnp.ones((1, 1))
    return LQR(dynamics * one, control * one, noise * one, one, one, jnp.array([mean]), spread * one)


@functools.cache
def random_system():
    """Three states, two actions, every array full and every noise correlated; unstable when left alone."""
    rng = np.random.default_rng(0)
    dynamics, noise, first = (rng.normal(size=(3, 3)) for _ in range(3))
    root, control = rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    action_cost = np.array([[1.0, 0.3], [0.3, 0.5]])
    arrays = (dynamics, control, 0.3 * noise, root @ root.T, action_cost, rng.normal(size=3), 0.5 * first)
    return LQR(*map(jnp.asarray, arrays))


@functools.cache
def random_policy(offset=0.05):
    """A policy of the random system near its optimum, and a reference further away."""
    system = random_system()
    gain = optimal_gain(system, GAMMA)
    noise = jax.random.normal(jax.random.key(1), (2, *gain.shape))
    actions = gain.shape[0]
    near = LinearGaussian(gain + offset * noise[0], jnp.linspace(0.4, 0.7, actions))
    return near, LinearGaussian(gain + 2 * offset * noise[1], jnp.linspace(0.9, 0.6, actions))


def divergence(state, policy, reference):
    """KL(π(·|s) ‖ π_ref(·|s)) of diagonal Gaussians, the textbook formula."""
    gap = (policy.gain - reference.gain) @ state
    ratio = policy.std / reference.std
    return jnp.sum((ratio**2 + (gap / reference.std) ** 2 - 1) / 2 - jnp.log(ratio))


def gaussian_expectation(function, size):
    """E f(ε), ε standard normal [size], by Gauss–Hermite quadrature: exact for polynomials of degree 5."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / np.sum(weights)
    points = itertools.product(range(3), repeat=size)
    return sum(np.prod(weights[list(p)]) * function(nodes[list(p)]) for p in points)


def joint_value(value, state, action):
    z = np.concatenate([state, action])
    return -float(z @ np.asarray(value.joint) @ z + value.joint_offset)


def state_value(value, state):
    return -float(state @ np.asarray(value.state) @ state + value.state_offset)


def test_a_world_of_pure_noise_pays_its_variances():
    # No dynamics: each step costs std² for the action; the state costs 0.25 once, then 0.09 for ever.
    system = scalar(noise=0.3, spread=0.5)
    expected = -(0.25 + 0.04 / (1 - GAMMA) + 0.09 * GAMMA / (1 - GAMMA))
    assert lqr_return(system, jnp.zeros((1, 1)), jnp.array([0.2]), GAMMA) == pytest.approx(expected, abs=1e-12)


def test_without_noise_the_return_is_a_geometric_series():
    # s_t = 2 · ½^t under K = ½, each step costs s² + a² = 1.25 s².
    system = scalar(dynamics=1.0, control=1.0, mean=2.0)
    expected = -1.25 * 4 / (1 - GAMMA / 4)
    assert lqr_return(system, jnp.full((1, 1), 0.5), jnp.zeros(1), GAMMA) == pytest.approx(expected, abs=1e-12)


def test_the_divergence_of_two_policies_in_a_world_without_costs_is_the_textbook_one():
    zero = jnp.zeros((1, 1))
    system = scalar(mean=2.0)._replace(state_cost=zero, action_cost=zero)
    # At s_0 = 2 the means differ by 1; afterwards s = 0 and only the widths differ.
    width = np.log(2.0) + (0.25 - 1) / 2
    reference = LinearGaussian(zero, jnp.array([1.0]))
    value = regularised_return(system, jnp.full((1, 1), 0.5), jnp.array([0.5]), GAMMA, KL_WEIGHT, reference)
    assert value == pytest.approx(-KL_WEIGHT * (0.5 + width / (1 - GAMMA)), abs=1e-12)


def test_the_scalar_optimum_is_the_golden_ratio():
    # With √γ A = √γ B = Q = R = 1 the Riccati equation is P = 1 + P / (1 + P), whose root is (1 + √5) / 2.
    gain = optimal_gain(scalar(dynamics=2.0, control=2.0), 0.25)
    assert gain.item() == pytest.approx((np.sqrt(5) - 1) / 2, abs=1e-12)


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
def test_the_optimal_gain_solves_the_riccati_equation_of_scipy(discount):
    for system in (random_system(), double_integrator()):
        scaled = np.sqrt(discount) * np.asarray(system.dynamics), np.sqrt(discount) * np.asarray(system.control)
        costs = np.asarray(system.state_cost), np.asarray(system.action_cost)
        riccati = scipy.linalg.solve_discrete_are(*scaled, *costs)
        push = scaled[1].T @ riccati
        expected = np.linalg.solve(costs[1] + push @ scaled[1], push @ scaled[0])
        np.testing.assert_allclose(optimal_gain(system, discount), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kl_weight", [0.0, KL_WEIGHT])
def test_the_return_is_the_mean_of_sampled_returns(kl_weight):
    system = random_system()
    policy, reference = random_policy()
    world = lqr(system)

    def sampled_return(key):
        key_init, key_steps = jax.random.split(key)

        def body(state, key):
            key_action, key_step = jax.random.split(key)
            noise = jax.random.normal(key_action, policy.std.shape)
            action = policy.std * noise - policy.gain @ state
            paid = world.reward(state, action) - kl_weight * divergence(state, policy, reference)
            return world.env.step(key_step, state, action), paid

        _, paid = jax.lax.scan(body, world.env.init(key_init), jax.random.split(key_steps, 80))
        return paid @ GAMMA ** jnp.arange(80)  # what is cut off is below 1e-6 of the return

    returns = np.asarray(jax.jit(jax.vmap(sampled_return))(jax.random.split(jax.random.key(0), 20_000)))
    exact = regularised_return(system, *policy, GAMMA, kl_weight, reference)
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - exact) < 4 * error
    assert error < 0.02 * abs(exact)


def test_the_gradient_vanishes_at_the_optimal_gain_and_the_return_is_largest_there():
    system, std = random_system(), jnp.array([0.2, 0.3])
    _, reference = random_policy()
    gain = optimal_gain(system, GAMMA)
    gradient, _ = return_gradient(system, gain, std, GAMMA, 0.0, reference)
    elsewhere, _ = return_gradient(system, gain + 0.05, std, GAMMA, 0.0, reference)
    assert jnp.linalg.norm(gradient) < 1e-8 * jnp.linalg.norm(elsewhere)
    best = lqr_return(system, gain, std, GAMMA)
    for key in jax.random.split(jax.random.key(0), 5):
        assert lqr_return(system, gain + 0.02 * jax.random.normal(key, gain.shape), std, GAMMA) < best


def test_the_gradient_vanishes_at_the_optimum_of_the_regularised_return():
    # With one action the best width is √(w/2 / H_aa), H_aa the curvature of Q plus that of −w log π_ref.
    system = double_integrator()
    reference = LinearGaussian(jnp.array([[0.5, -0.2]]), jnp.array([0.7]))
    gain = regularised_gain(system, GAMMA, KL_WEIGHT, reference)
    joint = value_matrices(system, gain, jnp.ones(1), GAMMA, KL_WEIGHT, reference).joint
    std = jnp.sqrt(KL_WEIGHT / 2 / (joint[2:, 2] + KL_WEIGHT / 2 / reference.std**2))
    for gradient in return_gradient(system, gain, std, GAMMA, KL_WEIGHT, reference):
        np.testing.assert_allclose(gradient, 0, atol=1e-10)
    assert not np.allclose(gain, optimal_gain(system, GAMMA), atol=0.1)


def test_a_heavy_divergence_pulls_the_optimal_gain_to_the_reference():
    system = random_system()
    _, reference = random_policy()
    gaps = [jnp.max(jnp.abs(regularised_gain(system, GAMMA, w, reference) - reference.gain)) for w in (1e4, 1e6)]
    assert gaps[1] < 1e-4
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("argument", [1, 2])
def test_gradients_equal_finite_differences(argument):
    system = random_system()
    policy, reference = random_policy()
    arguments = [system, policy.gain, policy.std, GAMMA, KL_WEIGHT, reference]
    gradient = return_gradient(*arguments)[argument - 1]
    for place in np.ndindex(gradient.shape):
        values = []
        for shift in (1e-5, -1e-5):
            arguments[argument] = policy[argument - 1].at[place].add(shift)
            values.append(float(regularised_return(*arguments)))
        assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-6)


def test_values_satisfy_both_bellman_equations():
    system = random_system()
    policy, reference = random_policy()
    world = lqr(system)
    value = value_matrices(system, *policy, GAMMA, KL_WEIGHT, reference)
    a, b, noise = (np.asarray(x) for x in system[:3])
    gain, std = (np.asarray(x) for x in policy)
    for state, action in zip(np.eye(3) + 0.3, np.array([[0.5, -1.0], [2.0, 0.1], [0.0, 0.0]]), strict=True):
        following = gaussian_expectation(lambda e, s=state, u=action: state_value(value, a @ s + b @ u + noise @ e), 3)
        look_ahead = float(world.reward(state, action)) + GAMMA * following
        assert joint_value(value, state, action) == pytest.approx(look_ahead, rel=1e-10)
        mean_value = gaussian_expectation(lambda e, s=state: joint_value(value, s, std * e - gain @ s), 2)
        penalty = KL_WEIGHT * float(divergence(state, policy, reference))
        assert state_value(value, state) == pytest.approx(mean_value - penalty, rel=1e-10)


def test_the_return_is_the_mean_value_of_the_first_state():
    system = random_system()
    policy, reference = random_policy()
    value = value_matrices(system, *policy, GAMMA, KL_WEIGHT, reference)
    mean, factor = np.asarray(system.initial_mean), np.asarray(system.initial_factor)
    expected = gaussian_expectation(lambda e: state_value(value, mean + factor @ e), 3)
    assert regularised_return(system, *policy, GAMMA, KL_WEIGHT, reference) == pytest.approx(expected, rel=1e-12)


def test_steps_and_first_states_have_the_means_and_covariances_they_should():
    system = random_system()
    env = lqr(system, horizon=50).env
    keys = jax.random.split(jax.random.key(0), 40_000)
    state, action = jnp.array([1.0, -0.5, 2.0]), jnp.array([0.3, -0.7])
    moved = system.dynamics @ state + system.control @ action
    laws = (
        (jax.vmap(env.init)(keys), system.initial_mean, system.initial_factor),
        (jax.vmap(lambda key: env.step(key, state, action))(keys), moved, system.noise),
    )
    for draws, mean, factor in laws:
        centred = np.asarray(draws - mean)
        products = centred[:, :, None] * centred[:, None, :]
        for sample, expected in ((centred, np.zeros(3)), (products, np.asarray(factor @ factor.T))):
            error = np.std(sample, axis=0) / np.sqrt(len(keys))
            assert np.all(np.abs(np.mean(sample, axis=0) - expected) < 4 * error)
    assert (env.num_states, env.num_actions, env.action_size, env.horizon) == (None, None, 2, 50)
    np.testing.assert_array_equal(env.observe(state), state)


def test_instances_and_gains_may_be_vmapped():
    system, std = double_integrator(), jnp.array([0.1])
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), system)._replace(
        dynamics=jnp.stack([system.dynamics, 0.5 * system.dynamics])
    )
    gains = jax.jit(jax.vmap(lambda s: optimal_gain(s, GAMMA)))(stacked)
    returns = jax.vmap(lambda s, gain: lqr_return(s, gain, std, GAMMA))(stacked, gains)
    for i in range(2):
        alone = jax.tree.map(lambda x, i=i: x[i], stacked)
        np.testing.assert_allclose(gains[i], optimal_gain(alone, GAMMA), atol=1e-10)
        np.testing.assert_allclose(returns[i], lqr_return(alone, gains[i], std, GAMMA), rtol=1e-10)


def test_single_precision_stays_single_and_close():
    system = random_system()
    policy, reference = random_policy()
    exact = regularised_return(system, *policy, GAMMA, KL_WEIGHT, reference)
    system, policy, reference = jax.tree.map(jnp.float32, (system, policy, reference))
    single = regularised_return(system, *policy, GAMMA, KL_WEIGHT, reference)
    assert single.dtype == regularised_gain(system, GAMMA, KL_WEIGHT, reference).dtype == jnp.float32
    assert single == pytest.approx(float(exact), rel=1e-4)
    env = lqr(system).env
    state = env.init(jax.random.key(0))
    assert state.dtype == env.step(jax.random.key(0), state, policy.std).dtype == jnp.float32


def test_the_default_system_is_valid_and_stable_under_no_control():
    system = check_lqr(double_integrator())
    assert check_stable(system, jnp.zeros((1, 2)), 0.99) == pytest.approx(np.sqrt(0.99))
    gain = optimal_gain(system, 0.99)
    assert check_stable(system, gain, 0.99) < np.sqrt(0.99)
    assert lqr_return(system, gain, jnp.array([0.1]), 0.99) > lqr_return(system, 0 * gain, jnp.array([0.1]), 0.99)


@pytest.mark.parametrize("gain", [0.0, float("nan")])
def test_a_loop_whose_return_is_infinite_is_refused(gain):
    system = scalar(dynamics=1.2, control=1.0)
    with pytest.raises(ValueError, match=r"spectral radius .* required: below 1"):
        check_stable(system, jnp.full((1, 1), gain), 0.9)
    assert check_stable(system, jnp.zeros((1, 1)), 0.6) == pytest.approx(1.2 * np.sqrt(0.6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": jnp.ones(3)}, r"control has shape \(3,\); required: \[n, m\]"),
        ({"dynamics": jnp.ones((3, 2))}, r"dynamics has shape \(3, 2\); required: \(3, 3\)"),
        ({"initial_mean": jnp.ones((3, 1))}, r"initial_mean has shape \(3, 1\); required: \(3,\)"),
        ({"action_cost": jnp.ones((3, 3))}, r"action_cost has shape \(3, 3\); required: \(2, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        lqr(random_system()._replace(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": jnp.full((3, 3), jnp.inf)}, "noise is not finite"),
        ({"noise": jnp.ones((3, 3), jnp.int32)}, "noise is not finite real floats"),
        ({"state_cost": jnp.triu(jnp.ones((3, 3)))}, "state_cost is not symmetric"),
        ({"state_cost": -jnp.eye(3)}, "state_cost has the eigenvalue -1; required: nonnegative"),
        ({"action_cost": jnp.zeros((2, 2))}, "action_cost has the eigenvalue 0; required: positive"),
    ],
)
def test_costs_and_noises_without_meaning_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_lqr(random_system()._replace(**change))


def test_policies_that_do_not_fit_are_refused():
    system = double_integrator()
    gain, std = jnp.zeros((1, 2)), jnp.ones(1)
    with pytest.raises(ValueError, match=r"gain has shape \(2, 1\); required: \(1, 2\)"):
        module.lqr_return(system, gain.T, std, GAMMA)
    with pytest.raises(ValueError, match=r"std has shape \(2,\); required: \(1,\)"):
        module.lqr_return(system, gain, jnp.ones(2), GAMMA)
    with pytest.raises(ValueError, match=r"std has shape \(2,\)"):
        module.lqr_return(system, gain, std, GAMMA, KL_WEIGHT, LinearGaussian(gain, jnp.ones(2)))
    with pytest.raises(ValueError, match=r"kl_weight is 0.3 and reference is None"):
        module.lqr_return(system, gain, std, GAMMA, KL_WEIGHT)
