"""The driver of a run: opens its folder, resumes or starts, advances chunk by chunk, and reports."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from bilevel.checkpoint import Checkpoints, open_checkpoints
from bilevel.lanes import Lanes, Layout, Programs, programs
from bilevel.run import COUNTS, RUNNING, RunState, Stopping
from bilevel.types import Hyper, Learned
from experiments.build import Setup, baselines, build, tables
from experiments.config import Config, as_dict, from_dict, sweep
from experiments.metrics import load_run, write_metrics
from experiments.options import OptionError
from experiments.report import write_report
from experiments.run_folder import (
    RunFolderError,
    compare_manifests,
    group_name,
    make_manifest,
    open_run,
    read_json,
    run_name,
    write_json,
)
from experiments.summary import format_table, summarise

KEEP = 3  # checkpoints of each group
EXTENDABLE = ("steps", "seeds")  # a run may be asked for more of these
PLACEMENT = ("chunk", "devices")  # options that change where and when, not what is computed
LAYOUT_OPTION = "--allow-layout-change"


class Group(NamedTuple):
    """A range of seeds that runs together; more seeds later are another group."""

    first_seed: int
    num_seeds: int

    @property
    def name(self) -> str:
        """Of its folders."""
        return group_name(self.first_seed, self.num_seeds)


def train(
    config: Config,
    out: str | Path | None = None,
    allow_layout_change: bool = False,
    say: Callable[[str], None] = lambda line: None,
    command: str = "",
) -> Path:
    """Runs a configuration to its end, from wherever its folder stands; returns the folder.

    Interrupted at any moment, the same call resumes it, and its result is the same to the last bit.

    Args:
        config: from `experiments.config.configure`.
        out: the run's folder; None: `runs/<world>-<algorithm>-<hash of the configuration>`.
        allow_layout_change: resume on other devices, where bits may differ.
        say: takes the lines that a person should see.
        command: how the run was asked for, for the report.

    Raises:
        OptionError, RunFolderError, CheckpointError: one line each; nothing that was complete is lost.
    """
    with jax.enable_x64(config.precision == "float64"):
        setup = build(config)
        devices = choose_devices(config)
        name = run_name(config.world_name, config.algorithm_name, as_dict(config), EXTENDABLE + PLACEMENT)
        with open_run(Path("runs") / name if out is None else out) as folder:
            notes = admit(folder, config, devices, allow_layout_change)
            for note in notes:
                say(f"note: {note}")
            announce(config, folder, devices, say)
            learned, more = run_groups(folder, config, setup, devices, say)
            finish(folder, config, setup, learned, notes + more, command, say)
            return folder


def choose_devices(config: Config) -> tuple[jax.Device, ...]:
    """The devices that share the lanes."""
    devices = jax.devices()
    if config.devices > len(devices):
        raise OptionError(f"--devices is {config.devices}; this machine has {len(devices)}; ask for at most that many")
    return tuple(devices[: config.devices or None])


def admit(folder: Path, config: Config, devices, allow_layout_change: bool) -> list[str]:
    """Checks that the folder's run is this one, writes what it is, and returns what should be noted.

    Raises:
        RunFolderError: it is another run; the message lists what differs.
    """
    flat = {name: value for name, value in as_dict(config).items() if name not in PLACEMENT}
    manifest = make_manifest(flat, config.width, chunk_length(config, 0), config.precision)
    manifest["layout"]["num_devices"] = len(devices)
    notes: list[str] = []
    if (folder / "manifest.json").exists():
        old = read_json(folder, "manifest.json")
        changes = old.pop("layout_changes", [])
        refused, layout, notes = compare_manifests(old, manifest, EXTENDABLE)
        if refused:
            raise RunFolderError(
                f"{folder} holds another run: {'; '.join(refused)}; required: the same settings, or another --out"
            )
        if layout and not allow_layout_change:
            raise RunFolderError(
                f"{folder} was run on another layout: {'; '.join(layout)}; run it there, or pass {LAYOUT_OPTION} "
                "to go on here, where bits may differ"
            )
        changes += [layout] if layout else []
        manifest["layout_changes"] = changes
        notes += [f"the device layout changed ({'; '.join(change)}): bits may differ" for change in changes]
    elif (folder / "metrics").exists():
        raise RunFolderError(
            f"{folder} has metrics but no manifest.json; required: the manifest, to know what was run: restore it, or "
            "name another --out"
        )
    names, points = sweep(config)
    write_json(folder, "sweep.json", {"names": names, "values": [[point[n] for n in names] for point in points]})
    write_json(folder, "config.json", as_dict(config))
    write_json(folder, "manifest.json", manifest)
    return notes


def announce(config: Config, folder: Path, devices, say) -> None:
    """Says what is about to run."""
    names, points = sweep(config)
    swept = f" x {len(points)} settings of {', '.join(names)}" if names else ""
    layout = Layout(len(points) * config.seeds, config.width, devices)
    blocks, size = layout.block_shape
    say(f"{config.algorithm_name} on {config.world_name}: {config.seeds} seeds{swept}, {config.steps} outer steps")
    say(
        f"{blocks} block(s) of {size} lanes on {len(devices)} {devices[0].platform} device(s), {layout.padding} padding"
    )
    say(f"run folder: {folder}")


def chunk_length(config: Config, done: int) -> int:
    """Outer steps a call; with `all`, those that are left."""
    return max(config.steps - done, 1) if config.chunk == "all" else min(int(config.chunk), config.steps)


# The groups of seeds --------------------------------------------------------------------------------------------------


def groups_of(folder: Path, num_seeds: int) -> list[Group]:
    """The groups that the folder holds already, and one for the seeds that are new."""
    found = sorted(path.name for path in (folder / "checkpoints").glob("*-*"))
    ranges = [tuple(int(end) for end in name.split("-")) for name in found]
    groups = [Group(first, last - first + 1) for first, last in ranges]
    covered = max((last + 1 for _, last in ranges), default=0)
    return groups + ([Group(covered, num_seeds - covered)] if covered < num_seeds else [])


def run_groups(folder: Path, config: Config, setup: Setup, devices, say) -> tuple[Learned, list[str]]:
    """Runs every group to the last step; what was learned, [hyper, seed, …], and notes."""
    groups = groups_of(folder, config.seeds)
    learned, notes = [], []
    with tqdm(total=config.steps * len(groups), unit="step", disable=None, dynamic_ncols=True) as bar:
        for group in groups:
            study = Study(config, setup, group, devices)
            with open_checkpoints(folder / "checkpoints" / group.name, KEEP) as checkpoints:
                state, more = study.run(folder, checkpoints, bar, say)
            notes += more
            learned.append(study.learned(state))
    join = partial(jax.tree.map, lambda *parts: np.concatenate(parts, axis=1))
    return join(*learned), notes


class Study:
    """One group of seeds with its programs, which compile when they are first needed."""

    def __init__(self, config: Config, setup: Setup, group: Group, devices):
        _, points = sweep(config)
        dtype = jnp.result_type(float)
        hyper = Hyper(*(np.repeat(np.array([p[n] for p in points], dtype), group.num_seeds) for n in Hyper._fields))
        seeds = np.tile(np.arange(group.num_seeds, dtype=np.uint32) + group.first_seed, len(points))
        self.config, self.setup, self.group, self.num_points = config, setup, group, len(points)
        self.layout = Layout(len(seeds), config.width, devices)
        self.lanes = self.layout.spread(Lanes(seeds, hyper))
        self.seconds = {"compile_seconds": 0.0, "run_seconds": 0.0}

    def programs(self, chunk: int) -> Programs:
        """The programs for chunks of that length."""
        stopping = Stopping(self.config.gradient_tolerance, self.config.patience)
        return programs(self.setup.make, self.config.seed, chunk, self.layout, stopping)

    def run(self, folder: Path, checkpoints: Checkpoints, bar: tqdm, say) -> tuple[RunState, list[str]]:
        """Advances the group to the last step, from its newest whole checkpoint."""
        step, state, notes = self.restore(checkpoints)
        for note in notes:
            say(f"note: {note}")
        bar.update(step)
        last_step, done = self.config.steps, step
        if step == last_step:
            return state, notes
        advance, state = self.compile(chunk_length(self.config, step), state, bar)
        size = sum(x.nbytes for x in jax.tree.leaves(state))
        say(f"keeps the newest {KEEP} checkpoints of each group of seeds, about {KEEP * size / 1e6:.1f} MB")
        begin = time.perf_counter()
        while step < last_step:
            state, metrics = advance(self.lanes, state, jnp.int32(step), jnp.int32(last_step))
            metrics = self.layout.gather(metrics)
            first, step = step, min(step + chunk_length(self.config, done), last_step)
            metrics = {name: x[:, : step - first] for name, x in metrics.items()}
            alive = int(np.sum(metrics["status"][:, -1] == RUNNING))
            if alive == 0:
                metrics, step = _rest(metrics, last_step - first), last_step
            write_metrics(folder, self.group.name, first, metrics)
            # Lanes in their order, without padding: a checkpoint does not depend on the layout.
            checkpoints.save(step, jax.tree.map(jnp.asarray, self.layout.gather(state)))
            bar.set_postfix(alive=f"{alive}/{self.layout.num_lanes}", refresh=False)
            bar.update(step - first)
        jax.block_until_ready(state)
        self.seconds["run_seconds"] += time.perf_counter() - begin
        _add_seconds(folder, self.seconds)
        return state, notes

    def restore(self, checkpoints: Checkpoints) -> tuple[int, RunState | None, list[str]]:
        """The newest whole checkpoint's step and state (0 and None where there is none), and notes on damaged ones."""
        if not checkpoints.steps():
            return 0, None, []
        spec = jax.eval_shape(self.programs(1).init, self.lanes)
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.layout.num_lanes, *x.shape[2:]), x.dtype), spec)
        step, lanes, notes = checkpoints.restore(template)
        return step, self.layout.spread(lanes), notes

    def compile(self, chunk: int, state: RunState | None, bar: tqdm):
        """The compiled advance, and the state to start from."""
        begin = time.perf_counter()
        bar.set_postfix_str("compiling")
        ours = self.programs(chunk)
        if state is None:
            state = jax.block_until_ready(ours.init(self.lanes))
        advance = ours.advance.lower(self.lanes, state, jnp.int32(0), jnp.int32(0)).compile()
        self.seconds["compile_seconds"] += time.perf_counter() - begin
        return advance, state

    def learned(self, state: RunState) -> Learned:
        """Host arrays [hyper, seed, …]."""
        algorithm, _ = self.setup.make(Hyper())
        flat = self.layout.gather(jax.vmap(jax.vmap(algorithm.params))(state.algorithm))
        shape = (self.num_points, self.group.num_seeds)
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), flat)


def _rest(metrics: dict[str, np.ndarray], num_steps: int) -> dict[str, np.ndarray]:
    """Metrics of `num_steps` steps in which no lane moves: the last column again, at no cost."""
    ours = next(iter(metrics.values())).shape[1]
    still = {name: np.repeat(x[:, -1:], num_steps - ours, axis=1) for name, x in metrics.items()}
    still |= {name: np.zeros_like(still[name]) for name in COUNTS}
    return {name: np.concatenate([x, still[name]], axis=1) for name, x in metrics.items()}


def _add_seconds(folder: Path, seconds: dict[str, float]) -> None:
    before = read_json(folder, "timing.json") if (folder / "timing.json").exists() else {}
    write_json(folder, "timing.json", {name: before.get(name, 0.0) + value for name, value in seconds.items()})


# The end of a run -----------------------------------------------------------------------------------------------------


def finish(folder: Path, config: Config, setup: Setup, learned: Learned, notes: list[str], command: str, say) -> None:
    """Writes what a reader wants to see, and prints the table."""
    if setup.world.mdp is not None:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), learned)
        arrays = tables(setup, flat)
        shape = jax.tree.leaves(learned)[0].shape[:2]
        arrays |= {n: arrays[n].reshape(*shape, *arrays[n].shape[1:]) for n in ("learned_reward", "policy")}
        if hasattr(config.world, "grid"):
            arrays["grid"] = config.world.grid()
        np.savez(folder / "tables.npz", **arrays)
        _, points = sweep(config)
        write_json(folder, "baselines.json", baselines(setup, points))
    write_json(folder, "notes.json", {"notes": notes, "command": command})
    report(folder, say)


def report(folder: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Writes summary.json, the figures and report.html of a run from its own files, and says its table."""
    dataset = load_run(folder)
    timing = read_json(folder, "timing.json") if (folder / "timing.json").exists() else {}
    summary = summarise(dataset, timing)
    write_json(folder, "summary.json", summary)
    page = write_report(folder, dataset, summary)
    say(format_table(summary))
    say(f"report: {page}")
    return page


def load_params(path: str | Path, seed: int, hyper: int = 0) -> Learned:
    """The learned parameters (reward, policy) of one seed, from the newest whole checkpoint of a run.

    Args:
        path: the run's folder.
        seed: its number, as in `load_run`'s coordinate.
        hyper: the point of the sweep, as in `load_run`'s dimension.

    Raises:
        RunFolderError: it is not a run, or has no such seed or point.
    """
    folder = Path(path)
    config = from_dict(read_json(folder, "config.json"))
    groups = [g for g in groups_of(folder, 0) if g.first_seed <= seed < g.first_seed + g.num_seeds]
    _, points = sweep(config)
    if not groups or not 0 <= hyper < len(points):
        raise RunFolderError(
            f"{folder} has no seed {seed} at point {hyper}; required: a seed below {config.seeds} and a point below "
            f"{len(points)}"
        )
    with jax.enable_x64(config.precision == "float64"):
        study = Study(config, build(config), groups[0], tuple(jax.devices()[:1]))
        with open_checkpoints(folder / "checkpoints" / groups[0].name, KEEP) as checkpoints:
            _, state, _ = study.restore(checkpoints)
        if state is None:
            raise RunFolderError(f"{folder} has no checkpoint of seed {seed} yet; required: one; let the run go on")
        return jax.tree.map(lambda x: x[hyper, seed - groups[0].first_seed], study.learned(state))
