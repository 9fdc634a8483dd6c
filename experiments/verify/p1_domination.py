"""P1.domination: where the assumption of the convergence theorem, weak gradient domination, is refuted."""

from experiments.studies import domination
from experiments.verify.claims import Budget, Claim, Interval, Measurement

QUICK = domination.Sizes(num_instances=6, kl_weights=(0.5, 4.0), num_points=8, num_starts=2)
QUICK_CLASSES = (domination.TABLE,)
PAPER = next(iter(domination.OBJECTIVES))  # of which the assumption is one; others are reported
REFUTING = "share with a stationary point below"
REPORTED = {
    REFUTING: "stationary_below",
    "share with a lower maximum": "lower_maximum",
    "median μ̂₁ over random φ": "domination",
}


def measure(budget: Budget, sizes: domination.Sizes | None = None) -> Measurement:
    """See `experiments.studies.domination`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else domination.Sizes())
    names = QUICK_CLASSES if budget.quick else tuple(domination.CLASSES)
    found = domination.study(sizes, budget.say, names, budget.folder)
    rows, over = domination.summarise(found, sizes), f"{sizes.num_instances} MDPs"
    numbers = {
        f"{label}, {objective}, {row['class']}, w = {row['kl_weight']:g}": Interval(*row[key], over=over)
        for label, key in REPORTED.items()
        for objective in domination.OBJECTIVES
        for row in rows
        if row["objective"] == objective
    }
    searches = sum(x.ascents.value.size + x.roots.value.size for x in found.values())
    unfinished = max(1 - domination.finished(x).mean() for x in found.values())
    notes = (
        *(found_below(rows, objective) for objective in domination.OBJECTIVES),
        "a lower maximum is a local maximum of Φ below the best value found, at which a gradient ascent ended; a stationary "
        "point below may be of any kind, but φ = 0, at which every tanh network has one by construction",
        "a share of zero does not prove the assumption: the searches are finite, and μ̂₁ is an upper estimate of μ₁",
        f"of each class at least {1 - unfinished:.0%} of the ascents arrived in the steps allowed; others refute nothing",
    )
    return Measurement(numbers, {"searches": searches}, domination.draw(found, sizes), notes)


def found_below(rows: list[dict], objective: str) -> str:
    """In words: with that objective, at how many pairs of class and w, and on what shares of the instances."""
    shares = [row["stationary_below"][0] for row in rows if row["objective"] == objective]
    return (
        f"{objective}: a stationary point below at {sum(x > 0 for x in shares)} of {len(shares)} pairs of class and w, "
        f"on {min(shares):.0%} to {max(shares):.0%} of the instances"
    )


CLAIM = Claim(
    statement="Φ has weak gradient domination, whatever w and the class of rewards: √μ₁ (Φ* − Φ(φ)) ≤ ‖∇Φ(φ)‖ with some "
    "μ₁ > 0.",
    source="2410.15610, an assumption of its convergence theorem; with the excess objectives, ours",
    prediction="assumed; a stationary point below the maximum refutes it on an instance, for every μ₁",
    exact=True,
    margins={},
    minutes=(0.6, 8),
    measure=measure,
    refuting=f"{REFUTING}, {PAPER}",
)
