"""Runs that were made up, as a report sees them: healthy ones, and what is changed in them."""

import numpy as np
import xarray as xr

from experiments.report.page import sign_items
from experiments.report.summary import COUNTS, summarise

BASELINES = {"true_return": {"optimal policy": 7.1, "reference policy": 0.9}}
GRID = np.array([[0, 1, 2], [3, -1, 4]], np.int32)
RIGHT = np.array([0.0, 1.0, 0.0, 0.0])


def dataset(num_seeds=4, num_steps=30, sweep=None, **changes):
    """A healthy run, with `changes` (arrays that broadcast to [hyper, seed, step]) in the place of some variables."""
    sweep = sweep or {}
    num_hyper = len(next(iter(sweep.values()), [0]))
    rng, rise = np.random.default_rng(0), 1 - np.exp(-np.arange(num_steps) / 10)
    shape = (num_hyper, num_seeds, num_steps)
    variables = {
        "true_return": 0.9 + 5 * rise + 0.05 * rng.normal(size=shape),
        "upper_objective": -0.69 + 0.2 * rise + 0.01 * rng.normal(size=shape),
        "kl_to_reference": 1.5 * rise,
        "policy_entropy": 1.4 - rise,
        "gradient_norm": np.exp(-4 * rise + 0.2 * rng.normal(size=shape)),
        "critic_loss": np.exp(-rise + 0.2 * rng.normal(size=shape)),
        **{name: np.full(shape, 100, np.int32) for name in COUNTS},
        "status": np.zeros(shape, np.int32),
    }
    variables = {n: (("hyper", "seed", "step"), np.broadcast_to(x, shape)) for n, x in (variables | changes).items()}
    coords = {name: ("hyper", values) for name, values in sweep.items()}
    return xr.Dataset(variables, {"seed": np.arange(num_seeds), "step": np.arange(num_steps), **coords})


def grid_tables(num_hyper=1):
    """Two seeds on a map of five cells, where the policy always goes right."""
    true = np.repeat(np.array([0.0, 0, 0, 0, 1])[:, None], 4, axis=1)
    learned = np.stack([0.5 * true + 3, 0.7 * true - 1])
    policy = np.broadcast_to(RIGHT, (num_hyper, 2, 5, 4))
    return {
        "learned_reward": np.broadcast_to(learned, (num_hyper, *learned.shape)),
        "policy": policy,
        "true_reward": true,
        "grid": GRID,
    }


def only(seed, strange, usual, num_seeds=4):
    """[seed, step]: one seed is strange, the others are as usual."""
    return np.stack([strange if i == seed else usual for i in range(num_seeds)])


def healthy(name):
    return dataset()[name].values[0, 0]


def labels(figure):
    """Of the only legend of a figure."""
    assert not any(axes.get_legend() for axes in figure.axes)
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def one_sign(run, baselines=None):
    """The only sentence on signs of failure."""
    (sign,) = sign_items(summarise(run, baselines=baselines))
    return sign
