"""P1.actor_critic: how the gap of the policy alone, at a fixed reward, falls with samples."""

import numpy as np

from experiments.studies import complexity
from experiments.verify.claims import INF, Budget, Claim, Margin, Measurement
from experiments.verify.p1_rate import MARGIN, exponent

NUMBER = "exponent of J* − J in samples"


def measure(budget: Budget) -> Measurement:
    """See `experiments.studies.complexity.actor_critic`."""
    sizes = complexity.QUICK if budget.quick else complexity.Sizes()
    alone = complexity.actor_critic(complexity.WEIGHTS["one maximum"], sizes, budget.folder, budget.say)
    fit = complexity.power_law(alone.samples, alone.gap, floor=False)
    cost = {"transitions": sizes.num_seeds * float(np.sum(alone.samples))}
    return Measurement({NUMBER: exponent(fit)}, cost, complexity.draw({}, alone))


CLAIM = Claim(
    statement="Actor–critic at a fixed reward reaches J* − J ≤ ε with ε^(−3) samples.",
    source="2410.15610, the remark on vanilla actor–critic",
    prediction="gap ∝ samples^(−1/3) or faster",
    exact=False,
    margins={NUMBER: Margin(complexity.ACTOR_CRITIC_EXPONENT - MARGIN, INF)},
    minutes=(1, 5),
    measure=measure,
)
