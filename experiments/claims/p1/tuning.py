"""What `bilevel tune` finds without the problem's constants, beside the theory's schedule and the best cell of a grid.

The second half of the claim sensitivity; no claim itself. A search spends half of the samples and the run of what it chose
the other half; the schedule spends all of them on one run, with ε as small as they allow, and step sizes that were chosen
for this instance. The best cell was chosen by the exact Φ at the end of the grids' runs, a twentieth as long, whose samples
are not counted. The score is G at λ′, which climbs J + σ G: it may rise with σ whatever becomes of φ. How well it orders
random configurations by their exact Φ is measured on a pool of them.
"""

import itertools
from typing import NamedTuple

import jax
import numpy as np

from experiments.claims import panels
from experiments.claims.claim import Number, Table
from experiments.claims.p1 import two_states
from experiments.claims.p1.base_point import KL_WEIGHT, Runs, base_point, candidates, learn, stacked
from experiments.claims.p1.two_states import ROUNDING, Counts, Numbers
from experiments.runs.halving import RANGES, draw_candidates, plan_rungs, spent, successive_halving
from experiments.statistics import intervals
from experiments.statistics.intervals import Interval

# First seeds of the searches, of the runs that are judged, and of the pool.
SEARCH, FINAL, POOL = 10_000, 20_000, 30_000
GIVEN_SIGMA = 0.1
FAILURE = 0.01  # nats: what the base point reaches in a twentieth of the final run
TUNED, GIVEN = "tune", f"tune, σ = {GIVEN_SIGMA} given"
SCHEDULE, BEST, BASE, RANDOM = "theory's schedule", "best cell of the grids", "base point", "random configuration"
ARMS = TUNED, GIVEN, SCHEDULE, BEST, BASE, RANDOM


class TuningSizes(NamedTuple):
    """How much is computed."""

    repetitions: int = 24  # of every arm, with other keys and other candidates
    runs: int = 20  # samples of a search, in runs of the base point
    candidates: int = 27  # of a search
    pool: int = 81  # random configurations on which score and Φ are compared
    pool_seeds: int = 8  # of each


class Tuning(NamedTuple):
    """What was measured."""

    gap: dict[str, np.ndarray]  # arm -> [repetition] Φ* − Φ(φ_T), nats
    samples: dict[str, float]  # arm -> transitions a repetition, without those of the grids
    chosen: dict[str, Numbers]  # arm -> what its searches chose, [repetition]
    cell: Numbers  # the best cell's numbers
    pool: Runs  # runs [configuration, seed] of the base point's length
    pool_sigma: np.ndarray  # [configuration] σ of each


def compare(best: float, epsilon: float, cell: Numbers, sizes: TuningSizes, chunk: int) -> Tuning:
    """Every arm around the base point of ε: Φ* is `best`, `cell` the best of the grids."""
    counts, base = base_point(epsilon)
    one, steps = two_states.step_transitions("weighted", counts), sizes.runs * counts.num_steps
    rungs = plan_rungs(steps * one, sizes.candidates, one)
    total = spent(rungs, one) + steps * one  # the final run takes what the search was given
    found = {
        TUNED: search(counts, base, tuple(RANGES), sizes, rungs, chunk),
        GIVEN: search(counts, base._replace(sigma=GIVEN_SIGMA), tuple(RANGES)[1:], sizes, rungs, chunk),
        BEST: stacked([cell] * sizes.repetitions),
        BASE: stacked([base] * sizes.repetitions),
        RANDOM: drawn(base, tuple(RANGES), sizes.repetitions, 1),
    }
    joined = jax.tree.map(lambda *x: np.concatenate(x), *found.values())
    seeds = np.tile(FINAL + np.arange(sizes.repetitions), len(found))[:, None]
    final = learn(best, counts, joined, seeds, chunk, steps).gap.reshape(len(found), -1)
    scheduled, samples = schedule_within(total)
    learned = two_states.learn("weighted", *scheduled, KL_WEIGHT, sizes.repetitions)
    pool = Numbers(**draw_candidates(POOL, sizes.pool, tuple(RANGES), base._asdict()))
    return Tuning(
        gap=dict(zip(found, final, strict=True)) | {SCHEDULE: two_states.gaps(best, learned.params, KL_WEIGHT)},
        samples={arm: float(total if arm in (TUNED, GIVEN) else steps * one) for arm in found} | {SCHEDULE: samples},
        chosen={arm: found[arm] for arm in (TUNED, GIVEN)},
        cell=cell,
        pool=learn(best, counts, pool, POOL + np.arange(sizes.pool_seeds), chunk),
        pool_sigma=pool.sigma,
    )


def drawn(base: Numbers, names: tuple[str, ...], repetitions: int, num: int) -> Numbers:
    """So many candidates of each repetition, by keys of its own: arrays [repetition × candidate]."""
    each = [draw_candidates(SEARCH + i, num, names, base._asdict()) for i in range(repetitions)]
    return Numbers(**jax.tree.map(lambda *x: np.concatenate(x), *each))


def search(counts: Counts, base: Numbers, names: tuple[str, ...], sizes: TuningSizes, rungs, chunk: int) -> Numbers:
    """What successive halving chooses in each repetition, arrays [repetition]."""
    points = drawn(base, names, sizes.repetitions, sizes.candidates)
    seeds = np.repeat(SEARCH + np.arange(sizes.repetitions), sizes.candidates)[:, None]
    lanes = candidates(counts, points, seeds, chunk)
    each = np.arange(len(seeds)).reshape(sizes.repetitions, sizes.candidates)
    *_, last = successive_halving(rungs, lanes.advance, each)
    return Numbers(*(x[last.candidates[:, 0]] for x in points))


def schedule_within(samples: float) -> tuple[tuple[Counts, Numbers], float]:
    """The schedule with the least ε that takes at most that many samples, and the samples it takes."""

    def with_cost(epsilon):
        counts, numbers = two_states.schedule(epsilon)
        return (counts, numbers), float(counts.num_steps * two_states.step_transitions("weighted", counts))

    levels = map(with_cost, 0.99 ** np.arange(500))  # the cost grows as ε falls
    return max(itertools.takewhile(lambda pair: pair[1] <= samples, levels), key=lambda pair: pair[1])


def agreement(score: np.ndarray, gap: np.ndarray) -> Interval:
    """Spearman's ρ of score and −gap over configurations [configuration]; NaN is the worst score."""
    return intervals.rank_correlation(np.nan_to_num(score, nan=-np.inf)[None], -gap[None])["pooled"]


def correlations(tuning: Tuning) -> dict[str, Interval]:
    """How score and −gap agree over the pool: of single runs, of means over seeds, and where σ is at most 1."""
    runs, sigma = tuning.pool, tuning.pool_sigma
    score, gap, small = runs.score.mean(axis=1), runs.gap.mean(axis=1), sigma <= 1
    return {
        "one seed": agreement(runs.score[:, 0], runs.gap[:, 0]),
        "mean over seeds": agreement(score, gap),
        "mean over seeds, σ at most 1": agreement(score[small], gap[small]),
        "σ with score, mean over seeds": agreement(score, -sigma),
    }


def numbers_of(tuning: Tuning) -> dict[str, Number]:
    """Mean gaps, their logs less the schedule's, and correlations, with intervals over repetitions and configurations."""
    ratios = {arm: np.log(tuning.gap[arm] / tuning.gap[SCHEDULE]) for arm in ARMS}
    numbers = {f"gap, {arm}": intervals.mean(tuning.gap[arm]) for arm in ARMS}
    numbers |= {f"log gap less the schedule's, {arm}": intervals.mean(x) for arm, x in ratios.items()}
    numbers |= {f"rank correlation of score and Φ, {name}": x for name, x in correlations(tuning).items()}
    return {name: Number(*x) for name, x in numbers.items()}


def tables_of(tuning: Tuning) -> tuple[Table, ...]:
    """The arms, and what was chosen."""
    arms = [
        {"arm": arm, "samples": tuning.samples[arm], "median gap": np.median(gap)}
        | {f"gaps above {FAILURE}": np.sum(gap > FAILURE), "runs above Φ*": np.sum(gap <= ROUNDING)}
        for arm, gap in ((arm, tuning.gap[arm]) for arm in ARMS)
    ]
    chosen = [
        {"by": arm, **{name: getattr(points, name)[i] for name in RANGES}, "gap": gap}
        for arm, points in tuning.chosen.items()
        for i, gap in enumerate(tuning.gap[arm])
    ]
    return Table("Tuning: each arm, gaps in nats", arms), Table("What the searches chose", chosen)


def note_of(tuning: Tuning) -> str:
    """The best cell of the grids, and how many of the random configurations diverged."""
    cell = ", ".join(f"{name} = {x:.3g}" for name, x in tuning.cell._asdict().items())
    return f"best cell of the grids: {cell}; of the runs of random configurations {tuning.pool.diverged.mean():.0%} diverged"


def draw(axes, tuning: Tuning) -> None:
    """Into three panels: gaps of the arms; what was chosen; score against gap over the pool."""
    for panel, draw_panel in zip(axes, (_draw_arms, _draw_chosen, _draw_pool), strict=True):
        panel.grid(alpha=0.3)
        draw_panel(panel, tuning)


def _draw_arms(panel, tuning: Tuning) -> None:
    labels = []
    for i, arm in enumerate(ARMS):
        gap, legend = tuning.gap[arm], (None, None) if i else ("repetitions", "mean")
        beside = i + 0.15 + 0.15 * np.linspace(0, 1, len(gap))
        panel.plot(gap, beside, ".", color="0.6", markersize=4, label=legend[0])
        mean = intervals.mean(gap[None], axis=1)
        panel.errorbar(mean.center, [i], xerr=intervals.bars(mean), fmt="o", color=panels.BLUE, label=legend[1])
        above = np.sum(gap <= ROUNDING)
        note = f"\n{above} ended above Φ*, not shown" if above else ""
        labels.append(f"{arm}\n{tuning.samples[arm] / 1e6:.1f} M samples{note}")
    panel.set_yticks(range(len(ARMS)), labels)
    panel.invert_yaxis()
    panel.set(xscale="log", xlim=(1e-5, 2), xlabel="Φ* − Φ(φ_T), nats")
    panel.set_title(f"{len(tuning.gap[TUNED])} repetitions, 95 % intervals of the mean")
    panel.legend(fontsize=8)


def _draw_chosen(panel, tuning: Tuning) -> None:
    for arm, mark, color in ((TUNED, "o", panels.VERMILION), (GIVEN, "s", panels.BLUE)):
        panel.plot(tuning.chosen[arm].sigma, tuning.gap[arm], mark, color=color, markersize=5, label=arm)
    panel.axvline(GIVEN_SIGMA, color="0.5", linestyle="--", linewidth=1)
    panels.log_log(panel, "σ that was chosen", "Φ* − Φ(φ_T), nats")
    panel.set_xlim(RANGES["sigma"])
    panel.set_title("The σ that the searches chose, and where its run ended")
    panel.legend(fontsize=8)


def _draw_pool(panel, tuning: Tuning) -> None:
    alive, runs = ~tuning.pool.diverged.any(axis=1), tuning.pool
    about = dict(c=np.log10(tuning.pool_sigma[alive]), cmap="viridis", s=24)
    dots = panel.scatter(runs.gap.mean(axis=1)[alive], -runs.score.mean(axis=1)[alive], **about)
    panel.figure.colorbar(dots, ax=panel, label="log₁₀ σ")
    rho, low, high = correlations(tuning)["mean over seeds"]
    panel.set(xscale="log", yscale="log", xlabel="mean Φ* − Φ(φ_T), nats", ylabel="−(mean score), nats")
    title = f"{len(alive)} random configurations: rank correlation {rho:.2f} [{low:.2f}, {high:.2f}]\n"
    panel.set_title(f"{title}{int((~alive).sum())} with a diverged run, scored worst, not shown", fontsize=10)
