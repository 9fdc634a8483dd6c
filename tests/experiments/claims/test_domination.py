"""The study of the domination assumption: what it keeps, finds and writes, its stationary points by finite differences."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import near
from experiments.studies import domination
from experiments.verify import p1_domination
from experiments.verify.claims import Budget
from experiments.verify.runner import describe

from bilevel.exact.bilevel import exact_bilevel, tabular_problem
from bilevel.types import Coefficients
from envs.tabular import garnet

PAPER = "log-likelihood (the paper's)"
SMALL = domination.Sizes(num_instances=4, kl_weights=(0.5, 20.0), num_points=8, num_starts=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds what `found` kept."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def found(folder):
    return domination.study(SMALL, names=(domination.TABLE,), keep=folder)


def test_an_interrupted_claim_goes_on_from_the_objectives_that_are_kept(found, folder, tmp_path, monkeypatch):
    traced, ours = [], found[domination.TABLE]

    def planted(key, kl_weight, which, name, sizes):
        traced.append(name)
        return jax.tree.map(lambda x: jnp.asarray(x[0, 0, 0]), ours)

    def stop(line):
        raise KeyboardInterrupt

    monkeypatch.setattr(domination, "measure", planted)
    with pytest.raises(KeyboardInterrupt):
        p1_domination.measure(Budget(True, tmp_path, stop), SMALL)
    assert [path.stem for path in tmp_path.iterdir()] == [f"{domination.TABLE}, {PAPER}"]
    shutil.copy(folder / f"{domination.TABLE}, {PAPER}.npz", tmp_path)  # to tell whether it is read
    both = [p1_domination.measure(Budget(True, tmp_path), SMALL) for _ in range(2)]
    assert both[0].numbers == both[1].numbers and len(traced) == 2
    names = [f"{domination.TABLE}, {objective}" for objective in domination.OBJECTIVES]
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
    ((_, mixed),) = domination.study(SMALL, names=(domination.TABLE,), keep=tmp_path).items()
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), mixed, ours)
    ((_, again),) = domination.study(SMALL, names=(domination.TABLE,), keep=folder).items()
    jax.tree.map(np.testing.assert_array_equal, again, ours)
    assert len(traced) == 2


def test_a_small_kl_weight_refutes_domination_by_points_that_finite_differences_confirm(found):
    of = jax.tree.map(lambda x: x[0, 0], found[domination.TABLE])  # the paper's objective, w = 0.5
    assert domination.lower_maxima(of).any()
    checked = 0
    with jax.enable_x64(True):
        for i, key in enumerate(jax.random.split(jax.random.key(0), SMALL.num_instances)):
            value = functools.partial(independent_objective, key)
            ours = [(of.ascents, domination.lower_maxima(of)), (of.roots, domination.stationary_below(of))]
            for params in (params for ends, below in ours for params in ends.params[i][below[i]]):
                moves = 1e-4 * np.eye(6)
                assert np.max(np.abs([(value(params + x) - value(params - x)) / 2e-4 for x in moves])) < 1e-7
                assert value(params) < of.best[i] - 1e-4
                checked += 1
    assert checked > 2


@jax.jit
def independent_objective(key, params):
    """Φ of a flat table by the exact oracles, without the landscape."""
    mdp, coefficients = garnet(jax.random.split(key, 3)[0], 3, 2), Coefficients(0.9, SMALL.kl_weights[0])
    problem = tabular_problem(mdp, coefficients)
    return exact_bilevel(problem, mdp, domination.LENGTH, coefficients).value(params.reshape(3, 2))


def test_a_large_kl_weight_leaves_one_maximum_where_the_class_holds_the_true_reward(found):
    # Policies then stay next to the reference, and the likelihood of a table is concave.
    of = jax.tree.map(lambda x: x[:2, 1], found[domination.TABLE])
    assert not domination.lower_maxima(of).any()
    assert not domination.below(of, of.ascents).any()
    assert (of.domination > 1e-4).all()
    near(of.best[1], 0.0)  # the excess at the true reward


def test_intervals_of_shares_are_those_of_clopper_and_pearson():
    events = np.arange(10) < np.array([[0], [3], [10]])
    center, low, high, _ = domination.share(events)
    near(center, [0.0, 0.3, 1.0])
    near(low, [0.0, 0.06673951, 0.025**0.1], 1e-6)
    near(high, [1 - 0.025**0.1, 0.65245285, 1.0], 1e-6)


def test_numbers_and_figure_are_written_and_the_claim_names_them(found, tmp_path, monkeypatch):
    lines = []
    domination.report(found, SMALL, tmp_path, lines.append)
    rows = json.loads((tmp_path / "domination.json").read_text())
    assert len(rows) == len(domination.OBJECTIVES) * len(SMALL.kl_weights) == len(lines) - 2
    assert (rows[0]["objective"], rows[0]["kl_weight"]) == (PAPER, 0.5)
    assert rows[0]["certificate"]["gap"] > domination.GAP
    assert rows[1]["certificate"] is None
    assert (tmp_path / "domination.png").stat().st_size > 10_000

    monkeypatch.setattr(domination, "study", lambda *args: found)
    numbers = p1_domination.measure(Budget(True, tmp_path), SMALL).numbers
    ours = numbers[f"share with a lower maximum, {PAPER}, table, w = 0.5"]
    assert (ours.center, ours.low, ours.high) == tuple(rows[0]["lower_maximum"])
    assert ours.low <= ours.center <= ours.high


@pytest.mark.parametrize(("at", "expected"), [(0, "refuted"), (1, "not refuted")])  # w = 0.5, and one maximum
def test_the_assumption_is_refuted_where_stationary_points_lie_below_and_not_where_phi_has_one_maximum(
    found, at, expected, tmp_path, monkeypatch
):
    sizes = SMALL._replace(kl_weights=SMALL.kl_weights[at : at + 1])
    ours = jax.tree.map(lambda x: x[:, at : at + 1], found)
    monkeypatch.setattr(domination, "study", lambda *args: ours)
    measured = p1_domination.measure(Budget(True, tmp_path), sizes)
    about = describe(p1_domination.CLAIM, measured)
    assert about["verdict"] == expected
    name = f"{p1_domination.REFUTING}, {PAPER}, table, w = {sizes.kl_weights[0]:g}"
    assert about["numbers"][name]["verdict"] == expected
    assert measured.notes[0].startswith(f"{PAPER}: a stationary point below at {1 - at} of 1 pairs of class and w, on ")
