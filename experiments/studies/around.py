"""Algorithm 1 around one point of the schedule of `complexity`: any hyperparameters and seeds as lanes of one program."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf
from bilevel.lanes import Layout, Make, Programs, programs
from bilevel.run import DIVERGED, NEVER
from bilevel.types import Hyper
from experiments.commands.tune import Candidates, lanes_of, score
from experiments.studies import complexity
from experiments.studies.complexity import DISCOUNT, ROUNDING, Level

KL_WEIGHT = complexity.WEIGHTS["one maximum"]
WIDTH = 64  # lanes a device in one block


def base_point(epsilon: float) -> tuple[Level, Hyper]:
    """The schedule at ε; τ and β′ a third of those of `complexity`, which lie at the edge of stability."""
    level = complexity.schedule(epsilon)
    policy, critic = complexity.POLICY_STEP / 3, complexity.CRITIC_STEP / 3
    steps = dict(policy_step_size=policy, reward_step_size=complexity.REWARD_STEP, critic_step_size=critic)
    return level, Hyper(level.sigma, KL_WEIGHT, DISCOUNT, **steps)


def make_of(counts: Level) -> Make:
    """hyper -> Algorithm 1 with those counts on the two-state MDP, and no measurement."""

    def make(hyper):
        mdp = complexity.instance()
        ours = complexity.problem(mdp, hyper)
        gradients = complexity.gradients_of(ours, mdp, "weighted", counts, hyper)
        config = BilevelConfig(counts.num_policy_steps, reward_optimizer=complexity.falling)
        return bilevel_rlhf(ours, gradients, config, hyper), None

    return make


@functools.cache
def program(counts: Level, chunk: int) -> tuple[Programs, Layout]:
    """The programs for those counts, for blocks of lanes that take `chunk` outer steps a call; compiled once."""
    devices = tuple(jax.devices())
    layout = Layout(WIDTH * len(devices), WIDTH, devices)
    return programs(make_of(counts), 0, chunk, layout, NEVER), layout


class Runs(NamedTuple):
    """Ends of runs; leading axes [point, seed].

    Attributes:
        gap: [] Φ* − Φ(φ_T), nats, exactly; of a run that diverged at its last finite reward; `ROUNDING` where Φ is above.
        score: [] mean upper objective reported over the last half of the run, nats; NaN where it diverged.
        diverged: [] bool.
    """

    gap: np.ndarray
    score: np.ndarray
    diverged: np.ndarray


def learn(best: float, counts: Level, points: Hyper, seeds: np.ndarray, chunk: int, num_steps: int = 0) -> Runs:
    """Every point (Hyper of arrays [point]) with its seeds, [seed] or [point, seed], for `num_steps` (0: T) outer steps.

    best is Φ*.
    """
    shape = len(points.sigma), np.shape(seeds)[-1]
    lanes = Candidates(*program(counts, chunk), lanes_of(points, seeds), shape[1], chunk)
    lanes.advance(np.arange(shape[0]), num_steps or counts.num_steps)
    return ends(best, lanes, shape)


def ends(best: float, lanes: Candidates, shape: tuple[int, int]) -> Runs:
    """Where the lanes stand, as [point, seed]."""
    diverged = (lanes.state.status == DIVERGED).reshape(shape)
    values = complexity.values(lanes.state.algorithm.reward.params, KL_WEIGHT)
    gap = np.maximum(best - values, ROUNDING).reshape(shape)
    return Runs(gap, score(lanes.objective.reshape(*shape, -1), diverged), diverged)
