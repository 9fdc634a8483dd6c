"""Measure fixed workloads at growing numbers of seeds, beside the same algorithm driven from Python step by step.

It takes some twenty minutes, prints a table, and writes bench.json and bench.png. Everything is measured in one run, so that
ratios hold on a machine that others share. Seconds are the least of several repeats; transitions, labels and gradient
evaluations are those that a run reports. What a run of your own would take is predicted by bilevel plan.
"""

import dataclasses
import itertools
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from tqdm import tqdm

from bilevel.run import COUNTS
from experiments.files import make_folder, write_figure, write_json
from experiments.output import Voice, usable_cores
from experiments.runs.cohort import Cohort, Group
from experiments.settings.config import configure
from experiments.settings.job import resolve
from experiments.settings.parsing import parse

SEEDS = (1, 16, 64, 256, 1024)
CHUNK = 2  # outer steps a call
GRID = {"batch_size": 32, "rollout_length": 20, "segment_length": 10, "num_policy_steps": 4}
GRID |= {"num_targets": 2, "num_transitions": 128, "num_chains": 32}
CART = {"batch_size": 32, "rollout_length": 100, "segment_length": 50, "num_policy_steps": 4, "critic": "monte_carlo"}
CART |= {"discount": 0.95, "kl_weight": 0.5, "sigma": 0.1, "num_pairs": 0, "reuse_labels": False, "reward": "mlp"}
CART |= {"policy_optimizer": "sgd", "reward_optimizer": "adam", "evaluation_rollouts": 8}


def _networks(width: int) -> dict[str, Any]:
    hidden = (width, width)
    return {"reward_hidden": hidden, "policy_hidden": hidden, "critic_hidden": hidden, "critic_step_size": 1 / width}


WORKLOADS = {
    "gridworld, networks 64-64": ("gridworld", GRID | _networks(64)),
    "gridworld, networks 128-128": ("gridworld", GRID | _networks(128)),
    "gridworld, tables": ("gridworld", GRID | {"policy": "table", "reward": "table", "critic_model": "table"}),
    "cartpole, networks 64-64": ("cartpole", CART | _networks(64)),
}


class Row(NamedTuple):
    """What was measured of a workload at one number of seeds."""

    workload: str  # its name in `WORKLOADS`
    seeds: int  # run beside each other, or one at a time where driven from Python
    driver: str  # "one program", or "Python" for a jitted outer step in a loop, one seed at a time
    compile_seconds: float  # of all programs, without a cache
    step_seconds: float  # of one outer step of all seeds
    per_second: dict[str, float]  # transitions, queries, labels and gradient evaluations a second
    bytes_a_seed: float  # memory that grows with the seeds
    fixed_bytes: float  # memory a device that does not
    flops: float  # matrix-product FLOP a second


def cohort_of(name: str, seeds: int, **options) -> Cohort:
    """The seeds of a workload, in blocks that are no wider than their number asks."""
    world, settings = WORKLOADS[name]
    width = min(16, -(-seeds // jax.device_count()))
    config = configure(world, "bilevel", **(settings | {"seeds": seeds, "width": width, "chunk": str(CHUNK)} | options))
    return Cohort(resolve(config), Group(0, seeds))


def first_steps(cohort: Cohort, chunk: int) -> tuple[Callable[[], Any], float]:
    """A call that takes the cohort's first steps, which was made once already, and the seconds of compilation before it."""
    begin = time.perf_counter()
    advance, _ = cohort.compile(chunk)
    state = jax.block_until_ready(cohort.init(cohort.lanes))
    seconds = time.perf_counter() - begin

    def run():
        return jax.block_until_ready(advance(cohort.lanes, state, jnp.int32(0), jnp.int32(2**30)))

    run()
    return run, seconds


def one_program(name: str, seeds: int, repeats: int) -> Row:
    """A workload as one program for all seeds."""
    cohort = cohort_of(name, seeds)
    run, compile_seconds = first_steps(cohort, CHUNK)
    seconds, (_, metrics), (_, wanted) = fastest(run, repeats) / CHUNK, run(), cohort.compile(CHUNK)
    counts = {name: float(np.sum(cohort.layout.gather(metrics[name])[:seeds])) / CHUNK for name in COUNTS}
    per_second = {name: count / seconds for name, count in counts.items()}
    speed = seeds * step_flops(cohort) / seconds
    return Row(name, seeds, "one program", compile_seconds, seconds, per_second, wanted.per_lane, wanted.fixed, speed)


def from_python(name: str, repeats: int) -> Row:
    """A workload as people write it: a jitted outer step, called in a loop that looks at what it returns, seed by seed."""
    cohort = cohort_of(name, 1)
    algorithm, _ = cohort.job.make(cohort.job.points[0])
    begin = time.perf_counter()
    state = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step)
    step(jax.random.key(0), state)
    compile_seconds = time.perf_counter() - begin
    logged = []

    def run():
        carried = state
        for i in range(CHUNK):
            carried, info = step(jax.random.fold_in(jax.random.key(0), i), carried)
            logged.append({name: float(x) for name, x in info.items()})

    run()
    seconds = fastest(run, repeats) / CHUNK
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    per_second = {name: logged[-1][name] / seconds for name in COUNTS}
    return Row(name, 1, "Python", compile_seconds, seconds, per_second, size, 0, step_flops(cohort) / seconds)


def collecting(name: str, repeats: int) -> float:
    """Transitions a second of a Python loop over jitted steps of a batch of environments, which learns nothing."""
    cohort = cohort_of(name, 1)
    job = cohort.job
    problem, options = job.problem(job.points[0]), job.config.options
    env, length, size = problem.env, options["rollout_length"], options["batch_size"]

    @jax.jit
    def act_and_step(key, states, params):
        def one(key, state):
            key_action, key_next = jax.random.split(key)
            action = problem.policy.apply(params, env.observe(state)).sample(seed=key_action)
            return env.step(key_next, state, action), action

        return jax.vmap(one)(jax.random.split(key, size), states)

    keys = jax.random.split(jax.random.key(0), length)
    params, first = problem.policy.init(keys[0]), jax.vmap(env.init)(jax.random.split(keys[0], size))

    def run():
        states = first
        for key in keys:
            states, _ = act_and_step(key, states, params)
        jax.block_until_ready(states)

    run()
    return size * length / fastest(run, repeats)


def fastest(function, repeats: int, budget: float = 10.0) -> float:
    """Least seconds of several calls; no further one once `budget` seconds have gone by."""
    seconds = []
    while len(seconds) < repeats and sum(seconds) < budget:
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def step_flops(cohort: Cohort) -> int:
    """Matrix-product FLOP of one lane's outer step."""
    algorithm, _ = cohort.job.make(cohort.job.points[0])
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    return matrix_flops(jax.make_jaxpr(algorithm.step)(jax.random.key(0), state).jaxpr)


def matrix_flops(jaxpr) -> int:
    """FLOP of all matrix products in a program, those in a scan once for each of its steps: 2 · outputs · contracted."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values()))]
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(matrix_flops(x) for x in inner if hasattr(x, "eqns"))
    return total


def peak_flops(repeats: int) -> float:
    """Float32 FLOP a second of products of 2048 × 2048 matrices, one on each device at a time."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
    shape, sharding = (jax.device_count(), 2048, 2048), NamedSharding(mesh, PartitionSpec("device"))
    ones = jax.jit(lambda: jnp.full(shape, 0.5, jnp.float32), out_shardings=sharding)()
    product = jax.jit(lambda x, y: jnp.einsum("nij,njk->nik", x, y), out_shardings=sharding)
    jax.block_until_ready(product(ones, ones))
    seconds = fastest(lambda: jax.block_until_ready(product(ones, ones)), repeats)
    return jax.device_count() * 2 * 2048**3 / seconds


def core_speedup(name: str, seeds: int, repeats: int) -> float | None:
    """Seconds of a workload on one core over those on all; None where threads cannot be bound to cores."""
    if not hasattr(os, "sched_setaffinity") or jax.devices()[0].platform != "cpu":
        return None
    cores, ratios = os.sched_getaffinity(0), []
    run, _ = first_steps(cohort_of(name, seeds), CHUNK)
    try:
        for _ in range(repeats):  # in pairs, since others use this machine too
            bind({min(cores)})
            alone = fastest(run, 1)
            bind(cores)
            ratios.append(alone / fastest(run, 1))
    finally:
        bind(cores)
    return float(np.median(ratios))


def bind(cores: set[int]) -> None:
    """Binds every thread of this process to the given cores."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(task.name), cores)


def bench(
    seeds: tuple[int, ...] = SEEDS, names: tuple[str, ...] = tuple(WORKLOADS), repeats: int = 3, say=lambda line: None
) -> dict:
    """Everything, as JSON values; `say` hears of each row as it is measured."""
    rows = []
    with tqdm(total=len(names) * (len(seeds) + 1), unit="workload", disable=None) as bar:
        for name, number in itertools.product(names, (0, *seeds)):
            row = one_program(name, number, repeats) if number else from_python(name, repeats)
            rows.append(row)
            say(f"{row.workload}, {row.seeds} seeds, {row.driver}: {1e3 * row.step_seconds:.1f} ms an outer step")
            bar.update()
    widest = [x for x in seeds if x <= 64][-1]
    return {
        "machine": f"{platform.machine()}, {usable_cores()} cores, {jax.device_count()} "
        f"{jax.devices()[0].device_kind} device(s), jax {jax.__version__}",
        "settings": {name: {"world": WORKLOADS[name][0]} | WORKLOADS[name][1] for name in names},
        "peak_flops": peak_flops(repeats),
        "collecting": {name: collecting(name, repeats) for name in names},
        "core_speedup": {name: core_speedup(name, widest, repeats) for name in names},
        "rows": [row._asdict() for row in rows],
    }


def table(result: dict) -> str:
    """The rows, and the ratios that matter."""
    lines = [
        f"{'workload':28s}{'driver':>12s}{'seeds':>6s}{'compile':>9s}{'step':>10s}{'transitions':>13s}{'labels':>9s}"
        f"{'gradients':>11s}{'a seed':>9s}{'of peak':>9s}{'over Python':>12s}",
        f"{'':28s}{'':12s}{'':6s}{'s':>9s}{'ms':>10s}{'million/s':>13s}{'1000/s':>9s}{'1000/s':>11s}{'kB':>9s}{'%':>9s}"
        f"{'times':>12s}",
    ]
    python = {row["workload"]: row for row in result["rows"] if row["driver"] == "Python"}
    for row in result["rows"]:
        rate = row["per_second"]
        ratio = rate["transitions"] / python[row["workload"]]["per_second"]["transitions"]
        lines.append(
            f"{row['workload']:28s}{row['driver']:>12s}{row['seeds']:6d}{row['compile_seconds']:9.1f}"
            f"{1e3 * row['step_seconds']:10.2f}{rate['transitions'] / 1e6:13.2f}{rate['labels'] / 1e3:9.1f}"
            f"{rate['gradient_evaluations'] / 1e3:11.1f}{row['bytes_a_seed'] / 1e3:9.1f}"
            f"{100 * row['flops'] / result['peak_flops']:9.1f}{ratio:12.1f}"
        )
    lines.append(f"float32 matrix products of 2048³: {result['peak_flops'] / 1e9:.0f} GFLOP/s; {result['machine']}")
    for name, rate in result["collecting"].items():
        ratio = result["core_speedup"][name]
        cores = "" if ratio is None else f"; all cores are {ratio:.2f} times as fast as one"
        lines.append(
            f"{name}: a Python loop over environment steps that only collects does {rate / 1e6:.3f} million/s{cores}"
        )
    return "\n".join(lines)


def draw(result: dict) -> Figure:
    """Transitions a second, and what a seed costs, against the number of seeds."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    rate, cost = figure.subplots(1, 2)
    for name, color in zip(result["settings"], ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False):
        rows = [row for row in result["rows"] if row["workload"] == name and row["driver"] == "one program"]
        python = next(row for row in result["rows"] if row["workload"] == name and row["driver"] == "Python")
        seeds = [row["seeds"] for row in rows]
        rate.plot(seeds, [row["per_second"]["transitions"] for row in rows], "o-", color=color, label=name)
        rate.axhline(python["per_second"]["transitions"], color=color, linestyle=":", linewidth=1)
        cost.plot(seeds, [1e3 * row["step_seconds"] / row["seeds"] for row in rows], "o-", color=color, label=name)
        cost.axhline(1e3 * python["step_seconds"], color=color, linestyle=":", linewidth=1)
    for axes, label in ((rate, "transitions a second"), (cost, "milliseconds a seed and outer step")):
        axes.set(xscale="log", yscale="log", xlabel="seeds", ylabel=label)
        axes.grid(alpha=0.3)
    rate.legend(fontsize=8, title="one program; dotted: driven from Python", title_fontsize=8)
    return figure


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Where results go."""

    out: str = "runs/bench"
    """Folder of the results."""


def main(arguments: Sequence[str], voice: Voice) -> int:
    """Measures the workloads, and writes `bench.png` and `bench.json`; the exit code."""
    required = "--out FOLDER alone; a run is planned by bilevel plan, with the options of train"
    folder = make_folder(parse(BenchOptions(), arguments, "bench", __doc__, required).out)
    result = bench(say=voice.say)
    write_json(folder, "bench.json", result)
    write_figure(folder, "bench.png", draw(result), dpi=120)
    voice.say(table(result))
    voice.say(f"figure: {folder / 'bench.png'}")
    voice.numbers(result)
    return 0
