"""Small dense linear systems by elimination, [D, D] with D up to a few hundred; the one place where one is solved.

Nothing here calls LAPACK: on several CPU devices its batched calls (solve, cholesky, eigh) wait for threads that wait for
them, and a program can stand still for ever.
"""

import chex
import jax
import jax.numpy as jnp

from bilevel.types import Array


def solve_dominant(matrix: Array, right: Array) -> Array:
    """x with matrix x = right, [D], for a matrix that is diagonally dominant by rows or by columns, as I − γP is.

    Elimination then needs no pivots. Differentiable in both.
    """
    _check_square(matrix, right)

    def eliminate(matrix, right):
        rows = jnp.concatenate([matrix, right[:, None]], axis=1)
        return jax.lax.fori_loop(0, len(right), lambda k, rows: _sweep(rows, k, rows[k] / rows[k, k]), rows)[:, -1]

    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x,
        right,
        solve=lambda _, b: eliminate(matrix, b),
        transpose_solve=lambda _, b: eliminate(matrix.T, b),
    )


def solve_definite(matrix: Array, right: Array) -> tuple[Array, Array]:
    """x [D] with matrix x = right, and the least pivot [], of which all are positive if the matrix is definite.

    That is, symmetric and positive definite up to a scaling of rows, which changes no pivot. Where it is not, pivots
    are replaced by their sizes, as if something had been added to the diagonal: x is then a direction of ascent.
    """
    _check_square(matrix, right)

    def body(k, carry):
        rows, least = carry
        pivot = rows[k, k]
        size = jnp.maximum(jnp.abs(pivot), 1e-6)
        return _sweep(rows, k, (rows[k] / size).at[k].set(1.0)), jnp.minimum(least, pivot)

    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    rows, least = jax.lax.fori_loop(0, len(right), body, (rows, jnp.full((), jnp.inf, right.dtype)))
    return rows[:, -1], least


def solve_semidefinite(matrix: Array, right: Array) -> Array:
    """A solution x [D] of matrix x = right for a symmetric matrix that may be singular, largest diagonal entry first.

    Directions in which nothing but rounding is left are null directions and get x = 0: a solution, if not the shortest.
    """
    _check_square(matrix, right)
    size = len(right)
    # With a unit diagonal, rarely visited states are told from null directions.
    diagonal = jnp.abs(jnp.diag(matrix))
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 0.0)
    rows = jnp.concatenate([scale[:, None] * matrix * scale, (scale * right)[:, None]], axis=1)
    negligible = 100 * size * jnp.finfo(right.dtype).eps

    def body(_, carry):
        rows, used = carry
        remaining = jnp.where(used, 0.0, jnp.abs(jnp.diag(rows)))
        k = jnp.argmax(remaining)
        usable = remaining[k] > negligible
        reduced = _sweep(rows, k, rows[k] / jnp.where(usable, rows[k, k], 1.0))
        return jnp.where(usable, reduced, rows), used.at[k].set(used[k] | usable)

    rows, used = jax.lax.fori_loop(0, size, body, (rows, jnp.zeros(size, bool)))
    return scale * jnp.where(used, rows[:, -1], 0.0)


def is_positive(matrix: Array) -> Array:
    """Whether a symmetric matrix [D, D] is positive definite, [] bool: all pivots of its elimination are positive."""
    chex.assert_shape(matrix, (len(matrix), len(matrix)))

    def body(k, carry):
        rows, least = carry
        pivot = rows[k, k]
        return rows - jnp.outer(rows[:, k], rows[k]) / pivot, jnp.minimum(least, pivot)

    _, least = jax.lax.fori_loop(0, len(matrix), body, (matrix, jnp.full_like(matrix[0, 0], jnp.inf)))
    return least > 0


def _sweep(rows: Array, k: Array, row: Array) -> Array:
    """The rows [D, …] with `row` in place of the k-th, and column k eliminated from the others by it."""
    return (rows - rows[:, k, None] * row).at[k].set(row)


def _check_square(matrix: Array, right: Array) -> None:
    chex.assert_shape(matrix, (len(right), len(right)))
