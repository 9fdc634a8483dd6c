"""The only loop over outer steps: one scan, in which a lane that diverges or converges is frozen.

Seeds are a vmap of it, devices a sharding of it, checkpoints a host loop over chunks of the same compiled program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.types import Algorithm, Array, Key, Learned

RUNNING, CONVERGED, DIVERGED = 0, 1, 2
COUNTS = ("transitions", "queries", "labels", "gradient_evaluations")

Measure = Callable[[Key, Learned], dict[str, Array]]


class RunState(NamedTuple):
    """An algorithm's state, and how its run stands.

    Attributes:
        algorithm: the algorithm's own state, always finite.
        metrics: the last finite ones (NaN before the first step).
        status: [] int32, RUNNING, CONVERGED or DIVERGED; the last two are final.
        steps: [] int32, outer steps taken.
        calm: [] int32, steps in a row whose gradient norm was below the tolerance.
    """

    algorithm: Any
    metrics: dict[str, Array]
    status: Array
    steps: Array
    calm: Array


class Stopping(NamedTuple):
    """When a run has converged: `patience` outer steps in a row with ‖ĝ‖ < `tolerance` (0: never)."""

    tolerance: float = 0.0
    patience: int = 5


NEVER = Stopping()


def start(algorithm: Algorithm, key: Key, measure: Measure | None = None) -> RunState:
    """The state before the first step."""
    key_init, key_steps = jax.random.split(key)
    state = jax.tree.map(_strong, algorithm.init(key_init))
    spec = jax.eval_shape(lambda: _advance(algorithm, measure, key_steps, state)[1])
    blank = {
        name: jnp.full(x.shape, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.dtype)
        for name, x in spec.items()
    }
    zero = jnp.int32(0)
    return RunState(state, blank, jnp.int32(RUNNING), zero, zero)


def run(
    algorithm: Algorithm,
    key: Key,
    state: RunState,
    num_steps: int,
    measure: Measure | None = None,
    first_step: Array | int = 0,
    last_step: Array | int | None = None,
    stopping: Stopping = NEVER,
) -> tuple[RunState, dict[str, Array]]:
    """`num_steps` outer steps from `first_step`; those at or after `last_step` change nothing.

    The key of step t is fold_in(run key, t), so that a run cut into chunks, or resumed, visits the same states bit for
    bit. A step whose state or metrics are not finite is undone, and the run frozen at its last finite state.

    Args:
        algorithm: built inside the traced function that calls this.
        key: of the whole run; the same for `start` and every chunk.
        state: from `start`, or from the chunk before.
        num_steps: static, ≥ 1.
        measure: (key, learned) -> dict of scalars, recorded beside the step's info; None: nothing more.
        first_step: [] int32, steps done before.
        last_step: [] int32; None: no bound.
        stopping: convergence rule.

    Returns:
        The state after the last step, and metrics [num_steps]: info, measurements and `status`; of a frozen lane its last
        finite values, and zeros for what it costs.
    """
    _, key_steps = jax.random.split(key)
    last_step = jnp.int32(2**31 - 1) if last_step is None else last_step

    def body(state, step):
        algorithm_state, metrics = _advance(algorithm, measure, jax.random.fold_in(key_steps, step), state.algorithm)
        running = (state.status == RUNNING) & (step < last_step)
        finite = _all_finite((algorithm_state, metrics))
        took = running & finite
        calm = jnp.where(metrics.get("gradient_norm", jnp.inf) < stopping.tolerance, state.calm + 1, 0)
        status = jnp.where(calm >= stopping.patience, CONVERGED, RUNNING)
        new = RunState(algorithm_state, metrics, jnp.int32(status), state.steps + 1, jnp.int32(calm))
        kept = state._replace(status=jnp.where(running, DIVERGED, state.status).astype(jnp.int32))
        state = jax.tree.map(lambda x, y: jnp.where(took, x, y), new, kept)
        counts = {name: jnp.where(took, state.metrics[name], 0) for name in COUNTS}
        return state, {**state.metrics, **counts, "status": state.status}

    return jax.lax.scan(body, state, first_step + jnp.arange(num_steps, dtype=jnp.int32))


def _advance(algorithm: Algorithm, measure: Measure | None, key: Key, state):
    key_step, key_measure = jax.random.split(key)
    state, info = algorithm.step(key_step, state)
    measured = {} if measure is None else measure(key_measure, algorithm.params(state))
    return state, {name: _strong(x) for name, x in {**info, **measured}.items()}


def _strong(x) -> Array:
    """The same array with a strong type: weak types come back strong from a checkpoint, and would compile again."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


def _all_finite(tree) -> Array:
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(leaves))
