"""P1.bias: the proxy's gradient is off by an amount proportional to σ."""

import functools
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bilevel import exact
from bilevel.preferences import annotator, log_likelihood
from bilevel.types import Array
from envs.tabular import garnet, tabular
from experiments.statistics.rates import Slope, slope
from experiments.verify.claims import Budget, Claim, Margin, Measurement, exponent

DISCOUNT, KL_WEIGHT, LENGTH = 0.9, 0.5, 3
SIGMAS = (0.016, 0.008, 0.004, 0.002, 0.001)
ONE_AT_A_TIME = threading.Lock()  # P1.bias and P1.value ask for the same errors, from two threads


class Errors(NamedTuple):
    """Of the proxy on random instances, exactly.

    Attributes:
        value: [σ, instance] Φ_σ − Φ.
        gradient: [σ, instance] ‖∇Φ_σ − ∇Φ‖. Both are with what a planted power of σ adds.
    """

    value: np.ndarray
    gradient: np.ndarray


def errors(num_instances: int, power: float = 1.0) -> Errors:
    """On MDPs of three states and two actions, at rewards drawn apart from the true ones, in float64.

    Args:
        num_instances: how many.
        power: of σ that divides the difference of J; 1 is the paper's, another plants a violation.
    """
    with ONE_AT_A_TIME:
        return measured(num_instances, power)


@functools.cache
def measured(num_instances: int, power: float) -> Errors:
    """`errors`, each once if asked for one at a time."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), num_instances)
        found = all_instances(keys, power)
        return Errors(*(np.asarray(x).T for x in found))


@jax.jit
def all_instances(keys: Array, power: Array) -> tuple[Array, Array]:
    """`instance` of every key, [instance, σ] each."""
    return jax.vmap(instance, (0, None))(keys, power)


def instance(key: Array, power: Array) -> tuple[Array, Array]:
    """Errors of Φ_σ and its gradient at each σ, [σ] each, on the instance of that key."""
    key_mdp, key_reward = jax.random.split(key)
    mdp = garnet(key_mdp, 3, 2)
    segments = exact.enumerate_segments(*mdp.reward.shape, LENGTH)
    comparisons = exact.exact_comparisons(annotator(tabular(mdp).reward, DISCOUNT), segments)
    uniform = jnp.full(mdp.reward.shape, 1 / mdp.reward.shape[1])
    reward = jax.random.normal(key_reward, mdp.reward.shape)

    def lower(reward):
        return exact.lower_level(mdp, reward, uniform, DISCOUNT, KL_WEIGHT)

    def upper(reward, policy):
        return exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, DISCOUNT)

    def regularised(reward, policy):
        return exact.regularised_return(lower(reward), policy)

    def whole(reward):
        return upper(reward, exact.optimal_policy(lower(reward)).policy)

    best = exact.optimal_policy(lower(reward)).policy
    value, gradient = jax.value_and_grad(whole)(reward)

    def proxy(sigma):
        policy = exact.penalised_policy(lower(reward), lambda x: upper(reward, x), sigma).policy
        weight = sigma**power
        ours = upper(reward, policy) - (regularised(reward, best) - regularised(reward, policy)) / weight
        difference = jax.grad(regularised)(reward, policy) - jax.grad(regularised)(reward, best)
        ours_gradient = jax.grad(upper)(reward, policy) + difference / weight
        return ours - value, jnp.linalg.norm(ours_gradient - gradient)

    return jax.lax.map(proxy, jnp.array(SIGMAS))


def draw(y: np.ndarray, label: str, found: Slope) -> Figure:
    """Errors against σ, a line an instance, with a guide of slope 1."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = axes.plot(SIGMAS, np.abs(y), color="#0072B2", alpha=0.35, linewidth=0.9)
    lines[0].set_label("an instance")
    middle = np.exp(np.mean(np.log(np.abs(y)), axis=1))
    axes.plot(SIGMAS, middle, "o-", color="#D55E00", markersize=4, label="geometric mean over instances")
    axes.plot(SIGMAS, middle[-1] * np.array(SIGMAS) / SIGMAS[-1], "k:", linewidth=1, label="slope 1")
    axes.set(xscale="log", yscale="log", xlabel="σ, weight of G in the penalised lower level", ylabel=label)
    low, high = found.interval
    over = f"{y.shape[1]} random MDPs, σ from {SIGMAS[0]:g} to {SIGMAS[-1]:g}"
    axes.set_title(f"{over}: slope {found.exponent:.3f}, 95 % interval [{low:.3f}, {high:.3f}]", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def measure(budget: Budget, power: float = 1.0) -> Measurement:
    """See `errors`."""
    gradient = errors(10 if budget.quick else 64, power).gradient
    found = slope(np.array(SIGMAS), gradient)
    figure = draw(gradient, "‖∇Φ_σ − ∇Φ‖, nats a unit of φ", found)
    return Measurement({"slope of ‖∇Φ_σ − ∇Φ‖ in σ": exponent(found, f"in σ, {gradient.shape[1]} MDPs")}, {}, figure)


CLAIM = Claim(
    statement="The proxy's gradient differs from the hypergradient by O(σ).",
    source="2410.15610, the lemma on the proxy's bias",
    prediction="slope 1 of ‖∇Φ_σ − ∇Φ‖ against σ on log axes",
    exact=True,
    margins={"slope of ‖∇Φ_σ − ∇Φ‖ in σ": Margin(0.95, 1.05)},
    minutes=(0.5, 1),
    measure=measure,
)
