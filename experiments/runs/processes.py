"""Several processes as one run: JAX's distributed runtime, what one of them does for all, and what they agree on."""

import dataclasses
import errno
import ipaddress
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from bilevel.ranges import Range, counts
from experiments.files import RunFolderError
from experiments.runs.interruption import Stopped
from experiments.runs.relay import open_relay, split
from experiments.settings.options import OptionError, check_fields

LESS = 0.7  # of `peer_timeout`: the silence after which a process counts as dead, so that the others end within it
LONGEST = 10 * 86_400_000  # milliseconds that a process waits for others that live
_ending, _said = threading.Lock(), threading.Event()


class RefusedByMain(RunFolderError):
    """What process 0 refused, in the other processes; it has said why."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Several processes, on one machine or many, as one run; they share the run's folder."""

    distributed: bool = False
    """Join the other processes. SLURM, Kubernetes, Open MPI and TPU pods are detected; elsewhere give the next three."""
    coordinator: str = ""
    """HOST:PORT where process 0 listens, to whoever can connect: the network must be trusted."""
    num_processes: Annotated[int, Range("at least 1, or 0 to detect it", lambda x: x >= 0)] = 0
    """How many processes there are."""
    process_id: Annotated[int, Range("at least 0, or -1 to detect it", lambda x: x >= -1)] = -1
    """The number of this one, from 0."""
    peer_timeout: Annotated[int, counts(10, 86400)] = 100
    """Seconds after which a process that has gone silent ends the others."""


@contextmanager
def joined(options: ProcessOptions) -> Iterator[None]:
    """Joins the other processes of the run, where that is asked for; enter it before any device is used.

    When not all come, each that did says so and ends with exit code 2, `peer_timeout` seconds after it came. When
    another dies or fails inside the block, this one says so in a line and ends with 1: at once if that is process 0,
    otherwise `peer_timeout` seconds later at most. Raises OptionError where an option is out of its range or missing, the
    port is taken, or there is no cluster.
    """
    check_fields(options)
    given = _check_place(options)
    if not options.distributed:
        yield
        return
    stages = _Stages(threading.Event(), threading.Event())
    try:
        _join(options, given, stages)
    except OptionError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"--distributed found no other processes ({reason}); required: a cluster that JAX detects, or "
            "--coordinator HOST:PORT --num-processes N --process-id I in each of them"
        ) from error
    threading.Thread(target=_watch, args=(stages, options.peer_timeout), daemon=True).start()
    try:
        yield
    except (OptionError, RunFolderError, Stopped):
        raise  # in all of them
    except Exception as error:
        while error.__cause__ is not None:  # a checkpoint that needs the dead fails as one, for example
            error = error.__cause__
        _end(_first_line(error), options.peer_timeout)
    finally:
        _leave(stages, options.peer_timeout)


class _Stages(NamedTuple):
    """How far this process is."""

    joined: threading.Event  # all processes have come
    left: threading.Event  # none needs the others any more: it does not matter who ends


def _check_place(options: ProcessOptions) -> bool:
    """Whether the options say where this process belongs, else JAX detects it; raises OptionError where they say a part
    of it."""
    place = {
        "--coordinator": options.coordinator != "",
        "--num-processes": options.num_processes > 0,
        "--process-id": options.process_id >= 0,
    }
    if not any(place.values()):
        return False
    place["--distributed"] = options.distributed
    given, missing = ([name for name, is_given in place.items() if is_given == wanted] for wanted in (True, False))
    if missing:
        raise OptionError(
            f"{', '.join(given)} came without {', '.join(missing)}; required: all four, or --distributed alone where JAX "
            "can detect the cluster"
        )
    if not _is_address(options.coordinator):
        raise OptionError(
            f"--coordinator is {options.coordinator!r}; required: HOST:PORT, a port from 1 to 65535, as in host0:1234, "
            "192.0.2.1:1234 or [2001:db8::1]:1234"
        )
    if options.process_id >= options.num_processes:
        raise OptionError(
            f"--process-id is {options.process_id} with --num-processes {options.num_processes}; required: a number below "
            "--num-processes"
        )
    return True


def _is_address(text: str) -> bool:
    """Whether it is HOST:PORT, with an IPv6 address in brackets and a port that can be listened at."""
    found = re.fullmatch(r"(\[[^\s\[\]/]+\]|[^\s\[\]/:]+):([0-9]{1,5})", text)
    return found is not None and 0 < int(found[2]) < 2**16


def _join(options: ProcessOptions, given: bool, stages: _Stages) -> None:
    """Returns when all processes have come; ends this one if they do not."""
    timeout, place = options.peer_timeout, (options.coordinator, options.num_processes, options.process_id)
    if not given:
        address = os.environ.get("JAX_COORDINATOR_ADDRESS")
        place = ClusterEnv.auto_detect_unset_distributed_params(address, None, None, None, None, timeout)[:3]
    if None in place:
        raise ValueError("no cluster is detected")
    address, count, process = place
    if not 0 < split(address)[1] < 2**16:
        raise ValueError(f"its coordinator is {address}, whose port is none")

    twice = ", or two processes have the same --process-id" if given else ""

    def lost(reason: str) -> None:
        if stages.joined.is_set() and not stages.left.is_set():
            _end(reason + twice, 0)

    def give_up() -> None:
        _say(
            f"not all {count} processes have come within {timeout} s, or process 0 is not at {address}{twice}; required: "
            f"the same command in each of them, at about the same time{', with its own --process-id' if given else ''}"
        )
        os._exit(2)

    timer = threading.Timer(timeout, give_up)  # JAX itself would abort with a stack trace
    timer.daemon = True
    timer.start()
    try:
        # In a thread, so that this one hears signals meanwhile, which it does not inside of JAX.
        joining = ThreadPoolExecutor(1).submit(
            jax.distributed.initialize,
            open_relay(address, LESS * timeout, lost, stages.joined) if process else address,
            count,
            process,
            coordinator_bind_address=None if process else bindable(address),
            initialization_timeout=2 * timeout,
            heartbeat_timeout_seconds=2 * timeout,  # the watch below is sooner, and clearer
            shutdown_timeout_seconds=timeout,
        )
        joining.result()
        stages.joined.set()
    finally:
        timer.cancel()


def bindable(address: str) -> str | None:
    """The address, where process 0 can listen there and the others mean the same by it; otherwise None, which is said.
    A service in front of this machine is no address of it; and a machine may call itself by a loopback address, where
    the others know it by another."""
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:  # JAX takes it from there
        return None
    host, port = split(address)
    with suppress(OSError):
        for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            found = entry[4][0]
            alone = ipaddress.ip_address(found.partition("%")[0]).is_loopback and host not in ("localhost", found)
            if _is_here(found, port) and not alone:
                return address
    _say(
        f"note: {host} is no address of this machine that the others know too: process 0 listens on all that it has, port "
        f"{port}; all networks there must be trusted, or JAX_COORDINATOR_BIND_ADDRESS name one as HOST:PORT"
    )
    return None


def _is_here(host: str, port: int) -> bool:
    """Whether it is an address of this machine. Raises OptionError where it is, and another program listens there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what listened there before may have just ended
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OptionError(f"port {port} of {host} is in use; required: a free one for --coordinator") from error
            return False
    return True


def _watch(stages: _Stages, timeout: float) -> None:
    """Ends this process when another has not counted on for most of `timeout` seconds. It counts until all have left,
    so that one that waits for the others is not taken for dead. JAX's own heartbeats would end it too, with a stack
    trace instead of a line."""
    state = distributed.global_state
    store, me = state.client, state.process_id
    patience = timeout * (LESS if me else 0.9)  # process 0 holds the others' connection: it ends after them
    heard = {i: (None, time.monotonic()) for i in range(state.num_processes) if i != me}
    beat = 0
    while not stages.left.wait(timeout / 20):
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
                elif time.monotonic() - since > patience and not stages.left.is_set():
                    _end(f"nothing was heard of process {other} for {time.monotonic() - since:.0f} s", timeout)
        except jax.errors.JaxRuntimeError as error:
            if not stages.left.wait(timeout / 10):  # unless all have left meanwhile
                _end(f"process 0 does not answer: {_first_line(error)}", timeout)


def _leave(stages: _Stages, timeout: float) -> None:
    """Returns when all processes are over; until then, the end of process 0 is told here too."""
    try:
        distributed.global_state.client.wait_at_barrier("bilevel/over", LONGEST)  # the watch ends it if another dies
        stages.left.set()
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:
        _end(_first_line(error), timeout)


def _end(reason: str, timeout: float) -> None:
    """Says the reason, once, and ends this process without the usual exit, which would wait for the dead. The others
    have a part of `timeout` to hear the reason; 0: process 0 has gone, by which they would hear it."""
    state = distributed.global_state
    with _ending:
        if not _said.is_set():
            _said.set()
            _say(
                f"process {state.process_id} ends, for the run needs all {state.num_processes} ({reason}); start them again "
                "with the same command to go on from the newest checkpoint"
            )
    if timeout:
        with suppress(jax.errors.JaxRuntimeError):
            state.client.key_value_set(f"bilevel/lost/{state.process_id}", reason, allow_overwrite=True)
            if state.process_id == 0:  # the others' connection ends with this process: they hear it first
                time.sleep(3 * timeout / 20)
    os._exit(1)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or repr(error)


def _say(line: str) -> None:
    with suppress(OSError):  # whoever read it may have gone
        print(f"bilevel: {line}", file=sys.stderr, flush=True)


def is_alone() -> bool:
    """Whether this process has joined no others. Asks no device."""
    return distributed.global_state.client is None


def is_main() -> bool:
    """Whether this is process 0, which alone writes metrics and reports, and speaks."""
    return jax.process_index() == 0


def agree(function: Callable[[], Any]) -> Any:
    """What `function` returns in process 0, a JSON value, in every process; each must call this. Raises RefusedByMain
    in the others, where it raised a refusal in process 0."""
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
