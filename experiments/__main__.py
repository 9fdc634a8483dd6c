"""The command line, `bilevel COMMAND …`; `HELP` lists the commands."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import platform
import re
import shlex
import signal
import sys
import traceback
from pathlib import Path

from experiments.output import FLAGS, Voice, complain, discard, prepare_streams
from experiments.runs.interruption import STOPPING, Ending, Stopped, end_at_once

HELP = f"""usage: bilevel COMMAND [OPTIONS]

  train                 run an algorithm on a world, many seeds in one program; the same command resumes it
  report RUN            write the figures, summary and report of a run folder anew, and print its table
  tune --budget N       choose sigma and the step sizes by N transitions, with no knowledge of the problem's constants
  bench                 measure fixed workloads at 1 to 1,024 seeds, beside a driver in Python; a table and a figure
  bench --plan …        predict memory and time of a run before it is launched; takes the options of train
  study NAME            run a study and write its figure; bilevel study --help lists them
  verify [CLAIM …]      measure the papers' claims, each with a verdict; bilevel verify --help lists them
  --version             the versions of bilevel, JAX and Python

{FLAGS}

bilevel train --help                                    every option of the default world and algorithm
bilevel train --world bandit --algorithm alternating --help     … and of others
"""
ASKS_HELP = {"-h", "--help"}
VOICE = {"--quiet", "--json"}

AFTER = {  # an interruption
    "study": "runs that it had begun, if it makes any, resume with the same command",
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
    """How signals end a command while no run of its own listens to them, by number of the signal.

    The arguments are not read by then, which takes the imports: of them the command and `--stopped-code` are looked for.
    """
    name = next((argument for argument in arguments if argument not in VOICE), "")
    interrupted = Ending(INTERRUPTED, _interrupted(name))
    if name == "verify":
        return {signal.SIGINT: interrupted, signal.SIGTERM: interrupted}
    if name != "train":
        return {signal.SIGINT: interrupted}
    codes = re.findall(r"--stopped[-_]code[= ](\d{1,3})", " ".join(arguments))
    stopped = Ending(
        int(codes[-1]) if codes else 0, "stopped before it began, as asked; the same command begins it, or resumes it"
    )
    return {signal.SIGINT: interrupted, **dict.fromkeys(STOPPING, stopped)}


def _interrupted(name: str) -> str:
    return f"interrupted; {AFTER.get(name, 'nothing was kept: run it again')}"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; its exit code: 0, 1 if a claim fails, 2 for a mistake in what was asked or an output that cannot be
    written, 3 if a claim is stopped by an error, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    voice = Voice("--quiet" in arguments, "--json" in arguments)
    arguments = [argument for argument in arguments if argument not in VOICE]
    if arguments[:1] == ["--version"] and len(arguments) > 1:
        complain(f"bilevel: --version got {shlex.join(arguments[1:])}; required: nothing more")
        return 2
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        voice.answer(version() if arguments == ["--version"] else HELP)
        return voice.code
    set_up_jax()
    hush_closed_loops()
    # Imported here, so that help comes at once and the devices are chosen before JAX looks at them.
    from bilevel.checkpoint import CheckpointError
    from experiments.files import RunFolderError
    from experiments.runs.processes import RefusedByMain
    from experiments.settings.options import OptionError, choose

    commands = {
        "train": train_command,
        "report": report_command,
        "tune": tune_command,
        "bench": bench_command,
        "study": study_command,
        "verify": verify_command,
    }
    try:
        run = choose("command", arguments[0], commands)
        with voice.writing(sys.stdout) if ASKS_HELP & set(arguments) else contextlib.nullcontext():
            return run(arguments[1:], voice) or voice.code
        return voice.code
    except RefusedByMain:  # process 0 says it
        return 2
    except (OptionError, RunFolderError, CheckpointError) as error:
        complain("bilevel: " + " ".join(str(error).split()))
        return 2
    except (KeyboardInterrupt, Stopped):  # Stopped: a run inside of a study
        complain(f"\nbilevel: {_interrupted(arguments[0])}")
        return INTERRUPTED


def version() -> str:
    """The versions of this package, JAX and Python, in a line."""
    from importlib import metadata  # late: no signal is heard until the imports above are over

    installed = {package.name: package.version for package in metadata.distributions()}
    ours = {"bilevel": "bilevel-rlhf", "jax": "jax"}
    versions = {name: installed.get(package, "(not installed)") for name, package in ours.items()}
    return ", ".join(f"{name} {x}" for name, x in (versions | {"Python": platform.python_version()}).items())


def set_up_jax() -> None:
    """Chooses devices and compile cache before any device is used; the environment's own settings win."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # called from a program that uses JAX already: its devices stay
            # One a core: faster than one device with many threads. Two on a single core, since programs that are
            # partitioned are simplified otherwise than programs for one device, and bits should not depend on cores.
            jax.config.update("jax_num_cpu_devices", max(cores, 2))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "bilevel-rlhf"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_enable_preemption_service", False)  # would take SIGTERM away from whoever listens here
    if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:
        jax.config.update("jax_default_matmul_precision", "highest")


def compile_fast() -> None:
    """Where there are CPUs alone, XLA optimises less, as for the programs of a run (`bilevel.lanes`): half the compile time.

    Studies compile many programs outside of runs. Has no effect once a device was used.
    """
    from importlib import metadata

    accelerators = metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not accelerators:
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_backend_optimization_level" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=1".strip()


@functools.cache
def hush_closed_loops() -> None:
    """Leaves out what threads say that report a part of a failed save to those who have left; the save says why."""
    honest = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            honest(unraisable)

    sys.unraisablehook = hook


# train ----------------------------------------------------------------------------------------------------------------


def train_command(arguments: list[str], voice: Voice) -> int:
    """`bilevel train`."""
    from experiments.runs.alike import refuse_other_options
    from experiments.runs.driver import train
    from experiments.runs.processes import is_main, joined
    from experiments.settings.arguments import given_options, parse_train
    from experiments.settings.config import idle

    config, output, processes = parse_train(arguments)
    command = "bilevel train " + shlex.join(arguments)
    with joined(processes):
        refuse_other_options({"--peer-timeout": processes.peer_timeout, "--stopped-code": output.stopped_code})
        for sentence in idle(config, given_options(arguments)) if is_main() else ():
            voice.say(f"note: {sentence}")
        try:
            folder = train(config, output.out or None, output.allow_layout_change, voice.say, command.strip())
        except Stopped as stopped:
            voice.say(f"bilevel: {stopped}")
            return output.stopped_code
        if is_main():
            voice.table(folder / "summary.json")
    return 0


# tune -----------------------------------------------------------------------------------------------------------------


def tune_command(arguments: list[str], voice: Voice) -> int:
    """`bilevel tune`."""
    from experiments.commands.tune import RANGES, TuneOptions, tune
    from experiments.runs.processes import ProcessOptions
    from experiments.settings.arguments import OutputOptions, given_options, parse_train, take
    from experiments.settings.options import OptionError

    config, output, _, options = parse_train(arguments, "bilevel tune", search=TuneOptions)
    given = given_options(arguments)
    others = {field.name for kind in (OutputOptions, ProcessOptions) for field in dataclasses.fields(kind)} - {"out"}
    if strange := [f"--{name.replace('_', '-')}" for name in given if name in others]:
        raise OptionError(
            f"tune got {', '.join(strange)}; it runs in one process, from its start to its end; required: options of the "
            "run and of the search, and --out"
        )
    rest = arguments
    for name in ("out", *(field.name for field in dataclasses.fields(TuneOptions))):
        rest = take(name, rest, "")[1]
    out = output.out or "runs/tune"
    tune(config, options, [name for name in RANGES if name not in given], out, rest, voice.say)
    voice.table(Path(out) / "tune.json")
    return 0


# report ---------------------------------------------------------------------------------------------------------------


def report_command(arguments: list[str], voice: Voice) -> int:
    """`bilevel report RUN`."""
    from experiments.runs.driver import report
    from experiments.settings.options import OptionError

    if ASKS_HELP & set(arguments):
        print(
            "usage: bilevel report RUN\n\nWrite the figures, summary and report of a run folder anew; print its table."
        )
        return 0
    if len(arguments) != 1 or not arguments[0] or arguments[0].startswith("-"):
        raise OptionError(
            f"report got {shlex.join(arguments) or 'no argument'}; required: one run folder, as in bilevel report runs/NAME"
        )
    page = report(Path(arguments[0]), voice.say)
    voice.table(page.with_name("summary.json"))
    return 0


# bench ----------------------------------------------------------------------------------------------------------------

BENCH_HELP = """usage: bilevel bench [--out FOLDER]
       bilevel bench --plan [--target {cpu,cuda,tpu}] [--target-devices N] [OPTIONS OF train]

Measure fixed workloads, some twenty minutes; write bench.json and bench.png to FOLDER, by default runs/bench.
With --plan, predict what a run would take: memory a device and time, as in
bilevel bench --plan --target cuda --target-devices 8 --seeds 4096 --world cartpole
"""


def bench_command(arguments: list[str], voice: Voice) -> int:
    """`bilevel bench`."""
    from bilevel.ranges import MOST
    from experiments.commands import bench, plan
    from experiments.files import make_folder
    from experiments.runs.processes import ProcessOptions
    from experiments.settings.arguments import parse_train, take
    from experiments.settings.job import choose_devices
    from experiments.settings.options import OptionError, choose

    if ASKS_HELP & set(arguments) and "--plan" not in arguments:
        print(BENCH_HELP)
        return 0
    if "--plan" not in arguments:
        out, rest = take("out", arguments, "runs/bench")
        if rest:
            raise OptionError(
                f"bench got {' '.join(rest)}; required: --out FOLDER alone, or --plan with train's options"
            )
        folder = make_folder(out)
        with _without_cache():
            bench.main(folder, voice.say)
        voice.table(folder / "bench.json")
        return 0
    target, rest = take("target", [x for x in arguments if x != "--plan"], "cpu")
    choose("--target", target, plan.TARGETS)
    number, rest = take("target-devices", rest, "")
    if number and not (number.isdecimal() and len(number) <= len(str(MOST)) and 1 <= int(number) <= MOST):
        raise OptionError(f"--target-devices is {number!r}; required: a whole number, at least 1 and at most {MOST}")
    config, _, processes = parse_train(rest)
    if processes != ProcessOptions():
        raise OptionError(
            "--plan is made by one process, for any number of devices; required: --target-devices N, the devices of all "
            "processes together, in place of --distributed and what belongs to it"
        )
    count = int(number) if number else len(choose_devices(config))
    with _without_cache():
        made = plan.plan(config, target, count)
    voice.say(plan.describe(config, target, count, made))
    voice.numbers(plan.as_json(target, count, made))
    return 0


@contextlib.contextmanager
def _without_cache():
    """Compiles anew: compile times are among what is measured."""
    import jax

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


# study ----------------------------------------------------------------------------------------------------------------


def study_command(arguments: list[str], voice: Voice) -> int:
    """`bilevel study`."""
    from experiments.files import make_folder
    from experiments.settings.arguments import take
    from experiments.settings.options import OptionError, choose
    from experiments.studies import STUDIES

    out, rest = take("out", arguments, "")
    if ASKS_HELP & set(rest):
        print(
            "usage: bilevel study NAME [--out FOLDER]\n\nWrites NAME.png and NAME.json to FOLDER, by default runs/NAME.\n"
        )
        print("\n".join(f"  {name:20s}{about}" for name, about in STUDIES.items()))
        return 0
    if len(rest) != 1:
        raise OptionError(f"study got {shlex.join(rest) or 'no name'}; required: one name, as in bilevel study ladder")
    choose("study", rest[0], STUDIES)
    folder = make_folder(out or f"runs/{rest[0]}")
    compile_fast()
    importlib.import_module(f"experiments.studies.{rest[0]}").main(folder, voice.say)
    voice.table(folder / f"{rest[0]}.json")
    return 0


# verify ---------------------------------------------------------------------------------------------------------------

VERIFY_HELP = """usage: bilevel verify [CLAIM …] [--quick] [--out FOLDER]

Measure claims of the papers and judge each: it holds when the 95 % interval lies inside a margin that was stated beforehand,
fails when it lies outside, and is otherwise not decided. An assumption of a theorem is refuted where an instance refutes it,
with the share of such instances, or not refuted. Prints a table; writes summary.json, a figure a claim and report.html to
FOLDER/full, or with --quick (smaller budgets) to FOLDER/quick; FOLDER is runs/verify by default. What is there already is
not measured again, unless the code that it depends on has changed; interrupted by Ctrl-C or SIGTERM, the same command goes
on. Exit code: 3 if a claim is stopped by an error, 1 if one fails, 2 for a mistake in what was asked, 130 when interrupted,
otherwise 0, also with an assumption refuted, which is no failure of the code.

  claim              minutes (quick, full)
"""


def verify_command(arguments: list[str], voice: Voice) -> int:
    """`bilevel verify`."""
    from experiments.files import RunFolderError
    from experiments.settings.arguments import take
    from experiments.settings.options import OptionError, nearest
    from experiments.verify import CLAIMS
    from experiments.verify.runner import load_each, verify

    if ASKS_HELP & set(arguments):
        loaded, broken = load_each(CLAIMS)
        print(VERIFY_HELP + "\n".join(_about_claim(name, claim) for name, (claim, _) in loaded.items()))
        for name, error in broken.items():
            print(f"  {name:18s}cannot be loaded: {error!r}")
        return 0
    out, rest = take("out", arguments, "runs/verify")
    names = [name for name in rest if name != "--quick"]
    if options := [name for name in names if name.startswith("-")]:
        hint = "".join(f"; did you mean {near}?" for near in nearest(options[0], ("--quick", "--out")))
        raise OptionError(
            f"verify got {' '.join(options)}; required: names of claims, --quick and --out FOLDER alone{hint}"
        )
    compile_fast()
    try:
        results = verify(names, out, "--quick" in rest, voice.say)
    except (OptionError, RunFolderError):
        raise
    except Exception:
        traceback.print_exc()
        return 3
    voice.table(Path(out) / ("quick" if "--quick" in rest else "full") / "summary.json")
    return int(any(result["verdict"] == "fails" for result in results.values()))


def _about_claim(name: str, claim) -> str:
    quick, full = claim.minutes
    return f"  {name:18s}{quick:5g} {full:5g}   {claim.statement}"


if __name__ == "__main__":
    command()
