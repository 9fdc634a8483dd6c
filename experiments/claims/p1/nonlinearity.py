"""What a network in place of a table costs: for the reward (the upper level), the critic and the policy (the lower level).

Reward: what Algorithm 1 with exact gradients loses against the best Φ found in any class has two parts: what the best found
in its own class lacks, and where it ends below that (`reward_classes`). Where the true reward is not additive, the affine
class and the narrow networks are misspecified. A network of width 8 or 16 can represent every table: what its best lacks,
the search has not found. Critic: Algorithm 2 on GridWorld against direct fits of the same class to the exact Q
(`critic_errors`). Policy: ascent on J with exact gradients on a map of four rooms, seen through the cell's coordinates.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.ascent import maximise
from bilevel.lookup import bind, policy_table
from bilevel.types import Coefficients
from envs.gridworld import grid_index, gridworld
from envs.tabular import tabular
from experiments.claims.claim import Budget, Claim, Measurement, Number, Table
from experiments.claims.instances import relative_return, true_lower_level
from experiments.claims.p1 import critic_errors, reward_classes
from experiments.claims.p1.critic_errors import POLICIES
from experiments.claims.p1.landscapes import finished, lower_maxima, median
from experiments.claims.p1.reward_classes import HIDDEN, TABLE, TRUTHS, Rewards
from experiments.claims.panels import BLUE, GREEN, VERMILION, panels
from experiments.claims.seeds import for_each_seed
from experiments.statistics.intervals import Interval, bars, interquartile_mean, mean, proportion

COLORS = (BLUE, VERMILION)
ROOMS = "...#...\n.......\n...#...\n#.###.#\n...#...\n.......\n...#..G"
ROOMS_COEFFICIENTS = Coefficients(discount=0.9, kl_weight=0.1)
BARS = ("best of the class lacks", "left", "Φ lost", "lower maximum")  # what is drawn of rewards
LOWEST = 5e-4  # of the critic's panel; a direct fit may be exact


class Sizes(NamedTuple):
    """How much is computed of rewards and of critics (at their first n), restarts from random weights and steps of Adam for
    each class of policies, and the names of the classes."""

    rewards: reward_classes.Sizes = reward_classes.Sizes()
    critics: critic_errors.Sizes = critic_errors.Sizes(
        num_seeds=8, transitions=(16384,), num_chains=32, network_transitions=(16384,), network_chains=8, fit_steps=4000
    )
    num_restarts: int = 8  # from random weights, for each class of policies
    num_steps: int = 2000  # of Adam
    names: tuple[str, ...] = (*HIDDEN, TABLE)


FULL = Sizes()
QUICK = Sizes(
    reward_classes.Sizes(num_instances=6, num_points=6, num_starts=2, num_steps=300),
    FULL.critics._replace(num_seeds=5, num_targets=24, fit_steps=1000, num_restarts=2),
    num_restarts=2,
    num_steps=500,
    names=("affine", "4", TABLE),
)


class Critics(NamedTuple):
    """RMS errors of Q, of one class."""

    errors: np.ndarray  # [policy, seed] after L target updates
    floors: np.ndarray  # [policy, restart] of direct fits


class Policies(NamedTuple):
    """J that each restart of a class reaches by exact gradients, [restart]: 0 the reference's, 1 the table's optimum."""

    returns: np.ndarray  # [restart] J that a class reaches by exact gradients: 0 the reference's, 1 the table's optimum


class Data(NamedTuple):
    """What each class was measured to do as reward, as critic and as policy."""

    rewards: dict[str, Rewards]
    critics: dict[str, Critics]
    policies: dict[str, Policies]


def measure(budget: Budget, sizes: Sizes | None = None) -> Data:
    """Every class on every level, with `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else FULL)
    parts = {
        "reward": (Rewards, lambda name: reward_classes.reward_class(name, sizes.rewards)),
        "critic": (Critics, lambda name: critic_class(name, sizes.critics)),
        "policy": (Policies, lambda name: policy_class(name, sizes)),
    }
    found = {level: {} for level in parts}
    for level, (kind, compute) in parts.items():
        for name in sizes.names:
            found[level][name] = budget.keep(f"{level} {name}", kind, partial(compute, name))
            budget.say(f"{level} {name}: done")
    return Data(*found.values())


def critic_class(name: str, sizes: critic_errors.Sizes) -> Critics:
    """Algorithm 2 with a critic of that class, and the direct fits; a table holds every Q."""
    known = critic_errors.known_exactly(sizes.layout, sizes.num_targets)
    hidden_sizes = () if name == TABLE else (HIDDEN[name],)
    learner = critic_errors.learners(known, sizes._replace(hidden_sizes=hidden_sizes))[name]
    errors = critic_errors.occupancy_rms(known, critic_errors.learn(known, learner, 0, sizes))[..., -1]
    exact_fit = np.zeros((len(POLICIES), 1))
    return Critics(errors, exact_fit if name == TABLE else critic_errors.direct_fit(known, learner.model, sizes))


def policy_class(name: str, sizes: Sizes) -> Policies:
    """Ascents in float64, the reference being uniform."""
    cells = np.argwhere(grid_index(ROOMS) >= 0)
    with jax.enable_x64(True):
        mdp = gridworld(ROOMS)
        env, coordinates = tabular(mdp).env, jnp.asarray(2 * cells / cells.max(axis=0) - 1)  # in [−1, 1]²
        lower = true_lower_level(mdp, ROOMS_COEFFICIENTS)
        network = models.mlp_policy(lambda obs: coordinates[obs], 2, env.num_actions, HIDDEN.get(name, ()))
        model = models.table_policy(env.num_states, env.num_actions) if name == TABLE else network
        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, sizes.num_steps))

        def policy(params):
            return policy_table(env, bind(model, params))

        def fit(key):
            def value(params):
                return exact.regularised_return(lower, policy(params))

            return relative_return(lower, policy(maximise(value, optimizer, model.init(key), sizes.num_steps)))

        return Policies(for_each_seed(fit, sizes.num_restarts, jax.random.key(0)))


def of_rewards(data: Data) -> dict[str, dict[str, Interval]]:
    """class -> what -> its interval over instances, [truth]: means of losses and interquartile means of the return, whose
    tails are heavy; medians of μ̂₁; shares of instances."""
    found = {}
    for name, (below, left) in reward_classes.losses(data.rewards).items():
        of = data.rewards[name]
        losses = {"best of the class lacks": below, "left": left, "Φ lost": below + left}
        found[name] = {key: mean(x, axis=-1) for key, x in losses.items()}
        found[name]["return"] = interquartile_mean(of.returned, axis=-1)
        found[name]["lower maximum"] = proportion(lower_maxima(of).any(axis=-1), axis=-1)
        found[name]["ends below the best"] = proportion(reward_classes.ends_below(of), axis=-1)
        found[name]["μ̂₁"] = median(of.domination)
    return found


def judge(data: Data) -> Measurement:
    """What is lost by each class of rewards, whether the meter tells, and what critics and policies reach."""
    numbers, tables = {}, {"rewards": [], "critics": [], "policies": []}
    for name, of in of_rewards(data).items():
        for i, truth in enumerate(TRUTHS):
            cells = {key: Number(*(x[i] for x in interval)) for key, interval in of.items()}
            numbers |= {f"{key}, {name}, {truth}": cells[key] for key in ("Φ lost", "return", "lower maximum")}
            row = {"class": name, "truth": truth} | {key: list(x[:3]) for key, x in cells.items()}
            ended = {"converged": data.rewards[name].converged, "ascents finished": finished(data.rewards[name])}
            tables["rewards"].append(row | {key: np.mean(x[i]) for key, x in ended.items()})
    for i, truth in enumerate(TRUTHS):
        for key, found in reward_classes.correlations(data.rewards, i).items():
            numbers |= {f"ρ of μ̂₁ and what is {key}, {how}, {truth}": Number(*x) for how, x in found.items()}
    for name, of in data.critics.items():
        errors = critic_errors.over_seeds(of.errors)
        for p, policy in enumerate(POLICIES):
            numbers[f"error of the critic, {name}, {policy}"] = Number(*(x[p] for x in errors))
            fits = {"best fit": np.min(of.floors[p]), "median fit": np.median(of.floors[p])}
            tables["critics"].append({"class": name, "policy": policy} | fits)
    for name, of in data.policies.items():
        best_to_worst = {"best": np.max(of.returns), "median": np.median(of.returns), "worst": np.min(of.returns)}
        tables["policies"].append({"class": name} | best_to_worst)
    notes = ("direct fits of critics and restarts of policies are starts on one instance, and have no interval",)
    return Measurement(numbers, {}, notes, tuple(Table(title, rows) for title, rows in tables.items()))


def draw(data: Data) -> Figure:
    """Reward: what is lost, and whether the meter tells; critic and policy: what is reached, and what can be."""
    figure, axes = panels(13, 9, 2, 2, "Networks in place of tables, level by level, with 95 % intervals")
    for panel, draw_panel in zip(axes.flat, (draw_losses, draw_meters, draw_critics, draw_policies), strict=True):
        draw_panel(panel, data)
        panel.legend(fontsize=8)
    return figure


def draw_losses(panel: Axes, data: Data) -> None:
    """For each class what its best lacks, what Algorithm 1 leaves on top, and on how many instances maxima trap."""
    of = of_rewards(data)
    for i, (about, color) in enumerate(zip(TRUTHS, COLORS, strict=True)):
        lacks, left, lost, trapped = (
            Interval(*np.transpose([np.take(x[key], i, -1) for x in of.values()])) for key in BARS
        )
        place, style = np.arange(len(of)) + 0.4 * i - 0.2, dict(width=0.36, edgecolor=color)
        panel.bar(place, lacks.center, color=color, label=f"{about}: the best found in the class", **style)
        on_top = dict(color="white", hatch="//", label="and what Algorithm 1 leaves") | style
        panel.bar(place, left.center, bottom=lacks.center, **on_top)
        panel.errorbar(place, lost.center, bars(lost), fmt="none", color="black", linewidth=1)
        for x, top, share in zip(place, lost.high, trapped.center, strict=True):
            panel.text(x, top + 0.004, f"{share:.0%}", ha="center", va="bottom", fontsize=7, color=color)
    labels = [f"{name}\n{' | '.join(f'{x:.2f}' for x in of[name]['return'].center)}" for name in of]
    panel.set_xticks(range(len(of)), labels, fontsize=8)
    about = "class of rewards (hidden widths), and below it the return under the two truths,\n"
    panel.set_xlabel(f"{about}0 reference, 1 KL-optimal policy; above the bars: instances with a lower maximum")
    panel.set_ylabel("lost of the Φ that the best of all classes\ngains over a constant reward, share")
    panel.set_title("Reward: Φ lost by Algorithm 1, exact gradients, w = 1", fontsize=10)


def draw_meters(panel: Axes, data: Data) -> None:
    """How often Algorithm 1 ends below its class's best, by the meter on the instance."""
    ends = mean(reward_classes.by_meter(data.rewards))  # [part, truth]
    for i, (about, color) in enumerate(zip(TRUTHS, COLORS, strict=True)):
        rank = reward_classes.correlations(data.rewards, i)["left"]["within"]
        of, label = Interval(*(x[:, i] for x in ends)), "{}: Spearman's ρ {:.2f} [{:.2f}, {:.2f}]".format(about, *rank)
        panel.errorbar(range(len(of.center)), of.center, bars(of), fmt="o-", color=color, capsize=3, label=label)
    panel.set_xticks(range(reward_classes.NUM_PARTS), ["lowest\nfifth", "·", "·", "·", "highest\nfifth"])
    panel.set(xlabel="instances by their μ̂₁ within the class", ylim=(0, 0.55))
    panel.set_ylabel("share of runs that end below\nthe best of their class")
    panel.set_title("Does the meter of gradient domination tell? ρ of μ̂₁ and what is left", fontsize=10)


def draw_critics(panel: Axes, data: Data) -> None:
    """Algorithm 2 above the direct fits, best to median, for each policy; a table's direct fit is exact."""
    for p, (policy, color) in enumerate(zip(POLICIES, COLORS, strict=True)):
        place = np.arange(len(data.critics)) + 0.24 * p - 0.12
        of = critic_errors.over_seeds(np.stack([x.errors[p] for x in data.critics.values()]))
        style = dict(fmt="o", color=color, markersize=5, label=f"Algorithm 2, {policy} policy")
        panel.errorbar(place, of.center, bars(of), **style)
        floors = [(np.min(x.floors[p]), np.median(x.floors[p])) for x in data.critics.values()]
        floors = np.maximum(np.transpose(floors), LOWEST / 10)
        panel.vlines(place, *floors, color=color, linewidth=4, alpha=0.35)
        panel.plot(place, floors[0], "_", color=color, label="its direct fits, best to median restart")
    panel.set_xticks(range(len(data.critics)), list(data.critics))
    panel.set(yscale="log", xlabel="class of critics (hidden widths)", ylim=(LOWEST, 0.5))
    panel.set_ylabel("error of Q, RMS over (s, a) ~ dπ, units of reward\n(fits below the axis: not drawn)")
    panel.set_title("Critic on GridWorld, n = 16,384: Algorithm 2 against what the class holds", fontsize=10)


def draw_policies(panel: Axes, data: Data) -> None:
    """What each class lacks to the table's optimum: median, best and worst restart."""
    lacks = np.transpose([np.quantile(1 - x.returns, (0.0, 0.5, 1.0)) for x in data.policies.values()])
    of = Interval(*np.maximum(lacks, 1e-6)[[1, 0, 2]])
    style = dict(fmt="o", color=GREEN, capsize=4, label="median restart, and the best and the worst")
    panel.errorbar(range(len(data.policies)), of.center, bars(of), **style)
    panel.set_xticks(range(len(data.policies)), list(data.policies))
    panel.set(yscale="log", xlabel="class of policies (hidden widths), of the cell's two coordinates")
    panel.set_ylabel("J lacking: 0 the table's optimum, 1 the reference")
    panel.set_title("Policy in four rooms: what gradient ascent with exact gradients reaches", fontsize=10)


CLAIM = Claim(
    statement="Algorithm 1 works with neural rewards, critics and policies as with tables.",
    source="2410.15610 assumes it through weak gradient domination; measured, not claimed there",
    prediction="none: what is lost to the best known, class by class, and whether the meter of the assumption tells",
    minutes=(1, 13),
    measure=measure,
    judge=judge,
    draw=draw,
)
