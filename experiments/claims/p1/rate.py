"""P1.rate: how the gap of Algorithm 1 falls with samples, where ascent on Φ has one maximum, and where it has several.

A ladder of targets ε under the theorem's schedule (`two_states.schedule`). Beside the whole gap stand its parts: the proxy's
bias, Φ* − Φ at the maximiser of Φ_σ; what T and K leave of the optimisation without noise; and the noise of the sampling.
ε is an index of the schedule, whose constants the theorem leaves open: gaps end below it, and the first levels' are met at
the start.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.claims import panels
from experiments.claims.claim import INF, Budget, Claim, Margin, Measurement, Number, Table, exponent
from experiments.claims.p1.two_states import (
    ESTIMATORS,
    EXACT,
    FAR,
    ONE_MAXIMUM,
    RADIUS,
    WEIGHTS,
    Assumption,
    Counts,
    Learned,
    Numbers,
    assumption,
    end_of,
    gaps,
    law,
    learn,
    means,
    schedule,
    values,
)
from experiments.claims.seeds import for_each_seed
from experiments.statistics import intervals

EXPONENT, MARGIN = 2 / 7, 0.02
INSIDE = 0.95  # of the runs at every ε, at least
LARGE = Counts(num_steps=400, num_policy_steps=50, batch_size=2, num_transitions=16)  # T and K that leave nothing
COLORS = {"independent": panels.VERMILION, "weighted": panels.BLUE}


class Sizes(NamedTuple):
    """How much is computed."""

    epsilons: tuple[float, ...] = tuple(10 ** (-x / 5) for x in range(7))  # targets, falling, to 0.063
    num_seeds: int = 64  # at each
    num_starts: int = 64  # random φ from which the exact Φ is climbed
    ascent_steps: int = 1500  # of that
    arms: tuple[str, ...] = (
        *ESTIMATORS,
        EXACT,
    )  # of line 7, and without noise, where the bias is measured
    weights: tuple[str, ...] = tuple(WEIGHTS)  # of `WEIGHTS`


FULL = Sizes()
# The least that can decide: of four levels a fit never knows whether burn-in reaches further.
QUICK = Sizes(FULL.epsilons[:5], 16, 16, 600, ESTIMATORS, (ONE_MAXIMUM,))


class Ladder(NamedTuple):
    """The ladder at one w."""

    assumed: Assumption  # what is known of the theorem's assumption; its `best` is Φ*
    samples: dict[str, np.ndarray]  # arm -> [ε] transitions a seed
    gap: dict[str, np.ndarray]  # arm -> [ε, seed] Φ* − Φ(φ_T), nats; the exact arm has the same starts, no other noise
    bias: np.ndarray  # [ε] Φ* − Φ where exact gradients with large T and K end from the best start; NaN: not asked
    inside: dict[str, np.ndarray]  # arm -> [ε] share of the seeds whose φ_T lies in the square


class Rate(NamedTuple):
    """What was measured: the ladder at each w, by what ascent on Φ finds there."""

    epsilons: np.ndarray
    ladders: dict[str, Ladder]  # by what ascent on Φ finds at its w


def measure(budget: Budget, sizes: Sizes | None = None) -> Rate:
    """Every arm at every ε and w; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else FULL)
    return Rate(np.array(sizes.epsilons), {name: climb(name, sizes, budget) for name in sizes.weights})


def climb(name: str, sizes: Sizes, budget: Budget) -> Ladder:
    """The ladder at the w of that name."""
    kl_weight = WEIGHTS[name]
    assumed = assumption(kl_weight, sizes.num_starts, sizes.ascent_steps)
    best, ends = float(assumed.best), {arm: [] for arm in sizes.arms}
    for epsilon in sizes.epsilons:
        for arm, learned in ends.items():
            compute = partial(learn, arm, *schedule(epsilon), kl_weight, sizes.num_seeds)
            learned.append(budget.keep(f"{name}, {arm} {epsilon:.4f}", Learned, compute))
        shown = ", ".join(f"{arm} {gaps(best, x[-1].params, kl_weight).mean():.2e}" for arm, x in ends.items())
        budget.say(f"ε = {epsilon:.3f}: {ends[sizes.arms[0]][-1].transitions:.3g} transitions a seed; Φ* − Φ: {shown}")
    params = {arm: np.stack([x.params for x in learned]) for arm, learned in ends.items()}
    bias = np.full(len(sizes.epsilons), np.nan)
    if EXACT in sizes.arms:
        bias = best - values(limits(sizes.epsilons, kl_weight), kl_weight).max(axis=0)
    return Ladder(
        assumed,
        samples={arm: np.array([x.transitions for x in learned]) for arm, learned in ends.items()},
        gap={arm: gaps(best, x, kl_weight) for arm, x in params.items()},
        bias=bias,
        inside={arm: np.mean(np.all(np.abs(x) <= RADIUS, axis=-1), axis=-1) for arm, x in params.items()},
    )


def limits(epsilons: tuple[float, ...], kl_weight: float) -> np.ndarray:
    """Where exact gradients end, [seed, ε, 2], at the σ of each level if T and K are large; one program."""
    sigmas = jnp.array([schedule(epsilon)[1].sigma for epsilon in epsilons])

    def single(key):
        return jax.vmap(lambda sigma: end_of(key, EXACT, LARGE, Numbers(sigma), kl_weight))(sigmas)

    return for_each_seed(single, 16, jax.random.key(0))


def number_of(arm: str, name: str = ONE_MAXIMUM) -> str:
    """What an exponent in samples is called."""
    return f"exponent, {arm} line 7, {name}"


def judge(data: Rate) -> Measurement:
    """Exponents in samples and in ε, and the gap's parts at the first and last ε."""
    numbers, notes, rows, transitions = {}, [], [], 0.0
    for name, ladder in data.ladders.items():
        arms = [arm for arm in ESTIMATORS if arm in ladder.gap]
        for arm in arms:
            why, fit = premise(ladder, arm), law(ladder.samples[arm], ladder.gap[arm])
            numbers[number_of(arm, name)] = exponent(fit, "samples")._replace(undecided=fit.undecided or why)
            growth = -np.polyfit(np.log(data.epsilons), np.log(ladder.samples[arm]), 1)[0]
            numbers[f"samples ∝ ε^−p, {arm}, {name}"] = Number(*[growth] * 3)
            numbers[f"gap ∝ ε^p, {arm}, {name}"] = exponent(law(1 / data.epsilons, ladder.gap[arm]), "1/ε")
            transitions += ladder.gap[arm].shape[1] * float(np.sum(ladder.samples[arm]))
        numbers[f"Φ outside the square less Φ*, at least, {name}"] = Number(*[ladder.assumed.beyond] * 3)
        numbers[f"gap at the start, {name}"] = Number(*ladder.assumed.start)
        for i in (0, -1):
            lost = any(not np.isfinite(gap[i]).all() for gap in ladder.gap.values())
            for part, ends in parts(ladder).items():
                key = f"gap by {part}, ε = {data.epsilons[i]:.2g}, {name}"
                numbers[key] = Number(*ends[i], "runs without a gap are left out" if lost else "")
        notes.append(in_words(name, ladder))
        rows += rows_of(name, data.epsilons, ladder)
    notes.append(
        "under this schedule the variance of independent line 7, 1/(Bσ²), does not fall with ε (weighted's does): averaged "
        "by η_t ∝ 1/t it leaves a gap ∝ 1/T ∝ ε, so as ε falls no more than the theorem's exponent"
    )
    table = Table("Means over seeds at each ε; gaps in nats", rows)
    return Measurement(numbers, {"transitions": transitions}, tuple(notes), (table,))


def premise(ladder: Ladder, arm: str) -> str:
    """Why the theorem says nothing of these runs, in words; "" if it may apply."""
    if not ladder.assumed.domination > 0:
        return "weak gradient domination is refuted: there are stationary points below Φ*"
    if ladder.inside[arm].min() < INSIDE:
        return f"{100 * (1 - ladder.inside[arm].min()):.0f} % of the runs left the square where the assumption was looked at"
    return ""


def parts(ladder: Ladder) -> dict[str, np.ndarray]:
    """The gap's parts, [ε, 3]: means over seeds with 95 % intervals; empty without the exact arm. bias: the proxy's, without
    an interval; optimisation: what T and K leave without noise; noise: what sampling adds, from the same starts."""
    if EXACT not in ladder.gap:
        return {}
    exactly = ladder.gap[EXACT]
    each = {"optimisation": exactly - ladder.bias[:, None]}
    each |= {f"noise, {arm}": gap - exactly for arm, gap in ladder.gap.items() if arm != EXACT}
    found = {part: np.stack(intervals.mean(x, axis=1), axis=-1) for part, x in each.items()}
    return {"bias": np.repeat(ladder.bias[:, None], 3, axis=1)} | found


def in_words(name: str, ladder: Ladder) -> str:
    """What is known of the assumption, and the first and last gaps."""
    assumed = ladder.assumed
    inside = min(x.min() for arm, x in ladder.inside.items() if arm != EXACT)
    return (
        f"{name} (w = {WEIGHTS[name]:g}): {assumed.reached:.0%} of exact ascents reach Φ*; on |φ_i| ≤ {RADIUS:g}, where "
        f"{inside:.0%} of the runs end at every ε or more, μ̂₁ = {assumed.domination:.2g} and {assumed.below} stationary "
        f"points below Φ* were found; on |φ_i| ≤ {FAR:g} Φ − Φ* is up to {assumed.beyond:.2g} at least"
    )


def rows_of(name: str, epsilons: np.ndarray, ladder: Ladder) -> list[dict[str, float | str]]:
    """A row for each ε."""
    columns = {f"samples, {arm}": x for arm, x in ladder.samples.items()}
    columns |= {f"gap, {arm}": x.mean(axis=1) for arm, x in ladder.gap.items()}
    columns |= {f"share inside, {arm}": x for arm, x in ladder.inside.items()}
    columns |= {f"gap by {part}": x[:, 0] for part, x in parts(ladder).items()}
    each = zip(epsilons, *columns.values(), strict=True)
    return [{"w": WEIGHTS[name], "ε": epsilon, **dict(zip(columns, x, strict=True))} for epsilon, *x in each]


def draw(data: Rate) -> Figure:
    """The gap against samples, a panel for each w: sampled arms with their fits, the parts of the gap, ε and the start."""
    figure, axes = panels.panels(5.6 * len(data.ladders), 6.4, columns=len(data.ladders))
    for panel, (name, ladder) in zip(axes[0], data.ladders.items(), strict=True):
        for arm, color in COLORS.items():
            label = f"{arm}: {panels.exponent_label(law(ladder.samples[arm], ladder.gap[arm]))}"
            panels.curve(panel, ladder.samples[arm], means(ladder.gap[arm]), color, label)
        budgets, reached = ladder.samples["independent"], ladder.assumed.reached
        if EXACT in ladder.gap:
            about = dict(color=panels.GREEN, markersize=3, label="T and K, without noise")
            panel.plot(budgets, ladder.gap[EXACT].mean(axis=1), "s--", **about)
            # Where few starts reach Φ* the bias is only which maxima those of `limits` found.
            if reached > 0.5:
                bias = np.maximum(ladder.bias, 1e-12)
                panel.plot(budgets, bias, "k^:", markersize=3, linewidth=1, label="bias of the proxy")
        panels.levels(panel, budgets, data.epsilons, float(ladder.assumed.start[0]))
        panels.guide(panel, budgets, ladder.gap["independent"][0].mean(), -EXPONENT, "p = 2/7, the theorem's")
        panels.log_log(panel, panels.SAMPLES, "Φ* − Φ(φ_T), nats")
        panels.legend_below(panel, "gap ∝ samples^(−p)")
        panel.set_title(f"w = {WEIGHTS[name]:g}: {name} nearby ({reached:.0%} of ascents reach Φ*)", fontsize=10)
    return figure


CLAIM = Claim(
    statement="Algorithm 1 reaches Φ* − Φ ≤ ε with ε^(−7/2) samples under weak gradient domination.",
    source="2410.15610, the main theorem; the split over T, K, n is this project's",
    prediction="gap ∝ samples^(−2/7) or faster, where the assumption is not refuted; where it is, reported",
    margins={number_of(arm): Margin(EXPONENT - MARGIN, INF) for arm in ESTIMATORS},
    minutes=(2.5, 40),
    measure=measure,
    judge=judge,
    draw=draw,
)
