"""A run's configuration: assembled from its parts, checked as a whole, written to JSON and read back."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

import numpy as np

from bilevel.types import Hyper
from experiments.files import RunFolderError, read_json
from experiments.settings.algorithms import ALGORITHMS
from experiments.settings.options import COMMON, MOST, OptionError, Values, check_fields, choose, nearest
from experiments.settings.worlds import WORLDS


@dataclasses.dataclass(frozen=True)
class Config:
    """The parts of a run, each a frozen dataclass of `experiments.settings.options` or `experiments.settings.worlds`."""

    world_name: str
    algorithm_name: str
    world: Any
    algorithm: Any
    run: Any
    problem: Any
    annotator: Any
    models: Any
    estimation: Any

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that hold options, by name."""
        return {name: getattr(self, name) for name in PARTS}

    def files(self) -> list[str]:
        """Paths of the files that the run reads."""
        return [path for name in ("mdp", "reference") if (path := getattr(self, name, "")) not in ("", "uniform")]

    def __getattr__(self, name: str) -> Any:
        # An option is reached by its own name, whichever part holds it: config.sigma.
        if not name.startswith("__"):
            for part in PARTS:
                options = self.__dict__.get(part)
                if options is not None and name in {field.name for field in dataclasses.fields(options)}:
                    return getattr(options, name)
        raise AttributeError(name)


PARTS = ("world", "algorithm", *COMMON)


def configure(world: str = "gridworld", algorithm: str = "bilevel", **options: Any) -> Config:
    """A checked configuration: the defaults of the algorithm on the world, with `options` in their place.

    Args:
        world: a name in `experiments.settings.worlds.WORLDS`.
        algorithm: a name in `experiments.settings.algorithms.ALGORITHMS`.
        options: any options of the chosen parts, such as seeds=64, sigma=(0.01, 0.1); a single number stands for itself.

    Raises:
        OptionError: an option is unknown, out of its range or swept without effect, or two do not fit each other.
    """
    config = _assemble(world, algorithm, options)
    refuse_idle_sweep(config)
    return config


def _assemble(world: str, algorithm: str, options: Mapping[str, Any]) -> Config:
    parts = default_config(world, algorithm).parts
    for name, value in options.items():
        home = next((p for p, kind in parts.items() if name in {f.name for f in dataclasses.fields(kind)}), None)
        if home is None:
            known = [field.name for kind in parts.values() for field in dataclasses.fields(kind)]
            raise unknown_option(world, algorithm, name, known)
        value = _converted(value, get_type_hints(type(parts[home]))[name])
        parts[home] = dataclasses.replace(parts[home], **{name: value})
    return check(Config(world, algorithm, **parts))


def unknown_option(world: str, algorithm: str, name: str, known: Iterable[str]) -> OptionError:
    """For an option that is none of `known`: where it belongs, else which is spelled like it, else all that there are."""
    kinds = [(f"--world {x}", kind) for x, kind in WORLDS.items()]
    kinds += [(f"--algorithm {x}", kind) for x, kind in ALGORITHMS.items()]
    homes = [home for home, kind in kinds if name in {field.name for field in dataclasses.fields(kind)}]
    if homes:
        advice = f"it is one of {', '.join(homes)}"
    elif near := nearest(name, known):
        advice = f"did you mean --{_flag(near[0])}?"
    else:
        advice = f"required: one of {', '.join(f'--{_flag(x)}' for x in known)}"
    return OptionError(f"{algorithm} on {world} has no option --{_flag(name)}; {advice}")


def _converted(value, kind):
    """The value as the command line would give it, so that the same run has the same JSON: 1.0 for 1, (0.1,) for 0.1."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if get_origin(kind) is tuple:
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        return tuple(_converted(x, get_args(kind)[0]) for x in values)
    if type(value) is int and kind is float and abs(value) <= sys.float_info.max:
        return float(value)
    return str(value) if type(value) is int and kind is str and abs(value) < 2**63 else value


def part_types(world: str, algorithm: str) -> dict[str, type]:
    """The dataclass of each part, for a world and an algorithm by name."""
    return {
        "world": choose("--world", world, WORLDS),
        "algorithm": choose("--algorithm", algorithm, ALGORITHMS),
    } | COMMON


def default_config(world: str, algorithm: str) -> Config:
    """The configuration with every default, unchecked: the world's for the algorithm, the world's, the option's own."""
    kinds = part_types(world, algorithm)
    given = getattr(kinds["world"], "defaults", {}) | getattr(kinds["world"], "defaults_of", {}).get(algorithm, {})

    def default(kind):
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: value for name, value in given.items() if name in names})

    return Config(world, algorithm, **{name: default(kind) for name, kind in kinds.items()})


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as a flat dict of JSON values; `from_dict` is its inverse."""
    flat = {"world": config.world_name, "algorithm": config.algorithm_name}
    for part in config.parts.values():
        flat |= {f.name: _to_json(getattr(part, f.name)) for f in dataclasses.fields(part)}
    return flat


def from_dict(flat: dict[str, Any]) -> Config:
    """The configuration that `as_dict` wrote, checked again."""
    options = {name: _from_json(value) for name, value in flat.items() if name not in ("world", "algorithm")}
    return _assemble(flat["world"], flat["algorithm"], options)


class Named(TypedDict):
    """What `config.json` holds, beside the options that these two have."""

    world: str
    algorithm: str


def read_config(folder: Path) -> Config:
    """The configuration of a run from its folder.

    Raises:
        RunFolderError: it is not a run, or its `config.json` does not hold a configuration.
    """
    flat = read_json(folder, "config.json", Named)
    try:
        return from_dict(flat)
    except OptionError as error:
        raise RunFolderError(f"{folder}/config.json holds no configuration: {error}; restore it from a copy") from error


def _to_json(value):
    if isinstance(value, tuple):
        return [_to_json(x) for x in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value  # JSON has no infinity


def _from_json(value):
    if isinstance(value, list):
        return tuple(_from_json(x) for x in value)
    return float(value) if value in ("inf", "-inf") else value


# Sweeps ---------------------------------------------------------------------------------------------------------------

SWEEPABLE = tuple(Hyper._fields)
MOST_TRANSITIONS = 2**28  # probabilities of a random world: a gigabyte in float32


def sweep(config: Config) -> tuple[list[str], list[dict[str, float]]]:
    """The names of the swept hyperparameters, and every point of the grid as a dict over all of `Hyper`."""
    axes = {name: getattr(config, name, (Hyper._field_defaults[name],)) for name in SWEEPABLE}
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [name for name, values in axes.items() if len(values) > 1], points


# Options without effect -----------------------------------------------------------------------------------------------

CRITIC = ("num_targets", "num_transitions", "num_chains", "average_critic", "reset_critic", "critic_step_size")
CRITIC += ("critic_radius", "critic_model", "critic_hidden")
SAMPLES = ("critic", *CRITIC, "batch_size", "num_pairs", "rollout_length", "estimator")
EFFECTS = (  # options, and the choices any of which gives them an effect
    (CRITIC, {"critic": "td"}),
    (SAMPLES, {"gradients": "sampled"}),
    (("estimator",), {"hypergradient": "proxy"}),
)


def choices_wanted(config: Config, name: str) -> dict[str, str]:
    """The choices any of which would give the option an effect on the run, which it lacks; none if it has one.

    Of an algorithm that is not ours nothing is known: it may have options of the same names.
    """
    if type(config.algorithm).__module__ != ALGORITHMS["bilevel"].__module__:
        return {}
    for options, choices in EFFECTS:
        if name in options and all(getattr(config, kind, value) != value for kind, value in choices.items()):
            return choices
    return {}


def idle(config: Config, given: Iterable[str]) -> list[str]:
    """A sentence on each of the options given that has no effect beside what is chosen."""
    said = []
    for name in given:
        if wanted := choices_wanted(config, name):
            chosen, others = (
                ", ".join(f"--{_flag(kind)} {value}" for kind, value in choices.items())
                for choices in ({kind: getattr(config, kind) for kind in wanted}, wanted)
            )
            said.append(f"--{_flag(name)} has no effect with {chosen}; it is one of {others}")
    return said


def refuse_idle_sweep(config: Config) -> None:
    """Raises OptionError for a sweep of an option without effect, whose points would be one. A single value does no harm."""
    for sentence in idle(config, sweep(config)[0]):
        raise OptionError(f"{sentence}: give it one value, or leave it out")


# Checks across options ------------------------------------------------------------------------------------------------


def check(config: Config) -> Config:
    """The same configuration, or an OptionError for the first thing that is wrong with it."""
    for part in config.parts.values():
        check_fields(part)
    for rule in (
        _check_rounded,
        _check_sweep,
        _check_bandit,
        _check_finite,
        _check_exact,
        _check_hypergradient,
        _check_critic,
    ):
        rule(config)
    return config


def _rounded(config: Config, values: tuple[float, ...]) -> tuple[float, ...]:
    """The values as the run will see them."""
    with np.errstate(over="ignore"):
        return tuple(np.asarray(values, config.precision).tolist())


def _check_rounded(config: Config) -> None:
    fields = [(part, f) for part in config.parts.values() for f in dataclasses.fields(part) if f.type is Values]
    for part, field in fields:
        values = getattr(part, field.name)
        for value, rounded in zip(values, _rounded(config, values), strict=True):
            if not field.metadata["test"](rounded):
                raise OptionError(
                    f"--{_flag(field.name)} is {value!r}, which is {rounded!r} in {config.precision}; required: "
                    f"{field.metadata['required']}: give another, or --precision float64"
                )


def _check_sweep(config: Config) -> None:
    num_points = math.prod(len(getattr(config, name, (0,))) for name in SWEEPABLE)
    if num_points > MOST:
        raise OptionError(f"the sweep has {num_points:,} points; required: at most {MOST:,}; give fewer values")
    for name in SWEEPABLE:
        values = getattr(config, name, ())
        if len(set(_rounded(config, values))) < len(values):
            raise OptionError(
                f"--{_flag(name)} repeats a value in {list(values)}; required: values distinct in {config.precision}"
            )


def _check_bandit(config: Config) -> None:
    if getattr(config.world, "one_step", False):
        for name, value in {"discount": (0.0,), "segment_length": 1, "rollout_length": 1}.items():
            if getattr(config, name) != value:
                given = _shown(getattr(config, name))
                raise OptionError(
                    f"--{_flag(name)} is {given}; {config.world_name} has one step and needs {_shown(value)}"
                )
    elif min(config.discount) <= 0:
        raise OptionError(f"--discount is {min(config.discount)}; required: in (0, 1); 0 is for bandits alone")


def _check_finite(config: Config) -> None:
    if not getattr(config.world, "finite", False):
        others = [name for name, kind in WORLDS.items() if getattr(kind, "finite", False)]
        wanted = {
            "reward": "table",
            "policy": "table",
            "critic_model": "table",
            "critic": "exact",
            "gradients": "exact",
        }
        allowed = "table" if getattr(config.world, "tables", False) else None
        for name, value in wanted.items():
            if getattr(config, name) == value != allowed:
                raise OptionError(
                    f"--{_flag(name)} is {value}, which needs a finite world; {config.world_name} is not finite: "
                    f"choose another {_flag(name)}, or a world among {', '.join(others)}"
                )
    if config.world_name == "garnet" and config.successors > config.states:
        raise OptionError(f"--successors is {config.successors}; required: at most --states, {config.states}")
    rows = {"garnet": "states", "bandit": "contexts"}.get(config.world_name)
    if rows and getattr(config, rows) ** 2 * config.actions > MOST_TRANSITIONS:
        raise OptionError(
            f"--{rows} is {getattr(config, rows)} with --actions {config.actions}; required: at most {MOST_TRANSITIONS} "
            f"transition probabilities, {rows} x actions x {rows}: ask for fewer"
        )


def _check_exact(config: Config) -> None:
    if config.gradients == "exact" and min(config.kl_weight) == 0:
        raise OptionError(
            "--kl-weight is 0 with --gradients exact; exact oracles of the optimal policy need a kl-weight above 0"
        )


def _check_hypergradient(config: Config) -> None:
    name = getattr(config, "hypergradient", "proxy")
    if name in ("implicit", "unrolled") and config.gradients != "exact":
        raise OptionError(
            f"--hypergradient is {name}, which differentiates the gradient of J; samples of it do not allow that: choose "
            "closed_form, or --gradients exact"
        )
    if name == "closed_form" and min(config.kl_weight) == 0:
        raise OptionError(
            "--kl-weight is 0 with --hypergradient closed_form, which divides by it; required: a kl-weight above 0"
        )


def _check_critic(config: Config) -> None:
    if config.num_transitions % config.num_chains:
        raise OptionError(
            f"--num-transitions is {config.num_transitions}; required: a multiple of --num-chains, {config.num_chains}"
        )


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _shown(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
