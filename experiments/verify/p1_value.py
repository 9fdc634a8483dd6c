"""P1.value: the proxy's value is above Φ, by an amount proportional to σ."""

import numpy as np

from experiments.statistics.rates import slope
from experiments.verify.claims import INF, Budget, Claim, Interval, Margin, Measurement, exponent
from experiments.verify.p1_bias import SIGMAS, draw, errors


def measure(budget: Budget, power: float = 1.0) -> Measurement:
    """See `experiments.verify.p1_bias.errors`."""
    value = errors(10 if budget.quick else 64, power).value
    found = slope(np.array(SIGMAS), np.abs(value))
    least = float(value.min())
    num = f"{value.shape[1]} MDPs"
    numbers = {
        "slope of Φ_σ − Φ in σ": exponent(found, f"in σ, {num}"),
        "least Φ_σ − Φ": Interval(least, least, least, over=f"least of {num}, σ from {SIGMAS[0]:g} to {SIGMAS[-1]:g}"),
    }
    return Measurement(numbers, {}, draw(value, "Φ_σ − Φ, nats", found))


CLAIM = Claim(
    statement="The proxy Φ_σ bounds Φ from above, and differs from it by O(σ).",
    source="2410.15610, definition of the proxy and the lemma on its bias",
    prediction="slope 1 of Φ_σ − Φ against σ on log axes, and Φ_σ ≥ Φ",
    exact=True,
    margins={"slope of Φ_σ − Φ in σ": Margin(0.95, 1.05), "least Φ_σ − Φ": Margin(0.0, INF)},
    minutes=(0.5, 1),  # alone; what P1.bias has found is not computed again
    measure=measure,
)
