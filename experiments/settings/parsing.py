"""Words of a command line as records of options, by tyro; and one line for what cannot be read.

A record is a part of a configuration, as `experiments.settings.options` describes it.
"""

import contextlib
import inspect
import io
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_args, get_origin

import tyro

from experiments.output import FLAGS
from experiments.settings.options import OptionError, check_fields, nearest, options_of, replaced, spelled

ASKS_HELP = {"-h", "--help"}


def parse(default: Any, arguments: Sequence[str], command: str, about: str, required: str) -> Any:
    """The record `default` as a command's arguments change it, in which "" stands for what must be given; prints the
    help, `about` it, and exits with 0. Raises OptionError with one line, which says in words what is `required`."""
    show_help(default, arguments, command, about)
    options, others = known(default, arguments)
    if others or "" in (getattr(options, name) for name in types_of(options)):
        near = nearest(others[0], map(spelled, types_of(default))) if others else []
        hint = f"; did you mean {near[0]}?" if near else ""
        given = shlex.join(arguments) or "no argument"
        raise OptionError(f"{command} got {given}; required: {required}{hint}")
    check_fields(options)
    return options


def show_help(default: Any, arguments: Iterable[str], command: str, about: str) -> None:
    """Prints the help of a record and exits with 0, if the arguments ask for it."""
    if ASKS_HELP & set(arguments):
        os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, 120))  # wider, groups stand side by side
        text = f"{inspect.cleandoc(about)}\n\n{FLAGS}"
        tyro.cli(type(default), default=default, args=["--help"], prog=f"bilevel {command}", description=text)


def known(
    default: Any, arguments: Sequence[str], explain: Callable[[], OptionError] | None = None
) -> tuple[Any, list[str]]:
    """The record as those arguments change it that it knows, and the others. Raises OptionError where a value does not fit
    its option; `explain` makes it, or `mistake` where that is None."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(type(default), default=default, args=arguments, return_unknown_args=True, add_help=False)
    except (SystemExit, AssertionError) as error:  # AssertionError: completion for a shell that tyro does not know
        raise explain() if explain else mistake([default], arguments) from error


def mistake(
    records: Iterable[Any], arguments: Sequence[str], unknown: Callable[[str], OptionError] | None = None
) -> OptionError:
    """The error for the first argument that fits none of the records; `unknown` makes it for a name that is of none.
    Without `unknown` names that are of none are left out, and switches, which words of another meaning may follow."""
    homes = {name: record for record in records for name in types_of(record)}
    switches = {f"no_{name}": record for name, record in homes.items() if types_of(record)[name] is bool}
    for flag, values in by_flag(arguments):
        name = name_of(flag)
        try:
            if name in switches or (name in homes and (unknown or types_of(homes[name])[name] is not bool)):
                _check_values((homes | switches)[name], flag, values)
            elif unknown and flag:
                raise unknown(name)
            elif unknown and values:
                raise OptionError(f"{values[0]!r} belongs to no option; required: options, as in --steps 100")
        except OptionError as error:
            return error
    return OptionError(f"these arguments cannot be read: {shlex.join(arguments)}")


def types_of(record: Any) -> dict[str, Any]:
    """The type of each option of a record, by name."""
    return {name: option.kind for name, option in options_of(type(record)).items()}


def name_of(flag: str) -> str:
    """The name of the option that a flag sets, which may be written with underscores."""
    return flag.removeprefix("--").replace("-", "_")


def by_flag(arguments: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the values that follow it; those before the first one come with an empty flag."""
    flag, values = "", []
    for argument in arguments:
        if argument.startswith("--"):
            yield flag, values
            flag, given, value = argument.partition("=")
            values = [value] if given else []
        else:
            values.append(argument)
    yield flag, values


def refuse_beyond_floats(records: Iterable[Any], arguments: Iterable[str]) -> None:
    """Raises OptionError for a number so large or so small that a float of it is infinite or 0."""
    homes = {name: (record, kind) for record in records for name, kind in types_of(record).items()}
    for flag, words in by_flag(arguments):
        record, kind = homes.get(name_of(flag), (None, None))
        for word in words if float in (kind, *get_args(kind)) else ():
            number, digits = _read(word, float), word.lower().partition("e")[0]
            vanishes = number == 0 and any(digit in digits for digit in "123456789")
            if vanishes or (number in (math.inf, -math.inf) and "inf" not in digits):
                bounds = options_of(type(record))[name_of(flag)].range
                required = bounds.required if bounds else "a number"
                raise OptionError(
                    f"{flag} is {word}, which as a floating-point number is {number}; required: {required}"
                )


def _check_values(record: Any, flag: str, values: list[str]) -> None:
    """Raises OptionError unless the words are a value of a record's option, or several where it takes several."""
    types, name, shown = types_of(record), name_of(flag), " ".join(values)
    kind = types.get(name, bool)  # none of that name: the opposite of a switch
    if kind is bool:
        if values:
            switch = name if name in types else name.removeprefix("no_")
            raise OptionError(
                f"{flag} got {shown}; required: no value, as in {spelled(switch)} or {spelled('no_' + switch)}"
            )
    elif get_origin(kind) is tuple:
        if "," in shown:
            apart = " ".join(shown.replace(",", " ").split())
            raise OptionError(f"{flag} is {shown!r}; required: values separated by spaces, as in {flag} {apart}")
        check_fields(replaced(record, {name: tuple(_read(value, get_args(kind)[0]) for value in values)}))
    elif len(values) != 1:
        given = f"got {shown}" if values else "was given without a value"
        raise OptionError(f"{flag} {given}; required: one value; the default is {str(getattr(record, name)) or 'none'}")
    else:
        check_fields(replaced(record, {name: _read(shown, kind)}))


def _read(word: str, kind: Any) -> Any:
    """The number that the word is, or the word itself, which `check_fields` then refuses."""
    if kind not in (int, float):
        return word
    try:
        return kind(word)
    except ValueError:
        return word
