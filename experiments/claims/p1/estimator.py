"""P1.estimator: sampled gradients are unbiased, and how the variance of line 7 grows as σ → 0."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import exact, models
from bilevel.gradients.critics import exact_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import ESTIMATORS, SampleSizes, sampled_gradients
from bilevel.lookup import bind
from bilevel.preferences import annotator, log_likelihood
from bilevel.types import Array, Gradients, Hyper, Problem
from envs.tabular import garnet, tabular
from experiments.studies import variance
from experiments.verify.claims import Budget, Claim, Interval, Margin, Measurement, exponent

DISCOUNT, KL_WEIGHT, LENGTH = 0.9, 0.5, 3
SIGMA = 1.0  # large, for the independent estimator, whose variance is 1/σ²; the slopes are taken at small ones
SIZES = SampleSizes(batch_size=256, rollout_length=100, segment_length=LENGTH, num_pairs=256)  # 0.9^100 = 3e-5
CHUNK = 40  # estimates a call of the one program
OFF = 4.0  # standard errors that a mean may be off
PRECISION = 0.02  # largest standard error, as a share of the norm, that decides
OFF_BY = ": s.e. off (a point)"  # the largest |z| over entries: a test at `OFF`, not a number with an interval
DERIVATIVES = ("∇_λ J", "∇_λ G", "∇_φ G", *(f"line 7, {name}" for name in ESTIMATORS))


def derivatives(key: Array, many: dict[str, Gradients], points) -> dict[str, Array]:
    """One estimate of each derivative: J's and G's at a policy of its own, line 7 at λ* and λ*_σ."""
    reward, other, optimal, proxy, policy = points
    key_return, key_pairs, key_line, key_difference = jax.random.split(key, 4)
    ours = many["weighted"]
    critic = ours.init(key)
    pairs = ours.collect(key_pairs, bind(policy, other))
    found = {
        "∇_λ J": ours.return_in_policy(key_return, critic, other, reward)[0],
        "∇_λ G": ours.preference_in_policy(pairs, other, reward),
        "∇_φ G": ours.preference_in_reward(pairs, bind(policy, other), reward)[1],
    }
    pairs = ours.collect(key_line, bind(policy, proxy))
    direct = ours.preference_in_reward(pairs, bind(policy, proxy), reward)[1]
    for name, gradients in many.items():
        found[f"line 7, {name}"] = direct + gradients.return_difference(key_difference, reward, optimal, proxy)[0]
    return found


def deviations(num_batches: int, wrong: float = 1.0) -> dict[str, Interval]:
    """By how many of its standard errors each mean is off, at most, over the derivative's entries: points, no intervals.

    On a random MDP of three states and two actions, in float64. Undecided where it is within `OFF`, but the standard error,
    as a norm over the entries, is above `PRECISION` of the exact derivative's: too vague to hold.

    Args:
        num_batches: independent estimates of `SIZES`, a multiple of `CHUNK`.
        wrong: factor of the discount that the sampled estimators use; 1, or less to plant a violation.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(4), num_batches).reshape(-1, CHUNK)
        chunks, (expected, *_) = zip(*(samples_and_truth(chunk, wrong) for chunk in keys), strict=True)
        samples = jax.tree.map(lambda *x: np.concatenate(x), *chunks)
    found = {}
    for name in DERIVATIVES:
        ours, exactly = np.asarray(samples[name]), np.asarray(expected[name])
        error = np.std(ours, axis=0, ddof=1) / np.sqrt(num_batches)
        off = float(np.max(np.abs(ours.mean(axis=0) - exactly) / error))
        share = float(np.linalg.norm(error) / np.linalg.norm(exactly))
        vague = f"standard error {100 * share:.1f} % of the norm, at most {100 * PRECISION:g} needed"
        found[name + OFF_BY] = Interval(off, off, off, vague if share > PRECISION and off <= OFF else "")
    return found


@jax.jit
def samples_and_truth(keys: Array, wrong: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Of each derivative, independent estimates [keys, …] and the exact value."""
    mdp = garnet(jax.random.key(1), 3, 2)
    world, shape = tabular(mdp), mdp.reward.shape
    reward = jax.random.normal(jax.random.key(2), shape)
    hyper = Hyper(SIGMA, KL_WEIGHT, DISCOUNT)
    tables = models.table(*shape), models.table_policy(*shape)
    annotate = annotator(world.reward, DISCOUNT)
    problem = Problem(world.env, annotate, *tables, models.uniform_reference(world.env))
    lower = exact.lower_level(mdp, reward, jnp.full(shape, 1 / shape[1]), DISCOUNT, KL_WEIGHT)
    segments = exact.enumerate_segments(*shape, LENGTH)
    comparisons = exact.exact_comparisons(annotate, segments)

    def penalty(policy):
        return exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, DISCOUNT)

    optimal = jnp.log(exact.optimal_policy(lower).policy)
    proxy = jnp.log(exact.penalised_policy(lower, penalty, SIGMA).policy)
    points = reward, jax.random.normal(jax.random.key(3), shape), optimal, proxy, problem.policy
    planted = hyper._replace(discount=wrong * DISCOUNT)
    critic = exact_critic(problem, mdp, hyper)
    many = {x: sampled_gradients(problem, critic, SIZES._replace(estimator=x), planted) for x in ESTIMATORS}
    truth = dict.fromkeys(ESTIMATORS, exact_gradients(problem, mdp, LENGTH, hyper))
    samples = jax.lax.map(partial(derivatives, many=many, points=points), keys, batch_size=8)
    return samples, derivatives(keys[0], truth, points)


def slopes(found: variance.Result) -> dict[str, Interval]:
    """Of the variance in σ."""
    return {f"slope of variance in σ, {x}": exponent(found.law[x], "in σ") for x in ESTIMATORS}


def measure(budget: Budget) -> Measurement:
    """See `deviations`, and `experiments.studies.variance` for the slopes."""
    num_batches = 400 if budget.quick else 4000
    sizes = variance.Sizes(num_batches=num_batches)
    found = variance.study(sizes)
    # One rollout for J, one or two for each of line 7's estimators, and two batches of pairs.
    transitions = num_batches * (6 * SIZES.batch_size * SIZES.rollout_length + 4 * SIZES.num_pairs * LENGTH)
    of_slopes = sizes.num_batches * sizes.batch_size * sizes.rollout_length * len(variance.SIGMAS)
    transitions += sum((1 if x == "weighted" else 2) * variance.SHARE[x] for x in ESTIMATORS) * of_slopes
    notes = (f"{num_batches} estimates from {SIZES.batch_size} trajectories or pairs each; the critic is exact",)
    numbers = deviations(num_batches) | slopes(found)
    return Measurement(numbers, {"transitions": transitions}, variance.draw(found), notes)


CLAIM = Claim(
    statement="The estimators of ∇J, ∇G and ∇Φ_σ are unbiased; line 7's variance depends on how its rollouts are drawn.",
    source="2410.15610, Algorithm 1; the weighted and coupled estimators are derived",
    prediction="means within 4 standard errors of the exact gradients in every entry, a test that gives a point and no "
    "interval (standard errors at most 2 % of the norm); variance ∝ σ⁻² with independent, σ⁻¹ with coupled, σ⁰ with "
    "weighted rollouts",
    exact=False,
    margins={name + OFF_BY: Margin(0, OFF) for name in DERIVATIVES}
    | {f"slope of variance in σ, {n}": Margin(x - 0.15, x + 0.15) for n, x in variance.EXPECTED.items()},
    minutes=(1.5, 6),
    measure=measure,
)
