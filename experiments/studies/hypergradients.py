"""∇Φ in five ways on small random MDPs: bias, variance at equal samples, cost, and where an ascent along each ends.

The bias is exact: against the derivative of Φ(φ) = G(φ, π*(φ)), at λ*(φ) and at policies that K′ steps of gradient ascent
from π_ref reach, which is where Algorithm 1 evaluates its line 7. The ascent is Algorithm 1 with exact gradients and another
line 7, from φ = 0, against an ascent along the exact ∇Φ with the same steps. Step sizes come from the curvature of J at λ*,
which is at most w/(2 (1 − γ)): τ = (1 − γ)/w.
"""

import functools
import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from bilevel import exact
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf
from bilevel.gradients.critics import monte_carlo_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.hypergradients import (
    Construct,
    closed_form,
    conjugate_gradients,
    dense_elimination,
    implicit,
    naive,
    proxy,
    unrolled,
)
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.lookup import bind
from bilevel.preferences import log_likelihood
from bilevel.run import DIVERGED, run, start
from bilevel.types import Array, Hyper
from envs.base import MDP
from envs.tabular import garnet
from experiments.files import write_figure, write_json
from experiments.report.summary import Estimate, estimate
from experiments.studies.ladder import problem

NUM_STATES, NUM_ACTIONS, LENGTH, DISCOUNT = 3, 2, 3, 0.9
KL_WEIGHTS = (0.5, 1.5)
SIGMAS = (0.3, 0.1, 0.03)
TARGET = 0.1  # standard error, relative to ‖∇Φ‖, whose price in transitions is reported


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        num_instances: random MDPs, each with a reward of its own.
        num_ascents: instances on which Φ is ascended.
        policy_steps: K′, increasing: steps that λ and λ′ took before the hypergradient; ∞ is added.
        unrolled_steps: K of the unrolled ones.
        num_batches: independent samples of each estimator; the variance is over them.
        batch_size: B, trajectories of a sample; half as many pairs.
        rollout_length: T.
        outer_steps: of each ascent.
        inner_steps: of λ and λ′ in each outer step.
        repeats: calls that are timed; the fastest counts.
    """

    num_instances: int = 16
    num_ascents: int = 8
    policy_steps: tuple[int, ...] = (10, 100, 1000)
    unrolled_steps: tuple[int, ...] = (10, 100, 1000)
    num_batches: int = 200
    batch_size: int = 32
    rollout_length: int = 60
    outer_steps: int = 200
    inner_steps: int = 10
    repeats: int = 5


class Way(NamedTuple):
    """A hypergradient, its σ (1 where it has none), and the estimator of line 7's difference when sampled."""

    construct: Construct
    sigma: float = 1.0
    estimator: str = "weighted"


class Lanes(NamedTuple):
    """Every instance at every w: leading axes L = W · I, w outermost.

    Attributes:
        mdp: arrays of the MDPs.
        reward: [L, S, A] φ, drawn apart from the true reward.
        kl_weight: [L] w.
    """

    mdp: MDP
    reward: Array
    kl_weight: Array


class Points(NamedTuple):
    """Where hypergradients are taken, and what they should be.

    Attributes:
        gradient: [L, S, A] ∇Φ.
        actor: [L, K′, S, A] logits of λ after each K′; the last are λ*'s.
        proxy: [L, σ, K′, S, A] the same of λ′, to λ*_σ.
    """

    gradient: Array
    actor: Array
    proxy: Array


class Result(NamedTuple):
    """The study's numbers; W weights w, I instances.

    Attributes:
        error: way -> [W, K′, I] ‖estimate − ∇Φ‖/‖∇Φ‖; the last K′ is ∞.
        residual: way -> [W, K′, I] relative residual of its linear solve, 0 where nothing is solved.
        evaluations: way -> gradient evaluations of an estimate.
        seconds: way -> of one jitted call for all W · I.
        transitions: sampled way -> [W, I] that a standard error of `TARGET` takes, at λ* and λ*_σ.
        gap: way -> [W, I] Φ at the end of its ascent less Φ at the end of the exact one; NaN if it diverged.
        end: [W, I] Φ at the end of the exact ascent.
        end_norm: [W, I] ‖∇Φ‖ there.
    """

    error: dict[str, np.ndarray]
    residual: dict[str, np.ndarray]
    evaluations: dict[str, int]
    seconds: dict[str, float]
    transitions: dict[str, np.ndarray]
    gap: dict[str, np.ndarray]
    end: np.ndarray
    end_norm: np.ndarray


def exact_ways(sizes: Sizes) -> dict[str, Way]:
    """Those whose bias and cost are measured; the solvers' answers are taken with whatever residual they leave."""
    solved = partial(implicit, tolerance=jnp.inf)
    unrolls = {f"unrolled, K = {count}": Way(partial(unrolled, num_steps=count)) for count in sizes.unrolled_steps}
    solves = {
        "implicit, CG": Way(partial(solved, solver=conjugate_gradients())),
        "implicit, dense": Way(partial(solved, solver=dense_elimination())),
    }
    proxies = {f"proxy, σ = {sigma}": Way(proxy, sigma) for sigma in SIGMAS}
    return {"naive": Way(naive)} | proxies | {"closed form": Way(closed_form)} | solves | unrolls


def sampled_ways() -> dict[str, Way]:
    """Those with a sampled form."""
    proxies = {f"proxy, σ = {s}, {name}": Way(proxy, s, name) for name in ("weighted", "independent") for s in SIGMAS}
    return {"naive": Way(naive)} | proxies | {"closed form": Way(closed_form)}


def ascended_ways(sizes: Sizes) -> dict[str, Way]:
    """Those that Φ is ascended along: without what is known to agree with another, or takes the longest."""
    left_out = "implicit, dense", f"unrolled, K = {sizes.unrolled_steps[-1]}"
    return {name: way for name, way in exact_ways(sizes).items() if name not in left_out}


# One lane -------------------------------------------------------------------------------------------------------------


def hyper_of(kl_weight, sigma=1.0) -> Hyper:
    """The hyperparameters at w and σ."""
    return Hyper(sigma, kl_weight, DISCOUNT, policy_step_size=(1 - DISCOUNT) / kl_weight, reward_step_size=1.0)


def lower_of(lane: Lanes) -> exact.LowerLevel:
    """The lower level under φ, with a uniform reference."""
    uniform = jnp.full_like(lane.reward, 1 / NUM_ACTIONS)
    return exact.lower_level(lane.mdp, lane.reward, uniform, DISCOUNT, lane.kl_weight)


def upper(lane: Lanes) -> Callable[[Array], Array]:
    """A policy [S, A] -> G, []; ℓ of every pair, which no policy changes, is computed once."""
    segments = exact.enumerate_segments(NUM_STATES, NUM_ACTIONS, LENGTH)
    comparisons = exact.exact_comparisons(problem(lane.mdp, hyper_of(lane.kl_weight)).annotate, segments)
    returns = exact.segment_returns(lane.reward, segments, DISCOUNT)
    gains = log_likelihood(returns[:, None] - returns[None, :], comparisons)

    def value(policy):
        law = exact.segment_law(lane.mdp, policy, segments)
        return law @ gains @ law

    return value


def objective(reward: Array, lane: Lanes) -> Array:
    """Φ of a reward table in the place of the lane's, []."""
    lane = lane._replace(reward=reward)
    return upper(lane)(exact.optimal_policy(lower_of(lane)).policy)


def points(lane: Lanes, policy_steps: tuple[int, ...]) -> Points:
    """∇Φ, then λ and λ′ after K′ steps of gradient ascent from π_ref, and at their maxima."""
    lower, preference, sigmas = lower_of(lane), upper(lane), jnp.array((0.0, *SIGMAS))
    step_size = hyper_of(lane.kl_weight).policy_step_size

    def penalised(logits, sigma):
        policy = jax.nn.softmax(logits)
        return exact.regularised_return(lower, policy) + sigma * preference(policy)

    def improve(logits, _):
        return logits + step_size * jax.vmap(jax.grad(penalised))(logits, sigmas), None

    logits, reached = jnp.zeros((len(sigmas), *lane.reward.shape)), []
    for count in np.diff((0, *policy_steps)):
        logits, _ = jax.lax.scan(improve, logits, length=int(count))
        reached.append(logits)
    solved = jax.lax.map(lambda sigma: exact.penalised_policy(lower, preference, sigma).policy, sigmas)
    every = jnp.stack([*reached, jnp.log(solved)], axis=1)  # [1 + σ, K′, S, A]
    return Points(jax.grad(objective)(lane.reward, lane), every[0], every[1:])


def estimated(construct: Construct, lane: Lanes, sigma, actor: Array, behind: Array) -> tuple[Array, Array, Array]:
    """A hypergradient [S, A] without sampling at λ and λ′, the residual of its solve, and its gradient evaluations."""
    hyper = hyper_of(lane.kl_weight, sigma)
    ours = problem(lane.mdp, hyper)
    made = construct(ours, exact_gradients(ours, lane.mdp, LENGTH, hyper), hyper)
    found = made.estimate(jax.random.key(0), (), lane.reward, actor, behind)
    return found.direct + found.implicit, found.residual, jnp.int32(made.cost.gradient_evaluations)


def price(way: Way, sizes: Sizes, lane: Lanes, sigma, actor: Array, behind: Array) -> Array:
    """Total variance of a sampled hypergradient at λ and λ′, times the transitions that one takes."""
    hyper = hyper_of(lane.kl_weight, sigma)
    ours = problem(lane.mdp, hyper)
    counts = SampleSizes(sizes.batch_size, sizes.rollout_length, LENGTH, way.estimator)
    gradients = sampled_gradients(ours, monte_carlo_critic(ours, hyper), counts, hyper)
    made = way.construct(ours, gradients, hyper)

    def one(key):
        key_pairs, key_estimate = jax.random.split(key)
        pairs = gradients.collect(key_pairs, bind(ours.policy, behind))
        found = made.estimate(key_estimate, pairs, lane.reward, actor, behind)
        return found.direct + found.implicit

    samples = jax.lax.map(one, jax.random.split(jax.random.key(0), sizes.num_batches))
    transitions = gradients.collect_cost.transitions + made.cost.transitions
    return jnp.sum(jnp.var(samples, axis=0, ddof=1)) * transitions


def ascend(construct: Construct, sizes: Sizes, lane: Lanes, sigma) -> Array:
    """Φ at the end of Algorithm 1 with that line 7 and exact gradients, []; NaN if it diverged."""
    hyper = hyper_of(lane.kl_weight, sigma)
    ours, key = problem(lane.mdp, hyper), jax.random.key(0)
    config = BilevelConfig(sizes.inner_steps, hypergradient=construct)
    algorithm = bilevel_rlhf(ours, exact_gradients(ours, lane.mdp, LENGTH, hyper), config, hyper)
    state, _ = run(algorithm, key, start(algorithm, key), sizes.outer_steps)
    value = objective(algorithm.params(state.algorithm).reward, lane)
    return jnp.where(state.status == DIVERGED, jnp.nan, value)


def ascend_exactly(sizes: Sizes, lane: Lanes) -> tuple[Array, Array]:
    """Φ and ‖∇Φ‖ at the end of an ascent along ∇Φ."""

    def body(reward, _):
        return reward + hyper_of(lane.kl_weight).reward_step_size * jax.grad(objective)(reward, lane), None

    reward, _ = jax.lax.scan(body, jnp.zeros_like(lane.reward), length=sizes.outer_steps)
    value, gradient = jax.value_and_grad(objective)(reward, lane)
    return value, jnp.linalg.norm(gradient)


# All lanes ------------------------------------------------------------------------------------------------------------


def study(sizes: Sizes = Sizes(), say: Callable[[str], None] = lambda line: None) -> Result:  # noqa: B008
    """Runs the study in float64; says a line after each part."""
    with jax.enable_x64(True):
        ours = lanes(sizes.num_instances)
        where = jax.jit(jax.vmap(partial(points, policy_steps=sizes.policy_steps)))(ours)
        say(f"∇Φ, λ and λ′ on {sizes.num_instances} MDPs at w = {KL_WEIGHTS}")
        exactly = {}
        for name, way in exact_ways(sizes).items():
            exactly[name] = measure_exactly(way, sizes, ours, where)
            say(f"bias and cost: {name}")
        transitions = {}
        for name, way in sampled_ways().items():
            transitions[name] = measure_variance(way, sizes, ours, where)
            say(f"variance: {name}")
        ours = lanes(sizes.num_ascents)
        end, norm = map(by_weight, jax.jit(jax.vmap(partial(ascend_exactly, sizes)))(ours))
        gap = {}
        for name, way in ascended_ways(sizes).items():
            gap[name] = by_weight(ascent(way.construct, sizes)(ours, way.sigma)) - end
            say(f"ascent: {name}")
    error, residual, evaluations, seconds = (
        dict(zip(exactly, x, strict=True)) for x in zip(*exactly.values(), strict=True)
    )
    return Result(error, residual, evaluations, seconds, transitions, gap, end, norm)


def lanes(num_instances: int) -> Lanes:
    """The first `num_instances` instances at every w."""
    keys = jnp.stack([jax.random.key(number) for number in range(num_instances)] * len(KL_WEIGHTS))
    mdp = jax.vmap(lambda key: garnet(key, NUM_STATES, NUM_ACTIONS))(keys)
    reward = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), (NUM_STATES, NUM_ACTIONS)))(keys)
    return Lanes(mdp, reward, jnp.repeat(jnp.array(KL_WEIGHTS), num_instances))


def by_weight(values: Array) -> np.ndarray:
    """[L, ...] as [W, ..., I]."""
    values = np.asarray(values)
    return np.moveaxis(values.reshape(len(KL_WEIGHTS), -1, *values.shape[1:]), 1, -1)


def primes_of(way: Way, where: Points) -> Array:
    """λ′ [L, K′, S, A]; λ itself where no σ is used."""
    return where.proxy[:, SIGMAS.index(way.sigma)] if way.construct is proxy else where.actor


def measure_exactly(way: Way, sizes: Sizes, ours: Lanes, where: Points) -> tuple[np.ndarray, np.ndarray, int, float]:
    """Errors and residuals [W, K′, I], gradient evaluations and seconds of one way."""
    program, primes = estimates(way.construct), primes_of(way, where)
    calls = [(ours, way.sigma, where.actor[:, k], primes[:, k]) for k in range(primes.shape[1])]
    found, residual, evaluations = (jnp.stack(x, axis=1) for x in zip(*(program(*call) for call in calls), strict=True))
    scale = jnp.linalg.norm(where.gradient, axis=(-2, -1))[:, None]
    error = jnp.linalg.norm(found - where.gradient[:, None], axis=(-2, -1)) / scale
    seconds = []
    for _ in range(sizes.repeats):
        begin = time.perf_counter()
        jax.block_until_ready(program(*calls[-1]))
        seconds.append(time.perf_counter() - begin)
    return by_weight(error), by_weight(residual), int(evaluations[0, 0]), min(seconds)


def measure_variance(way: Way, sizes: Sizes, ours: Lanes, where: Points) -> np.ndarray:
    """Transitions that a standard error of `TARGET` takes, [W, I]."""
    program = prices(way._replace(sigma=1.0), sizes)  # σ is traced
    found = program(ours, way.sigma, where.actor[:, -1], primes_of(way, where)[:, -1])
    return by_weight(found / (TARGET * jnp.linalg.norm(where.gradient, axis=(-2, -1))) ** 2)


# One program for all σ.
@functools.cache
def estimates(construct: Construct) -> Callable:
    """`estimated` of all lanes, compiled."""
    return jax.jit(jax.vmap(partial(estimated, construct), (0, None, 0, 0)))


@functools.cache
def prices(way: Way, sizes: Sizes) -> Callable:
    """`price` of all lanes, compiled."""
    return jax.jit(jax.vmap(partial(price, way, sizes), (0, None, 0, 0)))


@functools.cache
def ascent(construct: Construct, sizes: Sizes) -> Callable:
    """`ascend` of all lanes, compiled."""
    return jax.jit(jax.vmap(partial(ascend, construct, sizes), (0, None)))


# What it shows --------------------------------------------------------------------------------------------------------


def averages(values: np.ndarray) -> Estimate:
    """Of the interquartile mean over the last axis, I."""
    return estimate(np.moveaxis(values, -1, 0))


def geometric(values: np.ndarray) -> Estimate:
    """The same of the logarithms, taken back; what is below rounding counts as rounding."""
    found = averages(np.log(np.maximum(values, np.finfo(float).eps)))
    return found._replace(center=np.exp(found.center), low=np.exp(found.low), high=np.exp(found.high))


def summarise(result: Result, sizes: Sizes) -> list[dict]:
    """A row for each way and w: interquartile means over instances with their 95 % intervals, of logarithms but for gaps."""
    labels = [*map(str, sizes.policy_steps), "optimal"]
    rows = []
    for name, (i, weight) in itertools.product(result.error | result.transitions, enumerate(KL_WEIGHTS)):
        row = {"way": name, "kl_weight": weight}
        if name in result.error:
            found, unsolved = geometric(result.error[name][i]), np.mean(result.residual[name][i] > 1e-8, axis=-1)
            row["relative_error"] = {label: triple(found, k) for k, label in enumerate(labels)}
            row["unsolved"] = dict(zip(labels, unsolved.tolist(), strict=True))
            row |= {"gradient_evaluations": result.evaluations[name], "seconds": result.seconds[name]}
        if name in result.transitions:
            row["transitions"] = triple(geometric(result.transitions[name][i]))
        if name in result.gap:
            gap = result.gap[name][i]
            row |= {"gap": triple(averages(gap)), "range_of_gap": [float(np.nanmin(gap)), float(np.nanmax(gap))]}
            row["diverged"] = int(np.sum(np.isnan(gap)))
        rows.append(row)
    return rows


def triple(found: Estimate, index=()) -> list[float]:
    """Center and interval as JSON values."""
    return [float(x[index]) for x in found[:3]]


COLORS = {
    "naive": "#888888",
    "proxy": ("#E69F00", "#D55E00", "#8C3B00"),
    "closed form": "#0072B2",
    "implicit": ("#009E73", "#56B4E9"),
    "unrolled": ("#E0A3C8", "#CC79A7", "#7A3B60"),
}


def styles(names) -> dict[str, dict]:
    """A colour and a line style for each way; ways of one kind share a family of colours."""
    found, seen = {}, {}
    for name in names:
        kind = next(x for x in COLORS if name.startswith(x))
        family = COLORS[kind]
        number = seen[kind] = seen.get(kind, -1) + 1
        color = family if isinstance(family, str) else family[number % len(family)]
        found[name] = {"color": color, "linestyle": "--" if name == "implicit, dense" else "-"}
    return found


def draw(result: Result, sizes: Sizes) -> Figure:
    """Bias at each w, cost, variance, and the ends of the ascents."""
    figure = Figure(figsize=(15, 8.6), layout="constrained")
    top, bottom = figure.subplots(2, 3)
    style = styles(result.error)
    for i, axes in enumerate(top[:2]):
        draw_bias(axes, result, sizes, i, style)
    draw_cost(top[2], result, style)
    draw_sampled(bottom[0], result)
    draw_ascents(bottom[1], result, sizes)
    bottom[2].axis("off")
    bottom[2].legend(*top[0].get_legend_handles_labels(), loc="center", title="top row", fontsize=10)
    title = "Hypergradients of Φ on {} random MDPs: interquartile means over instances with 95 % intervals"
    figure.suptitle(title.format(sizes.num_instances), fontsize=12)
    return figure


def draw_bias(axes, result: Result, sizes: Sizes, i: int, style) -> None:
    """Relative error against K′ at one w."""
    places = [*sizes.policy_steps, 10 * sizes.policy_steps[-1]]
    for name, errors in result.error.items():
        found = geometric(errors[i])
        bars = np.maximum([found.center - found.low, found.high - found.center], 0)
        axes.errorbar(places, found.center, bars, marker="o", markersize=3, linewidth=1.2, label=name, **style[name])
    axes.set(xscale="log", yscale="log", ylim=(1e-13, 1e2), title=f"Bias at w = {KL_WEIGHTS[i]}")
    axes.set_xticks(places, [*map(str, sizes.policy_steps), "∞ (λ*)"])
    axes.minorticks_off()
    axes.set(xlabel="K′, ascent steps of λ and λ′ before the estimate", ylabel="‖estimate − ∇Φ‖ / ‖∇Φ‖")
    axes.grid(alpha=0.3)


def draw_cost(axes, result: Result, style) -> None:
    """Milliseconds of a call, and gradient evaluations beside."""
    names = list(result.seconds)
    times = 1e3 * np.array(list(result.seconds.values()))
    axes.barh(names, times, color=[style[name]["color"] for name in names])
    for place, name in enumerate(names):
        axes.text(times[place] + 0.02 * times.max(), place, f"{result.evaluations[name]:,}", va="center", fontsize=8)
    lanes = np.prod(result.error[names[0]].shape[::2])
    axes.set(xlim=(0, 1.2 * times.max()), title="Cost; numbers: gradient evaluations")
    axes.set_xlabel(f"ms a jitted call for {lanes} instances")
    axes.locator_params(axis="x", nbins=6)  # labels of more would touch
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")


def draw_intervals(axes, values: dict[str, Estimate]) -> None:
    """An interval for each way and w, one above the other."""
    for i, (weight, color) in enumerate(zip(KL_WEIGHTS, ("#0072B2", "#D55E00"), strict=True)):
        center, low, high = (
            np.array([getattr(x, end)[i] for x in values.values()]) for end in ("center", "low", "high")
        )
        places = np.arange(len(values)) + 0.2 * (2 * i - 1)
        bars = np.maximum([center - low, high - center], 0)
        axes.errorbar(center, places, xerr=bars, fmt="o", color=color, markersize=4, label=f"w = {weight}")
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)


def draw_sampled(axes, result: Result) -> None:
    """Transitions that a given standard error takes."""
    draw_intervals(axes, {name: geometric(x) for name, x in result.transitions.items()})
    axes.set(xscale="log", title="Variance of the sampled forms, at λ* and λ*_σ")
    axes.set_xlabel(f"transitions for a standard error of {TARGET:g} ‖∇Φ‖")


def draw_ascents(axes, result: Result, sizes: Sizes) -> None:
    """What each ascent loses to the exact one; a dot an instance."""
    draw_intervals(axes, {name: averages(x) for name, x in result.gap.items()})
    for place, gap in enumerate(result.gap.values()):
        for i, color in enumerate(("#0072B2", "#D55E00")):
            axes.plot(gap[i], np.full(gap.shape[1], place + 0.2 * (2 * i - 1)), "|", color=color, alpha=0.5)
    axes.set_xscale("symlog", linthresh=1e-6)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=100, linthresh=1e-6))  # labels of every decade would touch
    axes.set(title=f"Ends of ascents of {sizes.outer_steps} steps, K = {sizes.inner_steps} (marks: instances)")
    axes.set_xlabel("Φ at the end, less that of an ascent along ∇Φ, nats")


def tell(rows: list[dict], sizes: Sizes, say: Callable[[str], None]) -> None:
    """The rows as a table."""
    ends = f"K′ = {sizes.policy_steps[0]}", f"K′ = {sizes.policy_steps[-1]}", "at λ*"
    head = "".join(f"{x:>12s}" for x in (*ends, "gradients", "ms", "transitions", "lost Φ"))
    say(f"{'':30s}{'w':>5s}{head}")
    for row in rows:
        errors = list(row.get("relative_error", {}).values())
        cells = [f"{errors[k][0]:.1e}" for k in (0, -2, -1)] if errors else [""] * 3
        cells += [f"{row['gradient_evaluations']}", f"{1e3 * row['seconds']:.1f}"] if errors else [""] * 2
        cells += [f"{row['transitions'][0]:.2e}" if "transitions" in row else ""]
        cells += [f"{-row['gap'][0]:.1e}" if "gap" in row else ""]
        say(f"{row['way']:30s}{row['kl_weight']:5.1f}" + "".join(f"{x:>12s}" for x in cells))


def main(out: Path, say=print) -> None:
    """Runs the study and writes `hypergradients.png` and `hypergradients.json`."""
    sizes = Sizes()
    result = study(sizes, say)
    rows = summarise(result, sizes)
    write_json(out, "hypergradients.json", rows)
    write_figure(out, "hypergradients.png", draw(result, sizes), dpi=110)
    tell(rows, sizes, say)
    say(f"figure: {out / 'hypergradients.png'}")
