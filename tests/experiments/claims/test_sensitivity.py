"""Interactions: planted ones are found, additive surfaces and noise show none; the study at small sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf
from bilevel.gradients.exact import exact_gradients
from bilevel.types import Hyper
from experiments.statistics.interaction import interaction
from experiments.studies import around, complexity, sensitivity, tuning

LEVELS = np.linspace(-1, 1, 5)
ALL = np.ones((5, 5), bool)


def surface(noise: float, strength: float, seed: int = 0) -> np.ndarray:
    """Gaps [row, column, seed]: additive in the log, but for `strength` times a product; noise shared and of its own."""
    rng = np.random.default_rng(seed)
    log = LEVELS[:, None] + 2 * LEVELS[None] ** 2 + strength * np.outer(LEVELS, LEVELS)
    return np.exp(log[..., None] + noise * (rng.normal(size=24) + rng.normal(size=(5, 5, 24))))


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


def test_a_grid_moves_two_numbers_and_shares_its_points():
    _, base = around.base_point(0.4)
    found = sensitivity.grids(base, (0.5, 1.0, 2.0))
    assert len(found.points.sigma) == 1 + 5 * 2 + 10 * 4
    for pair, index in found.index.items():
        for place in np.ndindex(3, 3):
            point = Hyper(*(x[index[place]] for x in found.points))
            expected = {name: getattr(base, name) * (0.5, 1.0, 2.0)[i] for name, i in zip(pair, place, strict=True)}
            assert point == base._replace(**expected)


def test_the_ratio_of_step_sizes_moves_the_proxy_alone():
    def after(ratio):
        mdp, hyper = complexity.instance(), Hyper(0.5, 3.0, 0.8, policy_step_size=0.1, proxy_step_ratio=ratio)
        ours = complexity.problem(mdp, hyper)
        algorithm = bilevel_rlhf(ours, exact_gradients(ours, mdp, 2, hyper), BilevelConfig(1), hyper)
        key = jax.random.key(0)
        first = algorithm.init(key)
        return algorithm.step(key, first)[0].lower.params - first.lower.params

    moves = jax.jit(jax.vmap(after))(jnp.array([1e-6, 1.0, 2.0]))  # [ratio, λ or λ′, S, A]
    np.testing.assert_allclose(moves[:, 0], moves[[1, 1, 1], 0], rtol=1e-6)
    assert np.abs(moves[0, 1]).max() < 1e-6
    np.testing.assert_allclose(moves[2, 1], 2 * moves[1, 1], rtol=1e-5)
    assert np.abs(moves[1]).max() > 1e-3


def test_rank_correlation_counts_a_diverged_run_as_the_worst():
    gap = np.array([0.1, 0.2, 0.3, 5.0])
    assert tuning.agreement(np.array([4.0, 3.0, 2.0, np.nan]), gap)[0] == pytest.approx(1)
    assert tuning.agreement(np.array([np.nan, 2.0, 3.0, 4.0]), gap)[0] == pytest.approx(-1)
    random = np.random.default_rng(0).normal(size=(2, 200))
    middle, low, high = tuning.agreement(*random)
    assert low < 0 < high and abs(middle) < 0.15


SMALL = sensitivity.Sizes(
    epsilon=1.0,
    factors=(0.2, 1.0, 1000.0),
    counts={"num_policy_steps": (2,), "num_transitions": (64,), "batch_size": (16,), "num_targets": (2,)},
    num_seeds=4,
    ascents=complexity.Sizes(num_starts=8, ascent_steps=1000),
)
SMALL_TUNING = tuning.Sizes(epsilon=1.0, repetitions=4, runs=6, candidates=9, pool=12, pool_seeds=2)


@pytest.fixture(scope="module")
def result():
    return sensitivity.study(SMALL)


def test_the_study_writes_what_it_measured(result, tmp_path):
    assert np.all(np.isfinite(result.runs.gap)) and np.all(result.runs.gap > 0)
    summary = sensitivity.summarise(result)
    json.dumps(summary, allow_nan=False)
    assert len(summary["grids"]) == len(summary["interactions"]) == 10
    middle = summary["grids"]["sigma × reward_step_size"]["gap"][1][1]
    assert summary["lines"]["num_policy_steps"]["gap"] == [pytest.approx(middle)]  # the base point, run again
    # A critic with a thousand times the step size blows up; λ and φ with a fifth of it do not.
    died = np.array(summary["grids"]["sigma × critic_step_size"]["diverged"])
    assert np.all(died[:, 2] == SMALL.num_seeds) and np.all(died[:, :2] == 0)
    sensitivity.draw(result).savefig(tmp_path / "sensitivity.png")


def test_tuning_spends_what_it_says_and_compares_on_equal_terms(result, tmp_path):
    found = tuning.study(result.best, result.counts, result.grids.points, result.runs, SMALL_TUNING)
    assert set(found.gap) == set(found.samples) and len(found.gap) == 6
    one_run = result.lines["num_policy_steps"].samples[0]
    assert found.samples[tuning.TUNED] <= 2 * SMALL_TUNING.runs * one_run
    assert 0.5 * found.samples[tuning.TUNED] < found.samples[tuning.SCHEDULE] <= found.samples[tuning.TUNED]
    assert np.all(found.chosen[tuning.GIVEN]["sigma"] == tuning.GIVEN_SIGMA)
    assert len(set(found.chosen[tuning.TUNED]["sigma"])) > 1  # each repetition has candidates of its own
    tuning.report(found, tmp_path, lambda line: None)
    assert (tmp_path / "tuning.png").exists()
    assert json.loads((tmp_path / "tuning.json").read_text())["arms"][tuning.SCHEDULE]["samples"]
