"""Successive halving of candidates that are lanes of one program.

Rung i = 0, 1, … of n has N₀/3^i candidates, which take 3^i times as many further steps as those of the first, so each rung
takes one n-th of the budget or less. The score is what a practitioner has: the upper objective that the algorithm reports
from its own samples, averaged over the last half of the steps so far; a run that diverged scores worst.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.lanes import Lanes, Layout, Make, Programs
from bilevel.run import DIVERGED, RunState
from experiments.runs.progress import Progress
from experiments.settings.job import Point
from experiments.settings.options import OptionError

RANGES = {  # of the log-uniform law: four or five decades, since a network wants less than a table, and Adam less than SGD
    "sigma": (1e-3, 1e1),
    "policy_step_size": (1e-3, 1e1),
    "reward_step_size": (1e-4, 1e1),
    "critic_step_size": (1e-3, 1e1),
}
RATE = 3  # of each rung one candidate in so many goes on


class Rung(NamedTuple):
    """How many candidates it has, and the outer steps that each has taken by its end."""

    candidates: int
    steps: int


class Ranking(NamedTuple):
    """A rung's outcome: candidates [..., n] by falling score [..., n]; −inf for one that diverged."""

    rung: Rung
    candidates: np.ndarray
    scores: np.ndarray


def plan_rungs(budget: int, num_candidates: int, transitions: int) -> tuple[Rung, ...]:
    """The rungs that a budget of transitions pays for, of which the first has `num_candidates` ≥ 2, where an outer step
    of one candidate, all its seeds together, takes so many `transitions`. Raises OptionError where the budget is less
    than one step a rung costs, or pays for more steps than can be counted."""
    sizes = [num_candidates]
    while sizes[-1] // RATE > 1:
        sizes.append(sizes[-1] // RATE)
    first = budget // (len(sizes) * num_candidates * transitions)
    if first < 1:
        raise OptionError(
            f"--budget is {budget}; required: at least {len(sizes) * num_candidates * transitions} transitions, one outer "
            f"step of {num_candidates} candidates in each of {len(sizes)} rungs: raise it, or lower --candidates"
        )
    steps = [first * (RATE ** (i + 1) - 1) // (RATE - 1) for i in range(len(sizes))]  # first · (1 + 3 + 9 + …)
    if steps[-1] >= 2**31:
        raise OptionError(f"--budget is {budget}, for {steps[-1]} outer steps of the best; required: below 2^31 steps")
    return tuple(map(Rung, sizes, steps))


def spent(rungs: Sequence[Rung], transitions: int) -> int:
    """Transitions of all rungs."""
    before = [0, *(rung.steps for rung in rungs)]
    return sum(
        rung.candidates * (rung.steps - done) * transitions for rung, done in zip(rungs, before[:-1], strict=True)
    )


def successive_halving(
    rungs: Sequence[Rung], advance: Callable[[np.ndarray, int], np.ndarray], candidates: np.ndarray | None = None
) -> Iterator[Ranking]:
    """Each rung's ranking, as it ends; the first of the last is the winner. Rungs have falling numbers of candidates
    and rising steps. `advance`: (candidates [..., n], steps) -> scores [..., n], higher is better, after that many
    steps in all. Candidates are [..., N₀] ints, whose leading axes are separate searches; None: 0 … N₀ − 1."""
    candidates = np.arange(rungs[0].candidates) if candidates is None else candidates
    for rung in rungs:
        candidates = candidates[..., : rung.candidates]
        scores = np.asarray(advance(candidates, rung.steps), float)
        scores = np.where(np.isfinite(scores), scores, -np.inf)
        order = np.argsort(-scores, axis=-1, kind="stable")
        candidates, scores = (np.take_along_axis(x, order, axis=-1) for x in (candidates, scores))
        yield Ranking(rung, candidates, scores)


def draw_candidates(seed: int, num: int, names: Sequence[str], point: Point) -> Point:
    """Hyperparameters as arrays [num]: the names drawn from their ranges, to three digits, the others as in the point."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in names:
        low, high = np.log(RANGES[name])
        drawn[name] = np.array([float(f"{x:.3g}") for x in np.exp(rng.uniform(low, high, num))])
    return {name: drawn.get(name, np.full(num, value)) for name, value in point.items()}


def score(objective: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """The mean of the last half of the reported upper objective [..., steps]; NaN for a run that diverged, [...]."""
    last = objective[..., objective.shape[-1] // 2 :]
    return np.where(diverged, np.nan, np.mean(last, axis=-1))


def lanes_of(hyper: Any, seeds: np.ndarray) -> Lanes:
    """Lanes of every candidate (a pytree of arrays [candidate]) with each of its seeds [try] or [candidate, try]."""
    seeds = np.broadcast_to(seeds, (len(jax.tree.leaves(hyper)[0]), np.shape(seeds)[-1]))
    dtype = jnp.result_type(float)
    repeated = jax.tree.map(lambda x: np.repeat(np.asarray(x, dtype), seeds.shape[1]), hyper)
    return Lanes(seeds.astype(np.uint32).ravel(), repeated)


class Candidates:
    """Lanes of host arrays [candidate × try] that advance as far as they are asked to, a block of one program at a
    time. The programs are compiled for blocks of the layout, and `chunk` outer steps a call; `progress` counts lanes ×
    steps."""

    def __init__(self, compiled: Programs, layout: Layout, lanes: Lanes, tries: int, chunk: int, progress=None):
        self.compiled, self.layout, self.lanes, self.tries, self.chunk = compiled, layout, lanes, tries, chunk
        self.progress: Progress | None = progress
        self.state: RunState | None = None  # host arrays [lane, …]; None before the first step
        self.objective = np.empty((len(lanes.seed), 0))  # as reported, [lane, steps]; NaN where a lane was not advanced

    def advance(self, candidates: np.ndarray, steps: int) -> np.ndarray:
        """Scores [...] of the candidates [...], once they have taken that many steps in all; all have taken equally many."""
        lanes = (np.ravel(candidates)[:, None] * self.tries + np.arange(self.tries)).ravel()
        done = self.objective.shape[1]
        more = np.full((len(self.objective), steps - done), np.nan)
        self.objective = np.concatenate([self.objective, more], axis=1)
        size = self.layout.num_lanes
        for begin in range(0, len(lanes), size):
            self._advance_block(lanes[begin : begin + size], done, steps)
        scores = score(self.objective[lanes], self.state.status[lanes] == DIVERGED)
        return np.mean(scores.reshape(*np.shape(candidates), self.tries), axis=-1)

    def _advance_block(self, block: np.ndarray, done: int, steps: int) -> None:
        full = np.resize(block, self.layout.num_lanes)  # repeats fill it
        lanes = self.layout.spread(jax.tree.map(lambda x: x[full], self.lanes))
        before = jax.tree.map(lambda x: x[full], self.state)
        state = self.layout.spread(before) if done else self.compiled.init(lanes)
        for first in range(done, steps, self.chunk):
            last = min(first + self.chunk, steps)
            state, metrics = self.compiled.advance(lanes, state, jnp.int32(first), jnp.int32(last))
            objective = self.layout.gather(metrics["upper_objective"])
            self.objective[block, first:last] = objective[: len(block), : last - first]
            if self.progress is not None and self.state is None and first == 0:
                self.progress.start(len(block) * last)  # from here on, without compilation
            elif self.progress is not None:
                self.progress.update(len(block) * (last - first), f"candidates to step {steps}")
        state = self.layout.gather(state)
        if self.state is None:
            self.state = jax.tree.map(lambda x: np.zeros((len(self.objective), *x.shape[1:]), x.dtype), state)
        for whole, new in zip(jax.tree.leaves(self.state), jax.tree.leaves(state), strict=True):
            whole[block] = new[: len(block)]


def step_transitions(make: Make, point: Point) -> int:
    """Transitions of one outer step: a constant of the program, of which nothing else is computed."""

    @jax.jit
    def reported(key):
        algorithm, _ = make(point)
        return algorithm.step(key, algorithm.init(key))[1]["transitions"]

    return int(reported(jax.random.key(0)))
