"""Algorithm 1 around one point of the theorem's schedule, for claims: any numbers and seeds as lanes of one program."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from bilevel.lanes import Layout, Programs, programs
from bilevel.run import DIVERGED, NEVER
from experiments.claims.p1 import two_states
from experiments.claims.p1.two_states import CRITIC_STEP, ONE_MAXIMUM, POLICY_STEP, WEIGHTS, Counts, Numbers
from experiments.runs.halving import Candidates, lanes_of, score

KL_WEIGHT = WEIGHTS[ONE_MAXIMUM]
WIDTH = 64  # lanes a device in one block


def base_point(epsilon: float) -> tuple[Counts, Numbers]:
    """The schedule at ε; τ and β′ a third of those there, which lie at the edge of stability."""
    counts, numbers = two_states.schedule(epsilon)
    return counts, numbers._replace(policy_step_size=POLICY_STEP / 3, critic_step_size=CRITIC_STEP / 3)


class Runs(NamedTuple):
    """Ends of runs; leading axes [point, seed]."""

    gap: np.ndarray  # [] Φ* − Φ(φ_T), nats, exactly; of a diverged run at its last finite reward; at least `ROUNDING`
    score: np.ndarray  # [] mean upper objective reported over the last half of the run, nats; NaN where it diverged
    diverged: np.ndarray  # [] bool


def stacked(points: Sequence[Numbers]) -> Numbers:
    """Points one by one, of numbers, as Numbers of arrays [point]."""
    return Numbers(*map(np.array, zip(*points, strict=True)))


def candidates(counts: Counts, points: Numbers, seeds: np.ndarray, chunk: int) -> Candidates:
    """Every point (Numbers of arrays [point]) with its seeds, [seed] or [point, seed], before its first step."""
    return Candidates(*program(counts, chunk), lanes_of(points, seeds), np.shape(seeds)[-1], chunk)


@functools.cache
def program(counts: Counts, chunk: int) -> tuple[Programs, Layout]:
    """The programs for those counts, for blocks of lanes that take `chunk` outer steps a call; compiled once."""
    devices = tuple(jax.devices())
    layout = Layout(WIDTH * len(devices), WIDTH, devices)

    def make(numbers):
        return two_states.algorithm_1("weighted", counts, numbers, KL_WEIGHT), None

    return programs(make, 0, chunk, layout, NEVER), layout


def learn(best: float, counts: Counts, points: Numbers, seeds: np.ndarray, chunk: int, num_steps: int = 0) -> Runs:
    """Every point with its seeds, as `candidates` takes them, for `num_steps` (0: T) outer steps; best is Φ*."""
    lanes = candidates(counts, points, seeds, chunk)
    shape = len(points.sigma), np.shape(seeds)[-1]
    lanes.advance(np.arange(shape[0]), num_steps or counts.num_steps)
    diverged = (lanes.state.status == DIVERGED).reshape(shape)
    gap = two_states.gaps(best, lanes.state.algorithm.reward.params, KL_WEIGHT).reshape(shape)
    return Runs(gap, score(lanes.objective.reshape(*shape, -1), diverged), diverged)
