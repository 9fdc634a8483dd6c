"""The worlds that the command line knows: a dataclass of options each, whose `build()` is the `World`.

Class variables say the rest: `finite` (tables and exact oracles exist), `tables` (tables alone), `one_step` (a bandit),
`lapack` (its steps call LAPACK), `packages` (whose versions its bits depend on), `defaults` (of options of the other
parts), `defaults_of` (more of them for an algorithm, by its name). A method `grid()` gives the [rows, cols] state indices
that a report draws as a map; a method `check(options)` raises OptionError for what does not fit.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import numpy as np

from bilevel.ranges import BelowOne, Positive, Range, counts
from envs.bandit import bandit, linear_bandit
from envs.base import MDP, World
from envs.brax import brax_world
from envs.cartpole import cartpole
from envs.gridworld import MAPS, grid_index, gridworld
from envs.gymnax import gymnax_world
from envs.lqr import double_integrator, lqr
from envs.tabular import check_mdp, garnet, tabular
from experiments.files import MOST_ARRAYS, read_arrays
from experiments.settings.options import Count, OptionError

AtLeastTwo = Annotated[int, counts(2)]
Seed = Annotated[int, counts(0, 2**32 - 1)]
MOST_TRANSITIONS = 2**28  # probabilities of a random world: a gigabyte in float32

CONTINUOUS = {"discount": (0.95,), "rollout_length": 100, "reward_bound": 3.0, "policy_step_size": (0.01,)}
GAUSSIAN = CONTINUOUS | {"policy_step_size": (0.001,)}  # a mean's curvature grows as its deviation falls
CARTPOLE_ONLINE = {
    "steps": 50,
    "kl_weight": (0.1,),
    "num_policy_steps": 4,
    "reward_optimizer": "sgd",
    "reward_step_size": (0.001,),
}


@dataclasses.dataclass(frozen=True)
class GridOptions:
    """GridWorld: walk to the goal, past walls, with slips."""

    map: Annotated[str, Range(f"one of {', '.join(MAPS)}", lambda x: x in MAPS)] = "open"
    """Which map: open (5 x 5), four_rooms (11 x 11, 104 cells) or cliff (4 x 6, traps)."""
    slip: BelowOne = 0.1
    """Probability that a move is replaced by one in a uniformly random direction, in [0, 1)."""
    finite: ClassVar[bool] = True

    def build(self) -> World:
        """The world."""
        return tabular(gridworld(self.map, self.slip))

    def grid(self) -> np.ndarray:
        """[rows, cols] state indices, -1 for walls: where each state stands."""
        return grid_index(self.map)


@dataclasses.dataclass(frozen=True)
class GarnetOptions:
    """A random finite MDP (Garnet)."""

    states: Count = 10
    """S, number of states."""
    actions: AtLeastTwo = 3
    """A, number of actions."""
    successors: Count = 3
    """States that each state and action can reach, 1 to S."""
    instance: Seed = 0
    """Which random instance, at least 0."""
    finite: ClassVar[bool] = True

    def build(self) -> World:
        """The world."""
        return tabular(garnet(jax.random.key(self.instance), self.states, self.actions, self.successors))

    def check(self, options: dict[str, Any]) -> None:
        """Raises OptionError for a world that is none, or too large."""
        if self.successors > self.states:
            raise OptionError(f"--successors is {self.successors}; required: at most --states, {self.states}")
        _check_size("states", self.states, self.actions)


@dataclasses.dataclass(frozen=True)
class BanditOptions:
    """A contextual bandit with linear reward: one step, discount 0."""

    contexts: Count = 8
    """X, number of contexts."""
    actions: AtLeastTwo = 4
    """A, number of actions."""
    dimension: Count = 4
    """d, length of the features of a context and action, whose norm is at most 1."""
    norm_bound: Positive = 3.0
    """B, norm of the true parameter: rewards lie in [-B, B]."""
    instance: Seed = 0
    """Which random instance, at least 0."""
    finite: ClassVar[bool] = True
    one_step: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {
        "discount": (0.0,),
        "segment_length": 1,
        "rollout_length": 1,
        "reward": "linear",
        "policy": "table",
        "critic_model": "table",
        "policy_step_size": (1.0,),
        "reward_step_size": (0.03,),
        "critic_step_size": (2.0,),
    }

    def build(self) -> World:
        """The world."""
        key = jax.random.key(self.instance)
        return bandit(*linear_bandit(key, self.contexts, self.actions, self.dimension, self.norm_bound))

    def check(self, options: dict[str, Any]) -> None:
        """Raises OptionError for a world that is too large."""
        _check_size("contexts", self.contexts, self.actions)


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """A finite MDP from a file."""

    mdp: str = ""
    """An .npz file, at most 2 GiB: `initial` [S], `transition` [S, A, S] and `reward` [S, A], as numpy.savez writes them."""
    finite: ClassVar[bool] = True

    def build(self) -> World:
        """The world."""
        if not self.mdp.endswith(".npz"):
            raise OptionError(
                f"--mdp {f'is {self.mdp!r}' if self.mdp else 'was not given'}; required: an .npz file, as "
                "numpy.savez('mdp.npz', initial=a, transition=b, reward=c) writes it from arrays [S], [S, A, S] and [S, A]"
            )
        arrays = load_arrays("mdp", self.mdp, MDP._fields)
        try:
            check_mdp(MDP(**arrays))
        except ValueError as error:
            raise OptionError(f"--mdp {self.mdp}: {error}") from error
        return tabular(MDP(**{name: jax.numpy.asarray(x, float) for name, x in arrays.items()}))


@dataclasses.dataclass(frozen=True)
class CartPoleOptions:
    """CartPole-v1, with a visible absorbing state after the fall.

    By default a seed learns from 500 labels. Two-stage RLHF then balances the pole for 500 steps. So do alternating RLHF,
    except 1 seed in 16, and Algorithm 1, except 3 in 16, which never learn.
    """

    cells: Annotated[tuple[int, ...], Range("four counts of at least 1, or none", lambda x: x >= 1)] = ()
    """Cells for position, velocity, angle and angular velocity, such as 3 3 8 6: the observation is the cell, and models
    may be tables; none: a continuous observation."""
    # `experiments.claims.p1.cartpole` says what they are for, and measures what they reach.
    defaults: ClassVar[dict[str, Any]] = CONTINUOUS | {
        "batch_size": 50,
        "num_pairs": 10,
        "rollout_length": 500,
        "segment_length": 50,
        "discount": (0.998,),
        "critic": "monte_carlo",
        "reward": "linear",
        "policy_optimizer": "adam",
        "evaluation_rollouts": 32,
    }
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        "two_stage": {
            "steps": 15,
            "chunk": "5",
            "kl_weight": (0.0,),
            "num_policy_steps": 5,
            "num_batches": 50,
            "num_reward_steps": 300,
            "reward_step_size": (0.01,),
        },
        "alternating": CARTPOLE_ONLINE,
        "bilevel": CARTPOLE_ONLINE | {"sigma": (30.0,), "reuse_labels": True},
    }

    @property
    def tables(self) -> bool:
        """Whether observations are indices; exact oracles do not exist either way."""
        return bool(self.cells)

    def build(self) -> World:
        """The world."""
        try:
            return cartpole(self.cells)
        except ValueError as error:
            raise OptionError(f"--{error}") from error


@dataclasses.dataclass(frozen=True)
class RegulatorOptions:
    """A linear-quadratic regulator (double integrator): continuous actions with exact values."""

    defaults: ClassVar[dict[str, Any]] = GAUSSIAN | {"segment_length": 10, "policy_hidden": ()}

    def build(self) -> World:
        """The world."""
        return lqr(double_integrator())


@dataclasses.dataclass(frozen=True)
class GymnaxOptions:
    """Any gymnax environment."""

    environment: str = "Pendulum-v1"
    """gymnax's name of the environment."""
    packages: ClassVar[tuple[str, ...]] = ("gymnax",)
    defaults: ClassVar[dict[str, Any]] = GAUSSIAN | {"segment_length": 50}

    def build(self) -> World:
        """The world."""
        try:
            return gymnax_world(self.environment)
        except (ImportError, ValueError, OSError) as error:  # some games fetch their data
            raise OptionError(f"--environment {self.environment}: {error}") from error


@dataclasses.dataclass(frozen=True)
class BraxOptions:
    """Locomotion: a body of brax on MJX, to be moved by motors."""

    body: str = "hopper"
    """brax's name of the body, such as humanoid, hopper, halfcheetah, reacher or inverted_pendulum."""
    lapack: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("brax", "mujoco", "mujoco-mjx")
    defaults: ClassVar[dict[str, Any]] = GAUSSIAN | {
        "discount": (0.97,),
        "segment_length": 50,
        "rationality": (0.1,),  # a step pays up to ten
        "reward_bound": 10.0,
    }

    def build(self) -> World:
        """The world."""
        try:
            return brax_world(self.body)
        except (ImportError, ValueError) as error:
            raise OptionError(f"--body {self.body}: {error}") from error


WORLDS = {
    "gridworld": GridOptions,
    "garnet": GarnetOptions,
    "bandit": BanditOptions,
    "file": FileOptions,
    "cartpole": CartPoleOptions,
    "lqr": RegulatorOptions,
    "gymnax": GymnaxOptions,
    "brax": BraxOptions,
}


def _check_size(rows: str, count: int, actions: int) -> None:
    if count**2 * actions > MOST_TRANSITIONS:
        raise OptionError(
            f"--{rows} is {count} with --actions {actions}; required: at most {MOST_TRANSITIONS} transition probabilities, "
            f"{rows} x actions x {rows}: ask for fewer"
        )


def load_arrays(option: str, path: str, names: tuple[str, ...], instead: str | None = None) -> dict[str, np.ndarray]:
    """The named arrays of an option's .npz file, or an OptionError that says what the file lacks; the array `instead`
    makes the others superfluous."""
    required = f"an .npz file with {', '.join(names)}; write it with numpy.savez"
    try:
        arrays = read_arrays(path, {*names, instead}, MOST_ARRAYS)
    except ValueError as error:
        raise OptionError(f"--{option} {path} cannot be read ({error}); required: {required}") from error
    missing = [name for name in names if name not in arrays and instead not in arrays]
    if missing:
        raise OptionError(f"--{option} {path} lacks {', '.join(missing)}; required: {required}")
    precision = jax.numpy.result_type(float)
    for name, array in arrays.items():
        largest = np.max(np.abs(array), initial=0, where=np.isfinite(array)) if array.dtype.kind == "f" else 0
        if largest > np.finfo(precision).max:
            raise OptionError(
                f"--{option} {path}: {name} holds {largest:g}, which is infinite in {precision}; required: finite numbers; "
                "scale them, or add --precision float64"
            )
    return arrays
