"""Exponents of measured power laws, with intervals over seeds, and verdicts on claims about them.

`power_law` fits error = c n^(−p), or c n^(−p) + floor, to errors at several budgets n over many seeds; `slope` is the
plain log-log slope of exact data. Intervals are those of `intervals`, and `undecided` says why one may decide nothing.
`verdict` judges one: a claim *holds* if it lies inside a margin stated beforehand, *fails* if it lies outside, and is
otherwise *not decided* (`experiments.claims.claim.judge`).

An exponent is measured over a range, a theorem's is a limit. A departure from the power law that exceeds the noise shows
as burn-in or floor; a smaller or slower one is part of the exponent, with any method: see `power_law`. So an exponent holds
over its `range` alone, and only if its `tail`, the slope of the last levels, clears the margin too.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from experiments.statistics.intervals import MIN_SEEDS, RESAMPLES, ends, resamples

Verdict = Literal["holds", "fails", "not decided"]

COST = 2.0  # χ² that dropping a level, or a floor, must win: Akaike's
MIN_LEVELS, MIN_FLOOR_LEVELS = 4, 5  # of a fit without and with a floor: two more than its parameters
MIN_SPAN = 10.0  # of budgets over which n^(−p) is fitted: over less than a decade most curves look like power laws
MIN_FIT = 0.01  # lack-of-fit p-value below which the curve is no power law
TAIL_LEVELS = 5  # the last ones, whose parabola says where a bend leads
TAIL_WIDTH = 3.0  # of the margin in which a tail must lie, where both ends are finite, over the margin's
DECAYS = np.geomspace(0.3, 30.0, 48)  # p log(n_last / n_first) on the grid where the search for a floor begins, nats
NUM_CROSSINGS, NUM_STEPS = 13, 4  # on that grid, and of Gauss–Newton after it


class Fit(NamedTuple):
    """error ≈ constant · n^(−exponent) + floor at the levels `budgets`."""

    exponent: float  # p; positive if the error falls
    # (low, high) of p, 95 %. Where as many levels were dropped as may be, the bend may go on beyond the data: the end
    # towards which it goes is then infinite, −∞ for a curve that flattens, as at a floor.
    interval: tuple[float, float]
    # (low, high) of the slope of the last levels, of the same coverage. It covers two slopes, each with its interval:
    # that between the last two levels, and that of the parabola through the last five a level farther on, where a bend
    # would lead. A floor is part of what is judged here: what has reached one does not fall.
    tail: tuple[float, float]
    range: tuple[float, float]  # first and last n of the levels used
    undecided: str  # why nothing may be concluded, in words: too few seeds or levels, no power law, …; "" if it may
    constant: float  # c, in units of error · n^p
    floor: float  # in units of the error; 0 where the data ask for none
    burn_in: int  # number of leading levels that were dropped
    budgets: np.ndarray  # [levels used] n
    residuals: np.ndarray  # [levels used] of the log error, nats
    noise: float  # standard error of a level's log error, as the seeds show it, nats
    lack_of_fit: float  # p-value that residuals of this size are noise


class Slope(NamedTuple):
    """The mean slope over instances as `exponent`, what `Fit` calls by the same names, and slopes [instances]."""

    exponent: float
    interval: tuple[float, float]
    tail: tuple[float, float]
    range: tuple[float, float]
    undecided: str
    slopes: np.ndarray


def rms(values: np.ndarray, axis: int) -> np.ndarray:
    """√ mean(x²), for use as a `statistic`."""
    return np.sqrt(np.mean(np.square(values), axis=axis))


def power_law(
    budgets, errors, statistic: Callable = np.mean, burn_in=True, floor=True, num_resamples: int = RESAMPLES
) -> Fit:
    """The exponent p of error ≈ c n^(−p) [+ floor] with its bootstrap interval; burn-in and floor are what the data ask.

    The log of each level's statistic is fitted by least squares, without a floor and with one, on all levels and on
    those left after each possible burn-in. Of these fits the one with the smallest

        χ² + 2 (levels dropped + [floor]),    χ² = Σ residual² / noise²

    counts: Akaike's criterion, where a dropped level is a parameter that fits it exactly (Jay and Neil 2008.01069).
    noise² is the variance of the logs about a straight line for each resample, so that levels may share seeds or not. A
    floor must be seen: it is at least c n^(−p) at the last two levels, and at most that at the first three.

    Where all are dropped but the last four, the data show a bend up to there: a curve that flattens may fall more slowly
    yet, so that its interval has no lower end, and one that steepens no upper end. A stall can thus be told from a slow
    start, on the assumption that the bend does not turn; it has neither end where the last four bend the other way by
    more than a standard error. An S-shaped curve that shows its second bend less clearly is taken for the first.

    Seeds are resampled as wholes, over all levels at once, and the choice is made anew in each resample; the interval of
    these exponents is by `intervals.ends`. Coverage at nominal 95 %, measured on 8 levels over 4 decades, p = ½:

        straight line (no choice); half-normal, lognormal (σ = 1), |t₃|   93 to 95 % with 64 seeds, 92 to 95 % with 6
        a power law, with the choice                                     98 to 99 %, 3 to 4 times as wide (4 to 8 % open)
        a floor of 1 or of 9 times c n^(−p) at the last level              98 to 99 %
        c (n + 4 n_first)^(−½), as burn-in                               98 to 99 %, 90 % where noise is 1 % of the error
        c n^(−½) (1 + 4 n_first/n)                                       93 to 96 %
        c n^(−½) (1 + 4 (n_first/n)^½), too slow to be seen               53 to 66 %: p is found 0.1 too large

    The log of a mean over S seeds is low by CV² / 2S, CV the errors' coefficient of variation. This cancels in p where
    CV is the same at all levels; else p is off by (change of CV² over the range) / (2 S log range): by 0.03 for a CV
    from ½ to 2 over three decades and 8 seeds. Errors without a variance need the median, and a claim about it.
    Where skewed noise grows or shrinks along 5 levels an end is missed more often than stated: at 3 to 7 % where a gamma's
    CV grows to 1, at 9 to 25 % where a lognormal's σ goes from 0.2 to 1.2; measured on 6 to 64 seeds.

    A bend near the last levels is noise, or a part of the exponent, where it does not show as burn-in. So `verdict` asks
    for the tail too. How often p ≥ 0.266 holds, on 7 levels over 3.6 decades with 64 seeds, floor=False, noise as above
    (300 measurements each; in brackets lognormal, σ = 0.3, then the others: half-normal, exponential, lognormal, |t₃|):

        p = 0.266; a floor met at the fifth level, p = 0.66; p from 0.6 to 0.2 at the fifth or sixth, from 0.66 to 0 at
        the sixth, from 0.8 to 0.2 evenly, 0.9 twice and then 0.2; 0.2, 0.2, 0.6, 0.6, 0.6, 0.2     at most 0.3 %
        a floor met at the last level, p = 0.5, 0.6 and 0.66 (0.25, 0.30 and 0.33 there)            [0] 0 to 4 %
        the same, p = 0.8 (0.40 there: a law inside the margin, as far as it goes)                  [0] 10 to 18 %
        p = 0.4; 0.5; 0.66; 0.8; 1             [81, 98, 98, 98, 98] 7 to 11, 18 to 46, 47 to 92, 78 to 96, 94 to 96 %
        p = 0.1, 0.3, 0.5, and then 0.66                                                            [86] 57 to 87 %

    Args:
        budgets: [levels] n > 0, increasing: at least 4, to see a burn-in 5 and better 8, over several decades; 1/σ for
            errors that vanish with σ.
        errors: [levels, seeds] > 0, at least 2 seeds; fewer than 5 decide nothing.
        statistic: (values, axis) -> values without that axis, > 0: `np.mean` (what theorems bound), `rms`, `np.median`.
        burn_in, floor: False where it is known beforehand that there is none; both False is a straight line.
        num_resamples: at least 100.

    Raises ValueError for other input, for errors that are zero, negative or not finite, and for seeds all equal.
    """
    budgets, errors = _checked(budgets, errors, MIN_LEVELS, "seed", num_resamples)
    if np.any(np.diff(budgets) <= 0):
        raise ValueError("the budgets do not increase; sort the levels by n (n = 1/σ for errors that vanish with σ)")
    if np.all(errors == errors[:, :1]):
        raise ValueError("all seeds have the same errors; give each seed its own key, or use slope() for exact data")
    num_levels, num_seeds = errors.shape
    u, logs = np.log(budgets / budgets[-1]), _logs(errors, statistic, num_resamples)
    noise = _noise(u, logs[1:], num_seeds)

    fits, most = [], num_levels - MIN_LEVELS if burn_in else 0
    for dropped in range(most + 1):
        fits.append((dropped, 0, *_fit_line(u[dropped:], logs[:, dropped:])))
        if floor and num_levels - dropped >= MIN_FLOOR_LEVELS:
            fits.append((dropped, 1, *_fit_floor(u[dropped:], logs[:, dropped:])))
    num_dropped, num_floors, exponents, log_floors, squares = (np.array(x) for x in zip(*fits, strict=True))
    choice = np.argmin(squares / noise**2 + COST * (num_dropped + num_floors)[:, None], axis=0)
    resampled = np.take_along_axis(exponents, choice[None], axis=0)[0, 1:]

    best = choice[0]
    first, exponent, log_floor = num_dropped[best], exponents[best, 0], log_floors[best, 0]
    residuals = logs[0, first:] - _curve(u[first:], exponent, log_floor)
    log_last = np.mean(residuals)  # of c n^(−p) at the last level
    end = -log_floor / exponent if num_floors[best] else 0.0  # u where the floor takes over
    low, high = ends(resampled, num_seeds).tolist()
    if first == most > 0:
        flattens = exponents[0, 0] > exponent  # of all levels, over that of the last
        bend = _curvature(u[first:], logs[0, first:]) / noise
        turns = bend < -1 if flattens else bend > 1
        low, high = -np.inf if flattens or turns else low, np.inf if turns or not flattens else high
    freedom = num_levels - first - 2 - num_floors[best], (num_seeds - 1) * (num_levels - 2)
    lack_of_fit = stats.f.sf(squares[best, 0] / noise**2 / freedom[0], *freedom)
    return Fit(
        exponent=float(exponent),
        interval=(low, high),
        tail=_tail(_end_slopes(u, logs[1:]), num_seeds),
        range=(float(budgets[first]), float(budgets[-1])),
        undecided=undecided(num_seeds, np.exp(end - u[first]), lack_of_fit, burn_in and most == 0),
        constant=float(np.exp(log_last + exponent * np.log(budgets[-1]))),
        floor=float(np.exp(log_last + log_floor)),
        burn_in=int(first),
        budgets=budgets[first:],
        residuals=residuals - log_last,
        noise=float(noise),
        lack_of_fit=float(lack_of_fit),
    )


def unfitted(why: str) -> Fit:
    """A fit without a number, of errors that allow none, and why."""
    nan, none = np.nan, np.array([])
    return Fit(nan, (nan, nan), (nan, nan), (nan, nan), why, nan, nan, 0, none, none, nan, nan)


def slope(x, y, num_resamples: int = RESAMPLES) -> Slope:
    """The slope of log y against log x of exact data: least squares in each instance, the mean over instances.

    Nothing is dropped: choose an x at which higher orders stay below the margin. x [levels] > 0 are at least 2, all
    different, the last nearest to the limit that the claim is about; y [levels, instances] > 0 is without noise, of at
    least 2 instances, of which fewer than 5 decide nothing; resamples are at least 100. Raises ValueError for other
    input.
    """
    x, y = _checked(x, y, 2, "instance", num_resamples)
    if len(np.unique(x)) < len(x):
        raise ValueError("two levels of x are equal; give each once")
    num = y.shape[1]
    u, logs, picks = np.log(x), np.log(y).T, resamples(num, num_resamples)
    slopes = -_fit_line(u, logs)[0]
    low, high = ends(np.mean(slopes[picks], axis=1), num).tolist()
    tail = _tail(np.mean(-_end_slopes(u, logs)[:, picks], axis=-1), num)
    return Slope(float(np.mean(slopes)), (low, high), tail, (float(x[0]), float(x[-1])), undecided(num), slopes)


def verdict(interval: tuple[float, float], low: float, high: float, tail: tuple[float, float] | None = None) -> Verdict:
    """Whether an interval lies in [low, high] ("holds"), outside ("fails") or neither; low = −inf, high = inf: one-sided.

    An exponent holds only if its tail lies there too: whatever the curve, one whose last two levels, or the parabola of the
    last five, fall below a bound is held to clear it at a rate of 2.5 % at most. The few levels of a tail tell less
    than all: of a margin with two ends, a tolerance rather than a bound, it must lie in one that is `TAIL_WIDTH` times as
    wide about the same centre.
    """
    if not low <= high:
        raise ValueError(f"the claim's range [{low:g}, {high:g}] is empty; give low ≤ high")
    if interval[1] < low or high < interval[0]:
        return "fails"
    wider = (TAIL_WIDTH - 1) / 2 * (high - low) if np.isfinite(high - low) else 0.0
    clears = tail is None or (low - wider <= tail[0] and tail[1] <= high + wider)
    return "holds" if clears and low <= interval[0] and interval[1] <= high else "not decided"


def undecided(num: int, span: float = np.inf, lack_of_fit: float = 1.0, too_short: bool = False) -> str:
    """Why an interval over `num` seeds or instances decides nothing, in words; "" if it may. Of a power law tell the
    last over the first budget (`span`), the p-value of its residuals, and whether there are too few levels to see a
    burn-in."""
    if num < MIN_SEEDS:
        return f"{num} are too few to resample; {MIN_SEEDS} are needed"
    if lack_of_fit < MIN_FIT:
        return f"no power law: residuals exceed the noise (p-value {lack_of_fit:.1g}); {MIN_FIT:g} is needed"
    if span < MIN_SPAN * (1 - 1e-9):  # a decade of budgets 10^x may be less by rounding
        return f"the power law spans a factor {span:.3g} of the budget; {MIN_SPAN:g} is needed"
    return f"burn-in may reach the last {MIN_LEVELS} levels; more levels are needed" if too_short else ""


def _logs(errors: np.ndarray, statistic: Callable[..., np.ndarray], num_resamples: int) -> np.ndarray:
    """Log statistic of the data, then of each resample of the seeds, [1 + resamples, levels]."""
    num = errors.shape[1]
    picks = np.concatenate([np.arange(num)[None], resamples(num, num_resamples)])
    values = np.stack([statistic(row[picks], axis=1) for row in errors], axis=1)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError("the statistic of some resample is not a positive number; give more seeds, or take np.mean")
    return np.log(values)


def _noise(u: np.ndarray, resampled: np.ndarray, num_seeds: int) -> float:
    """RMS over levels of the resampled logs about their mean and a straight line in u: what residuals are made of."""
    squares = _fit_line(u, resampled - np.mean(resampled, axis=0))[2]
    variance = np.mean(squares) / (len(u) - 2) * num_seeds / (num_seeds - 1)
    return np.sqrt(max(variance, np.finfo(float).eps ** 2))  # seeds that differ by a factor alone leave only rounding


def _end_slopes(u: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """−slope of logs [rows, levels], [2, rows]: between the last two levels, and where the bend of the last five leads."""
    last = u[-TAIL_LEVELS:]
    beyond = last - (u[-1] + (last[-1] - last[0]) / (len(last) - 1))  # 0 is a level farther on
    by_bend = np.linalg.pinv(np.vander(beyond, min(3, len(last))))[-2]
    return -np.stack([(logs[:, -1] - logs[:, -2]) / (u[-1] - u[-2]), logs[:, -len(last) :] @ by_bend])


def _tail(resampled: np.ndarray, num: int) -> tuple[float, float]:
    """What covers the intervals of both slopes [2, resamples]."""
    low, high = ends(resampled.T, num)
    return float(low.min()), float(high.max())


def _curvature(u: np.ndarray, logs: np.ndarray) -> float:
    """Of logs [levels], along the unit vector of a parabola that no line has a part in: its standard error is the noise."""
    line, square = u - np.mean(u), u**2 - np.mean(u**2)
    square = square - line * (square @ line) / (line @ line)
    return float(logs @ square / np.sqrt(square @ square))


# Least squares, for many rows at once: u [levels], logs [rows, levels] -> exponents, log floors, Σ residual² [rows] -----


# Least squares, for many rows at once: u [levels], logs [rows, levels] -> exponents, log floors, Σ residual² [rows].
def _curve(u: np.ndarray, exponent, log_floor) -> np.ndarray:
    return np.logaddexp(-np.multiply.outer(exponent, u), np.expand_dims(log_floor, -1))


def _fit_line(u: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centred = u - np.mean(u)
    exponents = -logs @ centred / np.sum(centred**2)
    return exponents, np.full(len(logs), -np.inf), _squares(logs + np.multiply.outer(exponents, u))


def _fit_floor(u: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log(e^(−p u) + e^(−p v)) + constant: the floor meets the power law at u = v, from the third to the last but one.
    The best point of a grid in (p, v), then Gauss–Newton, where it helps."""
    v_low, v_high = u[2], u[-2]
    p, v = (x.ravel() for x in np.meshgrid(DECAYS / (u[-1] - u[0]), np.linspace(v_low, v_high, NUM_CROSSINGS)))
    grid = _centre(_curve(u, p, -p * v))
    start = np.argmin(np.sum(grid**2, axis=1) - 2 * logs @ grid.T, axis=1)
    p, v = p[start], v[start]
    for _ in range(NUM_STEPS):
        curve = _curve(u, p, -p * v)
        residuals, squares = _centre(logs - curve), _squares(logs - curve)
        share = np.exp(-np.multiply.outer(p, u) - curve)  # of the power law in the whole
        by_p, by_v = _centre(-share * u - (1 - share) * v[:, None]), _centre((share - 1) * p[:, None])
        pp, pv, vv = (np.sum(a * b, axis=1) for a, b in ((by_p, by_p), (by_p, by_v), (by_v, by_v)))
        pr, vr = (np.sum(a * residuals, axis=1) for a in (by_p, by_v))
        new_v = np.clip(v + (pp * vr - pv * pr) / (pp * vv - pv**2), v_low, v_high)
        new_p = np.maximum(p + (pr - pv * (new_v - v)) / pp, p / 2)  # given the step of v, cut off or not
        better = _squares(logs - _curve(u, new_p, -new_p * new_v)) < squares
        p, v = np.where(better, new_p, p), np.where(better, new_v, v)
    return p, -p * v, _squares(logs - _curve(u, p, -p * v))


def _centre(rows: np.ndarray) -> np.ndarray:
    return rows - np.mean(rows, axis=-1, keepdims=True)


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.sum(_centre(rows) ** 2, axis=1)


def _checked(x, y, min_levels: int, column: str, num_resamples: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or y.ndim != 2 or len(x) != len(y) or len(x) < min_levels or y.shape[1] < 2:
        wanted = f"[levels] and [levels, {column}s], at least {min_levels} levels and 2 {column}s"
        raise ValueError(f"the shapes are {x.shape} and {y.shape}; give {wanted}")
    for name, values in (("level", x), (f"level, {column}", y)):
        bad = np.argwhere(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ValueError(
                f"{values[tuple(bad[0])]:g} at {name} {', '.join(map(str, bad[0]))} ({len(bad)} such in all); a logarithm "
                "needs finite numbers > 0: leave the level out, or measure an error that cannot vanish, such as a norm"
            )
    if not (num_resamples >= 100 and num_resamples == int(num_resamples)):
        raise ValueError(f"there are {num_resamples} resamples; give 100 or more")
    return x, y
