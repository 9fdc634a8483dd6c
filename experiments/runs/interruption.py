"""Signals that ask for an end: a command ends at once; a run ends its chunk and writes the checkpoint first."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

# SIGHUP: the terminal was closed; SIGUSR1: a scheduler's warning. Not every platform has them.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
ASKING = [*STOPPING, signal.SIGINT]

OVER = threading.Event()  # a run that listened has ended


class Ending(NamedTuple):
    """How a signal ends a process."""

    code: int  # exit code
    line: str  # what is said of it


def end_at_once(endings: Mapping[int, Ending]) -> None:
    """From now on each of these signals, by number, ends this process; while a run listens (`requests_to_stop`), it
    decides.

    At once, and by no exception, which Python drops where it collects garbage or ends an object: the command would go
    on. Nothing is lost by it, for files are written whole. Signals that are ignored stay so, as under nohup; those of
    `STOPPING` do nothing once a run has ended.
    """

    def end(number, frame):
        if number in STOPPING and OVER.is_set():  # nothing is left to stop, and the command is about to end
            return
        _write(f"bilevel: {endings[number].line}")
        os._exit(endings[number].code)

    for number in endings:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def _write(line: str) -> None:
    with suppress(OSError):  # whoever read the lines may have been interrupted too
        os.write(2, f"\n{line}\n".encode())


class Stopped(Exception):
    """A run stopped in good order, as a signal asked; the message says where, and how it goes on."""


class Requests:
    """Which signals have asked the run to stop: their numbers, in their order."""

    def __init__(self):
        self.received: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.received)

    def end(self, step: int, last_step: int) -> None:
        """Ends a run at `step`, whose checkpoint is complete: raises KeyboardInterrupt where Ctrl-C asked, else
        Stopped.

        Each of several processes ends by the signal that it got itself. One that got none, and stops since another did,
        ends as a scheduler would end it: nobody pressed Ctrl-C there, and `--stopped-code` tells that the run is to go
        on.
        """
        if signal.SIGINT in self.received:
            raise KeyboardInterrupt
        raise Stopped(f"stopped after step {step} of {last_step}, as asked; the same command goes on from there")


@contextmanager
def requests_to_stop() -> Iterator[Requests]:
    """Collects the signals of `ASKING` while the block runs; a second Ctrl-C does at once what it did before the block.
    That is to raise KeyboardInterrupt, unless `end_at_once` has changed it. SIGHUP stays ignored where it was, as under
    nohup. In a thread other than the main one, which cannot listen to signals, nothing is collected."""
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def receive(number, frame):
        again = signal.SIGINT in requests.received
        requests.received.append(number)
        if number == signal.SIGINT and again:
            at_once = before[number] if callable(before[number]) else signal.default_int_handler
            return at_once(number, frame)
        hint = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        _write(f"stopping when the running chunk has ended{hint}")

    always = (signal.SIGTERM, signal.SIGINT)
    heard = [number for number in ASKING if number in always or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in heard}
    for number in before:
        signal.signal(number, receive)
    try:
        yield requests
    finally:
        OVER.set()
        for number, handler in before.items():
            signal.signal(number, handler)
