"""P1.rate: how the gap of Algorithm 1 falls with samples, where ascent on Φ has one maximum, and where it has several."""

import numpy as np

from experiments.files import make_folder
from experiments.studies import complexity
from experiments.verify.claims import INF, Budget, Claim, Interval, Margin, Measurement, exponent

MARGIN = 0.02
INSIDE = 0.95  # of the runs at every ε, at least
LEFT_OUT = "runs without a gap are left out"
NUMBERS = {name: f"exponent, {name} line 7, one maximum" for name in complexity.ESTIMATORS}


def measure(budget: Budget) -> Measurement:
    """See `experiments.studies.complexity`."""
    sizes = complexity.QUICK if budget.quick else complexity.Sizes()
    weights = dict(list(complexity.WEIGHTS.items())[: 1 if budget.quick else 2])
    results = {
        name: complexity.study(weight, sizes, make_folder(budget.folder, name), budget.say)
        for name, weight in weights.items()
    }
    numbers, notes, transitions = {}, [], 0.0
    for name, result in results.items():
        epsilons, assumed = np.array([level.epsilon for level in result.levels]), result.assumed
        for arm, fit in complexity.fits(result).items():
            numbers[f"exponent, {arm} line 7, {name}"] = exponent(fit, "samples")._replace(
                undecided=fit.undecided or premise(result, arm)
            )
            growth = -np.polyfit(np.log(epsilons), np.log(result.samples[arm]), 1)[0]
            numbers[f"samples ∝ ε^−p, {arm}, {name}"] = Interval(growth, growth, growth)
            numbers[f"gap ∝ ε^p, {arm}, {name}"] = exponent(complexity.law(1 / epsilons, result.gap[arm]), "1/ε")
            transitions += sizes.num_seeds * float(np.sum(result.samples[arm]))
        numbers[f"Φ outside the square less Φ*, at least, {name}"] = Interval(*[float(assumed.beyond)] * 3)
        numbers[f"gap at the start, {name}"] = Interval(*map(float, assumed.start))
        parts = complexity.parts(result)
        for i in (0, -1):
            why = "" if all(np.isfinite(gap[i]).all() for gap in result.gap.values()) else LEFT_OUT
            for part, intervals in parts.items():
                numbers[f"gap by {part}, ε = {epsilons[i]:.2g}, {name}"] = Interval(*intervals[i], why)
        means = {arm: gap.mean(axis=1) for arm, gap in result.gap.items()}
        shown = ", ".join(f"{arm} {mean[0]:.2g} → {mean[-1]:.2g}" for arm, mean in means.items())
        inside = min(x.min() for arm, x in result.inside.items() if arm != complexity.EXACT)
        notes.append(
            f"{name} (w = {weights[name]:g}, {100 * assumed.reached:.0f} % of exact ascents reach Φ*; on |φ_i| ≤ "
            f"{complexity.RADIUS:g}, where {100 * inside:.0f} % of the runs end at every ε or more, μ̂₁ = "
            f"{assumed.domination:.2g} and {assumed.below} stationary points below Φ* were found; on |φ_i| ≤ "
            f"{complexity.FAR:g} Φ − Φ* is up to {assumed.beyond:.2g} at least): mean gap {assumed.start[0]:.2g} at the "
            f"start, at the first and last ε: {shown}"
        )
    notes.append(
        "under this schedule the variance of independent line 7, 1/(Bσ²), does not fall with ε (weighted's does): averaged "
        "by η_t ∝ 1/t it leaves a gap ∝ 1/T ∝ ε, so as ε falls no more than the theorem's exponent"
    )
    return Measurement(numbers, {"transitions": transitions}, complexity.draw(results), tuple(notes))


def premise(result: complexity.Rate, arm: str) -> str:
    """Why the theorem says nothing of these runs, in words; "" if it may apply."""
    if not result.assumed.domination > 0:
        return "weak gradient domination is refuted: there are stationary points below Φ*"
    if result.inside[arm].min() < INSIDE:
        return f"{100 * (1 - result.inside[arm].min()):.0f} % of the runs left the square where the assumption was looked at"
    return ""


CLAIM = Claim(
    statement="Algorithm 1 reaches Φ* − Φ ≤ ε with ε^(−7/2) samples under weak gradient domination.",
    source="2410.15610, the main theorem; the split over T, K, n is this study's",
    prediction="gap ∝ samples^(−2/7) or faster, where the assumption is not refuted; where it is, reported",
    exact=False,
    margins=dict.fromkeys(NUMBERS.values(), Margin(complexity.EXPONENT - MARGIN, INF)),
    minutes=(2.5, 40),
    measure=measure,
)
