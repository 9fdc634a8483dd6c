"""P1.sensitivity at small sizes: the grids' points, the base point run again, what a search spends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims.claim import Budget
from experiments.claims.p1 import base_point, sensitivity, tuning, two_states
from experiments.claims.p1.two_states import EXACT, Counts, Numbers

SMALL = sensitivity.Sizes(
    epsilon=1.0,
    factors=(0.2, 1.0, 1000.0),
    counts={"num_policy_steps": (2,), "num_transitions": (64,), "batch_size": (16,), "num_targets": (2,)},
    num_seeds=4,
    num_starts=8,
    ascent_steps=600,
    tuning=tuning.TuningSizes(repetitions=4, runs=6, candidates=9, pool=12, pool_seeds=2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return sensitivity.measure(Budget(False, tmp_path_factory.mktemp("kept")), SMALL)


def test_a_grid_moves_two_numbers_and_shares_its_points():
    _, base = base_point.base_point(0.4)
    points, index = sensitivity.grids(base, (0.5, 1.0, 2.0))
    assert len(points) == 1 + 5 * 2 + 10 * 4
    for pair, table in index.items():
        for place in np.ndindex(3, 3):
            expected = {name: getattr(base, name) * (0.5, 1.0, 2.0)[i] for name, i in zip(pair, place, strict=True)}
            assert points[table[place]] == base._replace(**expected)


def test_the_ratio_of_step_sizes_moves_the_proxy_alone():
    def after(ratio):
        numbers = Numbers(0.5, policy_step_size=0.1, proxy_step_ratio=ratio)
        algorithm = two_states.algorithm_1(EXACT, Counts(1, 1, 2, 16), numbers, 3.0)
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
    assert tuning.agreement(np.array([4.0, 3.0, 2.0, np.nan]), gap).center == pytest.approx(1)
    assert tuning.agreement(np.array([np.nan, 2.0, 3.0, 4.0]), gap).center == pytest.approx(-1)
    middle, low, high = tuning.agreement(*np.random.default_rng(0).normal(size=(2, 200)))
    assert low < 0 < high and abs(middle) < 0.15


def test_the_base_point_run_again_has_the_same_gap_and_a_critic_that_blows_up_is_counted(data):
    assert np.all(np.isfinite(data.runs.gap)) and np.all(data.runs.gap > 0)
    found = sensitivity.judge(data)
    tables = {table.title: table.rows for table in found.tables}
    assert len(tables["Interactions"]) == 10
    _, base = base_point.base_point(SMALL.epsilon)
    (middle,) = (
        row
        for row in tables["Every point of the grids"]
        if all(row[symbol] == getattr(base, name) for name, symbol in sensitivity.AXES.items())
    )
    assert found.numbers["gap, K = 2"].center == pytest.approx(middle["gap"])
    # A critic with a thousand times the step size blows up; λ and φ with a fifth of it do not.
    _, index = sensitivity.grids(base, SMALL.factors)
    died = data.runs.diverged.sum(axis=1)[index["sigma", "critic_step_size"]]
    assert np.all(died[:, 2] == SMALL.num_seeds) and np.all(died[:, :2] == 0)


def test_tuning_spends_what_it_says_and_compares_on_equal_terms(data):
    found, sizes = data.tuning, SMALL.tuning
    assert {*found.gap} == {*found.samples} == {*tuning.ARMS}
    one_run = data.lines["num_policy_steps"].samples[0]
    assert found.samples[tuning.TUNED] <= 2 * sizes.runs * one_run
    assert 0.5 * found.samples[tuning.TUNED] < found.samples[tuning.SCHEDULE] <= found.samples[tuning.TUNED]
    assert np.all(found.chosen[tuning.GIVEN].sigma == tuning.GIVEN_SIGMA)
    assert len(set(found.chosen[tuning.TUNED].sigma)) > 1  # each repetition has candidates of its own


def test_the_figure_has_a_panel_for_every_pair_and_count_and_three_for_the_searches(data, tmp_path):
    figure = sensitivity.draw(data)
    titles = [panel.get_title() for panel in figure.axes]
    assert sum("interaction" in title for title in titles) == 10
    assert sum("alone" in title for title in titles) == 4
    assert sum("repetitions" in title or "searches" in title or "random" in title for title in titles) == 3
    figure.savefig(tmp_path / "drawn.png", dpi=30)
