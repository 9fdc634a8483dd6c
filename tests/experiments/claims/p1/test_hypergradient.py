"""P1.hypergradient holds on a few instances, and fails with a factor of the policy's response left out."""

import functools

import numpy as np
import pytest

from experiments.claims.claim import judge, together
from experiments.claims.p1 import hypergradient
from experiments.claims.p1.hypergradient import CLAIM, DECIDING, QUICK, SMALL, UNROLLED, WAYS

quick = functools.cache(lambda: hypergradient.study(QUICK))  # a minute of compilation


@pytest.mark.slow
def test_the_claim_holds_on_twenty_instances():
    numbers = CLAIM.judge(hypergradient.study(hypergradient.FULL)).numbers
    assert together(judge(CLAIM, numbers)) == "holds"
    worst = [numbers[f"unrolled, K = {count}"].center for count in UNROLLED]
    assert worst[0] > 1e-3 > worst[1] > worst[2]


def test_the_claim_holds_on_a_few_instances_and_their_figure_shows_each():
    numbers = CLAIM.judge(quick()).numbers
    assert list(numbers) == [*WAYS, *SMALL.values()]
    assert set(judge(CLAIM, numbers).values()) == {"holds"}
    assert all(x.center > 0 for x in numbers.values())  # two programs agree to rounding, not to the bit
    instances = CLAIM.draw(quick()).axes[0].get_lines()[: len(numbers)]
    assert [len(line.get_xdata()) for line in instances] == [5] * len(numbers)


def without(found, factor):
    """The same estimates with a factor left out of the policy's response; `factor`: estimates -> [instance]."""

    def scaled(many):
        left = factor(many)[:, None]
        ways = {name: parts._replace(implicit=parts.implicit / left) for name, parts in many.ways.items()}
        return many._replace(ways=ways)

    return found._replace(usual=scaled(found.usual), smaller=scaled(found.smaller))


@pytest.mark.parametrize("factor", [lambda x: 1 / x.kl_weight, lambda x: x.length], ids=["1/w", "H"])
def test_a_factor_left_out_fails_whichever_way_is_taken(factor):
    verdicts = judge(CLAIM, CLAIM.judge(without(quick(), factor)).numbers)
    assert verdicts == dict.fromkeys(DECIDING, "fails")
    assert together(verdicts) == "fails"


def test_the_unrolled_ascent_gets_there_in_its_limit_alone():
    found = hypergradient.misses(quick())
    worst = [np.max(found[f"unrolled, K = {count}"]) for count in UNROLLED]
    assert worst[0] > 1e-7 > 1e-8 > worst[2] and worst[0] > 10 * worst[1]
