"""Choose σ and the step sizes of Algorithm 1 from a budget of samples, with no knowledge of the problem's constants.

  bilevel tune --budget 10000000 --world garnet

Successive halving: candidates are drawn log-uniformly from wide ranges; each rung advances its candidates, and the best
third goes on from where it stands. The score is what a practitioner has, the upper objective that the algorithm reports from
its own samples: the true reward and exact values are not computed.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated

import numpy as np

from bilevel.lanes import Layout, programs
from bilevel.ranges import Range, counts
from bilevel.run import NEVER
from experiments.commands.arguments import given_options, options_of_file, parse_run
from experiments.files import write_json
from experiments.output import Voice
from experiments.runs import halving
from experiments.runs.folder import open_run
from experiments.runs.progress import Progress
from experiments.settings.config import Config, choices_wanted, swept_values
from experiments.settings.job import arithmetic, resolve
from experiments.settings.options import Count, OptionError, spelled
from experiments.settings.parsing import known

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


def main(arguments: Sequence[str], voice: Voice) -> int:
    """Searches for the run that the arguments ask for; the exit code."""
    config, options = parse_run(arguments, "tune", __doc__, unwritten=halving.RANGES, search=TuneOptions)
    _, rest = known(TuneOptions(), arguments)
    given = {*given_options(rest), *options_of_file(rest)}
    voice.numbers(tune(config, options, [name for name in halving.RANGES if name not in given], rest, voice.say))
    return 0


def check(config: Config, names: Sequence[str]) -> list[str]:
    """The names to search, of those that the run has; raises OptionError where none is left, or problems are several."""
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
            f"nothing is left to tune; required: leave out one of {', '.join(map(spelled, halving.RANGES))}, as a flag and "
            "in the file of --config"
        )
    return names


def tune(config: Config, options: TuneOptions, names: Sequence[str], rest: Sequence[str], say=print) -> dict:
    """Searches, says a line a rung, the survivors and the command to run next; writes and returns `tune.json`.

    The hyperparameters `names`, of `RANGES`, are searched, the others stay as configured; the run's `seed` chooses
    candidates and randomness; `rest` are the arguments of `train` that gave the config. Raises OptionError where what
    was asked cannot be done, or every candidate diverged, and RunFolderError where another process writes to the
    folder, or it cannot be written, or holds something else.
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

        transitions = halving.step_transitions(make, job.points[0]) * options.tries
        rungs = halving.plan_rungs(budget, options.candidates, transitions)
        cost = halving.spent(rungs, transitions)
        hyper = halving.draw_candidates(config.run.seed, options.candidates, names, job.points[0])
        devices, chunk = job.devices, min(rungs[0].steps, 10)
        size = min(
            config.run.width * len(devices), -(-options.candidates * options.tries // len(devices)) * len(devices)
        )
        layout = Layout(size, size // len(devices), devices)
        compiled = programs(make, config.run.seed, chunk, layout, NEVER)
        seeds = FIRST_SEED + np.arange(options.tries)
        with open_run(options.out) as folder, Progress(cost // transitions * options.tries, say) as progress:
            say(f"{len(rungs)} rungs, {cost:,} of {budget:,} transitions; searching {', '.join(map(spelled, names))}")
            lanes = halving.Candidates(compiled, layout, halving.lanes_of(hyper, seeds), options.tries, chunk, progress)
            rankings = []
            for ranking in halving.successive_halving(rungs, lanes.advance):
                rankings.append(ranking)
                say(describe(ranking))
            return report(folder, config, options, names, rankings, hyper, cost, rest, say)


def describe(ranking: halving.Ranking) -> str:
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
    for candidate, reached in zip(last.candidates, last.scores, strict=True):
        say(f"{reached:21.4f}" + "".join(f"{x:20.3g}" for x in values(candidate).values()))
    chosen = values(last.candidates[0])
    command = shlex.join(["bilevel", "train", *rest, *(x for n, v in chosen.items() for x in (spelled(n), f"{v:g}"))])
    say(f"to run next: {command}")
    summary = {
        "budget": whole(options.budget),
        "transitions": cost,
        "seed": config.run.seed,
        "ranges": {name: halving.RANGES[name] for name in names},
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
