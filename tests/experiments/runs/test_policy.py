"""A loaded policy is the one that was learned, as a function of what the environment itself shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.cartpole import cartpole
from experiments import configure, load_params, load_policy, train
from experiments.files import RunFolderError
from experiments.runs.policy import policy_of
from experiments.settings.job import arithmetic, resolve
from experiments.settings.options import OptionError

TINY = dict(seeds=2, steps=2, width=1, batch_size=4, rollout_length=4, segment_length=2, num_pairs=2)
TINY |= dict(evaluation_rollouts=2, num_policy_steps=1)
CELLS = dict(cells=(3, 3, 8, 6), reward="table", policy="table", critic_model="table")
STATES = np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32) * [2.4, 1.5, 0.2, 1.5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of alternating RLHF on CartPole's continuous observations, at two KL weights."""
    settings = TINY | dict(policy_hidden=(4,), policy_step_size=1.0, kl_weight=(0.1, 1.0))
    return train(configure("cartpole", "alternating", **settings), tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def policy(folder):
    """The first seed's, at the first point."""
    return load_policy(folder, seed=0)


def some(world, **options):
    """A configuration, random parameters of its policy, and the policy."""
    config = configure(world, **options)
    with arithmetic(config):
        job = resolve(config)
        params = job.problem(job.points[0]).policy.init(jax.random.key(0))
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        params = tree.unflatten([jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)])
    params = jax.tree.map(np.asarray, params)
    return params, policy_of(config, params)


def logits(params, states):
    """Of the network with one hidden layer, by hand: [N, 4] and the flag of the fallen, to [N, 2]."""
    layers = params["params"]
    first, last = layers["Dense_0"], layers["Dense_1"]
    hidden = np.tanh(np.pad(states, ((0, 0), (0, 1))) @ np.asarray(first["kernel"]) + np.asarray(first["bias"]))
    return hidden @ np.asarray(last["kernel"]) + np.asarray(last["bias"])


@pytest.mark.parametrize(("seed", "point"), [(0, 0), (1, 0), (1, 1)])
def test_its_distribution_is_that_of_the_saved_network_on_gymnasium_s_four_numbers(folder, seed, point):
    policy = load_policy(folder, seed=seed, point=point)
    scores = logits(load_params(folder, seed, point).policy, STATES)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.ptp(expected[:, 0]) > 0.01
    np.testing.assert_allclose(policy.distribution(STATES).probs, expected, atol=1e-5)
    np.testing.assert_allclose(policy.distribution(STATES[3]).log_prob(1), np.log(expected[3, 1]), atol=1e-5)
    np.testing.assert_array_equal(policy.greedy(STATES), scores.argmax(axis=1))


def test_its_actions_are_drawn_from_that_distribution(policy):
    number = 20_000
    actions = policy(np.tile(STATES[0], (number, 1)), np.random.default_rng(1))
    right = float(policy.distribution(STATES[0]).probs[1])
    assert abs(actions.mean() - right) < 4 * np.sqrt(right * (1 - right) / number)


def test_equal_seeds_give_equal_actions_and_a_generator_moves_on(folder, policy):
    again = load_policy(folder, seed=0)

    def actions(policy, rng):
        return [policy(state, rng) for state in STATES]

    first = actions(policy, np.random.default_rng(5))
    assert first == actions(again, np.random.default_rng(5))
    assert first != actions(policy, np.random.default_rng(6))
    assert len(set(first)) == 2
    assert policy(STATES[0], jax.random.key(3)) == policy.sample(STATES[0].tolist(), jax.random.key(3))
    assert all(type(action) is int for action in first)
    assert policy(STATES[0], jax.random.PRNGKey(3)) == policy(STATES[0], jax.random.key(3))
    for wrong in (0, jax.numpy.ones(2), jax.random.split(jax.random.key(0), 2)):
        with pytest.raises(OptionError, match=r"required: a numpy\.random\.Generator"):
            policy(STATES[0], wrong)


def test_batches_of_any_depth_are_the_single_ones(policy):
    single = [policy.greedy(state) for state in STATES]
    np.testing.assert_array_equal(policy.greedy(STATES.reshape(5, 10, 4)), np.reshape(single, (5, 10)))
    assert policy(STATES.reshape(5, 10, 4), jax.random.key(0)).shape == (5, 10)
    assert policy.distribution(STATES.reshape(5, 10, 4)).probs.shape == (5, 10, 2)


def test_a_policy_is_compiled_once_a_shape(policy, caplog):
    rng = np.random.default_rng(0)

    def compiled(observations):
        caplog.clear()
        with jax.log_compiles():
            for observation in observations:
                policy(observation, rng)
        return any("Compiling" in record.getMessage() for record in caplog.records)

    policy(STATES[0], rng)
    assert not compiled(STATES)
    assert compiled([STATES.reshape(2, 5, 5, 4)])


# Other observations and actions ---------------------------------------------------------------------------------------


def test_with_cells_it_still_takes_gymnasium_s_four_numbers():
    table, policy = some("cartpole", **CELLS)
    cell = jax.vmap(cartpole(CELLS["cells"]).env.observe)(jnp.pad(jnp.asarray(STATES, jnp.float32), ((0, 0), (0, 1))))
    probs = policy.distribution(STATES).probs
    np.testing.assert_allclose(np.log(probs[:, 1] / probs[:, 0]), (table[:, 1] - table[:, 0])[cell], atol=1e-5)


def test_on_a_finite_world_it_takes_the_index_of_the_state():
    table, policy = some("garnet", states=4, policy="table", precision="float64")
    law = policy.distribution([0, 1, 2, 3])
    np.testing.assert_allclose(law.probs, np.exp(table) / np.exp(table).sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(law.log_prob(np.array([0, 1, 2, 0])), np.log(law.probs)[range(4), [0, 1, 2, 0]], 1e-5)
    assert policy.greedy(2) == table[2].argmax()
    assert type(policy(2, np.random.default_rng(0))) is int
    for state in (4, -1, 0.5):
        with pytest.raises(OptionError, match="whole numbers from 0 to 3"):
            policy.greedy(state)


def test_it_acts_in_gymnasium_s_pendulum_within_its_bounds():
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("gymnax")
    _, policy = some("gymnax", environment="Pendulum-v1", policy_hidden=(4,))
    env, rng = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    actions = [policy(observation, rng) for _ in range(100)]
    assert all(env.action_space.contains(action) for action in [*actions, policy.greedy(observation)])
    assert np.any(np.abs(actions) == 2) and np.any(np.abs(actions) < 2)  # the bounds, and what lies between
    assert np.isfinite(env.step(actions[0])[1])
    assert np.shape(policy.distribution(observation).log_prob(actions[0])) == ()


def test_without_another_environment_it_takes_what_models_see():
    params, policy = some("lqr")
    weights, bias = (np.asarray(params["mean"]["params"]["Dense_0"][name]) for name in ("kernel", "bias"))
    states = np.random.default_rng(0).normal(size=(3, len(weights)))
    np.testing.assert_allclose(policy.greedy(states), states @ weights + bias, rtol=1e-5)
    assert policy(states, np.random.default_rng(0)).shape == (3, 1)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ([0.0, 0.0, 0.0], r"shape \(3,\); required: \(4,\)"),
        ([0.0] * 5, r"shape \(5,\); required: \(4,\)"),
        (0.0, r"shape \(\); required: \(4,\)"),
        ([0.0, 0.0, np.nan, 0.0], "finite numbers"),
        (["a"] * 4, "required: numbers"),
    ],
)
def test_an_observation_that_does_not_fit_gets_one_line(policy, observation, words):
    for method in (policy.greedy, policy.distribution, lambda obs: policy(obs, np.random.default_rng(0))):
        with pytest.raises(OptionError, match=words) as caught:
            method(observation)
        assert len(str(caught.value).splitlines()) == 1


def test_a_seed_point_or_source_of_randomness_that_is_none_gets_one_line(folder, policy, tmp_path):
    for seed, point in ((2, 0), (-1, 0), (0, 2), (0, -1), (1.0, 0)):
        with pytest.raises(RunFolderError, match="required: a whole number from 0 to 1"):
            load_policy(folder, seed=seed, point=point)
    with pytest.raises(RunFolderError, match="is not a run"):
        load_policy(tmp_path, seed=0)
    with pytest.raises(OptionError, match=r"required: a numpy.random.Generator"):
        policy(STATES[0], 7)
