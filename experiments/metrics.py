"""The metrics of a run on the disk: one file a chunk of outer steps, in a folder a group of seeds.

Within a group lanes are ordered hyperparameters first: lane = hyper · seeds of the group + seed.
"""

import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.run_folder import RunFolderError, canonical_json, read_json, write_arrays

if TYPE_CHECKING:
    import xarray

DIGEST = "sha256"  # the name under which a metrics file holds the digest of its arrays


def write_metrics(folder: Path, group: str, first_step: int, arrays: dict[str, np.ndarray]) -> None:
    """Writes one chunk of metrics, and drops the later ones of its group: a resumed run computes those anew.

    Call it before the checkpoint at the chunk's end is saved: a kill in between then repeats a chunk, leaving no hole.

    Args:
        folder: of the run.
        group: from `group_name`.
        first_step: outer step of the first column, counted from 0.
        arrays: metric -> [lanes, steps of the chunk].
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(min(shapes)) != 2:
        raise RunFolderError(f"metrics of shapes {shapes} were given; one shape [lanes, steps] is required: stack them")
    directory = folder / "metrics" / group
    write_arrays(directory, f"{first_step:08d}.npz", arrays | {DIGEST: _digest(arrays)})
    for later in _chunks(directory):
        if _first_step(later) > first_step:
            later.unlink()


def check_metrics(folder: Path, group: str, last_step: int) -> None:
    """Raises RunFolderError unless the first `last_step` steps of a group are there and whole."""
    if last_step:
        _read_group(folder / "metrics" / group, last_step)


def read_metrics(folder: Path, last_step: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(metric -> [hyper, seed, step], [seed] seed numbers), each step once.

    Args:
        folder: of the run.
        last_step: how many outer steps to read, ≥ 1; None for all that every seed has, warning if some have more.

    Raises:
        RunFolderError: if steps are missing, a file is damaged, or files do not fit together.
    """
    groups = sorted(directory for directory in (folder / "metrics").glob("*-*") if _chunks(directory))
    if not groups:
        raise RunFolderError(f"{folder} holds no metrics; one chunk at least is required: let the run go on")
    parts = [_read_group(directory, last_step) for directory in groups]
    least, most = (extreme(_shape(part)[2] for part in parts) for extreme in (min, max))
    if least < most:
        warnings.warn(f"{folder}: all seeds have {least} of {most} steps; the others are left out", stacklevel=2)
    parts = [{name: array[..., :least] for name, array in part.items()} for part in parts]
    seeds = np.concatenate([_seeds(directory) for directory in groups])
    if len(set(seeds)) < len(seeds):
        raise RunFolderError(f"{folder} holds a seed in two groups; groups must not overlap: remove one of them")
    return _join(groups, parts, axis=1), seeds


def _read_group(directory: Path, last_step: int | None) -> dict[str, np.ndarray]:
    # Where chunks overlap, the one that starts later was written later, since writing drops those after it.
    last = math.inf if last_step is None else last_step
    paths = [path for path in _chunks(directory) if _first_step(path) < last]
    parts, covered = [], 0
    for path, end in zip(paths, [*map(_first_step, paths[1:]), last], strict=True):
        first, arrays = _first_step(path), _read_chunk(path, len(_seeds(directory)))
        if first > covered:
            raise RunFolderError(f"{path} follows a hole: steps {covered} to {first - 1} are missing; restore them")
        covered = int(min(first + _shape(arrays)[2], end))
        parts.append({name: array[..., : covered - first] for name, array in arrays.items()})
    if covered < (last_step or 0):
        raise RunFolderError(f"{directory} ends at step {covered}, {last_step} are required: restore what is missing")
    return _join(paths, parts, axis=2)


def _join(paths: list[Path], parts: list[dict[str, np.ndarray]], axis: int) -> dict[str, np.ndarray]:
    for path, part in zip(paths, parts, strict=True):
        if part.keys() != parts[0].keys() or _shape(part)[0] != _shape(parts[0])[0]:
            raise RunFolderError(f"{path} does not fit {paths[0]}: other metrics or lanes; restore the altered one")
    return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}


def _chunks(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.npz"), key=_first_step)


def _first_step(path: Path) -> int:
    return int(path.stem)


def _seeds(directory: Path) -> np.ndarray:
    first, last = directory.name.split("-")
    return np.arange(int(first), int(last) + 1)


def _shape(part: dict[str, np.ndarray]) -> tuple[int, ...]:
    return next(iter(part.values())).shape


def _read_chunk(path: Path, num_seeds: int) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not np.array_equal(arrays.pop(DIGEST), _digest(arrays)):
            raise ValueError("its digest is another")
        return {name: array.reshape(-1, num_seeds, array.shape[1]) for name, array in arrays.items()}
    except Exception as error:  # which one, depends on the byte that is wrong
        raise RunFolderError(f"{path} is damaged ({error}); restore it from a copy, or run anew elsewhere") from error


def _digest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def load_run(path: str | os.PathLike[str]) -> "xarray.Dataset":
    """The metrics of a run: dimensions (hyper, seed, step), a coordinate along `hyper` for every swept hyperparameter.

    Attribute `config` holds the configuration as JSON. Where the world names its score, `true_score` has the attributes
    `long_name`, `units` and, of its bounds, those that are known: `valid_min`, `valid_max`. A run that goes on may be read.

    Args:
        path: of the run's folder; `sweep.json` in it, if there is one, holds {"names": [...], "values": [[...], ...]},
            one row of values a point of the sweep.

    Raises:
        RunFolderError: if it is not a run, or its metrics cannot be read; see `read_metrics`.
    """
    import xarray  # takes a second, and only readers need it

    folder = Path(path)
    config = read_json(folder, "config.json")
    metrics, seeds = read_metrics(folder)
    num_hyper, _, num_steps = _shape(metrics)
    sweep = read_json(folder, "sweep.json") if (folder / "sweep.json").exists() else {"names": [], "values": [[]]}
    if len(sweep["values"]) != num_hyper:
        raise RunFolderError(
            f"{folder}/sweep.json holds {len(sweep['values'])} points and the metrics {num_hyper}: restore the file"
        )
    swept = {name: ("hyper", [row[i] for row in sweep["values"]]) for i, name in enumerate(sweep["names"])}
    steps = ("step", np.arange(num_steps), {"long_name": "outer step"})
    about = {"true_score": _about_score(folder)}
    return xarray.Dataset(
        {name: (("hyper", "seed", "step"), array, about.get(name)) for name, array in metrics.items()},
        {"seed": seeds, "step": steps, **swept},
        {"config": canonical_json(config)},
    )


def _about_score(folder: Path) -> dict[str, str | float]:
    score = read_json(folder, "score.json") if (folder / "score.json").exists() else {}
    about = {"long_name": "name", "units": "unit", "valid_min": "low", "valid_max": "high"}
    return {attribute: score[name] for attribute, name in about.items() if score.get(name) is not None}
