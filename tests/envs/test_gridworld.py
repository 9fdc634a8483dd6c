"""Grid worlds against numbers that a reader of the map can check by hand."""

import itertools

import numpy as np
import pytest

from envs.gridworld import MAPS, MOVES, grid_index, gridworld
from envs.tabular import check_mdp

UP, RIGHT, DOWN, LEFT = range(4)
GAMMA = 0.9


def optimal_values(mdp, discount=GAMMA):
    """V* [S] by value iteration."""
    transition, reward = np.asarray(mdp.transition, np.float64), np.asarray(mdp.reward, np.float64)
    values = np.zeros(len(reward))
    for _ in range(400):
        values = np.max(reward + discount * transition @ values, axis=1)
    return values


def distances(index, start):
    """Steps from one state to each other [S] by breadth-first search on the map, inf where there is no way."""
    cell = {int(i): place for place, i in np.ndenumerate(index) if i >= 0}
    found, frontier, steps = np.full(len(cell), np.inf), [start], 0
    while frontier:
        found[frontier] = steps
        near = {(cell[s][0] + down, cell[s][1] + right) for s in frontier for down, right in MOVES}
        inside = [p for p in near if 0 <= p[0] < index.shape[0] and 0 <= p[1] < index.shape[1] and index[p] >= 0]
        frontier, steps = [int(index[p]) for p in inside if np.isinf(found[index[p]])], steps + 1
    return found


@pytest.mark.parametrize("slip", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("name", MAPS)
def test_every_named_map_is_a_valid_mdp(name, slip):
    mdp = check_mdp(gridworld(name, slip))
    np.testing.assert_allclose(np.sum(np.asarray(mdp.transition), axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.sum(np.asarray(mdp.initial)), 1, atol=1e-6)


def test_arrays_follow_the_precision_in_force(x64):
    mdp = gridworld("open", 0.1)
    assert {str(array.dtype) for array in mdp} == {"float64"}
    np.testing.assert_allclose(np.sum(np.asarray(mdp.transition), axis=-1), 1, atol=1e-15)


def test_states_are_numbered_along_the_rows_and_walls_are_minus_one():
    np.testing.assert_array_equal(grid_index(".#G\nS.."), [[0, -1, 1], [2, 3, 4]])
    assert grid_index("open").dtype == np.int32


def test_moves_go_where_their_names_say_and_walls_and_edges_stop_them():
    transition = np.asarray(gridworld("...\n.S#\n...", slip=0).transition)
    target = np.argmax(transition, axis=-1)
    assert np.all(np.max(transition, axis=-1) == 1)
    middle, corner = 4, 0
    assert list(target[middle]) == [1, middle, 6, 3]  # right of the middle is a wall
    assert list(target[corner]) == [corner, 1, 3, corner]


def test_a_slip_replaces_the_direction_by_any_of_the_four():
    transition = np.asarray(gridworld("...\n.S.\n...", slip=0.2).transition)
    middle, corner = 4, 0
    np.testing.assert_allclose(transition[middle, UP, [1, 5, 7, 3]], [0.85, 0.05, 0.05, 0.05], atol=1e-7)
    np.testing.assert_allclose(transition[corner, DOWN, [corner, 1, 3]], [0.1, 0.05, 0.85], atol=1e-7)


def test_rewards_are_paid_for_each_step_spent_on_a_goal_or_a_trap():
    reward = np.asarray(gridworld("S.TG").reward)
    np.testing.assert_array_equal(reward, np.repeat([[0], [0], [-1], [1]], 4, axis=1))


def test_goals_absorb_and_traps_do_not():
    transition = np.asarray(gridworld("STG.", slip=0.3).transition)
    np.testing.assert_array_equal(transition[2], np.tile([0, 0, 1, 0], (4, 1)))
    assert transition[1, RIGHT, 2] > 0.7


def test_episodes_start_on_start_cells_or_else_on_any_free_cell():
    np.testing.assert_allclose(np.asarray(gridworld("S.S\n#TG").initial), [0.5, 0, 0.5, 0, 0])
    np.testing.assert_allclose(np.asarray(gridworld("..G\n#T.").initial), [1 / 3, 1 / 3, 0, 0, 1 / 3], atol=1e-7)


@pytest.mark.parametrize("name", ["open", "four_rooms"])
def test_without_slips_the_optimal_value_is_a_power_of_the_discount(name):
    mdp, index = gridworld(name, slip=0), grid_index(name)
    goal = int(np.argmax(np.asarray(mdp.reward)[:, 0]))
    expected = GAMMA ** distances(index, goal) / (1 - GAMMA)
    np.testing.assert_allclose(optimal_values(mdp), expected, atol=1e-6)


def test_corner_to_corner_distances_are_eight_and_twenty():
    for name, steps in (("open", 8), ("four_rooms", 20)):
        assert optimal_values(gridworld(name, slip=0))[0] == pytest.approx(GAMMA**steps / (1 - GAMMA), rel=1e-6)


def test_the_safe_way_round_the_cliff_is_seven_steps_and_the_short_way_is_worse():
    mdp, start = gridworld("cliff", slip=0), grid_index("cliff")[3, 0]
    short = -sum(GAMMA**t for t in range(1, 5)) + GAMMA**5 / (1 - GAMMA)
    assert optimal_values(mdp)[start] == pytest.approx(GAMMA**7 / (1 - GAMMA), rel=1e-6)
    assert short < GAMMA**7 / (1 - GAMMA)
    assert np.asarray(mdp.initial)[start] == 1


def test_slips_lower_the_value_of_every_state_but_the_goal():
    calm, slippery = (optimal_values(gridworld("open", slip)) for slip in (0.0, 0.3))
    assert np.all(slippery[:-1] < calm[:-1])
    assert slippery[-1] == pytest.approx(1 / (1 - GAMMA))


def test_four_rooms_has_104_connected_states():
    index = grid_index("four_rooms")
    assert index.shape == (11, 11)
    assert index.max() + 1 == 104 == gridworld("four_rooms").reward.shape[0]
    assert np.all(np.isfinite(distances(index, 0)))


@pytest.mark.parametrize("number", [1, 2])
def test_the_four_rooms_form_a_ring_that_two_closed_hallways_cut(number):
    for hallways in itertools.combinations([(2, 5), (5, 1), (6, 8), (9, 5)], number):
        index = grid_index("four_rooms")
        index[tuple(zip(*hallways, strict=True))] = -1
        index[index >= 0] = np.arange(104 - number)
        assert np.all(np.isfinite(distances(index, 0))) == (number == 1)


@pytest.mark.parametrize(
    ("layout", "slip", "message"),
    [
        ("four_room", 0.1, r"no map is called 'four_room'.*nearest: 'four_rooms'"),
        ("S.\n.X", 0.1, r"row 1 of the map holds 'X'"),
        ("S..\n.G", 0.1, r"row 1 of the map has length 2; required: 3"),
        ("##\n#G", 0.1, r"no cell to start in"),
        ("", 0.1, r"no cell to start in"),
        ("open", 1.0, r"slip is 1.0; required: a probability in \[0, 1\)"),
        ("open", -0.1, r"slip is -0.1"),
        ("open", float("nan"), r"slip is nan"),
    ],
)
def test_a_mistake_is_refused_by_name(layout, slip, message):
    with pytest.raises(ValueError, match=message) as error:
        gridworld(layout, slip)
    assert "\n" not in str(error.value)
