"""Ascent by an optax optimizer: one step, as both levels of an algorithm take it, and a whole scan of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from bilevel.types import Array, Params

Optimizer = Callable[[Array], optax.GradientTransformation]  # step size -> optax optimizer


class Level(NamedTuple):
    """One iterate: its parameters, its optimizer's state, and its critic's (() where there is none)."""

    params: Params
    optimizer: Any
    critic: Any = ()


def ascend(optimizer: optax.GradientTransformation, level: Level, grad: Params) -> Level:
    """The level after one step of `optimizer` up the gradient."""
    descent = jax.tree.map(lambda x: -x, grad)
    updates, state = optimizer.update(descent, level.optimizer, level.params)
    return level._replace(params=optax.apply_updates(level.params, updates), optimizer=state)


def maximise(
    objective: Callable[[Params], Array], optimizer: optax.GradientTransformation, params: Params, num_steps: int
) -> Params:
    """The parameters after `num_steps` steps of `optimizer` from `params` up the gradient of `objective`, params -> []."""

    def body(level, _):
        return ascend(optimizer, level, jax.grad(objective)(level.params)), None

    start = Level(params, optimizer.init(params))
    return jax.lax.scan(body, start, length=num_steps)[0].params
