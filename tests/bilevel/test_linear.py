"""Elimination against LAPACK: dominant, definite and semidefinite systems, and the sign of pivots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close

from bilevel.linear import is_positive, solve_definite, solve_dominant, solve_semidefinite

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("size", [1, 2, 25, 60])
def test_a_dominant_system_and_its_transpose_are_solved_as_lapack_solves_them(size):
    chain = np.random.default_rng(size).dirichlet(np.full(size, 0.3), size)
    matrix, right = np.eye(size) - 0.99 * chain, np.random.default_rng(0).normal(size=size)
    solve = jax.jit(solve_dominant)
    np.testing.assert_allclose(solve(matrix, right), np.linalg.solve(matrix, right), rtol=1e-10)
    np.testing.assert_allclose(solve(matrix.T, right), np.linalg.solve(matrix.T, right), rtol=1e-10)
    # d/db of sin(x) is M⁻ᵀ cos(x), and d/dM is −that times xᵀ.
    slopes = jax.jit(jax.grad(lambda m, b: jnp.sum(jnp.sin(solve_dominant(m, b))), (0, 1)))(matrix, right)
    solution = np.linalg.solve(matrix, right)
    in_right = np.linalg.solve(matrix.T, np.cos(solution))
    for slope, expected in zip(slopes, (-np.outer(in_right, solution), in_right), strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-8, atol=1e-8)


def test_two_equations_by_hand():
    # 2x + y = 5, x + 3y = 10: (1, 3); the pivots are 2 and 3 − ½.
    matrix, right = jnp.array([[2.0, 1.0], [1.0, 3.0]]), jnp.array([5.0, 10.0])
    close(solve_dominant(matrix, right), [1.0, 3.0])
    solution, least = solve_definite(matrix, right)
    close(solution, [1.0, 3.0])
    close(least, 2.0)
    close(solve_semidefinite(matrix, right), [1.0, 3.0])


def symmetric(seed, size, rank=None):
    """A random symmetric matrix [size, size], ⪰ 0 of the given rank where one is given."""
    factor = np.random.default_rng(seed).normal(size=(size, size if rank is None else rank))
    return factor + factor.T if rank is None else factor @ factor.T


def test_a_definite_system_is_solved_up_to_a_scaling_of_its_rows_and_its_least_pivot_is_positive():
    matrix, right = symmetric(0, 6, 6) + np.eye(6), np.arange(1.0, 7.0)
    expected, pivots = np.linalg.solve(matrix, right), np.diag(np.linalg.cholesky(matrix)) ** 2
    solution, least = jax.jit(solve_definite)(matrix, right)
    close(solution, expected, 1e-9)
    close(least, pivots.min(), 1e-9)
    scales = np.linspace(0.5, 2.0, 6)
    solution, _ = jax.jit(solve_definite)(scales[:, None] * matrix, scales * right)
    close(solution, expected, 1e-9)


def test_where_a_matrix_is_not_definite_the_least_pivot_says_so_and_the_answer_still_ascends():
    # diag(1, −2): with sizes of pivots in place of pivots x = (b_0, b_1/2), and bᵀx > 0.
    solution, least = solve_definite(jnp.diag(jnp.array([1.0, -2.0])), jnp.array([3.0, 4.0]))
    close(solution, [3.0, 2.0])
    close(least, -2.0)


@pytest.mark.parametrize("rank", [0, 1, 5, 8])
def test_a_semidefinite_system_is_solved_whatever_its_rank(rank):
    matrix = symmetric(rank, 8, rank)
    right = matrix @ np.arange(8.0)
    solution = jax.jit(solve_semidefinite)(matrix, right)
    close(matrix @ solution, right, 1e-9)
    assert np.isfinite(solution).all()


def test_a_null_direction_gets_nothing_and_a_small_one_is_no_null_direction():
    # The last coordinate is a null direction, the second one is scaled down by 1e-9.
    matrix = jnp.diag(jnp.array([2.0, 1e-9, 0.0]))
    close(solve_semidefinite(matrix, jnp.array([4.0, 3e-9, 0.0])), [2.0, 3.0, 0.0])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_positive_matrices_are_those_with_positive_eigenvalues(size):
    matrix = symmetric(size, size)
    least = np.linalg.eigvalsh(matrix)[0]
    for shift in (-1e-6, 1e-6):
        assert is_positive(matrix + (shift - least) * np.eye(size)) == (shift > 0)


@pytest.mark.parametrize("solve", [solve_dominant, solve_definite, solve_semidefinite])
def test_a_matrix_that_does_not_fit_its_right_hand_side_is_refused_with_both_shapes(solve):
    with pytest.raises(AssertionError, match=r"has shape \(3, 2\) but expected \(3, 3\)"):
        solve(jnp.zeros((3, 2)), jnp.zeros(3))
    with pytest.raises(AssertionError, match=r"has shape \(2, 2\) but expected \(3, 3\)"):
        solve(jnp.eye(2), jnp.zeros(3))


def test_pivots_of_what_is_not_square_are_refused():
    with pytest.raises(AssertionError, match=r"has shape \(2, 3\) but expected \(2, 2\)"):
        is_positive(jnp.zeros((2, 3)))


@pytest.mark.parametrize("solve", [solve_dominant, solve_definite, solve_semidefinite])
def test_no_elimination_calls_lapack_where_devices_share_threads(solve):
    # Its batched calls wait for threads of the pool that runs them: on several CPU devices that can be for ever.
    stacked = jnp.eye(3)[None].repeat(2, axis=0), jnp.ones((2, 3))
    assert "lapack" not in jax.jit(jax.vmap(solve)).lower(*stacked).as_text()
