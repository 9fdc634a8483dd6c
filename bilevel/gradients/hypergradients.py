"""∇Φ(φ) of Φ(φ) = G(φ, λ*(φ)) in other ways than Algorithm 1's own: its outer step takes any of them in place of line 7.

| constructor | adds to ∇_φ G | taken at | gradients |
|---|---|---|---|
| `naive` | nothing | λ | exact, sampled |
| `algorithms.bilevel_rlhf.line_7` | (∇_φ J(λ′) − ∇_φ J(λ))/σ | λ′ | exact, sampled |
| `closed_form` | E[ℓ Σ (∂Q − ∂V)/w] | λ | exact, sampled |
| `implicit` | −(∂_φ ∇_λ J)ᵀ (∇²_λ J)^† ∇_λ G | λ | exact |
| `unrolled` | (∂λ_K/∂φ)ᵀ ∇_λ G through K inner steps | λ_K | exact |

At λ = λ*(φ) of a full table with w > 0, closed form and implicit are ∇Φ; unrolled tends to it as K grows, line 7 as σ falls.
Away from λ* the first two are off by O(‖λ − λ*‖). The last two differentiate ∇_λ J itself and are refused with sampled
gradients. Sampled, an implicit gradient would hold the inverse of a sampled Hessian, whose mean is not the inverse of the
mean, and an unrolled one ∇G at a sampled λ_K, whose mean is not ∇G at the mean: both are biased at any batch size, where
`closed_form` estimates the same limit without.

Dimensions: n policy parameters, raveled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel.gradients.types import Gradients, Hypergradient, UpperGradient
from bilevel.linear import solve_semidefinite
from bilevel.lookup import bind
from bilevel.types import Array, Cost, Params, Problem, total_cost

Construct = Callable[[Problem, Gradients, Any], Hypergradient]  # the last: the algorithm's own real numbers


def naive(problem: Problem, gradients: Gradients, hyper: Any) -> Hypergradient:
    """∇_φ G at the fixed policy π_λ, as if λ did not depend on φ: what alternating RLHF follows."""

    def estimate(key, pairs, reward_params, policy_params, proxy_params):
        policy = bind(problem.policy, policy_params)
        value, direct = gradients.preference_in_reward(pairs, policy, reward_params)
        return UpperGradient(value, direct, jax.tree.map(jnp.zeros_like, direct), solved(value))

    return Hypergradient(estimate, Cost(gradient_evaluations=1))


def closed_form(problem: Problem, gradients: Gradients, hyper: Any) -> Hypergradient:
    """∇_φ G + E[ℓ Σ_i Σ_h (∂_φ Q − ∂_φ V)(s_h^i, a_h^i)/w] at π_λ, no second derivative (HPGD, 2406.01575).

    It differentiates the optimum over *all* policies, π* ∝ π_ref exp(Q*/w): right for a full table, and for a network only
    as far as it can follow. Needs w > 0; not finite at w = 0.
    """

    def estimate(key, pairs, reward_params, policy_params, proxy_params):
        policy = bind(problem.policy, policy_params)
        value, direct = gradients.preference_in_reward(pairs, policy, reward_params)
        response = gradients.preference_through_policy(key, pairs, policy_params, reward_params)
        return UpperGradient(value, direct, response, solved(value))

    own = Cost(gradient_evaluations=2)
    return Hypergradient(estimate, total_cost((1, own), (1, gradients.through_policy_cost)))


# Through second derivatives of J --------------------------------------------------------------------------------------


class LinearSolver(NamedTuple):
    """How H x = b is solved for a symmetric H ⪰ 0 [n, n] that is given by its products and may be singular.

    Attributes:
        solve: (product, right [n]) -> x [n], for a b in the range of H; what it leaves is for the caller to look at.
        num_products: n -> products with H that a solve takes.
    """

    solve: Callable[[Callable[[Array], Array], Array], Array]
    num_products: Callable[[int], int]


def conjugate_gradients(num_iterations: int = 100) -> LinearSolver:
    """Conjugate gradients from zero: they stay in the range of H, so that x is the pseudo-inverse's solution.

    In exact arithmetic rank(H) iterations are enough; rounding asks for more, the more so the worse the conditioning.
    They rest once the remainder is eps^⅔ of b: below it, the null directions that rounding brings in would take over.

    Raises:
        ValueError: num_iterations is not positive.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations is {num_iterations}; required: at least 1")

    def solve(product, right):
        enough = jnp.finfo(right.dtype).eps ** (4 / 3) * (right @ right)

        def body(carry, _):
            x, left, direction = carry
            square, image = left @ left, product(direction)
            step = square / (direction @ image)
            remaining = left - step * image
            moved = x + step * direction, remaining, remaining + remaining @ remaining / square * direction
            return jax.tree.map(lambda new, old: jnp.where(square > enough, new, old), moved, carry), None

        return jax.lax.scan(body, (jnp.zeros_like(right), right, right), length=num_iterations)[0][0]

    return LinearSolver(solve, lambda size: num_iterations)


def dense_elimination() -> LinearSolver:
    """Elimination on H itself (`linear.solve_semidefinite`), for n up to a few hundred."""

    def solve(product, right):
        return solve_semidefinite(jax.vmap(product)(jnp.eye(len(right), dtype=right.dtype)), right)

    return LinearSolver(solve, lambda size: size)


def implicit(
    problem: Problem,
    gradients: Gradients,
    hyper: Any,
    solver: LinearSolver | None = None,
    tolerance: float | None = None,
) -> Hypergradient:
    """∇_φ G − (∂_φ ∇_λ J)ᵀ (∇²_λ J)^† ∇_λ G at π_λ: the implicit function theorem on ∇_λ J(λ*(φ), φ) = 0 (PARL, 2308.02585).

    Right for any differentiable policy class, at a maximum λ* where ∇_λ G lies in the range of the Hessian. The Hessian
    of a softmax table is singular: a constant added to a state's logits changes nothing. So such shifts are orthogonal to
    ∇_λ G and to ∂_φ ∇_λ J, and every solution of the linear system gives the same answer.

    What a residual r leaves in the answer is at most ‖∂λ*/∂φ‖ ‖r‖, whatever the conditioning. Conditioning decides how
    many iterations that takes: at λ* the curvature of J in the logits of s is w d(s)/(1 − γ) (diag π − π πᵀ), whose least
    entries fall like exp(−gap/w) with w.

    Args:
        problem: its policy.
        gradients: exact ones.
        hyper: unused; its place is the signature's.
        solver: of the linear system; None: `conjugate_gradients()`.
        tolerance: largest relative residual accepted, beyond which the implicit part is NaN; None: 1e-8 in float64,
            1e-3 in float32; inf: whatever the solver left.

    Raises:
        ValueError: the gradients are sampled.
    """
    _require_differentiable(gradients, "implicit")
    solver = conjugate_gradients() if solver is None else solver

    def estimate(key, pairs, reward_params, policy_params, proxy_params):
        value, direct = gradients.preference_in_reward(pairs, bind(problem.policy, policy_params), reward_params)
        right, _ = ravel_pytree(gradients.preference_in_policy(pairs, policy_params, reward_params))
        point, unravel = ravel_pytree(policy_params)

        def return_gradient(point, reward_params):
            return ravel_pytree(_return_gradient(gradients, key, unravel(point), reward_params))[0]

        def curvature(direction):  # −∇²_λ J times a direction
            return -jax.jvp(lambda x: return_gradient(x, reward_params), (point,), (direction,))[1]

        solution = solver.solve(curvature, right)
        residual = _relative(curvature(solution) - right, right)
        accepted = tolerance if tolerance is not None else (1e-8 if right.dtype == jnp.float64 else 1e-3)
        # −(∂_φ ∇_λ J)ᵀ (∇²_λ J)^† ∇_λ G: the two signs cancel.
        response = jax.grad(lambda params: return_gradient(point, params) @ solution)(reward_params)
        response = jax.tree.map(lambda x: jnp.where(residual <= accepted, x, jnp.nan), response)
        return UpperGradient(value, direct, response, residual)

    # Those of the solve, one for its residual, one with ∂_φ ∇_λ J; and the two first derivatives of G.
    products = solver.num_products(_num_params(problem)) + 2
    return Hypergradient(estimate, Cost(gradient_evaluations=2 * products + 2))


def unrolled(problem: Problem, gradients: Gradients, hyper: Any, num_steps: int = 100) -> Hypergradient:
    """∇_φ of G(φ, λ_K(φ)), where λ_K(φ) is K gradient steps on J(·, φ) of size τ from the given λ, itself held fixed.

    λ_K → λ* from wherever J's ascent leads there, and the error falls like (1 − τ μ)^K with μ the least positive
    curvature of −J at λ*, once τ is below 2 over the largest. Reverse mode: memory grows with K. The policy is moved for
    the estimate alone.

    Args:
        problem: its policy.
        gradients: exact ones.
        hyper: a record with the `policy_step_size` τ.
        num_steps: K ≥ 1.

    Raises:
        ValueError: the gradients are sampled, or num_steps is not positive.
    """
    _require_differentiable(gradients, "unrolled")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; required: at least 1")

    def estimate(key, pairs, reward_params, policy_params, proxy_params):
        def improved(reward_params):
            def body(params, _):
                grad = _return_gradient(gradients, key, params, reward_params)
                return jax.tree.map(lambda x, g: x + hyper.policy_step_size * g, params, grad), None

            return jax.lax.scan(body, policy_params, length=num_steps)[0]

        params, pull_back = jax.vjp(improved, reward_params)
        value, direct = gradients.preference_in_reward(pairs, bind(problem.policy, params), reward_params)
        (response,) = pull_back(gradients.preference_in_policy(pairs, params, reward_params))
        return UpperGradient(value, direct, response, solved(value))

    # A step forwards is a gradient, a step backwards a product with its derivative in λ and φ at once.
    return Hypergradient(estimate, Cost(gradient_evaluations=3 * num_steps + 2))


def _return_gradient(gradients: Gradients, key, policy_params: Params, reward_params: Params) -> Params:
    return gradients.return_in_policy(key, gradients.init(key), policy_params, reward_params)[0]


def _require_differentiable(gradients: Gradients, name: str) -> None:
    if not gradients.differentiable:
        raise ValueError(
            f"{name} differentiates ∇_λ J, and these gradients are sampled: the derivative of a sample misses the change "
            "of its law; use exact gradients, or closed_form"
        )


def _num_params(problem: Problem) -> int:
    spec = jax.eval_shape(problem.policy.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(spec))


def _relative(error: Array, scale: Array) -> Array:
    norm = jnp.linalg.norm(scale)
    return jnp.linalg.norm(error) / jnp.where(norm > 0, norm, 1.0)


def solved(like: Array) -> Array:
    """The residual of an estimate for which nothing was solved: 0."""
    return jnp.zeros_like(like)
