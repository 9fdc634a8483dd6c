"""The folder `runs/<name>/` of one run: who holds it, what was run, what was measured.

    lock                                   held by the process that writes the run
    config.json, manifest.json, sweep.json what was run, on what, and the value of every swept hyperparameter
    metrics/<group>/                       of `experiments.runs.metrics`
    checkpoints/<group>/                   of `bilevel.checkpoint`

A group is a range of seeds that runs together; more seeds later are another group. Within a group lanes are ordered
hyperparameters first: lane = hyper · seeds of the group + seed.

The manifest holds the run's identity, made at random when it is begun, and its groups. Checkpoints and metrics are sealed
with both, so that those of another run or group are told from its own wherever the folder is moved or copied.
"""

import fcntl
import importlib.metadata
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import jax

from bilevel.ranges import MOST
from experiments.files import (
    RunFolderError,
    as_json,
    canonical_json,
    digest,
    digest_of,
    open_file,
    read_bytes,
    read_json,
    refusing,
)

PACKAGES = ("jax", "jaxlib", "flax", "optax", "distrax", "chex", "orbax-checkpoint", "numpy", "bilevel-rlhf")
MARK = "bilevel run, last held by process "
MOST_SIGNATURE = 4096  # bytes of a lock

Record = TypeVar("Record", bound=tuple)


def config_hash(config: dict[str, Any], extendable: tuple[str, ...] = ()) -> str:
    """Hexadecimal SHA-256 of the configuration, JSON values nested to any depth: the order of keys, and a tuple for a
    list, change nothing, nor do the dotted keys `extendable`: a run with more of them continues in the same folder."""
    flat = _flatten(as_json(config))
    kept = {key: value for key, value in flat.items() if key not in extendable}
    return digest(canonical_json(kept).encode())


def run_name(world: str, algorithm: str, config: dict[str, Any], extendable: tuple[str, ...] = ()) -> str:
    """The name of a run's folder, as in `garnet-bilevel_rlhf-0f3a9c1e`; see `config_hash`."""
    return f"{world}-{algorithm}-{config_hash(config, extendable)[:8]}"


def group_name(first_seed: int, num_seeds: int) -> str:
    """The folder name of a group of seeds, as in `000000-000007`."""
    return f"{first_seed:06d}-{first_seed + num_seeds - 1:06d}"


class Manifest(TypedDict, total=False):
    """What `manifest.json` holds beside what `make_manifest` made; one from before there were identities holds less."""

    identity: str  # hexadecimal, 128 random bits, made when the run was begun
    groups: list[list[int]]  # [first seed, number of seeds] of each group, in order from seed 0
    layout_changes: list[list[str]]  # how layouts differed, one list a change


def new_identity() -> str:
    """Of a run that begins."""
    return secrets.token_hex(16)


def identity_of(folder: Path) -> str:
    """Of the run in a folder; "" for one that was begun before there were identities."""
    return manifest_of(folder).get("identity", "")


def manifest_of(folder: Path) -> Manifest:
    """Of the run in a folder; empty where there is none. One that cannot be read is no reason to remove it."""
    return read_json(folder, "manifest.json", Manifest) if os.path.lexists(folder / "manifest.json") else {}


def owner_of(folder: Path, group: str) -> str:
    """Whose the checkpoints and metrics of a group are, as in `run 0f3a…, seeds 000000-000007`; "" without identity."""
    identity = identity_of(folder)
    return f"run {identity}, seeds {group}" if identity else ""


def refuse_another(folder: Path, group: str, owner: str) -> None:
    """Raises RunFolderError if the folder is no longer that of the run whose group has, or had, this owner."""
    if not (folder / "manifest.json").exists() or owner_of(folder, group) != owner:
        raise RunFolderError(
            f"{folder} is no longer that of this run: it was deleted, moved or begun anew while the run went on, which ends "
            "here and has written nothing more into it; put it back and resume, or start again"
        )


def groups_of(folder: Path) -> list[list[int]]:
    """[first seed, number of seeds] of each group of a run, in order: those in its manifest, and no others. Where there
    are none in it, since it is missing or older than that: those whose folders hold what a run writes. Raises
    RunFolderError where the manifest cannot be read, or the groups do not follow each other from seed 0."""
    manifest = manifest_of(folder)
    groups = manifest["groups"] if "groups" in manifest else _found_groups(folder)
    covered = 0
    for group in groups:
        if len(group) != 2 or group[0] != covered or not 1 <= group[1] <= MOST - covered:
            raise RunFolderError(
                f"{folder} holds a seed in two groups, or in none: [first seed, number] are {groups}; groups must follow "
                f"each other from seed 0, to at most {MOST}: remove what is not of this run, or restore manifest.json"
            )
        covered += group[1]
    return groups


def _found_groups(folder: Path) -> list[list[int]]:
    homes = [home for kind in ("metrics", "checkpoints") for home in (folder / kind).glob("[0-9]*-[0-9]*")]
    ends = [re.fullmatch("([0-9]{6,})-([0-9]{6,})", home.name) for home in homes if any(home.glob("[0-9]*"))]
    return [[first, last - first + 1] for first, last in sorted({(int(x[1]), int(x[2])) for x in ends if x})]


@contextmanager
def open_run(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The run's folder, created if need be and held until the block is left or the process dies. Raises RunFolderError
    if another process holds it, if it cannot be written, or if it is not empty and not a run."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is no folder; the folder of a run, or a new one, is required: name another")
    with refusing(f"{folder} cannot be a run folder"):
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder)
        lock = open_file(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW)
    try:
        with refusing(f"{folder} cannot be locked"):
            _take(folder, lock)
        yield folder
    finally:
        os.close(lock)


def _refuse_foreign(folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir()}
    mark = read_bytes(folder / "lock", MOST_SIGNATURE)[: len(MARK)] if "lock" in names else b""
    # A run that was killed before it could sign its lock has nothing else in it.
    if names - {"lock"} and mark != MARK.encode():
        raise RunFolderError(
            f"{folder} is not empty and is not a run; an empty or new folder is required: name another"
        )


def _take(folder: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 200, 0).decode(errors="replace").removeprefix(MARK).partition("\n")[0]
        raise RunFolderError(
            f"{folder} is held by process {holder or '(not yet named)'}; one process at a time may write a run: "
            "wait for it, end it, or name another folder"
        ) from None
    if os.fstat(lock).st_nlink > 1:
        raise RunFolderError(
            f"{folder}/lock has another name elsewhere, where it would be written too; a file of its own is required: "
            "replace it by a copy"
        )
    signature = f"{MARK}{os.getpid()} on {platform.node()}\n".encode()
    os.pwrite(lock, signature, 0)  # over the old one, not after emptying it: a kill in between must leave a mark
    os.ftruncate(lock, len(signature))


class Differences(NamedTuple):
    """What changed between two manifests, one line each."""

    refused: list[str]  # the continued run would be another experiment
    layout: list[str]  # devices or XLA flags; bits may change, the experiment does not: allowed by an explicit option
    warnings: list[str]  # to be told


def make_manifest(
    config: dict, width: int, chunk: int, precision: str, packages: Iterable[str] = (), files: Iterable[str] = ()
) -> dict[str, Any]:
    """All that the bits of a run depend on, as JSON values: its configuration, lanes a device (`width`), outer steps a
    call (`chunk`), a precision as in "float32", the packages that it uses beside `PACKAGES`, and the paths of what it
    reads."""
    device = jax.devices()[0]
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "config": as_json(config),
        "versions": {name: installed.get(name) for name in (*PACKAGES, *packages)},
        "files": {path: digest_of(path) for path in files},
        "python": platform.python_version(),
        "precision": precision,
        "width": width,
        "chunk": chunk,
        "layout": {
            "platform": device.platform,
            "device_kind": device.device_kind,
            "num_devices": jax.device_count(),
            "num_processes": jax.process_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "matmul_precision": jax.config.jax_default_matmul_precision,
        },
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
    }


def compare_manifests(old: dict[str, Any], new: dict[str, Any], extendable: tuple[str, ...] = ()) -> Differences:
    """What a run with manifest `new`, from `make_manifest`, would change in a run with manifest `old`, of
    `manifest.json`; the numbers of the configuration under the dotted keys `extendable` may grow."""
    before, after = _flatten(as_json(old)), _flatten(as_json(new))
    differences = Differences([], [], [])
    for key in sorted(before | after):
        was, now = (canonical_json(flat[key]) if key in flat else "absent" for flat in (before, after))
        extends = (
            key in {f"config.{name}" for name in extendable} and type(before.get(key)) is type(after.get(key)) is int
        )
        if was == now or (extends and before[key] <= after[key]):
            continue
        advice = f"; it may only grow: ask for {was} or more" if extends else ""
        _list_for(key, was, now, differences).append(f"{key}: was {was}, now {now}{advice}")
    if after.get("git.dirty"):
        differences.warnings.append("git.dirty: there are uncommitted changes, which this comparison cannot see")
    return differences


def _list_for(key: str, was: str, now: str, differences: Differences) -> list[str]:
    if key.startswith("layout."):
        return differences.layout
    same_python = key == "python" and was.rpartition(".")[0] == now.rpartition(".")[0]
    harmless = key.startswith("git.") or key == "chunk" or same_python  # any cut into chunks gives the same bits
    return differences.warnings if harmless else differences.refused


def _git(*arguments: str) -> str | None:
    """What git says of the working tree that this file is tracked in; None where there is none."""
    here = Path(__file__).resolve()
    tracked = ["git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name]
    try:  # an installed copy may lie inside the repository of somebody else
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=10, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        inner = _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
        flat.update(inner)
    return flat
