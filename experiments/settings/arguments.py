"""The arguments of a command: options of a run, read from the parts that hold them, and a line for what cannot be read."""

import contextlib
import dataclasses
import io
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from bilevel.ranges import counts
from experiments.output import FLAGS
from experiments.runs.processes import ProcessOptions
from experiments.settings.algorithms import ALGORITHMS
from experiments.settings.config import check, config_of, default_config, refuse_idle_sweep, replaced, unknown_option
from experiments.settings.options import OptionError, check_fields, options_of
from experiments.settings.worlds import WORLDS

# As help shows them: what is changed most often comes first.
ORDER = ("run", "world", "algorithm", "problem", "reward", "policy", "gradients", "critic", "annotator")


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


def parse_train(arguments: list[str], program: str = "bilevel train", **more: type):
    """(config, output, processes) of the arguments of `train`; help prints and exits with 0.

    Args:
        arguments: what follows the command.
        program: the command, as help calls it.
        more: further dataclasses of options by name, which are returned after the three.

    Raises:
        OptionError: with one line.
    """
    world, rest = take("world", arguments, "gridworld")
    algorithm, rest = take("algorithm", rest, "bilevel")
    others = {"output": OutputOptions(), "processes": ProcessOptions()} | {name: kind() for name, kind in more.items()}
    parts = default_config(world, algorithm).parts | others
    chosen = {"world": world, "algorithm": algorithm}
    _refuse_beyond_floats(parts.values(), rest)
    order = [*more, *(name for name in ORDER if name in parts), "output", "processes"]
    parsed = _parse({name: parts[name] for name in order}, chosen, rest, program)
    config = config_of(world, algorithm, parsed)
    for name in ("output", *more):
        check_fields(parsed[name])
    check(config)
    refuse_idle_sweep(config)
    return config, *(parsed[name] for name in others)


def given_options(arguments: Iterable[str]) -> list[str]:
    """The options that the arguments name, as fields are called; a switch by either of its flags."""
    names = (flag[2:].replace("-", "_") for flag, _ in _by_flag(arguments) if flag)
    return [name.removeprefix("no_") for name in names]


def take(option: str, arguments: list[str], default: str) -> tuple[str, list[str]]:
    """The value of `--option VALUE` or `--option=VALUE`, and the other arguments.

    Raises:
        OptionError: the option has no value.
    """
    value, rest, flag = default, [], f"--{option}"
    example = f", as in {flag} {default}" if default else ""
    remaining = iter(arguments)
    for argument in remaining:
        if argument == flag:
            value = next(remaining, None)
            if value is None or value.startswith("--"):
                raise OptionError(f"{flag} was given without a value; required: one{example}")
        elif argument.startswith(flag + "="):
            value = argument.partition("=")[2]
            if not value:
                raise OptionError(f"{flag} was given without a value; required: one{example}")
        else:
            rest.append(argument)
    return value, rest


def _parse(parts: dict[str, Any], chosen: dict[str, str], arguments: list[str], program: str) -> dict[str, Any]:
    """The parts as the arguments change them, by tyro; what it cannot read is explained here."""
    everything = _together(parts, chosen)
    if {"-h", "--help"} & set(arguments):
        os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, 120))  # wider, groups stand side by side
        tyro.cli(everything, args=["--help"], prog=program)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parsed = tyro.cli(everything, args=arguments, prog=program)
    except SystemExit as error:
        raise _mistake(list(parts.values()), chosen, arguments) from error
    return {name: getattr(parsed, name) for name in parts}


def _together(parts: dict[str, Any], chosen: dict[str, str]) -> type:
    """One dataclass of all parts, each of which is a group of the help."""

    def name(kind: str, choices: Iterable[str]) -> Any:
        about = f"Which {kind}; each has its own options: --{kind} NAME --help shows them."
        return Annotated[Literal[tuple(choices)], tyro.conf.arg(name=kind, help=about)]

    # The names were read before, since the other options depend on them; here they are for the help.
    fields = [("world_", name("world", WORLDS), chosen["world"])]
    fields += [("algorithm_", name("algorithm", ALGORITHMS), chosen["algorithm"])]
    fields += [(name, tyro.conf.OmitArgPrefixes[type(part)], part) for name, part in parts.items()]
    everything = dataclasses.make_dataclass("Options", fields, frozen=True)
    everything.__doc__ = "{algorithm} on {world}. ".format(**chosen) + FLAGS
    return everything


# What cannot be read --------------------------------------------------------------------------------------------------


def _mistake(parts: Iterable[Any], chosen: dict[str, str], arguments: Iterable[str]) -> OptionError:
    """For the first argument that does not fit its option."""
    homes = {name: part for part in parts for name in options_of(type(part))}
    switches = {f"no_{name}" for name, part in homes.items() if isinstance(getattr(part, name), bool)}
    for flag, values in _by_flag(arguments):
        name = flag.removeprefix("--").replace("-", "_")
        try:
            if not flag and values:
                raise OptionError(f"{values[0]!r} belongs to no option; required: options, as in --steps 100")
            if name in homes:
                _check_values(homes[name], name, values)
            elif name in switches and values:
                raise OptionError(f"{flag} got {' '.join(values)}; required: no value")
            elif flag and name not in switches:
                raise unknown_option(chosen["world"], chosen["algorithm"], name, [*homes, *chosen])
        except OptionError as error:
            return error
    return OptionError(f"these arguments cannot be read: {' '.join(arguments)}")


def _by_flag(arguments: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with the values that follow it; those before the first one come with an empty name."""
    flag, values = "", []
    for argument in arguments:
        if argument.startswith("--"):
            yield flag, values
            flag, given, value = argument.partition("=")
            values = [value] if given else []
        else:
            values.append(argument)
    yield flag, values


def _refuse_beyond_floats(parts: Iterable[Any], arguments: Iterable[str]) -> None:
    """Raises OptionError for a number so large or so small that a float of it is infinite or 0."""
    homes = {name: option for part in parts for name, option in options_of(type(part)).items()}
    for flag, words in _by_flag(arguments):
        option = homes.get(flag.removeprefix("--").replace("-", "_"))
        kind = option.kind if option else None
        for word in words if float in (kind, *get_args(kind)) else ():
            number, digits = _read(word, float), word.lower().partition("e")[0]
            vanishes = number == 0 and any(digit in digits for digit in "123456789")
            if vanishes or (number in (math.inf, -math.inf) and "inf" not in digits):
                required = option.range.required if option.range else "a number"
                raise OptionError(
                    f"{flag} is {word}, which as a floating-point number is {number}; required: {required}"
                )


def _check_values(part: Any, name: str, values: list[str]) -> None:
    """Raises OptionError unless the words are a value of that option of the part, or several where it takes several."""
    flag, kind, shown = "--" + name.replace("_", "-"), options_of(type(part))[name].kind, " ".join(values)
    if kind is bool:
        if values:
            raise OptionError(f"{flag} got {shown}; required: no value; --no-{flag[2:]} is its opposite")
        return
    if get_origin(kind) is not tuple:
        if len(values) != 1:
            raise OptionError(
                f"{flag} got {shown or 'no value'}; required: one value; the default is {str(getattr(part, name)) or 'none'}"
            )
        check_fields(replaced(part, {name: _read(shown, kind)}))
    elif "," in shown:
        apart = " ".join(shown.replace(",", " ").split())
        raise OptionError(f"{flag} is {shown!r}; required: values separated by spaces, as in {flag} {apart}")
    else:
        check_fields(replaced(part, {name: tuple(_read(value, get_args(kind)[0]) for value in values)}))


def _read(word: str, kind: Any) -> Any:
    """The number that the word is, or the word itself, which `check_fields` then refuses."""
    if kind not in (int, float):
        return word
    try:
        return kind(word)
    except ValueError:
        return word
