"""The groups of seeds of a run: each advances chunk by chunk through one compiled program, with its own checkpoints."""

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.checkpoint import Checkpoints, open_checkpoints, strange_checkpoints
from bilevel.lanes import Lanes, Layout, Programs, flatten, programs, unflatten
from bilevel.run import COUNTS, RUNNING, RunState
from bilevel.types import Learned
from experiments.files import RunFolderError, make_folder, read_json, write_json
from experiments.runs import memory
from experiments.runs.folder import group_name, groups_of, owner_of, refuse_another
from experiments.runs.interruption import Requests
from experiments.runs.metrics import check_metrics, strange_metrics, write_metrics
from experiments.runs.processes import agree, any_process
from experiments.runs.progress import Progress, duration, standing
from experiments.settings.job import Job

KEEP = 3  # checkpoints of each group


class Group(NamedTuple):
    """A range of seeds that runs together; more seeds later are another group."""

    first_seed: int
    num_seeds: int

    @property
    def name(self) -> str:
        """The name of its folders below metrics/ and checkpoints/."""
        return group_name(self.first_seed, self.num_seeds)


def all_groups(folder: Path, num_seeds: int = 0) -> list[Group]:
    """The groups of the folder's run, and one for seeds below `num_seeds` that are new. Raises RunFolderError where the
    folder has more seeds than `num_seeds`, which is not 0, or its groups cannot be told."""
    groups = [Group(*group) for group in groups_of(folder)]
    covered = sum(group.num_seeds for group in groups)
    if 0 < num_seeds < covered:
        raise RunFolderError(
            f"{folder} has {covered} seeds, {num_seeds} were asked for; required: as many as it has, or another --out"
        )
    return groups + ([Group(covered, num_seeds - covered)] if covered < num_seeds else [])


def strangers(folder: Path, groups: list[Group]) -> list[str]:
    """What lies among the metrics and the checkpoints of a run and is not of these groups, by its path in the folder."""
    names, found = {group.name for group in groups}, []
    for kind, within in (("metrics", strange_metrics), ("checkpoints", strange_checkpoints)):
        for entry in sorted((folder / kind).glob("*")):
            is_known = entry.name in names and entry.is_dir()
            found += [f"{kind}/{entry.name}/{name}" for name in within(entry)] if is_known else [f"{kind}/{entry.name}"]
    return found


def prepare(folder: Path, groups: list[list[int]], job: Job, say) -> list["Cohort"]:
    """The groups, each [first seed, number of seeds], with their programs. Raises OptionError where the last one is new and
    needs more memory than there is; nothing has been written then."""
    cohorts = [Cohort(job, Group(*group)) for group in groups]
    if not agree(lambda: (folder / "checkpoints" / cohorts[-1].group.name).exists()):
        say("compiling, and checking that the run fits into memory")
        cohorts[-1].check_memory(job.chunk(0))
    return cohorts


def run_cohorts(folder: Path, cohorts: list["Cohort"], requests: Requests, say) -> tuple[Learned, list[str]]:
    """Runs every group to the last step; what was learned, [hyper, seed, …], and notes. Raises Stopped,
    KeyboardInterrupt: a signal asked for it; everything computed until then is on the disk."""
    learned, notes = [], []
    with Progress(cohorts[0].job.config.run.steps * len(cohorts), say) as progress:
        for cohort in cohorts:
            group = cohort.group.name
            directory = agree(partial(_made, folder, f"checkpoints/{group}"))  # no link: files in it will be removed
            owner = agree(partial(owner_of, folder, group))
            with open_checkpoints(directory, KEEP, owner) as checkpoints:
                state, more = cohort.run(folder, checkpoints, requests, progress, say)
            notes += more
            learned.append(cohort.learned(state))
    join = partial(jax.tree.map, lambda *parts: np.concatenate(parts, axis=1))
    return join(*learned), notes


def _made(folder: Path, name: str) -> str:
    directory = make_folder(folder, name)
    if links := [str(entry) for entry in sorted(directory.iterdir()) if entry.name.isdigit() and entry.is_symlink()]:
        raise RunFolderError(
            f"{links[0]} is a link; as newer ones come old checkpoints are removed, but none through a link: replace it by "
            "a copy, or remove it"
        )
    return str(directory)


class Cohort:
    """One group of seeds with its programs, which compile when they are first needed."""

    def __init__(self, job: Job, group: Group):
        points, dtype = job.points, jnp.result_type(float)
        values = {name: np.array([point[name] for point in points], dtype) for name in points[0]}
        hyper = {name: np.repeat(x, group.num_seeds) for name, x in values.items()}
        seeds = np.tile(np.arange(group.num_seeds, dtype=np.uint32) + group.first_seed, len(points))
        self.job, self.group, self.num_points = job, group, len(points)
        self.layout = Layout(len(seeds), job.config.run.width, job.devices)
        self.lanes = self.layout.spread(Lanes(seeds, hyper))
        self.seconds = {"compile_seconds": 0.0, "run_seconds": 0.0}
        self.init = self.programs(1).init  # lanes -> their first states; one function, so that it is traced once
        self.compiled: dict[int, jax.stages.Compiled] = {}

    def programs(self, chunk: int) -> Programs:
        """The programs for chunks of that length."""
        return programs(self.job.make, self.job.config.run.seed, chunk, self.layout, self.job.stopping)

    def state_spec(self) -> RunState:
        """Shapes, types and shardings of the state, [blocks, lanes a block, …]."""
        spec = jax.eval_shape(self.init, self.lanes)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.layout.sharding), spec)

    def run(
        self, folder: Path, checkpoints: Checkpoints, requests: Requests, progress: Progress, say
    ) -> tuple[RunState, list[str]]:
        """Advances the group to the last step, from its newest whole checkpoint."""
        step, state, notes = self.resume(folder, checkpoints)
        for note in notes:
            say(f"note: {note}")
        progress.start(step)
        last_step, done = self.job.config.run.steps, step
        if step == last_step:
            return state, notes
        if self.job.chunk(step) not in self.compiled:
            say("compiling")
        advance = self.check_memory(self.job.chunk(step))
        begin = time.perf_counter()
        state = jax.block_until_ready(self.init(self.lanes)) if state is None else state
        self.seconds["compile_seconds"] += time.perf_counter() - begin
        say(f"compiled in {duration(self.seconds['compile_seconds'])}")
        say(f"keeps the newest {KEEP} checkpoints of each group of seeds, about {KEEP * _size(state) / 1e6:.1f} MB")
        progress.start()
        begin = time.perf_counter()
        while step < last_step:
            if any_process(bool(requests)):
                checkpoints.wait()
                requests.end(step, last_step)
            state, metrics = advance(self.lanes, state, jnp.int32(step), jnp.int32(last_step))
            metrics = self.layout.gather(metrics)
            first, step = step, min(step + self.job.chunk(done), last_step)
            metrics = {name: x[:, : step - first] for name, x in metrics.items()}
            if not np.any(metrics["status"][:, -1] == RUNNING):
                metrics, step = _rest(metrics, last_step - first), last_step
            agree(partial(self.write, folder, checkpoints.identity, first, metrics))
            # Lanes in their order, without padding: a checkpoint does not depend on the layout.
            checkpoints.save(step, self.flat(state))
            progress.update(step - first, standing(metrics, self.num_points), self.where(step))
        jax.block_until_ready(state)
        self.seconds["run_seconds"] += time.perf_counter() - begin
        checkpoints.wait()
        agree(lambda: refuse_another(folder, self.group.name, checkpoints.identity))
        agree(lambda: _add_seconds(folder, self.seconds))
        return state, notes

    def where(self, step: int) -> str:
        """Where the group is, for a line of a log."""
        alone = self.group.first_seed == 0 and self.group.num_seeds == self.job.config.run.seeds
        last = self.group.first_seed + self.group.num_seeds - 1
        return (
            f"{'' if alone else f'seeds {self.group.first_seed} to {last}: '}step {step} of {self.job.config.run.steps}"
        )

    def resume(self, folder: Path, checkpoints: Checkpoints) -> tuple[int, RunState | None, list[str]]:
        """As `restore`, from the newest whole checkpoint up to which the metrics are whole too."""
        step, state, notes = self.restore(checkpoints)
        if step:
            steps = [x for x in checkpoints.steps() if x <= step]
            usable, note = agree(lambda: check_metrics(folder, self.group.name, steps))
            notes += [note] if note else []
            if usable < step:
                step, state, more = self.restore(checkpoints, usable)
                notes += more
        return step, state, notes

    def write(self, folder: Path, owner: str, first_step: int, metrics: dict[str, np.ndarray]) -> None:
        """Writes the metrics of a chunk, as `write_metrics`, if the folder is still that of the owner."""
        refuse_another(folder, self.group.name, owner)
        write_metrics(folder, self.group.name, first_step, metrics)

    def restore(self, checkpoints: Checkpoints, last_step: int | None = None) -> tuple[int, RunState | None, list[str]]:
        """Step and state of the newest whole checkpoint, at most of `last_step` (0 and None: none), and notes on
        damaged ones."""
        if not checkpoints.steps():
            return 0, None, []
        lanes, sharding = self.layout.num_lanes, self.layout.flat_sharding if self.saves_spread else None
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((lanes, *x.shape[2:]), x.dtype, sharding=sharding), self.state_spec()
        )
        step, flat, notes = checkpoints.restore(template, last_step)
        blocks = unflatten(flat, self.layout) if self.saves_spread else self.layout.spread(flat)
        return step, blocks, notes

    def flat(self, state: RunState) -> RunState:
        """The state [num_lanes, …] as a checkpoint takes it."""
        if self.saves_spread:
            return flatten(state, self.layout)
        return jax.tree.map(jnp.asarray, self.layout.gather(state))

    @property
    def saves_spread(self) -> bool:
        """Whether a checkpoint is taken from all devices; otherwise from one. One on the CPU of one process: the digest
        of spread arrays is a collective of devices that share their threads with copies to the disk, and one of them
        may then wait for ever."""
        return jax.process_count() > 1 or self.layout.devices[0].platform != "cpu"

    def compile(self, chunk: int) -> tuple[jax.stages.Compiled, memory.Need]:
        """The compiled advance of that many steps, and the memory that it needs."""
        state, step = self.state_spec(), jax.ShapeDtypeStruct((), jnp.int32)
        if chunk not in self.compiled:
            begin = time.perf_counter()
            self.compiled[chunk] = self.programs(chunk).advance.lower(self.lanes, state, step, step).compile()
            self.seconds["compile_seconds"] += time.perf_counter() - begin
        parts = len(self.layout.devices)
        lanes = int(np.prod(self.layout.block_shape)) // parts
        return self.compiled[chunk], memory.need(self.compiled[chunk], lanes, _size(state) // parts)

    def check_memory(self, chunk: int) -> jax.stages.Compiled:
        """The compiled advance of that many steps. Raises OptionError where it needs more memory than there is."""
        advance, wanted = self.compile(chunk)
        devices, width = self.layout.devices, self.job.config.run.width
        room = memory.room(devices)
        lanes = (len(devices), self.num_points, width, self.group.first_seed)
        agree(lambda: memory.refuse_too_much(wanted, room, *lanes))
        return advance

    def learned(self, state: RunState) -> Learned:
        """Host arrays [hyper, seed, …]."""
        algorithm, _ = self.job.make(self.job.points[0])
        return self.of_lanes(jax.jit(jax.vmap(jax.vmap(algorithm.params)))(state.algorithm))

    def of_lanes(self, tree: Any) -> Any:
        """Host arrays [hyper, seed, …] of device arrays [blocks, lanes a block, …]."""
        shape = (self.num_points, self.group.num_seeds)
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), self.layout.gather(tree))


def _size(tree) -> int:
    """Bytes of arrays, or of their shapes."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _rest(metrics: dict[str, np.ndarray], num_steps: int) -> dict[str, np.ndarray]:
    """Metrics of `num_steps` steps in which no lane moves: the last column again, at no cost."""
    taken = next(iter(metrics.values())).shape[1]
    still = {name: np.repeat(x[:, -1:], num_steps - taken, axis=1) for name, x in metrics.items()}
    still |= {name: np.zeros_like(still[name]) for name in COUNTS}
    return {name: np.concatenate([x, still[name]], axis=1) for name, x in metrics.items()}


def _add_seconds(folder: Path, seconds: dict[str, float]) -> None:
    before = read_json(folder, "timing.json", dict[str, float], {})
    write_json(folder, "timing.json", {name: before.get(name, 0.0) + value for name, value in seconds.items()})
