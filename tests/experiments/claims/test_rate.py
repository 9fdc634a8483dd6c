"""The ladder of targets: its schedule's cost, its files, and the claims' verdicts on gaps whose exponents are planted."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, step_cost
from bilevel.gradients.hypergradients import proxy
from bilevel.types import Hyper
from experiments.files import write_arrays
from experiments.studies import actor_critic, complexity
from experiments.studies.complexity import ARMS, ESTIMATORS, EXACT, Sizes
from experiments.verify import p1_actor_critic, p1_rate
from experiments.verify.claims import Budget, judge, together

WEIGHT = complexity.WEIGHTS["one maximum"]
LOOK = {"num_starts": 8, "ascent_steps": 600}  # of the assumption, one program


def never(*args):
    raise AssertionError("everything is there already")


def test_the_schedules_cost_what_the_theorems_count():
    mdp, hyper = complexity.instance(), Hyper(kl_weight=WEIGHT, discount=complexity.DISCOUNT)
    ours = complexity.problem(mdp, hyper)

    def whole(epsilon):
        level = complexity.schedule(epsilon)
        gradients = complexity.gradients_of(ours, mdp, "independent", level, hyper)
        cost = step_cost(gradients, BilevelConfig(level.num_policy_steps), proxy(ours, gradients, hyper))
        return level.num_steps * cost.transitions

    def alone(epsilon):
        level = actor_critic.schedule(epsilon)
        gradients = complexity.gradients_of(ours, mdp, "weighted", level, hyper)
        return level.num_policy_steps * gradients.return_cost.transitions

    for cost, exponent in ((whole, 3.5), (alone, 3.0)):
        assert np.log(cost(2.5e-3) / cost(1e-2)) / np.log(4) == pytest.approx(
            exponent, abs=0.15
        )  # rollouts of B lag behind
    # And nearly so where the ladder is, by the critic's transitions more than by rollouts.
    for cost, epsilons, low in ((whole, Sizes().epsilons, 2.9), (alone, actor_critic.Sizes().epsilons, 2.6)):
        samples = np.array([cost(epsilon) for epsilon in epsilons])
        assert low < -np.polyfit(np.log(epsilons), np.log(samples), 1)[0] < 3.5
    last = complexity.schedule(Sizes().epsilons[-1])
    assert last.num_targets * last.num_transitions > 5 * last.batch_size * complexity.ROLLOUT
    for name, power in (("sigma", 0.5), ("batch_size", -1.0)):  # as the theorem asks
        first, last = (getattr(complexity.schedule(epsilon), name) for epsilon in (1e-1, 1e-3))
        assert np.log10(last / first) / -2 == pytest.approx(power, abs=0.01)


# The claims on planted gaps -------------------------------------------------------------------------------------------


@functools.cache
def path() -> tuple[np.ndarray, np.ndarray, float]:
    """φ [points, 2] between the maximiser of Φ and another, their gaps, and Φ*."""

    @jax.jit
    def climb():
        slope = jax.grad(functools.partial(complexity.objective, complexity.instance(), kl_weight=WEIGHT))
        start = jnp.array([0.0, 2.0])
        return start, jax.lax.scan(lambda x, _: (x + 1.5 * slope(x), None), start, length=1500)[0]

    with jax.enable_x64(True):
        start, end = map(np.asarray, climb())
    share = np.geomspace(1e-4, 1.0, 400)
    params = end + share[:, None] * (start - end)
    best = float(complexity.values(end[None], WEIGHT)[0])
    return params, best - complexity.values(params, WEIGHT), best


@functools.cache
def lower_path() -> tuple[np.ndarray, np.ndarray]:
    """Logits [points, S, A] between the optimal policy and the uniform one, and their gaps."""
    with jax.enable_x64(True):
        lower = complexity.lower_level(complexity.instance(), complexity.instance().reward, WEIGHT)
        best = np.asarray(jnp.log(exact.optimal_policy(lower).policy))
    logits = (1 - np.geomspace(1e-4, 1.0, 400))[:, None, None] * best
    return logits, actor_critic.suboptimality(logits)


def at(points: np.ndarray, gaps: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Points [..., *shape] whose gaps are the targets [...], on a path where the gap grows."""
    assert (np.diff(gaps) > 0).all()
    assert gaps[0] < targets.min() and targets.max() < gaps[-1]
    flat = points.reshape(len(points), -1)
    found = np.stack([np.interp(np.log(targets), np.log(gaps), column) for column in flat.T], axis=-1)
    return found.reshape(*targets.shape, *points.shape[1:])


def planted(exponent, samples: np.ndarray, top: float, num_seeds: int, noise: float, key: int, floor=0.0) -> np.ndarray:
    """Gaps [level, seed] ∝ samples^(−exponent) + floor, lognormal over seeds."""
    rng = np.random.default_rng(key)
    spread = np.exp(noise * rng.standard_normal((len(samples), num_seeds)))
    return top * ((samples / samples[0])[:, None] ** -exponent + floor) * spread


SAMPLES = np.array([3e4, 1.2e5, 4e5, 1e6, 4e6, 1.2e7, 6e7])


ASSUMED = {"reached": 1.0, "domination": 0.02, "below": 0, "beyond": 0.04, "start": [0.2, 0.1, 0.3]}


def verdict_of_rate(folder, monkeypatch, exponents, num_seeds=64, noise=0.5, floor=0.0, spoil=None, **refuted) -> str:
    """Where gaps fall with those exponents to a floor, in units of the first; `spoil` changes the φ of an arm and ε."""
    params, gaps, best = path()
    sizes = Sizes(num_seeds=num_seeds)
    for arm in ARMS:
        targets = planted(exponents.get(arm, 1.0), SAMPLES, 0.02, num_seeds, noise, ARMS.index(arm), floor)
        for epsilon, target, count in zip(sizes.epsilons, targets, SAMPLES, strict=True):
            ends = at(params, gaps, np.clip(target, 2 * gaps[0], 0.9 * gaps[-1]))
            found = {"params": ends if spoil is None else spoil(arm, epsilon, ends), "transitions": count}
            for name in complexity.WEIGHTS:
                write_arrays(folder / name, f"{arm} {epsilon:.4f}.npz", found)
    with monkeypatch.context() as patch:
        patch.setattr(complexity, "Sizes", lambda: sizes)
        assumed = complexity.Assumption(np.array(best), **{k: np.array(x) for k, x in (ASSUMED | refuted).items()})
        patch.setattr(complexity, "assumption", lambda *args: assumed)
        patch.setattr(complexity, "limits", lambda levels, _: np.repeat(params[None, :1], len(levels), axis=1))
        patch.setattr(complexity, "learn", never)
        measured = p1_rate.measure(Budget(False, folder))
    assert measured.figure is not None and len(measured.notes) >= 2
    return together(judge(p1_rate.CLAIM, measured.numbers))


@pytest.mark.parametrize(
    ("exponents", "expected"),
    [
        ({"independent": 0.6, "weighted": 0.8}, "holds"),
        ({"independent": 0.15, "weighted": 0.8}, "fails"),
        ({"independent": 0.45, "weighted": 0.15}, "fails"),
    ],
)
def test_a_planted_exponent_decides_the_rate(exponents, expected, tmp_path, monkeypatch):
    assert verdict_of_rate(tmp_path, monkeypatch, exponents) == expected


def test_a_gap_that_stalls_at_a_floor_fails(tmp_path, monkeypatch):
    fast = dict.fromkeys(ESTIMATORS, 0.66)
    floor = (SAMPLES[2] / SAMPLES[0]) ** -0.66  # what the power law is at the third level of seven
    assert verdict_of_rate(tmp_path, monkeypatch, fast, floor=floor) == "fails"


def test_a_gap_that_meets_its_floor_at_the_last_level_does_not_hold(tmp_path, monkeypatch):
    fast = dict.fromkeys(ESTIMATORS, 0.6)
    floor = (SAMPLES[-1] / SAMPLES[0]) ** -0.6
    assert verdict_of_rate(tmp_path, monkeypatch, fast, noise=1.0, floor=floor) == "not decided"


def test_a_run_without_a_gap_is_counted_and_decides_nothing(tmp_path, monkeypatch):
    def spoil(arm, epsilon, params):
        return np.where(np.arange(64)[:, None] == 5, np.nan, params) if (arm, epsilon) == ("weighted", 1.0) else params

    exponents = {"independent": 0.45, "weighted": 0.8}
    assert verdict_of_rate(tmp_path, monkeypatch, exponents, spoil=spoil) == "not decided"
    gap = np.ones((5, 8))
    gap[3, :2] = np.inf
    fit = complexity.law(10.0 ** np.arange(5), gap)
    assert fit.undecided == "2 of 8 runs at level 4 of 5 ended with a gap that is no number"
    gap[:, 0] = np.nan  # and is drawn all the same
    result = actor_critic.ActorCritic(10.0 ** np.arange(5), gap)
    actor_critic.draw(result, actor_critic.QUICK.epsilons).savefig(tmp_path / "drawn.png")
    about = json.dumps(complexity.finite(complexity.describe(complexity.law(10.0 ** np.arange(5), gap))))
    assert "NaN" not in about and '"exponent": null' in about


def test_error_bars_are_the_bootstraps_and_epsilon_and_the_start_are_in_the_figure():
    gap = np.random.default_rng(0).lognormal(-12, 2.5, (5, 24))  # whose standard error is about the mean
    epsilons = actor_critic.QUICK.epsilons
    figure = actor_critic.draw(actor_critic.ActorCritic(10.0 ** np.arange(3, 8), gap), epsilons)
    (panel,) = figure.axes
    (bars,) = (x for x in panel.containers if "actor" in x.get_label())
    drawn = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    mean, low, high, _ = complexity.means(gap)
    np.testing.assert_allclose(drawn, np.stack([low, high], axis=-1))
    assert (low > 0).all() and np.sum(high - mean) > 1.05 * np.sum(mean - low)
    texts = {text.get_text() for text in panel.texts}
    assert texts == {f"{epsilon:.2g}" for epsilon in epsilons}
    assert any("gap at the start, 0.13" in text.get_text() for text in panel.get_legend().get_texts())
    figure.draw_without_rendering()
    legend = panel.get_legend().get_window_extent()
    assert (
        legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0 and legend.y1 <= panel.get_window_extent().y0
    )


def test_where_the_assumption_is_refuted_or_left_behind_the_theorem_is_not_judged(tmp_path, monkeypatch):
    exponents = {"independent": 0.15, "weighted": 0.15}
    assert verdict_of_rate(tmp_path, monkeypatch, exponents, domination=0.0) == "not decided"
    with monkeypatch.context() as patch:
        patch.setattr(complexity, "RADIUS", 0.5)
        assert verdict_of_rate(tmp_path, patch, exponents) == "not decided"


def test_the_assumption_is_not_refuted_at_one_weight_and_is_at_the_other():
    sizes = Sizes(**LOOK)
    one, several = (complexity.assumption(weight, sizes) for weight in complexity.WEIGHTS.values())
    assert one.domination > 0.01 and one.below == 0 and one.reached == 1
    assert 0.03 < one.beyond < 0.1  # towards φ = (2.5, −∞): the assumption is one of the square
    assert one.start[1] < one.start[0] < one.start[2] and 0.1 < one.start[0] < 0.4
    assert several.beyond >= 0  # Φ* itself
    assert several.domination == 0 and several.below >= 2  # saddles, and the maximum in which ascents end
    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(functools.partial(complexity.objective, complexity.instance(), kl_weight=WEIGHT)))
        assert np.linalg.norm(slope(jnp.asarray(path()[0][0]))) < 1e-3
    assert one.best == pytest.approx(path()[2], abs=1e-6)


@pytest.mark.parametrize("exponent", [0.15, 0.45])
def test_a_tenth_of_the_seeds_does_not_wrongly_decide_the_rate(exponent, tmp_path, monkeypatch):
    exponents = dict.fromkeys(ESTIMATORS, exponent)
    wrong = "holds" if exponent < complexity.EXPONENT else "fails"
    found = {verdict_of_rate(tmp_path / str(x), monkeypatch, exponents, 6, x) for x in (0.5, 1.5)}
    assert wrong not in found


@pytest.mark.parametrize(
    ("exponent", "num_seeds", "wrong"), [(0.6, 64, ()), (0.1, 64, ()), (0.1, 6, ("holds",)), (0.6, 6, ("fails",))]
)
def test_a_planted_exponent_decides_the_actor_critics_rate(exponent, num_seeds, wrong, tmp_path, monkeypatch):
    logits, gaps = lower_path()
    sizes = actor_critic.Sizes(actor_critic.Sizes().epsilons[:7], num_seeds)
    top = 0.1 * gaps[-1]
    targets = np.maximum(planted(exponent, SAMPLES, top, num_seeds, 0.5, 0), 2 * gaps[0])
    for epsilon, target, count in zip(sizes.epsilons, targets, SAMPLES, strict=True):
        found = {"logits": at(logits, gaps, np.minimum(target, 0.9 * gaps[-1])), "transitions": count}
        write_arrays(tmp_path, f"policy {epsilon:.4f}.npz", found)
    monkeypatch.setattr(actor_critic, "Sizes", lambda: sizes)
    monkeypatch.setattr(actor_critic, "improve", never)
    found = together(judge(p1_actor_critic.CLAIM, p1_actor_critic.measure(Budget(False, tmp_path)).numbers))
    if wrong:
        assert found not in wrong
    else:
        assert found == ("holds" if exponent > actor_critic.EXPONENT else "fails")


# Small runs -----------------------------------------------------------------------------------------------------------


def test_a_level_is_computed_once_and_its_gaps_are_positive(tmp_path, monkeypatch):
    sizes = Sizes(epsilons=(1.0,), num_seeds=4, **LOOK)
    said: list[str] = []
    first = complexity.study(WEIGHT, sizes, tmp_path, said.append)
    assert len(said) == 1 and "ε = 1.000" in said[0]
    assert set(first.gap) == set(ARMS)
    assert all(x.shape == (1, 4) and (x > 0).all() and np.isfinite(x).all() for x in first.gap.values())
    assert first.samples["independent"] > first.samples["weighted"] > first.samples[EXACT] == 0
    assert first.bias[0] < first.gap[EXACT].min()  # T and K left more than the proxy's bias
    assert 0 < first.assumed.domination < 1 and first.assumed.reached == 1.0
    assert all(x.shape == (1,) and 0 <= x[0] <= 1 for x in first.inside.values())
    parts = complexity.parts(first)  # make up the whole
    for arm in ESTIMATORS:
        whole = sum(parts[name][0][0] for name in ("bias", "optimisation", f"noise, {arm}"))
        assert whole == pytest.approx(first.gap[arm].mean())
    monkeypatch.setattr(complexity, "learn", never)
    monkeypatch.setattr(complexity, "limits", lambda *args: np.zeros((1, 1, 2)))
    again = complexity.study(WEIGHT, sizes, tmp_path)
    assert all((again.gap[arm] == first.gap[arm]).all() for arm in ARMS)


@pytest.mark.slow
def test_a_run_whose_outer_steps_do_not_grow_fails_and_the_honest_one_does_not(tmp_path):
    sizes = Sizes(epsilons=tuple(10 ** (-x / 5) for x in range(5)), num_seeds=16, arms=ESTIMATORS)
    fixed = complexity.schedule(1.0).num_steps

    def idle(epsilon):
        return complexity.schedule(epsilon)._replace(num_steps=fixed)

    for schedule, expected in ((complexity.schedule, {"holds", "not decided"}), (idle, {"fails"})):
        found = complexity.study(WEIGHT, sizes, tmp_path / schedule.__name__, print, schedule)
        numbers = {
            p1_rate.NUMBERS[arm]: p1_rate.exponent(fit, "samples") for arm, fit in complexity.fits(found).items()
        }
        assert together(judge(p1_rate.CLAIM, numbers)) in expected
