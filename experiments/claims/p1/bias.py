"""P1.bias: the proxy's gradient is off by an amount proportional to σ."""

from matplotlib.figure import Figure

from experiments.claims.claim import Budget, Claim, Margin, Measurement, exponent
from experiments.claims.p1.proxy_errors import SIGMAS, Errors, draw_errors, errors
from experiments.statistics.rates import slope

SLOPE = "slope of ‖∇Φ_σ − ∇Φ‖ in σ"


def measure(budget: Budget) -> Errors:
    """The proxy's errors on random instances."""
    return errors(budget.quick)


def judge(found: Errors) -> Measurement:
    """The slope of the gradient's errors."""
    of_slope = exponent(slope(SIGMAS, found.gradient), f"in σ, {found.gradient.shape[1]} MDPs")
    return Measurement({SLOPE: of_slope}, {})


def draw(found: Errors) -> Figure:
    """The gradient's errors against σ."""
    return draw_errors(found.gradient, "‖∇Φ_σ − ∇Φ‖, nats a unit of φ", slope(SIGMAS, found.gradient))


CLAIM = Claim(
    statement="The proxy's gradient differs from the hypergradient by O(σ).",
    source="2410.15610, the lemma on the proxy's bias",
    prediction="slope 1 of ‖∇Φ_σ − ∇Φ‖ against σ on log axes",
    exact=True,
    margins={SLOPE: Margin(0.95, 1.05)},
    minutes=(0.3, 1),
    measure=measure,
    judge=judge,
    draw=draw,
)
