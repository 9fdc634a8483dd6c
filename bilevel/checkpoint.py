"""Checkpoints that are complete or absent, checked bit for bit when read; the one module here that touches the disk."""

import gc
import io
import json
import logging
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from bilevel.types import Array

WIDE = ("float64", "int64", "uint64")
Tree = Any  # a pytree of arrays, or of jax.ShapeDtypeStruct


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message is one line."""


@contextmanager
def open_checkpoints(directory: str | PathLike[str], keep: int = 3, identity: str = "") -> Iterator["Checkpoints"]:
    """The checkpoints in a directory, which is created if need be; leaving the block waits for the last save.

    One process (or one group of distributed processes) at a time may save, others may read meanwhile; the first save
    clears away what a killed one has left. A save that fails in the background is raised by the next call or the end.

    Args:
        directory: where the checkpoints are, one subdirectory a step.
        keep: how many of the newest are kept, ≥ 2, so that a damaged one has a predecessor to fall back to.
        identity: whose checkpoints these are, any text. It is sealed into each with its step, and one that was saved under
            another text or for another step counts as damaged. "": one that was saved before there were identities is
            taken too.

    Raises:
        CheckpointError: for `keep` < 2, a directory that cannot be used, something in it that cannot be read, as a pipe,
            or a save that failed.
    """
    path = Path(directory).absolute()
    if keep < 2:
        raise CheckpointError(f"keep={keep} was given; at least 2 are required, so that one can be damaged: raise it")
    _refuse_pipes(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(path, keep, identity)
    except Exception as error:
        why = _one_line(error)
        raise CheckpointError(f"{path} cannot hold checkpoints: {why}; choose a writable directory") from error
    logging.getLogger("absl").addFilter(_is_news)  # for good: a thread of a failed save may speak after it
    try:
        yield checkpoints
    finally:
        checkpoints._close()


def strange_checkpoints(directory: str | PathLike[str]) -> list[str]:
    """Names, sorted, of what is in a directory of checkpoints and is no checkpoint, nor an unfinished one: all ignore it."""
    entries = sorted(Path(directory).iterdir()) if Path(directory).is_dir() else []
    named = re.compile(r"(0|[1-9][0-9]*)(\.orbax-checkpoint-tmp.*)?")
    return [entry.name for entry in entries if not (named.fullmatch(entry.name) and entry.is_dir())]


def _is_news(record: logging.LogRecord) -> bool:
    """Whether nothing else says what a line of the log says; what orbax's threads raise, its next call raises too."""
    return not (record.exc_info and "orbax" in record.pathname)


class Checkpoints:
    """The checkpoints of one run, in one directory; made by `open_checkpoints`.

    Every save and restore is made by all processes of a distributed run.

    Attributes:
        identity: whose they are.
    """

    def __init__(self, path: Path, keep: int, identity: str):
        self._path = path
        self.identity = identity
        self._newest = ocp.training.preservation_policies.LatestN(keep)
        self._position: int | None = None
        self._may_write = False
        self._open()
        self._directory = os.open(path, os.O_RDONLY)  # kept open: no other directory can pass for this one

    def _open(self) -> None:
        with _hush():
            self._orbax = ocp.training.Checkpointer(
                self._path, preservation_policy=self._newest, cleanup_tmp_directories=self._may_write
            )

    def _close(self) -> None:
        try:
            self.wait()
        except CheckpointError:
            with suppress(Exception):  # it would say the same again, in many lines
                self._orbax.close()
            raise
        else:
            with self._naming_failure():
                self._orbax.close()
        finally:
            os.close(self._directory)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._directory))
        except OSError:
            return False

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, newest first, damaged ones among them."""
        self.wait()
        return sorted((checkpoint.step for checkpoint in self._orbax.checkpoints), reverse=True)

    def wait(self) -> None:
        """Returns when the last save is complete on the disk; raises CheckpointError if it failed."""
        with self._naming_failure():
            self._orbax.wait()

    def save(self, step: int, tree: Tree) -> None:
        """Writes a checkpoint in the background; it becomes visible, as a whole, once it is complete.

        The arrays may be donated or overwritten as soon as this returns. Checkpoints that `restore` has passed over
        are deleted by the first save after it: they belong to a future that is now computed anew.

        Args:
            step: number of outer steps done, above that of the last save or restore.
            tree: a pytree of jax arrays, none of them empty, a PRNG key or complex; sharded in any way.

        Raises:
            CheckpointError: for a leaf or a step that is refused, or if the save before this one failed.
        """
        names, leaves = _flatten(tree)
        if not leaves:
            raise CheckpointError(f"a tree without leaves was given at step {step}: pass the state's arrays")
        for name, leaf in zip(names, leaves, strict=True):
            _refuse_unstorable(name, leaf)
        rejected = [old for old in self.steps() if self._position is None or old > self._position]
        if rejected and self._position is None:
            raise CheckpointError(f"{self._path} already holds checkpoints of steps {rejected}: restore first")
        if self._position is not None and step <= self._position:
            raise CheckpointError(f"step {step} was given after {self._position}; steps must grow: pass the steps done")
        record = json.dumps({"identity": self.identity, "step": step, "leaves": _describe(names, leaves)})
        sealed = {"record": record, "crc32": zlib.crc32(record.encode())}
        self._position = step
        with self._naming_failure():
            if not self._is_there():  # orbax would make it anew, and go on without what it held
                raise FileNotFoundError(self._path)
            if not self._may_write:  # only now: a reader must not clear away what another process is about to complete
                self._may_write = True
                self._orbax.close()
                self._open()
            for old in rejected:
                self._orbax.delete(old)
            # force: the policies of orbax may skip a save without a word, as when another one runs.
            self._orbax.save_async(step, jax.tree.map(_narrow, tree), force=True, custom_metadata=sealed)

    def restore(self, template: Tree, last_step: int | None = None) -> tuple[int, Tree, list[str]]:
        """(step, tree, notes): the newest checkpoint that is whole, and one line on each newer one that is not.

        Every leaf comes back with the bits that were saved, strongly typed, in the template's sharding. Restoring
        changes nothing on the disk.

        Args:
            template: the saved pytree with arrays or `jax.ShapeDtypeStruct`s as leaves; a leaf without a sharding goes
                to the first local device. Leaves come back committed to their devices.
            last_step: the newest step that may be restored; None: any. Newer ones are passed over without a note.

        Raises:
            CheckpointError: if the template has another leaf, dtype or shape than the checkpoint, or if no checkpoint
                is whole.
        """
        target, notes = jax.tree.map(_as_target, template), []
        for step in (x for x in self.steps() if last_step is None or x <= last_step):
            tree, damage = self._try_to_load(step, target)
            if not damage:
                self._position = step
                return step, tree, notes
            notes.append(f"checkpoint {step} in {self._path} was passed over: {damage}")
        tried = "; ".join(notes) or "there is none"
        raise CheckpointError(f"no checkpoint in {self._path} can be restored: {tried}; put a whole one there")

    @contextmanager
    def _naming_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            what = f"checkpoint {self._position} could not be written to {self._path}"
            if not self._is_there():
                raise CheckpointError(
                    f"{what}, which is there no longer: it was moved or deleted meanwhile; put it back, or start anew"
                ) from error
            raise CheckpointError(
                f"{what}: {_one_line(error)}; older checkpoints are unharmed: make room, or mend the disk, and resume"
            ) from error

    def _try_to_load(self, step: int, target: Tree) -> tuple[Tree, str]:
        with _hush():
            try:
                return self._load(step, target), ""
            except CheckpointError:
                raise
            except Exception as error:  # which one, depends on the file and on the byte
                return None, _one_line(error)

    def _load(self, step: int, target: Tree) -> Tree:
        recorded = _unseal(self._orbax.metadata(step).custom_metadata, self.identity, step)
        names, wanted = _flatten(target)
        _compare(step, recorded, names, wanted)
        tree = jax.tree.map(_widen, self._orbax.load(step, jax.tree.map(_narrow, target)), target)
        for old, new in zip(recorded, _describe(names, jax.tree.leaves(tree)), strict=True):
            if old != new:
                raise ValueError(f"leaf {old['name']} has digest {new['digest']:08x}, not {old['digest']:08x} as saved")
        return tree


def _refuse_pipes(directory: Path) -> None:
    # Orbax looks into every checkpoint when it opens them, and a read of a pipe would wait for ever.
    for path, _, files in os.walk(directory):
        for name in files:
            if not _may_be_read(os.path.join(path, name)):
                raise CheckpointError(f"{path}/{name} is no file; required: what was written: move it away")


def _may_be_read(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:  # of a run that goes on
        return True
    except OSError:
        return False


@contextmanager
def _hush() -> Iterator[None]:
    # Of a damaged file orbax complains in hundreds of lines, from several threads, in its log and on stderr, and once
    # more when what it left unread is collected. The one line that `restore` returns says all there is to know.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            gc.collect()
            logging.disable(disabled)


def _flatten(tree: Tree) -> tuple[list[str], list[Any]]:
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path) or "(root)" for path, _ in paths_and_leaves], [x for _, x in paths_and_leaves]


def _refuse_unstorable(name: str, leaf: Any) -> None:
    if not isinstance(leaf, jax.Array):
        kind = type(leaf).__name__
    elif leaf.size == 0 or not any(jnp.issubdtype(leaf.dtype, t) for t in (jnp.bool_, jnp.integer, jnp.floating)):
        kind = str(jax.typeof(leaf))
    else:
        return
    raise CheckpointError(
        f"leaf {name} is {kind}; non-empty jax arrays of bool, integers or reals are required: convert it"
    )


def _as_target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _narrow(leaf: Any) -> Any:
    # Orbax loads in threads of its own, which `with jax.enable_x64(True)` does not reach: give it pairs of 32 bits.
    if leaf.dtype.itemsize != 8:
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    return jax.ShapeDtypeStruct((*leaf.shape, 2), jnp.uint32, sharding=leaf.sharding)


def _widen(leaf: Array, target: jax.ShapeDtypeStruct) -> Array:
    if target.dtype.itemsize != 8:
        return leaf
    return jax.jit(lambda x: jax.lax.bitcast_convert_type(x, target.dtype), out_shardings=target.sharding)(leaf)


def _describe(names: list[str], leaves: list[Array]) -> list[dict[str, Any]]:
    # Leaf by leaf, since one program cannot take leaves that are committed to different devices.
    digests = jax.device_get([digest(leaf) for leaf in leaves])
    return [
        {"name": name, "dtype": str(leaf.dtype), "shape": list(leaf.shape), "digest": int(number)}
        for name, leaf, number in zip(names, leaves, digests, strict=True)
    ]


@jax.jit
def digest(x: Array) -> Array:
    """[] uint32: Σᵢ m(wᵢ ⊕ m(i)) mod 2³², over the 32-bit words wᵢ of the bit pattern, m a bijection that mixes bits.

    Any change within one word changes the sum, since m is a bijection; any other change, exchanged words included,
    escapes with probability 2⁻³². A sum of integers does not depend on its order, nor therefore on the sharding.

    Args:
        x: bools, integers or reals of 1, 2, 4 or 8 bytes, of any shape.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    # Not a reshape to one axis: that would gather a sharded array on every device.
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words ^ _mix(index)), dtype=jnp.uint32)


def _mix(h: Array) -> Array:
    """MurmurHash3's finaliser: a bijection of the 32-bit words in which every input bit moves every output bit."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _unseal(sealed: Any, identity: str, step: int) -> list[dict[str, Any]]:
    # The record has a checksum of its own: a damaged dtype in it must not pass for a template that does not fit.
    name = "record" if isinstance(sealed, dict) and "record" in sealed else "leaves"  # before there were identities
    if not isinstance(sealed, dict) or {name, "crc32"} - sealed.keys():
        raise ValueError("the record of its leaves is missing")
    if zlib.crc32(sealed[name].encode()) != sealed["crc32"]:
        raise ValueError("the record of its leaves does not match its checksum")
    record = json.loads(sealed[name])
    if name == "leaves":
        record = {"identity": "", "step": step, "leaves": record}
    if record["identity"] != identity:
        found, wanted = (name or "a run without identity" for name in (record["identity"], identity))
        raise ValueError(f"it is of {found}, not of {wanted}")
    if record["step"] != step:
        raise ValueError(f"it was saved as step {record['step']}")
    return record["leaves"]


def _compare(step: int, recorded: list[dict[str, Any]], names: list[str], wanted: list[jax.ShapeDtypeStruct]) -> None:
    saved = {leaf["name"]: f"{leaf['dtype']}{leaf['shape']}" for leaf in recorded}
    asked = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in zip(names, wanted, strict=True)}
    for name in saved | asked:
        if saved.get(name) != asked.get(name):
            raise CheckpointError(
                f"leaf {name} is {saved.get(name, 'absent')} in checkpoint {step} and {asked.get(name, 'absent')} in "
                "the template; they must agree: resume with the settings and precision of the first run"
            )
        if asked[name].startswith(WIDE) and not jax.config.jax_enable_x64:
            raise CheckpointError(f"leaf {name} is {asked[name]}; 64 bits are required: switch jax_enable_x64 on")


def _one_line(error: BaseException) -> str:
    """The first cause of an error, without the store's specification that tensorstore appends."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = " ".join(str(error).partition("[tensorstore_spec")[0].split())
    text = text if type(error) is ValueError and text else f"{type(error).__name__}: {text}"
    return text if len(text) <= 300 else text[:300] + "…"
