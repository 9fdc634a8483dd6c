"""P1.estimator: sampled gradients are unbiased, and how the variance of line 7 grows as σ → 0.

Estimates at different σ have keys of their own: with the same ones their noise would cancel in the slope, and any power of
higher order in σ would be seen as none. Coupled rollouts part seldom, and the more so the smaller σ is, so that their
variance is that of rare events: it is measured from many more of them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bilevel.exact.bilevel import exact_bilevel, tabular_problem
from bilevel.gradients.critics import exact_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import ESTIMATORS, SampleSizes, return_difference, sampled_gradients
from bilevel.gradients.types import Gradients
from bilevel.lookup import bind
from bilevel.types import Array, Coefficients
from envs.tabular import garnet
from experiments.claims.claim import Budget, Claim, Margin, Measurement, Number, exponent
from experiments.claims.panels import BLUE, GREEN, VERMILION, curve, exponent_label, guide, log_log, panels
from experiments.statistics.intervals import Interval, ends, resamples
from experiments.statistics.rates import Fit, power_law

COEFFICIENTS, LENGTH = Coefficients(discount=0.9, kl_weight=0.5), 3
SIGMA = 1.0  # large, for the independent estimator, whose variance is 1/σ²; the slopes are taken at small ones
SIZES = SampleSizes(batch_size=256, rollout_length=100, segment_length=LENGTH, num_pairs=256)  # 0.9^100 = 3e-5
CHUNK = 40  # estimates a call of the one program
OFF = 4.0  # standard errors that a mean may be off
PRECISION = 0.02  # largest standard error, as a share of the norm, that decides
OFF_BY = ": s.e. off (a point)"  # the largest |z| over entries: a test at `OFF`, not a number with an interval
DERIVATIVES = ("∇_λ J", "∇_λ G", "∇_φ G", *(f"line 7, {name}" for name in ESTIMATORS))
SIGMAS = tuple(0.3 / 2**k for k in range(7))  # to 0.0047, for the slopes
SMALL = SampleSizes(batch_size=64, rollout_length=60, segment_length=LENGTH)  # for the slopes
EXPECTED = {"independent": -2.0, "coupled": -1.0, "weighted": 0.0}
SHARE = {"independent": 1, "coupled": 16, "weighted": 1}  # of the number of estimates
COLORS = dict(zip(ESTIMATORS, (VERMILION, BLUE, GREEN), strict=True))
QUICK, FULL = 400, 4000  # independent estimates, of each derivative and at each σ
DRAWS = 500  # resamples of them, fewer than elsewhere since they are many


class Mean(NamedTuple):
    """Of one derivative, each of its shape: the mean of the estimates, its standard error, and the exact value."""

    mean: np.ndarray  # of the estimates of one derivative, of its shape
    error: np.ndarray  # standard error of the mean
    exact: np.ndarray


class Data(NamedTuple):
    """What was sampled."""

    num_batches: int  # independent estimates of each derivative, and at each σ; of coupled rollouts 16 times as many
    means: dict[str, Mean]  # derivative -> its mean at one σ
    squares: dict[str, np.ndarray]  # estimator -> [σ, estimate] squared distance from the mean, of line 7's difference


def means(num_batches: int, discount: float = COEFFICIENTS.discount) -> dict[str, Mean]:
    """On a random MDP of three states and two actions, in float64.

    Args:
        num_batches: independent estimates of `SIZES`, a multiple of `CHUNK`.
        discount: that the sampled estimators use; another one than the world's plants a bias.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(4), num_batches).reshape(-1, CHUNK)
        chunks, (expected, *_) = zip(*(samples_and_truth(chunk, discount) for chunk in keys), strict=True)
        samples = jax.tree.map(lambda *x: np.concatenate(x), *chunks)
    found = {}
    for name in DERIVATIVES:
        error = np.std(samples[name], axis=0, ddof=1) / np.sqrt(num_batches)
        found[name] = Mean(samples[name].mean(axis=0), error, np.asarray(expected[name]))
    return found


@jax.jit
def samples_and_truth(keys: Array, discount: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Of each derivative, independent estimates [keys, …] and the exact value."""
    mdp = garnet(jax.random.key(1), 3, 2)
    problem = tabular_problem(mdp, COEFFICIENTS)
    known = exact_bilevel(problem, mdp, LENGTH, COEFFICIENTS)
    reward, other = (jax.random.normal(jax.random.key(seed), mdp.reward.shape) for seed in (2, 3))
    points = reward, other, jnp.log(known.optimum(reward)), jnp.log(known.penalised(reward, SIGMA))
    policy = problem.policy
    critic = exact_critic(problem, mdp, COEFFICIENTS)
    planted = COEFFICIENTS._replace(discount=discount)
    many = {x: sampled_gradients(problem, critic, SIZES._replace(estimator=x), planted) for x in ESTIMATORS}
    truth = dict.fromkeys(ESTIMATORS, exact_gradients(problem, mdp, LENGTH, COEFFICIENTS))
    samples = jax.lax.map(partial(derivatives, many=many, points=points, policy=policy), keys, batch_size=8)
    return samples, derivatives(keys[0], truth, points, policy)


def derivatives(key: Array, many: dict[str, Gradients], points, policy) -> dict[str, Array]:
    """One estimate of each derivative: J's and G's at a policy of its own, line 7 at λ* and λ*_σ."""
    reward, other, optimal, proxy = points
    key_return, key_pairs, key_line, key_difference = jax.random.split(key, 4)
    first = many["weighted"]
    critic = first.init(key)
    pairs = first.collect(key_pairs, bind(policy, other))
    found = {
        "∇_λ J": first.return_in_policy(key_return, critic, other, reward)[0],
        "∇_λ G": first.preference_in_policy(pairs, other, reward),
        "∇_φ G": first.preference_in_reward(pairs, bind(policy, other), reward)[1],
    }
    pairs = first.collect(key_line, bind(policy, proxy))
    direct = first.preference_in_reward(pairs, bind(policy, proxy), reward)[1]
    for name, gradients in many.items():
        difference = gradients.return_difference(key_difference, reward, optimal, proxy)[0]
        found[f"line 7, {name}"] = direct + difference / SIGMA
    return found


def deviations(found: dict[str, Mean]) -> dict[str, Number]:
    """By how many of its standard errors each mean is off, at most, over the derivative's entries: points, no intervals.
    Undecided where it is within `OFF`, but the standard error is above `PRECISION` of the norm: too vague to hold."""
    numbers = {}
    for name, of in found.items():
        off, share = np.max(np.abs(of.mean - of.exact) / of.error), np.linalg.norm(of.error) / np.linalg.norm(of.exact)
        vague = f"standard error {100 * share:.1f} % of the norm, at most {100 * PRECISION:g} needed"
        numbers[name + OFF_BY] = Number(*[off] * 3, vague if share > PRECISION and off <= OFF else "")
    return numbers


def squares(num_batches: int) -> dict[str, np.ndarray]:
    """On the same MDP, at the exact λ*(φ) and λ*_σ(φ) of each σ, in float64; see `Data`."""
    found = {}
    with jax.enable_x64(True):
        for name in ESTIMATORS:
            run = jax.jit(partial(differences, estimator=name, num=SHARE[name] * num_batches))
            keys = jax.random.split(jax.random.key(0), len(SIGMAS))
            samples = np.stack([run(jnp.asarray(sigma), key) for sigma, key in zip(SIGMAS, keys, strict=True)])
            found[name] = squared_distances(samples * np.sqrt(SMALL.batch_size))
    return found


def differences(sigma: Array, key: Array, estimator: str, num: int) -> Array:
    """Independent estimates of (∇_φ J(λ*_σ) − ∇_φ J(λ*))/σ, [num, S·A]."""
    mdp = garnet(jax.random.key(1), 3, 2)
    problem = tabular_problem(mdp, COEFFICIENTS)
    known = exact_bilevel(problem, mdp, LENGTH, COEFFICIENTS)
    reward = jax.random.normal(jax.random.key(2), mdp.reward.shape)
    optimal, proxy = jnp.log(known.optimum(reward)), jnp.log(known.penalised(reward, sigma))
    difference = return_difference(problem, SMALL._replace(estimator=estimator), COEFFICIENTS)

    def single(key):
        return difference(key, reward, optimal, proxy)[0].ravel() / sigma

    return jax.lax.map(single, jax.random.split(key, num), batch_size=16)


def squared_distances(samples: np.ndarray) -> np.ndarray:
    """Of samples [σ, estimate, dimension] from their mean, [σ, estimate]."""
    return np.sum((samples - samples.mean(axis=1, keepdims=True)) ** 2, axis=-1)


def law(squares: np.ndarray) -> Fit:
    """The power law of the variance in 1/σ: its exponent is the slope of log variance against log σ, its range one of σ."""
    positive = np.maximum(squares, np.finfo(float).tiny)  # an estimate may be the mean
    found = power_law(1 / np.array(SIGMAS), positive, floor=False, num_resamples=DRAWS)
    return found._replace(range=tuple(1 / x for x in found.range))


def slopes(squares: dict[str, np.ndarray]) -> dict[str, Number]:
    """Of the variance in σ."""
    return {f"slope of variance in σ, {name}": exponent(law(x), "in σ") for name, x in squares.items()}


def variance(squares: np.ndarray) -> Interval:
    """Total variance of one trajectory's estimate, [σ]."""
    num = squares.shape[1]
    picks = resamples(num, DRAWS)
    drawn = np.stack([row[picks].mean(axis=1) for row in squares], axis=1)  # [resample, σ]
    return Interval(squares.sum(axis=1) / (num - 1), *ends(drawn, num))


def measure(budget: Budget) -> Data:
    """Means at one σ, and squares at many."""
    num_batches = QUICK if budget.quick else FULL
    return Data(num_batches, means(num_batches), squares(num_batches))


def judge(found: Data) -> Measurement:
    """How far the means are off, and the slopes."""
    # One rollout for J, one or two for each of line 7's estimators, and two batches of pairs.
    transitions = found.num_batches * (6 * SIZES.batch_size * SIZES.rollout_length + 4 * SIZES.num_pairs * LENGTH)
    of_slopes = found.num_batches * SMALL.batch_size * SMALL.rollout_length * len(SIGMAS)
    transitions += sum((1 if x == "weighted" else 2) * SHARE[x] for x in ESTIMATORS) * of_slopes
    numbers = deviations(found.means) | slopes(found.squares)
    notes = (f"{found.num_batches} estimates from {SIZES.batch_size} trajectories or pairs each; the critic is exact",)
    return Measurement(numbers, {"transitions": transitions}, notes)


def draw(found: Data) -> Figure:
    """Variance against σ on log axes, with the expected slopes beside."""
    figure, [[panel]] = panels(6.4, 4.4)
    for name, values in found.squares.items():
        of = variance(values)
        curve(panel, SIGMAS, of, COLORS[name], f"{name}: {exponent_label(law(values), 'slope')}")
        guide(panel, SIGMAS[::-1], of.center[-1], EXPECTED[name], None, COLORS[name], ":")
    log_log(panel, "σ, weight of G in the penalised lower level", "total variance of one trajectory's estimate")
    panel.set_title("Line 7's difference: measured (points), expected slopes −2, −1, 0 (dotted)", fontsize=10)
    panel.legend(title="estimator, slope with its 95 % interval", fontsize=8, title_fontsize=8)
    return figure


CLAIM = Claim(
    statement="The estimators of ∇J, ∇G and ∇Φ_σ are unbiased; line 7's variance depends on how its rollouts are drawn.",
    source="2410.15610, Algorithm 1; the weighted and coupled estimators are derived",
    prediction="means within 4 standard errors (at most 2 % of the norm) of the exact gradients in every entry, points "
    "without intervals; variance ∝ σ⁻² with independent, σ⁻¹ with coupled, σ⁰ with weighted rollouts",
    margins={name + OFF_BY: Margin(0, OFF) for name in DERIVATIVES}
    | {f"slope of variance in σ, {n}": Margin(x - 0.15, x + 0.15) for n, x in EXPECTED.items()},
    minutes=(0.8, 6),
    measure=measure,
    judge=judge,
    draw=draw,
)
