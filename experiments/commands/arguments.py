"""The arguments of a command about a run: its configuration, from flags and a file, and the command's own options."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro

from bilevel.ranges import counts
from experiments.runs.processes import ProcessOptions
from experiments.settings.algorithms import ALGORITHMS
from experiments.settings.config import check, config_of, converted, default_config, refuse_idle_sweep, unknown_option
from experiments.settings.config_file import as_yaml, read_options
from experiments.settings.options import OptionError, check_fields, choose, replaced, spelled
from experiments.settings.parsing import by_flag, known, mistake, name_of, refuse_beyond_floats, show_help, types_of
from experiments.settings.worlds import WORLDS

# As help shows them: what is changed most often comes first, and parts that are not named here before the last two.
ORDER = ("choice", "search", "target", "run", "world", "algorithm", "problem", "reward", "policy")
ORDER += ("gradients", "critic", "annotator")
LAST = ("output", "processes")
CHOICES = {"world": WORLDS, "algorithm": ALGORITHMS}


@dataclasses.dataclass(frozen=True)
class ChoiceOptions:
    """What all other options depend on."""

    world: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(WORLDS) + "}")] = "gridworld"
    """Which world; each has its own options: --world NAME --help shows them."""
    algorithm: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(ALGORITHMS) + "}")] = "bilevel"
    """Which algorithm; each has its own options: --algorithm NAME --help shows them."""
    config: str = ""
    """A YAML or TOML file of options of the run, as --print-config writes it; flags win over it."""
    print_config: bool = False
    """Write the run's options as YAML, for --config, and do nothing else."""


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Where results go."""

    out: str = ""
    """Run folder; by default runs/<world>-<algorithm>-<hash of the configuration>, so that the same command resumes."""
    allow_layout_change: bool = False
    """Resume a run on other devices than it was started on; its bits may then differ, and the report says so."""
    stopped_code: Annotated[int, counts(0, 125)] = 0
    """Exit code of a run that SIGTERM, SIGHUP or SIGUSR1 has stopped before its end; other than 0, a scheduler can tell it
    from a finished one and start it again."""


NO_PART = (OutputOptions(), ProcessOptions())  # they say where and how a run goes, not what it is


def parse_train(arguments: Sequence[str], command: str = "train", about: str = "", **more: type):
    """(config, output, processes) of the arguments of `train`, and the records of `more`; see `parse_run`."""
    return parse_run(arguments, command, about, output=OutputOptions, processes=ProcessOptions, **more)


def parse_run(arguments: Sequence[str], command: str, about: str, unwritten: Collection[str] = (), **more: type):
    """The configuration that the arguments of a command ask for, and records of the command's own options, of the
    dataclasses `more`, in their order. --print-config leaves the options `unwritten` out unless they are given.

    Help, `about` the command, and --print-config print and exit with 0. Raises OptionError with one line, which names
    the file where that is wrong.
    """
    written = options_of_file(arguments)
    chosen, _ = known(ChoiceOptions(**{name: written.pop(name) for name in CHOICES if name in written}), arguments)
    own = {name: kind() for name, kind in more.items()}
    parts = default_config(chosen.world, chosen.algorithm).parts
    with _naming(chosen.config):
        parts = _with_options(parts, written, chosen, own)
    parsed = _parse(parts | own | {"choice": chosen}, arguments, command, about, own)
    config = config_of(chosen.world, chosen.algorithm, parsed)
    for name in own:
        check_fields(parsed[name])
    check(config)
    refuse_idle_sweep(config)
    if chosen.print_config:
        left_out = {*unwritten} - {*given_options(arguments), *written}
        options = {name: value for name, value in config.options.items() if name not in left_out}
        print(as_yaml({"world": chosen.world, "algorithm": chosen.algorithm} | options), end="")
        raise SystemExit
    return config, *(parsed[name] for name in own)


def given_options(arguments: Iterable[str]) -> list[str]:
    """The options that the arguments name, as fields are called; a switch by either of its flags."""
    return [name_of(flag).removeprefix("no_") for flag, _ in by_flag(arguments) if flag]


def options_of_file(arguments: Sequence[str]) -> dict[str, Any]:
    """The options in the file that --config names, of whose world and algorithm there are such; none without one."""
    path = known(ChoiceOptions(), arguments)[0].config
    written = read_options(path) if path else {}
    with _naming(path):
        for kind in written.keys() & CHOICES.keys():
            choose(spelled(kind), written[kind], CHOICES[kind])
    return written


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Says of mistakes in the block that they are in that file."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"--config {path}: {error}") from error


def _with_options(parts: dict[str, Any], written: Mapping[str, Any], chosen: ChoiceOptions, own: Mapping[str, Any]):
    """The parts of a run with the options of a file in their place."""
    homes = {name: part for part, record in parts.items() for name in types_of(record)}
    for name, value in written.items():
        if name not in homes and any(name in types_of(record) for record in (chosen, *own.values(), *NO_PART)):
            raise OptionError(f"{spelled(name)} is no option of the run; required: on the command line")
        if name not in homes:
            raise unknown_option(chosen.world, chosen.algorithm, name, homes)
        record = parts[homes[name]]
        record = replaced(record, {name: converted(value, types_of(record)[name])})
        check_fields(record)
        parts = parts | {homes[name]: record}
    return parts


def _parse(records: dict[str, Any], arguments: Sequence[str], command: str, about: str, own: Mapping[str, Any]):
    """The records as the arguments change them, by name."""
    others = [name for name in records if name not in ORDER + LAST]
    shown = {name: records[name] for name in (*ORDER, *others, *LAST) if name in records}
    fields = [(name, tyro.conf.OmitArgPrefixes[type(record)], record) for name, record in shown.items()]
    everything = dataclasses.make_dataclass("Options", fields, frozen=True)()
    show_help(everything, arguments, command, about)
    chosen = shown.pop("choice")
    ordered = [*shown.values(), chosen]
    refuse_beyond_floats(ordered, arguments)

    def unknown(name):
        if any(name in types_of(record) for record in NO_PART):
            flags = ", ".join(spelled(x) for record in own.values() for x in types_of(record))
            return OptionError(
                f"{command} got {spelled(name)}; it runs in one process, from its start to its end; required: options of "
                f"the run, and {flags}"
            )
        return unknown_option(chosen.world, chosen.algorithm, name, [x for record in ordered for x in types_of(record)])

    def explain():
        return mistake(ordered, arguments, unknown)

    parsed, strange = known(everything, arguments, explain)
    if strange:
        raise explain()
    return {name: getattr(parsed, name) for name in records}
