"""Predict a run before it is launched: memory a device from its compiled program, time from a short run.

bilevel plan --world cartpole --seeds 4096 --target cuda --target-devices 8
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.ranges import MOST, Range
from experiments.commands.arguments import parse_run
from experiments.commands.bench import fastest, first_steps, step_flops
from experiments.output import Voice
from experiments.runs import memory
from experiments.runs.cohort import Cohort, Group
from experiments.settings.config import Config
from experiments.settings.job import choose_devices, resolve
from experiments.settings.options import OptionError

TARGETS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}  # as the command line and as JAX call them


TargetDevices = Annotated[int, Range(f"a whole number, at least 1 and at most {MOST}, or 0", lambda x: 0 <= x <= MOST)]


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """For what the plan is made."""

    target: Literal["cpu", "cuda", "tpu"] = "cpu"
    """Kind of the devices, which need not be here: then memory is predicted, and no time."""
    target_devices: TargetDevices = 0
    """Devices that share the lanes, those of all processes together; 0: as many as are here."""


class Plan(NamedTuple):
    """The prediction."""

    lanes: int  # seeds × points of the sweep
    blocks: int  # that follow each other
    bytes_a_device: float  # while a chunk runs
    room: float | None  # bytes that a device has; None where that is not known or the target is not this machine
    compile_seconds: float  # here
    run_seconds: float | None  # of all steps; None where the target is not this machine
    flops: float  # matrix-product FLOP of the whole run


def plan(config: Config, target: str, num_devices: int) -> Plan:
    """The prediction for `num_devices` devices of a kind, from one block of lanes on the devices that are here. Memory
    on another kind of device is that of the program compiled here: exact for states and metrics, an estimate for
    temporaries. Raises OptionError if the program cannot be lowered for the target."""
    job, run_options = resolve(config), config.run
    lanes, width = len(job.points) * run_options.seeds, run_options.width
    some = max(min(run_options.seeds, width * len(job.devices) // len(job.points)), 1)
    cohort = Cohort(job, Group(0, some))
    begin = time.perf_counter()
    _, wanted = cohort.compile(job.chunk(0))
    jax.block_until_ready(cohort.init(cohort.lanes))
    compile_seconds = time.perf_counter() - begin
    chunk = min(job.chunk(0), 10)  # enough for its time
    lower_for(cohort, chunk, target)
    blocks = -(-lanes // (width * num_devices))
    seconds = room = None
    if jax.devices()[0].platform == TARGETS[target]:
        run, _ = first_steps(cohort, chunk)
        seconds = fastest(run, 2) / chunk / cohort.layout.block_shape[0] * blocks * run_options.steps
        room = memory.host_memory() / num_devices if target == "cpu" else memory.room(job.devices)
        room = room if room < math.inf else None
    total = wanted._replace(num_lanes=blocks * width).total
    return Plan(lanes, blocks, total, room, compile_seconds, seconds, lanes * run_options.steps * step_flops(cohort))


def lower_for(cohort: Cohort, chunk: int, target: str) -> None:
    """Lowers the program for the target, which need not be at hand."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    traced = cohort.programs(chunk).advance.trace(cohort.lanes, cohort.state_spec(), step, step)
    try:
        traced.lower(lowering_platforms=(target,))
    except Exception as error:  # which one, depends on what the target lacks
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"--target {target} cannot run this ({reason}); required: operations that it knows"
        ) from error


def describe(config: Config, target: str, num_devices: int, made: Plan) -> str:
    """The plan in words."""
    run, task = config.run, f"{config.algorithm_name} on {config.world_name}"
    room = f", which has {made.room / 1e6:,.0f} MB" if made.room is not None else ""
    lines = [
        f"{task}: {made.lanes} lanes, {run.steps} outer steps, on {num_devices} {target} device(s): "
        f"{made.blocks} block(s) of {run.width} lanes a device",
        f"memory: {made.bytes_a_device / 1e6:,.1f} MB a device{room}",
        f"compile: {made.compile_seconds:.0f} s here, without a cache",
    ]
    if made.run_seconds is None:
        lines.append(
            f"time: not predicted, since no {target} device is here; {made.flops:.2e} FLOP of matrix products "
            f"({made.flops / num_devices / 1e12:,.0f} s if each device did 1 TFLOP/s)"
        )
    else:
        lines.append(f"time: {made.run_seconds:,.0f} s if {num_devices} device(s) are as fast as those here")
    if made.room is not None and made.bytes_a_device > made.room:
        lines.append("this is more memory than there is: it would be refused; ask for fewer seeds or a smaller --width")
    return "\n".join(lines)


def main(arguments: Sequence[str], voice: Voice) -> int:
    """Predicts what the run that the arguments ask for would take; the exit code."""
    config, options = parse_run(arguments, "plan", __doc__, target=PlanOptions)
    target, count = options.target, options.target_devices or len(choose_devices(config))
    made = plan(config, target, count)
    voice.say(describe(config, target, count, made))
    voice.numbers({"target": target, "devices": count, **made._asdict()})
    return 0
