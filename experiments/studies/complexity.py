"""How many samples Algorithm 1 takes to reach a gap: a ladder of targets ε under the schedule of the theorem.

    σ = c √ε,  B = c/ε,  T = c/ε,  K = c/√ε,  n = c/ε²      of which samples ∝ ε^(−7/2), so that gap ∝ samples^(−2/7)

The paper leaves the split over T, K and n, the constants and η_t open (2410.15610): this is one with the right total, with
η_t ∝ 1/t, and with √n chains in Algorithm 2, since with a fixed number of them a bias stays (`critic`). Beside the whole gap
stand its parts: the proxy's bias, Φ* − Φ at the maximiser of Φ_σ; what T and K leave of the optimisation without noise;
and the noise of the sampling.

On two states and two actions, r_φ(s, a) = φ₁ s + φ₂ a from standard normal φ: few enough parameters to look at Φ all over a
square. No instance satisfies the theorem's assumption everywhere: far away, where policies are nearly deterministic, Φ is
flat in some directions, and may be higher there than at any maximum nearby, and in others it falls linearly, so that
‖∇Φ‖/(Φ* − Φ) → 0. So the theorem is tried locally, on the square |φ_i| ≤ `RADIUS` where runs are, by a grid, by ascents and
by a search for stationary points. Φ* is the highest to which ascents lead: at w = 3 within the square, and how much higher Φ
is farther away is told; at w = 0.5 outside, while runs end in a lower maximum.

ε is an index of the schedule, whose constants are ours: gaps end below it, and the first levels' are met at the start.
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
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, bilevel_rlhf
from bilevel.exact import landscape, meters
from bilevel.gradients.critics import TDSizes, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.preferences import annotator, log_likelihood
from bilevel.run import run, start
from bilevel.types import Array, Gradients, Hyper, Problem
from envs.base import MDP
from envs.tabular import tabular
from experiments.files import write_figure, write_json
from experiments.report.summary import Estimate, bars, estimate
from experiments.runs.folder import kept
from experiments.statistics.rates import Fit, power_law, unfitted
from experiments.studies.seeds import for_each_seed

DISCOUNT, LENGTH, ROLLOUT = 0.5, 3, 14  # 0.5^14 = 6e-5
RADIUS, GRID = 4.0, 9  # of the square in which the assumption is looked at, and points a side from which it is searched
FAR, FAR_GRID = 100.0, 49  # of the square in which a higher Φ is looked for, and points a side, denser in the middle
POLICY_STEP, REWARD_STEP, CRITIC_STEP = 0.5, 2.0, 1.5  # τ: the curvature of J is at most w/(2 (1 − γ)) = 3
WEIGHTS = {"one maximum": 3.0, "several maxima": 0.5}  # w, and what ascent on the exact Φ finds
ESTIMATORS = ("independent", "weighted")
EXACT = "exact gradients"
ARMS = (*ESTIMATORS, EXACT)
ROUNDING = 1e-9  # a gap below it is none
EXPONENT = 2 / 7


class Sizes(NamedTuple):
    """How much the study computes.

    Attributes:
        epsilons: targets, falling.
        num_seeds: at each.
        num_starts: random φ from which the exact Φ is climbed.
        ascent_steps: of that.
        arms: which of `ARMS`; the bias is measured with the exact one.
    """

    epsilons: tuple[float, ...] = tuple(10 ** (-x / 5) for x in range(7))  # to 0.063
    num_seeds: int = 64
    num_starts: int = 64
    ascent_steps: int = 1500
    arms: tuple[str, ...] = ARMS


# The least that can decide: of four levels a fit never knows whether burn-in reaches further.
QUICK = Sizes(Sizes().epsilons[:5], 16, num_starts=16, ascent_steps=600, arms=ESTIMATORS)


class Level(NamedTuple):
    """The schedule at one ε; the fields are the paper's σ, T, K, B, n and L, and the chains that give the n transitions."""

    epsilon: float
    sigma: float
    num_steps: int
    num_policy_steps: int
    batch_size: int
    num_transitions: int
    num_targets: int = 2
    num_chains: int = 16


LARGE = Level(0.0, 0.0, num_steps=400, num_policy_steps=50, batch_size=2, num_transitions=16)


def schedule(epsilon: float) -> Level:
    """Of Algorithm 1; samples ∝ ε^(−7/2) as ε falls."""
    return Level(
        epsilon,
        sigma=2 * math.sqrt(epsilon),
        num_steps=math.ceil(8 / epsilon),
        num_policy_steps=math.ceil(2 / math.sqrt(epsilon)),
        batch_size=2 * math.ceil(8 / epsilon),
        num_transitions=(8 * math.ceil(1 / epsilon)) ** 2,
        num_chains=8 * math.ceil(1 / epsilon),
    )


# The instance ---------------------------------------------------------------------------------------------------------


def instance() -> MDP:
    """Two states, of which the second is rare and pays; two actions."""
    transition = jnp.array([[[0.9, 0.1], [0.1, 0.9]], [[1.0, 0.0], [0.7, 0.3]]])
    return MDP(jnp.array([0.8, 0.2]), transition, jnp.array([[-0.8, 0.1], [1.7, 0.9]]))


def problem(mdp: MDP, hyper: Hyper) -> Problem:
    """r_φ(s, a) = φ₁ s + φ₂ a, standard normal at first; a table as policy, Bradley–Terry labels, a uniform reference."""
    world = tabular(mdp)
    rewards = models.linear(lambda state, action: jnp.array([state, action], float), 2)
    rewards = rewards._replace(init=lambda key: jax.random.normal(key, (2,)))
    policies = models.table_policy(*mdp.reward.shape)
    return Problem(
        world.env, annotator(world.reward, hyper.discount), rewards, policies, models.uniform_reference(world.env)
    )


def lower_level(mdp: MDP, reward: Array, kl_weight: Array) -> exact.LowerLevel:
    """The lower-level problem at a reward table."""
    uniform = jnp.full(mdp.reward.shape, 1 / mdp.reward.shape[1])
    return exact.lower_level(mdp, reward, uniform, DISCOUNT, kl_weight)


def objective(mdp: MDP, params: Array, kl_weight: Array) -> Array:
    """Φ(φ), [], exactly, φ [2]."""
    reward = params[0] * jnp.arange(2.0)[:, None] + params[1] * jnp.arange(2.0)
    segments = exact.enumerate_segments(*mdp.reward.shape, LENGTH)
    annotate = annotator(tabular(mdp).reward, DISCOUNT)
    comparisons = exact.exact_comparisons(annotate, segments)
    policy = exact.optimal_policy(lower_level(mdp, reward, kl_weight)).policy
    return exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, DISCOUNT)


class Assumption(NamedTuple):
    """Weak gradient domination, as far as it was looked at.

    Attributes:
        best: [] Φ*: the largest Φ to which plain ascents climb from random φ and from a grid on the square.
        reached: [] share of the random φ from which they get there.
        domination: [] μ̂₁ over all φ that they visited, in 1/(unit of φ)²; 0 with a stationary point below Φ* in the square.
        below: [] the number of different such points.
        beyond: [] the largest Φ that was seen outside of the square, up to |φ_i| = `FAR`, less Φ*, at least; nats.
        start: [3] the mean gap of the random φ, which are drawn as those of runs, with its 95 % interval, nats.
    """

    best: np.ndarray
    reached: np.ndarray
    domination: np.ndarray
    below: np.ndarray
    beyond: np.ndarray
    start: np.ndarray


def assumption(kl_weight: float, sizes: Sizes) -> Assumption:
    """What ascents, and searches for a φ at which ∇Φ vanishes, find; exactly, in float64."""
    with jax.enable_x64(True):
        line = jnp.linspace(-RADIUS, RADIUS, GRID)
        square = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)
        random = jax.random.normal(jax.random.key(2), (sizes.num_starts, 2))
        starts = jnp.concatenate([random, square])
        line = jnp.sinh(jnp.linspace(-jnp.arcsinh(FAR), jnp.arcsinh(FAR), FAR_GRID))
        far = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)
        looked = _looked_at(starts, square, kl_weight, sizes.ascent_steps)
        ends, values, norms, found = jax.tree.map(np.asarray, looked)
        outside = np.asarray(_values(far, kl_weight))[np.any(np.abs(far) > RADIUS, axis=-1)]
        left = np.any(np.abs(ends) > RADIUS, axis=-1)
        beyond = np.nanmax([*outside, *values[left, -1]])
        best = np.nanmax(values[:, -1])
        inside = np.all(np.abs(found.params) <= RADIUS, axis=-1) & np.asarray(landscape.is_stationary(found))
        below = inside & (found.value < best - 1e-5)
        along = meters.domination(values.ravel(), norms.ravel(), best)
        different = len(np.unique(np.round(found.params[below], 4), axis=0))
    gaps = best - values[: sizes.num_starts]
    reached, domination = np.mean(gaps[:, -1] < 1e-6), np.where(below.any(), 0.0, along)
    start = np.array(estimate(gaps[:, 0], trim=0.0)[:3])
    return Assumption(best, reached, domination, np.array(different), beyond - best, start)


@partial(jax.jit, static_argnames="num_steps")
def _looked_at(starts, square, kl_weight, num_steps):
    mdp, hyper = instance(), Hyper(kl_weight=kl_weight, discount=DISCOUNT)
    slope = jax.value_and_grad(partial(objective, mdp, kl_weight=kl_weight))

    def body(params, _):
        value, gradient = slope(params)
        return params + 1.5 * gradient, (value, jnp.linalg.norm(gradient))

    ends, (values, norms) = jax.vmap(lambda start: jax.lax.scan(body, start, length=num_steps))(starts)
    land = landscape.landscape(problem(mdp, hyper), mdp, LENGTH, hyper)
    return ends, values, norms, jax.lax.map(lambda start: landscape.search(land, start, False, 200), square)


# Algorithm 1 at one level ---------------------------------------------------------------------------------------------


def falling(step_size):
    """η_t = η/(1 + t/20)."""
    return optax.sgd(lambda count: step_size / (1 + count / 20))


def gradients_of(ours: Problem, mdp: MDP, arm: str, level: Level, hyper: Hyper) -> Gradients:
    """Exact, or sampled with Algorithm 2 as the critic."""
    if arm == EXACT:
        return exact_gradients(ours, mdp, LENGTH, hyper)
    sizes = TDSizes(level.num_targets, level.num_transitions, level.num_chains)
    critic = td_critic(ours, models.table(*mdp.reward.shape), sizes, hyper)
    return sampled_gradients(ours, critic, SampleSizes(level.batch_size, ROLLOUT, LENGTH, arm), hyper)


class Learned(NamedTuple):
    """params [seed, 2] φ_T, transitions [] a seed."""

    params: np.ndarray
    transitions: np.ndarray


def learn(level: Level, arm: str, kl_weight: float, num_seeds: int) -> Learned:
    """Every seed of an arm at one ε."""
    single = partial(run_of, level=level, arm=arm, kl_weight=kl_weight)
    params, transitions = for_each_seed(single, num_seeds, jax.random.key(0))
    return Learned(params, transitions[0])


def run_of(key: Array, level: Level, arm: str, kl_weight: float) -> tuple[Array, Array]:
    """φ_T [2] of one run, and its transitions; σ may be traced."""
    mdp = instance()
    steps = dict(policy_step_size=POLICY_STEP, reward_step_size=REWARD_STEP, critic_step_size=CRITIC_STEP)
    hyper = Hyper(level.sigma, kl_weight, DISCOUNT, **steps)
    ours = problem(mdp, hyper)
    config = BilevelConfig(level.num_policy_steps, reward_optimizer=falling)
    algorithm = bilevel_rlhf(ours, gradients_of(ours, mdp, arm, level, hyper), config, hyper)
    state, metrics = run(algorithm, key, start(algorithm, key), level.num_steps)
    return algorithm.params(state.algorithm).reward, jnp.sum(metrics["transitions"].astype(float))


def values(params: np.ndarray, kl_weight: float) -> np.ndarray:
    """Φ at each φ [..., 2], in float64."""
    with jax.enable_x64(True):
        return np.asarray(_values(jnp.asarray(params, float).reshape(-1, 2), kl_weight)).reshape(params.shape[:-1])


@jax.jit
def _values(params, kl_weight):
    return jax.vmap(lambda one: objective(instance(), one, kl_weight))(params)


class Rate(NamedTuple):
    """Along the ladder.

    Attributes:
        assumed: what is known of the theorem's assumption; its `best` is Φ*.
        levels: [ε].
        samples: arm -> [ε] transitions a seed.
        gap: arm -> [ε, seed] Φ* − Φ(φ_T), nats; the exact arm has the same starts, and no other noise.
        bias: [ε] Φ* − Φ where exact gradients end if T and K are large, from the best start: the proxy's; NaN: not asked.
        inside: arm -> [ε] share of the seeds whose φ_T lies in the square where the assumption was looked at.
    """

    assumed: Assumption
    levels: tuple[Level, ...]
    samples: dict[str, np.ndarray]
    gap: dict[str, np.ndarray]
    bias: np.ndarray
    inside: dict[str, np.ndarray]


def study(
    kl_weight: float,
    sizes: Sizes = Sizes(),  # noqa: B008
    keep: Path | None = None,
    say=lambda line: None,
    schedule=schedule,
) -> Rate:
    """The ladder at one w.

    Args:
        kl_weight: w.
        sizes: how much is computed.
        keep: folder from which levels that are there are read, and to which the others are written; None: none.
        say: hears of each level as it ends.
        schedule: ε -> Level.
    """
    assumed = assumption(kl_weight, sizes)
    best = float(assumed.best)
    levels = tuple(map(schedule, sizes.epsilons))
    samples, gap, inside = ({arm: np.zeros(len(levels)).tolist() for arm in sizes.arms} for _ in range(3))
    for i, level in enumerate(levels):
        for arm in sizes.arms:
            name = f"{arm} {level.epsilon:.4f}"
            params, transitions = kept(keep, name, Learned, partial(learn, level, arm, kl_weight, sizes.num_seeds))
            gap[arm][i] = np.maximum(best - values(params, kl_weight), ROUNDING)
            samples[arm][i] = float(transitions)
            inside[arm][i] = np.mean(np.all(np.abs(params) <= RADIUS, axis=-1))
        shown = ", ".join(f"{arm} {gap[arm][i].mean():.2e}" for arm in sizes.arms)
        say(f"ε = {level.epsilon:.3f}: {samples[sizes.arms[0]][i]:.3g} transitions a seed; Φ* − Φ: {shown}")
    bias = np.full(len(levels), np.nan)
    if EXACT in sizes.arms:
        bias = best - values(limits(levels, kl_weight), kl_weight).max(axis=0)
    stacked = [{arm: np.stack(x) for arm, x in many.items()} for many in (samples, gap, inside)]
    return Rate(assumed, levels, stacked[0], stacked[1], bias, stacked[2])


def limits(levels: tuple[Level, ...], kl_weight: float) -> np.ndarray:
    """Where exact gradients end, [seed, level, 2], at the σ of each level if T and K are large; one program."""
    sigmas = jnp.array([level.sigma for level in levels])

    def single(key):
        return jax.vmap(lambda sigma: run_of(key, LARGE._replace(sigma=sigma), EXACT, kl_weight)[0])(sigmas)

    return for_each_seed(single, 16, jax.random.key(0))


# What it shows --------------------------------------------------------------------------------------------------------

COLORS = {"independent": "#D55E00", "weighted": "#0072B2", EXACT: "#009E73"}


def law(budgets: np.ndarray, gap: np.ndarray) -> Fit:
    """The power law of gaps [level, seed], without a floor: the claim is that the gap goes to zero.

    Where runs ended with a gap that is no number it decides nothing.
    """
    why = without_gap(gap)
    return unfitted(why) if why else power_law(budgets, gap, floor=False)


def without_gap(gap: np.ndarray) -> str:
    """At which level, and in how many runs, gaps [level, seed] first are no numbers, in words; "" if all are."""
    seeds = (~np.isfinite(gap)).sum(axis=1)
    if not seeds.any():
        return ""
    level = np.argmax(seeds > 0)
    return (
        f"{seeds[level]} of {gap.shape[1]} runs at level {level + 1} of {len(gap)} ended with a gap that is no number"
    )


def fits(result: Rate) -> dict[str, Fit]:
    """The power law of each sampled arm."""
    return {arm: law(result.samples[arm], result.gap[arm]) for arm in ESTIMATORS if arm in result.gap}


def parts(result: Rate) -> dict[str, list[list[float]]]:
    """The gap's parts at each ε, means over seeds with 95 % intervals: the starts are the same with and without noise.

    bias: the proxy's, without an interval; optimisation: what T and K leave without noise; noise: what sampling adds to it.
    Empty without the exact arm.
    """
    if EXACT not in result.gap:
        return {}
    exactly, rest = result.gap[EXACT], {arm: gap for arm, gap in result.gap.items() if arm != EXACT}
    each = {"optimisation": exactly - result.bias[:, None]}
    each |= {f"noise, {arm}": gap - exactly for arm, gap in rest.items()}
    found = {name: np.stack(estimate(x.T, trim=0.0)[:3], axis=-1).tolist() for name, x in each.items()}
    return {"bias": [[float(x)] * 3 for x in result.bias]} | found


def draw(results: dict[str, Rate]) -> Figure:
    """The gap against samples, a panel for each w: sampled arms with their fits, the parts of the gap, ε and the start."""
    figure = Figure(figsize=(5.6 * len(results), 6.4), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for panel, (name, result) in zip(panels, results.items(), strict=True):
        for arm in result.gap:
            budgets = result.samples["independent" if arm == EXACT else arm]
            if arm == EXACT:
                label = "T and K, without noise"
                panel.plot(budgets, result.gap[arm].mean(axis=1), "s--", color=COLORS[arm], markersize=3, label=label)
            else:
                curve(panel, COLORS[arm], f"{arm}: {shown(law(budgets, result.gap[arm]))}", budgets, result.gap[arm])
        budgets = result.samples["independent"]
        # Where few starts reach Φ* the bias is only which maxima those of `limits` found.
        if result.assumed.reached > 0.5 and EXACT in result.gap:
            bias = np.maximum(result.bias, 1e-12)
            panel.plot(budgets, bias, "k^:", markersize=3, linewidth=1, label="bias of the proxy")
        ladder(panel, budgets, [level.epsilon for level in result.levels], float(result.assumed.start[0]))
        guide(panel, budgets, result.gap["independent"].mean(axis=1)[0], EXPONENT, "2/7")
        finish(panel, "Φ* − Φ(φ_T), nats")
        panel.set_title(
            f"w = {WEIGHTS[name]:g}: {name} nearby ({100 * result.assumed.reached:.0f} % of ascents reach Φ*)",
            fontsize=10,
        )
    return figure


def finish(panel, label: str) -> None:
    """Axes of a gap against samples."""
    drawn = np.concatenate([line.get_ydata() for line in panel.lines])
    panel.set(xscale="log", yscale="log" if np.isfinite(drawn).any() else "linear", ylabel=label)
    panel.set(xlabel="samples (transitions a seed); bars: 95 % intervals of the mean")
    panel.grid(alpha=0.3)
    below = dict(loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=6.0)  # covers no data
    panel.legend(fontsize=8, title="gap ∝ samples^(−p)", title_fontsize=8, **below)


def means(gap: np.ndarray) -> Estimate:
    """Over seeds of a gap [level, seed], each [level]: gaps are positive, and the bootstrap's ends are too.

    Not a number where a seed has no gap: the others alone would flatter.
    """
    whole = np.isfinite(gap).all(axis=1)
    return Estimate(*(np.where(whole, x, np.nan) for x in estimate(gap.T, trim=0.0)))


def curve(panel, color: str, label: str, budgets, gap: np.ndarray, marker: str = "o", linestyle: str = "-") -> None:
    """Mean over seeds with its 95 % interval."""
    style = dict(color=color, marker=marker, linestyle=linestyle, markersize=4, capsize=2)
    mean = means(gap)
    panel.errorbar(budgets, mean.center, bars(mean), label=label, **style)


def ladder(panel, budgets: np.ndarray, epsilons, start: float) -> None:
    """What a level asks for, ε in the gap's unit, at its samples; and the mean gap of the starts."""
    panel.plot(budgets, epsilons, "o:", color="0.5", markersize=3, linewidth=1, label="ε of the level")
    for budget, epsilon in zip(budgets, epsilons, strict=True):
        place = dict(xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7, color="0.4")
        panel.annotate(f"{epsilon:.2g}", (budget, epsilon), **place)
    panel.axhline(start, color="0.5", linestyle="--", linewidth=1, label=f"gap at the start, {start:.2g} in the mean")


def shown(fit: Fit) -> str:
    """The exponent with its interval."""
    low, high = fit.interval
    return f"p = {fit.exponent:.2f} [{low:.2f}, {high:.2f}]".replace("inf", "∞")


def guide(panel, budgets: np.ndarray, first: float, exponent: float, label: str) -> None:
    """A line of the theorem's exponent."""
    line = first * (budgets / budgets[0]) ** -exponent
    panel.plot(budgets, line, color="0.4", linestyle="-.", linewidth=1, label=f"p = {label}, the theorem's")


def describe(fit: Fit) -> dict:
    """An exponent, as JSON values."""
    about = {"exponent": fit.exponent, "interval": fit.interval, "undecided": fit.undecided}
    return about | {"burn_in": fit.burn_in}


def finite(value):
    """The same dictionaries and lists, with None for numbers that are not finite: JSON has none."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(results: dict[str, Rate]) -> dict:
    """Exponents, their intervals and the parts of the gap, as JSON values."""
    return {
        name: {
            "kl_weight": WEIGHTS[name],
            "assumption": {key: np.asarray(x).tolist() for key, x in result.assumed._asdict().items()},
            "parts": parts(result),
            "epsilon": [level.epsilon for level in result.levels],
            "samples": {arm: x.tolist() for arm, x in result.samples.items()},
            "gap": {arm: x.mean(axis=1).tolist() for arm, x in result.gap.items()},
            "inside": {arm: x.tolist() for arm, x in result.inside.items()},
            "fits": {arm: describe(fit) for arm, fit in fits(result).items()},
        }
        for name, result in results.items()
    }


def main(out: Path, say=print) -> None:
    """Runs the study and writes `complexity.png` and `complexity.json`; `bilevel verify P1.rate` does it resumably."""
    results = {name: study(weight, say=say) for name, weight in WEIGHTS.items()}
    write_json(out, "complexity.json", finite(summarise(results)))
    write_figure(out, "complexity.png", draw(results), dpi=120)
    say(f"figure: {out / 'complexity.png'}")
