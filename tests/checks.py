"""What tests of numbers assert: that they are near each other, or the same to the last bit."""

import jax
import numpy as np


def close(value, expected, tolerance=1e-12):
    """Arrays, or what becomes one, are equal to an absolute tolerance in every entry."""
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=0, atol=tolerance)


def near(value, expected, tolerance=1e-9):
    """Arrays, or what becomes one, are equal to a tolerance that is absolute and relative, in every entry."""
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=tolerance, atol=tolerance)


def assert_same_bits(first, second):
    """Two pytrees have the same structure, and leaves of the same types, shapes and bits."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
