"""One step of an optax optimizer up a gradient, for either level."""

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
