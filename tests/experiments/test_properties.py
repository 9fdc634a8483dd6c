"""Properties over drawn values: configurations, cuts into chunks, finite MDPs, digests and metrics files.

Values are drawn, shapes are not, so that nothing compiles once an example.
"""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bilevel import exact
from bilevel.checkpoint import digest
from bilevel.run import run, start
from bilevel.types import Algorithm, Cost, Learned
from envs.base import MDP
from envs.tabular import check_mdp
from experiments import configure
from experiments.files import RunFolderError
from experiments.runs.folder import config_hash
from experiments.runs.metrics import read_metrics, write_metrics
from experiments.settings.config import as_dict, from_dict
from experiments.settings.options import OptionError
from experiments.settings.worlds import FileOptions

fixed = partial(settings, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# Configurations -------------------------------------------------------------------------------------------------------

ABOVE_ZERO = st.floats(1e-30, 1e30)
RANGES = {
    "seed": st.integers(0, 2**32 - 1),
    "seeds": st.integers(1, 2**20),
    "steps": st.integers(1, 2**31 - 1),
    "chunk": st.one_of(st.just("all"), st.integers(1, 10**9).map(str)),
    "width": st.integers(1, 2**20),
    "precision": st.sampled_from(["float32", "float64"]),
    "gradient_tolerance": st.floats(0, 1e30),
    "skip_below": st.one_of(st.just(-math.inf), st.floats(-1e30, 1e30)),
    "tie_within": st.one_of(st.just(-math.inf), st.floats(-1e30, 1e30)),
    "reward_bound": st.one_of(st.just(math.inf), ABOVE_ZERO),
    "error_rate": st.floats(0, 0.5),
    "myopia": st.floats(1e-6, 1),
    "reward_hidden": st.lists(st.integers(1, 2**16), max_size=4).map(tuple),
    "policy_hidden": st.lists(st.integers(1, 2**16), max_size=4).map(tuple),
    "average_critic": st.booleans(),
    "reuse_labels": st.booleans(),
    "estimator": st.sampled_from(["weighted", "coupled", "independent"]),
    "reward_optimizer": st.sampled_from(["adam", "sgd:momentum=0.9", "rmsprop:decay=0.5"]),
}
SWEPT = {
    "discount": st.floats(0.001, 0.999),
    "kl_weight": st.floats(0, 1e30),
    "rationality": ABOVE_ZERO,
    "policy_step_size": ABOVE_ZERO,
    "sigma": ABOVE_ZERO,
    "critic_radius": st.one_of(st.just(math.inf), ABOVE_ZERO),
}
RANGES |= {
    name: st.lists(values, min_size=1, max_size=3, unique_by=np.float32).map(tuple) for name, values in SWEPT.items()
}


@fixed(max_examples=200)
@given(st.fixed_dictionaries({}, optional=RANGES), st.sampled_from(["garnet", "gridworld", "cartpole", "gymnax"]))
@example({"critic_radius": (math.inf, 1.0), "skip_below": -math.inf, "reward_hidden": (), "seed": 2**32 - 1}, "garnet")
@example({"reward_bound": math.inf, "tie_within": -0.0, "gradient_tolerance": 5e-324}, "cartpole")
def test_a_configuration_survives_its_json(options, world):
    try:
        config = configure(world, "bilevel", **options)
    except OptionError as error:  # two values of a sweep may be one in float32, and a world's own critic may read none
        assert any(words in str(error) for words in ("repeats a value", "float32", "has no effect"))
        assume(False)
    read = from_dict(json.loads(json.dumps(as_dict(config), allow_nan=False)))
    assert read == config
    assert {name: read.options[name] for name in options} == options
    assert as_dict(read) == as_dict(config) and config_hash(as_dict(read)) == config_hash(as_dict(config))


# Chunks ---------------------------------------------------------------------------------------------------------------

LENGTH, CHUNKS = 24, (1, 2, 3, 5, 8, 24)
LAST_STEPS = st.integers(1, LENGTH)


def walk(dies_at) -> Algorithm:
    """A noisy linear iteration whose step `dies_at` is not finite."""

    def step(key, state):
        x, moves = state
        x = jnp.tanh(jnp.array([[0.8, -0.3], [0.4, 0.9]]) @ x) + 0.1 * jax.random.normal(key, (2,))
        x = jnp.where(moves == dies_at, jnp.nan, x)
        info = {"gradient_norm": jnp.linalg.norm(x), "labels": jnp.int32(5), **Cost(7, 3, 2).as_info()}
        return (x, moves + 1), info

    return Algorithm(
        lambda key: (jax.random.normal(key, (2,)), jnp.int32(0)), step, lambda s: Learned(s[0][0], s[0][1:])
    )


@partial(jax.jit, static_argnames="chunk")
def advance(key, state, first_step, last_step, dies_at, chunk):
    return run(walk(dies_at), key, state, chunk, None, first_step, last_step)


@jax.jit
def begin(key):
    return start(walk(10**6), key)


def pieces(seed, dies_at, cuts):
    """The state and the metrics after chunks of those (length of the program, steps that count)."""
    key = jax.random.key(jnp.uint32(seed))
    state, step, parts = begin(key), 0, []
    for chunk, counted in cuts:
        state, metrics = advance(
            key, state, jnp.int32(step), jnp.int32(step + counted), jnp.int32(dies_at), chunk=chunk
        )
        parts.append({name: np.asarray(x)[:counted] for name, x in metrics.items()})
        step += counted
    return state, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@st.composite
def cuts(draw):
    """Chunks that make `LENGTH` steps, each possibly longer than what counts of it."""
    left, found = LENGTH, []
    while left:
        chunk = draw(st.sampled_from(CHUNKS))
        found.append((chunk, draw(st.integers(1, min(chunk, left)))))
        left -= found[-1][1]
    return found


@fixed(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.one_of(st.just(10**6), st.integers(0, LENGTH - 1)), cuts())
@example(3, 5, [(1, 1)] * LENGTH)
def test_any_cut_into_chunks_is_the_whole_run_bit_for_bit(seed, dies_at, cut):
    ours, whole = pieces(seed, dies_at, cut), pieces(seed, dies_at, [(LENGTH, LENGTH)])
    assert jax.tree.structure(ours) == jax.tree.structure(whole)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape) and np.asarray(x).tobytes() == np.asarray(y).tobytes()


# Finite MDPs ----------------------------------------------------------------------------------------------------------

S, A = 3, 2
ODD = st.sampled_from([math.nan, math.inf, -math.inf, -1e-3, 1.1, 1e30, 1e-30, 5e-324, -0.0])
WEIGHTS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.0, 1.0, 1e-30, 1e-300]))


def rows(shape):
    """Probabilities, last axis normalised where that can be done."""

    def normalise(x):
        total = x.sum(axis=-1, keepdims=True)
        return np.where(total > 1e-200, x / np.maximum(total, 1e-200), np.eye(shape[-1])[0])

    return hnp.arrays(np.float64, shape, elements=WEIGHTS).map(normalise)


@st.composite
def mdps(draw):
    """An MDP of which up to two entries are odd."""
    rewards = st.one_of(st.floats(-10, 10), st.sampled_from([0.0, 1e-30, 1e6, -1e6, 1e30, -1e300]))
    mdp = MDP(draw(rows((S,))), draw(rows((S, A, S))), draw(hnp.arrays(np.float64, (S, A), elements=rewards)))
    for _ in range(draw(st.integers(0, 2))):
        array = mdp[draw(st.integers(0, 2))]
        array[draw(st.tuples(*(st.integers(0, n - 1) for n in array.shape)))] = draw(ODD)
    return mdp


@jax.jit
def oracles(mdp, discount, kl_weight):
    reference = jnp.full((S, A), 1 / A, mdp.reward.dtype)
    problem = exact.lower_level(mdp, mdp.reward, reference, discount, kl_weight)
    solution = exact.optimal_policy(problem)
    found = {"values": exact.state_values(problem, reference), "occupancy": exact.occupancy(problem, reference)}
    found |= {"return": exact.regularised_return(problem, reference), "best": exact.best_return(problem)}
    return found, solution


@fixed(max_examples=150)
@given(mdps(), st.sampled_from([0.0, 0.5, 0.9, 0.99]), st.sampled_from([0.05, 0.5, 5.0]))
def test_a_finite_mdp_is_refused_with_a_reason_or_has_finite_oracles(mdp, discount, kl_weight):
    try:
        check_mdp(mdp)
    except ValueError as error:
        assert "required: " in str(error) and len(str(error).splitlines()) == 1
        return
    with jax.enable_x64(True):
        found, (policy, residual) = jax.tree.map(np.asarray, oracles(mdp, discount, kl_weight))
    assert all(np.isfinite(x).all() for x in found.values()), found
    assert found["occupancy"].sum() == pytest.approx(1, abs=1e-3) and found["occupancy"].min() >= -1e-12
    scale = (1 + np.abs(mdp.reward).max() + kl_weight) / (1 - discount)
    assert np.abs(found["values"]).max() <= scale * (1 + 1e-3)
    assert found["return"] <= found["best"] + 1e-6 * scale
    if np.isnan(policy).any():  # what was not solved is flagged everywhere, and says by how much
        assert np.isnan(policy).all() and residual > 1e-10 * scale
    else:
        assert residual <= 1e-10 * scale
        np.testing.assert_allclose(policy.sum(axis=1), 1, atol=1e-9)
        assert policy.min() >= 0


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -1e-3, 1.1, 1e30])
@fixed(max_examples=20)
@given(rows((S,)), rows((S, A, S)), st.integers(0, S - 1), st.data())
def test_an_odd_probability_is_always_refused(odd, initial, transition, state, data):
    target = data.draw(st.sampled_from([initial, transition]))
    target[(state,) * target.ndim if target.ndim == 1 else (state, data.draw(st.integers(0, A - 1)), state)] = odd
    assume(not 0.9 < target.sum(axis=-1).min() <= target.sum(axis=-1).max() < 1.00001 or odd < 0 or odd != odd)
    with pytest.raises(ValueError, match="required: "):
        check_mdp(MDP(initial, transition, np.zeros((S, A))))


@fixed(max_examples=20)
@given(st.floats(1e39, 1e308), st.sampled_from([1, -1]))
def test_a_file_of_rewards_that_overflow_in_the_runs_precision_is_refused(tmp_path_factory, size, sign):
    path = tmp_path_factory.mktemp("world") / "mdp.npz"
    reward = np.zeros((S, A))
    reward[1, 1] = sign * size
    np.savez(path, initial=np.eye(S)[0], transition=np.full((S, A, S), 1 / S), reward=reward)
    with pytest.raises(OptionError, match="finite"):
        FileOptions(str(path)).build()


# Digests and files ----------------------------------------------------------------------------------------------------

WORDS = hnp.arrays(np.uint32, (3, 4), elements=st.integers(0, 2**32 - 1))


@fixed(max_examples=200)
@given(WORDS, st.integers(0, 11), st.integers(1, 2**32 - 1))
def test_the_digest_sees_any_change_of_one_word(words, place, change):
    other = words.copy()
    other.flat[place] ^= np.uint32(change)
    for kind in (np.uint32, np.float32, np.int32):
        assert int(digest(jnp.asarray(words.view(kind)))) != int(digest(jnp.asarray(other.view(kind))))


@fixed(max_examples=50)
@given(WORDS)
def test_the_digest_is_a_function_of_the_bits(words):
    numbers = words.view(np.float32)  # NaNs with any payload among them
    assert int(digest(jnp.asarray(numbers))) == int(digest(jnp.asarray(numbers.copy())))
    assert int(digest(jnp.asarray(numbers))) == int(digest(jnp.asarray(words)))


METRICS = {"true_return": np.float32, "labels": np.int32, "Φ": np.float64}
LANES, COLUMNS = 4, 3  # two points of a sweep, two seeds


@st.composite
def chunks(draw):
    """A few chunks of metrics with any bits in them."""
    return [
        {
            name: np.frombuffer(draw(st.binary(min_size=n, max_size=n)), kind).reshape(LANES, COLUMNS)
            for name, kind in METRICS.items()
            for n in [LANES * COLUMNS * np.dtype(kind).itemsize]
        }
        for _ in range(draw(st.integers(1, 3)))
    ]


@fixed(max_examples=50)
@given(parts=chunks(), repeated=st.integers(0, 2))
def test_metrics_come_back_bit_for_bit_whichever_chunk_was_written_again(tmp_path_factory, parts, repeated):
    folder = tmp_path_factory.mktemp("run")
    order = list(range(len(parts)))
    for i in order + order[min(repeated, len(parts) - 1) :]:  # a resumed run writes those again
        write_metrics(folder, "000000-000001", COLUMNS * i, parts[i])
    found, seeds = read_metrics(folder)
    assert list(seeds) == [0, 1] and found.keys() == METRICS.keys()
    for name, kind in METRICS.items():
        written = np.concatenate([part[name] for part in parts], axis=1).reshape(2, 2, -1)
        assert found[name].dtype == kind and found[name].tobytes() == written.tobytes()


@fixed(max_examples=50)
@given(parts=chunks(), data=st.data())
def test_a_damaged_byte_of_metrics_is_refused_or_changes_nothing(tmp_path_factory, parts, data):
    folder = tmp_path_factory.mktemp("run")
    write_metrics(folder, "000000-000001", 0, parts[0])
    path = folder / "metrics" / "000000-000001" / "00000000.npz"
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found, _ = read_metrics(folder)
    except RunFolderError as error:
        assert f"{path} is damaged" in str(error)
        return
    assert found.keys() == METRICS.keys()
    assert all(found[name].tobytes() == parts[0][name].tobytes() for name in METRICS)
