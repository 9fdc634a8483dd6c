"""P1.hypergradients at small sizes: which are biased, what sampling costs, and where their ascents end."""

import numpy as np
import pytest

from experiments.claims.claim import Budget
from experiments.claims.p1 import hypergradients
from experiments.claims.p1.hypergradient_ways import KL_WEIGHTS, SIGMAS, Sizes

pytestmark = pytest.mark.slow  # over twenty programs; test_hypergradients.py has the ways themselves

SMALL = Sizes(
    num_instances=4,
    num_ascents=2,
    policy_steps=(10, 300),
    unrolled_steps=(10, 300),
    num_batches=200,
    batch_size=16,
    rollout_length=20,
    outer_steps=60,
    inner_steps=10,
    repeats=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return hypergradients.measure(Budget(True, tmp_path_factory.mktemp("hypergradients")), SMALL)


@pytest.fixture(scope="module")
def ways(data):
    return data.ways


def test_at_the_optimum_closed_form_and_implicit_are_exact_and_the_naive_is_not(ways):
    for name in ("closed form", "implicit, CG", "implicit, dense"):
        assert np.max(ways[name].error[:, -1]) < 1e-8
    assert np.max(ways["implicit, CG"].residual[:, -1]) < 1e-8
    assert np.min(ways["naive"].error[:, -1]) > 1e-3


def test_the_proxy_s_error_falls_like_sigma(ways):
    errors = [ways[f"proxy, σ = {sigma}"].error[:, -1] for sigma in SIGMAS]
    slopes = np.log(errors[1] / errors[2]) / np.log(SIGMAS[1] / SIGMAS[2])
    np.testing.assert_allclose(slopes, 1.0, atol=0.2)


def test_more_inner_steps_lead_every_way_but_the_naive_closer(ways):
    for name in (name for name, x in ways.items() if x.error is not None and name != "naive"):
        middle = np.median(ways[name].error, axis=-1)  # [W, K′]
        assert np.all(middle[:, -1] <= middle[:, 0]), name
    short, long = (ways[f"unrolled, K = {count}"].error[:, 0] for count in SMALL.unrolled_steps)
    assert np.all(long < short)


def test_independent_rollouts_take_ever_more_transitions_and_weighted_ones_do_not(ways):
    high, _, low = (ways[f"proxy, σ = {sigma}, independent"].transitions for sigma in SIGMAS)
    assert np.all(low > 20 * high)
    high, _, low = (ways[f"proxy, σ = {sigma}, weighted"].transitions for sigma in SIGMAS)
    assert np.all(low < 2 * high)


def test_ascents_along_what_is_exact_end_where_the_exact_ascent_does_and_the_naive_below(ways):
    for name in ("closed form", "implicit, CG"):
        assert np.all(np.abs(ways[name].gap) < 0.5 * np.abs(ways["naive"].gap))
    assert np.max(ways["naive"].gap) < -1e-3
    assert np.all(np.isfinite([x.gap for x in ways.values() if x.gap is not None]))


def test_every_way_has_its_numbers_and_the_figure_is_drawn(data, tmp_path):
    measured = hypergradients.judge(data)
    (table,) = measured.tables
    assert [row["way"] for row in table.rows[:: len(KL_WEIGHTS)]] == list(data.ways)
    closed = next(row for row in table.rows if row["way"] == "closed form")
    assert closed["gradients"] == 2
    assert {"bias, K′ = 10", "bias, K′ = 300"} < closed.keys()
    transitions = measured.numbers["transitions, closed form, w = 0.5"]
    assert transitions.low <= transitions.center <= transitions.high
    hypergradients.draw(data).savefig(tmp_path / "hypergradients.png", dpi=40)
    assert (tmp_path / "hypergradients.png").stat().st_size > 10_000
