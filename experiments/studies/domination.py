"""Weak gradient domination, √μ₁ (Φ* − Φ(φ)) ≤ ‖∇Φ(φ)‖, that the convergence theorem assumes: charted over w, the class of
rewards and the upper objective, on random MDPs of three states and two actions where everything is enumerated.

A stationary point below the maximum refutes the assumption for every μ₁ > 0. By hand, every tanh network has one: where all
weights and biases are zero, its hidden layers are zero, so ∂r_φ/∂φ is zero but for the output's bias, a constant in the
reward that Φ does not see. (A table or an affine function has no such point.) That one is known, and repels: it is left out
of the counts. A local maximum below the best attracts gradient ascent, and the theorem's conclusion fails with its
assumption. Both kinds are counted, apart.

Φ* is the best value found, so it is at most the true one: the gaps of stationary points are real, and μ̂₁ is too large if
anything. Φ need not attain its supremum: ascents may run to infinity, and those that do so below the best are counted too.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.exact import landscape, meters
from bilevel.exact.landscape import Stationary
from bilevel.preferences import annotator, excess_brier, excess_log_likelihood, log_likelihood
from bilevel.types import Array, Hyper, Model, Problem
from envs.base import World
from envs.tabular import garnet, tabular
from experiments.files import write_figure, write_json
from experiments.report.summary import Estimate, bars, estimate, share
from experiments.runs.folder import kept

NUM_STATES, NUM_ACTIONS, DISCOUNT, LENGTH = 3, 2, 0.9, 3
OBJECTIVES = {
    "log-likelihood (the paper's)": log_likelihood,
    "excess log-likelihood": excess_log_likelihood,
    "excess Brier": excess_brier,
}
TABLE, AFFINE = "table", "affine"
CLASSES = {AFFINE: (), TABLE: None, "tanh 2": (2,), "tanh 8": (8,), "tanh 4-4": (4, 4), "tanh 4-4-4": (4, 4, 4)}
COLORS = ("#E69F00", "#000000", "#56B4E9", "#0072B2", "#009E73", "#CC79A7")
GAP = 1e-3  # of Φ below the best found, in its unit, from which a point counts as below it


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        num_instances: random MDPs, the same for every w, class and objective; the unit of the intervals.
        kl_weights: w.
        num_points: φ with independent standard normal entries; logits λ likewise for the lower level.
        num_starts: of the ascents, and of the searches for stationary points of any kind; the first of the points.
        max_steps: of each search.
    """

    num_instances: int = 20
    kl_weights: tuple[float, ...] = (0.25, 0.5, 1.5, 4.0)
    num_points: int = 24
    num_starts: int = 3
    max_steps: int = 50


class Measured(NamedTuple):
    """One class of rewards; leading axes [objective, w, instance], M starts.

    Attributes:
        best: [] the largest Φ seen, which stands for Φ*.
        domination: [] μ̂₁ over the random φ, in 1/(unit of φ)².
        ascents: [M] where the ascents ended.
        roots: [M] where the searches for ∇Φ = 0 ended.
        lower_pl: [] smallest ‖∇_λ J‖²/(2 (J* − J)) over the points, units of reward.
        concentrability: [] largest d*(s)π*(a|s)/(d_ref(s)π_ref(a|s)) over the points.
    """

    best: Array
    domination: Array
    ascents: Stationary
    roots: Stationary
    lower_pl: Array
    concentrability: Array


def reward_model(world: World, name: str) -> Model:
    """The class of rewards of that name; networks and the affine function see a one-hot state and action side by side."""
    hidden = CLASSES[name]
    if hidden is None:
        return models.table(NUM_STATES, NUM_ACTIONS)
    return models.mlp(*models.pair_features(world), hidden)


def instance(key: Array, kl_weight: Array, which: Array, name: str) -> tuple[landscape.Landscape, int]:
    """Φ with the objective of that index, on the random MDP of that key, and the number of parameters."""

    def objective(logit, comparison):
        return jax.lax.switch(which, [lambda x, ell=ell: ell(x, comparison) for ell in OBJECTIVES.values()], logit)

    mdp = garnet(key, NUM_STATES, NUM_ACTIONS)
    world, hyper = tabular(mdp), Hyper(kl_weight=kl_weight, discount=DISCOUNT)
    reward, policy = reward_model(world, name), models.table_policy(NUM_STATES, NUM_ACTIONS)
    reference = models.uniform_reference(world.env)
    problem = Problem(world.env, annotator(world.reward, DISCOUNT), reward, policy, reference)
    return landscape.landscape(problem, mdp, LENGTH, hyper, objective), landscape.flat(reward)[0]


def measure(key: Array, kl_weight: Array, which: Array, name: str, sizes: Sizes) -> Measured:
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
    return Measured(best, constant, ascents, roots, jnp.nanmin(lower_pl), jnp.max(worst))


def measure_class(name: str, sizes: Sizes, say, keep: Path | None = None) -> Measured:
    """One class of rewards, one program for all objectives, each of which is kept; in float64."""
    shape = len(OBJECTIVES), len(sizes.kl_weights), sizes.num_instances
    which, weight, seed = (x.reshape(len(OBJECTIVES), -1) for x in np.indices(shape))
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), sizes.num_instances)
        program = jax.jit(lambda lanes: jax.lax.map(lambda lane: measure(*lane, name, sizes), lanes))

        def one(i: int) -> Measured:
            lanes = keys[seed[i]], jnp.asarray(sizes.kl_weights)[weight[i]], which[i]
            return jax.device_get(program(lanes))

        parts = []
        for i, objective in enumerate(OBJECTIVES):
            parts.append(kept(keep, f"{name}, {objective}", Measured, partial(one, i)))
            say(f"{name}, {objective}: {which[i].size} landscapes")
    return jax.tree.map(lambda *x: np.stack(x).reshape(*shape, *x[0].shape[1:]), *parts)


def study(
    sizes: Sizes = Sizes(),  # noqa: B008
    say=lambda line: None,
    names=tuple(CLASSES),
    keep: Path | None = None,
) -> dict[str, Measured]:
    """Measures classes, two at a time: each is one thread.

    Args:
        sizes: how much is computed.
        say: hears of each class and objective as it ends.
        names: of `CLASSES`.
        keep: folder from which what is there is read, and to which the rest is written; None: none.
    """
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(lambda name: measure_class(name, sizes, say, keep), names), strict=True))


# What it shows --------------------------------------------------------------------------------------------------------


def below(found: Measured, ends: Stationary) -> np.ndarray:
    """Searches that ended below the best value found, [..., start] bool."""
    return found.best[..., None] - ends.value > GAP


def lower_maxima(found: Measured) -> np.ndarray:
    """Ascents that ended at a local maximum below the best, [..., start] bool."""
    return landscape.is_stationary(found.ascents) & found.ascents.is_peak & below(found, found.ascents)


def stationary_below(found: Measured) -> np.ndarray:
    """Searches that ended at a stationary point below the best other than φ = 0, [..., start] bool."""
    away = np.linalg.norm(found.roots.params, axis=-1) > 1e-6
    return landscape.is_stationary(found.roots) & away & below(found, found.roots)


def runaways(found: Measured) -> np.ndarray:
    """Ascents below the best that are on their way to infinity with ∇Φ → 0, [..., start] bool."""
    return landscape.runs_away(found.ascents) & below(found, found.ascents)


def finished(found: Measured) -> np.ndarray:
    """Ascents that arrived, or ran away, within the steps allowed, [..., start] bool."""
    return landscape.is_stationary(found.ascents) | landscape.runs_away(found.ascents)


def median(values: np.ndarray) -> Estimate:
    """Median over instances of positive numbers [..., instance] with its 95 % bootstrap interval, each [...]."""
    *numbers, count = estimate(np.log(np.moveaxis(values, -1, 0)), trim=0.49)
    return Estimate(*map(np.exp, numbers), count)


def certificate(found: Measured) -> dict | None:
    """The local maximum with the widest gap to the best among [instance, start], with what verifies it; None: there is
    none."""
    gaps = np.where(lower_maxima(found), found.best[:, None] - found.ascents.value, 0.0)
    at = np.unravel_index(np.argmax(gaps), gaps.shape)
    if not gaps[at] > 0:
        return None
    numbers = {"gap": gaps[at], "gradient_norm": found.ascents.gradient_norm[at], "margin": found.ascents.margin[at]}
    place = {"instance": int(at[0]), "params": found.ascents.params[at].tolist()}
    return place | {name: float(x) for name, x in numbers.items()}


def estimates(of: Measured) -> dict[str, Estimate]:
    """What is reported of Measured [..., instance], each [...]."""
    trapped, stuck, leaving = lower_maxima(of), stationary_below(of), runaways(of)
    return {
        "domination": median(of.domination),
        "lower_maximum": share(trapped.any(axis=-1)),
        "runaway": share(leaving.any(axis=-1)),
        "stationary_below": share((stuck | trapped).any(axis=-1)),
        "refuted": share((stuck | trapped | leaving).any(axis=-1)),
        "lower_pl": median(of.lower_pl),
        "concentrability": median(of.concentrability),
    }


def summarise(found: dict[str, Measured], sizes: Sizes) -> list[dict]:
    """A row for each class, objective and w: medians and shares over instances with 95 % intervals, as JSON values.

    Beside them, of all ascents: `to_the_best` the fraction that ended within `GAP` of the best, `unfinished` the fraction
    that neither arrived nor saturated within the steps allowed.
    """
    rows = []
    for name, measured in found.items():
        numbers, arrived = estimates(measured), finished(measured)
        for i, j in np.ndindex(len(OBJECTIVES), len(sizes.kl_weights)):
            of = jax.tree.map(lambda x, at=(i, j): x[at], measured)
            row = {"class": name, "objective": list(OBJECTIVES)[i], "kl_weight": sizes.kl_weights[j]}
            row |= {key: [float(y[i, j]) for y in x[:3]] for key, x in numbers.items()}
            row |= {
                "to_the_best": float(np.mean(~below(of, of.ascents))),
                "unfinished": 1 - float(arrived[i, j].mean()),
            }
            rows.append(row | {"certificate": certificate(of)})
    return rows


def draw(found: dict[str, Measured], sizes: Sizes) -> Figure:
    """A column for each objective: μ̂₁ over random φ, and on how many instances the assumption is refuted, by what."""
    figure = Figure(figsize=(13, 10), layout="constrained")
    axes = figure.subplots(3, len(OBJECTIVES), sharex=True, sharey="row")
    weights = np.array(sizes.kl_weights)
    for name, measured in found.items():
        place, numbers = list(CLASSES).index(name), estimates(measured)
        aside = list(found).index(name) - (len(found) - 1) / 2
        beside = weights * 1.035**aside  # so that bars do not hide each other
        style = dict(color=COLORS[place], linewidth=1.2, markersize=4, elinewidth=0.8, marker="o", label=name)
        for panels, key in zip(axes, ("domination", "lower_maximum", "stationary_below"), strict=True):
            for panel, center, lengths in zip(
                panels, numbers[key].center, bars(numbers[key]).swapaxes(0, 1), strict=True
            ):
                panel.errorbar(beside, center, lengths, **style)
    for panel, objective in zip(axes[0], OBJECTIVES, strict=True):
        panel.set(title=objective, xscale="log", yscale="log")
    for panel in axes[2]:
        panel.set_xlabel("w, weight of KL(π ‖ π_ref), units of reward")
        panel.set_xticks(sizes.kl_weights, [f"{w:g}" for w in sizes.kl_weights])
        panel.minorticks_off()
    for panel in axes.ravel():
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("median μ̂₁ ≥ μ₁ over random φ,\n1/(unit of φ)²")
    axes[1, 0].set_ylabel("share where gradient ascent ends\nin a maximum below the best")
    axes[2, 0].set_ylabel("share refuted: a stationary point\nbelow the best (but φ = 0), so μ₁ = 0")
    for panel in axes[1:, 0]:
        panel.set_ylim(-0.05, 1.05)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=len(CLASSES), title="class of rewards (tanh: hidden widths)"
    )
    figure.suptitle(
        f"Weak gradient domination of Φ on {sizes.num_instances} random MDPs: medians and shares, 95 % intervals over them"
    )
    return figure


def main(out: Path, say=print) -> None:
    """Runs the study and writes `domination.png` and `domination.json`."""
    sizes = Sizes()
    report(study(sizes, say), sizes, out, say)


def report(found: dict[str, Measured], sizes: Sizes, out: Path, say=print) -> None:
    """Writes the figure and the numbers, and says a table."""
    rows = summarise(found, sizes)
    write_json(out, "domination.json", rows)
    write_figure(out, "domination.png", draw(found, sizes), dpi=120)
    layout = "{:12s}{:30s}{:>6s}{:>30s}{:>20s}{:>20s}{:>9s}"
    say(layout.format("class", "objective", "w", "μ̂₁, random φ", "lower maximum", "stationary below", "runaway"))
    for row in rows:
        numbers = (*row["domination"], *row["lower_maximum"], *row["stationary_below"], row["runaway"][0])
        cells = "{:.1e} [{:.1e}, {:.1e}]|{:.2f} [{:.2f}, {:.2f}]|{:.2f} [{:.2f}, {:.2f}]|{:.2f}".format(*numbers)
        say(layout.format(row["class"], row["objective"], f"{row['kl_weight']:g}", *cells.split("|")))
    say(f"figure: {out / 'domination.png'}")
