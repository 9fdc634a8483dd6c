"""Many seeds of one function as one program."""

from collections.abc import Callable
from typing import Any

import jax

from bilevel.lanes import Layout
from bilevel.types import Array

WIDTH = 64  # lanes a device in one block


def for_each_seed(single: Callable[[Array], Any], num_seeds: int, key: Array) -> Any:
    """`single(key)`, an array or a tree of them, of as many keys, split from one: host arrays with leading axis [seed].

    Seeds are lanes, in blocks of a fixed width that all devices share (`bilevel.lanes`): memory grows with the width.
    """
    devices = tuple(jax.devices())
    layout = Layout(num_seeds, min(WIDTH, -(-num_seeds // len(devices))), devices)

    def block(keys):
        return jax.vmap(lambda data: single(jax.random.wrap_key_data(data)))(keys)

    program = jax.jit(lambda blocks: jax.lax.map(block, blocks), out_shardings=layout.sharding)
    keys = jax.random.key_data(jax.random.split(key, num_seeds))
    return layout.gather(program(layout.spread(keys)))
