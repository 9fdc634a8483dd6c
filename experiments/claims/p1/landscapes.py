"""Where searches on landscapes of Φ ended, for several claims. `found` has `best`, the largest Φ seen, [...], and `ascents`,
where gradient ascents ended, [..., start].
"""

import numpy as np

from bilevel.exact import landscape
from bilevel.exact.landscape import Stationary
from experiments.statistics import intervals
from experiments.statistics.intervals import Interval

GAP = 1e-3  # of Φ below the best found, in its unit, from which a point counts as below it


def below(best: np.ndarray, ends: Stationary) -> np.ndarray:
    """Searches that ended below the best value found, [..., start] bool."""
    return best[..., None] - ends.value > GAP


def lower_maxima(found) -> np.ndarray:
    """Ascents that ended at a local maximum below the best, [..., start] bool."""
    return landscape.is_stationary(found.ascents) & found.ascents.is_peak & below(found.best, found.ascents)


def finished(found) -> np.ndarray:
    """Ascents that arrived, or ran away, within the steps allowed, [..., start] bool."""
    return landscape.is_stationary(found.ascents) | landscape.runs_away(found.ascents)


def median(values: np.ndarray) -> Interval:
    """Median over instances of positive numbers [..., instance] with its 95 % bootstrap interval, each [...]."""
    return Interval(*map(np.exp, intervals.mean(np.log(values), 0.49, axis=-1)))
