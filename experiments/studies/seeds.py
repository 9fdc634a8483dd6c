"""Many seeds of one function as one program, that all devices share."""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bilevel.types import Array


def for_each_seed(single: Callable[[Array], Array], num_seeds: int, key: Array) -> np.ndarray:
    """`single(key)` of as many keys, split from one, leading axis [seed]; compiled once. Arrays may be trees."""
    devices = jax.devices()[: math.gcd(num_seeds, len(jax.devices()))]
    mesh = jax.sharding.Mesh(np.array(devices), ("seed",), axis_types=(AxisType.Auto,))
    keys = jax.device_put(jax.random.split(key, num_seeds), NamedSharding(mesh, PartitionSpec("seed")))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(single))(keys))
