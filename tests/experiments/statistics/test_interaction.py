"""Interactions: planted ones are found with their share and size, additive surfaces and noise show none."""

import numpy as np
import pytest

from experiments.statistics.interaction import interaction

LEVELS = np.linspace(-1, 1, 5)
ALL = np.ones((5, 5), bool)


def surface(noise: float, strength: float, seed: int = 0) -> np.ndarray:
    """Gaps [row, column, seed]: additive in the log, but for `strength` times a product; noise shared and of its own."""
    rng = np.random.default_rng(seed)
    log = LEVELS[:, None] + 2 * LEVELS[None] ** 2 + strength * np.outer(LEVELS, LEVELS)
    return np.exp(log[..., None] + noise * (rng.normal(size=24) + rng.normal(size=(5, 5, 24))))


def test_of_two_levels_each_an_effect_of_both_together_is_a_third_of_the_variance():
    log = np.array([[0.0, 0.0], [0.0, 1.0]])  # variance 3/16; what row + column leaves is ± 1/4 everywhere
    found = interaction(np.exp(np.repeat(log[..., None], 8, axis=-1)), np.ones((2, 2), bool))
    assert found.share == pytest.approx(1 / 3) and found.interval == pytest.approx((1 / 3, 1 / 3))
    assert found.factor == pytest.approx(np.exp(1 / 4)) and found.cells == 4


def test_an_additive_surface_shows_no_interaction_whatever_the_noise():
    assert interaction(surface(0.0, 0.0), ALL).share < 1e-12
    found = [interaction(surface(1.0, 0.0, seed), ALL) for seed in range(40)]
    assert abs(np.mean([x.share for x in found])) < 0.005
    assert np.mean([x.with_noise for x in found]) > 0.015  # what noise alone would have shown
    assert np.mean([x.interval[0] <= 0 <= x.interval[1] for x in found]) > 0.85


def test_a_planted_interaction_is_found_with_its_share_and_size():
    exactly = interaction(surface(0.0, 1.0), ALL)
    product = np.outer(LEVELS, LEVELS)
    additive = LEVELS[:, None] + 2 * LEVELS[None] ** 2
    assert exactly.share == pytest.approx(product.var() / (product.var() + additive.var()))
    assert exactly.factor == pytest.approx(np.exp(product.std()))
    found = [interaction(surface(1.0, 1.0, seed), ALL) for seed in range(40)]
    assert abs(np.mean([x.share for x in found]) - exactly.share) < 0.01
    assert np.mean([x.interval[0] <= exactly.share <= x.interval[1] for x in found]) > 0.85
    assert all(x.interval[0] > 0 for x in found)


def test_cells_that_are_left_out_change_nothing():
    gap, keep = surface(0.0, 0.0), ALL.copy()
    keep[3:, 4] = keep[0, 0] = False
    gap[~keep] = 1e6
    assert interaction(gap, keep).share < 1e-12
    assert interaction(gap, keep).cells == 22
    assert interaction(gap, ALL).share > 0.1
