"""P1.critic: Algorithm 2's error falls as n^(−1/2) and γ^L to what its model cannot represent."""

import itertools

from experiments.studies import critic
from experiments.verify.claims import Budget, Claim, Interval, Margin, Measurement, exponent

QUICK = critic.Sizes(
    num_seeds=16,
    transitions=(512, 2048, 8192, 32768),
    network_transitions=(512, 2048, 8192, 32768),
    hidden_sizes=((),),
    fit_steps=2000,
    num_restarts=4,
)
RATIO = "error a target update over its value without noise, "


def measure(budget: Budget, sizes: critic.Sizes | None = None) -> Measurement:
    """See `experiments.studies.critic`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else critic.Sizes())
    result = critic.study(sizes, budget.say, budget.folder)
    runs = sum(sum(learner.transitions) for learner in result.learners.values())
    transitions = len(critic.POLICIES) * sizes.num_seeds * sizes.num_targets * runs
    notes = (
        "exponents of networks are above the best direct fit of their class; those with hidden layers are reported only, "
        "since gradient descent finds local minima of them",
        "with C fixed a bias of order β′/C stays, which averaging does not remove",
    )
    return Measurement(numbers(result), {"transitions": transitions}, critic.draw(result), notes)


def numbers(result: critic.Result) -> dict[str, Interval]:
    """Exponents in n, floors, and factors a target update, of measured errors."""
    found = {}
    for (name, learner), (p, policy) in itertools.product(result.learners.items(), enumerate(critic.POLICIES)):
        floor = float(result.floors[name][p].min()) if name in result.floors else 0.0
        law = critic.law(learner.transitions, result.errors[name][:, p, :, -1], floor)
        found[f"exponent in n, {name}, {policy}"] = exponent(law, "transitions an update")
        if name in result.floors:
            found[f"floor, {name}, {policy}"] = Interval(*[floor] * 3)
    for row in (critic.contraction(result, p) for p in range(len(critic.POLICIES))):
        ratio = [x / row["without_noise"] for x in row["factor"]]
        over = f"over the first {row['last']} target updates"
        found[RATIO + row["policy"]] = Interval(*ratio, row["undecided"], over)
    return found


LINEAR = [f"exponent in n, {model}, {policy}" for model in (critic.TABLE, "affine") for policy in critic.POLICIES]
CLAIM = Claim(
    statement="Algorithm 2's error is a sum of γ^L, n^(−1/2) and the approximation error of its model.",
    source="2410.15610, the critic's lemma",
    prediction="error ∝ n^(−1/2) with a table or an affine model, above its floor (averaged SGD at a noise that C ∝ √n "
    "chains keep unbiased); in L the factor of exact target updates in L²(dπ), where they contract by √γ or better",
    exact=False,
    margins=dict.fromkeys(LINEAR, Margin(0.45, 0.55))
    | {RATIO + policy: Margin(0.98, 1.02) for policy in critic.POLICIES},
    minutes=(1, 6),
    measure=measure,
)
