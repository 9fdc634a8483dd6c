"""The Four Rooms study: its follower by value iteration, its derivative by differences, its ascent for a few steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import four_rooms
from experiments.studies.four_rooms import Reading

SMALL = four_rooms.Sizes(num_steps=6, cells=((0.005, 1),), few=((0.005, 1),))


def by_value_iteration(penalty, weight, reading):
    """Visits to the target and penalties paid, discounted, in plain NumPy: the mean over the two goals, [2]."""
    world, totals = four_rooms.rooms(), []
    for moves, arrival in zip(world.moves, world.arrival, strict=True):
        goal, last = int(np.argmax(arrival)), len(arrival) - 1
        chosen = 0.67 if reading.elsewhere else 0.67 + 0.33 / 4
        other = 0.33 / 3 if reading.elsewhere else 0.33 / 4
        chance = sum(
            np.where(np.eye(4)[:, i][:, None] > 0, chosen, other) * moves[:, i][:, None, :] for i in range(4)
        )  # [S, A, S]
        reward = chance[:, :, goal] - penalty[:, None]  # paid on entering the goal
        reward[[goal, last]] = 0
        constant = 0 if reading.entropy else weight * np.log(4)
        values = np.zeros(last + 1)
        for _ in range(3000):
            scores = reward + 0.99 * chance @ np.where(np.arange(last + 1) == goal, 0, values)
            top = scores.max(axis=1)
            values = top + weight * np.log(np.exp((scores - top[:, None]) / weight).sum(axis=1)) - constant
            values[[goal, last]] = 0
        policy = np.exp((scores - top[:, None]) / weight)
        chain = np.einsum("sa,sat->st", policy / policy.sum(axis=1, keepdims=True), chance)
        times = np.linalg.solve(np.eye(last + 1) - 0.99 * chain.T, world.start)
        totals.append([times @ world.target, np.delete(times * penalty, goal).sum()])
    return np.mean(totals, axis=0)


@pytest.mark.parametrize("reading", [Reading(), Reading(0.0, 1.0, 0.0)])
def test_the_objective_is_what_value_iteration_gives(reading, x64):
    world = four_rooms.rooms()
    x = jax.random.normal(jax.random.key(0), world.start.shape)
    penalty = np.append(0.2 * np.asarray(jax.nn.softmax(x))[:-1], 0.0)
    visits, paid = by_value_iteration(penalty, 0.005, reading)
    objective = jax.jit(lambda cost: four_rooms.objective(world, x, 0.005, cost, reading))
    np.testing.assert_allclose(objective(0.0), visits, rtol=1e-8)
    np.testing.assert_allclose(objective(3.0), visits - 3 * paid, rtol=1e-8)


def test_the_derivative_is_that_of_central_differences(x64):
    world = four_rooms.rooms()
    x, along = jax.random.normal(jax.random.key(1), (2, *world.start.shape))
    objective = jax.jit(jax.value_and_grad(lambda x: four_rooms.objective(world, x, 0.005, 1.0, Reading())))
    step = 1e-4
    difference = (objective(x + step * along)[0] - objective(x - step * along)[0]) / (2 * step)
    slope = jnp.vdot(objective(x)[1], along)
    assert abs(slope) > 1e-4
    np.testing.assert_allclose(difference, slope, rtol=1e-4)


def test_a_few_steps_raise_the_objective_and_are_written(tmp_path):
    result, lines = four_rooms.study(SMALL), []
    assert len(result.lanes) == 2 + len(four_rooms.READINGS)
    assert np.isfinite(result.values).all()
    assert (result.values[:, -1] > result.values[:, 0]).all()
    four_rooms.report(result, tmp_path, lines.append)
    rows = json.loads((tmp_path / "four_rooms.json").read_text())
    assert len(rows) == len(result.lanes) == len(lines) - 1
    for row in rows:
        assert row["highest"] >= row["end"]
        assert 0 < row["kept"] < 1
        assert row["published"]["HPGD"] == [1.17, 0.011]
    assert (tmp_path / "four_rooms.png").stat().st_size > 10_000


def test_the_published_cells_are_free_and_where_the_configuration_says():
    world = four_rooms.rooms()
    assert world.start.sum() == world.target.sum() == world.upper.sum() == 1
    np.testing.assert_array_equal(world.arrival.sum(axis=1), 1)
    assert world.moves.shape == (2, 105, 4, 105)
    np.testing.assert_array_equal(world.moves.sum(axis=-1), 1)
    assert (world.moves[:, -1, :, -1] == 1).all()  # the end stays the end
