"""P1.bias and P1.value hold on a few instances, and another power of σ is noticed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from experiments.claims.claim import Budget
from experiments.claims.p1 import bias, proxy_errors, value
from experiments.claims.results import describe


def verdict(module, found):
    """The verdict of a claim on errors."""
    return describe(module.CLAIM, module.CLAIM.judge(found))["verdict"]


@pytest.mark.parametrize("module", [bias, value])
def test_the_proxys_errors_are_proportional_to_sigma_and_another_power_is_noticed(module, tmp_path):
    found = module.CLAIM.measure(Budget(True, tmp_path))
    assert found.value.shape == found.gradient.shape == (len(proxy_errors.SIGMAS), proxy_errors.QUICK)
    assert verdict(module, found) == "holds"
    assert len(module.CLAIM.draw(found).axes[0].get_lines()) == proxy_errors.QUICK + 2


def test_a_difference_divided_by_another_power_of_sigma_fails(monkeypatch):
    real = proxy_errors.exact_bilevel

    def planted(*inputs):
        known = real(*inputs)

        def proxy_value(reward, sigma):  # what is divided by σ in the proxy is divided by σ^1.1 here
            policy = known.penalised(proxy_errors.jax.lax.stop_gradient(reward), sigma)
            direct = known.preference(reward, policy)
            return direct + (known.proxy_value(reward, sigma) - direct) / sigma**0.1

        return known._replace(proxy_value=proxy_value)

    monkeypatch.setattr(proxy_errors, "exact_bilevel", planted)
    found = proxy_errors.computed.__wrapped__(proxy_errors.QUICK)
    assert verdict(bias, found) == "fails" and verdict(value, found) == "fails"


def test_a_proxy_below_the_objective_fails():
    sizes = proxy_errors.SIGMAS[:, None] * np.linspace(1, 2, 10)
    assert verdict(value, proxy_errors.Errors(sizes, sizes)) == "holds"
    assert verdict(value, proxy_errors.Errors(-sizes, sizes)) == "fails"


def test_errors_that_two_claims_ask_for_at_once_are_computed_once(monkeypatch):
    calls = []

    def slowly(key):
        calls.append(threading.get_ident())
        time.sleep(0.2)
        return np.ones(3), np.ones(3)

    monkeypatch.setattr(proxy_errors, "instance", slowly)
    monkeypatch.setattr(proxy_errors, "QUICK", 2)
    proxy_errors.computed.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(proxy_errors.errors, True) for _ in range(2))
        assert one.result() is other.result()
    proxy_errors.computed.cache_clear()
    assert len(calls) == 1  # traced once
