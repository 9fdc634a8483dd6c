"""P1.domination: where the assumption of the convergence theorem, weak gradient domination, is refuted.

On random MDPs of three states and two actions everything is enumerated. A stationary point below the maximum refutes the
assumption for every μ₁ > 0. By hand, every tanh network has one: where all weights and biases are zero, its hidden layers
are zero, so ∂r_φ/∂φ is zero but for the output's bias, a constant in the reward that Φ does not see. That one is known, and
repels: it is left out of the counts. A local maximum below the best attracts gradient ascent, and the theorem's conclusion
fails with its assumption. Both kinds are counted, apart.

Φ* is the best value found, so it is at most the true one: the gaps of stationary points are real, and μ̂₁ is too large if
anything. Φ need not attain its supremum: ascents may run to infinity, and those that do so below the best are counted too.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.exact import landscape, meters
from bilevel.exact.bilevel import tabular_problem
from bilevel.exact.landscape import Landscape, Stationary
from bilevel.preferences import excess_brier, excess_log_likelihood, log_likelihood
from bilevel.types import Array, Coefficients, Model
from envs.tabular import garnet, tabular
from experiments.claims import panels
from experiments.claims.claim import Budget, Claim, Measurement, Number, Table
from experiments.claims.p1.landscapes import below, finished, lower_maxima, median
from experiments.statistics import intervals
from experiments.statistics.intervals import Interval

NUM_STATES, NUM_ACTIONS, DISCOUNT, LENGTH = 3, 2, 0.9, 3
PAPER = "log-likelihood (the paper's)"  # whose assumption it is; others are reported
OBJECTIVES = {PAPER: log_likelihood, "excess log-likelihood": excess_log_likelihood, "excess Brier": excess_brier}
TABLE = "table"
CLASSES = {"affine": (), TABLE: None, "tanh 2": (2,), "tanh 8": (8,), "tanh 4-4": (4, 4), "tanh 4-4-4": (4, 4, 4)}
COLORS = panels.ORANGE, "#000000", panels.SKY, panels.BLUE, panels.GREEN, panels.PINK


class Sizes(NamedTuple):
    """How much is computed."""

    num_instances: int = 20  # random MDPs, the same for every w, class and objective; the unit of the intervals
    kl_weights: tuple[float, ...] = (0.25, 0.5, 1.5, 4.0)
    num_points: int = 24  # φ with independent standard normal entries; logits λ likewise for the lower level
    num_starts: int = 3  # of ascents, and of searches for stationary points of any kind; the first of the points
    max_steps: int = 50  # of each search
    classes: tuple[str, ...] = tuple(CLASSES)


FULL = Sizes()
QUICK = Sizes(num_instances=6, kl_weights=(0.5, 4.0), num_points=8, num_starts=2, classes=(TABLE,))


class Searched(NamedTuple):
    """One class of rewards with one objective; leading axes [w, instance], then [start] where searches ended."""

    best: np.ndarray  # the largest Φ seen, which stands for Φ*
    domination: np.ndarray  # μ̂₁ over the random φ, in 1/(unit of φ)²
    ascents: Stationary
    roots: Stationary  # of ∇Φ
    lower_pl: np.ndarray  # smallest ‖∇_λ J‖²/(2 (J* − J)) over the points, units of reward
    concentrability: np.ndarray  # largest d*(s)π*(a|s)/(d_ref(s)π_ref(a|s)) over the points


class Domination(NamedTuple):
    """What was measured, by class of rewards and objective."""

    sizes: Sizes
    found: dict[tuple[str, str], Searched]


def measure(budget: Budget, sizes: Sizes | None = None) -> Domination:
    """Every class with every objective, two classes at a time: each is one thread; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else FULL)
    with ThreadPoolExecutor(2) as pool:
        each = pool.map(lambda name: search_class(name, sizes, budget), sizes.classes)
        return Domination(
            sizes, {(name, of): x for name, found in zip(sizes.classes, each, strict=True) for of, x in found}
        )


def search_class(name: str, sizes: Sizes, budget: Budget) -> list[tuple[str, Searched]]:
    """One class of rewards, one program for all objectives, each of which is kept; in float64."""
    shape = len(sizes.kl_weights), sizes.num_instances
    weight, seed = (x.ravel() for x in np.indices(shape))
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), sizes.num_instances)
        program = jax.jit(lambda lanes: jax.lax.map(lambda lane: searched(*lane, name, sizes), lanes))

        def one(which: int) -> Searched:
            lanes = keys[seed], jnp.asarray(sizes.kl_weights)[weight], np.full(weight.size, which)
            return jax.tree.map(lambda x: np.asarray(x).reshape(*shape, *x.shape[1:]), program(lanes))

        parts = []
        for which, objective in enumerate(OBJECTIVES):
            parts.append((objective, budget.keep(f"{name}, {objective}", Searched, partial(one, which))))
            budget.say(f"{name}, {objective}: {weight.size} landscapes")
    return parts


def searched(key: Array, kl_weight: Array, which: Array, name: str, sizes: Sizes) -> Searched:
    """Everything on one instance, drawn by the key."""
    key_mdp, key_points, key_logits = jax.random.split(key, 3)
    land, dimension = instance(key_mdp, kl_weight, which, name)
    points = jax.random.normal(key_points, (sizes.num_points, dimension))
    logits = jax.random.normal(key_logits, (sizes.num_points, NUM_STATES, NUM_ACTIONS))
    num = sizes.num_starts
    # Random points are searches of one step, which stay where they are: one program to compile.
    begin = jnp.concatenate([points[:num], points[:num], points])
    place = jnp.arange(len(begin))
    searches = begin, place < num, jnp.where(place < 2 * num, sizes.max_steps, 1)
    found = jax.lax.map(lambda x: landscape.search(land, *x), searches)
    ascents, roots, at_points = (jax.tree.map(lambda x, i=i: jnp.split(x, [num, 2 * num])[i], found) for i in range(3))

    def lower_level(point):
        params, logits = point
        lower = land.lower(land.table(params))
        worst, _ = meters.coverage(lower, exact.optimal_policy(lower).policy)
        return meters.lower_pl(lower, logits)[0], worst

    lower_pl, worst = jax.lax.map(lower_level, (points, logits))
    best = jnp.nanmax(found.value)
    constant = meters.domination(at_points.value, at_points.gradient_norm, best)
    return Searched(best, constant, ascents, roots, jnp.nanmin(lower_pl), jnp.max(worst))


def instance(key: Array, kl_weight: Array, which: Array, name: str) -> tuple[Landscape, int]:
    """Φ with the objective of that index, on the random MDP of that key, and the number of parameters."""

    def objective(logit, comparison):
        return jax.lax.switch(which, [lambda x, ell=ell: ell(x, comparison) for ell in OBJECTIVES.values()], logit)

    mdp, coefficients = garnet(key, NUM_STATES, NUM_ACTIONS), Coefficients(DISCOUNT, kl_weight, 1.0)
    problem = tabular_problem(mdp, coefficients, reward_model(tabular(mdp), name))
    return landscape.landscape(problem, mdp, LENGTH, coefficients, objective), landscape.flat(problem.reward)[0]


def reward_model(world, name: str) -> Model:
    """The class of rewards of that name; networks and the affine function see a one-hot state and action side by side."""
    hidden = CLASSES[name]
    if hidden is None:
        return models.table(NUM_STATES, NUM_ACTIONS)
    return models.mlp(*models.pair_features(world), hidden)


REFUTING = "share with a stationary point below"
LOWER_MAXIMUM, MEDIAN = "share with a lower maximum", "median μ̂₁ over random φ"


def stationary_below(found: Searched) -> np.ndarray:
    """Searches that ended at a stationary point below the best other than φ = 0, [..., start] bool."""
    away = np.linalg.norm(found.roots.params, axis=-1) > 1e-6
    return landscape.is_stationary(found.roots) & away & below(found.best, found.roots)


def numbers_of(found: Searched) -> dict[str, Interval]:
    """What is reported, over instances, each [w]: the first three as numbers of the claim, the others in its table."""
    runaways = landscape.runs_away(found.ascents) & below(found.best, found.ascents)  # on their way to infinity
    trapped, leaving = lower_maxima(found).any(axis=-1), runaways.any(axis=-1)
    stuck = stationary_below(found).any(axis=-1) | trapped
    shares = {REFUTING: stuck, LOWER_MAXIMUM: trapped, "runaway": leaving, "refuted": stuck | leaving}
    medians = {MEDIAN: found.domination, "lower PL": found.lower_pl, "concentrability": found.concentrability}
    numbers = {name: intervals.proportion(x, axis=-1) for name, x in shares.items()}
    return numbers | {name: median(x) for name, x in medians.items()}


def certificate(found: Searched, at: int) -> dict[str, float | int | str]:
    """At the w of that index, the local maximum with the widest gap to the best, and what verifies it; {}: there is none."""
    of = found.ascents
    gaps = np.where(lower_maxima(found)[at], found.best[at, :, None] - of.value[at], 0.0)
    instance, start = np.unravel_index(np.argmax(gaps), gaps.shape)
    if not gaps[instance, start] > 0:
        return {}
    place = at, instance, start
    where = {"lower maximum on": int(instance), "at φ": ", ".join(f"{x:.10g}" for x in of.params[place])}
    return where | {"gap": gaps[instance, start], "‖∇Φ‖": of.gradient_norm[place], "margin": of.margin[place]}


def judge(data: Domination) -> Measurement:
    """Shares of instances on which the assumption is refuted, and the meters, over instances."""
    sizes, each = data.sizes, {pair: numbers_of(found) for pair, found in data.found.items()}
    numbers, over = {}, f"{sizes.num_instances} MDPs"
    for label, objective, name in itertools.product((REFUTING, LOWER_MAXIMUM, MEDIAN), OBJECTIVES, sizes.classes):
        ends = zip(sizes.kl_weights, *each[name, objective][label], strict=True)
        numbers |= {f"{label}, {objective}, {name}, w = {w:g}": Number(*of, over=over) for w, *of in ends}
    arrived = [np.mean([finished(data.found[name, of]) for of in OBJECTIVES]) for name in sizes.classes]
    notes = (
        *(found_below(objective, [each[name, objective] for name in sizes.classes]) for objective in OBJECTIVES),
        "a lower maximum is a local maximum of Φ below the best value found, at which a gradient ascent ended; a stationary "
        "point below may be of any kind, but φ = 0, at which every tanh network has one by construction",
        "a share of zero does not prove the assumption: the searches are finite, and μ̂₁ is an upper estimate of μ₁",
        f"of each class at least {min(arrived):.0%} of the ascents arrived in the steps allowed; others refute nothing",
    )
    searches = sum(x.ascents.value.size + x.roots.value.size for x in data.found.values())
    rows = [
        {"class": name, "objective": objective, "w": w}
        | {label: of.center[at] for label, of in each[name, objective].items()}
        | {"ascents to the best": np.mean(~below(found.best, found.ascents)[at])}
        | {"ascents unfinished": 1 - finished(found)[at].mean(), **certificate(found, at)}
        for (name, objective), found in data.found.items()
        for at, w in enumerate(sizes.kl_weights)
    ]
    return Measurement(numbers, {"searches": searches}, notes, (Table("Medians and shares over instances", rows),))


def found_below(objective: str, each: list[dict[str, Interval]]) -> str:
    """In words: with that objective, at how many pairs of class and w, and on what shares of the instances."""
    shares = np.concatenate([numbers[REFUTING].center for numbers in each])
    pairs = f"{np.sum(shares > 0)} of {len(shares)} pairs of class and w"
    on = f"on {min(shares):.0%} to {max(shares):.0%} of the instances"
    return f"{objective}: a stationary point below at {pairs}, {on}"


def draw(data: Domination) -> Figure:
    """A column for each objective: μ̂₁ over random φ, and on how many instances the assumption is refuted, by what."""
    sizes, weights = data.sizes, np.array(data.sizes.kl_weights)
    title = f"Weak gradient domination of Φ on {sizes.num_instances} random MDPs: 95 % intervals over them"
    figure, axes = panels.panels(13, 10, 3, len(OBJECTIVES), title, share_x=True, share_y="row")
    for (name, objective), found in data.found.items():
        numbers, column = numbers_of(found), axes[:, list(OBJECTIVES).index(objective)]
        aside = sizes.classes.index(name) - (len(sizes.classes) - 1) / 2
        beside = weights * 1.035**aside  # so that bars do not hide each other
        for panel, label in zip(column, (MEDIAN, LOWER_MAXIMUM, REFUTING), strict=True):
            panels.curve(panel, beside, numbers[label], COLORS[list(CLASSES).index(name)], name)
    for top, bottom, objective in zip(axes[0], axes[2], OBJECTIVES, strict=True):
        top.set(title=objective, xscale="log", yscale="log")
        bottom.set_xlabel("w, weight of KL(π ‖ π_ref), units of reward")
        panels.ticks(bottom, sizes.kl_weights)
    axes[0, 0].set_ylabel("median μ̂₁ ≥ μ₁ over random φ,\n1/(unit of φ)²")
    axes[1, 0].set(ylabel="share where gradient ascent ends\nin a maximum below the best", ylim=(-0.05, 1.05))
    axes[2, 0].set(
        ylabel="share refuted: a stationary point\nbelow the best (but φ = 0), so μ₁ = 0", ylim=(-0.05, 1.05)
    )
    handles, title = axes[0, 0].get_legend_handles_labels(), "class of rewards (tanh: hidden widths)"
    figure.legend(*handles, loc="outside lower center", ncols=len(CLASSES), title=title)
    return figure


CLAIM = Claim(
    statement="Φ has weak gradient domination, whatever w and the class of rewards: √μ₁ (Φ* − Φ(φ)) ≤ ‖∇Φ(φ)‖ with some "
    "μ₁ > 0.",
    source="2410.15610, an assumption of its convergence theorem; with the excess objectives, this project's",
    prediction="assumed; a stationary point below the maximum refutes it on an instance, for every μ₁",
    exact=True,
    minutes=(0.6, 8),
    measure=measure,
    judge=judge,
    draw=draw,
    refuting=f"{REFUTING}, {PAPER}",
)
