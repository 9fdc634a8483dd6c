"""Several processes as one run: JAX's distributed runtime, what one of them does for all, and what they agree on."""

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from experiments.files import RunFolderError
from experiments.interruption import Stopped
from experiments.options import OptionError, check_fields, count, option


class RefusedByMain(RunFolderError):
    """What process 0 refused, in the other processes; it has said why."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Several processes, on one machine or many, as one run; they share the run's folder."""

    distributed: bool = False
    """Join the other processes. SLURM, Kubernetes, Open MPI and TPU pods are detected; elsewhere give the next three."""
    coordinator: str = ""
    """HOST:PORT where process 0 listens."""
    num_processes: int = option(0, "at least 1, or 0 to detect it", lambda x: x >= 0)
    """How many processes there are."""
    process_id: int = option(-1, "at least 0, or -1 to detect it", lambda x: x >= -1)
    """The number of this one, from 0."""
    peer_timeout: int = count(100, 10, 86400)
    """Seconds after which a process that has gone silent ends the others."""


@contextmanager
def joined(options: ProcessOptions) -> Iterator[None]:
    """Joins the other processes of the run, where that is asked for; enter it before any device is used.

    When another process dies or fails inside the block, this one says so and ends, `peer_timeout` seconds later at most.

    Raises:
        OptionError: an option is out of its range or missing, or the others cannot be reached.
    """
    check_fields(options)
    explicit = {"coordinator": options.coordinator, "num_processes": options.num_processes}
    if not options.distributed:
        if any(explicit.values()) or options.process_id >= 0:
            raise OptionError("--coordinator, --num-processes and --process-id were given; required: --distributed too")
        yield
        return
    given = options.coordinator and options.num_processes and options.process_id >= 0
    if (any(explicit.values()) or options.process_id >= 0) and not given:
        raise OptionError(
            f"--coordinator is {options.coordinator!r}, --num-processes {options.num_processes}, --process-id "
            f"{options.process_id}; required: all three, or none of them where JAX can detect the cluster"
        )
    host, _, port = options.coordinator.rpartition(":")
    if given and not (options.process_id < options.num_processes and host and port.isdecimal()):
        raise OptionError(
            f"--coordinator is {options.coordinator!r}, --process-id {options.process_id} of {options.num_processes}; "
            "required: HOST:PORT, and a number below --num-processes"
        )
    place = (options.coordinator, options.num_processes, options.process_id) if given else (None, None, None)
    try:
        jax.distributed.initialize(
            *place,
            initialization_timeout=options.peer_timeout,
            heartbeat_timeout_seconds=2 * options.peer_timeout,  # the watch below is sooner, and clearer
            shutdown_timeout_seconds=options.peer_timeout,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"--distributed found no other processes ({reason}); required: a cluster that JAX detects, or "
            "--coordinator HOST:PORT --num-processes N --process-id I in each of them"
        ) from error
    over = threading.Event()
    threading.Thread(target=_watch, args=(over, options.peer_timeout), daemon=True).start()
    try:
        yield
    except (OptionError, RunFolderError, Stopped):
        raise  # in all of them
    except Exception as error:
        while error.__cause__ is not None:  # a checkpoint that needs the dead fails as one, for example
            error = error.__cause__
        _end(str(error).strip().partition("\n")[0][:200] or repr(error), options.peer_timeout)
    finally:
        over.set()


def _watch(over: threading.Event, timeout: float) -> None:
    """Ends this process when another has not counted on for most of `timeout` seconds.

    JAX's own heartbeats would end it too, with a stack trace instead of a line.
    """
    store, me = distributed.global_state.client, jax.process_index()
    patience = timeout * (0.7 if me else 0.9)  # process 0 holds the others' connection: it ends after them
    heard = {i: (None, time.monotonic()) for i in range(jax.process_count()) if i != me}
    beat = 0
    while not over.wait(timeout / 20):
        beat += 1
        try:
            store.key_value_set(f"bilevel/beat/{me}", str(beat), allow_overwrite=True)
            beats = dict(store.key_value_dir_get("bilevel/beat/"))
            if lost := store.key_value_dir_get("bilevel/lost/"):
                _end(lost[0][1], timeout)
            for other, (count, since) in heard.items():
                now = beats.get(f"bilevel/beat/{other}")
                if now != count:
                    heard[other] = (now, time.monotonic())
                elif time.monotonic() - since > patience and not over.is_set():
                    _end(f"nothing was heard of process {other} for {time.monotonic() - since:.0f} s", timeout)
        except jax.errors.JaxRuntimeError as error:
            if not over.wait(timeout / 10):  # unless the run has ended meanwhile
                _end(f"process 0 does not answer: {str(error).partition(chr(10))[0][:100]}", timeout)


def _end(reason: str, timeout: float) -> None:
    """Tells the other processes, and ends this one without the usual exit, which would wait for the dead."""
    print(
        f"bilevel: process {jax.process_index()} ends, for the run needs all {jax.process_count()} ({reason}); start them "
        "again with the same command to go on from the newest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    with suppress(jax.errors.JaxRuntimeError):
        store = distributed.global_state.client
        store.key_value_set(f"bilevel/lost/{jax.process_index()}", reason, allow_overwrite=True)
        if is_main():  # the others' connection ends with this process: they hear it first
            time.sleep(3 * timeout / 20)
    os._exit(1)


def is_alone() -> bool:
    """Whether this process has joined no others. Asks no device."""
    return distributed.global_state.client is None


def is_main() -> bool:
    """Whether this is process 0, which alone writes metrics and reports, and speaks."""
    return jax.process_index() == 0


def agree(function: Callable[[], Any]) -> Any:
    """What `function` returns in process 0, a JSON value, in every process; each must call this.

    Raises:
        RefusedByMain: in the others, where it raised a refusal in process 0.
    """
    if jax.process_count() == 1:
        return function()
    refusal, text = None, b""
    if is_main():
        try:
            text = json.dumps({"value": function()}).encode()
        except (OptionError, RunFolderError) as error:
            refusal, text = error, json.dumps({"refused": str(error)}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text.ljust(size, b" ")[:size], np.uint8)
    said = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes())
    if refusal is not None:
        raise refusal
    if "refused" in said:
        raise RefusedByMain(said["refused"])
    return said["value"]


def of_all(value: np.generic) -> np.ndarray:
    """[processes] the value that each process gives; each must call this."""
    return np.array([value]) if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(value))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in some process; each must call this."""
    return bool(np.any(of_all(np.bool_(flag))))
