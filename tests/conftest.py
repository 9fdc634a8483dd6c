"""Shared fixtures: the reference instances, float64 where a test asks for it, and runs that are quickly begun."""

import functools
import json
import os
import pathlib
from typing import NamedTuple

# Programs are compiled once and kept for the next test, and for the next run of the tests; subprocesses share them.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Twice as fast to compile, which is what tests do; as a run's own programs are (`bilevel.lanes`).
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact
from bilevel.preferences import annotator
from bilevel.types import Comparison, Trajectory
from envs.base import MDP, World
from envs.tabular import tabular
from experiments import driver, groups
from experiments.config import as_dict

FOLDER = pathlib.Path(__file__).parent


@pytest.fixture
def x64():
    """Runs one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def quick_runs():
    """Runs draw no figures, and trace each program once, not once a run."""
    precision = jax.config.jax_default_matmul_precision
    jax.devices()  # first, so that a command run in this process leaves the devices as they are
    jax.config.update("jax_default_matmul_precision", "highest")  # the command line's
    build, setups = driver.build, {}

    def build_once(config):
        name = json.dumps(as_dict(config) | dict.fromkeys(("steps", "seeds", "chunk")))
        setups[name] = setups.get(name) or build(config)
        return setups[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "write_report", lambda folder, *rest: folder / "report.html")
        patch.setattr(driver, "build", build_once)
        patch.setattr(driver, "baselines", lambda setup, points: {})
        patch.setattr(groups, "programs", functools.cache(groups.programs))
        yield
    jax.config.update("jax_default_matmul_precision", precision)


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


@pytest.fixture(params=[1, 2])
def reference(request, x64):
    """Each of the two reference instances, float64."""
    return load_reference(request.param)


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
