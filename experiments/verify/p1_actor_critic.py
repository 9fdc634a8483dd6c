"""P1.actor_critic: how the gap of the policy alone, at a fixed reward, falls with samples."""

import numpy as np

from experiments.report.summary import estimate
from experiments.studies import actor_critic
from experiments.verify.claims import INF, Budget, Claim, Interval, Margin, Measurement, exponent
from experiments.verify.p1_rate import LEFT_OUT, MARGIN

NUMBER = "exponent of J* − J in samples"


def measure(budget: Budget) -> Measurement:
    """See `experiments.studies.actor_critic`."""
    sizes = actor_critic.QUICK if budget.quick else actor_critic.Sizes()
    result = actor_critic.study(sizes, budget.folder, budget.say)
    cost = {"transitions": sizes.num_seeds * float(np.sum(result.samples))}
    numbers = {NUMBER: exponent(actor_critic.fit(result), "samples")}
    numbers["J* − J at the start"] = Interval(*[actor_critic.start()] * 3)
    for name, gap in (("first ε", result.gap[0]), ("last ε", result.gap[-1])):
        why = "" if np.isfinite(gap).all() else LEFT_OUT
        numbers[f"J* − J at the {name}"] = Interval(*map(float, estimate(gap, trim=0.0)[:3]), why)
    return Measurement(numbers, cost, actor_critic.draw(result, sizes.epsilons))


CLAIM = Claim(
    statement="Actor–critic at a fixed reward reaches J* − J ≤ ε with ε^(−3) samples.",
    source="2410.15610, the remark on vanilla actor–critic",
    prediction="gap ∝ samples^(−1/3) or faster",
    exact=False,
    margins={NUMBER: Margin(actor_critic.EXPONENT - MARGIN, INF)},
    minutes=(1, 5),
    measure=measure,
)
