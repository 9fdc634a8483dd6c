"""Every option of a run, with its symbol in the paper, its unit, range and default; and the checks on them.

A run's configuration is one part of each kind. Names are unique over all parts, so that it is also a flat dict of JSON.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

Values = tuple[float, ...]


class OptionError(ValueError):
    """A mistake in what was asked for; the message is one line: what was given, what is required, what to do."""


def option(default, required: str, test: Callable[[Any], bool]):
    """A field with that default, whose values must pass the test."""
    return dataclasses.field(default=default, metadata={"required": required, "test": test})


MOST = 2**20  # of anything that is counted, where nothing else is said


def count(default: int, least: int = 1, most: int = MOST):
    """A whole number between `least` and `most`."""
    return option(default, f"a whole number, at least {least} and at most {most}", lambda x: least <= x <= most)


def positive(default, finite=True):
    """A number above 0, finite unless it need not be."""
    required = "a finite number above 0" if finite else "a number above 0, or inf"
    return option(default, required, lambda x: x > 0 and (x < math.inf or not finite))


def at_least_zero(default):
    """A finite number that is 0 or more."""
    return option(default, "a finite number, at least 0", lambda x: 0 <= x < math.inf)


def unit(default, low=True, high=True):
    """A number in [0, 1], or without either end."""
    required = f"a number in {'[' if low else '('}0, 1{']' if high else ')'}"
    return option(default, required, lambda x: 0 <= x <= 1 and (low or x > 0) and (high or x < 1))


def sizes(default: tuple[int, ...]):
    """Widths of hidden layers."""
    return option(
        default, "widths from 1 to 65536, such as 64 64 (none: an affine function)", lambda x: 1 <= x <= 2**16
    )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The run: how many seeds and steps, and how they are laid out."""

    steps: int = count(100, 1, 2**31 - 1)
    """T, outer steps. More than before extends a finished run."""
    seeds: int = count(32)
    """Number of seeds, run beside each other in one program. More than before extends a finished run."""
    seed: int = count(0, 0, 2**32 - 1)
    """Base seed: chooses the randomness of the whole study, 0 to 2^32 - 1."""
    chunk: str = option(
        "10", "a whole number, at least 1, or all", lambda x: x == "all" or (x.isdecimal() and int(x) > 0)
    )
    """Outer steps between two checkpoints; `all`: the whole run as one call of one program, equal bit for bit."""
    width: int = count(16)
    """Lanes (hyperparameters x seeds) a device in one block: memory grows with it, a lane's bits depend on it."""
    devices: int = count(0, 0)
    """Devices to share the lanes; 0: all there are (on a CPU, one virtual device a core)."""
    precision: Literal["float32", "float64"] = "float32"
    """Floating-point type of everything."""
    gradient_tolerance: float = at_least_zero(0.0)
    """A seed has converged, and is frozen, once the norm of its upper gradient stays below this; 0: never."""
    patience: int = count(5)
    """Steps in a row below the tolerance that count as converged."""
    evaluation_rollouts: int = count(8)
    """Rollouts that measure the true return after each outer step, where no exact oracle does."""


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
    """The problem: discount, KL, and the segments that are compared."""

    discount: Values = unit((0.9,), high=False)
    """gamma of values and of segment returns, in (0, 1); 0 for a bandit. Several values: a sweep in one program."""
    kl_weight: Values = at_least_zero((0.5,))
    """w, weight of KL(policy || reference), in units of reward. Several values: a sweep."""
    segment_length: int = count(10)
    """H, steps of a compared segment: a rollout of its own from the initial distribution, so it may be longer than
    rollout-length, but not than an episode of a world that has episodes."""
    reference: str = "uniform"
    """pi_ref: `uniform`, or an .npz file, at most 2 GiB: with `policy` [S, A] given as it is, with `obs` and `action` fitted
    to those demonstrations."""


@dataclasses.dataclass(frozen=True)
class AnnotatorOptions:
    """The annotator: Bradley-Terry, and B-Pref's teachers on top."""

    rationality: Values = positive((1.0,))
    """kappa of the Bradley-Terry annotator, and of the model that the learner fits, 1/reward. Several values: a sweep."""
    myopia: float = unit(1.0, low=False)
    """Discount of a segment's early steps in the annotator's eyes, in (0, 1]; 1: off."""
    error_rate: float = option(0.0, "a number in [0, 0.5]", lambda x: 0 <= x <= 0.5)
    """Probability that a label is flipped, in [0, 0.5]."""
    skip_below: float = option(-math.inf, "a number, or -inf", lambda x: x < math.inf)
    """Queries whose segments both return less than this are skipped; -inf: off."""
    tie_within: float = option(-math.inf, "a number, or -inf", lambda x: x < math.inf)
    """Segments whose returns differ by less than this get the label one half; -inf: off."""


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The models of reward, policy and critic."""

    reward: Literal["mlp", "linear", "table"] = "mlp"
    """r_phi: a tanh network, linear in the features, or one number for each state and action."""
    reward_hidden: tuple[int, ...] = sizes((32, 32))
    """Widths of the reward network's hidden layers."""
    reward_bound: float = positive(math.inf, finite=False)
    """The reward network's output is squashed into (-bound, bound) by tanh; inf: off."""
    policy: Literal["mlp", "table"] = "mlp"
    """pi_lambda: a softmax (or Gaussian, where actions are continuous) network, or a softmax table."""
    policy_hidden: tuple[int, ...] = sizes((32, 32))
    """Widths of the policy network's hidden layers."""
    critic_model: Literal["mlp", "table"] = "mlp"
    """Q_theta of Algorithm 2: a tanh network, or a table."""
    critic_hidden: tuple[int, ...] = sizes((32, 32))
    """Widths of the critic network's hidden layers."""


@dataclasses.dataclass(frozen=True)
class GradientOptions:
    """The gradients: exact or sampled, and from which critic."""

    gradients: Literal["sampled", "exact"] = "sampled"
    """Where J's and G's derivatives come from: samples, or (tiny finite worlds only) linear solves and enumeration."""
    batch_size: int = option(64, f"an even number from 4 to {MOST}", lambda x: 4 <= x <= MOST and x % 2 == 0)
    """B, trajectories a gradient of J."""
    num_pairs: int = option(0, f"2 to {MOST}, or 0 for half of batch-size", lambda x: x == 0 or 2 <= x <= MOST)
    """Labelled pairs a gradient of G; 0: batch-size / 2, as in the paper."""
    rollout_length: int = count(40)
    """T, steps of a rollout for a gradient of J; truncation biases it by gamma^T."""
    critic: Literal["td", "monte_carlo", "exact"] = "td"
    """Advantage estimator: Algorithm 2, discounted returns to go, or (finite worlds only) a linear solve."""
    num_targets: int = count(2)
    """L, target updates of Algorithm 2 at every inner step."""
    num_transitions: int = count(256)
    """n, transitions a target update; a multiple of num-chains."""
    num_chains: int = count(32)
    """Independent chains, the batch of one SGD step of Algorithm 2; 1 is the paper's."""
    average_critic: bool = True
    """Algorithm 2 returns the averaged iterate of its last pass; otherwise the last iterate."""
    reset_critic: bool = False
    """Every pass of Algorithm 2 starts from the initial critic; otherwise from the previous pass's result."""
    critic_step_size: Values = positive((0.05,))
    """beta', step size of Algorithm 2's SGD; a network of width W needs about 2/W or less. Several values: a sweep."""
    critic_radius: Values = positive((20.0,), finite=False)
    """Radius of the ball around the initial critic that Algorithm 2 projects on; inf: off. Several values: a sweep."""


COMMON = {
    "run": RunOptions,
    "problem": ObjectiveOptions,
    "annotator": AnnotatorOptions,
    "models": ModelOptions,
    "estimation": GradientOptions,
}


def choose(kind: str, name: str, choices) -> Any:
    """The choice of that name, or an OptionError with all of them; `kind` is what it is called, such as --world."""
    name = str(name)
    if name in choices:
        return choices[name]
    hint = "".join(f"; did you mean {kind} {near}?" for near in nearest(name, choices))
    raise OptionError(f"{kind} is {name!r}; required: one of {', '.join(choices)}{hint}")


def nearest(name: str, choices) -> list[str]:
    """The choice that is spelled most like `name`, if one is spelled much like it."""
    return difflib.get_close_matches(name, choices, n=1, cutoff=0.7)  # not gpu for tpu


KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def check_fields(part) -> None:
    """Raises OptionError for the first option of a part whose value is of another type or out of its range."""
    types = get_type_hints(type(part))
    for field in dataclasses.fields(part):
        test = field.metadata.get("test")
        kind, values = types[field.name], (getattr(part, field.name),)
        if get_origin(kind) is tuple:
            kind, values = get_args(kind)[0], values[0]
        flag = "--" + field.name.replace("_", "-")
        if types[field.name] == Values and not values:
            raise OptionError(f"{flag} got no value; required: at least one")
        for value in values:
            required = _mismatch(value, kind)
            if not required and test and (value != value or not test(value)):
                required = field.metadata["required"]
            if required:
                default = " ".join(map(str, field.default if isinstance(field.default, tuple) else (field.default,)))
                raise OptionError(f"{flag} is {value!r}; required: {required}; the default is {default or 'none'}")


def _mismatch(value, kind) -> str:
    """What a value of that type would be, where this is none."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    if kind not in KINDS:
        return ""
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return "" if fits else KINDS[kind]
