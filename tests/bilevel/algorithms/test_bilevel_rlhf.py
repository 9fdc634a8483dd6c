"""Algorithm 1 climbs the oracle ladder: with exact gradients to the maximum of Φ up to O(σ), sampled to its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import ladder
from experiments.studies.ladder import RUNGS, SIGMAS, Sizes

SMALL = Sizes(num_seeds=4, num_steps=120, batch_size=32, num_policy_steps=10, ascent_steps=600)


@pytest.fixture(scope="module")
def climbed():
    """The small ladder: the direct ascent's optimum, and each rung's gap and distance [σ, seed, T]."""
    return ladder.study(SMALL)


def test_direct_ascent_finds_a_stationary_point_from_any_start(climbed):
    assert climbed.best_gradient < 1e-6
    with jax.enable_x64(True):
        mdp = ladder.instance()

        def ascend(start):
            def body(reward, _):
                return reward + 2.0 * jax.grad(lambda x: ladder.objective(mdp, x))(reward), None

            return ladder.objective(mdp, jax.lax.scan(body, start, length=150)[0])

        starts = jax.random.normal(jax.random.key(3), (4, *mdp.reward.shape))
        values = jax.jit(jax.vmap(ascend))(starts)
    np.testing.assert_allclose(values, climbed.best_value, atol=1e-6)


def test_with_exact_gradients_the_distance_to_the_maximum_over_sigma_is_constant(climbed):
    distance = climbed.distance[RUNGS[0]][:, 0, -1] / np.array(SIGMAS)
    assert np.max(distance) / np.min(distance) < 1.2
    gap = climbed.gap[RUNGS[0]][:, 0, -1]
    assert (np.abs(gap) < 1e-6).all()


def test_with_sampled_gradients_the_gap_falls_to_its_noise(climbed):
    for rung in RUNGS[1:]:
        gap = climbed.gap[rung][0]
        first, last = np.median(gap[:, 0]), np.median(gap[:, -20:])
        assert last < 0.05 * first
        assert last < 5e-3


def test_a_learned_critic_adds_little_to_sampling(climbed):
    learned, exact = (np.median(climbed.gap[rung][0][:, -40:]) for rung in (RUNGS[2], RUNGS[1]))
    assert learned < 3 * exact


def test_a_wrong_sign_in_line_seven_is_seen(monkeypatch):
    # Were the difference subtracted, the exact rung would end elsewhere: the check above can fail.
    honest = ladder.exact_gradients

    def flipped(*arguments):
        gradients = honest(*arguments)
        wrong = lambda *inputs: jax.tree.map(jnp.negative, gradients.return_difference(*inputs))  # noqa: E731
        return gradients._replace(return_difference=wrong)

    monkeypatch.setattr(ladder, "exact_gradients", flipped)
    with jax.enable_x64(True):
        mdp = ladder.instance()
        best, value, _ = ladder.direct_ascent(mdp, SMALL.ascent_steps)
        _, distance = ladder.climb(mdp, RUNGS[0], SMALL, best, value)
    over_sigma = distance[:, 0, -1] / np.array(SIGMAS)
    assert np.max(over_sigma) / np.min(over_sigma) > 1.2


def test_the_figure_shows_every_rung(climbed):
    figure = ladder.draw(climbed)
    labels = {line.get_label() for line in figure.axes[0].get_lines()}
    assert len(labels) == 5
    rows = ladder.summarise(climbed)["rungs"]
    assert {row["rung"] for row in rows} == set(RUNGS)
