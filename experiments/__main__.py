"""The command line, `bilevel COMMAND …`; `HELP` lists the commands."""

import argparse
import contextlib
import functools
import importlib
import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.output import FLAGS, VOICE, Voice, complain, discard, prepare_streams, usable_cores
from experiments.runs.interruption import STOPPING, Ending, Stopped, end_at_once

# Each is a module of `experiments.commands` with `main(arguments, voice)`, which returns the exit code: what may follow
# its name, and what it does.
COMMANDS = {
    "train": ("[OPTIONS]", "run an algorithm on a world, many seeds in one program; the same command resumes it"),
    "report": ("RUN", "write the figures, summary and report of a run folder anew, and print its table"),
    "tune": ("--budget N …", "choose sigma and the step sizes by N transitions, without the problem's constants"),
    "plan": ("[OPTIONS]", "predict memory and time of a run before it is launched; takes the options of train"),
    "bench": ("", "measure fixed workloads at 1 to 1,024 seeds, beside a driver in Python; a table and a figure"),
    "verify": ("[CLAIM …]", "measure the papers' claims, each with a verdict"),
}
COMPILES_ANEW = {"bench", "plan"}  # compile times are among what these measure

HELP = f"""usage: bilevel COMMAND [OPTIONS]

{"".join(f"  {name + ' ' + rest:22s}{about}{chr(10)}" for name, (rest, about) in COMMANDS.items())}\
  {"--version":22s}the versions of bilevel, JAX and Python

{FLAGS}

bilevel COMMAND --help                                  what a command does, and its options
bilevel train --help                                    every option of the default world and algorithm
bilevel train --world bandit --algorithm alternating --help     … and of others
"""
ASKS = {"-h", "--help", "--print-config", "--print_config"}  # for an answer, which is printed at once

AFTER = {  # an interruption
    "train": "the same command resumes from the newest checkpoint",
    "verify": "the same command goes on from what it had measured",
}
INTERRUPTED = 130


def command() -> None:
    """`bilevel` as a process of its own. Ends at once where a save was cut short, whose threads wait for each other."""
    end_at_once(endings(sys.argv[1:]))
    prepare_streams()
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # of a closed terminal, for example; the interpreter's own flush would fail too
            discard(stream)
    if code:
        from experiments.runs.processes import is_alone

        if is_alone():
            os._exit(code)
    sys.exit(code)


def endings(arguments: list[str]) -> dict[int, Ending]:
    """How signals end a command while no run of its own listens to them, by number of the signal. The arguments are not
    read by then, which takes the imports: of them the command and `--stopped-code` are looked for."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--stopped-code", "--stopped_code", type=int, default=0)
    try:
        code = early.parse_known_args(arguments)[0].stopped_code
    except argparse.ArgumentError:  # it is explained once all arguments are read
        code = 0
    name = next((argument for argument in arguments if argument not in VOICE), "")
    interrupted = Ending(INTERRUPTED, _interrupted(name))
    stopped = Ending(code, "stopped before it began, as asked; the same command begins it, or resumes it")
    others = {"verify": {signal.SIGTERM: interrupted}, "train": dict.fromkeys(STOPPING, stopped)}
    return {signal.SIGINT: interrupted} | others.get(name, {})


def _interrupted(name: str) -> str:
    return f"interrupted; {AFTER.get(name, 'nothing was kept: run it again')}"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; its exit code: 0, 1 if a claim fails, 2 for a mistake in what was asked or an output that cannot be
    written, 3 if a claim is stopped by an error, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    voice = Voice("--quiet" in arguments, "--json" in arguments)
    name, *rest = [argument for argument in arguments if argument not in VOICE] or ["--help"]
    if name == "--version" and rest:
        complain(f"bilevel: --version got {shlex.join(rest)}; required: nothing more")
        return 2
    if name in ("-h", "--help", "--version"):
        voice.answer(version() if name == "--version" else HELP)
        return voice.code
    set_up_jax()
    hush_closed_loops()
    # Imported here, so that help comes at once and the devices are chosen before JAX looks at them.
    from bilevel.checkpoint import CheckpointError
    from experiments.files import RunFolderError
    from experiments.runs.processes import RefusedByMain
    from experiments.settings.options import OptionError, choose

    answering = voice.writing(sys.stdout) if ASKS & set(rest) else contextlib.nullcontext()
    try:
        if name == "study":
            study = next((word for word in rest if not word.startswith("-")), "NAME")
            claim = {"complexity": "rate", "variance": "estimator"}.get(study, study)
            raise OptionError(f"a study is a claim; required: bilevel verify P1.{claim}, one of bilevel verify --list")
        choose("command", name, COMMANDS)
        with answering, _compiling_anew() if name in COMPILES_ANEW else contextlib.nullcontext():
            return importlib.import_module(f"experiments.commands.{name}").main(rest, voice) or voice.code
        return voice.code
    except RefusedByMain:  # process 0 says it
        return 2
    except (OptionError, RunFolderError, CheckpointError) as error:
        complain("bilevel: " + " ".join(str(error).split()))
        return 2
    except (KeyboardInterrupt, Stopped):  # Stopped: a run inside of a claim
        complain(f"\nbilevel: {_interrupted(name)}")
        return INTERRUPTED


def version() -> str:
    """The versions of this package, JAX and Python, in a line."""
    from importlib import metadata  # late: no signal is heard until the imports above are over

    installed = {package.name: package.version for package in metadata.distributions()}
    bilevel, jax = (installed.get(name, "(not installed)") for name in ("bilevel-rlhf", "jax"))
    return f"bilevel {bilevel}, jax {jax}, Python {platform.python_version()}"


def set_up_jax() -> None:
    """Chooses devices and compile cache before any device is used; the environment's own settings win."""
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # called from a program that uses JAX already: its devices stay
            # One a core: faster than one device with many threads. Two on a single core, since programs that are
            # partitioned are simplified otherwise than programs for one device, and bits should not depend on cores.
            jax.config.update("jax_num_cpu_devices", max(usable_cores(), 2))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "bilevel-rlhf"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_enable_preemption_service", False)  # would take SIGTERM away from whoever listens here
    if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:
        jax.config.update("jax_default_matmul_precision", "highest")


@contextlib.contextmanager
def _compiling_anew() -> Iterator[None]:
    """Reads and writes no cache of compiled programs."""
    import jax

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@functools.cache
def hush_closed_loops() -> None:
    """Leaves out what threads say that report a part of a failed save to those who have left; the save says why."""
    honest = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            honest(unraisable)

    sys.unraisablehook = hook


if __name__ == "__main__":
    command()
