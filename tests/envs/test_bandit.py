"""Contextual bandits: what is drawn is linear, bounded and fresh at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.bandit import bandit, linear_bandit
from envs.tabular import check_mdp

KEY = jax.random.key(0)
small_bandit = jax.jit(lambda key, norm=1.0: linear_bandit(key, 3, 2, 4, norm))


def test_the_reward_is_linear_in_the_features_with_a_parameter_of_the_given_norm(x64):
    mdp, features = jax.jit(lambda key: linear_bandit(key, 6, 4, 3, norm_bound=2.5))(KEY)
    design, reward = np.asarray(features).reshape(-1, 3), np.asarray(mdp.reward).ravel()
    theta = np.linalg.lstsq(design, reward)[0]
    np.testing.assert_allclose(design @ theta, reward, atol=1e-12)
    assert np.linalg.norm(theta) == pytest.approx(2.5, abs=1e-12)
    assert mdp.reward.dtype == features.dtype == jnp.float64


def test_features_are_uniform_in_the_unit_ball():
    _, features = jax.jit(lambda key: linear_bandit(key, 50, 40, 3))(KEY)
    squares = np.sum(np.asarray(features) ** 2, axis=-1).ravel()
    assert np.max(squares) <= 1 + 1e-6
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - 3 / 5) < 4 * error  # E‖φ‖² = d / (d + 2)
    assert np.all(np.abs(np.mean(np.asarray(features), axis=(0, 1))) < 4 * np.sqrt(1 / 5 / len(squares)))


def test_a_bandit_is_a_valid_mdp_with_uniform_contexts():
    mdp, features = small_bandit(KEY)
    check_mdp(mdp)
    assert features.shape == (3, 2, 4)
    np.testing.assert_allclose(np.asarray(mdp.initial), 1 / 3, atol=1e-7)


def test_the_next_context_is_drawn_afresh_whatever_the_action():
    initial = jnp.array([0.5, 0.3, 0.2])
    mdp, _ = linear_bandit(KEY, 3, 2, 2, initial=initial)
    assert mdp.transition.shape == (3, 2, 3)
    assert np.all(np.asarray(mdp.transition) == np.asarray(initial))
    assert np.all(np.asarray(mdp.initial) == np.asarray(initial))


def test_the_world_has_horizon_one_and_shows_reward_models_the_features():
    mdp, features = small_bandit(KEY)
    world = bandit(mdp, features)
    assert (world.env.horizon, world.env.num_states, world.env.num_actions) == (1, 3, 2)
    assert world.mdp is mdp
    np.testing.assert_array_equal(world.action_features(jnp.int32(2), jnp.int32(1)), features[2, 1])
    assert world.reward(jnp.int32(2), jnp.int32(1)) == mdp.reward[2, 1]
    assert 0 <= world.env.step(KEY, world.env.init(KEY), jnp.int32(0)) < 3


def test_instances_are_vmapped_over_keys_and_norms():
    norms = jnp.array([1.0, 3.0])
    keys = jax.random.split(KEY, 2)
    mdp, _ = jax.vmap(small_bandit)(keys, norms)
    alone, _ = small_bandit(keys[1], 3.0)
    np.testing.assert_allclose(mdp.reward[1], alone.reward, atol=1e-6)
    assert not np.allclose(mdp.reward[0], mdp.reward[1] / 3)


@pytest.mark.parametrize(
    ("sizes", "initial", "message"),
    [
        ((0, 2, 2), None, "num_contexts is 0; required: at least 1"),
        ((2, 0, 2), None, "num_actions is 0"),
        ((2, 2, -1), None, "dimension is -1"),
        ((2, 2, 2), np.ones(3) / 3, r"initial has shape \(3,\); required: \(2,\)"),
    ],
)
def test_a_size_that_makes_no_bandit_is_refused(sizes, initial, message):
    with pytest.raises(ValueError, match=message):
        linear_bandit(KEY, *sizes, initial=initial)


def test_features_of_another_bandit_are_refused():
    mdp, _ = small_bandit(KEY)
    with pytest.raises(ValueError, match=r"features have shape \(2, 3, 4\); required: \(3, 2, d\)"):
        bandit(mdp, jnp.zeros((2, 3, 4)))
