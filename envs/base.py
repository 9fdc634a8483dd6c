"""The nouns of a world: its dynamics (`Env`), its arrays where it is finite (`MDP`), its true reward (`World`)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
State = Any  # whatever pytree an Env carries
Observation = Any  # [] int32 state index on a finite world, [D] float otherwise
Action = Any  # [] int32 when discrete, [action_size] float otherwise


class MDP(NamedTuple):
    """The arrays of a finite decision process; stack a leading axis on each to vmap over instances.

    The discount is not part of it: it belongs to the objective (`bilevel.types.Coefficients`).

    Attributes:
        initial: [S] probabilities of the first state, ρ.
        transition: [S, A, S] probabilities P(s′ | s, a); rows sum to one.
        reward: [S, A] the true reward r*(s, a), unbounded.
    """

    initial: Array
    transition: Array
    reward: Array


class Inversion(NamedTuple):
    """Draws by inverting a cumulative distribution at a uniform number in [0, 1), in place of a key.

    Attributes:
        init: uniform -> state, s_0 ~ ρ.
        step: (uniform, state, action) -> state, s′ ~ P(· | s, a).
    """

    init: Callable[[Array], State]
    step: Callable[[Array, State, Action], State]


class Env(NamedTuple):
    """A decision process without its reward: pure functions of one example, to be vmapped at the call site.

    A state that ends an episode is an ordinary absorbing state that the observation shows; a time limit is not an end.

    Attributes:
        init: key -> state, s_0 ~ ρ.
        step: (key, state, action) -> state, s′ ~ P(· | s, a).
        observe: state -> what models see: the state's index ([] int32) on a finite world, [D] floats otherwise.
        num_states: S on a finite world, None otherwise.
        num_actions: A when actions are discrete, None otherwise.
        action_size: length of a continuous action vector, None when actions are discrete.
        horizon: steps over which an evaluation episode is scored (1 for a bandit); None if episodes have no set length.
        inversion: the same draws from uniform numbers, where the world has them; rollouts are then several times faster,
            since uniform numbers are drawn for many steps at once and keys are not.
    """

    init: Callable[[Array], State]
    step: Callable[[Array, State, Action], State]
    observe: Callable[[State], Observation]
    num_states: int | None = None
    num_actions: int | None = None
    action_size: int | None = None
    horizon: int | None = None
    inversion: Inversion | None = None


class Original(NamedTuple):
    """The environment of another library that a world restates: what it shows and takes, while its episode lasts.

    Attributes:
        shape: of its observation.
        observe: its observation -> what models see in the world's own state.
        act: an action of the world -> one that it takes; None: the same.
    """

    shape: tuple[int, ...]
    observe: Callable[[Array], Observation]
    act: Callable[[Action], Action] | None = None


class Score(NamedTuple):
    """What a world's players call its undiscounted return over the horizon, such as "steps survived", in steps, 0 to 500.

    Attributes:
        name: in lower case.
        unit: of one point.
        low, high: the least and the most that is possible; None where there is no bound, or none is known.
    """

    name: str
    unit: str
    low: float | None = None
    high: float | None = None


class World(NamedTuple):
    """An `Env` beside its true reward. A learner gets `env` alone; annotators and measurements get the rest.

    A static description: it is closed over by compiled functions, never passed to one.

    Attributes:
        env: the dynamics.
        reward: (state, action) -> [], the true reward r*.
        mdp: the arrays of a finite world, which the exact oracles need; None otherwise.
        features: observation -> [D], what neural models see; None: one-hot on a finite world, else the observation.
        action_features: (observation, action) -> [D], what reward models see; None: features and action side by side.
        original: the environment that it restates, such as gymnasium's; None: there is no other.
        score: how the undiscounted return over `env.horizon` steps is told to people; None: as a "true score".
    """

    env: Env
    reward: Callable[[State, Action], Array]
    mdp: MDP | None = None
    features: Callable[[Observation], Array] | None = None
    action_features: Callable[[Observation, Action], Array] | None = None
    original: Original | None = None
    score: Score | None = None
