"""What a command says: lines for people, its last table as JSON for programs; and what happens if nobody can read them."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

VOICE = {"--quiet", "--json"}
FLAGS = """Every command takes --quiet, to say errors alone, and --json, to print its last table as JSON, on one line, and
other lines to standard error."""


LEFT = (errno.EPIPE, errno.EIO)  # whoever read a pipe, or a terminal, has left


def silent(line: str) -> None:
    """Says nothing. Whatever takes lines may be given this one, and then shows no bar either."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_streams() -> None:
    """Lets standard output and error take every line: a ? for a character that their encoding lacks, nothing if closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the process began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        else:
            stream.reconfigure(errors="replace")


class Voice:
    """How a command speaks; output that cannot be written ends nothing that runs."""

    def __init__(self, quiet: bool, json: bool):
        self.json = json  # the last table is printed as JSON, and lines go to standard error
        self.say = silent if quiet else self._say  # takes the lines that a person should see
        self.code = 0  # that the output asks for: 2 if it could not be written; 0 also where whoever read it has left

    def _say(self, line: str) -> None:
        from tqdm import tqdm

        stream = sys.stderr if self.json else sys.stdout
        with self.writing(stream):
            tqdm.write(line, file=stream)  # above a bar, if there is one

    def answer(self, text: str) -> None:
        """Prints what was asked for, such as help."""
        with self.writing(sys.stdout):
            print(text)

    def numbers(self, table: Any) -> None:
        """Prints a last table of JSON values, if it is wanted as JSON."""
        if self.json:
            self.answer(json.dumps(table))

    @contextlib.contextmanager
    def writing(self, stream: TextIO) -> Iterator[None]:
        """Flushes what is written inside, for a log is read while a run goes on; where that fails, it is dropped."""
        try:
            try:
                yield
            finally:
                stream.flush()
        except OSError as error:
            discard(stream)
            if error.errno not in LEFT:
                self.code = 2
                complain(f"bilevel: the output cannot be written ({error.strerror}); required: a place that takes it")


def discard(stream: TextIO) -> None:
    """Sends nowhere what the stream still holds, and what is written to it from now on."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def complain(line: str) -> None:
    """Prints an error, if anybody can read it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)
