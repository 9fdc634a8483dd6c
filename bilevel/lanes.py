"""Many runs in one program: lanes (hyper × seed) laid out [blocks, devices × width], the second axis sharded.

A block is a vmap of fixed width a device, the blocks a `lax.map`: a lane's bits do not depend on how many others run, and
memory grows with the width, not with the number of lanes. The last block is padded with repeats of the first lane.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bilevel.run import Measure, RunState, Stopping, run, start
from bilevel.types import Algorithm, Array, Hyper

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

    def spread(self, lanes) -> Any:
        """A pytree of host arrays [num_lanes, ...] as sharded arrays [blocks, lanes a block, ...]."""

        def place(x):
            x = np.asarray(x)
            x = np.concatenate([x, np.repeat(x[:1], self.padding, axis=0)])
            return jax.device_put(x.reshape(*self.block_shape, *x.shape[1:]), self.sharding)

        return jax.tree.map(place, lanes)

    def gather(self, blocks) -> Any:
        """The inverse of `spread`: host arrays [num_lanes, ...], without padding."""
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[: self.num_lanes], blocks)


class Lanes(NamedTuple):
    """What tells lanes apart, arrays with one entry a lane.

    Attributes:
        seed: uint32, the number of the seed; the same seed under two hyperparameters sees the same randomness.
        hyper: a Hyper of arrays.
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
        make: hyper -> (algorithm, measure), called inside the traced function, so that every Hyper leaf may differ by lane.
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

    jit = partial(jax.jit, out_shardings=layout.sharding)

    @jit
    def init(lanes):
        return jax.lax.map(jax.vmap(init_lane), lanes)

    @jit
    def advance(lanes, state, first_step, last_step):
        def block(inputs):
            return jax.vmap(advance_lane, in_axes=(0, 0, None, None))(*inputs, first_step, last_step)

        return jax.lax.map(block, (lanes, state))

    return Programs(init, advance)
