"""Lanes in one program: a lane's bits depend on the width of its block alone, and the program is one loop over steps."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_same_bits
from jax.extend.core import ClosedJaxpr, Jaxpr

from bilevel import models
from bilevel.algorithms.alternating import AlternatingConfig, AlternatingHyper, alternating
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper, bilevel_rlhf
from bilevel.exact.bilevel import tabular_problem
from bilevel.gradients.critics import TDHyper, TDSizes, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.lanes import Lanes, Layout, programs
from bilevel.measure import exact_measure
from bilevel.run import NEVER, Stopping
from bilevel.types import Algorithm, Coefficients, Cost, Learned
from envs.tabular import garnet

ROOT = pathlib.Path(__file__).parents[2]
DEVICE = (jax.devices()[0],)
NUM_STEPS = 6


def toy(hyper: BilevelHyper):
    """A noisy iteration through matrix products, whose rounding depends on how they are batched."""
    mixing = np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32) / 3

    def step(key, state):
        state = jnp.tanh(mixing @ state @ mixing) + hyper.sigma * jax.random.uniform(key, (9, 9))
        return state, {"gradient_norm": jnp.linalg.norm(state), "labels": jnp.int32(2), **Cost(3, 1, 1).as_info()}

    def measure(key, learned):
        return {"true_return": jnp.sum(learned.reward) + jax.random.uniform(key)}

    return Algorithm(lambda key: jax.random.uniform(key, (9, 9)), step, lambda state: Learned(state, ())), measure


def small(name):
    """A real algorithm at its smallest: "sampled" or "exact" Algorithm 1, or "alternating" with exact gradients."""

    def make(hyper: BilevelHyper):
        mdp, coefficients = garnet(jax.random.key(0), 3, 2, 2), Coefficients()
        problem = tabular_problem(mdp, coefficients)
        measure = exact_measure(problem, mdp, coefficients)
        if name == "sampled":
            critic = td_critic(problem, models.table(3, 2), TDSizes(1, 8, 4), coefficients, TDHyper())
            sizes = SampleSizes(batch_size=4, rollout_length=5, segment_length=2)
            gradients = sampled_gradients(problem, critic, sizes, coefficients)
        else:
            gradients = exact_gradients(problem, mdp, 2, coefficients)
        if name == "alternating":
            own = AlternatingHyper(hyper.policy_step_size, hyper.reward_step_size)
            return alternating(problem, gradients, AlternatingConfig(num_policy_steps=2), own), measure
        return bilevel_rlhf(problem, gradients, BilevelConfig(num_policy_steps=2), hyper), measure

    return make


def lanes_of(seeds, **hyper) -> Lanes:
    """Lanes with the default hyperparameters, except for some that are numbers or one number a lane."""
    seeds = np.asarray(seeds, np.uint32)
    return Lanes(seeds, jax.tree.map(lambda x: np.broadcast_to(np.float32(x), seeds.shape), BilevelHyper(**hyper)))


def run_lanes(make, lanes, width=4, devices=DEVICE, chunk=NUM_STEPS, last_step=NUM_STEPS, stopping=NEVER):
    """State and metrics of each lane, host arrays [num_lanes, ...]."""
    layout = Layout(len(lanes.seed), width, devices)
    init, advance = programs(make, 11, chunk, layout, stopping)
    placed = layout.spread(lanes)
    return layout.gather(advance(placed, init(placed), jnp.int32(0), jnp.int32(last_step)))


def pick(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


# The layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_lanes", "width", "shape", "padding"),
    [(1, 1, (1, 1), 0), (1, 4, (1, 4), 3), (4, 4, (1, 4), 0), (5, 4, (2, 4), 3), (8, 4, (2, 4), 0), (9, 2, (5, 2), 1)],
)
def test_lanes_fill_blocks_and_the_last_one_is_padded_with_the_first_lane(num_lanes, width, shape, padding):
    layout = Layout(num_lanes, width, DEVICE)
    assert (layout.block_shape, layout.padding) == (shape, padding)
    lanes = {"x": np.arange(3 * num_lanes, dtype=np.float32).reshape(num_lanes, 3), "seed": np.arange(num_lanes)}
    blocks = layout.spread(lanes)
    assert blocks["x"].shape == (*shape, 3) and blocks["seed"].shape == shape
    np.testing.assert_array_equal(np.asarray(blocks["seed"]).ravel(), [*range(num_lanes)] + [0] * padding)
    gathered = layout.gather(blocks)
    for name, x in lanes.items():
        np.testing.assert_array_equal(gathered[name], x)


def test_blocks_are_as_wide_as_all_devices_together():
    assert Layout(65, 16, DEVICE * 4).block_shape == (2, 64)
    assert Layout(65, 16, DEVICE * 4).padding == 63


# Bits -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many():
    """64 lanes in blocks of four."""
    return run_lanes(toy, lanes_of(range(64)))


@pytest.mark.parametrize("num_lanes", [1, 8])
def test_a_lane_has_the_same_bits_alone_among_eight_and_among_sixty_four(many, num_lanes):
    assert_same_bits(run_lanes(toy, lanes_of(range(num_lanes))), pick(many, slice(num_lanes)))


def test_a_lane_has_the_same_bits_wherever_it_stands(many):
    order = np.random.default_rng(0).permutation(64)
    assert_same_bits(run_lanes(toy, lanes_of(order)), pick(many, order))


def test_equal_seeds_see_the_same_randomness_and_unequal_ones_do_not(many):
    state, _ = many
    assert len({x.tobytes() for x in state.algorithm}) == 64
    twice, _ = run_lanes(toy, lanes_of([5, 5, 6]))
    assert_same_bits(twice.algorithm[0], twice.algorithm[1])
    assert_same_bits(twice.algorithm, state.algorithm[[5, 5, 6]])


def test_another_base_seed_is_another_study(many):
    layout = Layout(4, 4, DEVICE)
    init, _ = programs(toy, 12, 1, layout, NEVER)
    others = layout.gather(init(layout.spread(lanes_of(range(4))))).algorithm
    assert not np.any(others == many[0].algorithm[:4])


def test_chunks_of_a_study_are_the_whole_of_it_bit_for_bit(many):
    layout = Layout(6, 4, DEVICE)
    lanes = layout.spread(lanes_of(range(6)))
    init, advance = programs(toy, 11, 4, layout, NEVER)
    state, parts = init(lanes), []
    for first in (0, 4):
        state, metrics = advance(lanes, state, jnp.int32(first), jnp.int32(NUM_STEPS))
        parts.append(layout.gather(metrics))
    joined = {name: np.concatenate([part[name] for part in parts], axis=1)[:, :NUM_STEPS] for name in parts[0]}
    assert_same_bits((layout.gather(state), joined), pick(many, slice(6)))


TWO_DEVICES = """
import sys, jax, numpy as np
from test_lanes import lanes_of, run_lanes, small, toy
devices = tuple(jax.devices())
assert len(devices) == 2
for name, make, numbers in (("toy", toy, (1, 2)), ("exact", small("alternating"), (2,))):
    for number in numbers:
        result = run_lanes(make, lanes_of(range(12)), devices=devices[:number])
        np.savez(f"{sys.argv[1]}/{name}{number}.npz", *map(np.asarray, jax.tree.leaves(result)))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The leaves that a process with two devices computed: (program, devices used) -> list of arrays."""
    folder = tmp_path_factory.mktemp("two_devices")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "bilevel")))
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", TWO_DEVICES, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    def leaves(name, number):
        with np.load(folder / f"{name}{number}.npz") as file:
            return [file[key] for key in file.files]

    return leaves


def test_one_device_and_two_give_the_same_bits_at_equal_width(many, elsewhere):
    here = jax.tree.leaves(pick(many, slice(12)))
    for number in (1, 2):
        assert_same_bits(here, elsewhere("toy", number))


def test_where_a_partitioned_program_is_optimised_otherwise_two_devices_agree_to_rounding(elsewhere):
    # XLA merges the linear solves of a partitioned program in another way: bits are promised within one layout alone.
    here = jax.tree.leaves(run_lanes(small("alternating"), lanes_of(range(12))))
    for x, y in zip(here, elsewhere("exact", 2), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


# Sweeps ---------------------------------------------------------------------------------------------------------------


def test_a_sweep_over_sigma_is_one_program_and_equals_separate_runs():
    chex.clear_trace_counter()
    make = chex.assert_max_traces(toy, n=2)  # to trace init and to trace advance, for any number of values
    sigmas = (0.02, 0.1, 0.5)
    layout = Layout(6, 4, DEVICE)
    init, advance = programs(make, 11, NUM_STEPS, layout, NEVER)
    for values in (sigmas, (0.3, 0.4, 0.6)):
        lanes = layout.spread(lanes_of([0, 1] * 3, sigma=np.repeat(values, 2)))
        swept = advance(lanes, init(lanes), jnp.int32(0), jnp.int32(NUM_STEPS))
        results = layout.gather(swept)
        for i, sigma in enumerate(values if values is sigmas else ()):
            assert_same_bits(run_lanes(toy, lanes_of([0, 1], sigma=sigma)), pick(results, slice(2 * i, 2 * i + 2)))
    assert (init._cache_size(), advance._cache_size()) == (1, 1)


# One program ----------------------------------------------------------------------------------------------------------


def inner_jaxprs(equation) -> Iterator[Jaxpr]:
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def equations(jaxpr: Jaxpr) -> Iterator:
    """Every equation at any depth."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)


def scans(jaxpr: Jaxpr) -> list:
    """The outermost scans, looked for through anything that is not one."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append(equation)
        else:
            found += [scan for inner in inner_jaxprs(equation) for scan in scans(inner)]
    return found


def programs_of(make, num_lanes=22, chunk=7, width=2, stopping=NEVER):
    """The programs and the specification of their inputs."""
    layout = Layout(num_lanes, width, DEVICE)
    ours = programs(make, 0, chunk, layout, stopping)
    lanes = layout.spread(lanes_of(range(num_lanes)))
    return ours, (lanes, jax.eval_shape(ours.init, lanes), jnp.int32(0), jnp.int32(chunk))


@pytest.fixture(scope="module", params=["sampled", "exact"])
def study(request):
    """Programs of eleven blocks and seven steps, and the specification of their inputs."""
    return programs_of(small(request.param), stopping=Stopping(0.1, 3))


def test_an_advance_is_one_scan_over_steps_inside_one_map_over_blocks(study):
    ours, inputs = study
    jaxpr = ours.advance.trace(*inputs).jaxpr.jaxpr
    (over_blocks,) = scans(jaxpr)
    assert over_blocks.params["length"] == 11
    (over_steps,) = scans(over_blocks.params["jaxpr"].jaxpr)
    assert over_steps.params["length"] == 7
    assert sum(e.primitive.name == "scan" and e.params["length"] in (7, 11) for e in equations(jaxpr)) == 2


def test_nothing_in_a_program_calls_the_host(study):
    ours, (lanes, *others) = study
    for jaxpr in (ours.init.trace(lanes).jaxpr, ours.advance.trace(lanes, *others).jaxpr):
        names = {equation.primitive.name for equation in equations(jaxpr.jaxpr)}
        assert len(names) > 20
        assert not {name for name in names if any(w in name for w in ("callback", "infeed", "outfeed", "print"))}


def test_a_hidden_callback_would_be_seen():
    def shout(x):
        jax.debug.print("{}", x)
        return x + 1

    jaxpr = jax.make_jaxpr(jax.jit(lambda x: jax.lax.map(shout, x)))(jnp.ones(2)).jaxpr
    assert any("callback" in e.primitive.name or "print" in e.primitive.name for e in equations(jaxpr))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_programs_lower_for_every_platform(study, platform):
    ours, (lanes, *others) = study
    for program, inputs in ((ours.init, (lanes,)), (ours.advance, (lanes, *others))):
        text = program.trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.while" in text


# Memory ---------------------------------------------------------------------------------------------------------------


def memory(make, **options):
    ours, inputs = programs_of(make, **options)
    return ours.advance.lower(*inputs).compile().memory_analysis()


def test_memory_does_not_grow_with_the_length_of_a_chunk_beyond_its_metrics():
    make = small("alternating")
    few, many = (memory(make, chunk=chunk) for chunk in (5, 50))
    metrics = many.output_size_in_bytes - few.output_size_in_bytes
    assert metrics > 0
    assert many.temp_size_in_bytes - few.temp_size_in_bytes <= metrics


def test_memory_for_working_does_not_grow_with_the_number_of_blocks():
    few, many = (memory(toy, num_lanes=lanes) for lanes in (8, 64))
    held = many.output_size_in_bytes - few.output_size_in_bytes
    assert held > 0
    assert many.temp_size_in_bytes - few.temp_size_in_bytes <= held
