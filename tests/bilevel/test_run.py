"""The loop over outer steps: cut anywhere it is the same to the last bit, and a lane that ends is frozen alone."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_same_bits

from bilevel.run import CONVERGED, COUNTS, DIVERGED, NEVER, RUNNING, RunState, Stopping, run, start
from bilevel.types import Algorithm, Cost, Learned, total_cost
from experiments.report import summary

NUM_STEPS = 12
NEVER_DIES = 10**6
COST = Cost(transitions=7, queries=3, gradient_evaluations=2)


class ToyState(NamedTuple):
    """A noisy linear iteration that knows how often it has moved."""

    x: jax.Array
    moves: jax.Array


def toy(dies_at=NEVER_DIES, norms=None, part="state") -> Algorithm:
    """An algorithm whose step number `dies_at` is not finite, and whose gradient norms are `norms`, where given.

    Args:
        dies_at: [] int32, may be traced.
        norms: [T] gradient norm of each step.
        part: what is not finite in that step: "state", "info" or "infinite", an infinity in the state.
    """
    mixing = jnp.array([[0.8, 0.3, -0.1], [-0.2, 0.9, 0.2], [0.1, -0.3, 0.7]])

    def init(key):
        return ToyState(jax.random.normal(key, (3,)), jnp.int32(0))

    def step(key, state):
        x = jnp.tanh(mixing @ state.x) + 0.1 * jax.random.normal(key, (3,))
        norm = jnp.linalg.norm(x) if norms is None else jnp.asarray(norms)[state.moves]
        dies = state.moves == dies_at
        bad = jnp.inf if part == "infinite" else jnp.nan
        x = jnp.where(dies & (part != "info"), bad, x)
        norm = jnp.where(dies & (part == "info"), bad, norm)
        info = {"gradient_norm": norm, "labels": jnp.int32(5), "moves": state.moves, **COST.as_info()}
        return ToyState(x, state.moves + 1), info

    return Algorithm(init, step, lambda state: Learned(state.x[0], state.x[1:]))


def measure(key, learned):
    """A measurement that uses its key."""
    return {"true_return": learned.reward + 0.01 * jax.random.normal(key), "entropy": jnp.sum(learned.policy**2)}


KEY = jax.random.key(3)
KEYS = jax.random.split(jax.random.key(4), 5)
ALIVE = jnp.full(len(KEYS), NEVER_DIES)


@jax.jit
def begin(key):
    return start(toy(), key, measure)


@partial(jax.jit, static_argnames="num_steps")
def compiled(key, state, num_steps, first_step, last_step, stopping, dies_at, norms):
    return run(toy(dies_at, norms), key, state, num_steps, measure, first_step, last_step, stopping)


def advance(key, state, num_steps, first_step=0, last_step=2**31 - 1, stopping=NEVER, dies_at=NEVER_DIES, norms=None):
    """One lane, from its start where `state` is None; one program for each length."""
    state = begin(key) if state is None else state
    stopping = Stopping(jnp.float32(stopping.tolerance), jnp.int32(stopping.patience))
    first_step, last_step, dies_at = (jnp.int32(x) for x in (first_step, last_step, dies_at))
    return compiled(key, state, num_steps, first_step, last_step, stopping, dies_at, norms)


@partial(jax.jit, static_argnames="part")
def together(dies_at, part="state"):
    """The lanes of `KEYS` side by side, each with its own end; what they were before, after, and their metrics."""

    def lane(key, dies_at):
        algorithm = toy(dies_at, part=part)
        before = start(algorithm, key, measure)
        return before, *run(algorithm, key, before, NUM_STEPS, measure)

    return jax.vmap(lane)(KEYS, dies_at)


def join(parts):
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *parts)


@pytest.fixture(scope="module")
def whole():
    """State and metrics of one run of `NUM_STEPS` steps."""
    return advance(KEY, None, NUM_STEPS)


# The loop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [(1, 11), (5, 7), (4, 4, 4), (1,) * 12, (11, 1), (3, 1, 8)])
def test_a_run_in_chunks_is_the_whole_run_bit_for_bit(whole, cut):
    state, parts, done = None, [], 0
    for length in cut:
        state, metrics = advance(KEY, state, length, done)
        parts.append(metrics)
        done += length
    assert_same_bits((state, join(parts)), whole)


def test_steps_at_and_after_the_last_one_change_nothing(whole):
    state, metrics = advance(KEY, None, NUM_STEPS, last_step=8)
    shorter, first_metrics = advance(KEY, None, 8)
    assert_same_bits(state, shorter)
    assert_same_bits({name: x[:8] for name, x in metrics.items()}, first_metrics)
    for name, x in metrics.items():
        np.testing.assert_array_equal(x[8:], 0 if name in COUNTS else x[7])
    assert (int(state.steps), int(state.status)) == (8, RUNNING)
    # The masked rest of a chunk may be run later, as the start of the next one.
    resumed = advance(KEY, state, 4, 8)
    assert_same_bits(resumed[0], whole[0])
    assert_same_bits(resumed[1], {name: x[8:] for name, x in whole[1].items()})


def test_the_scan_is_a_python_loop_over_steps_with_keys_folded_from_their_numbers(whole):
    algorithm = toy()
    key_init, key_steps = jax.random.split(KEY)
    state, rows = algorithm.init(key_init), []
    for t in range(NUM_STEPS):
        key_step, key_measure = jax.random.split(jax.random.fold_in(key_steps, t))
        state, info = algorithm.step(key_step, state)
        rows.append(info | measure(key_measure, algorithm.params(state)) | {"status": jnp.int32(RUNNING)})
    final, metrics = whole
    for x, y in zip(final.algorithm, state, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
    assert metrics.keys() == rows[0].keys()
    for name, x in metrics.items():
        np.testing.assert_allclose(x, np.stack([row[name] for row in rows]), rtol=1e-5)


def test_before_the_first_step_nothing_is_known():
    state = begin(KEY)
    assert (int(state.status), int(state.steps), int(state.calm)) == (RUNNING, 0, 0)
    for name, x in state.metrics.items():
        assert x.shape == () and (np.isnan(x) if x.dtype == jnp.float32 else x == 0), name


# Divergence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["state", "infinite", "info"])
@pytest.mark.parametrize("death", [0, 1, 7, NUM_STEPS - 1])
def test_a_lane_that_stops_being_finite_is_frozen_there_and_its_neighbours_never_notice(death, part):
    sick = 2
    before, state, metrics = together(ALIVE.at[sick].set(death), part)
    _, healthy, healthy_metrics = together(ALIVE, part)  # the same program, in which nothing dies
    others = np.delete(np.arange(len(KEYS)), sick)
    of_others = partial(jax.tree.map, lambda x: x[others])
    assert_same_bits(of_others((state, metrics)), of_others((healthy, healthy_metrics)))
    np.testing.assert_array_equal(state.status, np.where(np.arange(len(KEYS)) == sick, DIVERGED, RUNNING))

    assert int(state.steps[sick]) == death
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.algorithm))
    np.testing.assert_array_equal(metrics["status"][sick], [RUNNING] * death + [DIVERGED] * (NUM_STEPS - death))
    for name, x in metrics.items():
        np.testing.assert_array_equal(x[sick, :death], healthy_metrics[name][sick, :death])
        last = x[sick, death - 1] if death else before.metrics.get(name, [0] * 5)[sick]
        if name in COUNTS:
            np.testing.assert_array_equal(x[sick, death:], 0)
        elif name != "status":
            np.testing.assert_array_equal(x[sick, death:], last)


def test_the_state_of_a_lane_that_died_is_the_one_before_its_last_step():
    dead, _ = advance(KEY, None, NUM_STEPS, dies_at=7)
    finite, _ = advance(KEY, None, 7)
    assert_same_bits(dead._replace(status=finite.status), finite)


def test_a_lane_that_dies_in_its_first_step_keeps_its_start_and_costs_nothing():
    before = begin(KEY)
    state, metrics = advance(KEY, None, NUM_STEPS, dies_at=0)
    assert_same_bits(state, before._replace(status=jnp.int32(DIVERGED)))
    assert np.all(np.isnan(metrics["true_return"])) and np.all(np.isnan(metrics["gradient_norm"]))
    assert all(np.all(metrics[name] == 0) for name in COUNTS)


def test_a_dead_lane_stays_dead_in_the_next_chunk():
    dead, _ = advance(KEY, None, 4, dies_at=2)
    later, metrics = advance(KEY, dead, 8, 4)  # this step would have been finite
    assert_same_bits(later, dead)
    assert np.all(metrics["status"] == DIVERGED) and not np.any(metrics["transitions"])


def test_a_measurement_that_is_not_finite_freezes_too():
    def broken(key, learned):
        return {"true_return": jnp.log(-1.0 - learned.reward**2)}

    @jax.jit
    def lane():
        return run(toy(), KEY, start(toy(), KEY, broken), 3, broken)

    state, metrics = lane()
    assert (int(state.status), int(state.steps)) == (DIVERGED, 0)
    assert np.all(np.isnan(metrics["true_return"]))


# Convergence ----------------------------------------------------------------------------------------------------------

# Two calm steps, one that is not, then calm for good from the fourth step on.
NORMS = jnp.array([0.01, 0.01, 1.0] + [0.01] * (NUM_STEPS - 3))


@pytest.mark.parametrize(("patience", "steps"), [(1, 1), (2, 2), (3, 6), (5, 8), (9, 12)])
def test_a_lane_has_converged_after_as_many_calm_steps_in_a_row_and_not_before(patience, steps):
    stopping = Stopping(0.1, patience)
    state, metrics = advance(KEY, None, NUM_STEPS, stopping=stopping, norms=NORMS)
    assert (int(state.status), int(state.steps), int(state.calm)) == (CONVERGED, steps, patience)
    expected = [RUNNING] * (steps - 1) + [CONVERGED] * (NUM_STEPS - steps + 1)
    np.testing.assert_array_equal(metrics["status"], expected)
    np.testing.assert_array_equal(metrics["transitions"], [7] * steps + [0] * (NUM_STEPS - steps))
    np.testing.assert_array_equal(metrics["labels"], [5] * steps + [0] * (NUM_STEPS - steps))
    np.testing.assert_array_equal(metrics["true_return"][steps - 1 :], metrics["true_return"][steps - 1])
    stopped, _ = advance(KEY, None, NUM_STEPS, last_step=steps, norms=NORMS)
    assert_same_bits(state.algorithm, stopped.algorithm)


def test_patience_goes_on_across_chunks():
    stopping, norms = Stopping(0.1, 3), NORMS
    whole, metrics = advance(KEY, None, NUM_STEPS, stopping=stopping, norms=norms)
    first, early = advance(KEY, None, 4, stopping=stopping, norms=norms)
    second, late = advance(KEY, first, 8, 4, stopping=stopping, norms=norms)
    assert_same_bits((second, join([early, late])), (whole, metrics))


def test_a_norm_at_the_tolerance_is_not_below_it_and_a_tolerance_of_zero_never_stops():
    for tolerance, norm in ((0.5, 0.5), (0.0, 0.0)):
        norms = jnp.full(NUM_STEPS, norm)
        state, _ = advance(KEY, None, NUM_STEPS, stopping=Stopping(tolerance, 1), norms=norms)
        assert (int(state.status), int(state.calm)) == (RUNNING, 0)


# Types and tracing ----------------------------------------------------------------------------------------------------


def weak() -> Algorithm:
    """An algorithm written with Python numbers, so that its arrays are weakly typed."""

    def step(key, state):
        info = {"gradient_norm": jnp.abs(jnp.asarray(2.0)), "labels": jnp.int32(0), **Cost().as_info()}
        return {"x": 0.5 * state["x"], "n": state["n"] + 1}, info

    return Algorithm(lambda key: {"x": jnp.asarray(1.0), "n": jnp.asarray(0)}, step, lambda state: Learned((), ()))


def test_no_type_is_weak_before_or_after_a_step():
    assert jax.typeof(weak().init(KEY)["x"]).weak_type
    state = start(weak(), KEY)
    moved, metrics = jax.jit(lambda: run(weak(), KEY, start(weak(), KEY), 3))()
    for tree in (state, moved, metrics):
        assert not any(jax.typeof(x).weak_type for x in jax.tree.leaves(tree))
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)


@pytest.mark.parametrize("algorithm", [toy(), weak()], ids=["strong", "weak"])
def test_a_step_is_traced_once_for_all_chunks(algorithm):
    chex.clear_trace_counter()
    counted = algorithm._replace(step=chex.assert_max_traces(algorithm.step, n=1))
    state = start(algorithm, KEY)
    chunk = jax.jit(lambda state, first, last: run(counted, KEY, state, 2, None, first, last))
    for first in (0, 2, 4):
        state, _ = chunk(state, jnp.int32(first), jnp.int32(5))
    assert isinstance(state, RunState) and int(state.steps) == 5


# Costs ----------------------------------------------------------------------------------------------------------------


def test_costs_add_up_in_python_integers():
    total = total_cost((2, Cost(10, 3, 1)), (1, Cost(1, 0, 5)))
    assert total == Cost(21, 6, 7)
    info = total.as_info()
    assert {name: (int(x), x.dtype) for name, x in info.items()} == {
        "transitions": (21, jnp.int32),
        "queries": (6, jnp.int32),
        "gradient_evaluations": (7, jnp.int32),
    }


@pytest.mark.parametrize("field", Cost._fields)
def test_a_step_whose_cost_an_int32_cannot_hold_is_refused(field):
    most = 2**31 - 1
    assert getattr(total_cost((most, Cost(**{field: 1}))), field) == most
    assert int(total_cost((most, Cost(**{field: 1}))).as_info()[field]) == most
    with pytest.raises(ValueError, match=f"one outer step would take 2147483648 {field}; required: below"):
        total_cost((2**16, Cost(**{field: 2**15})))


def test_a_report_that_needs_no_jax_counts_and_marks_what_a_run_does():
    assert summary.COUNTS == COUNTS
    assert (summary.RUNNING, summary.CONVERGED, summary.DIVERGED) == (RUNNING, CONVERGED, DIVERGED)
