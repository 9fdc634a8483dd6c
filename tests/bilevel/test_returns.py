"""Sums along a trajectory against loops and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close

from bilevel.returns import discount_powers, leave_one_out_mean, returns_to_go

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.97, 1.0])
def test_returns_to_go_equal_a_loop(discount):
    rewards = jax.random.normal(jax.random.key(0), (2, 3, 7))
    expected = np.zeros(rewards.shape)
    for t in range(7):
        for k in range(t, 7):
            expected[..., t] += discount ** (k - t) * np.asarray(rewards[..., k])
    close(returns_to_go(rewards, discount), expected)
    close(jax.jit(returns_to_go)(rewards, discount), expected)


def test_returns_to_go_by_hand():
    close(returns_to_go(jnp.array([1.0, 2.0, 4.0]), 0.5), [3.0, 4.0, 4.0])
    close(returns_to_go(jnp.array([1.0, 2.0, 4.0]), 0.0), [1.0, 2.0, 4.0])


def test_powers_of_the_discount_start_at_one():
    close(discount_powers(0.5, 4), [1, 0.5, 0.25, 0.125])
    close(jax.jit(discount_powers, static_argnums=1)(0.0, 3), [1, 0, 0])
    assert discount_powers(0.5, 2, jnp.float32).dtype == jnp.float32


def test_the_mean_of_the_others_by_hand():
    close(leave_one_out_mean(jnp.array([1.0, 2.0, 6.0])), [4.0, 3.5, 1.5])
    close(leave_one_out_mean(jnp.array([[1.0, 0.0], [3.0, 5.0]])), [[3.0, 5.0], [1.0, 0.0]])


def test_too_few_values_are_refused():
    with pytest.raises(AssertionError, match="greater than '1' on axis '0' but got '1'"):
        leave_one_out_mean(jnp.ones((1, 3)))
    with pytest.raises(AssertionError, match="greater than '0' on axis '-1' but got '0'"):
        returns_to_go(jnp.ones((3, 0)), 0.5)
