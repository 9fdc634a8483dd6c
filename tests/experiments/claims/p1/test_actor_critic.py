"""P1.actor_critic: its schedule's cost, verdicts on planted exponents, and what its figure shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_gaps import SAMPLES, planted

from bilevel import exact
from experiments.claims.claim import Budget, judge, together
from experiments.claims.p1 import actor_critic, two_states
from experiments.claims.p1.actor_critic import ActorCritic


def test_the_schedule_costs_what_the_theorem_counts():
    def cost(epsilon):
        counts = actor_critic.schedule(epsilon)
        return counts.num_policy_steps * actor_critic.gradients_of(counts).return_cost.transitions

    assert np.log(cost(1e-2) / cost(4e-2)) / np.log(4) == pytest.approx(3.0, abs=0.25)  # rollouts of B lag behind
    epsilons = actor_critic.FULL.epsilons
    assert 2.6 < -np.polyfit(np.log(epsilons), np.log([cost(x) for x in epsilons]), 1)[0] < 3.5


def ladder_of(gap: np.ndarray, samples=SAMPLES) -> ActorCritic:
    return ActorCritic(np.array(actor_critic.FULL.epsilons[: len(samples)]), samples, gap, 0.13)


@pytest.mark.parametrize(
    ("exponent", "num_seeds", "wrong"), [(0.6, 64, ()), (0.1, 64, ()), (0.1, 6, ("holds",)), (0.6, 6, ("fails",))]
)
def test_a_planted_exponent_decides_the_rate(exponent, num_seeds, wrong):
    found = actor_critic.judge(ladder_of(planted(exponent, SAMPLES, 0.01, num_seeds, 0.5, 0)))
    verdict = together(judge(actor_critic.CLAIM, found.numbers))
    if wrong:
        assert verdict not in wrong
    else:
        assert verdict == ("holds" if exponent > actor_critic.EXPONENT else "fails")


def test_a_run_without_a_gap_is_drawn_all_the_same(tmp_path):
    gap = np.ones((5, 8))
    gap[:, 0] = np.nan
    data = ladder_of(gap, 10.0 ** np.arange(5))
    actor_critic.draw(data).savefig(tmp_path / "drawn.png")
    assert actor_critic.judge(data).numbers["J* − J at the last ε"].undecided == "runs without a gap are left out"


def test_error_bars_are_the_bootstraps_and_epsilon_and_the_start_are_in_the_figure():
    gap = np.random.default_rng(0).lognormal(-12, 2.5, (5, 24))  # whose standard error is about the mean
    data = ladder_of(gap, 10.0 ** np.arange(3, 8))
    figure = actor_critic.draw(data)
    (panel,) = figure.axes
    (bars,) = (x for x in panel.containers if "actor" in x.get_label())
    drawn = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    mean, low, high = two_states.means(gap)
    np.testing.assert_allclose(drawn, np.stack([low, high], axis=-1))
    assert (low > 0).all() and np.sum(high - mean) > 1.05 * np.sum(mean - low)
    texts = {text.get_text() for text in panel.texts}
    assert texts == {f"{epsilon:.2g}" for epsilon in data.epsilons}
    assert any("gap at the start, 0.13" in text.get_text() for text in panel.get_legend().get_texts())
    figure.draw_without_rendering()
    legend = panel.get_legend().get_window_extent()
    assert (
        legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0 and legend.y1 <= panel.get_window_extent().y0
    )


def test_a_policy_is_judged_by_the_exact_gap_and_a_level_is_computed_once(tmp_path, monkeypatch):
    with jax.enable_x64(True):
        mdp = two_states.instance()
        lower = exact.lower_level(mdp, mdp.reward, jnp.full((2, 2), 0.5), two_states.DISCOUNT, actor_critic.KL_WEIGHT)
        best = np.log(np.asarray(exact.optimal_policy(lower).policy))
    assert abs(actor_critic.suboptimality(best[None])[0]) < 1e-12
    sizes = actor_critic.Sizes((1.0,), 4)
    first = actor_critic.measure(Budget(True, tmp_path), sizes)
    assert first.start == pytest.approx(actor_critic.suboptimality(np.zeros((1, 2, 2)))[0])
    assert first.gap.shape == (1, 4) and (first.gap > 0).all() and (first.gap < first.start / 10).all()
    monkeypatch.setattr(actor_critic, "improve", lambda *args: pytest.fail("everything is there already"))
    again = actor_critic.measure(Budget(True, tmp_path), sizes)
    np.testing.assert_array_equal(again.gap, first.gap)
