"""A signal that asks a run to stop: the running chunk ends, its checkpoint is written, and the run stops in good order."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# SIGHUP: the terminal was closed; SIGUSR1: a scheduler's warning. Not every platform has them.
ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Stopped(Exception):
    """A run stopped in good order, as a signal asked; the message says where, and how it goes on."""


class Requests:
    """Which signals have asked the run to stop.

    Attributes:
        received: signal numbers, in their order.
    """

    def __init__(self):
        self.received: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.received)

    def end(self, step: int, last_step: int) -> None:
        """Ends a run at `step`, whose checkpoint is complete.

        Raises:
            KeyboardInterrupt: Ctrl-C asked.
            Stopped: another signal did, or another process was asked.
        """
        if signal.SIGINT in self.received:
            raise KeyboardInterrupt
        raise Stopped(f"stopped after step {step} of {last_step}, as asked; the same command goes on from there")


@contextmanager
def requests_to_stop() -> Iterator[Requests]:
    """Collects the signals of `ASKING` while the block runs; a second Ctrl-C raises KeyboardInterrupt at once.

    SIGHUP stays ignored where it was, as under nohup. In a thread other than the main one, which cannot listen to signals,
    nothing is collected.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def receive(number, frame):
        again = signal.SIGINT in requests.received
        requests.received.append(number)
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        hint = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        with suppress(OSError):  # whoever read the lines may have been interrupted too
            os.write(2, f"\nstopping when the running chunk has ended{hint}\n".encode())

    always = (signal.SIGTERM, signal.SIGINT)
    heard = [number for number in ASKING if number in always or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in heard}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
