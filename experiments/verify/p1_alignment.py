"""P1.alignment: what each method is worth under the true reward, beside the objective that the paper maximises."""

from experiments.studies import alignment
from experiments.verify.claims import Budget, Claim, Interval, Measurement

QUICK = alignment.Sizes(num_seeds=16, kl_weights=(0.5, 1.5), num_steps=300, num_reward_steps=1000)
QUICK_CLASSES = (alignment.REALISABLE,)
QUICK_METHODS = alignment.ALTERNATING, alignment.PAPER, alignment.EXCESS
REPORTED = {
    "return, 0 reference, 1 KL-optimal": "relative_regularised_return",
    "Φ(φ) − Φ(r*)": "upper_objective_above_truth",
}


def measure(budget: Budget, sizes: alignment.Sizes | None = None) -> Measurement:
    """See `experiments.studies.alignment`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else alignment.Sizes())
    kinds = QUICK_CLASSES if budget.quick else tuple(alignment.CLASSES)
    methods = QUICK_METHODS if budget.quick else tuple(alignment.METHODS)
    found = alignment.study(sizes, budget.say, methods, kinds, budget.folder)
    rows = alignment.summarise(found, sizes)
    numbers = {
        f"{label}, {row['class']}, {row['method']}, w = {row['kl_weight']:g}": Interval(*row[key])
        for row in rows
        for label, key in REPORTED.items()
    }
    slow = [
        f"{row['class']}, {row['method']}, w = {row['kl_weight']:g}: {row['converged']:.0%}"
        for row in rows
        if row["converged"] < 0.9 and row["class"] != alignment.SAMPLED
    ]
    labels = [f"{row['method']} {row['labels']:,.0f}" for row in rows if row["class"] == alignment.SAMPLED]
    notes = (
        "returns are under the true reward, with the KL term; interquartile means over random MDPs",
        "labels a run with sampled gradients: " + (", ".join(dict.fromkeys(labels)) or "none are run"),
        f"converged: both exact gradients below {alignment.TOLERANCE:g}; below 90 % of the runs in "
        + ("; ".join(slow) or "none"),
    )
    runs = sum(ends.regularised.size for ends in found.values())
    transitions = sum(float(ends.transitions.sum()) for ends in found.values())
    return Measurement(numbers, {"runs": runs, "transitions": transitions}, alignment.draw(found, sizes), notes)


CLAIM = Claim(
    statement="What bilevel RLHF maximises, Φ, is a proxy of the true return: two-stage, alternating and bilevel compared.",
    source="2410.15610, its objective; the comparison is ours",
    prediction="reported; where the true reward is in the class, alternating and the excess objective should reach the "
    "KL-optimal return, and the paper's objective a higher Φ and a lower return",
    exact=False,
    margins={},
    minutes=(0.6, 8),
    measure=measure,
)
