"""The two-state MDP: its Φ* and what is known of the assumption, the schedule's cost, gaps that are no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.ascent import maximise
from experiments.claims.p1 import rate, two_states
from experiments.claims.p1.two_states import ONE_MAXIMUM, WEIGHTS


def test_the_schedule_costs_what_the_theorem_counts():
    def cost(epsilon):
        counts, _ = two_states.schedule(epsilon)
        return counts.num_steps * two_states.step_transitions("independent", counts)

    assert np.log(cost(1e-2) / cost(4e-2)) / np.log(4) == pytest.approx(3.5, abs=0.25)  # rollouts of B lag behind
    # And nearly so where the ladder is, by the critic's transitions more than by rollouts.
    epsilons = rate.FULL.epsilons
    assert 2.9 < -np.polyfit(np.log(epsilons), np.log([cost(x) for x in epsilons]), 1)[0] < 3.5
    last, _ = two_states.schedule(epsilons[-1])
    assert last.num_targets * last.num_transitions > 5 * last.batch_size * two_states.ROLLOUT
    for power, of in ((0.5, lambda x: x[1].sigma), (-1.0, lambda x: x[0].batch_size)):  # as the theorem asks
        first, last = (of(two_states.schedule(epsilon)) for epsilon in (1e-1, 1e-3))
        assert np.log10(last / first) / -2 == pytest.approx(power, abs=0.01)


def test_the_assumption_is_not_refuted_at_one_weight_and_is_at_the_other():
    one, several = (two_states.assumption(weight, 8, 600) for weight in WEIGHTS.values())
    assert one.domination > 0.01 and one.below == 0 and one.reached == 1
    assert 0.03 < one.beyond < 0.1  # towards φ = (2.5, −∞): the assumption is one of the square
    assert one.start[1] < one.start[0] < one.start[2] and 0.1 < one.start[0] < 0.4
    assert several.beyond >= 0  # Φ* itself
    assert several.domination == 0 and several.below >= 2  # saddles, and the maximum in which ascents end
    with jax.enable_x64(True):
        phi = two_states.bilevel(WEIGHTS[ONE_MAXIMUM])
        end = jax.jit(lambda start: maximise(phi.value, optax.sgd(1.5), start, 1500))(jnp.array([0.0, 2.0]))
        assert np.linalg.norm(jax.jit(phi.gradient)(end)) < 1e-3
    assert one.best == pytest.approx(two_states.values(np.asarray(end), WEIGHTS[ONE_MAXIMUM]), abs=1e-6)
    assert two_states.gaps(float(one.best), np.asarray(end)[None], 3.0) < 1e-6


def test_a_run_without_a_gap_is_counted_and_means_leave_its_level_out():
    gap = np.ones((5, 8))
    gap[3, :2] = np.inf
    assert two_states.law(10.0 ** np.arange(5), gap).undecided == (
        "2 of 8 runs at level 4 of 5 ended with a gap that is no number"
    )
    assert two_states.without_gap(gap[:3]) == ""
    assert np.isnan(two_states.means(gap).center).tolist() == [False, False, False, True, False]
