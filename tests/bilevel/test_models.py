"""Parametrisations: shapes and values by hand, sampling frequencies, coupling, and float types."""

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import models
from envs.base import MDP, Env, World
from envs.tabular import tabular

KEY = jax.random.key(0)


def close(value, expected, tolerance=1e-6):
    checks.close(value, expected, tolerance)


def finite_world(features=None, action_features=None):
    mdp = MDP(jnp.full(4, 0.25), jnp.full((4, 3, 4), 0.25), jnp.zeros((4, 3)))
    return tabular(mdp, features=features, action_features=action_features)


def plane(num_actions=None, action_size=None):
    """Points of the plane that stay where they are."""
    env = Env(
        lambda key: jax.random.normal(key, (2,)),
        lambda key, state, action: state,
        lambda state: state,
        num_actions=num_actions,
        action_size=action_size,
    )
    return World(env, lambda state, action: jnp.float32(0))


# Rewards and critics --------------------------------------------------------------------------------------------------


def test_a_table_holds_one_number_for_each_state_and_action():
    model = models.table(4, 3)
    assert model.init(KEY).shape == (4, 3)
    params = jnp.arange(12.0).reshape(4, 3)
    assert model.apply(params, 2, 1) == 7
    gradient = jax.grad(model.apply)(params, jnp.int32(2), jnp.int32(1))
    assert gradient[2, 1] == 1 and jnp.sum(gradient) == 1


def test_a_linear_model_is_an_inner_product():
    model = models.linear(lambda obs, action: jnp.append(obs, action), 3)
    assert not jnp.any(model.init(KEY)) and model.init(KEY).shape == (3,)
    close(model.apply(jnp.array([1.0, 2.0, 3.0]), jnp.array([5.0, 7.0]), 11.0), 5 + 14 + 33)


def test_a_network_without_hidden_layers_is_affine_and_one_with_them_is_the_tanh_network():
    features = lambda obs, action: jnp.append(obs, action)  # noqa: E731
    inputs = (jnp.array([0.3, -0.2]), 0.5)
    x = np.array([0.3, -0.2, 0.5])
    affine = models.mlp(features, 3, ())
    layer = affine.init(KEY)["params"]["Dense_0"]
    assert layer["kernel"].shape == (3, 1)
    close(affine.apply({"params": {"Dense_0": layer}}, *inputs), (x @ layer["kernel"] + layer["bias"])[0])
    deep = models.mlp(features, 3, (5, 4))
    params = jax.jit(deep.init)(KEY)
    layers = [params["params"][f"Dense_{i}"] for i in range(3)]
    assert [layer["kernel"].shape for layer in layers] == [(3, 5), (5, 4), (4, 1)]
    for layer in layers[:-1]:
        x = np.tanh(x @ layer["kernel"] + layer["bias"])
    value = deep.apply(params, *inputs)
    assert value.shape == ()
    close(value, (x @ layers[-1]["kernel"] + layers[-1]["bias"])[0])


def test_a_bounded_network_stays_within_its_bound_and_is_unchanged_near_zero():
    features = lambda obs, action: jnp.append(obs, action)  # noqa: E731
    free, bounded = (models.mlp(features, 3, (8,), bound) for bound in (None, 2.0))
    params = jax.jit(free.init)(KEY)
    observations = 1e4 * jax.random.normal(KEY, (100, 2))
    large = jax.tree.map(lambda x: 100 * x, params)
    assert jnp.max(jnp.abs(jax.vmap(lambda obs: free.apply(large, obs, 1.0))(observations))) > 2
    assert jnp.max(jnp.abs(jax.vmap(lambda obs: bounded.apply(large, obs, 1.0))(observations))) <= 2
    value = free.apply(params, jnp.array([0.1, 0.2]), 1.0)
    close(bounded.apply(params, jnp.array([0.1, 0.2]), 1.0), 2 * np.tanh(value / 2))


# Policies -------------------------------------------------------------------------------------------------------------


def test_a_table_policy_is_a_softmax_that_starts_uniform():
    model = models.table_policy(4, 3)
    close(model.apply(model.init(KEY), jnp.int32(2)).probs, [1 / 3] * 3)
    params = jnp.zeros((4, 3)).at[1].set(jnp.log(jnp.array([1.0, 2.0, 5.0])))
    policy = model.apply(params, jnp.int32(1))
    close(policy.probs, [0.125, 0.25, 0.625])
    close(policy.log_prob(jnp.int32(2)), np.log(0.625))
    close(model.apply(params, jnp.int32(0)).entropy(), np.log(3))


def test_a_network_policy_starts_close_to_uniform_and_depends_on_the_observation():
    features, size = models.state_features(finite_world())
    model = models.mlp_policy(features, size, 3, (8,))
    params = jax.jit(model.init)(KEY)
    probabilities = jax.jit(lambda params: jax.vmap(lambda obs: model.apply(params, obs).probs)(jnp.arange(4)))
    table = probabilities(params)
    assert table.shape == (4, 3)
    close(table, np.full((4, 3), 1 / 3), 0.02)
    table = probabilities(jax.tree.map(lambda x: 100 * x, params))
    close(table.sum(axis=-1), np.ones(4))
    assert jnp.max(jnp.ptp(table, axis=0)) > 0.1


def test_a_gaussian_policy_has_the_density_of_its_mean_and_deviation():
    model = models.gaussian_policy(lambda obs: obs, 2, 3, (), initial_std=0.5)
    params = jax.jit(model.init)(KEY)
    kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]])
    params["mean"]["params"]["Dense_0"]["kernel"] = kernel
    obs, action = jnp.array([0.5, 2.0]), jnp.array([0.0, -1.0, 3.5])
    policy = model.apply(params, obs)
    close(policy.mean(), [0.5, -2.0, 3.0])
    close(policy.stddev(), [0.5, 0.5, 0.5])
    offsets = np.array([-0.5, 1.0, 0.5]) / 0.5
    close(policy.log_prob(action), -0.5 * np.sum(offsets**2) - 3 * np.log(0.5 * np.sqrt(2 * np.pi)), 1e-5)
    assert policy.sample(seed=KEY).shape == (3,)


def test_gaussian_samples_have_their_mean_and_deviation():
    policy = models.gaussian(jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]))
    draws = np.asarray(policy.sample(seed=KEY, sample_shape=(20_000,)))
    error = np.array([0.5, 3.0]) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - [1.0, -2.0]) < 4 * error)
    assert np.all(np.abs(draws.std(axis=0) - [0.5, 3.0]) < 4 * error / np.sqrt(2))
    assert abs(np.corrcoef(draws.T)[0, 1]) < 4 / np.sqrt(len(draws))


def test_a_model_started_at_its_parameters_forgets_the_key():
    model = models.started_at(models.table_policy(2, 2), jnp.eye(2))
    assert jnp.array_equal(model.init(jax.random.key(5)), jnp.eye(2))
    assert jnp.array_equal(model.apply(jnp.eye(2), 0).logits, models.table_policy(2, 2).apply(jnp.eye(2), 0).logits)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_distribution_is_a_pytree_that_survives_vmap_and_indexing(kind):
    if kind == "categorical":
        params = jax.random.normal(KEY, (5, 3))
        make, action = models.Categorical, jnp.int32(2)
    else:
        params = jax.random.normal(KEY, (5, 2))
        make, action = lambda mean: models.gaussian(mean, jnp.array([0.5, 2.0])), jnp.array([0.1, -0.3])
    rows = jax.vmap(make)(params)
    third = jax.tree.map(lambda x: x[3], rows)
    alone = make(params[3])
    close(third.log_prob(action), alone.log_prob(action))
    close(third.sample(seed=KEY), alone.sample(seed=KEY))
    close(third.kl_divergence(make(params[0])), alone.kl_divergence(make(params[0])))
    # A batch of rows behaves like the distributions one by one.
    picks = jnp.full((10, 7), 3).at[0, 1].set(0)
    batch = jax.tree.map(lambda x: x[picks], rows)
    draws = batch.sample(seed=KEY)
    assert draws.shape == (10, 7, *action.shape)
    assert len(np.unique(draws)) == (3 if kind == "categorical" else draws.size)
    values = batch.log_prob(jnp.broadcast_to(action, draws.shape))
    assert values.shape == (10, 7)
    close(values[4, 5], alone.log_prob(action))
    close(values[0, 1], make(params[0]).log_prob(action))


# Draws of the categorical ---------------------------------------------------------------------------------------------


def test_sampling_frequencies_are_the_probabilities():
    probs = np.array([0.5, 0.2, 0.0, 0.3])
    policy = models.Categorical(jnp.log(jnp.asarray(probs)))
    count = 40_000
    frequency = np.bincount(np.asarray(policy.sample(seed=KEY, sample_shape=(count,))), minlength=4) / count
    assert np.all(np.abs(frequency - probs) <= 4 * np.sqrt(probs * (1 - probs) / count))
    draws = jax.vmap(lambda key: policy.sample(seed=key))(jax.random.split(KEY, count))
    frequency = np.bincount(np.asarray(draws), minlength=4) / count
    assert np.all(np.abs(frequency - probs) <= 4 * np.sqrt(probs * (1 - probs) / count))


def test_a_batch_of_categoricals_draws_each_of_its_rows():
    probs = jnp.array([[0.9, 0.1], [0.25, 0.75]])
    draws = models.Categorical(jnp.log(probs)).sample(seed=KEY, sample_shape=(20_000,))
    assert draws.shape == (20_000, 2) and draws.dtype == jnp.int32
    error = np.sqrt(probs[:, 1] * probs[:, 0] / 20_000)
    assert jnp.all(jnp.abs(jnp.mean(draws, axis=0) - probs[:, 1]) < 4 * error)
    assert abs(jnp.corrcoef(draws.T)[0, 1]) < 4 / np.sqrt(20_000)


def test_the_last_action_is_drawn_when_rounding_leaves_the_cumulative_sum_short_of_one():
    policy = models.Categorical(jnp.zeros(300))
    draws = policy.sample(seed=KEY, sample_shape=(10_000,))
    assert jnp.min(draws) == 0 and jnp.max(draws) == 299


def test_equal_keys_couple_the_draws_of_nearby_policies():
    # One uniform inverts both cumulative sums F, F′: the draws differ with probability at most Σ_i |F_i − F′_i|.
    p, q = jnp.array([0.3, 0.4, 0.3]), jnp.array([0.31, 0.38, 0.31])
    keys = jax.random.split(KEY, 50_000)
    first, second = (jax.vmap(lambda key, x=x: models.Categorical(jnp.log(x)).sample(seed=key))(keys) for x in (p, q))
    bound = 0.01 + 0.01
    assert bound <= jnp.sum(jnp.abs(p - q))
    differing = jnp.mean(first != second)
    assert 0 < differing < bound + 4 * np.sqrt(bound / len(keys))
    independent = models.Categorical(jnp.log(q)).sample(seed=jax.random.key(1), sample_shape=(50_000,))
    assert jnp.mean(first != independent) > 0.5


# Reference policies ---------------------------------------------------------------------------------------------------


def test_uniform_references_are_uniform_or_standard_normal():
    finite, discrete, continuous = (models.uniform_reference(x.env) for x in (finite_world(), plane(2), plane(None, 3)))
    close(finite(jnp.int32(1)).probs, [1 / 3] * 3)
    close(discrete(jnp.zeros(2)).probs, [0.5, 0.5])
    normal = continuous(jnp.zeros(2))
    close(normal.mean(), np.zeros(3))
    close(normal.log_prob(jnp.array([1.0, 0.0, 2.0])), -2.5 - 1.5 * np.log(2 * np.pi))


def test_a_given_reference_looks_its_row_up():
    reference = models.given_reference(jnp.array([[0.2, 0.8], [0.7, 0.3]]))
    close(reference(jnp.int32(1)).probs, [0.7, 0.3])
    close(reference(jnp.int32(0)).log_prob(jnp.int32(1)), np.log(0.8))


# Features -------------------------------------------------------------------------------------------------------------


def test_state_features_are_one_hot_or_the_observation_or_the_worlds_own():
    features, size = models.state_features(finite_world())
    assert size == 4
    close(features(jnp.int32(2)), [0, 0, 1, 0])
    features, size = models.state_features(plane(2))
    assert size == 2
    close(features(jnp.array([0.5, 3.0])), [0.5, 3.0])
    features, size = models.state_features(finite_world(features=lambda obs: jnp.array([obs, obs**2, 1.0])))
    assert size == 3
    close(features(jnp.int32(3)), [3, 9, 1])


def test_pair_features_put_the_action_beside_the_state_or_are_the_worlds_own():
    features, size = models.pair_features(finite_world())
    assert size == 7
    close(features(jnp.int32(1), jnp.int32(2)), [0, 1, 0, 0, 0, 0, 1])
    features, size = models.pair_features(plane(2))
    assert size == 4
    close(features(jnp.array([0.5, 3.0]), jnp.int32(0)), [0.5, 3.0, 1, 0])
    features, size = models.pair_features(plane(None, 3))
    assert size == 5
    close(features(jnp.array([0.5, 3.0]), jnp.array([1.0, 2.0, 4.0])), [0.5, 3.0, 1, 2, 4])
    features, size = models.pair_features(finite_world(action_features=lambda obs, action: jnp.array([obs * action])))
    assert size == 1
    close(features(jnp.int32(3), jnp.int32(2)), [6])


# Float types ----------------------------------------------------------------------------------------------------------


def float_types(world):
    """The types of the parameters and values of every kind of model."""
    of_state, state_size = models.state_features(world)
    of_pair, pair_size = models.pair_features(world)
    functions = [models.table(4, 3), models.linear(of_pair, pair_size), models.mlp(of_pair, pair_size, (4,), 2.0)]
    policies = [models.table_policy(4, 3), models.mlp_policy(of_state, state_size, 3, (4,))]
    gaussian = models.gaussian_policy(of_state, state_size, 2, (4,))

    def everything():
        obs, action = jnp.int32(1), jnp.int32(2)
        params = [model.init(KEY) for model in (*functions, *policies, gaussian)]
        values = [model.apply(model.init(KEY), obs, action) for model in functions]
        values += [model.apply(model.init(KEY), obs).log_prob(action) for model in policies]
        return params, values, gaussian.apply(gaussian.init(KEY), obs).sample(seed=KEY)

    return {x.dtype for x in jax.tree.leaves(jax.eval_shape(everything))}


def test_parameters_and_values_are_float32_by_default():
    assert float_types(finite_world()) == {jnp.dtype("float32")}


def test_parameters_and_values_are_float64_where_it_is_enabled(x64):
    assert float_types(finite_world()) == {jnp.dtype("float64")}
