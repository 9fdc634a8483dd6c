"""Critic and policy networks against what their class can hold: the lower level's part of `study nonlinearity`.

Critic: Algorithm 2 on GridWorld against direct fits of the same class to the exact Q (`study critic` has its rates).
Policy: gradient ascent on J with exact gradients on a map of four rooms, seen through the cell's coordinates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import exact, models
from bilevel.lookup import bind, policy_table
from envs.gridworld import grid_index, gridworld
from envs.tabular import tabular
from experiments.studies import critic

TABLE = "table"
CLASSES = {  # hidden widths
    "affine": (),
    "2": (2,),
    "4": (4,),
    "8": (8,),
    "16": (16,),
    "4-4": (4, 4),
    "4-4-4": (4, 4, 4),
    TABLE: None,
}
COLORS = ("#0072B2", "#D55E00")

# Policy ---------------------------------------------------------------------------------------------------------------

ROOMS = "...#...\n.......\n...#...\n#.###.#\n...#...\n.......\n...#..G"
ROOMS_DISCOUNT, ROOMS_WEIGHT = 0.9, 0.1  # γ and w


class PolicySizes(NamedTuple):
    """Restarts of each class from random weights, and steps of Adam."""

    num_restarts: int = 8
    num_steps: int = 2000


def policy_returns(name: str, sizes: PolicySizes) -> np.ndarray:
    """J that each restart reaches by exact gradients, 0 the reference's (uniform) and 1 the table's optimum, [restart]."""
    hidden, cells = CLASSES[name], np.argwhere(grid_index(ROOMS) >= 0)
    with jax.enable_x64(True):
        mdp = gridworld(ROOMS)
        env, coordinates = tabular(mdp).env, jnp.asarray(2 * cells / cells.max(axis=0) - 1)  # in [−1, 1]²
        reference = jnp.full(mdp.reward.shape, 1 / env.num_actions)
        lower = exact.lower_level(mdp, mdp.reward, reference, ROOMS_DISCOUNT, ROOMS_WEIGHT)
        lowest, best = (
            exact.regularised_return(lower, policy) for policy in (reference, exact.optimal_policy(lower).policy)
        )
        network = models.mlp_policy(lambda obs: coordinates[obs], 2, env.num_actions, hidden or ())
        model = models.table_policy(env.num_states, env.num_actions) if hidden is None else network
        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, sizes.num_steps))

        def value(params):
            return exact.regularised_return(lower, policy_table(env, bind(model, params)))

        def fit(key):
            def body(carry, _):
                params, state = carry
                updates, state = optimizer.update(jax.grad(lambda x: -value(x))(params), state)
                return (optax.apply_updates(params, updates), state), None

            params = model.init(key)
            (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), length=sizes.num_steps)
            return (value(params) - lowest) / (best - lowest)

        return np.asarray(jax.jit(jax.vmap(fit))(jax.random.split(jax.random.key(0), sizes.num_restarts)))


# Critic ---------------------------------------------------------------------------------------------------------------

CRITIC_SIZES = critic.Sizes(
    num_seeds=8,
    transitions=(16384,),
    num_chains=32,
    network_transitions=(16384,),
    network_chains=8,
    hidden_sizes=tuple(hidden for hidden in CLASSES.values() if hidden is not None),
    fit_steps=4000,
)


def critics(sizes: critic.Sizes, say=lambda line: None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each class: RMS errors of Q after L updates [policy, seed], and of the direct fits [policy, restart]."""
    known = critic.setting(sizes.layout, sizes.num_targets)
    names = {name.replace("-", "×"): name for name in CLASSES}  # as `critic.learners` calls them
    found = {}
    for theirs, learner in critic.learners(known, sizes).items():
        if theirs in names:
            errors = critic.learn(known, learner, 0, sizes)[0, ..., -1]
            # A table holds every Q.
            floors = np.zeros((2, 1)) if theirs == TABLE else critic.direct_fit(known, learner.model, sizes)
            found[names[theirs]] = errors, floors
            say(f"critic {names[theirs]}: done")
    return {name: found[name] for name in CLASSES if name in found}


# What it shows --------------------------------------------------------------------------------------------------------


def summarise_policies(policies: dict[str, np.ndarray]) -> list[dict]:
    """Of each class the best, median and worst restart, 0 the reference's J and 1 the table's optimum."""
    best_to_worst = {"best": np.max, "median": np.median, "worst": np.min}
    return [{"class": name} | {k: float(f(x)) for k, f in best_to_worst.items()} for name, x in policies.items()]


def summarise_critics(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict]:
    """Of each class and policy the error of Algorithm 2 with its 95 % interval, the best and the median direct fit."""
    rows = []
    for name, (errors, floors) in found.items():
        for p, policy in enumerate(critic.POLICIES):
            rms, interval = critic.over_seeds(errors[p : p + 1])
            row = {"class": name, "policy": policy, "error": [float(rms[0]), *map(float, interval[:, 0])]}
            rows.append(row | {"floor": float(floors[p].min()), "median_floor": float(np.median(floors[p]))})
    return rows


def draw_critics(panel, rows: list[dict]) -> None:
    """Algorithm 2 above the direct fits, best to median, for each policy; a table's direct fit is exact."""
    for p, policy in enumerate(critic.POLICIES):
        of = [row for row in rows if row["policy"] == policy]
        place, color = np.arange(len(of)) + 0.24 * p - 0.12, COLORS[p]
        center, low, high = np.transpose([row["error"] for row in of])
        style = dict(fmt="o", color=color, markersize=5, label=f"Algorithm 2, {policy} policy")
        panel.errorbar(place, center, np.maximum([center - low, high - center], 0), **style)
        floors = np.transpose([(row["floor"], row["median_floor"]) for row in of])
        floors = np.maximum(floors, LOWEST / 10)
        panel.vlines(place, *floors, color=color, linewidth=4, alpha=0.35)
        panel.plot(place, floors[0], "_", color=color, label="its direct fits, best to median restart")
    panel.set_xticks(range(len(of)), [row["class"] for row in of])
    panel.set(yscale="log", xlabel="class of critics (hidden widths)", ylim=(LOWEST, 0.5))
    panel.set_ylabel("error of Q, RMS over (s, a) ~ dπ, units of reward\n(fits below the axis: not drawn)")
    n = f"{CRITIC_SIZES.network_transitions[0]:,}"
    panel.set_title(f"Critic on GridWorld, n = {n}: Algorithm 2 against what the class holds", fontsize=10)


LOWEST = 5e-4  # of the panel; a direct fit may be exact


def draw_policies(panel, rows: list[dict]) -> None:
    """What each class lacks to the table's optimum: median, best and worst restart."""
    best, middle, worst = (
        np.maximum(1 - np.array([row[k] for row in rows]), 1e-6) for k in ("best", "median", "worst")
    )
    style = dict(fmt="o", color="#009E73", capsize=4, label="median restart, and the best and the worst")
    panel.errorbar(range(len(rows)), middle, [middle - best, worst - middle], **style)
    panel.set_xticks(range(len(rows)), [row["class"] for row in rows])
    panel.set(yscale="log", xlabel="class of policies (hidden widths), of the cell's two coordinates")
    panel.set_ylabel("J lacking: 0 the table's optimum, 1 the reference")
    panel.set_title("Policy in four rooms: what gradient ascent with exact gradients reaches", fontsize=10)
