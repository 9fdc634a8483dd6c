"""P1.ladder climbed for a few steps: what each rung adds."""

import numpy as np
import pytest

from experiments.claims.claim import Budget
from experiments.claims.p1 import ladder
from experiments.claims.p1.ladder import EXACT, EXACT_CRITIC, LEARNED_CRITIC, RUNGS, SIGMAS

SMALL = ladder.Sizes(num_seeds=5, num_steps=40, num_policy_steps=4, batch_size=16, ascent_steps=300)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ladder.measure(Budget(True, tmp_path_factory.mktemp("ladder")), SMALL)


def test_direct_ascent_ends_at_a_stationary_point_above_a_constant_reward(data):
    assert data.best_value > -np.log(2) and data.best_gradient < 1e-3


def test_exact_gradients_reach_the_maximum_and_the_nearer_the_smaller_sigma(data):
    assert data.gap[EXACT].shape == (len(SIGMAS), 1, SMALL.num_steps)
    assert np.abs(data.gap[EXACT][:, 0, -1]).max() < 1e-5
    assert np.all(np.diff(data.distance[EXACT][:, 0, -1]) < 0)


@pytest.mark.parametrize("rung", [EXACT_CRITIC, LEARNED_CRITIC])
def test_sampled_rungs_come_closer_and_keep_the_noise_of_their_samples(data, rung):
    gap = data.gap[rung][0].mean(axis=0)
    assert gap.shape == (SMALL.num_steps,)
    assert 1e-5 < gap[-1] < 0.5 * gap[0]


def test_numbers_are_medians_over_seeds_and_the_figure_is_drawn(data, tmp_path):
    numbers = ladder.judge(data).numbers
    assert all(f"gap, {rung}, σ = {sigma}" in numbers for rung, sigmas in RUNGS.items() for sigma in sigmas)
    found = numbers[f"gap, {EXACT_CRITIC}, σ = 0.1"]
    assert found.center == np.median(data.gap[EXACT_CRITIC][0, :, -1]) and found.low < found.center < found.high
    exactly = numbers[f"distance over σ, {EXACT}, σ = 0.4"]
    assert exactly.low == exactly.center == exactly.high == data.distance[EXACT][0, 0, -1] / 0.4
    ladder.draw(data).savefig(tmp_path / "ladder.png", dpi=40)
    assert (tmp_path / "ladder.png").stat().st_size > 10_000
