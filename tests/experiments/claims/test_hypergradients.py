"""The study of hypergradients at small sizes: which are biased, what sampling costs, and where their ascents end."""

import json

import numpy as np
import pytest

from experiments.studies import hypergradients
from experiments.studies.hypergradients import KL_WEIGHTS, SIGMAS, Sizes

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
def result():
    return hypergradients.study(SMALL)


def test_at_the_optimum_closed_form_and_implicit_are_exact_and_the_naive_is_not(result):
    for name in ("closed form", "implicit, CG", "implicit, dense"):
        assert np.max(result.error[name][:, -1]) < 1e-8
    assert np.max(result.residual["implicit, CG"][:, -1]) < 1e-8
    assert np.min(result.error["naive"][:, -1]) > 1e-3


def test_the_proxy_s_error_falls_like_sigma(result):
    errors = [result.error[f"proxy, σ = {sigma}"][:, -1] for sigma in SIGMAS]
    slopes = np.log(errors[1] / errors[2]) / np.log(SIGMAS[1] / SIGMAS[2])
    np.testing.assert_allclose(slopes, 1.0, atol=0.2)


def test_more_inner_steps_lead_every_way_but_the_naive_closer(result):
    for name in result.error.keys() - {"naive"}:
        middle = np.median(result.error[name], axis=-1)  # [W, K′]
        assert np.all(middle[:, -1] <= middle[:, 0]), name
    short, long = (result.error[f"unrolled, K = {count}"][:, 0] for count in SMALL.unrolled_steps)
    assert np.all(long < short)


def test_independent_rollouts_take_ever_more_transitions_and_weighted_ones_do_not(result):
    high, _, low = (result.transitions[f"proxy, σ = {sigma}, independent"] for sigma in SIGMAS)
    assert np.all(low > 20 * high)
    high, _, low = (result.transitions[f"proxy, σ = {sigma}, weighted"] for sigma in SIGMAS)
    assert np.all(low < 2 * high)


def test_ascents_along_what_is_exact_end_where_the_exact_ascent_does_and_the_naive_below(result):
    for name in ("closed form", "implicit, CG"):
        assert np.all(np.abs(result.gap[name]) < 0.5 * np.abs(result.gap["naive"]))
    assert np.max(result.gap["naive"]) < -1e-3
    assert np.all(np.isfinite(list(result.gap.values())))


def test_numbers_and_figure_are_written(result, tmp_path):
    rows = json.loads(json.dumps(hypergradients.summarise(result, SMALL)))
    assert [row["way"] for row in rows[:: len(KL_WEIGHTS)]] == list(result.error | result.transitions)
    closed = next(row for row in rows if row["way"] == "closed form")
    assert closed["gradient_evaluations"] == 2
    assert closed["relative_error"].keys() == {"10", "300", "optimal"}
    center, low, high = closed["transitions"]
    assert low <= center <= high
    lines = []
    hypergradients.tell(rows, SMALL, lines.append)
    assert len(lines) == 1 + len(rows)
    hypergradients.draw(result, SMALL).savefig(tmp_path / "hypergradients.png", dpi=40)
    assert (tmp_path / "hypergradients.png").stat().st_size > 10_000
