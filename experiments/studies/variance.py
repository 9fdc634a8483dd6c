"""Line 7's estimators: total variance of (∇_φ J(λ′) − ∇_φ J(λ))/σ against σ, at the exact λ*(φ) and λ*_σ(φ).

Expected slopes of log variance against log σ, as σ → 0: −2 with independent rollouts, −1 with coupled ones, 0 with weighted
ones. Estimates at different σ have keys of their own: with the same ones their noise would cancel in the slope, and any
power of higher order in σ would be seen as none. Coupled rollouts part seldom, and the more so the smaller σ is, so that
their variance is that of rare events: it is measured from many more of them.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.gradients.sampled import ESTIMATORS, SampleSizes, return_difference
from bilevel.preferences import annotator, log_likelihood
from bilevel.types import Array, Hyper, Problem
from envs.base import MDP
from envs.tabular import garnet, tabular
from experiments.files import write_figure, write_json
from experiments.statistics.rates import Fit, interval, power_law

DISCOUNT, KL_WEIGHT, LENGTH = 0.9, 0.5, 3
SIGMAS = tuple(0.3 / 2**k for k in range(7))  # to 0.0047
EXPECTED = {"independent": -2.0, "coupled": -1.0, "weighted": 0.0}
SHARE = {"independent": 1, "coupled": 16, "weighted": 1}  # of the number of estimates


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        num_batches: independent estimates, of coupled rollouts 16 times as many; the variance is over them.
        batch_size: trajectories an estimate; variances are reported for one trajectory.
        rollout_length: T, steps of a rollout.
    """

    num_batches: int = 4000
    batch_size: int = 64
    rollout_length: int = 60


class Result(NamedTuple):
    """The study's numbers, by estimator.

    Attributes:
        variance: [σ] total variance of one trajectory's estimate.
        interval: [2, σ] its 95 % bootstrap interval.
        law: of the variance in 1/σ: its exponent is the slope of log variance against log σ, its range one of σ.
    """

    variance: dict[str, np.ndarray]
    interval: dict[str, np.ndarray]
    law: dict[str, Fit]


def estimates(mdp: MDP, reward: Array, sigma: Array, key: Array, estimator: str, sizes: Sizes) -> Array:
    """Independent estimates of the difference at exact λ*(φ), λ*_σ(φ), [`SHARE` · num_batches, S·A]."""
    world = tabular(mdp)
    hyper = Hyper(sigma, KL_WEIGHT, DISCOUNT)
    uniform = models.uniform_reference(world.env)
    tables = models.table(*mdp.reward.shape), models.table_policy(*mdp.reward.shape)
    problem = Problem(world.env, annotator(world.reward, DISCOUNT), *tables, uniform)
    segments = exact.enumerate_segments(*mdp.reward.shape, LENGTH)
    comparisons = exact.exact_comparisons(problem.annotate, segments)
    lower = exact.lower_level(mdp, reward, jnp.full(mdp.reward.shape, 1 / mdp.reward.shape[1]), DISCOUNT, KL_WEIGHT)

    def penalty(policy):
        return exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, DISCOUNT)

    actor = jnp.log(exact.optimal_policy(lower).policy)
    proxy = jnp.log(exact.penalised_policy(lower, penalty, sigma).policy)
    difference = return_difference(
        problem, SampleSizes(sizes.batch_size, sizes.rollout_length, LENGTH, estimator), hyper
    )
    keys = jax.random.split(key, SHARE[estimator] * sizes.num_batches)
    return jax.lax.map(lambda key: difference(key, reward, actor, proxy)[0].ravel(), keys, batch_size=16)


def study(sizes: Sizes = Sizes()) -> Result:  # noqa: B008
    """Runs the study on a random MDP of three states and two actions, in float64."""
    variance, interval, law = {}, {}, {}
    with jax.enable_x64(True):
        mdp = garnet(jax.random.key(1), 3, 2)
        reward = jax.random.normal(jax.random.key(2), mdp.reward.shape)
        for name in ESTIMATORS:
            run = jax.jit(lambda sigma, key, name=name: estimates(mdp, reward, sigma, key, name, sizes))
            keys = jax.random.split(jax.random.key(0), len(SIGMAS))
            samples = np.stack([run(jnp.asarray(sigma), key) for sigma, key in zip(SIGMAS, keys, strict=True)])
            variance[name], interval[name], law[name] = analyse(samples * np.sqrt(sizes.batch_size))
    return Result(variance, interval, law)


def analyse(samples: np.ndarray, num_resamples: int = 500):
    """Variance [σ], its interval [2, σ], and its power law, from samples [σ, N, dimension]."""
    squares = np.sum((samples - samples.mean(axis=1, keepdims=True)) ** 2, axis=-1)  # [σ, N]
    num = squares.shape[1]
    variance = squares.sum(axis=1) / (num - 1)
    rng = np.random.default_rng(0)
    picks = [rng.integers(num, size=num) for _ in range(num_resamples)]
    resampled = np.stack([squares[:, pick].mean(axis=1) for pick in picks], axis=1)  # [σ, resamples]
    ends = np.transpose([interval(x, num) for x in resampled])
    positive = np.maximum(squares, np.finfo(float).tiny)  # an estimate may be the mean
    law = power_law(1 / np.array(SIGMAS), positive, floor=False, num_resamples=num_resamples)
    return variance, ends, law._replace(range=tuple(1 / x for x in law.range))


def said(law: Fit) -> str:
    """The slope with its interval."""
    return f"slope {law.exponent:.2f} [{law.interval[0]:.2f}, {law.interval[1]:.2f}]"


def draw(result: Result) -> Figure:
    """Variance against σ on log axes, with the expected slopes beside."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, color in zip(ESTIMATORS, ("#D55E00", "#0072B2", "#009E73"), strict=True):
        label = f"{name}: {said(result.law[name])}"
        below = result.variance[name] - result.interval[name][0]
        above = result.interval[name][1] - result.variance[name]
        bars = np.maximum([below, above], 0)
        axes.errorbar(SIGMAS, result.variance[name], bars, color=color, marker="o", markersize=4, label=label)
        guide = result.variance[name][-1] * (np.array(SIGMAS) / SIGMAS[-1]) ** EXPECTED[name]
        axes.plot(SIGMAS, guide, color=color, linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="σ, weight of G in the penalised lower level")
    axes.set_ylabel("total variance of one trajectory's estimate")
    axes.set_title("Line 7's difference: measured (points), expected slopes −2, −1, 0 (dotted)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(title="estimator, slope with its 95 % interval", fontsize=8, title_fontsize=8)
    return figure


def main(out: Path, say=print) -> None:
    """Runs the study and writes `variance.png` and `variance.json`."""
    result = study()
    numbers = {
        name: {
            "variance": dict(zip(map(str, SIGMAS), result.variance[name].tolist(), strict=True)),
            "slope": [law.exponent, *law.interval],
            "last levels": law.tail,
        }
        for name, law in result.law.items()
    }
    write_json(out, "variance.json", numbers)
    write_figure(out, "variance.png", draw(result), dpi=120)
    for name, law in result.law.items():
        say(f"{name:12s} {said(law)}, expected {EXPECTED[name]:g}")
    say(f"figure: {out / 'variance.png'}")
