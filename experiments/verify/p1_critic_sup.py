"""P1.critic_sup: what a target update of Algorithm 2 does in the sup norm, in which the lemma has it contract."""

from experiments.studies import critic, critic_sup
from experiments.verify.claims import Budget, Claim, Interval, Margin, Measurement

ROUNDING = 1e-5  # of float32, in a factor
SUP = "sup-norm factor over γ, all pairs, "
QUICK = critic.Sizes(num_seeds=16, num_targets=16, transitions=(1024, 4096, 16384))


def measure(budget: Budget, sizes: critic.Sizes | None = None) -> Measurement:
    """See `experiments.studies.critic_sup`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else critic.Sizes(num_targets=24))
    result = critic_sup.study(sizes, budget.say, budget.folder)
    transitions = len(critic.POLICIES) * sizes.num_seeds * sizes.num_targets * result.learner.transitions[-1]
    rates = [critic_sup.contraction(result, p) for p in range(len(critic.POLICIES))]
    notes = [
        f"one pass of SGD is no Bellman update: at the {x['policy']} policy's rarest pair, which it renews "
        f"{x['renewals']:.2g} times, it keeps {x['share'][0]:.2f} of the error, {x['expected_share']:.2f} as predicted; "
        f"what all pairs keep gives a sup-norm factor of {x['expected'] / critic.DISCOUNT:.3f} γ without noise"
        for x in rates
    ]
    return Measurement(numbers(rates), {"transitions": transitions}, critic_sup.draw(result), tuple(notes))


def numbers(rates: list[dict]) -> dict[str, Interval]:
    """Factors over γ, as measured and as predicted, and the share of the error that a pass keeps at the rarest pair."""
    found = {}
    for x in rates:
        ratio = [value / critic.DISCOUNT for value in x["factor"]]
        found[SUP + x["policy"]] = Interval(*ratio, x["undecided"], f"over the first {x['last']} target updates")
    for x in rates:
        found[f"that factor from what passes keep, {x['policy']}"] = Interval(*[x["expected"] / critic.DISCOUNT] * 3)
        found[f"share kept at the rarest pair, {x['policy']}"] = Interval(*x["share"])
        found[f"that share as predicted, {x['policy']}"] = Interval(*[x["expected_share"]] * 3)
    return found


CLAIM = Claim(
    statement="A target update of Algorithm 2 contracts the error by γ in the sup norm.",
    source="2410.15610, the critic's lemma, which takes one for a Bellman update",
    prediction="factor at most γ, over all pairs, while the error is above the noise",
    exact=False,
    margins={SUP + policy: Margin(0.0, 1.0 + ROUNDING) for policy in critic.POLICIES},
    minutes=(0.5, 2),
    measure=measure,
)
