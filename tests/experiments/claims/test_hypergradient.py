"""P1.hypergradient holds on a few instances, and fails with a factor of the policy's response left out."""

import numpy as np
import pytest

from experiments.verify.claims import Budget, judge, together
from experiments.verify.p1_hypergradient import CLAIM, DECIDING, SHAPES, UNROLLED, draw, errors, measure


@pytest.mark.slow
def test_the_claim_holds_on_twenty_instances(tmp_path):
    numbers = CLAIM.measure(Budget(quick=False, folder=tmp_path)).numbers
    assert together(judge(CLAIM, numbers)) == "holds"
    worst = [numbers[f"unrolled, K = {count}"].center for count in UNROLLED]
    assert worst[0] > 1e-3 > worst[1] > worst[2]


def test_the_claim_holds_on_a_few_instances_and_their_figure_shows_each(tmp_path):
    measured = CLAIM.measure(Budget(quick=True, folder=tmp_path))
    assert set(judge(CLAIM, measured.numbers).values()) == {"holds"}
    assert all(x.center > 0 for x in measured.numbers.values())  # two programs agree to rounding, not to the bit
    instances = measured.figure.axes[0].get_lines()[: len(measured.numbers)]
    assert [len(line.get_xdata()) for line in instances] == [5] * len(measured.numbers)


@pytest.mark.parametrize("planted", ["1/w", "H"])
def test_a_factor_left_out_fails_whichever_way_is_taken(planted, tmp_path):
    verdicts = judge(CLAIM, measure(Budget(quick=True, folder=tmp_path), planted).numbers)
    assert verdicts == dict.fromkeys(DECIDING, "fails")
    assert together(verdicts) == "fails"


def test_the_unrolled_ascent_gets_there_in_its_limit_alone():
    found = errors(5, shapes=SHAPES[:1])
    worst = [np.max(found[f"unrolled, K = {count}"]) for count in UNROLLED]
    assert worst[0] > 1e-7 > 1e-8 > worst[2] and worst[0] > 10 * worst[1]
    draw(found)
