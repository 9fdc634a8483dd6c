"""P1.alignment: what each method is worth under the true reward, beside the objective that the paper maximises."""

from experiments.studies import alignment
from experiments.verify.claims import Budget, Claim, Interval, Measurement

QUICK = alignment.Sizes(num_seeds=16, kl_weights=(0.5, 1.5), num_steps=300, num_reward_steps=1000)
REPORTED = {
    "return, 0 reference, 1 KL-optimal": "relative_regularised_return",
    "Φ(φ) − Φ(r*)": "upper_objective_above_truth",
}


def measure(budget: Budget, sizes: alignment.Sizes | None = None) -> Measurement:
    """See `experiments.studies.alignment`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else alignment.Sizes())
    found = alignment.study(sizes, budget.say)
    rows = alignment.summarise(found, sizes)
    numbers = {
        f"{label}, {row['class']}, {row['method']}, w = {row['kl_weight']:g}": Interval(*row[key])
        for row in rows
        for label, key in REPORTED.items()
    }
    slow = [f"{row['class']}, {row['method']}, w = {row['kl_weight']:g}: {row['converged']:.0%}" for row in rows]
    slow = [line for line, row in zip(slow, rows, strict=True) if row["converged"] < 0.9]
    notes = (
        "returns are under the true reward, with the KL term; interquartile means over random MDPs",
        f"converged: both gradients below {alignment.TOLERANCE:g}; below 90 % of the runs in "
        + ("; ".join(slow) or "none"),
    )
    runs = sum(ends.regularised.size for ends in found.values())
    return Measurement(numbers, {"runs": runs}, alignment.draw(found, sizes), notes)


CLAIM = Claim(
    statement="What bilevel RLHF maximises, Φ, is a proxy of the true return: two-stage, alternating and bilevel compared.",
    source="2410.15610, its objective; the comparison is ours",
    prediction="reported; where the true reward is in the class, alternating and the excess objective should reach the "
    "KL-optimal return, and the paper's objective a higher Φ and a lower return",
    exact=True,
    margins={},
    minutes=(0.6, 6),
    measure=measure,
)
