"""Signs of failure in a seed: a collapse at once does not hide behind the jump that it makes."""

import numpy as np
import pytest

from experiments.report.signs import Goal, find_signs


@pytest.mark.parametrize("step", [50, 80, 94])
def test_a_seed_that_learns_and_then_collapses_at_once_ended_below_the_reference(step):
    rng = np.random.default_rng(0)
    score = 500 + rng.normal(size=(3, 100))
    score[1, step:] = 9 + rng.normal(size=100 - step)
    goal = Goal("true_score", "true score", reference=20.0, best=500.0)
    (sign,) = find_signs({"true_score": score}, np.zeros(3, bool), goal)
    assert sign.what.startswith("Ended below the reference policy") and sign.seeds.tolist() == [False, True, False]
