"""Incentives in four rooms: the study published with HPGD (Thoma et al., 2406.01575, Table 1), with exact hypergradients.

A follower walks from S to one of two goals, each with probability ½, and is paid 1 there, where the episode ends. A leader
wants visits to a target cell, 1 each, and may spend a budget of 0.2 on penalties: each step in cell s costs the follower
0.2 softmax(x)_s; one more entry of x is what is kept. The follower is KL-regularised with weight λ; both discount by 0.99.
The leader maximises E Σ γ^t (1{s_t = target} − β · penalty(s_t)) by the derivative of the follower's optimal policy
(`exact.optimal_policy`); nothing is sampled, so nothing shakes an ascent out of a local maximum. It starts from equal
penalties, x = 0, and from nine tenths of the budget on the upper hallway, which the shortest way to G¹ leads through.

The numbers of the problem are those of the published configuration files and README; what the description leaves open is
read in several ways (`READINGS`), and no number is fitted. Published are means over ten seeds of the last tenth of 10,000
steps, at the best of four step sizes.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from bilevel import exact
from bilevel.types import Array
from envs.gridworld import grid_index, move_targets
from experiments.files import write_figure, write_json

DISCOUNT, SLIP, BUDGET = 0.99, 0.33, 0.2
START, TARGET, UPPER, GOALS = (
    (4, 1),
    (8, 4),
    (3, 6),
    ((1, 9), (11, 11)),
)  # row and column on the map with its outer wall
# λ, β -> mean of ten seeds and its standard error, as published: HPGD, AMD (a deterministic gradient), zeroth order.
PUBLISHED = {
    (0.001, 1): ((0.91, 0.088), (0.58, 0.0), (0.59, 0.059)),
    (0.001, 3): ((0.51, 0.006), (0.51, 0.0), (0.50, 0.005)),
    (0.001, 5): ((0.46, 0.006), (0.46, 0.003), (0.46, 0.007)),
    (0.003, 1): ((0.95, 0.002), (1.00, 0.0), (0.91, 0.048)),
    (0.003, 3): ((0.73, 0.001), (0.39, 0.0), (0.40, 0.028)),
    (0.003, 5): ((0.29, 0.003), (0.32, 0.0), (0.32, 0.002)),
    (0.005, 1): ((1.17, 0.011), (1.28, 0.003), (1.15, 0.026)),
    (0.005, 3): ((1.01, 0.002), (1.13, 0.004), (1.02, 0.027)),
    (0.005, 5): ((0.87, 0.003), (0.97, 0.009), (0.79, 0.027)),
}
METHODS = ("HPGD", "AMD", "zeroth order")


class Reading(NamedTuple):
    """One way to read the description; each a number in {0, 1}, so that all are one program.

    Attributes:
        elsewhere: a slip goes to one of the other three directions, otherwise to any of the four.
        entropy: the follower gets λ · entropy, otherwise −λ KL to the uniform policy: λ log 4 less for each step.
        spent: the leader pays β times what it spends, 0.2 (1 − kept), once; otherwise β times each penalty paid.
    """

    elsewhere: float = 1.0
    entropy: float = 0.0
    spent: float = 0.0


KL, ENTROPY = "KL to the uniform policy", "entropy"
READINGS = {
    KL: Reading(),
    ENTROPY: Reading(entropy=1.0),
    "KL, slips to any of four": Reading(elsewhere=0.0),
    "KL, the leader pays what it spends": Reading(spent=1.0),
}
EQUAL, HALLWAY = "equal penalties", "the upper hallway blocked"


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        num_steps: of Adam on x.
        step_size: of Adam.
        cells: (λ, β) of the first two readings, from both starts.
        few: the same of the others, from equal penalties.
    """

    num_steps: int = 200
    step_size: float = 0.1
    cells: tuple[tuple[float, float], ...] = tuple(PUBLISHED)
    few: tuple[tuple[float, float], ...] = ((0.001, 1), (0.003, 3), (0.005, 1))


class Rooms(NamedTuple):
    """Four rooms, and a last state that an arrival at the goal leads to; first axis [goal].

    Attributes:
        moves: [2, S, A, S] without slips.
        arrival: [2, S] the goal's indicator.
        start: [S] the start's indicator.
        target: [S] the target's.
        upper: [S] the upper hallway's.
    """

    moves: np.ndarray
    arrival: np.ndarray
    start: np.ndarray
    target: np.ndarray
    upper: np.ndarray


def rooms() -> Rooms:
    """The map of Sutton, Precup & Singh (1999), 104 cells."""
    index = grid_index("four_rooms")
    num = int(index.max()) + 1
    places = {place: int(index[place[0] - 1, place[1] - 1]) for place in (START, TARGET, UPPER, *GOALS)}
    targets = np.concatenate([move_targets(index), np.full((1, 4), num)])
    goal = np.array([places[x] for x in GOALS])
    leave = np.stack([np.where((np.arange(num + 1) == g)[:, None], num, targets) for g in goal])
    one = np.eye(num + 1)
    return Rooms(one[leave], one[goal], *(one[places[x]] for x in (START, TARGET, UPPER)))


def follower(world: Rooms, x: Array, weight: Array, reading: Reading) -> tuple[exact.LowerLevel, Array]:
    """The follower's problems at leader parameters x [S] (the last is what is kept), and its penalties [goal, S].

    Being paid in the goal's cell, whichever way it leaves, is one step later than on entering it: γ is divided out.
    """
    penalty = BUDGET * jax.nn.softmax(x).at[-1].set(0.0) * (1 - world.arrival)  # at the goal the episode is over
    slip = SLIP * jnp.where(reading.elsewhere, 4 / 3, 1.0)
    moves = jnp.asarray(world.moves)
    transition = (1 - slip) * moves + slip * jnp.mean(moves, axis=2, keepdims=True)
    inside = jnp.arange(len(world.start)) < len(world.start) - 1
    bonus = jnp.where(inside, reading.entropy * weight * jnp.log(4.0), 0.0)
    reward = bonus * (1 - world.arrival) - penalty + world.arrival / DISCOUNT
    reward = jnp.broadcast_to(reward[..., None], transition.shape[:-1])
    reference = jnp.full(reward.shape[1:], 0.25)
    lower = [jnp.asarray(world.start), transition, reward, reference, DISCOUNT, weight]
    return exact.LowerLevel(*lower), penalty


AXES = exact.LowerLevel(None, 0, 0, None, None, None)  # of the goals


def objective(world: Rooms, x: Array, weight: Array, cost: Array, reading: Reading) -> Array:
    """F(x), []: visits to the target less β times what they cost, discounted, for the followers' optimal policies."""
    lower, penalty = follower(world, x, weight, reading)

    def visits(lower):
        policy = exact.optimal_policy(lower).policy
        return exact.occupancy(lower, policy) / (1 - DISCOUNT)

    times = jax.vmap(visits, (AXES,))(lower)  # [goal, S], discounted
    spent = BUDGET * (1 - jax.nn.softmax(x)[-1])
    paid = jnp.where(reading.spent, spent, jnp.mean(jnp.sum(times * penalty, axis=1)))
    return jnp.mean(times @ world.target) - cost * paid


def climb(
    world: Rooms, weight: Array, cost: Array, reading: Reading, first: Array, sizes: Sizes
) -> tuple[Array, Array]:
    """F along Adam's steps from x = `first` [num_steps], and the x of the highest [S]."""
    optimizer = optax.adam(sizes.step_size)
    value_and_grad = jax.value_and_grad(lambda x: objective(world, x, weight, cost, reading))

    def body(carry, _):
        x, state, best, where = carry
        value, grad = value_and_grad(x)
        best, where = jnp.maximum(best, value), jnp.where(value > best, x, where)
        updates, state = optimizer.update(-grad, state)
        return (optax.apply_updates(x, updates), state, best, where), value

    begin = first, optimizer.init(first), -jnp.inf, first
    carry, values = jax.lax.scan(body, begin, length=sizes.num_steps)
    return values, carry[-1]


class Result(NamedTuple):
    """First axis [lane].

    Attributes:
        lanes: (reading, start, λ, β).
        bare: [] F without penalties.
        values: [num_steps] F along the ascent.
        params: [S] the x of the highest.
    """

    lanes: list[tuple[str, str, float, float]]
    bare: np.ndarray
    values: np.ndarray
    params: np.ndarray


def study(sizes: Sizes = Sizes(), say=lambda line: None) -> Result:  # noqa: B008
    """Every lane in one program, in float64."""
    lanes = [(reading, start, *cell) for reading in (KL, ENTROPY) for start in (EQUAL, HALLWAY) for cell in sizes.cells]
    lanes += [(reading, EQUAL, *cell) for reading in list(READINGS)[2:] for cell in sizes.few]
    world = rooms()
    blocked = np.log(9 * (len(world.upper) - 1)) * world.upper  # nine tenths
    with jax.enable_x64(True):
        readings = Reading(*(jnp.array(x) for x in zip(*(READINGS[lane[0]] for lane in lanes), strict=True)))
        first = jnp.array([blocked if lane[1] == HALLWAY else 0 * blocked for lane in lanes])
        weights, costs = (jnp.array([lane[i] for lane in lanes], float) for i in (2, 3))
        nothing = jnp.zeros(len(world.start)).at[-1].set(50.0)  # e^−50 of the budget is spent
        bare = jax.jit(jax.vmap(lambda *lane: objective(world, nothing, *lane)))(weights, costs, readings)
        say(f"{len(lanes)} problems, {sizes.num_steps} steps each")
        program = jax.jit(jax.vmap(lambda *lane: climb(world, *lane, sizes)))
        return Result(lanes, *(np.asarray(x) for x in (bare, *program(weights, costs, readings, first))))


# What it shows --------------------------------------------------------------------------------------------------------


def summarise(result: Result) -> list[dict]:
    """A row for each problem: F without penalties, at the end, the highest on the way, and the published numbers."""
    rows = []
    for (reading, start, weight, cost), bare, values, x in zip(*result, strict=True):
        kept = float(jax.nn.softmax(x)[-1])
        row = {"reading": reading, "start": start, "weight": weight, "cost": cost, "without_penalties": float(bare)}
        row |= {"end": float(values[-1]), "highest": float(values.max()), "kept": kept}
        rows.append(row | {"published": dict(zip(METHODS, PUBLISHED[weight, cost], strict=True))})
    return rows


def draw(result: Result) -> Figure:
    """F beside the published numbers under two readings, and the penalties of one problem on the map."""
    rows = summarise(result)
    figure = Figure(figsize=(15, 5), layout="constrained")
    *panels, on_map = figure.subplots(1, 3, width_ratios=(2.6, 2.6, 1.6))
    for panel, reading in zip(panels, (KL, ENTROPY), strict=True):
        draw_numbers(panel, [row for row in rows if row["reading"] == reading])
        panel.set_title(f"Read as: the follower is regularised by {reading}", fontsize=10)
    panels[1].sharey(panels[0])
    figure.colorbar(draw_map(on_map, result), ax=on_map, label="penalty a step, units of reward", shrink=0.7)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(
        "Incentives in four rooms: ascent on exact hypergradients beside the published numbers", fontsize=11
    )
    return figure


def draw_numbers(panel, rows: list[dict]) -> None:
    """One reading, cell by cell: the exact ascents' highest F, and the published ones."""
    place = np.arange(len(rows) // 2)
    for i, (method, color) in enumerate(zip(METHODS, ("#D55E00", "#E69F00", "#999999"), strict=True)):
        mean, error = np.transpose([row["published"][method] for row in rows[: len(place)]])
        label = f"published: {method}, mean of 10 seeds ± 1.96 s.e."
        panel.errorbar(place + 0.15 * i, mean, 1.96 * error, fmt="s", markersize=5, color=color, capsize=3, label=label)
    for start, marker, color in ((EQUAL, "o", "#0072B2"), (HALLWAY, "^", "#009E73")):
        highest = [row["highest"] for row in rows if row["start"] == start]
        panel.plot(place - 0.2, highest, marker, color=color, label=f"exact, from {start}")
    bare = [row["without_penalties"] for row in rows[: len(place)]]
    panel.plot(place - 0.2, bare, "_", color="black", markersize=12, label="exact, no penalties")
    panel.set_xticks(place, [f"{row['weight']:g}\n{row['cost']:g}" for row in rows[: len(place)]], fontsize=8)
    panel.set(xlabel="λ (above) and β (below)", ylabel="F, discounted visits to the target less their cost")
    panel.grid(alpha=0.3)


def draw_map(panel, result: Result):
    """Penalties of the problem with the highest F at the first λ and β."""
    of = [i for i, lane in enumerate(result.lanes) if lane[2:] == result.lanes[0][2:]]
    best = max(of, key=lambda i: result.values[i].max())
    index = grid_index("four_rooms")
    penalty = BUDGET * np.asarray(jax.nn.softmax(result.params[best]))
    image = panel.imshow(np.where(index >= 0, penalty[index], np.nan), cmap="magma_r")
    panel.set_facecolor("#bbbbbb")
    for (row, column), text in zip((START, TARGET, *GOALS), ("S", "+1", "G¹", "G²"), strict=True):
        panel.text(column - 1, row - 1, text, ha="center", va="center", color="#0072B2", fontsize=9, weight="bold")
    reading, _, weight, cost = result.lanes[best]
    panel.set(xticks=[], yticks=[])
    panel.set_title(f"Penalties at λ = {weight:g}, β = {cost:g}\n({reading})", fontsize=10)
    return image


def main(out: Path, say=print) -> None:
    """Runs the study and writes `four_rooms.png` and `four_rooms.json`."""
    report(study(say=say), out, say)


def report(result: Result, out: Path, say=print) -> None:
    """Writes the figure and the numbers, and says a table."""
    rows = summarise(result)
    write_json(out, "four_rooms.json", rows)
    write_figure(out, "four_rooms.png", draw(result), dpi=120)
    for row in rows:
        numbers = "without penalties {without_penalties:.3f}, last {end:.3f}, highest {highest:.3f}".format(**row)
        published = ", ".join("{} {:.2f} ± {:.3f}".format(name, *x) for name, x in row["published"].items())
        problem = f"{row['reading']}, from {row['start']}: λ = {row['weight']:g}, β = {row['cost']:g}"
        say(f"{problem}: {numbers}; published: {published}")
    say(f"figure: {out / 'four_rooms.png'}")
