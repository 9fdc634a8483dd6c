"""CartPole against gymnasium's, step by step, and the absorbing fall that replaces its reset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.cartpole import SPANS, cartpole
from experiments import configure
from experiments.runs import driver
from experiments.runs.folder import read_json
from experiments.settings.job import resolve
from experiments.settings.options import OptionError

ENV = cartpole().env
CELLS = (3, 3, 8, 6)


@pytest.fixture
def simulator():
    """gymnasium's CartPole-v1 without its wrappers."""
    return pytest.importorskip("gymnasium").make("CartPole-v1").unwrapped


def simulate(simulator, state, action):
    """gymnasium's next state and termination flag from any state."""
    simulator.reset(seed=0)
    simulator.state = np.asarray(state, np.float64)
    terminated = simulator.step(int(action))[2]
    return np.append(simulator.state, terminated)


def random_states(number):
    """States [number, 5] in double precision, wide enough that both limits are crossed in some."""
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (number, 5)) * [2.5, 3.0, 0.22, 3.0, 0]
    return states, rng.integers(0, 2, number)


def roll(state, actions):
    """States before each action [T, 5] and after the last [5]."""

    def body(state, action):
        return ENV.step(jax.random.key(0), state, action), state

    last, visited = jax.lax.scan(body, state, actions)
    return visited, last


def test_each_step_equals_gymnasium_in_double_precision(simulator, x64):
    states, actions = random_states(2000)
    expected = np.stack([simulate(simulator, s[:4], a) for s, a in zip(states, actions, strict=True)])
    key = jax.random.key(0)
    moved = jax.jit(jax.vmap(ENV.step, (None, 0, 0)))(key, jnp.asarray(states), jnp.asarray(actions))
    assert moved.dtype == jnp.float64
    np.testing.assert_allclose(moved[:, :4], expected[:, :4], rtol=0, atol=1e-13)
    np.testing.assert_array_equal(moved[:, 4], expected[:, 4])
    for coordinate, limit in ((0, 2.4), (2, 0.2095)):
        assert np.any(expected[:, coordinate] > limit)
        assert np.any(expected[:, coordinate] < -limit)
    assert 0.1 < np.mean(expected[:, 4]) < 0.9


def test_each_step_equals_gymnasium_in_single_precision(simulator):
    states, actions = random_states(200)
    expected = np.stack([simulate(simulator, s[:4], a) for s, a in zip(states, actions, strict=True)])
    moved = jax.vmap(ENV.step, (None, 0, 0))(jax.random.key(0), jnp.float32(states), jnp.asarray(actions))
    assert moved.dtype == jnp.float32
    np.testing.assert_allclose(moved[:, :4], expected[:, :4], rtol=0, atol=2e-6)


def test_the_score_of_an_episode_is_the_length_that_gymnasium_reports(simulator, x64):
    actions = np.random.default_rng(1).integers(0, 2, 200)
    first = ENV.init(jax.random.key(3))
    simulator.reset(seed=0)
    simulator.state = np.asarray(first[:4])
    score, terminated = 0.0, False
    while not terminated:
        _, paid, terminated, _, _ = simulator.step(int(actions[int(score)]))
        score += paid
    visited, _ = roll(first, jnp.asarray(actions))
    rewards = jax.vmap(cartpole().reward)(visited, jnp.asarray(actions))
    assert 5 < score < 200
    assert float(jnp.sum(rewards)) == score


def test_a_fallen_pole_stays_where_it_fell_and_pays_nothing():
    visited, last = roll(ENV.init(jax.random.key(0)), jnp.ones(100, jnp.int32))
    fallen = np.asarray(visited[:, 4])
    first = int(np.argmax(fallen))
    assert 5 < first < 30
    assert np.all(fallen[first:] == 1)
    assert np.all(fallen[:first] == 0)
    np.testing.assert_array_equal(visited[first:], np.broadcast_to(visited[first], visited[first:].shape))
    np.testing.assert_array_equal(last, visited[first])
    rewards = jax.vmap(cartpole().reward)(visited, jnp.ones(100, jnp.int32))
    np.testing.assert_array_equal(rewards, 1 - fallen)


def test_a_standing_pole_outlives_the_horizon():
    def body(state, _):
        balance = state[2] + 0.5 * state[3] + 0.05 * state[0] + 0.1 * state[1]
        return ENV.step(jax.random.key(0), state, (balance > 0).astype(jnp.int32)), state[4]

    last, fallen = jax.lax.scan(body, ENV.init(jax.random.key(1)), length=2 * ENV.horizon)
    assert ENV.horizon == 500
    assert last[4] == 0
    assert not np.any(fallen)


def test_first_states_are_uniform_within_a_twentieth_and_visible():
    states = np.asarray(jax.vmap(ENV.init)(jax.random.split(jax.random.key(0), 4000)))
    assert states.shape == (4000, 5)
    assert np.all(np.abs(states[:, :4]) <= 0.05)
    assert np.all(states[:, 4] == 0)
    variance = np.var(states[:, :4], axis=0)
    np.testing.assert_allclose(variance, 0.1**2 / 12, rtol=4 * np.sqrt(0.8 / 4000))  # var of u² is 0.8 (E u²)²
    np.testing.assert_array_equal(ENV.observe(states[0]), states[0])


# The observation as a cell ---------------------------------------------------------------------------------------------


def test_cells_partition_the_space_and_one_more_is_for_the_fallen():
    env = cartpole(CELLS).env
    assert env.num_states == 3 * 3 * 8 * 6 + 1
    centres = [(np.arange(n) + 0.5) / n * 2 * span - span for n, span in zip(CELLS, SPANS, strict=True)]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 4)
    observed = jax.vmap(env.observe)(jnp.asarray(np.pad(grid, ((0, 0), (0, 1))), jnp.float32))
    assert observed.dtype == jnp.int32
    np.testing.assert_array_equal(
        observed, np.arange(env.num_states - 1)
    )  # every cell once, the last coordinate fastest
    fallen = jnp.asarray(np.pad(grid, ((0, 0), (0, 1)), constant_values=1), jnp.float32)
    np.testing.assert_array_equal(jax.vmap(env.observe)(fallen), env.num_states - 1)


def test_a_cell_is_where_numpy_finds_the_state_between_its_edges():
    env, (states, _) = cartpole(CELLS).env, random_states(3000)
    states[:, 4] = 0
    inner = [np.linspace(-span, span, n + 1)[1:-1] for n, span in zip(CELLS, SPANS, strict=True)]
    parts = [np.digitize(states[:, i], edges) for i, edges in enumerate(inner)]  # what lies beyond is in the outermost
    expected = np.ravel_multi_index(parts, CELLS)
    np.testing.assert_array_equal(jax.vmap(env.observe)(jnp.asarray(states)), expected)
    assert len(np.unique(expected)) > 400


def test_cells_change_what_is_seen_and_not_what_happens():
    seen = cartpole(CELLS)
    assert seen.mdp is None
    states, actions = random_states(50)
    for ours, theirs in ((seen.env.step, ENV.step), (lambda k, s, a: seen.reward(s, a), lambda k, s, a: 1 - s[4])):
        both = (
            jax.vmap(f, (None, 0, 0))(jax.random.key(0), jnp.asarray(states), jnp.asarray(actions))
            for f in (ours, theirs)
        )
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("cells", [(3,), (3, 3, 8, 0), (1024, 1024, 2, 1)])
def test_cells_that_are_not_four_counts_are_refused(cells):
    with pytest.raises(ValueError, match="four counts"):
        cartpole(cells)
    with pytest.raises(OptionError, match="--cells is"):
        configure(world="cartpole", cells=cells, policy="table").world.build()


def test_tables_need_cells_and_exact_oracles_do_not_exist_with_them():
    configure(world="cartpole", cells=CELLS, policy="table", reward="table", critic_model="table")
    for options in ({"policy": "table"}, {"cells": CELLS, "critic": "exact"}, {"cells": CELLS, "gradients": "exact"}):
        with pytest.raises(OptionError, match="finite world"):
            configure(world="cartpole", **options)


@pytest.mark.parametrize("cells", [(), CELLS])
def test_the_score_is_written_with_what_was_run_and_a_world_without_one_writes_none(cells, tmp_path):
    job = resolve(configure("cartpole", "two_stage", cells=cells))
    driver.describe(tmp_path, job, {})
    score = {"name": "steps survived", "unit": "steps", "low": 0, "high": 500}
    assert read_json(tmp_path, "score.json") == score
    driver.describe(tmp_path / "plain", resolve(configure("gridworld", "two_stage")), {})
    assert not (tmp_path / "plain" / "score.json").exists()
