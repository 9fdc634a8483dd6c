"""P1.bandit: policy gradient, exact or sampled, finds the Gibbs policy; noise that stays needs falling steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact
from experiments.claims.claim import Budget
from experiments.claims.p1 import bandit

SMALL = bandit.Sizes(num_seeds=8, num_steps=600, batch_size=64, num_transitions=64)


NAMES = tuple(name for name in bandit.RUNGS if name != "network, exact gradients")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return bandit.measure(Budget(True, tmp_path_factory.mktemp("bandit")), SMALL, NAMES)


@pytest.fixture(scope="module")
def found(data):
    return data.rungs


def test_the_target_is_the_maximum_with_the_curvature_that_the_steps_are_chosen_by(x64):
    _, lower = bandit.linear_instance()
    target, reward, shape = bandit.gibbs(lower), np.asarray(lower.reward), lower.reward.shape
    expected = np.mean(np.log(np.mean(np.exp(reward), axis=1)))  # w E_x log E_{a~π_ref} exp(r/w), w = 1
    assert abs(exact.regularised_return(lower, target) - expected) < 1e-12

    @jax.jit
    def derivatives(logits):
        def value(logits):
            return exact.regularised_return(lower, jax.nn.softmax(logits.reshape(shape)))

        return jax.grad(value)(logits), jax.hessian(value)(logits)

    gradient, hessian = derivatives(jnp.log(target).ravel())
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    curvatures = np.sort(-np.linalg.eigvalsh(hessian))
    np.testing.assert_allclose(curvatures[: shape[0]], 0.0, atol=1e-12)  # a constant in each context
    np.testing.assert_allclose(curvatures[shape[0]], bandit.smallest_curvature(lower), rtol=1e-8)
    assert curvatures[-1] <= bandit.COEFFICIENTS.kl_weight / shape[0] / 2


@pytest.mark.parametrize("rung", ["exact gradients", "sampled, exact critic", "sampled, Algorithm 2"])
def test_constant_steps_reach_the_gibbs_policy_where_the_noise_vanishes_with_the_advantage(found, rung):
    curves = found[f"table, {rung}"]
    assert curves.total_variation[:, 0].min() > 0.2
    assert curves.total_variation[:, -1].max() < 1e-4  # of every seed
    assert np.abs(curves.suboptimality[:, -1]).max() < 1e-6
    assert bandit.steps_to_target(curves.total_variation) < 60


def test_a_network_gets_there_as_well(found):
    variation = found["network, sampled, exact critic"].total_variation
    assert variation[:, 0].min() > 0.3
    assert variation[:, -1].mean() < 0.04
    assert variation[:, -1].mean() < 0.5 * variation[:, SMALL.num_steps // 2].mean()


def test_monte_carlo_noise_stops_constant_steps_and_not_falling_ones(found):
    falling, constant = (
        found[f"table, sampled, Monte Carlo, {x} steps"].total_variation for x in ("falling", "constant")
    )
    assert falling[:, -1].mean() < 0.025
    assert constant[:, -1].mean() > 2 * falling[:, -1].mean()
    slope, low, high = bandit.late_slope(falling)
    assert abs(slope + 0.5) < 0.2
    assert low < slope < high
    assert abs(bandit.late_slope(constant)[0]) < 0.15


def test_total_variation_and_suboptimality_bound_each_other(found):
    # J* − J = w E_x KL(π ‖ π*) ≥ 2 w (E_x TV)², by Pinsker and Jensen.
    for curves in found.values():
        assert np.all(curves.suboptimality >= 2 * bandit.COEFFICIENTS.kl_weight * curves.total_variation**2 - 1e-12)


def test_transitions_are_counted_and_steps_to_the_target_found(found):
    assert found["table, exact gradients"].transitions == 0
    assert found["table, sampled, exact critic"].transitions == SMALL.batch_size
    assert found["table, sampled, Algorithm 2"].transitions == SMALL.batch_size + SMALL.num_transitions
    assert bandit.steps_to_target(np.array([[0.5, 0.001, 0.02, 0.002, 0.001]])) == 4
    assert bandit.steps_to_target(np.array([[0.5, 0.001, 0.02]])) is None
    assert bandit.steps_to_target(np.array([[0.005, 0.001]])) == 1


def test_the_slope_of_a_power_is_its_exponent():
    steps = np.arange(1, 401)
    values = np.outer([1.0, 2.0, 4.0], steps**-0.7)
    np.testing.assert_allclose(bandit.late_slope(values), -0.7, atol=1e-9)


def test_every_rung_has_its_numbers_and_the_figure_is_drawn(data, tmp_path):
    measured = bandit.judge(data)
    (table,) = measured.tables
    assert [row["rung"] for row in table.rows] == list(NAMES)
    for row in table.rows:
        center, low, high, *_ = measured.numbers[f"total variation, {row['rung']}"]
        assert 0 <= low <= center + 1e-15
        assert center - 1e-15 <= high <= row["largest total variation"] + 1e-15
    bandit.draw(data).savefig(tmp_path / "bandit.png", dpi=40)
    assert (tmp_path / "bandit.png").stat().st_size > 10_000
