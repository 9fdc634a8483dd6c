"""P1.domination: where the assumption of the convergence theorem, weak gradient domination, is refuted."""

from experiments.studies import domination
from experiments.verify.claims import Budget, Claim, Interval, Measurement

QUICK = domination.Sizes(num_instances=6, kl_weights=(0.5, 4.0), num_points=8, num_starts=2)
QUICK_CLASSES = (domination.TABLE,)
REPORTED = {
    "share with a lower maximum": "lower_maximum",
    "share with a stationary point below": "stationary_below",
    "median μ̂₁ over random φ": "domination",
}


def measure(budget: Budget, sizes: domination.Sizes | None = None) -> Measurement:
    """See `experiments.studies.domination`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else domination.Sizes())
    names = QUICK_CLASSES if budget.quick else tuple(domination.CLASSES)
    found = domination.study(sizes, budget.say, names, budget.folder)
    numbers = {
        f"{label}, {row['class']}, {row['objective']}, w = {row['kl_weight']:g}": Interval(*row[key])
        for row in domination.summarise(found, sizes)
        for label, key in REPORTED.items()
    }
    searches = sum(x.ascents.value.size + x.roots.value.size for x in found.values())
    unfinished = max(1 - domination.finished(x).mean() for x in found.values())
    notes = (
        "a lower maximum is a local maximum of Φ below the best value found, at which a gradient ascent ended; a stationary "
        "point below may be of any kind, but φ = 0, at which every tanh network has one by construction",
        "a share of zero does not prove the assumption: the searches are finite, and μ̂₁ is an upper estimate of μ₁",
        f"{unfinished:.0%} of a class's ascents at most had not arrived within the steps allowed; they refute nothing here",
    )
    return Measurement(numbers, {"searches": searches}, domination.draw(found, sizes), notes)


CLAIM = Claim(
    statement="Φ has weak gradient domination: √μ₁ (Φ* − Φ(φ)) ≤ ‖∇Φ(φ)‖ with some μ₁ > 0.",
    source="2410.15610, an assumption of its convergence theorem",
    prediction="μ₁ > 0 is assumed; reported: on what share of random MDPs a stationary point below the maximum refutes it",
    exact=True,
    margins={},
    minutes=(0.6, 8),
    measure=measure,
)
