"""The reference instances: problems whose numbers an independent brute-force program computed."""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import exact
from bilevel.preferences import annotator
from bilevel.types import Comparison, Trajectory
from envs.base import MDP, World
from envs.tabular import tabular

FOLDER = pathlib.Path(__file__).parent


class Reference(NamedTuple):
    """One instance of `tests/reference`, computed by an independent brute-force program in float64."""

    numbers: dict
    mdp: MDP
    world: World
    params: jax.Array
    lower: exact.LowerLevel
    segments: Trajectory
    comparisons: Comparison

    def reward_table(self, params):
        """r_φ = tanh(features·w1)·w2, [S, A]; φ is w1 row-major, then w2."""
        features = jnp.asarray(self.numbers["features"])
        size, width = np.shape(self.numbers["w1"])
        return jnp.tanh(features @ params[: size * width].reshape(size, width)) @ params[size * width :]

    def objective_value(self, objective, policy, reward):
        """G, [], by enumeration."""
        gamma = self.numbers["discount"]
        return exact.preference_objective(
            self.mdp, policy, reward, self.segments, self.comparisons, objective, gamma, self.numbers["rationality"]
        )


def load_reference(number: int) -> Reference:
    """Reference instance 1 or 2; call it under float64."""
    numbers = json.loads((FOLDER / "reference" / f"bilevel_mdp_{number}.json").read_text())
    initial, transition, reward = (jnp.asarray(numbers[k]) for k in ("initial", "transition", "true_reward"))
    mdp = MDP(initial, transition, reward)
    world = tabular(mdp)
    params = jnp.concatenate([jnp.asarray(numbers["w1"]).ravel(), jnp.asarray(numbers["w2"])])
    segments = exact.enumerate_segments(*reward.shape, numbers["horizon"])
    annotate = annotator(world.reward, numbers["discount"], numbers["rationality"])
    lower = exact.lower_level(
        mdp,
        jnp.asarray(numbers["learned_reward"]),
        jnp.asarray(numbers["reference"]),
        numbers["discount"],
        numbers["kl_weight"],
    )
    return Reference(numbers, mdp, world, params, lower, segments, exact.exact_comparisons(annotate, segments))
