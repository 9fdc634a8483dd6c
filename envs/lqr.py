"""The linear-quadratic regulator: a continuous world whose returns, gradients and optimum are known in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Array, Env, World


class LQR(NamedTuple):
    """A linear system with a quadratic cost; stack a leading axis on each array to vmap over instances.

        s′ = A s + B a + N ε,   r*(s, a) = −(sᵀQ s + aᵀR a),   s_0 = μ_0 + N_0 ε_0,   ε, ε_0 standard normal

    The noises are given by factors, not covariances, so that a singular or absent noise needs no special case.

    Attributes:
        dynamics: A [n, n].
        control: B [n, m].
        noise: N [n, n], a factor of the noise's covariance N Nᵀ.
        state_cost: Q [n, n], symmetric, positive semidefinite.
        action_cost: R [m, m], symmetric, positive definite.
        initial_mean: μ_0 [n].
        initial_factor: N_0 [n, n], a factor of the first state's covariance N_0 N_0ᵀ.
    """

    dynamics: Array
    control: Array
    noise: Array
    state_cost: Array
    action_cost: Array
    initial_mean: Array
    initial_factor: Array


class LinearGaussian(NamedTuple):
    """The policy a ~ N(−K s, diag(std²)).

    Attributes:
        gain: K [m, n].
        std: [m], positive.
    """

    gain: Array
    std: Array


class LQRValue(NamedTuple):
    """Values of a policy: V(s) = −(sᵀP s + p) and Q(s, a) = −(zᵀH z + h) with z = (s, a) joined.

    Attributes:
        state: P [n, n].
        state_offset: p [].
        joint: H [n + m, n + m].
        joint_offset: h [].
    """

    state: Array
    state_offset: Array
    joint: Array
    joint_offset: Array


def double_integrator() -> LQR:
    """A small default: position and velocity (n = 2) pushed by a force (m = 1), with a time step of 0.1.

    The uncontrolled system has spectral radius one, so every gain near zero has a finite return for γ < 1.
    """
    return LQR(
        dynamics=jnp.array([[1.0, 0.1], [0.0, 1.0]]),
        control=jnp.array([[0.0], [0.1]]),
        noise=0.05 * jnp.eye(2),
        state_cost=jnp.array([[1.0, 0.0], [0.0, 0.1]]),
        action_cost=jnp.array([[0.1]]),
        initial_mean=jnp.zeros(2),
        initial_factor=jnp.eye(2),
    )


def lqr(system: LQR, horizon: int | None = None) -> World:
    """The system as a world: observations are states [n], actions are vectors [m] without bounds.

    Args:
        system: call `check_lqr` first on arrays from outside.
        horizon: steps of an evaluation episode, see `Env`.

    Raises:
        ValueError: if the arrays' shapes do not fit together.
    """
    n, m = _check_shapes(system)

    def init(key):
        return system.initial_mean + system.initial_factor @ jax.random.normal(key, (n,), system.noise.dtype)

    def step(key, state, action):
        noise = system.noise @ jax.random.normal(key, (n,), system.noise.dtype)
        return system.dynamics @ state + system.control @ action + noise

    def reward(state, action):
        return -(state @ system.state_cost @ state + action @ system.action_cost @ action)

    return World(Env(init, step, lambda state: state, action_size=m, horizon=horizon), reward)


def lqr_return(
    system: LQR,
    gain: Array,
    std: Array,
    discount: Array | float,
    kl_weight: Array | float = 0.0,
    reference: LinearGaussian | None = None,
) -> Array:
    """The exact discounted return of a linear-Gaussian policy ([]), differentiable in every argument.

        J = E Σ_t γ^t ( r*(s_t, a_t) − w KL(π(·|s_t) ‖ π_ref(·|s_t)) ) = −( μ_0ᵀP μ_0 + tr(P N_0 N_0ᵀ) + p )

    Args:
        system: the world.
        gain: K [m, n] of the policy a ~ N(−K s, diag(std²)).
        std: [m], positive (nonnegative without a reference).
        discount: γ in [0, 1) with √γ · spectral radius of A − B K below one (`check_stable`); beyond, the true return
            is −∞ and the number returned means nothing.
        kl_weight: w ≥ 0.
        reference: π_ref; None: the return of r* alone.

    Raises:
        ValueError: if shapes do not fit, or a nonzero `kl_weight` comes without a reference.
    """
    value = lqr_value_matrices(system, gain, std, discount, kl_weight, reference)
    spread = system.initial_factor.T @ value.state @ system.initial_factor
    return -(system.initial_mean @ value.state @ system.initial_mean + jnp.trace(spread) + value.state_offset)


def lqr_value_matrices(
    system: LQR,
    gain: Array,
    std: Array,
    discount: Array | float,
    kl_weight: Array | float = 0.0,
    reference: LinearGaussian | None = None,
) -> LQRValue:
    """The exact V and Q of a linear-Gaussian policy, by a discrete Lyapunov equation (arguments as in `lqr_return`).

        Q(s, a) = r*(s, a) + γ E V(s′),   V(s) = E_a[ Q(s, a) ] − w KL(π(·|s) ‖ π_ref(·|s))
        P = TᵀC T + γ FᵀP F,   T = [I; −K],   F = A − B K,   C = diag(Q, R) + (w/2) [K_ref I]ᵀ Σ_ref⁻¹ [K_ref I]

    The KL of the first step is in V and not in Q, so A(s, a) = Q(s, a) − w log π/π_ref(a|s) − V(s) has mean zero.
    """
    n, _ = _check_shapes(system, gain, std)
    _check_reference(system, kl_weight, reference)
    closed = system.dynamics - system.control @ gain
    loop = jnp.concatenate([jnp.eye(n, dtype=closed.dtype), -gain])
    pull = _reference_cost(system, kl_weight, reference)
    cost = loop.T @ (_true_cost(system) + pull) @ loop
    lyapunov = jnp.eye(n * n, dtype=closed.dtype) - discount * jnp.kron(closed.T, closed.T)
    state = jnp.linalg.solve(lyapunov, cost.reshape(-1)).reshape(n, n)
    joint = _look_ahead(system, _true_cost(system), state, discount)
    noise = jnp.trace(system.noise.T @ state @ system.noise)
    exploration = jnp.diag(joint + pull)[n:] @ std**2
    entropy = 0.0 if reference is None else kl_weight * jnp.sum(jnp.log(reference.std / std) - 0.5)
    offset = (exploration + entropy + discount * noise) / (1 - discount)
    return LQRValue(state, offset, joint, discount * (noise + offset))


def lqr_optimal_gain(
    system: LQR,
    discount: Array | float,
    kl_weight: Array | float = 0.0,
    reference: LinearGaussian | None = None,
) -> Array:
    """The gain K* [m, n] that maximises `lqr_return` for every std, by value iteration on the Riccati equation.

        K = H_aa⁻¹ H_as,   P ← H_ss − H_sa K,   H = C + γ [A B]ᵀP [A B],   C as in `lqr_value_matrices`

    Iterates until P moves by rounding alone, and 10⁴ times at most. A system that no gain stabilises yields numbers
    that mean nothing: `check_stable` tells. For reverse-mode derivatives differentiate `lqr_return` instead.

    Raises:
        ValueError: if shapes do not fit, or a nonzero `kl_weight` comes without a reference.
    """
    n, _ = _check_shapes(system)
    _check_reference(system, kl_weight, reference)
    cost = _true_cost(system) + _reference_cost(system, kl_weight, reference)
    tolerance = 4 * jnp.finfo(cost.dtype).eps

    def greedy_gain(state):
        joint = _look_ahead(system, cost, state, discount)
        return jnp.linalg.solve(joint[n:, n:], joint[n:, :n]), joint

    def moving(carry):
        count, state, change = carry
        return (count < 10_000) & (change > tolerance * jnp.max(jnp.abs(state)))

    def body(carry):
        count, state, _ = carry
        gain, joint = greedy_gain(state)
        updated = joint[:n, :n] - joint[:n, n:] @ gain
        return count + 1, updated, jnp.max(jnp.abs(updated - state))

    start = (0, jnp.zeros_like(system.dynamics), jnp.full((), jnp.inf, cost.dtype))
    return greedy_gain(jax.lax.while_loop(moving, body, start)[1])[0]


def check_lqr(system: LQR) -> LQR:
    """The same system, or a ValueError that names what is wrong with its arrays (host side, before tracing)."""
    _check_shapes(system)
    for name, array in zip(system._fields, map(np.asarray, system), strict=True):
        if not np.issubdtype(array.dtype, np.floating) or not np.all(np.isfinite(array)):
            raise ValueError(f"{name} is not finite real floats throughout; required: that; repair or convert it")
    for name, least in (("state_cost", "nonnegative"), ("action_cost", "positive")):
        array = np.asarray(getattr(system, name), np.float64)
        if not np.allclose(array, array.T, rtol=1e-5, atol=0):
            raise ValueError(
                f"{name} is not symmetric; required: a symmetric matrix; take half of it plus its transpose"
            )
        smallest = np.linalg.eigvalsh(array)[0]
        if smallest < -1e-6 * np.abs(array).max() or (least == "positive" and smallest <= 0):
            raise ValueError(f"{name} has the eigenvalue {smallest:g}; required: {least} eigenvalues alone")
    return system


def check_stable(system: LQR, gain: Array, discount: float) -> float:
    """√γ · spectral radius of A − B K, or a ValueError if it is not below one: the return would be −∞ (host side)."""
    _check_shapes(system, gain)
    closed = np.asarray(system.dynamics, np.float64) - np.asarray(system.control, np.float64) @ np.asarray(gain)
    finite = np.all(np.isfinite(closed))
    radius = np.sqrt(discount) * np.max(np.abs(np.linalg.eigvals(closed))) if finite else np.inf
    if not radius < 1:
        raise ValueError(
            f"√discount · spectral radius of A − B·gain is {radius:.4g}; required: below 1, else the return is −∞; "
            "take a stabilising gain (lqr_optimal_gain) or a smaller discount"
        )
    return float(radius)


def _true_cost(system):
    return jax.scipy.linalg.block_diag(system.state_cost, system.action_cost)


def _reference_cost(system, kl_weight, reference):
    """The quadratic part of −w log π_ref(a|s) as a matrix of z = (s, a)."""
    if reference is None:
        return jnp.zeros_like(_true_cost(system))
    m = system.control.shape[1]
    residual = jnp.concatenate([reference.gain, jnp.eye(m, dtype=reference.gain.dtype)], axis=1)
    return kl_weight / 2 * residual.T @ (residual / reference.std[:, None] ** 2)


def _look_ahead(system, cost, state, discount):
    step = jnp.concatenate([system.dynamics, system.control], axis=1)
    return cost + discount * step.T @ state @ step


def _check_reference(system, kl_weight, reference):
    if reference is not None:
        _check_shapes(system, *reference)
    elif not (isinstance(kl_weight, int | float) and kl_weight == 0):
        raise ValueError(
            f"kl_weight is {kl_weight} and reference is None; required: a LinearGaussian reference; give one"
        )


def _check_shapes(system, gain=None, std=None):
    """(n, m), or a ValueError that names the first array whose shape does not fit."""
    if system.control.ndim != 2 or 0 in system.control.shape:
        raise ValueError(f"control has shape {system.control.shape}; required: [n, m], states by actions, n, m ≥ 1")
    n, m = system.control.shape
    required = LQR((n, n), (n, m), (n, n), (n, n), (m, m), (n,), (n, n))
    for name, array, shape in zip(LQR._fields, system, required, strict=True):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; required: {shape}, for n = {n} states, m = {m} actions")
    for name, array, shape in (("gain", gain, (m, n)), ("std", std, (m,))):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; required: {shape}, for n = {n} states, m = {m} actions")
    return n, m
