"""The critic study on a world of four cells: its claims at small sizes, and its oracles by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact, models
from bilevel.gradients.critics import TDSizes
from envs.gridworld import gridworld
from experiments.studies import critic, critic_sup
from experiments.verify import p1_critic_sup
from experiments.verify.claims import Budget, judge

SMALL = critic.Sizes(
    layout="..\n.G",
    num_targets=32,
    transitions=(512, 2048, 8192),
    hidden_sizes=((),),
    network_transitions=(1024, 4096),
    fit_steps=2000,
    num_restarts=4,
)


@pytest.fixture(scope="module")
def result():
    return critic.study(SMALL)


def test_the_tables_error_falls_like_the_root_of_the_transitions_at_the_height_of_the_central_limit(result):
    for p in range(2):
        n = np.array(SMALL.transitions)
        middle = -np.polyfit(np.log(n), np.log(critic.over_seeds(result.errors[critic.TABLE][:, p, :, -1])[0]), 1)[0]
        assert abs(middle - 0.5) < 0.1
        rms, _ = critic.over_seeds(result.errors[critic.TABLE][:, p, :, -1])
        ratio = rms * np.sqrt(SMALL.transitions) / result.setting.limit[p]
        assert np.all(np.abs(ratio[1:] - 1) < 0.15)


def test_each_target_update_shrinks_the_error_as_exact_targets_do_until_the_noise_shows(result):
    for p in range(2):
        rate = critic.contraction(result, p)
        assert rate["last"] >= 8
        rms, _ = critic.over_seeds(result.errors[critic.TABLE][-1, p].T)
        np.testing.assert_allclose(rms[: rate["last"]], result.setting.bias[p, : rate["last"]], rtol=0.1)
        assert abs(rate["factor"][0] - rate["without_noise"]) < 0.01
        assert abs(rate["factor"][0] - critic.DISCOUNT) < 0.03
        assert rate["undecided"] == ""
        assert rms[-1] < 0.05 * rms[0]


def test_with_a_fixed_number_of_chains_a_bias_of_the_step_size_stays(result):
    # The same β′ and n, for the random policy; eight chains against sixteen.
    growing, fixed = (result.learners[name] for name in (critic.TABLE, critic.FIXED))
    assert (growing.chains[1], fixed.chains[1]) == (16, 8)
    assert growing.step_size == fixed.step_size
    growing, fixed = (result.errors[name][1, 0, :, -1] for name in (critic.TABLE, critic.FIXED))
    assert np.mean(fixed**2) > 1.2**2 * np.mean(growing**2)


def test_an_affine_functions_error_stops_at_the_floor_that_least_squares_gives(result):
    known = result.setting
    obs, action = np.indices(known.values.shape[1:]).reshape(2, -1)
    design = np.concatenate([np.eye(4)[obs], np.eye(4)[action]], axis=1)
    for p in range(2):
        scale, values = np.sqrt(np.ravel(known.weights[p])), np.ravel(known.values[p])
        solution = np.linalg.lstsq(scale[:, None] * design, scale * values)[0]
        floor = np.linalg.norm(scale * (design @ solution - values))
        np.testing.assert_allclose(result.floors["affine"][p], floor, rtol=1e-3)
        rms, _ = critic.over_seeds(result.errors["affine"][:, p, :, -1])
        assert np.all(rms > 0.99 * floor)
        assert rms[-1] < 1.3 * floor


def test_a_networks_floor_is_below_the_affine_one(result):
    known = result.setting
    model = models.mlp(*models.pair_features(known.world), (8,))
    floors = critic.direct_fit(known, model, SMALL)
    assert floors.shape == (2, SMALL.num_restarts)
    assert np.all(floors.min(axis=1) < 0.2 * result.floors["affine"].min(axis=1))


def test_the_oracles_are_what_loops_and_samples_give(x64):
    mdp = gridworld(SMALL.layout)
    lower = exact.lower_level(mdp, mdp.reward, jnp.full((4, 4), 0.25), critic.DISCOUNT, critic.KL_WEIGHT)
    policy = jax.nn.softmax(jax.random.normal(jax.random.key(3), (4, 4)))
    values, weights, bias, limit = map(np.asarray, critic.oracle(lower, policy, 30))
    np.testing.assert_allclose(values, exact.action_values(lower, policy), atol=1e-12)
    assert abs(weights.sum() - 1) < 1e-12
    penalty = critic.KL_WEIGHT * np.log(4 * np.asarray(policy))

    def target(table):  # r + γ E[Q(s′, a′) − w log π/π_ref], the mean over s′ and a′
        after = np.sum(np.asarray(policy) * (table - penalty), axis=1)
        return np.asarray(mdp.reward) + critic.DISCOUNT * np.asarray(mdp.transition) @ after

    def error(table):
        return np.sqrt(np.sum(weights * (table - values) ** 2))

    table = np.zeros((4, 4))
    for expected in bias:
        table = target(table)
        assert abs(error(table) - expected) < 1e-12

    # Sample means of n d targets at every pair, from Q_0 = Q: their noise alone, in the limit of many updates.
    rng, n, errors = np.random.default_rng(0), 100_000, []
    counts = np.round(n * weights).astype(int)
    moves = np.asarray(mdp.transition)[..., None] * np.asarray(policy)  # [S, A, S, A]
    for _ in range(60):
        table = values
        for _ in range(25):
            after = (table - penalty).ravel()
            means = [
                rng.multinomial(k, q.ravel()) @ after / k
                for k, q in zip(counts.flat, moves.reshape(16, 4, 4), strict=True)
            ]
            table = np.asarray(mdp.reward) + critic.DISCOUNT * np.reshape(means, (4, 4))
        errors.append(error(table))
    assert abs(np.sqrt(np.mean(np.square(errors)) * n) / limit - 1) < 0.15


def test_exact_target_updates_contract_by_gamma_in_the_sup_norm_and_by_its_root_in_the_occupancys(x64):
    mdp = gridworld("...\n.#.\n..G")
    size = mdp.reward.size
    lower = exact.lower_level(mdp, mdp.reward, jnp.full(mdp.reward.shape, 0.25), critic.DISCOUNT, critic.KL_WEIGHT)
    oracle = jax.jit(critic.oracle, static_argnums=2)
    for key in jax.random.split(jax.random.key(4), 20):
        policy = jax.nn.softmax(3 * jax.random.normal(key, mdp.reward.shape))
        moves = np.reshape(np.asarray(mdp.transition)[..., None] * np.asarray(policy), (size, size))
        values, weights, bias, _ = oracle(lower, policy, 30)
        tables = [np.ravel(values)]  # Q_0 − Q, up to its sign
        for _ in range(30):
            tables.append(critic.DISCOUNT * moves @ tables[-1])
        largest = np.max(np.abs(tables), axis=1)
        assert np.all(largest[1:] <= critic.DISCOUNT * largest[:-1] + 1e-12)
        rms = np.sqrt(np.square(tables) @ np.ravel(weights))
        np.testing.assert_allclose(rms[1:], bias, atol=1e-12)
        assert np.all(rms[1:] <= np.sqrt(critic.DISCOUNT) * rms[:-1] + 1e-12)


# In the sup norm over all pairs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sup():
    return critic_sup.study(SMALL._replace(num_targets=16))


def test_a_pass_keeps_the_share_of_the_error_that_a_loop_of_sgd_in_the_mean_does(sup):
    learner = sup.learner
    chance, iterate, mean = np.asarray(sup.setting.weights, float).reshape(2, -1), 1.0, 0.0
    num_steps = learner.transitions[-1] // learner.chains[-1]
    for _ in range(num_steps):
        iterate = iterate * (1 - learner.step_size * chance)
        mean = mean + iterate / num_steps
    np.testing.assert_allclose(critic_sup.share(critic_sup.renewals(sup)), mean, rtol=0.1, atol=2 / num_steps)


def test_measured_passes_keep_that_share_and_leave_the_errors_that_follow_from_it(sup):
    for p in range(2):
        kept, expected = critic_sup.measured_share(sup, p), critic_sup.share(critic_sup.renewals(sup)[p])
        mean, error = kept.mean(axis=0), kept.std(axis=0, ddof=1) / np.sqrt(len(kept))
        assert np.mean(np.abs(mean - expected) < 3 * error + 0.02) > 0.9
        errors = sup.errors[p].mean(axis=0).reshape(SMALL.num_targets // 2, -1)
        np.testing.assert_allclose(critic_sup.expected(sup, p), errors, atol=0.05 * np.abs(errors[0]).max())


def test_the_sup_norm_over_all_pairs_shrinks_by_less_than_gamma_asks_where_pairs_are_rarely_visited(sup):
    for p in range(2):
        rate, norms = critic_sup.contraction(sup, p), critic_sup.sup_norm(sup, p)
        assert rate["undecided"] == "" and rate["factor"][1] > critic.DISCOUNT
        assert abs(rate["factor"][0] - rate["expected"]) < 0.03
        np.testing.assert_array_equal(norms[3], [np.max(np.abs(x)) for x in sup.errors[p, :, 3]])
    critic_sup.draw(sup)


def test_the_claim_on_the_sup_norm_measures_judges_and_explains_itself(sup, tmp_path):
    said = []
    sizes = SMALL._replace(num_targets=16)
    measured = p1_critic_sup.measure(Budget(True, tmp_path, said.append), sizes)
    assert said and measured.figure is not None
    assert measured.numbers == p1_critic_sup.numbers(
        [critic_sup.contraction(sup, p) for p in range(len(critic.POLICIES))]
    )
    assert set(judge(p1_critic_sup.CLAIM, measured.numbers)) == set(p1_critic_sup.CLAIM.margins)
    assert measured.cost["transitions"] == 2 * sizes.num_seeds * 16 * sizes.transitions[-1]
    assert all("renews" in note and "without noise" in note for note in measured.notes) and len(measured.notes) == 2


def test_the_power_law_above_a_floor_has_the_exponent_of_what_is_above():
    n, rng = (10, 100, 1000, 10000), np.random.default_rng(0)
    noise = np.array(n)[:, None] ** -0.5 * np.exp(0.01 * rng.normal(size=(4, 32)))
    for floor in (0.0, 0.3):
        fit = critic.law(n, np.sqrt(noise**2 + floor**2), floor)
        assert fit.undecided == "" and fit.exponent == pytest.approx(0.5, abs=0.01)
        assert fit.tail[0] < 0.5 < fit.tail[1]
    at_floor = critic.law(n, 0.9 + 0 * noise + 1e-3 * noise, 1.0)
    assert "3 n are too few" in critic.law(n[:3], noise[:3]).undecided
    assert "not a positive number" in at_floor.undecided and np.isnan(at_floor.exponent)


def test_chains_grow_like_the_root_of_the_transitions_and_divide_them():
    sizes = critic.Sizes()
    known = critic.setting("..\n.G", 2)
    found = critic.learners(known, sizes)
    assert set(found) == {critic.TABLE, critic.FIXED, "affine", "2", "2×2", "8", "8×8"}
    for name, learner in found.items():
        for n, chains in zip(learner.transitions, learner.chains, strict=True):
            assert n % TDSizes(1, n, chains).num_chains == 0
            if name != critic.FIXED:
                assert chains**2 / n == learner.chains[0] ** 2 / learner.transitions[0]


def test_numbers_and_figure_are_written(result, tmp_path):
    summary = json.loads(json.dumps(critic.summarise(result)))
    assert len(summary["learners"]) == 2 * len(result.learners)
    for row in summary["learners"]:
        assert all(low <= x <= high for x, (low, high) in zip(row["error"], row["interval"], strict=True))
    critic.draw(result).savefig(tmp_path / "critic.png", dpi=40)
    assert (tmp_path / "critic.png").stat().st_size > 10_000
