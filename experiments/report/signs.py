"""Signs of failure, looked for in every seed of a run: which seeds show one, and what usually helps.

A sign is a reason to look, not a proof. Each is looked for in one seed alone and asks for several times what noise does,
so that healthy seeds seldom show one. Arrays are [seed, step], with NaN where nothing was measured.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

# From the first half of the steps to the end, since losses start near zero, where the first tenth misleads. Of a
# critic's loss, whose unit is squared, the square: 20 times is what a reward that grows evenly does to it.
GROWTH = 10.0
LAST = 3  # steps at least, which are the end for that
STILL = 1e-6  # below it, nothing moves
DETERMINISTIC = 0.05  # nats of entropy, below which a policy over finitely many actions explores hardly any more
# A density may have negative entropy and still explore. In each dimension a deviation a hundred times smaller, on average,
# does so no more; how many dimensions there are is told by the start, since a standard normal has UNIT nats in each.
NARROWED = float(np.log(100))
UNIT = float(0.5 * np.log(2 * np.pi * np.e))
FAR = 0.1  # nats of KL, above which that was learned, and not inherited from the reference
FEW = 0.1  # share of the rollouts, below which importance weights leave too few
NOISE = 5.0  # standard errors that a fall must exceed
FALL = 0.01  # and this share of what can be gained
JUMP = 20.0  # times the median squared difference of successive values, above which one is no noise


class Goal(NamedTuple):
    """What the seeds of a run are judged by."""

    name: str  # of the metric, in `values`
    label: str  # of the metric, for people
    reference: float | None = None  # under the reference policy; None where it is unknown: each seed's first value
    best: float | None = None  # the most that is possible; None where it is unknown: the most that was measured


class Sign(NamedTuple):
    """One way to fail."""

    what: str  # in words, without numbers of a seed's own
    seeds: np.ndarray  # [seed] bool, who shows it
    helps: str  # what usually does


LOOKED_FOR = {  # what, and the metrics of which one at least is needed to see it
    "a seed that diverged or measured nothing": (),
    "a policy that collapsed onto nearly one action a state, or, of continuous actions, whose deviation shrank a "
    "hundredfold": ("policy_entropy",),
    "an end below the reference policy or the start": ("true_score", "true_return"),
    "a reward or a policy that never moves": ("gradient_norm", "reward_change", "kl_to_reference"),
    "an exploding gradient or critic loss": ("gradient_norm", "critic_loss"),
    "importance weights that leave few rollouts": ("weight_ess",),
}


def looked_for(names: Collection[str]) -> str:
    """What is looked for where the metrics `names` were measured, in words."""
    return "; ".join(what for what, needed in LOOKED_FOR.items() if not needed or any(x in names for x in needed))


def find_signs(values: Mapping[str, np.ndarray], diverged: np.ndarray, goal: Goal | None) -> list[Sign]:
    """The signs that at least one seed shows, by metric -> [seed, step]. Of seeds that diverged, [seed] bool, nothing
    else is told, since it would be what follows from that. Without a goal nothing tells how good a seed is under the
    true reward."""
    seen = {name: x for name, x in values.items() if np.isfinite(x).any()}
    goal = goal if goal is not None and goal.name in seen else None
    helps = "smaller step sizes (--policy-step-size, --reward-step-size, --critic-step-size)"
    found = [
        *_never_measured(values),
        *_collapse(seen, goal),
        *_fall(seen, goal),
        *_stillness(seen),
        *_growth(seen),
        *_few_rollouts(seen),
    ]
    found = [Sign("Diverged", diverged, helps), *(sign._replace(seeds=sign.seeds & ~diverged) for sign in found)]
    return [sign for sign in found if sign.seeds.any()]


def _never_measured(values) -> Iterator[Sign]:
    for name, x in values.items():
        yield Sign(f"Never measured: {_words(name)}", ~np.isfinite(x).any(axis=1), "smaller step sizes")


def _collapse(values, goal: Goal | None) -> Iterator[Sign]:
    if "policy_entropy" not in values:
        return
    seeds, how = _unexploring(values["policy_entropy"])
    if "kl_to_reference" in values:
        seeds &= late(values["kl_to_reference"]) > FAR
    if goal is not None:  # where rewards differ much, the best policy is nearly deterministic
        reference, best = ends(values[goal.name], goal)
        seeds &= late(values[goal.name]) < (reference + best) / 2
    what = f"Collapsed onto nearly one action a state ({how}), far from what is possible"
    yield Sign(what, seeds, "a larger --kl-weight, a smaller --policy-step-size")


def _unexploring(entropy) -> tuple[np.ndarray, str]:
    """Which seeds explore hardly any more at the end, and by what that is told."""
    last = late(entropy)
    if np.all(~(entropy < -STILL)):  # finitely many actions: of a density that collapsed some seed's is negative
        return last < DETERMINISTIC, f"entropy below {DETERMINISTIC} nats"
    dimensions = np.fmax(1, np.round(_quietly(np.nanmedian, entropy[None, :, 0])[0] / UNIT))
    least = dimensions * NARROWED
    return entropy[:, 0] - last > least, f"entropy fell by more than {least:.3g} nats after the first step"


def _fall(values, goal: Goal | None) -> Iterator[Sign]:
    if goal is None:
        return
    x = values[goal.name]
    reference, best = ends(x, goal)
    # Successive differences tell noise from a trend; the start, where it is the bar, has noise of its own.
    squares = np.diff(x, axis=1) ** 2 if x.shape[1] > 1 else np.zeros((len(x), 1))
    most = JUMP * _quietly(np.nanmedian, squares)[:, None]  # a collapse at once is no noise, behind which it could hide
    square = _quietly(np.nanmean, np.minimum(squares, most)) / 2
    error = np.sqrt(square * (1 / last_tenth(x) + (goal.reference is None)))
    seeds = late(x) < reference - np.maximum(NOISE * error, FALL * np.maximum(best - reference, 0))
    than = "where it began" if goal.reference is None else f"the reference policy, {goal.reference:.4g}"
    yield Sign(f"Ended below {than} (by the {goal.label})", seeds, "a larger --kl-weight, more labels (--batch-size)")


def _stillness(values) -> Iterator[Sign]:
    helps = {
        "gradient_norm": "a longer --segment-length, so that segments differ",
        "reward_change": "a larger --reward-step-size",
        "kl_to_reference": "a larger --policy-step-size, a smaller --kl-weight where it is above 0",
    }
    for name, x in values.items():
        if name in helps:
            seeds = np.isfinite(x).any(axis=1) & (np.nanmax(np.abs(x), axis=1, initial=0) < STILL)
            yield Sign(f"Never moved: the {_words(name)} stayed below {STILL:g}", seeds, helps[name])


def _growth(values) -> Iterator[Sign]:
    sigma = ", a larger --sigma" if "implicit_gradient_norm" in values else ""
    limits = {
        "gradient_norm": (GROWTH, f"smaller step sizes (--reward-step-size, --policy-step-size){sigma}"),
        "critic_loss": (GROWTH**2, "a smaller --critic-step-size, a smaller --reward-bound"),
    }
    for name, (most, helps) in limits.items():
        x = values.get(name, np.zeros((1, 0)))
        if x.shape[1] < 2 * LAST:  # too few for a half before the last
            continue
        before = _quietly(np.nanmedian, x[:, : x.shape[1] // 2])
        # The lower quartile of a few: one large value is noise.
        after = _quietly(np.nanquantile, x[:, -max(LAST, last_tenth(x)) :], q=0.25)
        what = f"The {_words(name)} grew more than {most:g} times from the first half of the steps to the end"
        yield Sign(what, after > most * np.maximum(before, STILL), helps)


def _few_rollouts(values) -> Iterator[Sign]:
    if "weight_ess" in values:
        what = f"Importance weights of line 7 left less than {FEW:.0%} of the rollouts that count"
        yield Sign(what, late(values["weight_ess"]) < FEW, "a shorter --rollout-length, --estimator coupled")


def ends(x: np.ndarray, goal: Goal) -> tuple[np.ndarray, float]:
    """The reference's value for each seed [seed], and the most that can be reached, of a metric [seed, step]."""
    reference = x[:, 0] if goal.reference is None else np.full(len(x), goal.reference)
    return reference, float(np.nanmax(x)) if goal.best is None else goal.best


def last_tenth(x: np.ndarray) -> int:
    """How many steps the last tenth of [seed, step] has, at least one."""
    return max(1, x.shape[1] // 10)


def late(x: np.ndarray) -> np.ndarray:
    """The median over the last tenth of the steps, [seed, step] -> [seed]; NaN where nothing was measured there."""
    return _quietly(np.nanmedian, x[:, -last_tenth(x) :])


def _quietly(statistic, x: np.ndarray, q: float | None = None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a seed without a finite value
        return statistic(x, axis=1) if q is None else statistic(x, q, axis=1)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("kl to", "KL to the")
