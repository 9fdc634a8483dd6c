"""P1.value: the proxy's value is above Φ, by an amount proportional to σ."""

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.claim import INF, Budget, Claim, Margin, Measurement, Number, exponent
from experiments.claims.p1.proxy_errors import SIGMAS, Errors, draw_errors, errors
from experiments.statistics.rates import slope

SLOPE, LEAST = "slope of Φ_σ − Φ in σ", "least Φ_σ − Φ"


def measure(budget: Budget) -> Errors:
    """The proxy's errors on random instances."""
    return errors(budget.quick)


def judge(found: Errors) -> Measurement:
    """The slope of the value's errors, and the least of them."""
    instances = f"{found.value.shape[1]} MDPs"
    of_slope = exponent(slope(SIGMAS, np.abs(found.value)), f"in σ, {instances}")
    over = f"least of {instances}, σ from {SIGMAS[0]:g} to {SIGMAS[-1]:g}"
    return Measurement({SLOPE: of_slope, LEAST: Number(*[found.value.min()] * 3, over=over)}, {})


def draw(found: Errors) -> Figure:
    """The value's errors against σ."""
    sizes = np.abs(found.value)
    return draw_errors(sizes, "Φ_σ − Φ, nats", slope(SIGMAS, sizes))


CLAIM = Claim(
    statement="The proxy Φ_σ bounds Φ from above, and differs from it by O(σ).",
    source="2410.15610, definition of the proxy and the lemma on its bias",
    prediction="slope 1 of Φ_σ − Φ against σ on log axes, and Φ_σ ≥ Φ",
    exact=True,
    margins={SLOPE: Margin(0.95, 1.05), LEAST: Margin(0.0, INF)},
    minutes=(0.3, 1),  # alone; what P1.bias has found is not computed again
    measure=measure,
    judge=judge,
    draw=draw,
)
