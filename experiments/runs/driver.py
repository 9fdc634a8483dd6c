"""The driver of a run: opens its folder, resumes or starts, advances chunk by chunk, and reports."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from bilevel.checkpoint import open_checkpoints
from bilevel.lanes import Layout
from bilevel.run import DIVERGED
from bilevel.types import Learned
from experiments.files import RunFolderError, read_json, write_arrays, write_json
from experiments.output import silent
from experiments.report.page import Notes, write_report
from experiments.report.summary import Baselines, Extent, format_table, summarise
from experiments.runs.alike import refuse_differences
from experiments.runs.cohort import KEEP, Cohort, Group, all_groups, prepare, run_cohorts, strangers
from experiments.runs.folder import (
    Manifest,
    compare_manifests,
    groups_of,
    identity_of,
    make_manifest,
    manifest_of,
    new_identity,
    open_run,
    owner_of,
    run_name,
)
from experiments.runs.interruption import requests_to_stop
from experiments.runs.metrics import load_run
from experiments.runs.processes import agree, is_main
from experiments.settings.config import Config, as_dict, read_config, sweep
from experiments.settings.job import Job, arithmetic, baselines, resolve, tables
from experiments.settings.options import OptionError

EXTENDABLE = ("steps", "seeds")  # a run may be asked for more of these
PLACEMENT = ("chunk", "devices")  # options that change where and when, not what is computed
LAYOUT_OPTION = "--allow-layout-change"


def train(
    config: Config,
    out: str | Path | None = None,
    allow_layout_change: bool = False,
    say: Callable[[str], None] = lambda line: None,
    command: str = "",
) -> Path:
    """Runs a configuration to its end, from wherever its folder stands; returns the folder.

    Interrupted at any moment, the same call resumes it, and its result is the same to the last bit. A run that was finished
    on other devices has nothing to go on with: its report is written anew, and the rest is left as it is.

    Args:
        config: from `configure`.
        out: the run's folder; None: `runs/<world>-<algorithm>-<hash of the configuration>`.
        allow_layout_change: resume on other devices, where bits may differ.
        say: takes the lines that a person should see, among them, in a log that is no terminal, how far the run is.
        command: how the run was asked for, for the report.

    Raises:
        OptionError, RunFolderError, CheckpointError: one line each; nothing that was complete is lost.
        Stopped: SIGTERM, SIGHUP or SIGUSR1 came; the running chunk was ended and saved first, as it is on Ctrl-C, which
            raises KeyboardInterrupt.
    """
    if not isinstance(config, Config):
        raise OptionError(f"config is {config!r}; required: what configure returns, as in train(configure(seeds=32))")
    with arithmetic(config), requests_to_stop() as requests:
        refuse_differences(config, out, allow_layout_change)
        say = say if is_main() else silent
        job = resolve(config)
        name = run_name(config.world_name, config.algorithm_name, as_dict(config), EXTENDABLE + PLACEMENT)
        with hold(Path("runs") / name if out is None else Path(out)) as folder:
            manifest, notes = agree(lambda: compare(folder, job, allow_layout_change))
            for note in notes:
                say(f"note: {note}")
            if not manifest:
                agree(lambda: str(report(folder, say)))
                return folder
            announce(job, folder, say)
            cohorts = prepare(folder, manifest["groups"], job, say)
            agree(lambda: describe(folder, job, manifest))
            learned, more = run_cohorts(folder, cohorts, requests, say)
            agree(lambda: finish(folder, job, learned, notes + more, command, say))
            return folder


@contextmanager
def hold(path: Path) -> Iterator[Path]:
    """The run's folder, held by process 0 for all."""
    with ExitStack() as stack:
        agree(lambda: str(stack.enter_context(open_run(path))))
        yield path


def compare(folder: Path, job: Job, allow_layout_change: bool) -> tuple[dict[str, Any], list[str]]:
    """The manifest of this run and what should be noted of it, once the folder's run is seen to be the same. The
    manifest is empty where the run was finished on another layout: nothing is to be run then. Raises RunFolderError
    where it is another run; the message lists what differs."""
    config, run = job.config, job.config.run
    flat = {name: value for name, value in as_dict(config).items() if name not in PLACEMENT}
    packages = getattr(config.world, "packages", ())
    manifest = make_manifest(flat, run.width, job.chunk(0), run.precision, packages, config.files())
    manifest["layout"]["num_devices"] = len(job.devices)
    begun = (folder / "manifest.json").exists()
    changes, notes = _continue(folder, manifest) if begun else ([], [])
    if changes and not allow_layout_change:
        if is_finished(folder, config):
            return {}, [f"it was finished on another layout ({'; '.join(changes)}): it is left as it is"]
        raise RunFolderError(
            f"{folder} was run on another layout: {'; '.join(changes)}; required: run it there, or pass {LAYOUT_OPTION} (in "
            "Python allow_layout_change=True) to go on here, where bits may differ"
        )
    if left := [name for name in ("metrics", "checkpoints") if not begun and (folder / name).exists()]:
        raise RunFolderError(
            f"{folder} has {' and '.join(left)} but no manifest.json; required: the manifest, to know what was run: restore "
            "it, or name another --out"
        )
    manifest["identity"] = identity_of(folder) if begun else new_identity()
    groups = all_groups(folder, run.seeds)
    if "groups" in manifest_of(folder):  # not of a run from before they were written down
        refuse_adopted(folder, groups[len(groups_of(folder)) :])
    manifest["groups"] = [list(group) for group in groups]
    if not manifest["identity"]:
        notes.append("the run was begun before runs had an identity: files of another run in its folder go unnoticed")
    return manifest, notes + ignored(folder, groups)


def refuse_adopted(folder: Path, new: list[Group]) -> None:
    """Raises RunFolderError where a group that is about to begin would find files, which can be none of its own."""
    paths = [folder / kind / group.name for group in new for kind in ("metrics", "checkpoints")]
    if found := [str(path) for path in paths if os.path.lexists(path)]:
        raise RunFolderError(
            f"{' and '.join(found)} would be taken for those of seeds that are new to this run; required: nothing there: "
            "move it away"
        )


def ignored(folder: Path, groups: list[Group]) -> list[str]:
    """A note on what lies among a run's metrics and checkpoints and is not of these groups; none if nothing does."""
    if not (strange := strangers(folder, groups)):
        return []
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    return [f"ignored in {folder}, for it is not of this run: {', '.join(strange[:5])}{more}"]


def _continue(folder: Path, manifest: dict[str, Any]) -> tuple[list[str], list[str]]:
    """How the layout changes, and notes on a run that goes on with this manifest, which gets all changes until now;
    raises RunFolderError where it would be another run."""
    old = read_json(folder, "manifest.json", Manifest)
    changes = old.get("layout_changes", [])
    before = {name: value for name, value in old.items() if name not in Manifest.__annotations__}
    refused, layout, notes = compare_manifests(before, manifest, EXTENDABLE)
    if refused:
        raise RunFolderError(
            f"{folder} holds another run: {'; '.join(refused)}; required: the same settings, or another --out"
        )
    changes += [layout] if layout else []
    manifest["layout_changes"] = changes
    return layout, notes + [f"the device layout changed ({'; '.join(change)}): bits may differ" for change in changes]


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the folder's run has all seeds that are asked for, each group its last checkpoint, and its summary."""
    groups = all_groups(folder)
    run = config.run
    ends = [folder / "checkpoints" / group.name / str(run.steps) for group in groups]
    whole = sum(group.num_seeds for group in groups) == run.seeds and all(end.is_dir() for end in ends)
    told = read_json(folder, "summary.json", Extent, {})  # which is written last
    return whole and (told.get("steps"), told.get("seeds")) == (run.steps, run.seeds)


def describe(folder: Path, job: Job, manifest: dict[str, Any]) -> None:
    """Writes what the run is."""
    if job.world.score is not None:
        write_json(folder, "score.json", job.world.score._asdict())
    values = [[point[name] for name in job.swept] for point in job.points]
    write_json(folder, "sweep.json", {"names": list(job.swept), "values": values})
    write_json(folder, "config.json", as_dict(job.config))
    write_json(folder, "manifest.json", manifest)


def announce(job: Job, folder: Path, say) -> None:
    """Says what is about to run."""
    config, run, devices = job.config, job.config.run, job.devices
    swept = f" x {len(job.points)} settings of {', '.join(job.swept)}" if job.swept else ""
    layout = Layout(len(job.points) * run.seeds, run.width, devices)
    blocks, size = layout.block_shape
    say(f"{config.algorithm_name} on {config.world_name}: {run.seeds} seeds{swept}, {run.steps} outer steps")
    say(
        f"{blocks} block(s) of {size} lanes on {len(devices)} {devices[0].platform} device(s), {layout.padding} padding"
    )
    say(f"run folder: {folder}")


def finish(folder: Path, job: Job, learned: Learned, notes: list[str], command: str, say) -> None:
    """Writes what a reader wants to see, and prints the table."""
    if job.world.mdp is not None:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), learned)
        arrays = tables(job, flat)
        shape = jax.tree.leaves(learned)[0].shape[:2]
        arrays |= {
            n: arrays[n].reshape(*shape, *arrays[n].shape[1:]) for n in ("learned_reward", "policy") if n in arrays
        }
        if hasattr(job.config.world, "grid"):
            arrays["grid"] = job.config.world.grid()
        write_arrays(folder, "tables.npz", arrays)
        write_json(folder, "baselines.json", baselines(job))
    write_json(folder, "notes.json", {"notes": notes, "command": command})
    report(folder, say)


def report(folder: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Writes summary.json, the figures and report.html of a run from its own files, and says its table. Raises
    RunFolderError where one of these files is damaged, or not of this run."""
    check_description(folder)
    dataset = load_run(folder)
    told = read_json(folder, "notes.json", Notes, {}).get("notes", [])  # a run that ends has said its own
    for note in ignored(folder, all_groups(folder)):
        if note not in told:
            say(f"note: {note}")
    timing = read_json(folder, "timing.json", dict[str, float], {})
    summary = summarise(dataset, timing, read_json(folder, "baselines.json", Baselines, {}))
    write_json(folder, "summary.json", summary)
    page = write_report(folder, dataset, summary)
    say(format_table(summary))
    say(f"report: {page}")
    return page


def check_description(folder: Path) -> None:
    """Raises RunFolderError where config.json is not of the run that manifest.json, if there is one, describes."""
    config, manifest = read_json(folder, "config.json"), manifest_of(folder)
    if manifest and not isinstance(manifest.get("config"), dict):
        raise RunFolderError(
            f"{folder}/manifest.json lacks what was run; required: the file as it was written: restore it"
        )
    for name, value in manifest.get("config", {}).items():
        if name not in EXTENDABLE and config.get(name) != value:
            raise RunFolderError(
                f"{folder}/config.json does not fit manifest.json: {name} is {str(config.get(name, 'absent'))[:80]}, not "
                f"{str(value)[:80]}; required: the files of one run: restore the altered one"
            )


def load_params(path: str | Path, seed: int, point: int = 0) -> Learned:
    """The learned parameters (reward, policy) of one seed, by its number in `load_run`, from the newest whole
    checkpoint of a run, at one point of the sweep, as in `load_run`'s dimension `hyper`.

    Warns of each newer one that is damaged, or of another run, and of a seed that diverged. Raises RunFolderError where
    it is not a run, or has no such seed or point.
    """
    folder = Path(path)
    config = read_config(folder)
    config = config._replace(run=dataclasses.replace(config.run, width=1))  # no padding, which takes memory
    num_points = len(sweep(config)[1])
    for name, given, number in (("seed", seed, config.run.seeds), ("point", point, num_points)):
        if isinstance(given, bool) or not (hasattr(given, "__index__") and 0 <= given < number):
            raise RunFolderError(f"{folder} has no {name} {given!r}; required: a whole number from 0 to {number - 1}")
    groups = [g for g in all_groups(folder) if g.first_seed <= seed < g.first_seed + g.num_seeds <= config.run.seeds]
    if not groups:
        raise RunFolderError(f"{folder} has not begun seed {seed} yet; required: one that has; let the run go on")
    with jax.enable_x64(config.run.precision == "float64"):
        cohort = Cohort(resolve(config)._replace(devices=tuple(jax.devices()[:1])), groups[0])
        directory, state = folder / "checkpoints" / groups[0].name, None
        if directory.is_dir():
            with open_checkpoints(directory, KEEP, owner_of(folder, groups[0].name)) as checkpoints:
                _, state, notes = cohort.restore(checkpoints)
        if state is None:
            raise RunFolderError(f"{folder} has no checkpoint of seed {seed} yet; required: one; let the run go on")
        for note in notes:
            warnings.warn(note, stacklevel=2)
        status, steps = (cohort.of_lanes(x)[point, seed - groups[0].first_seed] for x in (state.status, state.steps))
        if status == DIVERGED:
            warnings.warn(
                f"seed {seed} at point {point} of {folder} diverged in outer step {steps + 1}: its parameters are those "
                "before, the last that were finite",
                stacklevel=2,
            )
        return jax.tree.map(lambda x: x[point, seed - groups[0].first_seed], cohort.learned(state))
