"""Choose σ and the step sizes of Algorithm 1 from a budget of samples, with no knowledge of the problem's constants.

  bilevel tune --budget 10000000 --world garnet

Successive halving: candidates are drawn log-uniformly from wide ranges; each rung advances its candidates, and the best
third goes on from where it stands. Rung i = 0, 1, … of n has N₀/3^i candidates, which take 3^i times as many further steps
as those of the first, so each rung takes one n-th of the budget or less. The score is what a practitioner has: the upper
objective that the algorithm reports from its own samples, averaged over the last half of the steps so far. The true reward
and exact values are not computed; a run that diverged scores worst. All candidates of all rungs are lanes of one program.
"""

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.lanes import Lanes, Layout, Make, Programs, programs
from bilevel.ranges import Range, counts
from bilevel.run import DIVERGED, NEVER, RunState
from experiments.files import write_json
from experiments.output import Voice
from experiments.runs.folder import open_run
from experiments.runs.progress import Progress
from experiments.settings.arguments import given_options, options_of_file, parse_run
from experiments.settings.config import Config, choices_wanted, swept_values
from experiments.settings.job import Point, arithmetic, resolve
from experiments.settings.options import Count, OptionError, spelled
from experiments.settings.parsing import known

RANGES = {  # of the log-uniform law: four or five decades, since a network wants less than a table, and Adam less than SGD
    "sigma": (1e-3, 1e1),
    "policy_step_size": (1e-3, 1e1),
    "reward_step_size": (1e-4, 1e1),
    "critic_step_size": (1e-3, 1e1),
}
RATE = 3  # of each rung one candidate in so many goes on
MOST_BUDGET = 2**63 - 1
FIRST_SEED = 2**31  # beyond those of a run, which is then judged on other randomness than chose its numbers


def whole(word: str) -> int:
    """The whole number from 1 to `MOST_BUDGET` that a word is, as 10000000 or 1e7; 0 for any other word."""
    try:
        number = Decimal(word)
        fits = 1 <= number <= MOST_BUDGET and number == number.to_integral_value()
    except InvalidOperation:
        return 0
    return int(number) if fits else 0


Budget = Annotated[
    str, Range(f"a whole number from 1 to {MOST_BUDGET}, as 10000000 or 1e7", lambda x: not x or bool(whole(x)))
]


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """The search, for those of sigma, policy-step-size, reward-step-size, critic-step-size that no flag or file gives."""

    budget: Budget = ""
    """N, environment transitions of the whole search, to be given, as 10000000 or 1e7; labels are counted beside."""
    candidates: Annotated[int, counts(2)] = 27
    """Random configurations in the first rung; a third of each rung goes on."""
    tries: Count = 1
    """Seeds of each candidate, the same for all."""
    out: Annotated[str, Range("a folder", bool)] = "runs/tune"
    """Folder of the results."""


# Successive halving ---------------------------------------------------------------------------------------------------


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
    """The rungs that a budget pays for.

    Args:
        budget: of transitions.
        num_candidates: of the first rung, ≥ 2.
        transitions: of one outer step of one candidate, all its seeds together.

    Raises:
        OptionError: the budget is less than one step a rung costs, or pays for more steps than can be counted.
    """
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
    """Each rung's ranking, as it ends; the first of the last is the winner.

    Args:
        rungs: with falling numbers of candidates and rising steps.
        advance: (candidates [..., n], steps) -> scores [..., n], higher is better, after that many steps in all.
        candidates: [..., N₀] ints, whose leading axes are separate searches; None: 0 … N₀ − 1.
    """
    candidates = np.arange(rungs[0].candidates) if candidates is None else candidates
    for rung in rungs:
        candidates = candidates[..., : rung.candidates]
        scores = np.asarray(advance(candidates, rung.steps), float)
        scores = np.where(np.isfinite(scores), scores, -np.inf)
        order = np.argsort(-scores, axis=-1, kind="stable")
        candidates, scores = (np.take_along_axis(x, order, axis=-1) for x in (candidates, scores))
        yield Ranking(rung, candidates, scores)


# Candidates as lanes --------------------------------------------------------------------------------------------------


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
    """Lanes that advance as far as they are asked to, a block of one program at a time.

    Args:
        ours: the programs, for blocks of the layout.
        layout: of one block.
        lanes: of host arrays [candidate × try].
        tries: of each candidate.
        chunk: outer steps a call of the programs.
        progress: counts lanes × steps; None: none.

    Attributes:
        state: RunState of host arrays [lane, …]; None before the first step.
        objective: the reported upper objective, [lane, steps]; NaN where a lane was not advanced.
    """

    def __init__(self, ours: Programs, layout: Layout, lanes: Lanes, tries: int, chunk: int, progress=None):
        self.ours, self.layout, self.lanes, self.tries, self.chunk = ours, layout, lanes, tries, chunk
        self.progress: Progress | None = progress
        self.state: RunState | None = None
        self.objective = np.empty((len(lanes.seed), 0))

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
        state = self.layout.spread(before) if done else self.ours.init(lanes)
        for first in range(done, steps, self.chunk):
            last = min(first + self.chunk, steps)
            state, metrics = self.ours.advance(lanes, state, jnp.int32(first), jnp.int32(last))
            objective = self.layout.gather(metrics["upper_objective"])
            self.objective[block, first:last] = objective[: len(block), : last - first]
            if self.progress is not None and self.state is None and first == 0:
                self.progress.start(len(block) * last)  # from here on, without compilation
            elif self.progress is not None:
                self.progress.update(len(block) * (last - first), f"candidates to step {steps}")
        state = self.layout.gather(state)
        if self.state is None:
            self.state = jax.tree.map(lambda x: np.zeros((len(self.objective), *x.shape[1:]), x.dtype), state)
        for ours, new in zip(jax.tree.leaves(self.state), jax.tree.leaves(state), strict=True):
            ours[block] = new[: len(block)]


def step_transitions(make: Make, point: Point) -> int:
    """Transitions of one outer step: a constant of the program, of which nothing else is computed."""

    @jax.jit
    def reported(key):
        algorithm, _ = make(point)
        return algorithm.step(key, algorithm.init(key))[1]["transitions"]

    return int(reported(jax.random.key(0)))


# The command ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str], voice: Voice) -> int:
    """Searches for the run that the arguments ask for; the exit code."""
    config, options = parse_run(arguments, "tune", __doc__, unwritten=RANGES, search=TuneOptions)
    _, rest = known(TuneOptions(), arguments)
    given = {*given_options(rest), *options_of_file(rest)}
    tune(config, options, [name for name in RANGES if name not in given], rest, voice.say)
    voice.table(Path(options.out) / "tune.json")
    return 0


def check(config: Config, names: Sequence[str]) -> list[str]:
    """The names to search, of those that the run has.

    Raises:
        OptionError: there is nothing to search, or no single problem to search it for.
    """
    if config.algorithm_name != "bilevel":
        raise OptionError(
            f"--algorithm is {config.algorithm_name}; tune is for Algorithm 1; required: --algorithm bilevel"
        )
    if config.options["gradients"] == "exact":
        raise OptionError("--gradients is exact, which takes no samples to count; required: --gradients sampled")
    names = [name for name in names if not choices_wanted(config, name)]
    if several := [name for name, values in swept_values(config).items() if len(values) > 1]:
        raise OptionError(f"{spelled(several[0])} has several values; required: one, the problem to tune for")
    if not names:
        raise OptionError(
            f"nothing is left to tune; required: leave out one of {', '.join(map(spelled, RANGES))}, as a flag and in the "
            "file of --config"
        )
    return names


def tune(config: Config, options: TuneOptions, names: Sequence[str], rest: Sequence[str], say=print) -> dict:
    """Searches, says a line a rung, the survivors and the command to run next; writes and returns `tune.json`.

    Args:
        config: of the run to tune; its `seed` chooses candidates and randomness.
        options: of the search.
        names: hyperparameters to search, of `RANGES`; the others stay as configured.
        rest: arguments of `train` that gave the config, for the command to run next.
        say: takes lines.

    Raises:
        OptionError: what was asked cannot be done, or every candidate diverged.
        RunFolderError: another process writes to the folder, or it cannot be written, or holds something else.
    """
    names = check(config, names)
    if not options.budget:
        raise OptionError(
            "--budget was not given; required: the environment transitions that the whole search may take, all candidates "
            "together, as in bilevel tune --budget 10000000"
        )
    budget = whole(options.budget)
    with arithmetic(config):
        job = resolve(config)

        def make(hyper):
            return job.make(hyper)[0], None  # without the measurements, which know the true reward

        transitions = step_transitions(make, job.points[0]) * options.tries
        rungs = plan_rungs(budget, options.candidates, transitions)
        cost = spent(rungs, transitions)
        hyper = draw_candidates(config.run.seed, options.candidates, names, job.points[0])
        devices, chunk = job.devices, min(rungs[0].steps, 10)
        size = min(
            config.run.width * len(devices), -(-options.candidates * options.tries // len(devices)) * len(devices)
        )
        layout = Layout(size, size // len(devices), devices)
        ours = programs(make, config.run.seed, chunk, layout, NEVER)
        seeds = FIRST_SEED + np.arange(options.tries)
        with open_run(options.out) as folder, Progress(cost // transitions * options.tries, say) as progress:
            say(f"{len(rungs)} rungs, {cost:,} of {budget:,} transitions; searching {', '.join(map(spelled, names))}")
            lanes = Candidates(ours, layout, lanes_of(hyper, seeds), options.tries, chunk, progress)
            rankings = []
            for ranking in successive_halving(rungs, lanes.advance):
                rankings.append(ranking)
                say(describe(ranking))
            return report(folder, config, options, names, rankings, hyper, cost, rest, say)


def describe(ranking: Ranking) -> str:
    """A rung in one line."""
    rung, scores = ranking.rung, ranking.scores
    diverged = int(np.sum(np.isneginf(scores)))
    return (
        f"{rung.candidates:4d} candidates to step {rung.steps}: upper objective {scores[0]:.4f} (best), "
        f"{np.median(scores):.4f} (median), nats; {diverged} diverged"
    )


def report(folder, config, options, names, rankings, hyper, cost, rest, say) -> dict:
    """Says the survivors and the command, and writes `tune.json`."""

    def values(candidate):
        return {name: float(hyper[name][candidate]) for name in names}

    last = rankings[-1]
    if np.isneginf(last.scores[0]):
        raise OptionError(
            f"all of {last.rung.candidates} candidates diverged; required: more --candidates, or another --seed"
        )
    say("upper objective, nats" + "".join(f"{spelled(name):>20s}" for name in names))
    for candidate, ours in zip(last.candidates, last.scores, strict=True):
        say(f"{ours:21.4f}" + "".join(f"{x:20.3g}" for x in values(candidate).values()))
    chosen = values(last.candidates[0])
    command = shlex.join(["bilevel", "train", *rest, *(x for n, v in chosen.items() for x in (spelled(n), f"{v:g}"))])
    say(f"to run next: {command}")
    summary = {
        "budget": whole(options.budget),
        "transitions": cost,
        "seed": config.run.seed,
        "ranges": {name: RANGES[name] for name in names},
        "rungs": [
            {
                "steps": x.rung.steps,
                "candidates": [values(c) for c in x.candidates],
                "scores": [float(s) if np.isfinite(s) else None for s in x.scores],
            }
            for x in rankings
        ],
        "chosen": chosen,
        "command": command,
    }
    write_json(folder, "tune.json", summary)
    return summary
