"""The oracle ladder: Algorithm 1 on a small MDP with exact gradients, an exact critic, then a learned one.

Each rung adds one error. With exact gradients the distance to the maximum of Φ is the proxy's bias, which is proportional to
σ; sampling adds noise; a learned critic adds its own error. On an instance with w = 1.5, where ascent on the exact Φ
reaches one maximum from every start.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf
from bilevel.gradients.critics import TDSizes, exact_critic, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.preferences import annotator, log_likelihood
from bilevel.run import run, start
from bilevel.types import Array, Hyper, Problem
from envs.base import MDP
from envs.tabular import garnet, tabular
from experiments.files import write_figure, write_json

DISCOUNT, KL_WEIGHT, LENGTH = 0.9, 1.5, 3
SIGMAS = (0.4, 0.2, 0.1)
RUNGS = ("exact gradients", "sampled, exact critic", "sampled, learned critic")


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        num_seeds: of each sampled rung.
        num_steps: T, outer steps.
        batch_size: B, trajectories a gradient.
        num_policy_steps: K, inner steps.
        ascent_steps: of the direct ascent on Φ.
    """

    num_seeds: int = 16
    num_steps: int = 400
    batch_size: int = 64
    num_policy_steps: int = 10
    ascent_steps: int = 1500


class Result(NamedTuple):
    """The study's numbers.

    Attributes:
        best: [S, A] the maximiser of Φ that direct ascent reaches.
        best_value: [] Φ there.
        best_gradient: [] ‖∇Φ‖ there.
        gap: rung -> [σ, seed, T] Φ* − Φ(φ_t); the sampled rungs at the last σ alone.
        distance: rung -> [σ, seed, T] ‖φ_t − φ*‖ (centred: Φ does not see a constant).
    """

    best: np.ndarray
    best_value: float
    best_gradient: float
    gap: dict[str, np.ndarray]
    distance: dict[str, np.ndarray]


def instance() -> MDP:
    """The study's MDP: three states, two actions."""
    return garnet(jax.random.key(1), 3, 2)


def problem(mdp: MDP, hyper: Hyper) -> Problem:
    """Tables for reward and policy, Bradley–Terry labels, a uniform reference."""
    world = tabular(mdp)
    tables = models.table(*mdp.reward.shape), models.table_policy(*mdp.reward.shape)
    annotate = annotator(world.reward, hyper.discount, hyper.rationality)
    return Problem(world.env, annotate, *tables, models.uniform_reference(world.env))


def objective(mdp: MDP, reward: Array) -> Array:
    """Φ of a reward table, [], exactly."""
    segments = exact.enumerate_segments(*mdp.reward.shape, LENGTH)
    hyper = Hyper(kl_weight=KL_WEIGHT, discount=DISCOUNT)
    comparisons = exact.exact_comparisons(problem(mdp, hyper).annotate, segments)
    uniform = jnp.full(mdp.reward.shape, 1 / mdp.reward.shape[1])
    policy = exact.optimal_policy(exact.lower_level(mdp, reward, uniform, DISCOUNT, KL_WEIGHT)).policy
    return exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, DISCOUNT)


@partial(jax.jit, static_argnums=1)
def direct_ascent(mdp: MDP, num_steps: int) -> tuple[Array, Array, Array]:
    """The maximiser of Φ that plain gradient ascent from zero reaches, its value, and ‖∇Φ‖ there."""

    def body(reward, _):
        return reward + 0.5 * jax.grad(lambda x: objective(mdp, x))(reward), None

    best, _ = jax.lax.scan(body, jnp.zeros_like(mdp.reward), length=num_steps)
    value, gradient = jax.value_and_grad(lambda x: objective(mdp, x))(best)
    return best, value, optax.tree.norm(gradient)


def climb(mdp: MDP, rung: str, sizes: Sizes, best: Array, best_value: Array) -> tuple[np.ndarray, np.ndarray]:
    """Gap and distance of one rung, [σ, seed, T]; with exact gradients one seed says it all."""
    sampled = rung != RUNGS[0]

    def single(sigma, key):
        hyper = Hyper(sigma, KL_WEIGHT, DISCOUNT, policy_step_size=0.2, reward_step_size=1.0 if sampled else 3.0)
        algorithm = bilevel_rlhf(ours := problem(mdp, hyper), gradients(ours, hyper), config(rung, sizes), hyper)

        def measure(key, learned):
            difference = learned.reward - best
            gap = best_value - objective(mdp, learned.reward)
            return {"gap": gap, "distance": optax.tree.norm(difference - jnp.mean(difference))}

        _, metrics = run(algorithm, key, start(algorithm, key, measure), sizes.num_steps, measure)
        return metrics["gap"], metrics["distance"]

    def gradients(ours, hyper):
        if not sampled:
            return exact_gradients(ours, mdp, LENGTH, hyper)
        table = models.table(*mdp.reward.shape)
        learned = td_critic(ours, table, TDSizes(2, 512, 64), hyper._replace(critic_step_size=2.0))
        critic = exact_critic(ours, mdp, hyper) if rung == RUNGS[1] else learned
        return sampled_gradients(ours, critic, SampleSizes(sizes.batch_size, 50, LENGTH), hyper)

    keys = jax.random.split(jax.random.key(0), sizes.num_seeds if sampled else 1)
    over_seeds = jax.vmap(single, in_axes=(None, 0))
    sigmas = jnp.array(SIGMAS[-1:] if sampled else SIGMAS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(sigmas, keys))


def config(rung: str, sizes: Sizes) -> BilevelConfig:
    """Plain gradient ascent at both levels; sampled rungs average noise away with steps that fall like 1/t."""

    def falling(step_size):
        return optax.sgd(lambda count: step_size / (1 + count / 20))

    return BilevelConfig(sizes.num_policy_steps, reward_optimizer=optax.sgd if rung == RUNGS[0] else falling)


def study(sizes: Sizes = Sizes()) -> Result:  # noqa: B008
    """Climbs the ladder, in float64."""
    with jax.enable_x64(True):
        mdp = instance()
        best, value, gradient = direct_ascent(mdp, sizes.ascent_steps)
        climbed = {rung: climb(mdp, rung, sizes, best, value) for rung in RUNGS}
    gap, distance = ({rung: both[i] for rung, both in climbed.items()} for i in (0, 1))
    return Result(np.asarray(best), float(value), float(gradient), gap, distance)


# What it shows --------------------------------------------------------------------------------------------------------


def sigmas_of(rung: str) -> tuple[float, ...]:
    """The σ of a rung's first axis."""
    return SIGMAS if rung == RUNGS[0] else SIGMAS[-1:]


def draw(result: Result) -> Figure:
    """Gap and distance along the run, a panel each, one colour a rung, one line style a σ."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    styles = dict(zip(SIGMAS, ("-", "--", ":"), strict=True))
    colors = dict(zip(RUNGS, ("#0072B2", "#E69F00", "#009E73"), strict=True))
    axes = figure.subplots(1, 2)
    for panel, curves in zip(axes, (result.gap, result.distance), strict=True):
        for rung, i, sigma in ((r, i, sigma) for r in RUNGS for i, sigma in enumerate(sigmas_of(r))):
            low, middle, high = np.quantile(np.abs(curves[rung][i]), (0.25, 0.5, 0.75), axis=0)
            steps = np.arange(1, len(middle) + 1)
            label = f"{rung}, σ = {sigma}"
            panel.plot(steps, middle, color=colors[rung], linestyle=styles[sigma], linewidth=1.4, label=label)
            panel.fill_between(steps, low, high, color=colors[rung], alpha=0.2, linewidth=0)
        panel.set(xlabel="outer step t", yscale="log")
        panel.grid(alpha=0.3)
    axes[0].set(title="Gap to the maximum of Φ", ylabel="|Φ* − Φ(φ_t)|, nats")
    axes[1].set(title="Distance to the maximiser", ylabel="‖φ_t − φ*‖, units of reward")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle("The oracle ladder: median over seeds, bands from the first to the third quartile", fontsize=11)
    return figure


def summarise(result: Result) -> dict:
    """The last step's medians over seeds, by rung and σ, and the direct ascent's value."""
    rows = [
        {
            "rung": rung,
            "sigma": sigma,
            "gap": float(np.median(result.gap[rung][i, :, -1])),
            "distance": float(np.median(result.distance[rung][i, :, -1])),
        }
        for rung in RUNGS
        for i, sigma in enumerate(sigmas_of(rung))
    ]
    return {"best_value": result.best_value, "best_gradient_norm": result.best_gradient, "rungs": rows}


def main(out: Path, say=print) -> None:
    """Runs the study and writes `ladder.png` and `ladder.json`."""
    result = study()
    summary = summarise(result)
    write_json(out, "ladder.json", summary)
    write_figure(out, "ladder.png", draw(result), dpi=120)
    say(f"direct ascent: Φ* = {summary['best_value']:.6f} nats with gradient norm {summary['best_gradient_norm']:.1e}")
    say(f"{'rung':26s}{'σ':>6s}{'Φ* − Φ, nats':>14s}{'distance':>12s}{'distance/σ':>12s}")
    for row in summary["rungs"]:
        sigma, distance = row["sigma"], row["distance"]
        say(f"{row['rung']:26s}{sigma:6.2f}{row['gap']:14.2e}{distance:12.2e}{distance / sigma:12.5f}")
    say(f"figure: {out / 'ladder.png'}")
