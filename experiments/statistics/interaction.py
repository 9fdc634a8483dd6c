"""Which two numbers must be chosen together: a two-way analysis of variance over a grid, free of the seeds' noise."""

from typing import NamedTuple

import numpy as np

from experiments.statistics.intervals import ends, resamples


class Interaction(NamedTuple):
    """How far two numbers are from being tunable one after the other."""

    # Of the variance of the mean log gap over the grid, what row + column leaves; free of the seeds' noise. NaN where
    # that variance itself is not distinguishable from 0.
    share: float
    interval: tuple[float, float]  # of it, 95 %, by bootstrap over seeds
    with_noise: float  # the same with the seeds' noise in it, which is above 0 without any interaction
    factor: float  # exp of the root mean square of what is left: by how much row + column misjudges a gap
    cells: int  # of the grid, those used: without a run that diverged


def interaction(gap: np.ndarray, keep: np.ndarray) -> Interaction:
    """Two-way analysis of the mean of log gap over seeds, of gaps [row, column, seed] above 0, on the cells that are
    kept, [row, column] bool.

    A variance is a sum of ⟨y_s, y_t⟩ over seeds s, t; without s = t, whose noises are one and the same, it has no noise
    in its mean. The bootstrap draws seeds with repetition, and leaves out pairs of one seed with itself as well.
    """
    values = np.log(gap[keep]).T  # [seed, cell]
    rows, columns = (np.eye(n)[x] for n, x in zip(keep.shape, np.nonzero(keep), strict=True))
    centred = values - values.mean(axis=1, keepdims=True)
    design = np.concatenate([rows, columns], axis=1)
    left = values - values @ design @ np.linalg.pinv(design)
    products = np.stack([left @ left.T, centred @ centred.T])  # [2, seed, seed]
    apart = products * (1 - np.eye(len(values)))

    drawn = (draw for draw in resamples(len(values)) if np.ptp(draw))  # of one seed alone there is no pair
    weights = np.stack([np.bincount(draw, minlength=len(values)) for draw in drawn])
    left_over, whole = np.einsum("rs,kst,rt->kr", weights, apart, weights, optimize=True)
    varies = ends(whole, len(values))[0] > 0
    mean_square = apart[0].sum() / (len(values) * (len(values) - 1) * keep.sum())
    return Interaction(
        float(apart[0].sum() / apart[1].sum()) if varies else np.nan,
        tuple(ends(left_over / whole, len(values)).tolist()) if varies else (np.nan, np.nan),
        float(products[0].sum() / products[1].sum()),
        float(np.exp(np.sqrt(max(mean_square, 0.0)))),
        int(keep.sum()),
    )
