"""P1.hypergradient: three formulas for ∇Φ, and the limit of a fourth, are the gradient of the exact Φ."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from bilevel import models
from bilevel.algorithms.bilevel_rlhf import BilevelHyper
from bilevel.exact.bilevel import exact_bilevel, tabular_problem
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.hypergradients import Construct, closed_form, dense_elimination, implicit, unrolled
from bilevel.types import Array, Coefficients, Params, Problem
from envs.base import MDP
from envs.tabular import garnet
from experiments.claims.claim import Budget, Claim, Margin, Measurement, Number
from experiments.claims.panels import BLUE, VERMILION, panels

UNROLLED = (100, 1000, 10_000)  # K
WAYS: dict[str, Construct] = {
    "closed form": closed_form,
    "implicit, conjugate gradients": implicit,
    "implicit, dense": partial(implicit, solver=dense_elimination()),
} | {f"unrolled, K = {count}": partial(unrolled, num_steps=count) for count in UNROLLED}
SMALLER = 0.1  # times w: for the ways that need no ascent, whose steps the curvature at a small w bounds
SMALL = {name: f"{name}, {SMALLER:g} w" for name in WAYS if not name.startswith("unrolled")}
DECIDING = [*SMALL, f"unrolled, K = {UNROLLED[-1]}", *SMALL.values()]
MARGIN = Margin(0, 1e-5)
STEP = 1e-5  # of the central differences


class Sizes(NamedTuple):
    """How many instances there are of each shape: states S, actions A and steps H of a segment."""

    each: int  # instances of each shape
    shapes: tuple[tuple[int, int, int], ...]  # states S, actions A and steps H of a segment


# Each shape is a program of many ways.
QUICK = Sizes(5, ((2, 2, 3),))
FULL = Sizes(5, ((2, 2, 3), (4, 2, 2), (3, 4, 2), (6, 3, 1)))


class Parts(NamedTuple):
    """∇Φ by one way, [instance, parameter] each."""

    direct: np.ndarray  # what it is at a fixed policy
    implicit: np.ndarray  # what the policy's response adds


class Estimates(NamedTuple):
    """∇Φ on random instances."""

    kl_weight: np.ndarray  # [instance] w
    length: np.ndarray  # [instance] H
    expected: np.ndarray  # [instance, parameter] by central differences of the exact Φ
    ways: dict[str, Parts]  # way -> the estimate


class Data(NamedTuple):
    """Estimates at w in [1, 2], and at smaller w without the unrolled ascents."""

    usual: Estimates  # at w in [1, 2]
    smaller: Estimates  # at smaller w, without the unrolled ascents


def setting(key: Array, scale: Array, shape: tuple[int, int, int]) -> tuple[Problem, MDP, Coefficients, Params]:
    """A random problem with a network for r_φ, its coefficients and φ; w in scale [1, 2], γ in [½, 9/10], κ in [½, 3/2].

    ρ and P are mixed with a tenth of the uniform law, so that every state is visited: an unrolled ascent would need too
    many steps in the logits of one that hardly is.
    """
    num_states, num_actions, _ = shape
    key_mdp, key_features, key_reference, key_reward, key_coefficients = jax.random.split(key, 5)
    mdp = garnet(key_mdp, num_states, num_actions)
    initial, transition = (0.9 * x + 0.1 / num_states for x in (mdp.initial, mdp.transition))
    mdp = mdp._replace(initial=initial, transition=transition)
    features = jax.random.normal(key_features, (num_states, num_actions, 3))
    reward = models.mlp(lambda s, a: features[s, a], 3, (2,))
    point, unravel = ravel_pytree(reward.init(key_reward))
    params = unravel(point + 0.5 * jax.random.normal(key_reward, point.shape))
    reference = jax.nn.softmax(0.5 * jax.random.normal(key_reference, (num_states, num_actions)))
    noise = jax.random.uniform(key_coefficients, (3,))
    coefficients = Coefficients(0.5 + 0.4 * noise[1], scale * (1.0 + noise[0]), 0.5 + noise[2])
    return tabular_problem(mdp, coefficients, reward, reference), mdp, coefficients, params


def estimates(key: Array, scale: Array, shape: tuple[int, int, int]) -> Estimates:
    """On the instance of that key."""
    problem, mdp, coefficients, params = setting(key, scale, shape)
    known = exact_bilevel(problem, mdp, shape[2], coefficients)
    point, unravel = ravel_pytree(params)

    def difference(offset):
        return (known.value(unravel(point + offset)) - known.value(unravel(point - offset))) / (2 * STEP)

    expected = jax.vmap(difference)(STEP * jnp.eye(len(point)))
    best = jnp.log(known.optimum(params))
    gradients = exact_gradients(problem, mdp, shape[2], coefficients)
    # The curvature of J at its maximum is at most w/(2 (1 − γ)).
    hyper = BilevelHyper(policy_step_size=(1 - coefficients.discount) / coefficients.kl_weight)

    def parts(name, construct):
        # The unrolled ascents have to find the optimum.
        start = jnp.zeros_like(best) if name.startswith("unrolled") else best
        found = construct(problem, gradients, hyper).estimate(key, (), params, start, start)
        return Parts(ravel_pytree(found.direct)[0], ravel_pytree(found.implicit)[0])

    ways = {name: parts(name, construct) for name, construct in WAYS.items()}
    return Estimates(coefficients.kl_weight, jnp.array(shape[2]), expected, ways)


def study(sizes: Sizes) -> Data:
    """Estimates on instances of every shape, in float64."""
    usual, smaller = [], []
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), sizes.each)
        for shape in sizes.shapes:
            program = jax.jit(jax.vmap(partial(estimates, shape=shape), (0, None)))
            usual.append(program(keys, 1.0))
            smaller.append(program(keys, SMALLER))
    together, small = (jax.tree.map(lambda *x: np.concatenate(x), *found) for found in (usual, smaller))
    return Data(together, small._replace(ways={name: small.ways[name] for name in SMALL}))


def measure(budget: Budget) -> Data:
    """Every way on every instance."""
    return study(QUICK if budget.quick else FULL)


def misses(found: Data) -> dict[str, np.ndarray]:
    """‖∇Φ by each way − ∇Φ by central differences‖ / ‖the latter‖, [instance]."""

    def of(many):
        sums = {name: parts.direct + parts.implicit for name, parts in many.ways.items()}
        scale = np.linalg.norm(many.expected, axis=1)
        return {name: np.linalg.norm(x - many.expected, axis=1) / scale for name, x in sums.items()}

    return of(found.usual) | {SMALL[name]: values for name, values in of(found.smaller).items()}


def judge(found: Data) -> Measurement:
    """The largest difference of each way over all instances."""
    numbers = {name: Number(*[np.max(values)] * 3) for name, values in misses(found).items()}
    weights = f"instances have w in [1, 2], and, without the unrolled ascents, w in [{SMALLER:g}, {2 * SMALLER:g}]"
    return Measurement(numbers, {}, (f"{weights}; ρ and P are mixed with a tenth of the uniform law",))


def draw(found: Data) -> Figure:
    """A mark for each instance, and the margin."""
    figure, [[panel]] = panels(7.5, 5)
    for place, values in enumerate(misses(found).values()):
        panel.plot(values, [place] * len(values), "o", color=BLUE, alpha=0.5, markersize=5)
    panel.axvline(MARGIN.high, color=VERMILION, linestyle=":", label=f"margin, {MARGIN.high:g}")
    panel.set_yticks(range(len(WAYS) + len(SMALL)), [*WAYS, *SMALL.values()])
    panel.invert_yaxis()
    panel.set(xscale="log", xlabel="relative difference to central differences of the exact Φ")
    panel.set_title(f"∇Φ on {len(found.usual.length)} random instances", fontsize=10)
    panel.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)
    return figure


CLAIM = Claim(
    statement="The closed form of the hypergradient, implicit differentiation and an unrolled ascent in its limit are ∇Φ.",
    source="derived, after HPGD (2406.01575) and PARL (2308.02585)",
    prediction="equal, at the optimum of a full table with w > 0, to central differences of the exact Φ; looked at for w in "
    f"[1, 2], and in [{SMALLER:g}, {2 * SMALLER:g}] where no ascent is unrolled",
    exact=True,
    margins=dict.fromkeys(DECIDING, MARGIN),
    minutes=(0.4, 3),
    measure=measure,
    judge=judge,
    draw=draw,
)
