"""P1.critic: Algorithm 2's error falls as n^(−1/2) and γ^L to what its model cannot represent."""

from bilevel.rates import undecided
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
SUP = "sup-norm factor a target update over γ, "


def measure(budget: Budget, sizes: critic.Sizes | None = None) -> Measurement:
    """See `experiments.studies.critic`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else critic.Sizes())
    result = critic.study(sizes, budget.say, budget.folder)
    runs = sum(sum(learner.transitions) for learner in result.learners.values())
    transitions = len(critic.POLICIES) * sizes.num_seeds * sizes.num_targets * runs
    rates = [critic.contraction(result, p) for p in range(len(critic.POLICIES))]
    pairs = ", ".join(f"{x['sup_pairs']} ({x['policy']} policy, occupancy {x['sup_occupancy']:.3f})" for x in rates)
    notes = (
        "slopes of networks are above the best direct fit of their class; those with hidden layers are reported only, "
        "since gradient descent finds local minima of them",
        "with C fixed a bias of order β′/C stays, which averaging does not remove",
        f"the sup norm that is judged is over the pairs where a pass keeps at most {critic.KEPT:g} of the error: {pairs} "
        f"of {result.setting.values[0].size}; the averaged iterate of one pass is no exact update at the others",
    )
    return Measurement(numbers(result), {"transitions": transitions}, critic.draw(result), notes)


def numbers(result: critic.Result) -> dict[str, Interval]:
    """Slopes in n, floors, and factors a target update, of measured errors."""
    summary, found = critic.summarise(result), {}
    for row in summary["learners"]:
        name = f"{row['learner']}, {row['policy']}"
        slope, num_seeds = row.get("slope_above_floor") or row["slope"], result.errors[row["learner"]].shape[2]
        found[f"slope in n, {name}"] = Interval(*slope, undecided(num_seeds))
        if "floor" in row:
            found[f"floor, {name}"] = Interval(*[row["floor"]] * 3)
    for row in summary["rates"]:
        ratio = [x / row["without_noise"] for x in row["factor"]]
        found[RATIO + row["policy"]] = Interval(*ratio, row["undecided"])
        shown, everywhere = ([x / critic.DISCOUNT for x in row[name]] for name in ("sup_factor", "sup_factor_of_all"))
        found[SUP + row["policy"]] = Interval(*shown, row["sup_undecided"])
        found[f"{SUP}{row['policy']}, all pairs"] = Interval(*everywhere, row["undecided"])
    return found


LINEAR = [f"slope in n, {model}, {policy}" for model in (critic.TABLE, "affine") for policy in critic.POLICIES]
CLAIM = Claim(
    statement="Algorithm 2's error is a sum of γ^L, n^(−1/2) and the approximation error of its model.",
    source="2410.15610, the critic's lemma",
    prediction="slope −1/2 in n with a table or an affine model, above its floor (averaged SGD at a noise that C ∝ √n "
    "chains keep unbiased); in L the factor of exact target updates in L²(dπ), where they contract by √γ or better, and at "
    "most γ in the sup norm, over the pairs that a pass renews",
    exact=False,
    margins=dict.fromkeys(LINEAR, Margin(-0.55, -0.45))
    | {RATIO + policy: Margin(0.98, 1.02) for policy in critic.POLICIES}
    | {SUP + policy: Margin(0.0, 1.02) for policy in critic.POLICIES},
    minutes=(1, 6),
    measure=measure,
)
