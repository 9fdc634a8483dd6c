"""P1.actor_critic: how the gap of the policy alone falls with samples, by actor–critic at a fixed reward.

A ladder of targets ε on the two-state MDP, at the true reward, from the uniform policy, with B = c/ε, K = c/ε and n = c/ε²:
samples ∝ ε^(−3), so that J* − J ∝ samples^(−1/3).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bilevel import models
from bilevel.exact.bilevel import exact_bilevel
from bilevel.gradients.types import Gradients
from experiments.claims import panels
from experiments.claims.claim import INF, Budget, Claim, Margin, Measurement, Number, Table, exponent
from experiments.claims.p1 import two_states
from experiments.claims.p1.two_states import ONE_MAXIMUM, POLICY_STEP, ROUNDING, WEIGHTS, Counts, law, means
from experiments.claims.seeds import for_each_seed
from experiments.statistics import intervals

KL_WEIGHT = WEIGHTS[ONE_MAXIMUM]
EXPONENT, MARGIN = 1 / 3, 0.02
NUMBER = "exponent of J* − J in samples"


class Sizes(NamedTuple):
    """Targets ε, falling, and seeds at each."""

    epsilons: tuple[float, ...] = tuple(10 ** (-x / 5) for x in range(8))  # targets, falling, to 0.04
    num_seeds: int = 64  # at each


FULL = Sizes()
QUICK = Sizes(FULL.epsilons[:5], 16)


class Improved(NamedTuple):
    """logits [seed, S, A] of every seed's last policy, transitions [] a seed."""

    logits: np.ndarray  # [seed, S, A] of every seed's last policy
    transitions: np.ndarray  # [] a seed


class ActorCritic(NamedTuple):
    """epsilons [ε]; samples [ε] transitions a seed; gap [ε, seed] J* − J in units of reward; start: that of the uniform
    policy."""

    epsilons: np.ndarray  # [ε]
    samples: np.ndarray  # [ε] transitions a seed
    gap: np.ndarray  # [ε, seed] J* − J, units of reward
    start: float  # the uniform policy's J* − J


def measure(budget: Budget, sizes: Sizes | None = None) -> ActorCritic:
    """Policy gradients with Algorithm 2 at every ε; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else FULL)
    samples, gap = [], []
    for epsilon in sizes.epsilons:
        compute = partial(improve, schedule(epsilon), sizes.num_seeds)
        logits, transitions = budget.keep(f"policy {epsilon:.4f}", Improved, compute)
        samples.append(float(transitions))
        gap.append(np.maximum(suboptimality(logits), ROUNDING))
        budget.say(f"ε = {epsilon:.3f}: {transitions:.3g} transitions a seed; J* − J {gap[-1].mean():.2e}")
    start = float(suboptimality(np.zeros((1, *two_states.instance().reward.shape)))[0])
    return ActorCritic(np.array(sizes.epsilons), np.array(samples), np.stack(gap), start)


def schedule(epsilon: float) -> Counts:
    """That of Algorithm 1 with one outer step, whose K inner steps are counted; samples ∝ ε^(−3)."""
    counts, _ = two_states.schedule(epsilon)
    return counts._replace(num_steps=1, num_policy_steps=math.ceil(8 / epsilon))


def gradients_of(counts: Counts) -> Gradients:
    """With Algorithm 2 as the critic, at any table of rewards."""
    table = models.table(*two_states.instance().reward.shape)
    return two_states.gradients_of("weighted", counts, two_states.problem(KL_WEIGHT, table), KL_WEIGHT)


def improve(counts: Counts, num_seeds: int) -> Improved:
    """Every seed with those counts."""
    reward, gradients = two_states.instance().reward, gradients_of(counts)

    def single(key):
        key_init, key_steps = jax.random.split(key)

        def body(carry, key):
            params, critic = carry
            gradient, critic, _ = gradients.return_in_policy(key, critic, params, reward)
            return (params + POLICY_STEP * gradient, critic), None

        first = jnp.zeros(reward.shape), gradients.init(key_init)
        return jax.lax.scan(body, first, jax.random.split(key_steps, counts.num_policy_steps))[0][0]

    transitions = counts.num_policy_steps * gradients.return_cost.transitions
    return Improved(for_each_seed(single, num_seeds, jax.random.key(0)), np.array(transitions, float))


def suboptimality(logits: np.ndarray) -> np.ndarray:
    """J* − J of each policy [..., S, A] at the true reward, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_suboptimality(jnp.asarray(logits, float)))


@jax.jit
def _suboptimality(logits):
    mdp = two_states.instance()
    problem = two_states.problem(KL_WEIGHT, models.table(*mdp.reward.shape))
    exactly = exact_bilevel(problem, mdp, two_states.LENGTH, two_states.coefficients(KL_WEIGHT))
    best = exactly.regularised_return(mdp.reward, exactly.optimum(mdp.reward))
    return best - jax.vmap(lambda x: exactly.regularised_return(mdp.reward, jax.nn.softmax(x, axis=-1)))(logits)


def judge(data: ActorCritic) -> Measurement:
    """The exponent in samples, and the gaps at the start, at the first and at the last ε."""
    numbers = {NUMBER: exponent(law(data.samples, data.gap), "samples")}
    numbers["J* − J at the start"] = Number(*[data.start] * 3)
    for name, gap in (("first ε", data.gap[0]), ("last ε", data.gap[-1])):
        why = "" if np.isfinite(gap).all() else "runs without a gap are left out"
        numbers[f"J* − J at the {name}"] = Number(*intervals.mean(gap), why)
    cost = {"transitions": data.gap.shape[1] * np.sum(data.samples)}
    columns = zip(data.epsilons, data.samples, data.gap.mean(axis=1), strict=True)
    rows = [dict(zip(("ε", "samples", "J* − J"), cells, strict=True)) for cells in columns]
    return Measurement(numbers, cost, tables=(Table("Means over seeds at each ε, in units of reward", rows),))


def draw(data: ActorCritic) -> Figure:
    """The gap against samples with its fit, ε of each level, and the gap of the policy from which runs start."""
    figure, ((panel,),) = panels.panels(5.6, 5.8)
    label = f"actor–critic: {panels.exponent_label(law(data.samples, data.gap))}"
    panels.curve(panel, data.samples, means(data.gap), panels.PINK, label)
    panels.levels(panel, data.samples, data.epsilons, data.start)
    panels.guide(panel, data.samples, data.gap[0].mean(), -EXPONENT, "p = 1/3, the theorem's")
    panels.log_log(panel, panels.SAMPLES, "J* − J(λ), units of reward")
    panels.legend_below(panel, "gap ∝ samples^(−p)")

    panel.set_title("The policy alone, at the true reward", fontsize=10)
    return figure


CLAIM = Claim(
    statement="Actor–critic at a fixed reward reaches J* − J ≤ ε with ε^(−3) samples.",
    source="2410.15610, the remark on vanilla actor–critic",
    prediction="gap ∝ samples^(−1/3) or faster",
    margins={NUMBER: Margin(EXPONENT - MARGIN, INF)},
    minutes=(1, 5),
    measure=measure,
    judge=judge,
    draw=draw,
)
