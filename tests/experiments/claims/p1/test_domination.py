"""P1.domination: stationary points that finite differences confirm, resumption, and verdicts on both kinds of instance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact
from bilevel.preferences import annotator, log_likelihood
from envs.tabular import garnet, tabular
from experiments.claims.claim import Budget
from experiments.claims.p1 import domination
from experiments.claims.p1.domination import LOWER_MAXIMUM, OBJECTIVES, PAPER, REFUTING, TABLE, Domination
from experiments.claims.p1.landscapes import GAP, below, lower_maxima
from experiments.claims.results import describe

SMALL = domination.Sizes(num_instances=4, kl_weights=(0.5, 20.0), num_points=8, num_starts=3, classes=(TABLE,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds what `data` kept."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def data(folder):
    return domination.measure(Budget(True, folder), SMALL)


def test_an_interrupted_claim_goes_on_from_the_objectives_that_are_kept(data, folder, tmp_path, monkeypatch):
    traced, kept = [], data.found[TABLE, PAPER]

    def planted(key, kl_weight, which, name, sizes):
        traced.append(name)
        return jax.tree.map(lambda x: jnp.asarray(x[0, 0]), kept)

    def stop(line):
        raise KeyboardInterrupt

    monkeypatch.setattr(domination, "searched", planted)
    with pytest.raises(KeyboardInterrupt):
        domination.measure(Budget(True, tmp_path, stop), SMALL)
    assert [path.stem for path in tmp_path.iterdir()] == [f"{TABLE}, {PAPER}"]
    (tmp_path / f"{TABLE}, {PAPER}.npz").write_bytes((folder / f"{TABLE}, {PAPER}.npz").read_bytes())  # is it read?
    both = [domination.measure(Budget(True, tmp_path), SMALL) for _ in range(2)]
    assert len(traced) == 2
    jax.tree.map(np.testing.assert_array_equal, *(x.found for x in both))
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(
        f"{TABLE}, {objective}" for objective in OBJECTIVES
    )
    jax.tree.map(np.testing.assert_array_equal, both[0].found[TABLE, PAPER], kept)
    again = domination.measure(Budget(True, folder), SMALL)
    jax.tree.map(np.testing.assert_array_equal, again.found, data.found)
    assert len(traced) == 2


def test_a_small_kl_weight_refutes_domination_by_points_that_finite_differences_confirm(data):
    of = jax.tree.map(lambda x: x[0], data.found[TABLE, PAPER])  # w = 0.5
    assert lower_maxima(of).any()
    checked = 0
    with jax.enable_x64(True):
        for i, key in enumerate(jax.random.split(jax.random.key(0), SMALL.num_instances)):
            value = functools.partial(independent_objective, key)
            found = [(of.ascents, lower_maxima(of)), (of.roots, domination.stationary_below(of))]
            for params in (params for ends, lower in found for params in ends.params[i][lower[i]]):
                moves = 1e-4 * np.eye(6)
                assert np.max(np.abs([(value(params + x) - value(params - x)) / 2e-4 for x in moves])) < 1e-7
                assert value(params) < of.best[i] - 1e-4
                checked += 1
    assert checked > 2


@jax.jit
def independent_objective(key, params):
    """Φ of a flat table by the exact oracles, without the landscape."""
    mdp = garnet(jax.random.split(key, 3)[0], 3, 2)
    segments = exact.enumerate_segments(3, 2, domination.LENGTH)
    comparisons = exact.exact_comparisons(annotator(tabular(mdp).reward, 0.9), segments)
    lower = exact.lower_level(mdp, params.reshape(3, 2), jnp.full((3, 2), 0.5), 0.9, SMALL.kl_weights[0])
    policy = exact.optimal_policy(lower).policy
    return exact.preference_objective(mdp, policy, lower.reward, segments, comparisons, log_likelihood, 0.9)


def test_a_large_kl_weight_leaves_one_maximum_where_the_class_holds_the_true_reward(data):
    # Policies then stay next to the reference, and the likelihood of a table is concave.
    for objective in (PAPER, "excess log-likelihood"):
        of = jax.tree.map(lambda x: x[1], data.found[TABLE, objective])
        assert not lower_maxima(of).any()
        assert not below(of.best, of.ascents).any()
        assert (of.domination > 1e-4).all()
    np.testing.assert_allclose(of.best, 0.0, atol=1e-9)  # the excess at the true reward


def test_the_table_tells_what_verifies_a_lower_maximum(data):
    found = domination.judge(data)
    ((_, rows),) = found.tables
    assert len(rows) == len(OBJECTIVES) * len(SMALL.kl_weights)
    assert (rows[0]["objective"], rows[0]["w"]) == (PAPER, 0.5)
    assert rows[0]["gap"] > GAP and rows[0]["‖∇Φ‖"] < 1e-10 and len(rows[0]["at φ"].split(", ")) == 6
    assert "gap" not in rows[1]
    number = found.numbers[f"{LOWER_MAXIMUM}, {PAPER}, table, w = 0.5"]
    assert number.center == rows[0][LOWER_MAXIMUM] and number.low <= number.center <= number.high
    assert domination.draw(data).axes[0].get_title() == PAPER


@pytest.mark.parametrize(("at", "expected"), [(0, "refuted"), (1, "not refuted")])  # w = 0.5, and one maximum
def test_the_assumption_is_refuted_where_stationary_points_lie_below_and_not_where_phi_has_one_maximum(
    data, at, expected
):
    alone = Domination(
        SMALL._replace(kl_weights=SMALL.kl_weights[at : at + 1]),
        {pair: jax.tree.map(lambda x: x[at : at + 1], found) for pair, found in data.found.items()},
    )
    found = domination.judge(alone)
    about = describe(domination.CLAIM, found)
    assert about["verdict"] == expected
    assert about["numbers"][f"{REFUTING}, {PAPER}, table, w = {SMALL.kl_weights[at]:g}"]["verdict"] == expected
    assert found.notes[0].startswith(f"{PAPER}: a stationary point below at {1 - at} of 1 pairs of class and w, on ")
