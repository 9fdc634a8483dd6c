"""The adapter to brax's bodies on MJX: dynamics and rewards are brax's own, and an end is absorbing."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.brax import MOST_REWARDS, brax_world, make_body, on_one_axis
from experiments import load_run
from experiments.__main__ import main

BODY, STEPS = "inverted_pendulum", 12
INSTALLED = all(importlib.util.find_spec(name) for name in ("brax", "mujoco"))
needs_brax = pytest.mark.skipif(not INSTALLED, reason="needs the extra `control`")


@pytest.fixture(scope="module", params=[BODY, pytest.param("humanoid", marks=pytest.mark.slow)])
def path(request):
    """A few steps of the adapter and of brax itself, under the same actions: (world, states, rewards, brax's states)."""
    if not INSTALLED:
        pytest.skip("needs the extra `control`")
    world, body = brax_world(request.param), make_body(request.param)
    actions = jax.random.uniform(jax.random.key(1), (STEPS, body.action_size), minval=-1.0)
    state, theirs = world.env.init(jax.random.key(0)), jax.jit(body.reset)(jax.random.key(0))
    step, pay, brax_step = jax.jit(world.env.step), jax.jit(world.reward), jax.jit(body.step)
    ours, rewards, brax_states = [state], [], [theirs]
    for action in actions:
        rewards.append(pay(state, action))
        state, theirs = step(jax.random.key(0), state, action), brax_step(theirs, action)
        ours.append(state)
        brax_states.append(theirs)
    return world, ours, rewards, brax_states


def test_dynamics_and_rewards_are_those_of_brax_until_the_end(path):
    world, ours, rewards, theirs = path
    last = next((i for i, state in enumerate(theirs) if state.done), STEPS)  # brax goes on after it
    assert last > 3
    for i in range(last + 1):
        np.testing.assert_allclose(world.env.observe(ours[i])[:-1], theirs[i].obs, rtol=1e-4, atol=1e-5)
        assert ours[i].ended == theirs[i].done
    paid = [state.reward for state in theirs[1 : last + 1]]
    np.testing.assert_allclose(np.array(rewards[:last]), paid, rtol=1e-4, atol=1e-5)


def test_an_end_is_absorbing_visible_and_pays_nothing(path):
    world, ours, _, _ = path
    alive = ours[0]
    ended = alive._replace(ended=jnp.bool_(True))
    action = jnp.ones(world.env.action_size)
    after = world.env.step(jax.random.key(0), ended, action)
    jax.tree.map(np.testing.assert_array_equal, after, ended)
    moved = world.env.step(jax.random.key(0), alive, action)
    assert not np.array_equal(moved.coordinates, alive.coordinates)
    assert world.env.observe(after)[-1] == 1 and world.env.observe(alive)[-1] == 0
    assert world.reward(ended, action) == 0 != world.reward(alive, action)


def test_any_nest_of_vmaps_gives_what_one_example_gives(path):
    world, ours, _, _ = path
    states = jax.tree.map(lambda *x: jnp.stack(x).reshape(2, 3, *x[0].shape), *ours[:6])
    actions = jax.random.uniform(jax.random.key(2), (2, 3, world.env.action_size), minval=-1.0)
    keys = jax.random.split(jax.random.key(3), (2, 3))
    nested = jax.jit(jax.vmap(jax.vmap(world.env.step)))(keys, states, actions)
    step = jax.jit(world.env.step)
    for i, j in np.ndindex(2, 3):
        alone = step(keys[i, j], jax.tree.map(lambda x, i=i, j=j: x[i, j], states), actions[i, j])
        for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(nested), strict=True):
            np.testing.assert_allclose(x, y[i, j], rtol=1e-4, atol=1e-4 * max(1, np.abs(x).max()))


def test_rewards_of_many_steps_are_those_of_few(path):
    world, ours, _, _ = path
    many = MOST_REWARDS + 3  # a prime: in two parts, of which one is filled up
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (many, *x.shape)), ours[2])
    actions = jax.random.uniform(jax.random.key(4), (many, world.env.action_size), minval=-1.0)
    pay = jax.jit(jax.vmap(world.reward))
    few = jnp.concatenate([pay(*jax.tree.map(lambda x, i=i: x[i : i + 2], (states, actions))) for i in (0, many - 2)])
    np.testing.assert_allclose(pay(states, actions)[jnp.array([0, 1, -2, -1])], few, rtol=1e-4, atol=1e-5)


def test_a_function_on_one_axis_is_the_function():
    def function(x, y):
        return x @ y, x + 1

    x, y = jax.random.normal(jax.random.key(0), (2, 7, 11, 3)), jax.random.normal(jax.random.key(1), (7, 3))
    plain = jax.vmap(jax.vmap(jax.vmap(function, (0, None))), (0, None))(x, y)
    for most in (None, 1, 4, 5, 11, 100):  # eleven in parts of 1, 4, 4 and 3, 4, ...
        ours = jax.vmap(jax.vmap(jax.vmap(on_one_axis(function, most), (0, None))), (0, None))(x, y)
        for one, other in zip(ours, plain, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.skipif(INSTALLED, reason="brax is installed")
def test_without_brax_the_command_says_what_to_install(tmp_path, capsys):
    assert main(["train", "--world", "brax", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "pip install -e '.[control]'" in said


@needs_brax
@pytest.mark.slow
@pytest.mark.parametrize("body", [BODY, "humanoid"])
def test_three_steps_of_segment_preferences(tmp_path, body):
    sizes = (
        "--seeds 2 --width 2 --steps 3 --chunk 3 --batch-size 4 --rollout-length 6 --segment-length 3 --num-targets 1"
    )
    sizes += " --num-transitions 16 --num-chains 8 --num-policy-steps 1 --evaluation-rollouts 2"
    assert main(["train", "--world", "brax", "--body", body, *sizes.split(), "--out", str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    assert run.sizes == {"hyper": 1, "seed": 2, "step": 3} and np.all(np.isfinite(run.true_return))
    assert np.all(run.labels > 0) and len(np.unique(run.gradient_norm)) == 6


@needs_brax
@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices")
def test_several_cpu_devices_of_one_process_are_refused(tmp_path, capsys):
    assert main(["train", "--world", "brax", "--body", BODY, "--devices", "2", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "required: one, by --devices 1" in said
    assert not (tmp_path / "run").exists()


def test_an_unknown_body_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"no body 'hoper'.*nearest: 'hopper'"):
        brax_world("hoper")
