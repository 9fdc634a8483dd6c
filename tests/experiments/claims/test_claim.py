"""The rule by which claims hold."""

import numpy as np
import pytest

from experiments.claims.claim import INF, Claim, Margin, Measurement, Number, exponent, judge, together
from experiments.claims.page import write_page
from experiments.claims.results import describe, format_table
from experiments.statistics.rates import power_law


def claim(**margins):
    margins = {name: Margin(*ends) for name, ends in margins.items()}
    return Claim("A < B & C.", "a paper", "one", (0.1, 0.2), None, None, margins=margins)


@pytest.mark.parametrize(
    ("interval", "margin", "expected"),
    [
        ((0.97, 1.02), (0.95, 1.05), "holds"),
        ((0.94, 1.02), (0.95, 1.05), "not decided"),
        ((0.90, 0.94), (0.95, 1.05), "fails"),
        ((1.06, 1.10), (0.95, 1.05), "fails"),
        ((0.3, 9.0), (2 / 7, INF), "holds"),
        ((0.1, 0.2), (2 / 7, INF), "fails"),
        ((float("nan"), 1.0), (0.95, 1.05), "not decided"),
        ((1.0, float("nan")), (0.95, 1.05), "not decided"),
    ],
)
def test_a_number_holds_inside_its_margin_and_fails_outside(interval, margin, expected):
    one = claim(x=margin)
    assert judge(one, {"x": Number(1.0, *interval), "y": Number(0, 0, 0)}) == {"x": expected}
    assert judge(one, {"x": Number(1.0, *interval, "too few seeds")}) == {"x": "not decided"}


def test_an_exponent_names_its_range_and_holds_only_if_its_last_levels_clear_the_margin(tmp_path):
    budgets, rng = 4.0 ** np.arange(7), np.random.default_rng(0)
    law = power_law(budgets, budgets[:, None] ** -0.6 * rng.lognormal(0, 0.7, (7, 64)), floor=False)
    fits = {"law": law, "stalls": law._replace(tail=(0.1, 0.5))}
    numbers = {name: exponent(fit, "samples") for name, fit in fits.items()}
    one = claim(law=(2 / 7, INF), stalls=(2 / 7, INF))
    assert judge(one, numbers) == {"law": "holds", "stalls": "not decided"}
    found = describe(one, Measurement(numbers, {})) | {"seconds": 1.0, "quick": False, "figure": ""}
    assert found["numbers"]["law"]["over"] == "from 1 to 4.1e+03 samples" and found["numbers"]["law"]["tail"][0] > 2 / 7
    page = write_page(tmp_path, {"P0.one": found}).read_text()
    for said in (format_table({"P0.one": found}), page):
        assert said.count("from 1 to 4.1e+03 samples; at the last levels [") == 2


def test_a_claim_holds_if_all_its_numbers_do():
    assert together({}) == "reported"
    assert together({"x": "holds", "y": "holds"}) == "holds"
    assert together({"x": "holds", "y": "not decided"}) == "not decided"
    assert together({"x": "not decided", "y": "fails", "z": "holds"}) == "fails"


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ((0.05, 0.001, 0.25), "refuted"),
        ((1.0, 0.83, 1.0), "refuted"),
        ((0.0, 0.0, 0.17), "not refuted"),
        ((float("nan"), float("nan"), float("nan")), "not refuted"),
        ((1.0, 0.83, 1.0, "by hand"), "not refuted"),
    ],
)
def test_an_assumption_is_refuted_where_the_share_of_instances_that_do_lies_above_0(share, expected):
    assumed = claim()._replace(refuting="share")
    numbers = {"share at w = 1": Number(*share), "share at w = 2": Number(0, 0, 0.1), "other": Number(1, 1, 1)}
    verdicts = judge(assumed, numbers)
    assert verdicts == {"share at w = 1": expected, "share at w = 2": "not refuted"}
    assert together(verdicts) == expected


@pytest.mark.parametrize("vague", [(float("nan"), 0.2, 0.4), (0.5, 0.6, 0.4), (INF, 0.2, 0.4)])
def test_no_number_or_no_interval_decides_nothing(vague):
    assert judge(claim(x=(0, 1)), {"x": Number(*vague)}) == {"x": "not decided"}


def test_a_number_that_was_not_measured_is_not_decided_and_what_was_is_kept():
    found = describe(claim(x=(0, 1)), Measurement({"y": Number(0, 0, 0)}, {}))
    assert found["verdict"] == found["numbers"]["x"]["verdict"] == "not decided"
    assert found["numbers"]["x"]["undecided"] == "not measured" and found["numbers"]["y"]["center"] == 0
