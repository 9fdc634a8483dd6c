"""What an option is, the options of every run, and the checks on them.

A part of a configuration is a record of options: a frozen dataclass or a NamedTuple, whose annotations carry the ranges of
their values (`bilevel.ranges`) and whose texts under the fields are the help. Most are the records of `bilevel` themselves,
or derived from them by `fields`, `swept` and `part`: a number has one home, one default and one text. Names are unique over
all parts, so that a configuration is also a flat dict of JSON.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import tyro

from bilevel.gradients.critics import TDHyper, TDSizes
from bilevel.gradients.sampled import SampleSizes
from bilevel.preferences import Teacher
from bilevel.ranges import NotNegative, PositiveOrInf, Range, counts, range_of
from bilevel.types import Coefficients

Values = tuple[float, ...]
Count = Annotated[int, counts()]
Fields = dict[str, tuple[Any, Any]]  # name -> (annotation with range and help, default)


class OptionError(ValueError):
    """A mistake in what was asked for; the message is one line: what was given, what is required, what to do."""


class Option(NamedTuple):
    """One option: the type of its value, its default, and the range that the value, or each of several, must be in."""

    kind: Any
    default: Any
    range: Range | None


@functools.cache
def options_of(kind: type) -> dict[str, Option]:
    """The options of a part by name; `kind` is its dataclass or NamedTuple."""
    bare = get_type_hints(kind)
    return {name: Option(bare[name], default, range_of(hint)) for name, (hint, default) in fields(kind).items()}


@functools.cache
def fields(kind: type) -> Fields:
    """The fields of a record as options, with the text under each as its help."""
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    names = kind._fields if hasattr(kind, "_fields") else [field.name for field in dataclasses.fields(kind)]
    return {name: (_helped(hints[name], texts.get(name)), _default(kind, name)) for name in names}


def swept(kind: type) -> Fields:
    """The real numbers of a record as options that take several values each: a sweep in one program."""

    def several(annotation, default):
        text = next(x.help for x in annotation.__metadata__ if hasattr(x, "help")) + " Several values: a sweep."
        return Annotated[Values, range_of(annotation), tyro.conf.arg(help=text)], (default,)

    return {name: several(*field) for name, field in fields(kind).items()}


def part(name: str, about: str, options: Fields) -> type:
    """A frozen dataclass of these options, under one heading of the help."""
    made = dataclasses.make_dataclass(name, [(key, *field) for key, field in options.items()], frozen=True)
    made.__doc__, made.__module__ = about, __name__
    return made


def pick(kind: type, values: dict[str, Any]) -> Any:
    """The NamedTuple of that kind with those of the values that are its fields."""
    return kind(**{name: values[name] for name in kind._fields if name in values})


def replaced(record: Any, changes: Mapping[str, Any]) -> Any:
    """A part with some of its options changed."""
    return record._replace(**changes) if hasattr(record, "_replace") else dataclasses.replace(record, **changes)


def _default(kind: type, name: str) -> Any:
    if hasattr(kind, "_field_defaults"):
        return kind._field_defaults[name]
    return next(field.default for field in dataclasses.fields(kind) if field.name == name)


def _helped(annotation: Any, text: str | None) -> Any:
    return annotation if text is None else Annotated[annotation, tyro.conf.arg(help=text)]


def _texts(kind: type) -> dict[str, str]:
    """The string under each field of a class, as the source has it; none of a class that has no source."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    except (OSError, TypeError, IndentationError):
        return {}
    pairs = itertools.pairwise(body)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


Chunk = Annotated[
    str, Range("a whole number, at least 1, or all", lambda x: x == "all" or (x.isdecimal() and int(x) > 0))
]
Widths = Annotated[
    tuple[int, ...],
    Range("widths from 1 to 65536, such as 64 64 (none: an affine function)", lambda x: 1 <= x <= 2**16),
]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The run: how many seeds and steps, and how they are laid out."""

    steps: Annotated[int, counts(1, 2**31 - 1)] = 100
    """T, outer steps. More than before extends a finished run."""
    seeds: Count = 32
    """Number of seeds, run beside each other in one program. More than before extends a finished run."""
    seed: Annotated[int, counts(0, 2**32 - 1)] = 0
    """Base seed: chooses the randomness of the whole study, 0 to 2^32 - 1."""
    chunk: Chunk = "10"
    """Outer steps between two checkpoints; `all`: the whole run as one call of one program, equal bit for bit."""
    width: Count = 16
    """Lanes (hyperparameters x seeds) a device in one block: memory grows with it, a lane's bits depend on it."""
    devices: Annotated[int, counts(0)] = 0
    """Devices to share the lanes; 0: all there are (on a CPU, one virtual device a core)."""
    precision: Literal["float32", "float64"] = "float32"
    """Floating-point type of everything."""
    gradient_tolerance: NotNegative = 0.0
    """A seed has converged, and is frozen, once the norm of its upper gradient stays below this; 0: never."""
    patience: Count = 5
    """Steps in a row below the tolerance that count as converged."""
    evaluation_rollouts: Count = 8
    """Rollouts that measure the true return after each outer step, where no exact oracle does."""


class ReferenceOptions(NamedTuple):
    """The reference policy."""

    reference: str = "uniform"
    """pi_ref: `uniform`, or an .npz file, at most 2 GiB: with `policy` [S, A] given as it is, with `obs` and `action` fitted
    to those demonstrations."""


ProblemOptions = part(
    "ProblemOptions",
    "The problem: discount, KL, rationality, reference.",
    swept(Coefficients) | fields(ReferenceOptions),
)


@dataclasses.dataclass(frozen=True)
class RewardOptions:
    """The model of the reward."""

    reward: Literal["mlp", "linear", "table"] = "mlp"
    """r_phi: a tanh network, linear in the features, or one number for each state and action."""
    reward_hidden: Widths = (32, 32)
    """Widths of the reward network's hidden layers."""
    reward_bound: PositiveOrInf = math.inf
    """The reward network's output is squashed into (-bound, bound) by tanh; inf: off."""


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """The model of the policy."""

    policy: Literal["mlp", "table"] = "mlp"
    """pi_lambda: a softmax (or Gaussian, where actions are continuous) network, or a softmax table."""
    policy_hidden: Widths = (32, 32)
    """Widths of the policy network's hidden layers."""


class CriticOptions(NamedTuple):
    """The critic, and its model."""

    critic: Literal["td", "monte_carlo", "exact"] = "td"
    """Advantage estimator: Algorithm 2, discounted returns to go, or (finite worlds only) a linear solve."""
    critic_model: Literal["mlp", "table"] = "mlp"
    """Q_theta of Algorithm 2: a tanh network, or a table."""
    critic_hidden: Widths = (32, 32)
    """Widths of the critic network's hidden layers."""


class SourceOptions(NamedTuple):
    """Where derivatives come from."""

    gradients: Literal["sampled", "exact"] = "sampled"
    """Where J's and G's derivatives come from: samples, or (tiny finite worlds only) linear solves and enumeration."""


_samples = fields(SampleSizes)
ESTIMATOR: Fields = {"estimator": _samples["estimator"]}  # of line 7: Algorithm 1's own
GradientOptions = part(
    "GradientOptions",
    "The gradients of J and G: exact or sampled, and from how much.",
    fields(SourceOptions) | {name: field for name, field in _samples.items() if name not in ESTIMATOR},
)
TDOptions = part(
    "TDOptions",
    "The critic: how advantages are estimated (Algorithm 2, or in another way).",
    fields(CriticOptions) | fields(TDSizes) | swept(TDHyper),
)
NAMED_PARTS = {
    "reward": RewardOptions,
    "policy": PolicyOptions,
    "annotator": Teacher,
    "gradients": GradientOptions,
    "critic": TDOptions,
}


def spelled(name: str) -> str:
    """An option as the command line spells it."""
    return "--" + name.replace("_", "-")


def choose(kind: str, name: str, choices) -> Any:
    """The choice of that name, or an OptionError with all of them; `kind` is what it is called, such as --world."""
    name = str(name)
    if name in choices:
        return choices[name]
    hint = "".join(f"; did you mean {kind} {near}?" for near in nearest(name, choices))
    raise OptionError(f"{kind} is {name!r}; required: one of {', '.join(choices)}{hint}")


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """The choice that is spelled most like `name`, if one is spelled much like it."""
    return difflib.get_close_matches(name, choices, n=1, cutoff=0.7)  # not gpu for tpu


KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def check_fields(record: Any) -> None:
    """Raises OptionError for the first option of a part whose value is of another type or out of its range."""
    for name, option in options_of(type(record)).items():
        kind, values = option.kind, (getattr(record, name),)
        if get_origin(kind) is tuple:
            kind, values = get_args(kind)[0], values[0]
        if option.kind == Values and not values:
            raise OptionError(f"{spelled(name)} got no value; required: at least one")
        for value in values:
            required = _mismatch(value, kind)
            if not required and option.range and (value != value or not option.range.test(value)):
                required = option.range.required
            if required:
                shown = option.default if isinstance(option.default, tuple) else (option.default,)
                default = " ".join(map(str, shown)) or "none"
                raise OptionError(f"{spelled(name)} is {value!r}; required: {required}; the default is {default}")


def _mismatch(value, kind) -> str:
    """What a value of that type would be, where this is none."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    if kind not in KINDS:
        return ""
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return "" if fits else KINDS[kind]
