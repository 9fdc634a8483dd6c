"""What the theorem leaves open: the samples that a gap takes when σ, K, n, B and the step sizes are tuned at each budget.

On the instance of `complexity` where ascent on Φ has one maximum, Algorithm 1 runs with every combination of counts (K, n,
B), one program each, and of σ and step sizes, its lanes. Every run is looked at when it has used each budget. There the
combination with the smallest mean gap over half of the seeds is chosen, and the other half judges it, so that the choice
does not flatter. Beside it stands the theorem's schedule.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf, step_cost
from bilevel.gradients.hypergradients import proxy
from bilevel.run import run, start
from bilevel.types import Hyper
from experiments.files import write_figure, write_json
from experiments.runs.folder import kept
from experiments.statistics.rates import Fit, interval, undecided
from experiments.studies import complexity
from experiments.studies.complexity import DISCOUNT, ESTIMATORS, EXPONENT, Learned, Level
from experiments.studies.seeds import for_each_seed

KL_WEIGHT = complexity.WEIGHTS["one maximum"]
GAP = 0.01  # nats, at which samples are compared
HALVED = 100  # outer steps after which a reward step is half its first


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        budgets: transitions a run, increasing, at which it is looked at.
        counts: (K, n, B) tried.
        sigmas, policy_steps, reward_steps: σ, τ and η tried.
        num_seeds: half of them choose, half judge.
        epsilons: of the theorem's schedule.
        num_schedule_seeds: of it.
        estimators: of line 7.
    """

    budgets: tuple[float, ...] = tuple(10 ** (4 + x / 3) for x in range(7))  # to 1e6
    counts: tuple[tuple[int, int, int], ...] = ((1, 16, 4), (1, 16, 16), (1, 128, 128), (4, 16, 16))
    sigmas: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    policy_steps: tuple[float, ...] = (0.2, 0.8)
    reward_steps: tuple[float, ...] = (0.12, 0.5, 2.0)
    num_seeds: int = 64
    epsilons: tuple[float, ...] = complexity.QUICK.epsilons[:4]
    num_schedule_seeds: int = 32
    estimators: tuple[str, ...] = ESTIMATORS

    @property
    def lanes(self) -> np.ndarray:
        """[lane, 3] σ, τ and η of each."""
        return np.array(list(itertools.product(self.sigmas, self.policy_steps, self.reward_steps)))


class Tuned(NamedTuple):
    """One estimator of line 7.

    Attributes:
        gap: [counts, lane, budget, seed] Φ* − Φ, nats; ∞ before the first step.
        chosen: [budget, 2] indices of counts and lane.
        judged: [budget, seed/2] gap of the chosen, on seeds that did not choose.
        schedule: (samples [ε], gap [ε, seed]) under the theorem's schedule.
    """

    gap: np.ndarray
    chosen: np.ndarray
    judged: np.ndarray
    schedule: tuple[np.ndarray, np.ndarray]


def learn(counts: tuple[int, int, int], estimator: str, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """φ [seed, lane, budget, 2] of every run when it has used each budget, and whole steps that it took, [budget]."""
    mdp = complexity.instance()
    steps, transitions, batch = counts
    level = Level(0.0, 0.0, 0, steps, batch, transitions)

    def parts_of(lane):
        sigma, policy_step, reward_step = lane
        hyper = Hyper(
            sigma,
            KL_WEIGHT,
            DISCOUNT,
            policy_step_size=policy_step,
            reward_step_size=reward_step,
            critic_step_size=complexity.CRITIC_STEP,
        )
        ours = complexity.problem(mdp, hyper)
        gradients = complexity.gradients_of(ours, mdp, estimator, level, hyper)
        config = BilevelConfig(steps, reward_optimizer=lambda eta: optax.sgd(lambda t: eta / (1 + t / HALVED)))
        return ours, gradients, config, hyper

    def single(key, lane, num_steps):
        algorithm = bilevel_rlhf(*parts_of(lane))
        begin = start(algorithm, key, record)
        first = algorithm.params(begin.algorithm).reward
        _, metrics = run(algorithm, key, begin, num_steps, record)
        return jnp.concatenate([first[None], metrics["reward"]])

    def record(key, learned):
        return {"reward": learned.reward}

    lanes = jnp.asarray(sizes.lanes, jnp.float32)
    ours, gradients, config, hyper = parts_of(sizes.lanes[0])
    taken = np.asarray(sizes.budgets, int) // step_cost(gradients, config, proxy(ours, gradients, hyper)).transitions

    def seed(key):
        def at_budgets(lane):
            return single(key, lane, int(taken[-1]))[jnp.asarray(taken)]

        return jax.vmap(at_budgets)(lanes)

    return for_each_seed(seed, sizes.num_seeds, jax.random.key(0)), taken


class Gaps(NamedTuple):
    """gap [lane, budget, seed] Φ* − Φ, nats; taken [budget] whole steps."""

    gap: np.ndarray
    taken: np.ndarray


def gaps(counts: tuple[int, int, int], estimator: str, best: float, sizes: Sizes) -> Gaps:
    """Of every run with those counts."""
    rewards, taken = learn(counts, estimator, sizes)
    gap = np.moveaxis(best - complexity.values(rewards, KL_WEIGHT), 0, -1)
    gap = np.where(np.isfinite(gap), np.maximum(gap, complexity.ROUNDING), np.inf)
    return Gaps(np.where(taken[:, None] > 0, gap, np.inf), taken)


def choose(gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`chosen` and `judged` of `Tuned` from its `gap`."""
    half = gap.shape[-1] // 2
    scores = gap[..., :half].mean(axis=-1)  # [counts, lane, budget]
    flat = scores.reshape(-1, scores.shape[-1]).argmin(axis=0)
    chosen = np.stack(np.unravel_index(flat, scores.shape[:2]), axis=-1)
    return chosen, np.stack([gap[i, j, k, half:] for k, (i, j) in enumerate(chosen)])


def study(
    sizes: Sizes = Sizes(),  # noqa: B008
    keep: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Tuned]:
    """Every estimator of line 7.

    Args:
        sizes: how much is computed.
        keep: folder from which parts that are there are read, and to which the others are written; None: none.
        say: hears of each part as it ends.
    """
    best = float(complexity.assumption(KL_WEIGHT, complexity.QUICK).best)
    found = {}
    for estimator in sizes.estimators:
        parts = []
        for counts in sizes.counts:
            name = f"{estimator} K={counts[0]} n={counts[1]} B={counts[2]}"
            parts.append(kept(keep, name, Gaps, partial(gaps, counts, estimator, best, sizes)).gap)
            say(f"{name}: least mean gap {parts[-1].mean(axis=-1).min():.2g}")
        chosen, judged = choose(np.stack(parts))
        schedule = under_schedule(estimator, best, sizes, keep)
        say(
            f"{estimator}, tuned: {judged[0].mean():.2g} → {judged[-1].mean():.2g} at {sizes.budgets[-1]:.2g} transitions"
        )
        found[estimator] = Tuned(np.stack(parts), chosen, judged, schedule)
    return found


def under_schedule(estimator: str, best: float, sizes: Sizes, keep: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Samples [ε] and gaps [ε, seed] of the theorem's schedule."""
    samples, gap = [], []
    for epsilon in sizes.epsilons:
        level = complexity.schedule(epsilon)
        learned = partial(complexity.learn, level, estimator, KL_WEIGHT, sizes.num_schedule_seeds)
        rewards, transitions = kept(keep, f"{estimator} schedule {epsilon:.4f}", Learned, learned)
        samples.append(float(transitions))
        gap.append(np.maximum(best - complexity.values(rewards, KL_WEIGHT), complexity.ROUNDING))
    return np.array(samples), np.stack(gap)


# What it shows --------------------------------------------------------------------------------------------------------


def fit(result: Tuned, sizes: Sizes) -> Fit:
    """The power law of the judged gaps."""
    return complexity.law(np.array(sizes.budgets), result.judged)


def samples_for(epsilon: float, budgets, gap) -> tuple[float, float]:
    """Between which samples the mean over seeds of a gap [budget, seed] falls to ε, interpolated on logs.

    Both are the same where it does within the range; (0, the first) where it is below ε all along, (the last, ∞) where it
    never is.
    """
    mean = np.minimum.accumulate(gap.mean(axis=1))
    if not mean[-1] <= epsilon:
        return float(budgets[-1]), np.inf
    budgets, mean = (
        np.array(budgets)[np.isfinite(mean)],
        mean[np.isfinite(mean)],
    )  # before the first step there is no gap
    if mean[0] < epsilon:
        return 0.0, float(budgets[0])
    at = float(np.exp(np.interp(-np.log(epsilon), -np.log(mean), np.log(budgets))))
    return at, at


class Saved(NamedTuple):
    """How many times the samples of the tuned runs the schedule takes for a gap.

    Attributes:
        ratio: with its 95 % interval by bootstrap over seeds, given the choice; NaN where either is outside of its range.
        undecided: why it decides nothing, in words; "" if it may.
    """

    ratio: tuple[float, float, float]
    undecided: str


def saved(epsilon: float, result: Tuned, sizes: Sizes, num_resamples: int = 2000) -> Saved:
    """For a mean gap of ε. Where resampled curves leave their range, the interval reaches as far as the ratio may."""
    ways = {"the tuned": (sizes.budgets, result.judged), "the schedule's": result.schedule}
    for name, (_, gap) in ways.items():
        if why := complexity.without_gap(gap):
            return Saved((np.nan,) * 3, f"of {name} runs, {why}")
    (ours, _), (theirs, _) = takes = [samples_for(epsilon, *way) for way in ways.values()]
    outside = [name for name, (least, most) in zip(ways, takes, strict=True) if least < most]
    if outside:
        why = f"a mean gap of {epsilon:g} lies outside of the range of {' and '.join(outside)} runs"
        return Saved((np.nan,) * 3, why)
    rng, lows, inverse_highs = np.random.default_rng(0), [], []  # finite, unlike what is above one
    for _ in range(num_resamples):
        (least, most), (fewest, last) = (
            samples_for(epsilon, budgets, gap[:, rng.integers(gap.shape[1], size=gap.shape[1])])
            for budgets, gap in ways.values()
        )
        lows.append(fewest / most)
        inverse_highs.append(least / last)
    num = min(gap.shape[1] for _, gap in ways.values())
    low, inverse_high = interval(lows, num)[0], interval(inverse_highs, num)[0]
    return Saved((theirs / ours, low, 1 / inverse_high if inverse_high > 0 else np.inf), undecided(num))


def choices(result: Tuned, sizes: Sizes) -> list[dict]:
    """What was chosen at each budget, as JSON values."""
    rows = []
    for budget, (i, j), judged in zip(sizes.budgets, result.chosen, result.judged, strict=True):
        names = dict(zip(("K", "n", "B"), sizes.counts[i], strict=True))
        values = dict(zip(("sigma", "policy_step", "reward_step"), map(float, sizes.lanes[j]), strict=True))
        gap, *ends = (float(x[0]) for x in complexity.means(judged[None])[:3])
        rows.append({"budget": budget, "gap": gap, "interval": ends} | names | values)
    return rows


def draw(found: dict[str, Tuned], sizes: Sizes) -> Figure:
    """The gap against samples, tuned and under the schedule; and what was chosen at each budget."""
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    budgets = np.array(sizes.budgets)
    marks = {"independent": "o", "weighted": "s"}
    for name, result in found.items():
        color = complexity.COLORS[name]
        complexity.curve(left, color, f"{name}, tuned: {complexity.shown(fit(result, sizes))}", budgets, result.judged)
        label = f"{name}, the theorem's schedule: {_factor(saved(GAP, result, sizes))}"
        complexity.curve(left, color, label, *result.schedule, marker="^", linestyle="--")
        rows = choices(result, sizes)
        for key, line in (("sigma", "-"), ("B", ":"), ("K", "--")):
            values = [row[key] for row in rows]
            label = {"sigma": "σ", "B": "B", "K": "K"}[key]
            right.plot(budgets, values, line, color=color, marker=marks[name], markersize=4, label=f"{label}, {name}")
    left.axhline(GAP, color="0.6", linewidth=0.8)
    complexity.guide(left, budgets, next(iter(found.values())).judged.mean(axis=1)[0], EXPONENT, "2/7")
    complexity.finish(left, "Φ* − Φ(φ_T), nats")
    left.set_title("Gap on seeds that did not choose")
    right.set(xscale="log", yscale="log", xlabel="samples (transitions a seed)", ylabel="chosen value")
    right.set_title("What was chosen at each budget")
    right.grid(alpha=0.3)
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=6.0, ncols=len(found))
    return figure


def _factor(found: Saved) -> str:
    """In words."""
    center, low, high = found.ratio
    if not np.isfinite(center):
        return f"gap {GAP:g} outside of a range"
    return f"{center:.1f} times the samples for a gap of {GAP:g} [{low:.1f}, {high:.1f}]".replace("inf", "∞")


def summarise(found: dict[str, Tuned], sizes: Sizes) -> dict:
    """Choices, exponents, and the samples that a gap takes, tuned and under the schedule, as JSON values."""
    about = {}
    for name, result in found.items():
        runs = {"tuned": (sizes.budgets, result.judged), "schedule": result.schedule}
        takes = {
            f"{epsilon:g}": {way: samples_for(epsilon, *of) for way, of in runs.items()}
            for epsilon in (0.1, 0.05, 0.02, GAP, 0.005)
        }
        about[name] = complexity.describe(fit(result, sizes)) | {
            "choices": choices(result, sizes),
            "samples_for_gap": takes,
        }
    return about


def main(out: Path, say=print) -> None:
    """Runs the study and writes `tuned.png` and `tuned.json`; `bilevel verify P1.tuned` does it resumably."""
    sizes = Sizes()
    found = study(sizes, say=say)
    write_json(out, "tuned.json", complexity.finite(summarise(found, sizes)))
    write_figure(out, "tuned.png", draw(found, sizes), dpi=120)
    say(f"figure: {out / 'tuned.png'}")
