"""Grid worlds: a map drawn as text becomes an `MDP` small enough for its optimum to be checked by hand."""

import difflib
import textwrap

import jax.numpy as jnp
import numpy as np

from envs.base import MDP

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # actions 0 to 3: up, right, down, left
SYMBOLS = "#.SGT"
REWARDS = {"G": 1.0, "T": -1.0}  # for each step spent in the cell, whatever the action

MAPS = {
    "open": """
        .....
        .....
        .....
        .....
        ....G
    """,
    # Sutton, Precup & Singh (1999), Figure 2, without the outer wall: 104 free cells, four hallways.
    "four_rooms": """
        .....#.....
        .....#.....
        ...........
        .....#.....
        .....#.....
        #.####.....
        .....###.##
        .....#.....
        .....#.....
        ...........
        .....#....G
    """,
    # After Sutton & Barto (2018), Example 6.6: the short way along the edge pays traps, the safe way is two longer.
    "cliff": """
        ......
        ......
        ......
        STTTTG
    """,
}


def gridworld(layout: str, slip: float = 0.1) -> MDP:
    """The MDP of a map: reward +1 for each step spent on a goal, −1 on a trap, 0 elsewhere.

        P(s′ | s, a) = (1 − slip) 1{s′ = move(s, a)} + slip · ¼ Σ_b 1{s′ = move(s, b)}

    A slip replaces the chosen direction by one of all four, drawn uniformly (the chosen one among them). A move into a
    wall or off the map stays in place. A goal is absorbing, so a state d steps from the only goal has optimal value
    γ^d / (1 − γ) when slip = 0 and no trap is in the way; a trap is passed through at a cost, not absorbing.

    Args:
        layout: a name in `MAPS`, or rows of equal length of '#' wall, '.' free, 'S' start, 'G' goal, 'T' trap. States
            are numbered along the rows (`grid_index`), actions are up, right, down, left.
        slip: probability in [0, 1) that the direction is replaced.

    Returns:
        Arrays of S = number of cells that are not walls, A = 4; ρ is uniform over the 'S' cells, or over the '.' cells
        of a map without 'S'.

    Raises:
        ValueError: on an unknown map, an unknown character, ragged rows, no cell to start in, or slip out of range.
    """
    if not 0 <= slip < 1:
        raise ValueError(f"slip is {slip}; required: a probability in [0, 1); at 1 actions would have no effect")
    symbols = parse(layout)
    symbol = symbols[symbols != "#"]  # [S]
    num_states = len(symbol)
    target = move_targets(numbering(symbols))
    target = np.where((symbol == "G")[:, None], np.arange(num_states)[:, None], target)
    move = np.eye(num_states)[target]  # [S, A, S]
    transition = (1 - slip) * move + slip * move.mean(axis=1, keepdims=True)
    start = symbol == ("S" if "S" in symbol else ".")
    reward = np.array([REWARDS.get(s, 0.0) for s in symbol])
    return MDP(
        jnp.asarray(start / start.sum()),
        jnp.asarray(transition),
        jnp.asarray(np.repeat(reward[:, None], len(MOVES), axis=1)),
    )


def grid_index(layout: str) -> np.ndarray:
    """The state's index in each cell of a map, −1 for walls ([rows, cols] int32): `values[index]` draws as the map."""
    return numbering(parse(layout))


def parse(layout: str) -> np.ndarray:
    """The characters of a map ([rows, cols]), given by name or drawn; a ValueError says what is wrong with it."""
    if layout not in MAPS and "\n" not in layout and not set(layout) <= set(SYMBOLS):
        close = difflib.get_close_matches(layout, MAPS, n=1, cutoff=0)
        names = ", ".join(MAPS)
        raise ValueError(f"no map is called {layout!r}; required: one of {names}, or a drawing; nearest: {close[0]!r}")
    rows = textwrap.dedent(MAPS.get(layout, layout)).strip("\n").split("\n")
    for number, row in enumerate(rows):
        strange = sorted(set(row) - set(SYMBOLS))
        if strange:
            raise ValueError(f"row {number} of the map holds {strange[0]!r}; required: {SYMBOLS!r} alone; replace it")
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} of the map has length {len(row)}; required: {len(rows[0])}, as row 0 has")
    if not set("".join(rows)) & set("S."):
        raise ValueError("the map has no cell to start in; required: an 'S' or a '.'; add one")
    return np.array([list(row) for row in rows])


def numbering(symbols: np.ndarray) -> np.ndarray:
    """Numbers 0 to S − 1 along the rows for cells that are not walls, −1 for walls ([rows, cols] int32)."""
    free = symbols != "#"
    index = np.full(symbols.shape, -1, np.int32)
    index[free] = np.arange(free.sum())
    return index


def move_targets(index: np.ndarray) -> np.ndarray:
    """The state that each move leads to ([S, 4]), itself where a wall or the edge stops it."""
    row, col = np.nonzero(index >= 0)
    bordered = np.pad(index, 1, constant_values=-1)
    target = np.stack([bordered[row + 1 + down, col + 1 + right] for down, right in MOVES], axis=1)
    return np.where(target < 0, np.arange(len(row))[:, None], target)
