"""Ascent by hand: one step up, the optimizer's own state, and a scan that arrives at a maximum."""

import chex
import jax
import jax.numpy as jnp
import optax
from checks import close

from bilevel.ascent import Level, ascend, maximise


def test_a_step_of_plain_ascent_adds_the_step_size_times_the_gradient_to_every_leaf():
    optimizer = optax.sgd(0.1)
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.float32(3.0)}
    level = ascend(optimizer, Level(params, optimizer.init(params), "kept"), {"a": jnp.array([5.0, -5.0]), "b": 10.0})
    chex.assert_trees_all_close(level.params, {"a": jnp.array([1.5, 1.5]), "b": jnp.float32(4.0)})
    assert level.critic == "kept"


def test_an_optimizer_s_state_goes_on_from_step_to_step():
    # With momentum ½ the second of two equal gradients moves 1.5 times as far: 0 → 0.1 → 0.25.
    optimizer = optax.sgd(0.1, momentum=0.5)
    level = Level(jnp.zeros(()), optimizer.init(jnp.zeros(())))
    path = []
    for _ in range(2):
        level = ascend(optimizer, level, jnp.ones(()))
        path.append(float(level.params))
    close(path, [0.1, 0.25], 1e-7)


def test_maximise_takes_as_many_steps_as_it_is_told():
    # Up −½ (x − 1)² with step ½ the distance to 1 halves at every step: 1 − 2^−n from 0.
    for steps in (0, 1, 3):
        found = maximise(lambda x: -0.5 * (x - 1) ** 2, optax.sgd(0.5), jnp.zeros(()), steps)
        close(found, 1 - 0.5**steps, 1e-7)


def test_maximise_arrives_at_the_maximum_of_a_function_of_a_tree(x64):
    def objective(params):
        return -jnp.sum(jnp.cosh(params["x"] - jnp.array([1.0, -2.0]))) - (params["y"] - 3.0) ** 2

    start = {"x": jnp.zeros(2), "y": jnp.zeros(())}
    found = jax.jit(lambda start: maximise(objective, optax.adam(0.1), start, 800))(start)
    chex.assert_trees_all_close(found, {"x": jnp.array([1.0, -2.0]), "y": jnp.float64(3.0)}, rtol=0, atol=1e-6)
