"""The metrics of a run on the disk: files of consecutive outer steps, in a folder a group of seeds.

    metrics/<group>/<first step>.npz               one chunk, as it was written
    metrics/<group>/<first step>-<last step>.npz   `MERGED` chunks, once there are so many

A file holds a digest of its arrays and of whose they are: run, group and first step. Where files overlap, the one that
starts later was written later: of the one before, only the steps until there count. For lanes see `folder`.
"""

import hashlib
import itertools
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from experiments.files import (
    LEFTOVER,
    RunFolderError,
    canonical_json,
    make_folder,
    read_arrays,
    read_json,
    refusing,
    write_arrays,
)
from experiments.runs.folder import group_name, groups_of, owner_of

if TYPE_CHECKING:
    import xarray

DIGEST = "sha256"  # the name under which a metrics file holds the digest of its arrays
OWNER = "owner"  # and that under which it says whose they are
MERGED = 100  # chunks that are merged into one file
Arrays = dict[str, np.ndarray]


class Sweep(TypedDict):
    """What `sweep.json` holds: the names of what was swept, and a row of its values for each point of the sweep."""

    names: list[str]
    values: list[list[float | str]]


class NamedScore(TypedDict, total=False):
    """What `score.json` holds of a world that names its score: the fields of `envs.base.Score`."""

    name: str
    unit: str
    low: float | None
    high: float | None


class Damaged(Exception):
    """A file of metrics cannot be used; the message is one line without advice."""


class Piece(NamedTuple):
    """A file of metrics, by its name."""

    first_step: int  # of its first column, counted from 0
    last_step: int  # of its last column; -1: that is not in its name, which is that of a single chunk

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.first_step:08d}{f'-{self.last_step:08d}' if self.is_merged else ''}.npz"

    @property
    def is_merged(self) -> bool:
        """Whether it holds several chunks."""
        return self.last_step >= 0

    @property
    def order(self) -> tuple[int, bool]:
        """Later ones count where they overlap: of the same first step, the single chunk."""
        return self.first_step, not self.is_merged


def write_metrics(folder: Path, group: str, first_step: int, arrays: Arrays) -> None:
    """Drops the metrics of a group from `first_step` on, counted from 0, which a resumed run computes anew, and writes
    one chunk of them, metric -> [lanes, steps of the chunk].

    Call it before the checkpoint at the chunk's end is saved: a kill in between then repeats a chunk, leaving no hole.
    Takes as long whatever came before, except that each `MERGED`th chunk is merged with those before it into one file.
    Raises RunFolderError where the shapes differ, the metrics before `first_step` are gone, or the disk refuses.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(min(shapes)) != 2:
        raise RunFolderError(f"metrics of shapes {shapes} were given; one shape [lanes, steps] is required: stack them")
    directory = folder / "metrics" / group
    new, pieces = Piece(first_step, -1), _pieces(directory)
    if first_step and not (pieces and pieces[0].first_step < first_step):
        raise RunFolderError(
            f"{directory} holds no metrics of the steps before {first_step} any more: they were moved or deleted meanwhile; "
            "put them back, or run anew with another --out"
        )
    if later := [piece for piece in pieces if piece.first_step >= first_step and piece != new]:
        make_folder(folder, f"metrics/{group}")  # refuses a link, through which files of somebody else would be removed
        _remove(directory, later[::-1])  # from the last to the first, so that a kill in between leaves no hole
    _write(folder, group, new, arrays)
    chunks = [x for x in pieces if x.first_step < first_step and not x.is_merged] + [new]
    if len(chunks) >= MERGED:
        _merge(folder, group, chunks[:MERGED], [x for x in pieces if x.is_merged])


def _merge(folder: Path, group: str, chunks: list[Piece], merged: list[Piece]) -> None:
    """Writes chunks as one file and removes them; those that a kill leaves count still, and are merged later."""
    directory = folder / "metrics" / group
    with _advising():
        arrays = _join([*_parts(directory, owner_of(folder, group), chunks, chunks[0].first_step)], axis=1)
    # An earlier merge of these chunks that was killed before it removed the first: it could hide the new one.
    _remove(directory, [piece for piece in merged if piece.first_step >= chunks[0].first_step])
    first = chunks[0].first_step
    _write(folder, group, Piece(first, first + _shape(arrays)[1] - 1), arrays)
    # From the first to the last, so that those that a kill leaves reach to the end of the new file.
    _remove(directory, chunks)


def _write(folder: Path, group: str, piece: Piece, arrays: Arrays) -> None:
    if sealed := _seal(owner_of(folder, group), piece):
        arrays = arrays | {OWNER: np.frombuffer(sealed.encode(), np.uint8)}
    write_arrays(folder, f"metrics/{group}/{piece.name}", arrays | {DIGEST: digest_of_arrays(arrays)})


def _remove(directory: Path, pieces: list[Piece]) -> None:
    for piece in pieces:
        with refusing(f"{directory / piece.name} cannot be removed"):
            os.unlink(directory / piece.name)


def _seal(owner: str, piece: Piece) -> str:
    """Whose the arrays of a file are; "" in a run without identity."""
    return f"{owner}, step {piece.first_step}" if owner else ""


def digest_of_arrays(arrays: Arrays) -> np.ndarray:
    """SHA-256 [32] uint8 of arrays with their names, types and shapes, in any order."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def strange_metrics(directory: Path) -> list[str]:
    """Names, sorted, of what is in a group's folder and is no file of metrics, nor an unfinished one: all ignore it."""
    return sorted(x for x in _names(directory) if not (_piece(x) or LEFTOVER.fullmatch(x)))


def check_metrics(folder: Path, group: str, steps: list[int]) -> tuple[int, str]:
    """(step, note): the newest of some numbers of steps done, newest first, as of the checkpoints that there are, up to
    which all metrics of a group are whole; why not the first, or "". Raises RunFolderError where there is none."""
    directory, covered = folder / "metrics" / group, 0
    try:
        for part in _parts(directory, owner_of(folder, group), _pieces(directory), 0, steps[0]):
            covered += _shape(part)[1]
        return steps[0], ""
    except Damaged as error:
        usable = [step for step in steps if step <= covered]
        if not usable:
            raise RunFolderError(
                f"{error}, and no checkpoint of step {covered} or before is left to compute it again from; restore it from "
                "a copy, or run anew with another --out"
            ) from error
        return usable[0], f"{error}: what follows step {usable[0]} is computed again"


def read_metrics(folder: Path, last_step: int | None = None) -> tuple[Arrays, np.ndarray]:
    """(metric -> [hyper, seed, step], [seed] seed numbers), each step once, of the first `last_step` ≥ 1 steps; None
    for all that every seed has, warning if some have more. Raises RunFolderError if steps are missing, a file is
    damaged or of another run, or files do not fit together."""
    groups = {group_name(*group): np.arange(group[1]) + group[0] for group in groups_of(folder)}
    begun = [name for name in groups if _pieces(folder / "metrics" / name)]
    if not begun:
        raise RunFolderError(f"{folder} holds no metrics; one chunk at least is required: let the run go on")
    if late := [name for name in groups if name not in begun]:
        warnings.warn(f"{folder}: seeds {', '.join(late)} have no metrics; they are left out", stacklevel=2)
    with _advising():
        parts = [_read_group(folder, name, len(groups[name]), last_step) for name in begun]
        least, most = (extreme(_shape(part)[2] for part in parts) for extreme in (min, max))
        if least < most:
            warnings.warn(f"{folder}: all seeds have {least} of {most} steps; the others are left out", stacklevel=2)
        parts = [{name: array[..., :least] for name, array in part.items()} for part in parts]
        for name, part in zip(begun, parts, strict=True):
            _compare(folder / "metrics" / name, part, parts[0])
    return _join(parts, axis=1), np.concatenate([groups[name] for name in begun])


def _read_group(folder: Path, group: str, num_seeds: int, last_step: int | None) -> Arrays:
    directory = folder / "metrics" / group
    arrays = _join([*_parts(directory, owner_of(folder, group), _pieces(directory), 0, last_step)], axis=1)
    lanes, num_steps = _shape(arrays)
    if lanes % num_seeds:
        raise Damaged(f"{directory} holds {lanes} lanes, which is no multiple of its {num_seeds} seeds")
    return {name: array.reshape(-1, num_seeds, num_steps) for name, array in arrays.items()}


def _parts(
    directory: Path, owner: str, pieces: list[Piece], first_step: int, last_step: int | None = None
) -> Iterator[Arrays]:
    """The metrics from `first_step` to before `last_step`, metric -> [lanes, steps], in their order, each step once.
    Raises Damaged at the first step that is not there as it was written."""
    pieces = [piece for piece in pieces if last_step is None or piece.first_step < last_step]
    ends = [*(piece.first_step for piece in pieces[1:]), last_step][: len(pieces)]
    covered, first = first_step, None
    for piece, end in zip(pieces, ends, strict=True):
        if end == piece.first_step:
            continue
        if piece.first_step > covered:
            where = directory / piece.name
            raise Damaged(f"{where} follows a hole: steps {covered} to {piece.first_step - 1} are missing")
        arrays = _read(directory, piece, owner)
        first = first or arrays
        _compare(directory / piece.name, arrays, first)
        part = {name: array[:, : end and end - piece.first_step] for name, array in arrays.items()}
        covered += _shape(part)[1]
        yield part
    if covered < (last_step or 0):
        raise Damaged(f"{directory} ends at step {covered}, {last_step} are required")


def _read(directory: Path, piece: Piece, owner: str) -> Arrays:
    path = directory / piece.name
    try:
        arrays = read_arrays(path)
        if not np.array_equal(arrays.pop(DIGEST, None), digest_of_arrays(arrays)):
            raise ValueError("its digest is another")
        if any(array.dtype.kind not in "biuf" for array in arrays.values()):
            raise ValueError("it holds other things than numbers")
        found = arrays.pop(OWNER, np.empty(0, np.uint8)).tobytes().decode()
        num_steps = _shape(arrays)[1]
    except Exception as error:  # which one, depends on the byte that is wrong
        raise Damaged(f"{path} is damaged ({error})") from error
    if found != (wanted := _seal(owner, piece)):
        unknown = "a run without identity, for no manifest.json names one"
        raise Damaged(f"{path} is of {found or 'a run without identity'}, not of {wanted or unknown}")
    if piece.is_merged and num_steps != piece.last_step - piece.first_step + 1:
        raise Damaged(f"{path} is damaged (it holds {num_steps} steps)")
    return arrays


def _compare(where: Path, part: Arrays, first: Arrays) -> None:
    if part.keys() != first.keys() or _shape(part)[0] != _shape(first)[0]:
        raise Damaged(f"{where} does not fit what comes before it: other metrics or lanes")


def _join(parts: list[Arrays], axis: int) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}


def _shape(part: Arrays) -> tuple[int, ...]:
    return next(iter(part.values())).shape


def _pieces(directory: Path) -> list[Piece]:
    """In the order in which they count."""
    return sorted(filter(None, map(_piece, _names(directory))), key=lambda piece: piece.order)


def _piece(name: str) -> Piece | None:
    """The file of that name; None if no file of metrics is called so."""
    found = re.fullmatch(r"([0-9]{8,})(?:-([0-9]{8,}))?\.npz", name)
    piece = found and Piece(int(found[1]), int(found[2] or -1))
    return piece if piece and piece.name == name and not 0 <= piece.last_step < piece.first_step else None


def _names(directory: Path) -> list[str]:
    with refusing(f"{directory} cannot be read"), suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(directory)
    return []


@contextmanager
def _advising() -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise RunFolderError(f"{error}; restore it from a copy, or run anew with another --out") from error


def load_run(path: str | os.PathLike[str]) -> "xarray.Dataset":
    """The metrics of a run: dimensions (hyper, seed, step), a coordinate along `hyper` for every swept hyperparameter.

    Attribute `config` holds the configuration as JSON. Where the world names its score, `true_score` has the attributes
    `long_name`, `units` and, of its bounds, those that are known: `valid_min`, `valid_max`. A run that goes on may be
    read. Raises RunFolderError if it is not a run, or its metrics cannot be read; see `read_metrics`.
    """
    import xarray  # takes a second, and only readers need it

    folder = Path(path)
    config = read_json(folder, "config.json")
    metrics, seeds = read_metrics(folder)
    swept = _read_sweep(folder, config, metrics)
    steps = ("step", np.arange(_shape(metrics)[2]), {"long_name": "outer step"})
    about = {"true_score": _about_score(folder)}
    return xarray.Dataset(
        {name: (("hyper", "seed", "step"), array, about.get(name)) for name, array in metrics.items()},
        {"seed": seeds, "step": steps, **swept},
        {"config": canonical_json(config)},
    )


def _read_sweep(folder: Path, config: dict, metrics: Arrays) -> dict[str, tuple[str, list[float | str]]]:
    sweep = read_json(folder, "sweep.json", Sweep, {"names": [], "values": [[]]})
    names, values, num_hyper = sweep["names"], [[*map(_real, x)] for x in sweep["values"]], _shape(metrics)[0]
    if len(values) != num_hyper:
        raise RunFolderError(
            f"{folder}/sweep.json holds {len(values)} points and the metrics {num_hyper}: restore the file"
        )
    new = {*names} - {"hyper", "seed", "step", *metrics}
    axes = [[*map(_real, axis)] for name in names if isinstance(axis := config.get(name), list)]
    asked = [list(point) for point in itertools.product(*axes)]
    if not len(names) == len(new) == len(axes) or values != asked:
        raise RunFolderError(
            f"{folder}/sweep.json does not fit config.json: distinct names, none of them a metric's, and the values that "
            "were asked for, in their order, are required: restore the file"
        )
    return {name: ("hyper", [row[i] for row in values]) for i, name in enumerate(names)}


def _real(value: float | str) -> float | str:
    """An infinity, for which JSON has no number but a text, as a number; anything else as it is."""
    return float(value) if value in ("inf", "-inf") else value


def _about_score(folder: Path) -> dict[str, str | float]:
    score = read_json(folder, "score.json", NamedScore, {})
    about = {"long_name": "name", "units": "unit", "valid_min": "low", "valid_max": "high"}
    return {attribute: score[name] for attribute, name in about.items() if score.get(name) is not None}
