"""CartPole-v1: a cart that a push to the left or right must keep under its pole, and within its track."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from envs.base import Array, Env, Original, Score, World

GRAVITY = 9.8  # m/s²
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
TOTAL_MASS = CART_MASS + POLE_MASS
HALF_LENGTH = 0.5  # m, half of the pole
FORCE = 10.0  # N
TIME_STEP = 0.02  # s
POSITION_LIMIT = 2.4  # m
ANGLE_LIMIT = 12 * 2 * math.pi / 360  # rad
HORIZON = 500
SCORE = Score("steps survived", "steps", 0, HORIZON)
SPANS = (POSITION_LIMIT, 1.5, ANGLE_LIMIT, 1.5)  # m, m/s, rad, rad/s: cells divide ± these, and the outer ones go on
MOST_CELLS = 2**20


def cartpole(cells: tuple[int, ...] = ()) -> World:
    """CartPole-v1 (Barto, Sutton & Anderson 1983; the equations and constants of gymnasium) without auto-reset.

    The state and the observation are [5]: position (m), velocity (m/s), angle (rad), angular velocity (rad/s), and
    fallen (0 or 1). A fallen pole stays exactly where it fell. The reward is 1 − fallen, so a score over the horizon of
    500 steps is the episode length that gymnasium would report; the horizon ends a score, not the process.

    With `cells`, the observation is the index of the cell that the state lies in, [] int32, and tables serve as models. The
    hidden state stays continuous, so the process is observed in part and is not Markov in what is observed: there are no
    exact oracles (`mdp` is None), and a policy of the cell alone is not the best there is.

    Args:
        cells: how many for position, velocity, angle and angular velocity; one more is for all fallen states. 3 3 8 6
            divides position and velocity where Barto, Sutton & Anderson did. Empty: the observation is the state.

    Raises:
        ValueError: there are not four counts, one is below 1, or their product is above 2^20.
    """
    if not cells:
        env = Env(init, step, observe, num_actions=2, horizon=HORIZON)
        return World(env, reward, original=original(observe), score=SCORE)
    if len(cells) != len(SPANS) or min(cells) < 1 or math.prod(cells) > MOST_CELLS:
        raise ValueError(
            f"cells is {' '.join(map(str, cells))}; required: four counts of at least 1 (position, velocity, angle, "
            f"angular velocity), at most {MOST_CELLS} in all, such as 3 3 8 6; or none: a continuous observation"
        )
    num_states, see = math.prod(cells) + 1, partial(cell, cells)
    env = Env(init, step, see, num_states, num_actions=2, horizon=HORIZON)
    return World(env, reward, original=original(see), score=SCORE)


def original(see: Callable[[Array], Array]) -> Original:
    """gymnasium's CartPole-v1, whose observation [4] is a state that has not fallen; `see` is the world's view of one."""
    return Original((4,), lambda obs: see(jnp.append(obs, 0)))


def init(key: Array) -> Array:
    """The first state [5]: each of the four coordinates uniform in ±0.05, not fallen."""
    return jnp.append(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), 0)


def step(key: Array, state: Array, action: Array) -> Array:
    """The state [5] one Euler step later, or the same one if the pole has fallen; deterministic.

    Args:
        key: not used.
        state: [5].
        action: [] int, 0 pushes to the left, 1 to the right.
    """
    del key
    moved = euler_step(state[:4], action)
    fallen = (jnp.abs(moved[0]) > POSITION_LIMIT) | (jnp.abs(moved[2]) > ANGLE_LIMIT)
    return jnp.where(state[4] > 0, state, jnp.append(moved, fallen.astype(state.dtype)))


def euler_step(state: Array, action: Array) -> Array:
    """Position, velocity, angle and angular velocity [4] after one time step; m is the pole's mass, M the total.

    θ̈ = (g sin θ − cos θ · f) / (ℓ (4/3 − m cos² θ / M)),   ẍ = f − m ℓ θ̈ cos θ / M,   f = (F + m ℓ θ̇² sin θ) / M
    """
    _, velocity, angle, spin = state
    force = jnp.where(action == 1, FORCE, -FORCE).astype(state.dtype)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    pushed = (force + POLE_MASS * HALF_LENGTH * spin**2 * sin) / TOTAL_MASS
    spin_rate = (GRAVITY * sin - cos * pushed) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cos**2 / TOTAL_MASS))
    acceleration = pushed - POLE_MASS * HALF_LENGTH * spin_rate * cos / TOTAL_MASS
    return state + TIME_STEP * jnp.stack([velocity, acceleration, spin, spin_rate])


def observe(state: Array) -> Array:
    """The state itself [5]."""
    return state


def cell(cells: tuple[int, ...], state: Array) -> Array:
    """The index of the cell of a state [5], [] int32: row-major, the last coordinate fastest; the last is the fallen one.

    Each coordinate's span is divided into equal parts; what lies beyond it belongs to the outermost.
    """
    spans, counts = jnp.array(SPANS, state.dtype), jnp.array(cells)
    parts = jnp.floor((state[:4] / spans + 1) / 2 * counts)
    parts = jnp.clip(parts, 0, counts - 1).astype(jnp.int32)
    index = jnp.ravel_multi_index(tuple(parts), cells, mode="clip").astype(jnp.int32)
    return jnp.where(state[4] > 0, jnp.int32(math.prod(cells)), index)


def reward(state: Array, action: Array) -> Array:
    """1 while the pole has not fallen, 0 after ([])."""
    del action
    return 1 - state[4]
