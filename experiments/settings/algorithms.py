"""The algorithms that the command line knows: each names the parts that it needs, and brings its own options and numbers.

An algorithm is added by one line of `ALGORITHMS`: a record of static options (counts, optimizers, choices), a NamedTuple of
real numbers that may be swept, the parts that it needs, and how it is made of them. Help, configuration, hash, sweeps and
measurements follow from these.
"""

import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from bilevel import preferences
from bilevel.algorithms.alternating import AlternatingConfig, AlternatingHyper, alternating
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper, bilevel_rlhf, line_7
from bilevel.algorithms.two_stage import TwoStageConfig, TwoStageHyper, two_stage
from bilevel.ascent import Optimizer
from bilevel.gradients.hypergradients import Construct, closed_form, implicit, naive, unrolled
from bilevel.gradients.types import Gradients
from bilevel.types import Algorithm, Coefficients, Model, Problem
from experiments.settings.options import ESTIMATOR, Fields, OptionError, choose, fields, part, spelled, swept

HYPERGRADIENTS = {
    "proxy": line_7,
    "naive": naive,
    "closed_form": closed_form,
    "implicit": implicit,
    "unrolled": unrolled,
}
OBJECTIVES = {
    x.__name__: x for x in (preferences.log_likelihood, preferences.excess_log_likelihood, preferences.excess_brier)
}


class Parts(NamedTuple):
    """What an algorithm may be made of, at one point of a sweep."""

    problem: Problem  # of the run; its reward model is None where the algorithm does not name one
    gradients: Callable[..., Gradients]  # of an upper objective and an estimator of line 7, for those that name them


class Entry(NamedTuple):
    """An algorithm of the command line."""

    options: type  # a record of its static options, as `options.part` makes it
    hyper: type  # a NamedTuple of its real numbers, which are options too, and may be swept
    needs: tuple[str, ...]  # names of the parts that it needs, of `options.NAMED_PARTS`
    make: Callable[[Parts, Any, Any], Algorithm]  # of parts, options and hyper, inside the traced function
    # (problem, coefficients) -> its own policy model, such as the Gibbs policy of the reward's parameters; None where
    # it names the part `policy`.
    policy: Callable[[Problem, Coefficients], Model] | None = None


class UpperOptions(NamedTuple):
    """Algorithm 1's upper level."""

    objective: Literal["log_likelihood", "excess_log_likelihood", "excess_brier"] = "log_likelihood"
    """Upper objective: the paper's, or its excess over what the true reward attains."""
    hypergradient: Literal["proxy", "naive", "closed_form", "implicit", "unrolled"] = "proxy"
    """What line 7 adds to the gradient of G at a fixed policy: the paper's difference over sigma; nothing; the change of
    the KL-optimal policy (right for a full table); a solve with the Hessian of J; num-policy-steps steps differentiated."""


def static(config: type, hyper: type, more: Fields | None = None) -> Fields:
    """The options of an algorithm's record of counts and optimizers, which are given by name, and of its real numbers."""
    about = "Any optax optimizer by its name and arguments, such as adam, or sgd:momentum=0.9."
    found: Fields = {}
    for name, (annotation, default) in fields(config).items():
        if annotation == Optimizer:
            found[name] = Annotated[str, tyro.conf.arg(help=about)], default.__name__
        elif annotation != Construct:
            found[name] = annotation, default
    return found | swept(hyper) | (more or {})


def optimizers(options: Any) -> tuple[Optimizer, Optimizer]:
    """The policy's and the reward's optimizer, as functions of their step sizes."""
    return optimizer("policy_optimizer", options.policy_optimizer), optimizer(
        "reward_optimizer", options.reward_optimizer
    )


BilevelOptions = part(
    "BilevelOptions", "Algorithm 1 (bilevel).", static(BilevelConfig, BilevelHyper, ESTIMATOR | fields(UpperOptions))
)
AlternatingOptions = part(
    "AlternatingOptions",
    "Alternating RLHF: the upper gradient without the implicit term.",
    static(AlternatingConfig, AlternatingHyper),
)
TwoStageOptions = part(
    "TwoStageOptions",
    "Two-stage RLHF: the reward is fitted once on pairs of the reference policy.",
    static(TwoStageConfig, TwoStageHyper),
)


def make_bilevel(parts: Parts, options: Any, hyper: BilevelHyper) -> Algorithm:
    """Algorithm 1 as the command line describes it."""
    construct = HYPERGRADIENTS[options.hypergradient]
    if options.hypergradient == "unrolled":
        construct = functools.partial(construct, num_steps=options.num_policy_steps)
    config = BilevelConfig(options.num_policy_steps, options.reuse_labels, *optimizers(options), construct)
    gradients = parts.gradients(OBJECTIVES[options.objective], options.estimator)
    return bilevel_rlhf(parts.problem, gradients, config, hyper)


def make_alternating(parts: Parts, options: Any, hyper: AlternatingHyper) -> Algorithm:
    """Alternating RLHF as the command line describes it."""
    config = AlternatingConfig(options.num_policy_steps, *optimizers(options))
    return alternating(parts.problem, parts.gradients(), config, hyper)


def make_two_stage(parts: Parts, options: Any, hyper: TwoStageHyper) -> Algorithm:
    """Two-stage RLHF as the command line describes it."""
    counts = options.num_batches, options.num_reward_steps, options.num_policy_steps
    return two_stage(parts.problem, parts.gradients(), TwoStageConfig(*counts, *optimizers(options)), hyper)


NEEDS = ("reward", "policy", "annotator", "gradients", "critic")
ALGORITHMS = {
    "bilevel": Entry(BilevelOptions, BilevelHyper, NEEDS, make_bilevel),
    "alternating": Entry(AlternatingOptions, AlternatingHyper, NEEDS, make_alternating),
    "two_stage": Entry(TwoStageOptions, TwoStageHyper, NEEDS, make_two_stage),
}


SHARES = ("b1", "b2", "b3", "decay", "momentum", "rho")  # of the past that an optimizer's running means keep


def optimizer(option: str, text: str) -> Optimizer:
    """An optax optimizer from `name` or `name:argument=number,…`, as a function of its step size. Raises OptionError where
    optax has none of that name, or it does not take those arguments."""
    name, colon, rest = text.partition(":")
    constructor = choose(spelled(option), name, OPTIMIZERS)
    try:
        arguments = _arguments(rest) if colon else {}
        made = constructor(0.1, **arguments)
        jax.eval_shape(lambda x: made.update(x, made.init(x), x), jnp.zeros(1))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{spelled(option)} is {text!r}; required: name or name:argument=number,argument=number, such as "
            f"sgd:momentum=0.9 ({str(error).splitlines()[0]})"
        ) from error
    return functools.partial(constructor, **arguments)


def _arguments(text: str) -> dict[str, float]:
    """The numbers of `argument=number,…`; raises ValueError for what is none, or not one that an optimizer can use."""
    arguments = {}
    for pair in text.split(","):
        name, _, number = (word.strip() for word in pair.partition("="))
        if not name or not number:
            raise ValueError(f"{pair!r} is no argument=number")
        if name in arguments:
            raise ValueError(f"{name} is given twice")
        arguments[name] = float(number)
        if not 0 <= arguments[name] < (1 if name in SHARES else math.inf):
            raise ValueError(f"{name} must be {'in [0, 1)' if name in SHARES else 'finite and at least 0'}")
    return arguments


def _is_optimizer(name: str, constructor) -> bool:
    if name.startswith(("_", "scale_by")) or not isinstance(constructor, types.FunctionType | functools.partial):
        return False
    parameters = inspect.signature(constructor).parameters
    # A key does not belong in a state, and a line search needs the objective's value.
    return next(iter(parameters), "") == "learning_rate" and not {"key", "linesearch"} & set(parameters)


OPTIMIZERS = {name: constructor for name, constructor in vars(optax).items() if _is_optimizer(name, constructor)}
