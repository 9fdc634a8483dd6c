"""The algorithms that the command line knows, each with its own options."""

import dataclasses
import functools
import inspect
import math
import types
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from bilevel.algorithms.alternating import AlternatingConfig, alternating
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf
from bilevel.algorithms.two_stage import TwoStageConfig, two_stage
from bilevel.ascent import Optimizer
from bilevel.gradients import hypergradients
from bilevel.types import Algorithm, Gradients, Hyper, Problem
from experiments.settings.options import OptionError, Values, choose, count, positive


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The ascent: step sizes and optimizers of both levels."""

    num_policy_steps: int = count(10)
    """K, inner (policy) steps an outer step."""
    policy_step_size: Values = positive((0.1,))
    """tau, step size of the policy. Several values: a sweep."""
    policy_optimizer: str = "sgd"
    """Any optax optimizer by its name and arguments, such as adam, or sgd:momentum=0.9."""
    reward_step_size: Values = positive((0.003,))
    """eta, step size of the reward. Several values: a sweep."""
    reward_optimizer: str = "adam"
    """Any optax optimizer by its name and arguments, such as adam, or sgd:momentum=0.9."""

    def optimizers(self) -> tuple[Optimizer, Optimizer]:
        """The policy's and the reward's optimizer, as functions of their step sizes."""
        return optimizer("policy-optimizer", self.policy_optimizer), optimizer(
            "reward-optimizer", self.reward_optimizer
        )


@dataclasses.dataclass(frozen=True)
class BilevelOptions(StepOptions):
    """Algorithm 1 (bilevel)."""

    sigma: Values = positive((0.1,))
    """sigma, weight of G in the penalised lower level, above 0; the proxy's bias is O(sigma). Several values: a sweep."""
    estimator: Literal["weighted", "coupled", "independent"] = "weighted"
    """Estimator of line 7's difference: variance O(1), O(1/sigma), or O(1/sigma^2) (the paper's) as sigma falls."""
    objective: Literal["log_likelihood", "excess_log_likelihood", "excess_brier"] = "log_likelihood"
    """Upper objective: the paper's, or its excess over what the true reward attains."""
    hypergradient: Literal["proxy", "naive", "closed_form", "implicit", "unrolled"] = "proxy"
    """What line 7 adds to the gradient of G at a fixed policy: the paper's difference over sigma; nothing; the change of
    the KL-optimal policy (right for a full table); a solve with the Hessian of J; num-policy-steps steps differentiated."""
    reuse_labels: bool = False
    """One batch of labels an outer step, reweighted as the policy moves; otherwise fresh ones at every inner step."""

    def build(self, problem: Problem, gradients: Gradients, hyper: Hyper) -> Algorithm:
        """The algorithm; called inside the traced function."""
        construct = getattr(hypergradients, self.hypergradient)
        if self.hypergradient == "unrolled":
            construct = functools.partial(construct, num_steps=self.num_policy_steps)
        config = BilevelConfig(self.num_policy_steps, self.reuse_labels, *self.optimizers(), construct)
        return bilevel_rlhf(problem, gradients, config, hyper)


@dataclasses.dataclass(frozen=True)
class AlternatingOptions(StepOptions):
    """Alternating RLHF: the upper gradient without the implicit term."""

    def build(self, problem: Problem, gradients: Gradients, hyper: Hyper) -> Algorithm:
        """The algorithm; called inside the traced function."""
        return alternating(problem, gradients, AlternatingConfig(self.num_policy_steps, *self.optimizers()), hyper)


@dataclasses.dataclass(frozen=True)
class TwoStageOptions(StepOptions):
    """Two-stage RLHF: the reward is fitted once on pairs of the reference policy."""

    num_batches: int = count(10)
    """Batches of pairs (num-pairs each) collected from the reference policy at the start."""
    num_reward_steps: int = count(200)
    """Full-gradient steps of the reward on them."""

    def build(self, problem: Problem, gradients: Gradients, hyper: Hyper) -> Algorithm:
        """The algorithm; called inside the traced function."""
        counts = (self.num_batches, self.num_reward_steps, self.num_policy_steps)
        return two_stage(problem, gradients, TwoStageConfig(*counts, *self.optimizers()), hyper)


SHARES = ("b1", "b2", "b3", "decay", "momentum", "rho")  # of the past that an optimizer's running means keep

ALGORITHMS = {"bilevel": BilevelOptions, "alternating": AlternatingOptions, "two_stage": TwoStageOptions}


def optimizer(option: str, text: str) -> Optimizer:
    """An optax optimizer from `name` or `name:argument=number,…`, as a function of its step size.

    Raises:
        OptionError: optax has none of that name, or it does not take those arguments.
    """
    name, colon, rest = text.partition(":")
    constructor = choose(f"--{option}", name, OPTIMIZERS)
    try:
        arguments = _arguments(rest) if colon else {}
        ours = constructor(0.1, **arguments)
        jax.eval_shape(lambda x: ours.update(x, ours.init(x), x), jnp.zeros(1))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"--{option} is {text!r}; required: name or name:argument=number,argument=number, such as sgd:momentum=0.9 "
            f"({str(error).splitlines()[0]})"
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
