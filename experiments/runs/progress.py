"""How far a run is: a bar where somebody watches, and lines in a log that is no terminal."""

import sys
import time
from collections.abc import Callable

import numpy as np
from scipy import stats
from tqdm import tqdm

from experiments.output import silent
from experiments.report.summary import COUNTS, DIVERGED, describe, headline_metric, number
from experiments.statistics.intervals import QUARTER

INTERVAL = 30.0  # seconds between two lines


class Progress:
    """A bar of so many steps on a terminal; in a log a line after the first update, at most one every INTERVAL seconds,
    and one at the end. `say` takes the lines; where it is `silent` there is no bar either."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self.total, self.done, self.say = total, 0, say
        self.bar = tqdm(total=total, unit="step", disable=True if say is silent else None, dynamic_ncols=True)
        watched = [getattr(stream, "isatty", bool)() for stream in (sys.stdout, sys.stderr)]  # neither need be there
        self.logged = not all(watched)
        self.start()
        self.next_line = self.started

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def start(self, done: int = 0) -> None:
        """Counts steps that were done before. The time left is that of the steps from here on, without compilation."""
        self._count(done)
        self.done_before, self.started = self.done, time.monotonic()

    def update(self, steps: int, words: str, where: str = "") -> None:
        """Counts steps that were done now; `words` tell how things stand, `where`, for a line alone, the steps done and
        in all."""
        self.bar.set_postfix_str(words, refresh=False)
        self._count(steps)
        now, left = time.monotonic(), self.total - self.done
        if self.logged and (now >= self.next_line or not left):
            self.next_line = now + INTERVAL
            a_step = (now - self.started) / (self.done - self.done_before)
            when = f"{duration(a_step * left)} left" if left else f"in {duration(now - self.started)}"
            self.say(f"{where or f'step {self.done} of {self.total}'}, {words}, {when}")

    def _count(self, steps: int) -> None:
        self.done += steps
        self.bar.update(steps)


def duration(seconds: float) -> str:
    """A time in words, in two units at most, as in `35 s` or `3 h 20 min`."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 99.5:
        return f"{minutes:.0f} min"
    return f"{int(minutes / 60)} h {int(minutes % 60)} min" if hours < 48 else f"{hours / 24:.1f} days"


def standing(metrics: dict[str, np.ndarray], num_points: int) -> str:
    """How lanes stand after the last of some steps, as in `32/32 seeds alive, true return 3.41`, by metrics [lanes,
    steps], lanes in the order of hyperparameters first; of several points of a sweep, the least and the greatest
    interquartile mean over seeds are said."""
    alive = metrics["status"][:, -1] != DIVERGED
    words = f"{np.sum(alive)}/{len(alive)} {'seeds' if num_points == 1 else 'lanes'} alive"
    name = headline_metric([name for name in metrics if name not in (*COUNTS, "status")])
    if name is None:
        return words
    last = metrics[name][:, -1].reshape(num_points, -1)
    means = [stats.trim_mean(x[np.isfinite(x)], QUARTER) for x in last if np.isfinite(x).any()]
    ends = sorted({number(float(mean), 3) for mean in (min(means), max(means))}, key=float) if means else ["–"]
    return f"{words}, {describe(name).label} {' to '.join(ends)}"
