"""The gymnax adapter: same numbers as gymnax, no reset, no time limit, a visible and absorbing end."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.gymnax import gymnax_world


@pytest.fixture
def gymnax():
    return pytest.importorskip("gymnax")


def roll(world, key, actions):
    """States before each action, stacked, observations [T, D] and rewards [T]."""
    env = world.env

    def body(state, inputs):
        key, action = inputs
        return env.step(key, state, action), (state, env.observe(state), world.reward(state, action))

    key_init, key_steps = jax.random.split(key)
    return jax.lax.scan(body, env.init(key_init), (jax.random.split(key_steps, len(actions)), actions))[1]


def test_pendulum_observations_and_rewards_are_those_of_gymnax(gymnax):
    game, params = gymnax.make("Pendulum-v1")
    world = gymnax_world("Pendulum-v1")
    actions = 1.5 * jax.random.normal(jax.random.key(1), (20, 1))
    _, obs, rewards = roll(world, jax.random.key(0), actions)
    key_init, key_steps = jax.random.split(jax.random.key(0))
    game_obs, state = game.reset_env(key_init, params)
    for t, key in enumerate(jax.random.split(key_steps, 20)):
        np.testing.assert_allclose(obs[t], np.append(game_obs, 0), atol=1e-5)
        game_obs, state, paid, _, _ = game.step_env(key, state, actions[t], params)
        assert rewards[t] == pytest.approx(float(paid), abs=1e-4)
    assert np.std(rewards) > 0.01


def test_the_time_limit_is_the_horizon_and_ends_nothing(gymnax):
    world = gymnax_world("Pendulum-v1")
    states, obs, rewards = roll(world, jax.random.key(0), jnp.ones((300, 1)))
    assert (world.env.horizon, world.env.action_size, world.env.num_actions) == (200, 1, None)
    assert not np.any(states.done)
    assert np.all(obs[:, 3] == 0)
    assert np.all(rewards[200:] < 0)
    np.testing.assert_array_equal(states.game.time, np.arange(300))


def test_actions_out_of_bounds_are_clipped(gymnax):
    world = gymnax_world("MountainCarContinuous-v0")  # the game itself would charge for the whole action
    state = world.env.init(jax.random.key(0))
    beyond, bound = jnp.array([5.0]), jnp.array([1.0])
    assert world.reward(state, beyond) == world.reward(state, bound) == pytest.approx(-0.1)
    stepped = [world.env.observe(world.env.step(jax.random.key(0), state, a)) for a in (beyond, bound, -bound)]
    np.testing.assert_array_equal(stepped[0], stepped[1])
    assert stepped[0][1] > stepped[2][1]


def test_a_fallen_pole_stays_fallen_is_seen_and_pays_nothing(gymnax):
    world = gymnax_world("CartPole-v1")
    states, obs, rewards = roll(world, jax.random.key(0), jnp.ones(60, jnp.int32))
    done = np.asarray(states.done)
    first = int(np.argmax(done))
    assert (world.env.num_actions, world.env.action_size, world.env.horizon) == (2, None, 500)
    assert 5 < first < 30
    np.testing.assert_array_equal(done, np.arange(60) >= first)
    np.testing.assert_array_equal(obs[:, 4], done)
    np.testing.assert_array_equal(rewards, ~done)
    np.testing.assert_array_equal(obs[first:], np.broadcast_to(obs[first], obs[first:].shape))
    assert abs(obs[first, 2]) > 0.2  # the angle at which it fell, not that of a fresh start
    assert states.game.time[-1] == first


def test_a_goal_is_paid_on_arrival_and_never_again(gymnax):
    world = gymnax_world("MountainCarContinuous-v0")  # the game itself would pay 100 for every step on the goal
    state, action, key = world.env.init(jax.random.key(0)), jnp.zeros(1), jax.random.key(0)
    before = state._replace(game=state.game.replace(position=jnp.float32(0.44), velocity=jnp.float32(0.05)))
    after = world.env.step(key, before, action)
    assert world.reward(before, action) == 100
    assert after.done
    assert world.reward(after, action) == 0
    assert world.env.step(key, after, action).game.time == after.game.time == 1


def test_states_keep_their_types_from_the_first_step_on(gymnax):
    for name in ("Pendulum-v1", "CartPole-v1", "Breakout-MinAtar"):
        env = gymnax_world(name).env
        state = jax.eval_shape(env.init, jax.random.key(0))
        action = jnp.int32(0) if env.num_actions else jnp.zeros(env.action_size)
        moved = jax.eval_shape(env.step, jax.random.key(0), state, action)
        assert jax.tree.structure(state) == jax.tree.structure(moved)
        for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
            assert (before.shape, before.dtype, before.weak_type) == (after.shape, after.dtype, False)
            assert not before.weak_type


def test_a_batch_of_worlds_is_one_compiled_program(gymnax):
    world = gymnax_world("CartPole-v1")
    actions = jnp.ones(30, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    _, obs, rewards = jax.jit(jax.vmap(lambda key: roll(world, key, actions)))(keys)
    assert obs.shape == (3, 30, 5)
    _, alone, _ = roll(world, keys[2], actions)
    np.testing.assert_allclose(obs[2], alone, atol=1e-5)
    assert np.all(np.sum(rewards, axis=1) < 30)


def test_pixels_are_flattened_to_floats(gymnax):
    env = gymnax_world("Breakout-MinAtar").env
    obs = env.observe(env.init(jax.random.key(0)))
    assert obs.shape == (401,)
    assert obs.dtype == jnp.float32
    assert np.sum(obs) > 30  # three rows of bricks


def test_double_precision_is_followed(gymnax, x64):
    world = gymnax_world("CartPole-v1")
    _, obs, rewards = roll(world, jax.random.key(0), jnp.ones(5, jnp.int32))
    assert obs.dtype == rewards.dtype == jnp.float64


def test_parameters_replace_the_defaults(gymnax):
    state_light, state_heavy = (
        gymnax_world("Pendulum-v1", parameters).env.step(
            jax.random.key(0), gymnax_world("Pendulum-v1").env.init(jax.random.key(0)), jnp.ones(1)
        )
        for parameters in (None, {"g": 20.0})
    )
    assert state_light.obs[2] != state_heavy.obs[2]
    assert gymnax_world("Pendulum-v1", {"max_steps_in_episode": 50}).env.horizon == 50


def test_misspelt_names_are_refused_with_the_nearest(gymnax):
    with pytest.raises(ValueError, match=r"no environment 'Pendulum'.*nearest: 'Pendulum-v1'"):
        gymnax_world("Pendulum")
    with pytest.raises(ValueError, match=r"no parameter 'max_torqe'.*nearest: 'max_torque'"):
        gymnax_world("Pendulum-v1", {"max_torqe": 1.0})


def test_without_gymnax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel-rlhf\[control\]'") as error:
        gymnax_world("Pendulum-v1")
    assert "\n" not in str(error.value)
