"""Many runs in one program: lanes (hyper × seed) laid out [blocks, devices × width], the second axis sharded.

A block is a vmap of fixed width a device, the blocks a `lax.map`: a lane's bits do not depend on how many others run, and
memory grows with the width, not with the number of lanes. The last block is padded with repeats of the first lane.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bilevel.run import Measure, RunState, Stopping, run, start
from bilevel.types import Algorithm, Array

Hyper = Any  # real-valued hyperparameters: a pytree of arrays
Make = Callable[[Hyper], tuple[Algorithm, Measure | None]]  # called inside the traced function


class Layout(NamedTuple):
    """How lanes lie on the devices.

    Attributes:
        num_lanes: lanes that count.
        width: lanes a device in one block.
        devices: the devices that share a block.
    """

    num_lanes: int
    width: int
    devices: tuple[jax.Device, ...]

    @property
    def block_shape(self) -> tuple[int, int]:
        """(blocks, lanes a block)."""
        size = self.width * len(self.devices)
        return -(-self.num_lanes // size), size

    @property
    def padding(self) -> int:
        """Lanes that only fill the last block."""
        blocks, size = self.block_shape
        return blocks * size - self.num_lanes

    @property
    def sharding(self) -> NamedSharding:
        """Of every array with leading axes [blocks, lanes a block]."""
        mesh = jax.sharding.Mesh(np.array(self.devices), ("lane",), axis_types=(AxisType.Auto,))
        return NamedSharding(mesh, PartitionSpec(None, "lane"))

    @property
    def flat_sharding(self) -> NamedSharding:
        """Of arrays [num_lanes, ...], which do not depend on the layout: cut into as many equal parts as devices allow."""
        parts = math.gcd(self.num_lanes, len(self.devices))
        mesh = np.array(self.devices).reshape(parts, -1)
        axes = (AxisType.Auto, AxisType.Auto)
        return NamedSharding(jax.sharding.Mesh(mesh, ("lane", "copy"), axis_types=axes), PartitionSpec("lane"))

    def spread(self, lanes) -> Any:
        """A pytree of host arrays [num_lanes, ...] as sharded arrays [blocks, lanes a block, ...].

        In a run of several processes each has the host arrays, and keeps its own part of the sharded ones.
        """

        def place(x):
            x = np.asarray(x)
            x = np.concatenate([x, np.repeat(x[:1], self.padding, axis=0)])
            x = x.reshape(*self.block_shape, *x.shape[1:])
            return jax.make_array_from_callback(x.shape, self.sharding, lambda index: x[index])

        return jax.tree.map(place, lanes)

    def gather(self, blocks) -> Any:
        """The inverse of `spread`: host arrays [num_lanes, ...], without padding; called by every process."""
        if jax.process_count() > 1:
            blocks = multihost_utils.process_allgather(blocks, tiled=True)
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[: self.num_lanes], blocks)


@partial(jax.jit, static_argnames="layout")
def flatten(blocks, layout: Layout) -> Any:
    """Device arrays [blocks, lanes a block, ...] as device arrays [num_lanes, ...], without padding."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: layout.num_lanes], blocks)
    return jax.lax.with_sharding_constraint(flat, layout.flat_sharding)


@partial(jax.jit, static_argnames="layout")
def unflatten(lanes, layout: Layout) -> Any:
    """The inverse of `flatten`; the padding repeats the first lane."""

    def pad(x):
        x = jnp.concatenate([x, jnp.repeat(x[:1], layout.padding, axis=0)])
        return x.reshape(*layout.block_shape, *x.shape[1:])

    return jax.lax.with_sharding_constraint(jax.tree.map(pad, lanes), layout.sharding)


class Lanes(NamedTuple):
    """What tells lanes apart, arrays with one entry a lane.

    Attributes:
        seed: uint32, the number of the seed; the same seed under two hyperparameters sees the same randomness.
        hyper: a pytree of arrays, what `make` takes.
    """

    seed: Array
    hyper: Hyper


class Programs(NamedTuple):
    """The compiled life of a study: `init` once, then `advance` for every chunk.

    Attributes:
        init: lanes -> RunState.
        advance: (lanes, state, first_step, last_step) -> (state, metrics [blocks, lanes a block, chunk]), the steps
            [] int32 arrays.
    """

    init: Callable[[Lanes], RunState]
    advance: Callable[[Lanes, RunState, Array, Array], tuple[RunState, dict[str, Array]]]


def programs(make: Make, base_seed: int, chunk: int, layout: Layout, stopping: Stopping) -> Programs:
    """The two jitted programs of a study; an advance is one scan of `chunk` outer steps, of which some may be masked.

    Args:
        make: hyper -> (algorithm, measure), called inside the traced function, so that leaves of hyper may differ by lane.
        base_seed: chooses the whole study's randomness; lane keys are fold_in(key(base_seed), seed).
        chunk: static, outer steps a call.
        layout: of the lanes.
        stopping: convergence rule.
    """

    def key_of(lane: Lanes):
        return jax.random.fold_in(jax.random.key(base_seed), lane.seed)

    def init_lane(lane):
        algorithm, measure = make(lane.hyper)
        return start(algorithm, key_of(lane), measure)

    def advance_lane(lane, state, first_step, last_step):
        algorithm, measure = make(lane.hyper)
        return run(algorithm, key_of(lane), state, chunk, measure, first_step, last_step, stopping)

    # LLVM's dearer passes double the time to compile, and the programs become no faster: they are bound by memory, small
    # products and random numbers.
    cheaply = {"xla_backend_optimization_level": 1} if layout.devices[0].platform == "cpu" else None
    jit = partial(jax.jit, out_shardings=layout.sharding, compiler_options=cheaply)

    @jit
    def init(lanes):
        return jax.lax.map(jax.vmap(init_lane), lanes)

    @jit
    def advance(lanes, state, first_step, last_step):
        def block(inputs):
            return jax.vmap(advance_lane, in_axes=(0, 0, None, None))(*inputs, first_step, last_step)

        return jax.lax.map(block, (lanes, state))

    return Programs(init, advance)
