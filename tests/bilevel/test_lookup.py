"""Lookups against direct evaluation, on finite worlds and on others, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close

from bilevel import models
from bilevel.lookup import bind, over_observations, over_pairs, pair_table, policy_table
from envs.base import Env
from envs.tabular import garnet, tabular_env

pytestmark = pytest.mark.usefixtures("x64")


def finite():
    """A finite world of four states and two actions."""
    return tabular_env(garnet(jax.random.key(0), 4, 2))


def test_a_table_looked_up_by_hand_and_the_gradient_that_counts_its_visits():
    table = jnp.arange(8.0).reshape(4, 2)
    obs, action = jnp.array([3, 0, 3], jnp.int32), jnp.array([1, 0, 1], jnp.int32)

    def values(table):
        return over_pairs(finite(), lambda s, a: table[s, a])(obs, action)

    close(values(table), [7.0, 0.0, 7.0])
    close(pair_table(finite(), lambda s, a: table[s, a]), table)
    close(jax.grad(lambda table: jnp.sum(values(table)))(table), [[1, 0], [0, 0], [0, 0], [0, 2]])
    close(over_observations(finite(), lambda s: 10.0 * s)(obs), [30.0, 0.0, 30.0])


def test_a_model_with_its_parameters_bound_is_a_function_of_the_rest():
    assert bind(models.table(4, 2), jnp.arange(8.0).reshape(4, 2))(2, 1) == 5.0


def finite_visits():
    """A finite world with visits [3, 4] to its pairs."""
    keys = jax.random.split(jax.random.key(1))
    obs, action = (jax.random.randint(key, (3, 4), 0, n, jnp.int32) for key, n in zip(keys, (4, 2), strict=True))
    return finite(), obs, action


def continuous(num_actions=None, action_size=None):
    env = Env(
        lambda key: jax.random.normal(key, (2,)),
        lambda key, state, action: state,
        lambda state: state,
        num_actions=num_actions,
        action_size=action_size,
    )
    return env, jax.random.normal(jax.random.key(1), (3, 4, 2))


def assert_same_with_gradients(batched, direct, params):
    """Both give the same values [3, 4], and the same derivatives of a weighted sum of them."""
    weights = jax.random.normal(jax.random.key(5), (3, 4))
    values, gradients = {}, {}
    for name, function in (("batched", batched), ("direct", direct)):
        values[name] = jax.jit(function)(params)
        gradients[name] = jax.jit(jax.grad(lambda x, f=function: jnp.sum(weights * f(x))))(params)
    assert values["batched"].shape == (3, 4)
    close(values["batched"], values["direct"])
    assert any(jnp.any(x != 0) for x in jax.tree.leaves(gradients["direct"]))
    for ours, theirs in zip(jax.tree.leaves(gradients["batched"]), jax.tree.leaves(gradients["direct"]), strict=True):
        close(ours, theirs)


def one_by_one(function, obs, action):
    """`function` of every (observation, action) of a batch [3, 4]."""
    return jax.vmap(jax.vmap(function))(obs, action)


def test_pairs_looked_up_on_a_finite_world_equal_direct_evaluation():
    env, obs, action = finite_visits()
    model = models.mlp(lambda obs, action: jnp.stack([jnp.sin(obs), obs * action, 1.0 * action]), 3, (4,))
    params = jax.jit(model.init)(jax.random.key(3))
    assert_same_with_gradients(
        lambda params: over_pairs(env, bind(model, params))(obs, action),
        lambda params: one_by_one(bind(model, params), obs, action),
        params,
    )
    table = pair_table(env, bind(model, params))
    assert table.shape == (4, 2)
    close(table[3, 1], model.apply(params, jnp.int32(3), jnp.int32(1)))


@pytest.mark.parametrize(("num_actions", "action_size"), [(3, None), (None, 2)])
def test_pairs_on_a_continuous_world_equal_direct_evaluation(num_actions, action_size):
    env, obs = continuous(num_actions, action_size)
    discrete = jax.random.randint(jax.random.key(2), (3, 4), 0, 3)
    action = discrete if action_size is None else jax.random.normal(jax.random.key(2), (3, 4, 2))
    model = models.mlp(lambda obs, action: jnp.concatenate([obs, jnp.cos(jnp.atleast_1d(action))[:1]]), 3, (4,))
    assert_same_with_gradients(
        lambda params: over_pairs(env, bind(model, params))(obs, action),
        lambda params: one_by_one(bind(model, params), obs, action),
        jax.jit(model.init)(jax.random.key(3)),
    )


def test_policies_looked_up_on_a_finite_world_equal_direct_evaluation():
    env, obs, action = finite_visits()
    model = models.table_policy(4, 2)
    params = jax.random.normal(jax.random.key(3), (4, 2))
    assert_same_with_gradients(
        lambda params: over_observations(env, bind(model, params))(obs).log_prob(action),
        lambda params: jax.nn.log_softmax(params)[obs, action],
        params,
    )
    close(policy_table(env, bind(model, params)), jax.nn.softmax(params))


def test_policies_on_a_continuous_world_equal_direct_evaluation():
    env, obs = continuous(action_size=2)
    action = jax.random.normal(jax.random.key(2), (3, 4, 2))
    model = models.gaussian_policy(lambda obs: obs, 2, 2, (4,))

    params = jax.jit(model.init)(jax.random.key(3))
    assert_same_with_gradients(
        lambda params: over_observations(env, bind(model, params))(obs).log_prob(action),
        lambda params: one_by_one(lambda obs, action: model.apply(params, obs).log_prob(action), obs, action),
        params,
    )
    policy = over_observations(env, bind(model, params))
    draws = policy(jnp.broadcast_to(obs[0, 0], (3, 4, 2))).sample(seed=jax.random.key(0))
    assert len(np.unique(draws)) == 3 * 4 * 2
    assert policy(obs[0, 0]).sample(seed=jax.random.key(0)).shape == (2,)


def test_a_finite_world_evaluates_its_function_once_a_state():
    calls = []

    def value(obs):
        jax.debug.callback(lambda x: calls.append(int(x)), obs)
        return 1.0 * obs

    looked_up = over_observations(finite(), value)(jnp.zeros(1000, jnp.int32))
    jax.block_until_ready(looked_up)
    jax.effects_barrier()
    assert sorted(calls) == [0, 1, 2, 3]
