"""By how much the proxy Φ_σ and its gradient differ from Φ and ∇Φ: what P1.bias and P1.value both measure, exactly."""

import functools
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bilevel.exact.bilevel import exact_bilevel, tabular_problem
from bilevel.types import Array, Coefficients
from envs.tabular import garnet
from experiments.claims.panels import BLUE, VERMILION, guide, log_log, panels
from experiments.statistics.rates import Slope

COEFFICIENTS, LENGTH = Coefficients(discount=0.9, kl_weight=0.5), 3
SIGMAS = np.array([0.016, 0.008, 0.004, 0.002, 0.001])
QUICK, FULL = 10, 64  # instances
ONE_AT_A_TIME = threading.Lock()  # P1.bias and P1.value ask for the same errors, from two threads


class Errors(NamedTuple):
    """Of the proxy on random instances."""

    value: np.ndarray  # [σ, instance] Φ_σ − Φ, nats
    gradient: np.ndarray  # [σ, instance] ‖∇Φ_σ − ∇Φ‖, nats a unit of reward


def errors(quick: bool) -> Errors:
    """On MDPs of three states and two actions, at rewards drawn apart from the true ones, in float64."""
    with ONE_AT_A_TIME:
        return computed(QUICK if quick else FULL)


@functools.cache
def computed(num_instances: int) -> Errors:
    """`errors` on so many instances; once each, if asked for one at a time."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), num_instances)
        found = jax.jit(jax.vmap(instance))(keys)
        return Errors(*(np.asarray(x).T for x in found))


def instance(key: Array) -> tuple[Array, Array]:
    """Errors of Φ_σ and of its gradient at each σ, [σ] each, on the instance of that key."""
    key_mdp, key_reward = jax.random.split(key)
    mdp = garnet(key_mdp, 3, 2)
    known = exact_bilevel(tabular_problem(mdp, COEFFICIENTS), mdp, LENGTH, COEFFICIENTS)
    reward = jax.random.normal(key_reward, mdp.reward.shape)
    value, gradient = jax.value_and_grad(known.value)(reward)

    def at(sigma):
        proxy_value, proxy_gradient = jax.value_and_grad(known.proxy_value)(reward, sigma)  # from one solve
        return proxy_value - value, jnp.linalg.norm(proxy_gradient - gradient)

    return jax.lax.map(at, jnp.array(SIGMAS))


def draw_errors(sizes: np.ndarray, label: str, found: Slope) -> Figure:
    """Sizes of errors [σ, instance] against σ, a line an instance, with a guide of slope 1."""
    over = f"{sizes.shape[1]} random MDPs, σ from {SIGMAS[0]:g} to {SIGMAS[-1]:g}"
    shown = "slope {:.3f}, 95 % interval [{:.3f}, {:.3f}]".format(found.exponent, *found.interval)
    figure, [[panel]] = panels(6, 4.2)
    panel.set_title(f"{over}: {shown}", fontsize=10)

    panel.plot(SIGMAS, sizes, color=BLUE, alpha=0.35, linewidth=0.9)[0].set_label("an instance")
    middle = np.exp(np.mean(np.log(sizes), axis=1))
    panel.plot(SIGMAS, middle, "o-", color=VERMILION, markersize=4, label="geometric mean over instances")
    guide(panel, SIGMAS[::-1], middle[-1], 1.0, "slope 1", "k", ":")
    log_log(panel, "σ, weight of G in the penalised lower level", label)
    panel.legend(fontsize=8)
    return figure
