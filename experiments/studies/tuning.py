"""What `bilevel tune` finds without the problem's constants, beside the theory's schedule and the best cell of a grid.

On the instance of `sensitivity`. A search spends half of the samples and the run of what it chose the other half; the
schedule of the theorem spends all of them on one run, with ε as small as they allow, and with step sizes that were chosen
for this instance. The best cell of the grids was chosen by the exact Φ at the end of the grids' runs, a twentieth as long,
whose samples are not counted. Every number of a repetition comes from keys that chose nothing.

The score is G at λ′, which climbs J + σ G: it may rise with σ whatever becomes of φ. How well it orders random
configurations by their exact Φ is measured on a pool of them, for all σ and for those near one value.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from bilevel.algorithms.bilevel_rlhf import BilevelConfig, step_cost
from bilevel.gradients import hypergradients
from bilevel.types import Hyper
from experiments.commands.tune import (
    RANGES,
    Candidates,
    draw_candidates,
    lanes_of,
    plan_rungs,
    spent,
    step_transitions,
    successive_halving,
)
from experiments.files import write_figure, write_json
from experiments.report.summary import estimate, rank_correlation
from experiments.studies import complexity
from experiments.studies.around import KL_WEIGHT, Runs, base_point, learn, make_of, program
from experiments.studies.complexity import ROUNDING, Level

SEARCH, FINAL, POOL = (
    10_000,
    20_000,
    30_000,
)  # first seeds of the searches, of the runs that are judged, and of the pool
GIVEN_SIGMA = 0.1
FAILURE = 0.01  # nats: what the base point reaches in a twentieth of the final run
TUNED, GIVEN = "tune", f"tune, σ = {GIVEN_SIGMA} given"
SCHEDULE, BEST, BASE, RANDOM = "theory's schedule", "best cell of the grids", "base point", "random configuration"


class Sizes(NamedTuple):
    """How much is computed.

    Attributes:
        epsilon: of the schedule that the base point follows, as in `sensitivity`.
        repetitions: of every arm, with other keys and other candidates.
        runs: samples of a search, in runs of the base point.
        candidates: of a search.
        pool: random configurations on which score and Φ are compared.
        pool_seeds: of each.
        chunk: outer steps a call of a program.
    """

    epsilon: float = 0.4
    repetitions: int = 24
    runs: int = 20
    candidates: int = 27
    pool: int = 81
    pool_seeds: int = 8
    chunk: int = 4


class Tuning(NamedTuple):
    """The result.

    Attributes:
        gap: arm -> [repetition] Φ* − Φ(φ_T), nats.
        samples: arm -> transitions a repetition, without those of the grids.
        chosen: arm -> name -> [repetition] values.
        cell: the best cell's values.
        pool: runs [configuration, seed] of the base point's length, and their Hyper [configuration].
    """

    gap: dict[str, np.ndarray]
    samples: dict[str, float]
    chosen: dict[str, dict[str, np.ndarray]]
    cell: dict[str, float]
    pool: tuple[Runs, Hyper]


def schedule_within(samples: float) -> tuple[complexity.Level, int]:
    """The schedule with the least ε that takes at most that many samples, and the samples it takes."""

    def cost(level):
        mdp, hyper = complexity.instance(), Hyper(discount=complexity.DISCOUNT)
        ours = complexity.problem(mdp, hyper)
        gradients = complexity.gradients_of(ours, mdp, "weighted", level, hyper)
        config = BilevelConfig(level.num_policy_steps)
        one = step_cost(gradients, config, hypergradients.proxy(ours, gradients, hyper))
        return level.num_steps * one.transitions

    levels = map(complexity.schedule, 0.99 ** np.arange(500))
    return max(((x, c) for x in levels if (c := cost(x)) <= samples), key=lambda pair: pair[1])


def search(counts: Level, base: Hyper, names, sizes: Sizes, rungs) -> Hyper:
    """What successive halving chooses in each repetition, Hyper of arrays [repetition]."""
    drawn = [draw_candidates(SEARCH + i, sizes.candidates, names, base._asdict()) for i in range(sizes.repetitions)]
    hyper = Hyper(*(np.concatenate(x) for x in zip(*drawn, strict=True)))
    seeds = np.repeat(SEARCH + np.arange(sizes.repetitions), sizes.candidates)[:, None]
    lanes = Candidates(*program(counts, sizes.chunk), lanes_of(hyper, seeds), 1, sizes.chunk)
    each = np.arange(len(seeds)).reshape(sizes.repetitions, sizes.candidates)
    *_, last = successive_halving(rungs, lanes.advance, each)
    return Hyper(*(x[last.candidates[:, 0]] for x in hyper))


def arms_of(counts: Level, base: Hyper, cell: Hyper, sizes: Sizes, rungs) -> dict[str, Hyper]:
    """What the arms run that have the base point's counts: Hyper of arrays [repetition]."""
    given = tuple(name for name in RANGES if name != "sigma")
    first = [draw_candidates(SEARCH + i, 1, tuple(RANGES), base._asdict()) for i in range(sizes.repetitions)]
    return {
        TUNED: search(counts, base, tuple(RANGES), sizes, rungs),
        GIVEN: search(counts, base._replace(sigma=GIVEN_SIGMA), given, sizes, rungs),
        BEST: Hyper(*(np.full(sizes.repetitions, x) for x in cell)),
        BASE: Hyper(*(np.full(sizes.repetitions, x) for x in base)),
        RANDOM: Hyper(*(np.concatenate(x) for x in zip(*first, strict=True))),
    }


def study(
    best: float,
    counts: Level,
    points: Hyper,
    grid: Runs,
    sizes: Sizes = Sizes(),  # noqa: B008
    say=lambda line: None,
) -> Tuning:
    """Every arm.

    Args:
        best: Φ*.
        counts: of all runs but the theory's.
        points: of the grids, Hyper of arrays [point].
        grid: their runs [point, seed].
        sizes: how much is computed.
        say: hears of each arm.
    """
    _, base = base_point(sizes.epsilon)
    one = step_transitions(make_of(counts))
    rungs = plan_rungs(sizes.runs * counts.num_steps * one, sizes.candidates, one)
    steps = sizes.runs * counts.num_steps  # of the final run, which takes what the search was given
    total = spent(rungs, one) + steps * one
    point = int(np.argmin(grid.gap.mean(axis=1)))
    arms = arms_of(counts, base, Hyper(*(x[point] for x in points)), sizes, rungs)
    joined = Hyper(*(np.concatenate(x) for x in zip(*arms.values(), strict=True)))
    seeds = np.tile(FINAL + np.arange(sizes.repetitions), len(arms))[:, None]
    final = learn(best, counts, joined, seeds, sizes.chunk, steps).gap.reshape(len(arms), -1)
    gap = dict(zip(arms, final, strict=True))
    samples = {name: float(total if name in (TUNED, GIVEN) else steps * one) for name in arms}
    level, cost = schedule_within(total)
    learned = complexity.learn(level, "weighted", KL_WEIGHT, sizes.repetitions)
    gap[SCHEDULE] = np.maximum(best - complexity.values(learned.params, KL_WEIGHT), ROUNDING)
    samples[SCHEDULE] = float(cost)
    for name in gap:
        above = int(np.sum(gap[name] > FAILURE))
        about = f"mean gap {shown(gap[name])}, median {np.median(gap[name]):.4f} nats; {above} above {FAILURE}"
        say(f"{name:24s} {samples[name]:.3g} samples: {about}")
    chosen = {name: {x: getattr(arms[name], x) for x in RANGES} for name in (TUNED, GIVEN)}
    cell = {name: float(x[point]) for name, x in points._asdict().items()}
    pool = draw_candidates(POOL, sizes.pool, tuple(RANGES), base._asdict())
    runs = learn(best, counts, pool, POOL + np.arange(sizes.pool_seeds), sizes.chunk)
    return Tuning(gap, samples, chosen, cell, (runs, pool))


# What it shows --------------------------------------------------------------------------------------------------------


def shown(values: np.ndarray) -> str:
    """The mean over the first axis with its 95 % interval."""
    mean, low, high, _ = estimate(values, trim=0.0)
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def agreement(score: np.ndarray, gap: np.ndarray) -> list[float]:
    """Spearman's ρ of score and −gap over configurations [configuration], with its interval; NaN is the worst score."""
    return rank_correlation(np.nan_to_num(score, nan=-np.inf)[None], -gap[None], 2000)["pooled"]


def correlations(result: Tuning) -> dict[str, list[float]]:
    """How score and −gap agree over the pool: of single runs, of means over seeds, and where σ is at most 1."""
    runs, hyper = result.pool
    score, gap, small = runs.score.mean(axis=1), runs.gap.mean(axis=1), hyper.sigma <= 1
    return {
        "one seed": agreement(runs.score[:, 0], runs.gap[:, 0]),
        "mean over seeds": agreement(score, gap),
        "mean over seeds, σ at most 1": agreement(score[small], gap[small]),
        "σ with score, mean over seeds": agreement(score, -hyper.sigma),
    }


def draw(result: Tuning) -> Figure:
    """Gaps of the arms; what was chosen; score against gap over the pool."""
    figure = Figure(figsize=(17, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = [x for x in (TUNED, GIVEN, SCHEDULE, BEST, BASE, RANDOM) if x in result.gap]
    for i, name in enumerate(names):
        gap = result.gap[name]
        mean, low, high, _ = estimate(gap, trim=0.0)
        beside = i + 0.15 + 0.15 * np.linspace(0, 1, len(gap))
        left.plot(gap, beside, ".", color="0.6", markersize=4, label="repetitions" if i == 0 else None)
        left.errorbar(
            [mean], [i], xerr=[[mean - low], [high - mean]], fmt="o", color="#0072B2", label=None if i else "mean"
        )
    above = {x: int(np.sum(result.gap[x] <= ROUNDING)) for x in names}
    notes = [f"\n{above[x]} ended above Φ*, not shown" if above[x] else "" for x in names]
    labels = [f"{x}\n{result.samples[x] / 1e6:.1f} M samples{note}" for x, note in zip(names, notes, strict=True)]
    left.set_yticks(range(len(names)), labels)
    left.invert_yaxis()
    left.set(
        xscale="log",
        xlim=(1e-5, 2),
        xlabel="Φ* − Φ(φ_T), nats",
        title=f"{len(gap)} repetitions, 95 % intervals of the mean",
    )
    left.legend(fontsize=8)
    runs, hyper = result.pool
    middle.plot(result.chosen[TUNED]["sigma"], result.gap[TUNED], "o", color="#D55E00", label=TUNED)
    middle.axvline(GIVEN_SIGMA, color="0.5", linestyle="--", linewidth=1)
    middle.plot(result.chosen[GIVEN]["sigma"], result.gap[GIVEN], "s", color="#0072B2", markersize=4, label=GIVEN)
    middle.set(xscale="log", yscale="log", xlim=RANGES["sigma"], xlabel="σ that was chosen", ylabel="Φ* − Φ(φ_T), nats")
    middle.set_title("The σ that the searches chose, and where its run ended")
    middle.legend(fontsize=8)
    alive = ~runs.diverged.any(axis=1)
    dots = right.scatter(
        runs.gap.mean(axis=1)[alive],
        -runs.score.mean(axis=1)[alive],
        c=np.log10(hyper.sigma[alive]),
        cmap="viridis",
        s=24,
    )
    figure.colorbar(dots, ax=right, label="log₁₀ σ")
    rho, low, high = correlations(result)["mean over seeds"]
    right.set(
        xscale="log", yscale="log", xlabel="mean Φ* − Φ(φ_T), nats", ylabel="−(mean score: reported objective), nats"
    )
    right.set_title(
        f"{len(alive)} random configurations: rank correlation {rho:.2f} [{low:.2f}, {high:.2f}]\n"
        f"{int((~alive).sum())} with a diverged run, scored worst, not shown",
        fontsize=10,
    )
    for panel in (left, middle, right):
        panel.grid(alpha=0.3)
    return figure


def summarise(result: Tuning) -> dict:
    """Means with 95 % intervals, differences from the schedule, and correlations, as JSON values."""

    def interval(values):
        return [float(x) for x in estimate(values, trim=0.0)[:3]]

    arms = {
        name: {
            "samples": result.samples[name],
            "gap": interval(gap),
            "median": float(np.median(gap)),
            "failures": int(np.sum(gap > FAILURE)),
            "above_best": int(np.sum(gap <= ROUNDING)),
        }
        for name, gap in result.gap.items()
    }
    for name, gap in result.gap.items():
        arms[name]["log_ratio_to_schedule"] = interval(np.log(gap) - np.log(result.gap[SCHEDULE]))
    return {
        "arms": arms,
        "chosen": {arm: {n: x.tolist() for n, x in values.items()} for arm, values in result.chosen.items()},
        "best_cell": result.cell,
        "rank_correlation": correlations(result),
        "diverged_in_pool": float(result.pool[0].diverged.mean()),
    }


def report(result: Tuning, out: Path, say=print) -> None:
    """Writes `tuning.png` and `tuning.json`, and says the correlations."""
    write_json(out, "tuning.json", summarise(result))
    write_figure(out, "tuning.png", draw(result), dpi=110)
    say("best cell: " + ", ".join(f"{name} = {result.cell[name]:.3g}" for name in (*RANGES, "proxy_step_ratio")))
    for name, (rho, low, high) in correlations(result).items():
        say(f"rank correlation of score and Φ, {name}: {rho:.2f} [{low:.2f}, {high:.2f}]")
    say(f"figure: {out / 'tuning.png'}")
