"""How many samples the policy alone takes to reach a gap, by actor–critic at a fixed reward: the ladder of `complexity` with

    B = c/ε,  K = c/ε,  n = c/ε²                            of which samples ∝ ε^(−3), so that J* − J ∝ samples^(−1/3)

on its two-state MDP, at the true reward, from the uniform policy.
"""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.types import Hyper
from experiments.files import write_figure, write_json
from experiments.runs.folder import kept
from experiments.statistics.rates import Fit
from experiments.studies import complexity
from experiments.studies.complexity import CRITIC_STEP, DISCOUNT, POLICY_STEP, Level
from experiments.studies.seeds import for_each_seed

KL_WEIGHT = complexity.WEIGHTS["one maximum"]
EXPONENT = 1 / 3


class Sizes(NamedTuple):
    """Targets ε, falling, and seeds at each."""

    epsilons: tuple[float, ...] = tuple(10 ** (-x / 5) for x in range(8))  # to 0.04
    num_seeds: int = 64


QUICK = Sizes(Sizes().epsilons[:5], 16)


class Improved(NamedTuple):
    """logits [seed, S, A] of every seed's last policy, transitions [] a seed."""

    logits: np.ndarray
    transitions: np.ndarray


class ActorCritic(NamedTuple):
    """samples [ε] transitions a seed, gap [ε, seed] J* − J in units of reward."""

    samples: np.ndarray
    gap: np.ndarray


def schedule(epsilon: float) -> Level:
    """That of Algorithm 1 with one outer step, whose K inner steps are counted; samples ∝ ε^(−3)."""
    return complexity.schedule(epsilon)._replace(num_steps=1, num_policy_steps=math.ceil(8 / epsilon))


def study(
    sizes: Sizes = Sizes(),  # noqa: B008
    keep: Path | None = None,
    say=lambda line: None,
) -> ActorCritic:
    """Policy gradients with Algorithm 2 at every ε; arguments as of `complexity.study`."""
    samples, gap = [], []
    for level in map(schedule, sizes.epsilons):
        improved = partial(improve, level, sizes.num_seeds)
        logits, transitions = kept(keep, f"policy {level.epsilon:.4f}", Improved, improved)
        samples.append(float(transitions))
        gap.append(np.maximum(suboptimality(logits), complexity.ROUNDING))
        say(f"ε = {level.epsilon:.3f}: {transitions:.3g} transitions a seed; J* − J {gap[-1].mean():.2e}")
    return ActorCritic(np.array(samples), np.stack(gap))


def improve(level: Level, num_seeds: int) -> Improved:
    """Every seed at one ε."""
    mdp = complexity.instance()
    hyper = Hyper(level.sigma, KL_WEIGHT, DISCOUNT, critic_step_size=CRITIC_STEP)
    ours = complexity.problem(mdp, hyper)._replace(reward=models.table(*mdp.reward.shape))
    gradients = complexity.gradients_of(ours, mdp, "weighted", level, hyper)

    def single(key):
        key_init, key_steps = jax.random.split(key)

        def body(carry, key):
            params, critic = carry
            gradient, critic, _ = gradients.return_in_policy(key, critic, params, mdp.reward)
            return (params + POLICY_STEP * gradient, critic), None

        first = jnp.zeros(mdp.reward.shape), gradients.init(key_init)
        return jax.lax.scan(body, first, jax.random.split(key_steps, level.num_policy_steps))[0][0]

    transitions = level.num_policy_steps * gradients.return_cost.transitions
    return Improved(for_each_seed(single, num_seeds, jax.random.key(0)), np.array(transitions, float))


def suboptimality(logits: np.ndarray) -> np.ndarray:
    """J* − J of each policy [..., S, A] at the true reward, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_suboptimality(jnp.asarray(logits, float)))


@jax.jit
def _suboptimality(logits):
    mdp = complexity.instance()
    lower = complexity.lower_level(mdp, mdp.reward, KL_WEIGHT)
    best = exact.regularised_return(lower, exact.optimal_policy(lower).policy)
    return best - jax.vmap(lambda x: exact.regularised_return(lower, jax.nn.softmax(x, axis=-1)))(logits)


def start() -> float:
    """J* − J of the uniform policy, from which runs start."""
    return float(suboptimality(np.zeros(complexity.instance().reward.shape)[None])[0])


# What it shows --------------------------------------------------------------------------------------------------------


def fit(result: ActorCritic) -> Fit:
    """The power law of the gaps."""
    return complexity.law(result.samples, result.gap)


def draw(result: ActorCritic, epsilons) -> Figure:
    """The gap against samples with its fit, ε of each level, and the gap of the policy from which runs start."""
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    panel = figure.subplots()
    label = f"actor–critic: {complexity.shown(fit(result))}"
    complexity.curve(panel, "#CC79A7", label, result.samples, result.gap)
    complexity.ladder(panel, result.samples, epsilons, start())
    complexity.guide(panel, result.samples, result.gap.mean(axis=1)[0], EXPONENT, "1/3")
    complexity.finish(panel, "J* − J(λ), units of reward")
    panel.set_title("The policy alone, at the true reward", fontsize=10)
    return figure


def main(out: Path, say=print) -> None:
    """Runs the study and writes `actor_critic.png` and `actor_critic.json`; `bilevel verify P1.actor_critic` resumably."""
    sizes = Sizes()
    result = study(sizes, say=say)
    about = {"epsilon": sizes.epsilons, "samples": result.samples.tolist(), "gap": result.gap.mean(axis=1).tolist()}
    write_json(out, "actor_critic.json", complexity.finite(about | complexity.describe(fit(result))))
    write_figure(out, "actor_critic.png", draw(result, sizes.epsilons), dpi=120)
    say(f"figure: {out / 'actor_critic.png'}")
