"""P1.critic: Algorithm 2's error falls as n^(−1/2) and γ^L to what its model cannot represent."""

from experiments.studies import critic
from experiments.verify.claims import Budget, Claim, Interval, Margin, Measurement

QUICK = critic.Sizes(
    num_seeds=16,
    transitions=(1024, 4096, 16384),
    network_transitions=(1024, 4096, 16384),
    hidden_sizes=((),),
    fit_steps=2000,
    num_restarts=4,
)
RATIO = "error a target update over its value without noise, "


def measure(budget: Budget, sizes: critic.Sizes | None = None) -> Measurement:
    """See `experiments.studies.critic`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else critic.Sizes())
    result = critic.study(sizes, budget.say)
    summary, numbers, transitions = critic.summarise(result), {}, 0
    for row in summary["learners"]:
        name = f"{row['learner']}, {row['policy']}"
        slope = row.get("slope_above_floor") or row["slope"]
        numbers[f"slope in n, {name}"] = Interval(*slope)
        if "floor" in row:
            numbers[f"floor, {name}"] = Interval(*[row["floor"]] * 3)
        transitions += sizes.num_seeds * sizes.num_targets * sum(row["n"])
    for row in summary["rates"]:
        ratio = [x / row["without_noise"] for x in row["factor"]]
        numbers[RATIO + row["policy"]] = Interval(*ratio)
    notes = (
        "slopes of networks are above the best direct fit of their class; those with hidden layers are reported only, "
        "since gradient descent finds local minima of them",
        "with C fixed a bias of order β′/C stays, which averaging does not remove",
    )
    return Measurement(numbers, {"transitions": transitions}, critic.draw(result), notes)


LINEAR = [f"slope in n, {model}, {policy}" for model in (critic.TABLE, "affine") for policy in critic.POLICIES]
CLAIM = Claim(
    statement="Algorithm 2's error is a sum of γ^L, n^(−1/2) and the approximation error of its model.",
    source="2410.15610, the critic's lemma",
    prediction="slope −1/2 in n with a table or an affine model, above its floor (averaged SGD at a noise that C ∝ √n "
    "chains keep unbiased), and the factor of exact target updates in L",
    exact=False,
    margins=dict.fromkeys(LINEAR, Margin(-0.55, -0.45))
    | {RATIO + policy: Margin(0.98, 1.02) for policy in critic.POLICIES},
    minutes=(1, 8),
    measure=measure,
)
