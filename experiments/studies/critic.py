"""Algorithm 2 on GridWorld: its error to the exact Q against n and L, for a table and for networks, at two policies.

Three sources of error are told apart: too few target updates, γ^L; the noise of n transitions, n^{−1/2}; what the model
cannot represent (its floor). A fourth hides in Algorithm 2: along a chain the error of θ at (s, a) is correlated with the
next visit of (s, a), which biases SGD with constant steps by O(β′/C), C chains sharing a step, whether iterates are averaged
or not. A pass forgets its start as C/(β′n). So C grows like √n at a constant β′: both then vanish like n^{−1/2}, and a pass
has n/C ∝ √n steps. With C fixed the bias stays: that curve is drawn beside.

β′ is half the largest stable step of SGD on batches of C: 1/β′ = (R² + (C − 1) λ)/C for the smallest C, R² a bound on
‖∇_θ Q‖² and λ ≤ R² on the largest eigenvalue of E ∇Q ∇Qᵀ. Narrow networks end above the floor of their class: from random
starts gradient descent finds local minima, with exact targets and full gradients too.

Exact target updates contract by γ in the sup norm over all pairs, and by √γ in L²(dπ) where d is the discounted occupancy. A
pass of SGD is no exact update: its averaged iterate keeps a share (1 − e^(−x))/x of the error, x = β′ n d(s) π(a|s)/C, so
that pairs which are rarely visited hardly move. They weigh little in L²(dπ), and all in the sup norm, whose factor is up to
γ + (1 − γ) times the largest share (`critic_sup`).
"""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.gradients.critics import TDSizes, td_critic
from bilevel.lookup import bind, pair_table
from bilevel.types import Array, Hyper, Model, Problem
from envs.base import World
from envs.gridworld import gridworld
from envs.tabular import tabular
from experiments.files import write_figure, write_json
from experiments.report.summary import estimate
from experiments.runs.folder import kept
from experiments.statistics.rates import MIN_LEVELS, Fit, interval, power_law, undecided, unfitted
from experiments.studies.seeds import for_each_seed

DISCOUNT, KL_WEIGHT = 0.8, 0.3
POLICIES = ("random", "optimised")
TABLE, FIXED = "table", "table, C fixed"
MIN_UPDATES = 4  # that show a factor


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        layout: of the GridWorld.
        num_seeds: independent runs of Algorithm 2.
        num_targets: L.
        transitions, num_chains: n of the table's runs, each four times the one before, and C at the first.
        network_transitions, network_chains: the same for networks.
        hidden_sizes: of each network; () is affine.
        fit_steps, num_restarts: of the direct fit.
    """

    layout: str = "open"
    num_seeds: int = 32
    num_targets: int = 40
    transitions: tuple[int, ...] = (1024, 4096, 16384, 65536, 262144)
    num_chains: int = 8
    network_transitions: tuple[int, ...] = (1024, 4096, 16384, 65536)
    network_chains: int = 2
    hidden_sizes: tuple[tuple[int, ...], ...] = ((), (2,), (2, 2), (8,), (8, 8))
    fit_steps: int = 10_000
    num_restarts: int = 8


class Setting(NamedTuple):
    """The world and the two policies, first axes [policy].

    Attributes:
        world: GridWorld.
        logits: [2, S, A] of each policy.
        values: [2, S, A] exact Q.
        weights: [2, S, A] discounted occupancy d(s) π(a|s), which the error is weighted by.
        bias: [2, L] error after l target updates without noise, from Q = 0.
        limit: [2] error · √n of sample means at every pair, from the central limit theorem.
    """

    world: World
    logits: Array
    values: Array
    weights: Array
    bias: np.ndarray
    limit: np.ndarray


class Learner(NamedTuple):
    """A critic and its schedule: n, C at each n, and β′."""

    model: Model
    transitions: tuple[int, ...]
    chains: tuple[int, ...]
    step_size: float


class Result(NamedTuple):
    """The study's numbers; errors are RMS over pairs, weighted by occupancy, in units of reward.

    Attributes:
        setting: what was to be learned.
        learners: by name, of networks their hidden sizes.
        errors: [n, policy, seed, L] of each learner.
        floors: [policy, restart] of each network: the direct fit to the exact Q.
    """

    setting: Setting
    learners: dict[str, Learner]
    errors: dict[str, np.ndarray]
    floors: dict[str, np.ndarray]


# What is known exactly ------------------------------------------------------------------------------------------------


def setting(layout: str, num_targets: int) -> Setting:
    """The world, a policy of normal logits and the KL-optimal one of the true reward, with oracles in float64."""
    with jax.enable_x64(True):
        mdp = gridworld(layout)
        uniform = jnp.full(mdp.reward.shape, 1 / mdp.reward.shape[1])
        lower = exact.lower_level(mdp, mdp.reward, uniform, DISCOUNT, KL_WEIGHT)
        random = jax.random.normal(jax.random.key(0), mdp.reward.shape, jnp.float32)
        logits = [jnp.asarray(random, float), jnp.log(exact.optimal_policy(lower).policy)]
        known = [jax.jit(oracle, static_argnums=2)(lower, jax.nn.softmax(x), num_targets) for x in logits]
        stacked = jax.tree.map(lambda *x: np.stack(x), *[(x, *y) for x, y in zip(logits, known, strict=True)])
    learned = [jnp.asarray(x, jnp.float32) for x in stacked[:3]]
    return Setting(tabular(gridworld(layout)), *learned, *stacked[3:])


def oracle(lower: exact.LowerLevel, policy: Array, num_targets: int) -> tuple[Array, Array, Array, Array]:
    """Exact Q, occupancy, the errors of exact target updates from zero [L], and the central limit of the noise.

    In the limit each pass makes Q_l(s, a) a mean of n d(s, a) targets, whose variance is γ² Var h(s′, a′) with
    h = Q − w log π/π_ref, and e_l = γ P_π e_{l−1} + noise.
    """
    values = exact.action_values(lower, policy)
    weights = (exact.occupancy(lower, policy)[:, None] * policy).ravel()
    moves = (lower.transition[..., None] * policy).reshape(values.size, values.size)  # (s, a) -> (s′, a′)
    after = (exact.regularised_reward(lower, policy) - lower.reward + values).ravel()
    noise = lower.discount**2 * (moves @ after**2 - (moves @ after) ** 2) / weights

    def body(carry, _):
        error, power = carry  # e_l without noise, and (γ P_π)^l
        error = lower.discount * moves @ error
        variance = weights @ (power**2 @ noise)
        return (error, lower.discount * moves @ power), (jnp.sqrt(weights @ error**2), variance)

    _, (bias, variances) = jax.lax.scan(body, (values.ravel(), jnp.eye(values.size)), length=num_targets)
    return values, weights.reshape(values.shape), bias, jnp.sqrt(jnp.sum(variances))


# Algorithm 2 ----------------------------------------------------------------------------------------------------------


def learners(known: Setting, sizes: Sizes) -> dict[str, Learner]:
    """What is run. The table has R² = 1, and λ is its largest occupancy; with C fixed its last n is left out, for time.

    For networks R² and λ are both bounded by the last layer's share, width + 1; an affine function sees two ones and a 1.
    """

    def growing(first, transitions):
        return tuple(first * math.isqrt(n // transitions[0]) for n in transitions)  # ∝ √n

    shape, n, first = known.values.shape[1:], sizes.transitions, sizes.num_chains
    step_size = first / (1 + (first - 1) * float(jnp.max(known.weights)))
    found = {
        TABLE: Learner(models.table(*shape), n, growing(first, n), step_size),
        FIXED: Learner(models.table(*shape), n[:-1], (first,) * (len(n) - 1), step_size),
    }
    n = sizes.network_transitions
    for hidden in sizes.hidden_sizes:
        model = models.mlp(*models.pair_features(known.world), hidden)
        bound = hidden[-1] + 1 if hidden else 3
        name = "×".join(map(str, hidden)) if hidden else "affine"
        found[name] = Learner(model, n, growing(sizes.network_chains, n), 1 / bound)
    return found


def learn(known: Setting, learner: Learner, run: int, sizes: Sizes) -> np.ndarray:
    """Q_l − Q at every pair after each target update, at the learner's n of that number, [policy, seed, L, S, A]."""
    world, model = known.world, learner.model
    tables = models.table(*known.values.shape[1:]), models.table_policy(*known.values.shape[1:])
    problem = Problem(world.env, None, *tables, models.uniform_reference(world.env))
    hyper = Hyper(kl_weight=KL_WEIGHT, discount=DISCOUNT, critic_step_size=learner.step_size)
    critic = td_critic(problem, model, TDSizes(1, learner.transitions[run], learner.chains[run]), hyper)

    def single(key):
        key_init, key_fits = jax.random.split(key)

        def errors(logits, values):
            def body(state, key):
                state, _ = critic.fit(key, state, logits, world.mdp.reward)
                return state, pair_table(world.env, bind(model, state.params)) - values

            return jax.lax.scan(body, critic.init(key_init), jax.random.split(key_fits, sizes.num_targets))[1]

        return jax.vmap(errors)(known.logits, known.values)

    return np.swapaxes(for_each_seed(single, sizes.num_seeds, jax.random.key(1)), 0, 1)


def occupancy_rms(known: Setting, errors: np.ndarray) -> np.ndarray:
    """√ Σ d(s) π(a|s) (Q_θ − Q)² of errors [policy, seed, L, S, A], [policy, seed, L]."""
    return np.sqrt(np.einsum("psa,pklsa->pkl", np.asarray(known.weights, float), np.square(errors, dtype=float)))


def error(known: Setting, model: Model, params, values: Array, weights: Array) -> Array:
    """√ Σ d(s) π(a|s) (Q_θ − Q)², []."""
    return jnp.sqrt(jnp.sum(weights * (pair_table(known.world.env, bind(model, params)) - values) ** 2))


def direct_fit(known: Setting, model: Model, sizes: Sizes) -> np.ndarray:
    """Errors of weighted least squares on the exact Q, by full gradients and Adam, [policy, restart]: a class's floor."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, sizes.fit_steps))

    def fit(key, values, weights):
        def body(carry, _):
            params, state = carry
            grad = jax.grad(lambda x: error(known, model, x, values, weights) ** 2)(params)
            updates, state = optimizer.update(grad, state)
            return (optax.apply_updates(params, updates), state), None

        params = model.init(key)
        (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), length=sizes.fit_steps)
        return error(known, model, params, values, weights)

    def single(key):
        return jax.vmap(lambda *target: fit(key, *target))(known.values, known.weights)

    return for_each_seed(single, sizes.num_restarts, jax.random.key(2)).T


class Measured(NamedTuple):
    """Of one learner: errors [n, policy, seed, L] and floors [policy, restart or 0]."""

    errors: np.ndarray
    floors: np.ndarray


def measure(known: Setting, name: str, learner: Learner, sizes: Sizes) -> Measured:
    """Every n of one learner, and its direct fit; a table needs none."""
    errors = [occupancy_rms(known, learn(known, learner, run, sizes)) for run in range(len(learner.transitions))]
    exact_fit = np.zeros((len(POLICIES), 0))
    floors = exact_fit if name in (TABLE, FIXED) else direct_fit(known, learner.model, sizes)
    return Measured(np.stack(errors), floors)


def study(
    sizes: Sizes = Sizes(),  # noqa: B008
    say=lambda line: None,
    keep: Path | None = None,
) -> Result:
    """Runs the study; oracles in float64, everything learned in float32.

    Args:
        sizes: how much is computed.
        say: hears of each learner as it ends.
        keep: folder from which learners that are there are read, and to which the others are written; None: none.
    """
    known = setting(sizes.layout, sizes.num_targets)
    found, parts = learners(known, sizes), {}
    for name, learner in found.items():
        parts[name] = kept(keep, name, Measured, partial(measure, known, name, learner, sizes))
        say(f"{name}: run at n = {', '.join(map(str, learner.transitions))}")
    errors = {name: part.errors for name, part in parts.items()}
    floors = {name: part.floors for name, part in parts.items() if part.floors.size}
    return Result(known, found, errors, floors)


# What it shows --------------------------------------------------------------------------------------------------------


def over_seeds(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RMS over seeds [x] and its 95 % bootstrap interval [2, x], of errors [x, seed]."""
    mean = estimate(errors.T**2, trim=0)
    return np.sqrt(mean.center), np.sqrt([mean.low, mean.high])


def law(n: tuple[int, ...], errors: np.ndarray, floor: float = 0.0) -> Fit:
    """The power law in n of √(RMS² − floor²) over seeds, of errors [n, seed].

    No level is dropped as burn-in, and no other floor fitted: what exceeds the floor is noise, whose order is claimed at
    every n. Where there are too few n, or errors reach the floor, it decides nothing.
    """
    if len(n) < MIN_LEVELS:
        return unfitted(f"{len(n)} n are too few for an exponent; {MIN_LEVELS} are needed")

    def above(values, axis):
        return np.sqrt(np.maximum(np.mean(values**2, axis=axis) - floor**2, 0.0))

    try:
        return power_law(n, errors, above, burn_in=False, floor=False)
    except ValueError as error:
        return unfitted(str(error))


def per_update(errors: np.ndarray) -> np.ndarray:
    """What errors [L, …] are multiplied by at each target update, […], by least squares on logs."""
    return np.exp(np.polyfit(np.arange(len(errors)), np.log(errors), 1)[0])


def factor(errors: np.ndarray, num_resamples: int = 2000) -> list[float]:
    """`per_update` of the RMS over seeds of errors [L, seed], and its 95 % interval."""

    def fit(picks):
        return per_update(np.sqrt(np.mean(errors[:, picks] ** 2, axis=-1)))

    seeds = np.arange(errors.shape[1])
    picks = np.random.default_rng(0).choice(seeds, size=(num_resamples, len(seeds)))
    return [float(fit(seeds[None])[0]), *interval(fit(picks), len(seeds))]


def visible(known: Setting, policy: int, n: int) -> tuple[int, str]:
    """Target updates at which the error without noise is 10 × the noise, and why their factor decides nothing, if so."""
    last = int(np.sum(known.bias[policy] > 10 * known.limit[policy] / np.sqrt(n)))
    few = f"noise hides all but {last} target updates; {MIN_UPDATES} are needed"
    return max(2, last), few if last < MIN_UPDATES else ""


def contraction(result: Result, policy: int) -> dict:
    """The RMS error's factor a target update at the table's largest n, and the exact targets', while noise is small."""
    known, errors = result.setting, result.errors[TABLE][-1, policy].T  # [L, seed]
    last, why = visible(known, policy, result.learners[TABLE].transitions[-1])
    found = {"policy": POLICIES[policy], "last": last, "undecided": why or undecided(errors.shape[1])}
    found |= {"without_noise": float(per_update(known.bias[policy, :last]))}
    return found | {"factor": factor(errors[:last])}


def described(fit: Fit) -> dict:
    """An exponent, as JSON values."""
    return {"center": fit.exponent, "interval": fit.interval, "last levels": fit.tail, "undecided": fit.undecided}


def summarise(result: Result) -> dict:
    """All numbers with their intervals, as JSON values."""
    rows = []
    for name, p in ((name, p) for name in result.learners for p in range(len(POLICIES))):
        learner, errors = result.learners[name], result.errors[name][:, p, :, -1]
        rms, interval = over_seeds(errors)
        row = {"policy": POLICIES[p], "learner": name, "n": learner.transitions, "chains": learner.chains}
        row |= {"step_size": learner.step_size, "error": rms.tolist(), "interval": interval.T.tolist()}
        row |= {"exponent": described(law(learner.transitions, errors))}
        if name in result.floors:
            floors = result.floors[name][p]
            row |= {"floor": float(floors.min()), "median_floor": float(np.median(floors))}
            row |= {"exponent_above_floor": described(law(learner.transitions, errors, floors.min()))}
        else:
            row |= {"over_limit": (rms * np.sqrt(learner.transitions) / result.setting.limit[p]).tolist()}
        rows.append(row)
    return {"rates": [contraction(result, p) for p in range(len(POLICIES))], "learners": rows}


def draw(result: Result) -> Figure:
    """A row for each policy: the table against n, against L, and the networks against n."""
    figure = Figure(figsize=(15, 8.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for p, (of_table, of_targets, of_networks) in enumerate(axes):
        draw_transitions(of_table, result, p, (TABLE, FIXED))
        n = np.array(result.learners[TABLE].transitions)
        of_table.plot(n, result.setting.limit[p] / np.sqrt(n), "k:", label="central limit of sample means ∝ n^(−1/2)")
        of_table.set_title(
            f"Table, C ∝ √n chains, {POLICIES[p]} policy, L = {result.errors[TABLE].shape[-1]}", fontsize=9
        )
        draw_targets(of_targets, result, p)
        draw_transitions(of_networks, result, p, tuple(result.floors))
        of_networks.set_title(f"tanh networks, {POLICIES[p]} policy; dashed: best direct fit", fontsize=9)
    for panel in axes.ravel():
        panel.set(yscale="log")
        panel.set_ylabel("error of Q, RMS over (s, a) ~ dπ, units of reward", fontsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.suptitle("Algorithm 2 on GridWorld: RMS over seeds with 95 % bootstrap intervals", fontsize=11)
    return figure


def said(fit: Fit) -> str:
    """The exponent with its interval, if there is one."""
    if not np.isfinite(fit.exponent):
        return "no exponent"
    return f"n^−{fit.exponent:.2f} [{fit.interval[0]:.2f}, {fit.interval[1]:.2f}]"


def draw_transitions(panel, result: Result, p: int, names: tuple[str, ...]) -> None:
    """Errors against n with their intervals, and the floors of networks where they are in sight."""
    lowest = min(result.errors[name][:, p, :, -1].min() for name in names) / 2
    for name, color in zip(names, ("#0072B2", "#D55E00", "#E69F00", "#56B4E9", "#009E73", "#CC79A7"), strict=False):
        n, errors = result.learners[name].transitions, result.errors[name][:, p, :, -1]
        rms, (low, high) = over_seeds(errors)
        about = said(law(n, errors))
        if name in result.floors:
            floor = result.floors[name][p].min()
            about = f"floor {floor:.2g}, above it {said(law(n, errors, floor))}"
            if floor > lowest:
                panel.axhline(floor, color=color, linestyle="--", linewidth=1)
        bars, style = np.maximum([rms - low, high - rms], 0), dict(marker="o", markersize=3.5, linewidth=1.2)
        panel.errorbar(n, rms, bars, color=color, label=f"{name}: {about}", **style)
    panel.set(xscale="log", xlabel="n, transitions a target update")


def draw_targets(panel, result: Result, p: int) -> None:
    """The table's error against L for each n, and what exact target updates would leave."""
    learner, errors = result.learners[TABLE], result.errors[TABLE][:, p]  # [n, seed, L]
    updates, rate = np.arange(1, errors.shape[-1] + 1), contraction(result, p)
    for n, shade, of_n in zip(learner.transitions, np.linspace(0.75, 0.1, len(errors)), errors, strict=True):
        rms, (low, high) = over_seeds(of_n.T)
        color = (shade, shade, 1 - shade / 3)
        panel.plot(updates, rms, color=color, label=f"n = {n}")
        panel.fill_between(updates, low, high, color=color, alpha=0.25, linewidth=0)
    panel.plot(updates, result.setting.bias[p], "k--", label=f"exact targets: × {rate['without_noise']:.3f} an update")
    panel.set(xlabel="L, target updates", ylim=(errors[-1].min() / 2, None))
    shown = "× {:.3f} [{:.3f}, {:.3f}] an update".format(*rate["factor"])
    panel.set_title(f"{POLICIES[p]} policy, largest n: {shown} up to L = {rate['last']}; γ = {DISCOUNT}", fontsize=9)


def main(out: Path, say=print) -> None:
    """Runs the study and writes `critic.png` and `critic.json`."""
    result = study(say=say)
    summary = summarise(result)
    write_json(out, "critic.json", summary)
    write_figure(out, "critic.png", draw(result), dpi=120)
    for row in summary["rates"]:
        shown = "{:.3f} [{:.3f}, {:.3f}]".format(*row["factor"])
        say(f"{row['policy']:10s} table: × {shown} a target update, without noise × {row['without_noise']:.3f}")
    for row in summary["learners"]:
        error = "{:.4f} [{:.4f}, {:.4f}]".format(row["error"][-1], *row["interval"][-1])
        line = f"{row['policy']:10s} {row['learner']:15s} error at the last n {error}"
        line += "; exponent in n {:.3f} [{:.3f}, {:.3f}]".format(
            row["exponent"]["center"], *row["exponent"]["interval"]
        )
        say(line + (f"; floor {row['floor']:.4f} ({row['median_floor']:.4f})" if "floor" in row else ""))
    say(f"figure: {out / 'critic.png'}")
