"""Φ to second order, searches and meters against closed forms, finite differences and planted violations; the study."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact, models
from bilevel.exact import landscape, meters
from bilevel.preferences import annotator, excess_brier, log_likelihood
from bilevel.types import Hyper, Problem
from envs.base import MDP
from envs.tabular import garnet, tabular
from experiments.studies import domination
from experiments.verify import p1_domination
from experiments.verify.claims import Budget
from experiments.verify.runner import describe

PAPER = "log-likelihood (the paper's)"
SMALL = domination.Sizes(num_instances=4, kl_weights=(0.5, 20.0), num_points=8, num_starts=3)


def close(value, expected, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=tolerance, atol=tolerance)


def two_arms(reward, kl_weight=0.5):
    """One state, two actions, γ = 0, a uniform reference."""
    mdp = MDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.asarray(reward).reshape(1, 2))
    return exact.lower_level(mdp, mdp.reward, jnp.full((1, 2), 0.5), 0.0, kl_weight)


def problem_of(mdp, reward, reference=None):
    world = tabular(mdp)
    reference = models.uniform_reference(world.env) if reference is None else models.given_reference(reference)
    policy = models.table_policy(*mdp.reward.shape)
    return Problem(world.env, annotator(world.reward, 0.9, skip_below=-0.5), reward, policy, reference)


# Φ to second order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [log_likelihood, excess_brier])
def test_the_closed_form_agrees_with_the_oracles_and_their_differences(objective, x64):
    # Nothing symmetric: a reference that is not uniform, a learner of another rationality, an annotator who skips.
    mdp, hyper = garnet(jax.random.key(0), 3, 2), Hyper(kl_weight=0.4, discount=0.9, rationality=1.3)
    prior = jnp.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    problem = problem_of(mdp, models.table(3, 2), prior)
    segments = exact.enumerate_segments(3, 2, 2)
    comparisons = exact.exact_comparisons(problem.annotate, segments)
    assert jnp.any(comparisons.weight == 0)

    def oracle(reward):
        policy = exact.optimal_policy(exact.lower_level(mdp, reward, prior, 0.9, 0.4)).policy
        return exact.preference_objective(mdp, policy, reward, segments, comparisons, objective, 0.9, 1.3)

    reward = jax.random.normal(jax.random.key(1), (3, 2))
    at = jax.jit(landscape.landscape(problem, mdp, 2, hyper, objective).upper)(reward)
    both = jax.jit(jax.value_and_grad(oracle))
    value, gradient = both(reward)
    close(at.value, value)
    close(at.gradient, gradient.ravel())
    moves = 1e-5 * np.eye(6).reshape(6, 3, 2)
    close(at.hessian, [(both(reward + x)[1] - both(reward - x)[1]).ravel() / 2e-5 for x in moves], 1e-7)
    assert np.abs(at.hessian).max() > 0.05


def planted(function, size):
    """A landscape of the "rewards" [1, size] of a bandit with a table: any function of them."""

    def upper(reward):
        flat = reward.ravel()
        return landscape.Expansion(function(flat), jax.grad(function)(flat), jax.hessian(function)(flat))

    return landscape.Landscape(lambda params: params.reshape(1, size), two_arms, upper)


def test_an_expansion_is_the_chain_rule_to_second_order(x64):
    outer = lambda x: jnp.sum(jnp.sin(x) * x[0])  # noqa: E731
    inner = lambda params: jnp.stack([params**2, jnp.exp(params) * params[0]])  # noqa: E731
    point = jnp.array([0.3, -0.7, 1.1])
    at = landscape.expand(planted(outer, 6)._replace(table=inner), point)
    whole = lambda x: outer(inner(x).ravel())  # noqa: E731
    close(at.value, whole(point))
    close(at.gradient, jax.grad(whole)(point))
    close(at.hessian, jax.hessian(whole)(point))


def test_zero_is_a_stationary_point_of_every_tanh_network_and_not_of_an_affine_function(x64):
    mdp = garnet(jax.random.key(3), 3, 2)
    for hidden, stationary in (((2, 2), True), ((), False)):
        problem = problem_of(mdp, models.mlp(*models.pair_features(tabular(mdp)), hidden))
        land = landscape.landscape(problem, mdp, 2, Hyper(kl_weight=1.0, discount=0.9))
        size, _ = landscape.flat(problem.reward)
        norm = jax.jit(lambda x, land=land: jnp.linalg.norm(landscape.expand(land, x).gradient))
        assert (norm(jnp.zeros(size)) < 1e-12) == stationary
        assert norm(0.5 * jax.random.normal(jax.random.key(1), (size,))) > 1e-2


def test_too_many_segments_and_a_zero_kl_weight_are_refused():
    mdp = garnet(jax.random.key(0), 3, 2)
    problem = problem_of(mdp, models.table(3, 2))
    for zero in (0.0, jnp.zeros(())):
        with pytest.raises(ValueError, match="kl_weight is 0"):
            landscape.landscape(problem, mdp, 2, Hyper(kl_weight=zero))
    with pytest.raises(ValueError, match="7776 segments"):
        landscape.landscape(problem, mdp, 5, Hyper())


# Searches -------------------------------------------------------------------------------------------------------------


def searched(function, starts, climb, max_steps=60):
    """Where searches on a plain function of two numbers end."""
    land = planted(function, 2)
    return jax.jit(lambda x: jax.lax.map(lambda y: landscape.search(land, y, climb, max_steps), x))(jnp.array(starts))


def test_a_search_uphill_ends_in_the_maximum_of_a_concave_function(x64):
    centre = jnp.array([1.0, -2.0])
    found = searched(lambda x: -jnp.sum(jnp.cosh(x - centre)), [[4.0, 3.0], [-6.0, 0.0]], True)
    close(found.params, [centre, centre], 1e-8)
    close(found.value, -2.0)
    assert (landscape.is_stationary(found) & found.is_peak & ~landscape.runs_away(found)).all()
    policy = jax.nn.softmax(centre / 0.5)
    close(found.margin, jnp.min(policy))


def test_a_lower_maximum_and_a_saddle_are_found_and_told_apart(x64):
    # −(x² − 1)² + 0.3 x − y²: a maximum on each side, the left one lower, and between them a saddle near 0.
    function = lambda x: -((x[0] ** 2 - 1) ** 2) + 0.3 * x[0] - x[1] ** 2  # noqa: E731
    roots = np.sort(np.roots([-4, 0, 4, 0.3]).real)
    uphill = searched(function, [[-1.4, 0.5], [1.4, -0.5]], True)
    close(uphill.params[:, 0], roots[[0, 2]], 1e-8)
    assert (landscape.is_stationary(uphill) & uphill.is_peak).all()
    assert uphill.value[0] < uphill.value[1] - 0.5
    anywhere = searched(function, [[0.1, 0.5]], False)
    close(anywhere.params[0], [roots[1], 0.0], 1e-8)
    assert landscape.is_stationary(anywhere).all()
    assert not anywhere.is_peak.any()


def test_what_did_not_arrive_or_saturates_is_not_called_stationary(x64):
    assert not landscape.is_stationary(searched(lambda x: -jnp.sum(jnp.cosh(x)), [[0.5, 3.0]], True, 3)).any()
    # Where ‖∇f‖ = √(1 + x²) has its minimum there is no stationary point.
    found = searched(lambda x: 0.5 * x[0] ** 2 + x[1], [[0.7, 0.0]], False)
    close(found.gradient_norm, 1.0)
    assert not landscape.is_stationary(found).any()
    # Up tanh, ∇f → 0 on the way to infinity.
    found = searched(lambda x: jnp.sum(jnp.tanh(x)), [[0.5, 0.1]], True, 200)
    assert landscape.runs_away(found).all()
    assert not landscape.is_stationary(found).any()


def test_positive_matrices_are_those_with_positive_eigenvalues(x64):
    for seed, size in enumerate((1, 2, 7)):
        matrix = jax.random.normal(jax.random.key(seed), (size, size))
        least = np.linalg.eigvalsh(matrix + matrix.T)[0]
        for shift in (-1e-6, 1e-6):
            shifted = matrix + matrix.T + (shift - least) * jnp.eye(size)
            assert landscape.is_positive(shifted) == (shift > 0)


# Meters ---------------------------------------------------------------------------------------------------------------


def test_domination_of_a_quadratic_is_its_closed_form(x64):
    # Φ = −½ xᵀDx: ‖∇Φ‖ / (Φ* − Φ) = 2 ‖Dx‖ / xᵀDx.
    curvature = jnp.array([1.0, 4.0])
    points = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    values, norms = -0.5 * points**2 @ curvature, jnp.linalg.norm(points * curvature, axis=1)
    close(meters.domination(values, norms, jnp.zeros(())), 4 / 9)
    close(meters.domination(values[:2], norms[:2], jnp.zeros(())), 4.0)


def test_domination_leaves_out_what_is_not_finite_and_sees_a_planted_stationary_point():
    values, norms = jnp.array([-1.0, jnp.nan, -2.0, 0.0]), jnp.array([1.0, 0.0, jnp.nan, 1.0])
    assert meters.domination(values, norms, 0.0) == 1.0
    assert meters.domination(jnp.append(values, -0.5), jnp.append(norms, 0.0), 0.0) == 0.0
    assert jnp.isinf(meters.domination(values[3:], norms[3:], 0.0))


@pytest.mark.parametrize("kl_weight", [0.3, 2.0])
def test_the_pl_constant_of_two_arms_is_its_closed_form(kl_weight, x64):
    # With p = π(1), p* = sigmoid((r_1 − r_2)/w), Δ = w (logit p* − logit p): ∇J = p(1 − p)Δ (1, −1), J* − J = w KL(p ‖ p*).
    lower = two_arms([1.0, 0.2], kl_weight)
    best = 1 / (1 + np.exp(-0.8 / kl_weight))
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    constants = jax.jit(lambda x, tolerance=1e-6: meters.lower_pl(lower, jnp.array([[x, 0.0]]), tolerance))
    for p in (0.05, 0.5, 0.9):
        measured, bound = constants(logit(p))
        gap = kl_weight * (p * np.log(p / best) + (1 - p) * np.log((1 - p) / (1 - best)))
        slope = p * (1 - p) * kl_weight * (logit(best) - logit(p))
        close(measured, slope**2 / gap)
        close(bound, kl_weight * min(p, 1 - p) ** 2)
    near, _ = constants(logit(best) + 1e-2, 0.0)
    close(near, 2 * kl_weight * best * (1 - best), 0.02)  # the smallest curvature but that of constants
    assert jnp.isnan(constants(logit(best))[0])


def test_the_pl_bound_holds_on_random_mdps(x64):
    @jax.jit
    @jax.vmap
    def both(key):
        keys = jax.random.split(key, 3)
        mdp = garnet(keys[0], 4, 3)
        prior = jax.random.dirichlet(keys[1], jnp.ones(3), (4,))
        lower = exact.lower_level(mdp, mdp.reward, prior, 0.8, 0.4)
        return meters.lower_pl(lower, 2 * jax.random.normal(keys[2], (4, 3)))

    measured, bound = both(jax.random.split(jax.random.key(0), 200))
    assert (bound > 0).all()
    assert (bound <= measured).all()
    assert np.max(bound / measured) > 1e-4  # not by being next to zero


def test_the_spectral_norm_is_the_largest_absolute_eigenvalue(x64):
    norms = jax.jit(meters.spectral_norm)
    for seed, size in enumerate((1, 2, 7)):
        matrix = jax.random.normal(jax.random.key(seed), (size, size))
        close(norms(matrix + matrix.T), np.abs(np.linalg.eigvalsh(matrix + matrix.T)).max())
    close(norms(jnp.diag(jnp.array([-3.0, 3.0, 1.0]))), 3.0)
    close(norms(jnp.eye(3)), 1.0)
    assert norms(jnp.zeros((2, 2))) == 0


def test_all_meters_by_one_call_agree_with_each_alone(x64):
    mdp, hyper = garnet(jax.random.key(0), 3, 2), Hyper(kl_weight=1.0, discount=0.9)
    land = landscape.landscape(problem_of(mdp, models.table(3, 2)), mdp, 2, hyper)
    points = jax.random.normal(jax.random.key(1), (4, 6))
    logits = jax.random.normal(jax.random.key(2), (4, 3, 2))
    # Beside them a point that is not a number, which counts for nothing.
    nothing = jnp.concatenate([points, jnp.full((1, 6), jnp.nan)]), jnp.concatenate([logits, logits[:1]])
    found = jax.jit(lambda best: meters.measure(land, *nothing, best))
    ours = found(-jnp.inf)
    at = [jax.jit(lambda x: landscape.expand(land, x))(x) for x in points]
    values = np.array([x.value for x in at])
    norms = np.array([np.linalg.norm(x.gradient) for x in at])
    close(ours.smoothness, max(np.abs(np.linalg.eigvalsh(x.hessian)).max() for x in at))
    others = np.arange(4) != values.argmax()
    close(ours.domination, np.min((norms[others] / (values.max() - values[others])) ** 2))
    close(found(1.0).domination, np.min((norms / (1.0 - values)) ** 2))
    lower = [land.lower(x.reshape(3, 2)) for x in points]
    assert 0 < ours.lower_pl_bound <= ours.lower_pl
    close(ours.lower_pl, min(meters.lower_pl(*x)[0] for x in zip(lower, logits, strict=True)))
    cover = np.array([meters.coverage(x, exact.optimal_policy(x).policy) for x in lower])
    close((ours.concentrability, ours.divergence), cover.max(axis=0))


def test_coverage_by_hand(x64):
    lower = two_arms([0.0, 0.0])
    close(meters.coverage(lower, lower.reference), (1.0, 0.0))
    close(meters.coverage(lower, jnp.array([[0.9, 0.1]])), (1.8, 2 * (0.81 + 0.01) - 1))
    close(meters.coverage(lower, jnp.array([[1.0, 0.0]])), (2.0, 1.0))
    unseen = lower._replace(reference=jnp.array([[1.0, 0.0]]))
    assert jnp.isinf(meters.coverage(unseen, jnp.array([[0.9, 0.1]]))[0])


# The study ------------------------------------------------------------------------------------------------------------


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
    mdp = garnet(jax.random.split(key, 3)[0], 3, 2)
    segments = exact.enumerate_segments(3, 2, domination.LENGTH)
    comparisons = exact.exact_comparisons(annotator(tabular(mdp).reward, 0.9), segments)
    lower = exact.lower_level(mdp, params.reshape(3, 2), jnp.full((3, 2), 0.5), 0.9, SMALL.kl_weights[0])
    policy = exact.optimal_policy(lower).policy
    return exact.preference_objective(mdp, policy, lower.reward, segments, comparisons, log_likelihood, 0.9)


def test_a_large_kl_weight_leaves_one_maximum_where_the_class_holds_the_true_reward(found):
    # Policies then stay next to the reference, and the likelihood of a table is concave.
    of = jax.tree.map(lambda x: x[:2, 1], found[domination.TABLE])
    assert not domination.lower_maxima(of).any()
    assert not domination.below(of, of.ascents).any()
    assert (of.domination > 1e-4).all()
    close(of.best[1], 0.0)  # the excess at the true reward


def test_intervals_of_shares_are_those_of_clopper_and_pearson():
    events = np.arange(10) < np.array([[0], [3], [10]])
    center, low, high, _ = domination.share(events)
    close(center, [0.0, 0.3, 1.0])
    close(low, [0.0, 0.06673951, 0.025**0.1], 1e-6)
    close(high, [1 - 0.025**0.1, 0.65245285, 1.0], 1e-6)


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
