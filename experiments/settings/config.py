"""A run's configuration: assembled from its parts, checked as a whole, written to JSON and read back."""

import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_args, get_origin

import numpy as np

from bilevel.ranges import MOST
from experiments.files import RunFolderError, read_json
from experiments.settings.algorithms import ALGORITHMS, BilevelOptions
from experiments.settings.options import (
    NAMED_PARTS,
    OptionError,
    ProblemOptions,
    RunOptions,
    Values,
    check_fields,
    choose,
    nearest,
    options_of,
    replaced,
    spelled,
)
from experiments.settings.worlds import WORLDS


class Config(NamedTuple):
    """What a run is asked to be: names, and the parts that its world and its algorithm have, each a record of options."""

    world_name: str  # of `WORLDS`
    algorithm_name: str  # of `ALGORITHMS`
    run: RunOptions
    world: Any
    algorithm: Any
    problem: Any  # discount, KL weight, rationality and reference policy
    named: dict[str, Any]  # the parts that the algorithm names, by their names in `options.NAMED_PARTS`

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by name."""
        own = {"run": self.run, "world": self.world, "algorithm": self.algorithm, "problem": self.problem}
        return own | self.named

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its value, whichever part holds it."""
        return {name: getattr(x, name) for x in self.parts.values() for name in options_of(type(x))}

    def files(self) -> list[str]:
        """Paths of the files that the run reads."""
        paths = [self.options.get(name, "") for name in ("mdp", "reference")]
        return [path for path in paths if path not in ("", "uniform")]


def config_of(world: str, algorithm: str, parts: Mapping[str, Any]) -> Config:
    """The configuration of these parts, by name."""
    named = {name: x for name, x in parts.items() if name in NAMED_PARTS}
    return Config(world, algorithm, *(parts[name] for name in ("run", "world", "algorithm", "problem")), named)


def configure(world: str = "gridworld", algorithm: str = "bilevel", **options: Any) -> Config:
    """A checked configuration: the defaults of the algorithm on the world, with `options` in their place, any of the
    chosen parts, such as seeds=64, sigma=(0.01, 0.1); a single number stands for itself.

    World and algorithm are names in `settings.worlds.WORLDS` and `settings.algorithms.ALGORITHMS`. Raises OptionError
    where an option is unknown, out of its range or swept without effect, or two do not fit each other.
    """
    config = _assemble(world, algorithm, options)
    refuse_idle_sweep(config)
    return config


def _assemble(world: str, algorithm: str, options: Mapping[str, Any]) -> Config:
    parts = default_config(world, algorithm).parts
    homes = {option: name for name, x in parts.items() for option in options_of(type(x))}
    for name, value in options.items():
        if name not in homes:
            raise unknown_option(world, algorithm, name, homes)
        home = parts[homes[name]]
        parts[homes[name]] = replaced(home, {name: converted(value, options_of(type(home))[name].kind)})
    return check(config_of(world, algorithm, parts))


def unknown_option(world: str, algorithm: str, name: str, known: Iterable[str]) -> OptionError:
    """For an option that is none of `known`: where it belongs, else which is spelled like it, else all that there are."""
    homes = [f"--world {x}" for x, kind in WORLDS.items() if name in options_of(kind)]
    homes += [f"--algorithm {x}" for x in ALGORITHMS if name in _options_with(x)]
    if homes:
        advice = f"it is one of {', '.join(homes)}"
    elif near := nearest(name, known):
        advice = f"did you mean {spelled(near[0])}?"
    else:
        advice = f"required: one of {', '.join(map(spelled, known))}"
    return OptionError(f"{algorithm} on {world} has no option {spelled(name)}; {advice}")


def _options_with(algorithm: str) -> set[str]:
    """The options that a run has with that algorithm, but those that it has with any."""
    entry = ALGORITHMS[algorithm]
    return {name for kind in (entry.options, *map(NAMED_PARTS.get, entry.needs)) for name in options_of(kind)}


def converted(value, kind):
    """The value as the command line would give it, so that the same run has the same JSON: 1.0 for 1, (0.1,) for 0.1."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if get_origin(kind) is tuple:
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        return tuple(converted(x, get_args(kind)[0]) for x in values)
    if type(value) is int and kind is float and abs(value) <= sys.float_info.max:
        return float(value)
    return str(value) if type(value) is int and kind is str and abs(value) < 2**63 else value


def default_config(world: str, algorithm: str) -> Config:
    """The configuration with every default, unchecked: the world's for the algorithm, the world's, the option's own."""
    kind, entry = choose("--world", world, WORLDS), choose("--algorithm", algorithm, ALGORITHMS)
    given = getattr(kind, "defaults", {}) | getattr(kind, "defaults_of", {}).get(algorithm, {})
    kinds = {"run": RunOptions, "world": kind, "algorithm": entry.options, "problem": ProblemOptions}
    kinds |= {name: NAMED_PARTS[name] for name in entry.needs}

    def default(kind):
        return kind(**{name: given.get(name, option.default) for name, option in options_of(kind).items()})

    return config_of(world, algorithm, {name: default(kind) for name, kind in kinds.items()})


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as a flat dict of JSON values; `from_dict` is its inverse."""
    options = {name: _to_json(value) for name, value in config.options.items()}
    return {"world": config.world_name, "algorithm": config.algorithm_name} | options


def from_dict(flat: dict[str, Any]) -> Config:
    """The configuration that `as_dict` wrote, checked again."""
    options = {name: _from_json(value) for name, value in flat.items() if name not in ("world", "algorithm")}
    return _assemble(flat["world"], flat["algorithm"], options)


def _from_json(value):
    if isinstance(value, list):
        return tuple(map(_from_json, value))
    return float(value) if value in ("inf", "-inf") else value


class Named(TypedDict):
    """What `config.json` holds, beside the options that these two have."""

    world: str
    algorithm: str


def read_config(folder: Path) -> Config:
    """The configuration of a run from its folder; raises RunFolderError where the `config.json` there does not hold
    one."""
    flat = read_json(folder, "config.json", Named)
    try:
        return from_dict(flat)
    except OptionError as error:
        raise RunFolderError(f"{folder}/config.json holds no configuration: {error}; restore it from a copy") from error


def _to_json(value):
    if isinstance(value, tuple):
        return [_to_json(x) for x in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value  # JSON has no infinity


def swept_values(config: Config) -> dict[str, Values]:
    """The values of every real-valued hyperparameter of the run, of which those with several are swept."""
    kinds = {name: x.kind for part in config.parts.values() for name, x in options_of(type(part)).items()}
    return {name: value for name, value in config.options.items() if kinds[name] == Values}


def sweep(config: Config) -> tuple[list[str], list[dict[str, float]]]:
    """The names of the swept hyperparameters, and every point of the grid as a dict over all of them, swept or not."""
    axes = swept_values(config)
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [name for name, values in axes.items() if len(values) > 1], points


CRITIC = tuple(name for name in options_of(NAMED_PARTS["critic"]) if name != "critic")
SAMPLES = ("critic", *CRITIC, "batch_size", "num_pairs", "rollout_length", "estimator")
EFFECTS = (  # options, and the choices any of which gives them an effect
    (CRITIC, {"critic": "td"}),
    (SAMPLES, {"gradients": "sampled"}),
    (("estimator",), {"hypergradient": "proxy"}),
)


def choices_wanted(config: Config, name: str) -> dict[str, str]:
    """The choices any of which would give the option an effect on the run, which it lacks; none if it has one. Of the
    options that an algorithm brings itself nothing is known but for Algorithm 1's."""
    options = config.options
    if name in options_of(type(config.algorithm)) and not isinstance(config.algorithm, BilevelOptions):
        return {}
    for names, choices in EFFECTS:
        if name in names and all(options.get(kind, value) != value for kind, value in choices.items()):
            return choices
    return {}


def idle(config: Config, given: Iterable[str]) -> list[str]:
    """A sentence on each of the options given that has no effect beside what is chosen."""
    said = []
    for name in given:
        if wanted := choices_wanted(config, name):
            chosen, others = (
                ", ".join(f"{spelled(kind)} {value}" for kind, value in choices.items())
                for choices in ({kind: config.options[kind] for kind in wanted}, wanted)
            )
            said.append(f"{spelled(name)} has no effect with {chosen}; it is one of {others}")
    return said


def refuse_idle_sweep(config: Config) -> None:
    """Raises OptionError for a sweep of an option without effect, whose points would be one. A single value does no harm."""
    for sentence in idle(config, sweep(config)[0]):
        raise OptionError(f"{sentence}: give it one value, or leave it out")


def check(config: Config) -> Config:
    """The same configuration, or an OptionError for the first thing that is wrong with it."""
    for part in config.parts.values():
        check_fields(part)
    options = config.options
    _check_rounded(config)
    _check_sweep(config)
    _check_steps(config, options)
    _check_finite(config, options)
    getattr(config.world, "check", lambda options: None)(options)
    for rule in (_check_exact, _check_hypergradient, _check_pairs, _check_critic):
        rule(options)
    return config


def _rounded(config: Config, values: tuple[float, ...]) -> tuple[float, ...]:
    """The values as the run will see them."""
    with np.errstate(over="ignore"):
        return tuple(np.asarray(values, config.run.precision).tolist())


def _check_rounded(config: Config) -> None:
    ranges = {name: x.range for part in config.parts.values() for name, x in options_of(type(part)).items()}
    for name, values in swept_values(config).items():
        for value, rounded in zip(values, _rounded(config, values), strict=True):
            if not ranges[name].test(rounded):
                raise OptionError(
                    f"{spelled(name)} is {value!r}, which is {rounded!r} in {config.run.precision}; required: "
                    f"{ranges[name].required}: give another, or --precision float64"
                )


def _check_sweep(config: Config) -> None:
    axes = swept_values(config)
    num_points = math.prod(map(len, axes.values()))
    if num_points > MOST:
        raise OptionError(f"the sweep has {num_points:,} points; required: at most {MOST:,}; give fewer values")
    for name, values in axes.items():
        if len(set(_rounded(config, values))) < len(values):
            raise OptionError(
                f"{spelled(name)} repeats a value in {list(values)}; required: values distinct in {config.run.precision}"
            )


def _check_steps(config: Config, options: dict[str, Any]) -> None:
    if getattr(config.world, "one_step", False):
        for name, value in {"discount": (0.0,), "segment_length": 1, "rollout_length": 1}.items():
            if options.get(name, value) != value:
                given, needed = (" ".join(map(str, x)) if isinstance(x, tuple) else x for x in (options[name], value))
                raise OptionError(f"{spelled(name)} is {given}; {config.world_name} has one step and needs {needed}")
    elif min(options["discount"]) <= 0:
        raise OptionError(f"--discount is {min(options['discount'])}; required: in (0, 1); 0 is for bandits alone")


def _check_finite(config: Config, options: dict[str, Any]) -> None:
    if getattr(config.world, "finite", False):
        return
    allowed = "table" if getattr(config.world, "tables", False) else None
    others = [name for name, kind in WORLDS.items() if getattr(kind, "finite", False)]
    wanted = {"reward": "table", "policy": "table", "critic_model": "table", "critic": "exact", "gradients": "exact"}
    for name, value in wanted.items():
        if options.get(name) == value != allowed:
            raise OptionError(
                f"{spelled(name)} is {value}, which needs a finite world; {config.world_name} is not finite: choose another "
                f"{spelled(name)[2:]}, or a world among {', '.join(others)}"
            )


def _check_exact(options: dict[str, Any]) -> None:
    if options.get("gradients") == "exact" and min(options["kl_weight"]) == 0:
        raise OptionError(
            "--kl-weight is 0 with --gradients exact; exact oracles of the optimal policy need a kl-weight above 0"
        )


def _check_hypergradient(options: dict[str, Any]) -> None:
    name = options.get("hypergradient")
    if name in ("implicit", "unrolled") and options["gradients"] != "exact":
        raise OptionError(
            f"--hypergradient is {name}, which differentiates the gradient of J; samples of it do not allow that: choose "
            "closed_form, or --gradients exact"
        )
    if name == "closed_form" and min(options["kl_weight"]) == 0:
        raise OptionError(
            "--kl-weight is 0 with --hypergradient closed_form, which divides by it; required: a kl-weight above 0"
        )


def _check_pairs(options: dict[str, Any]) -> None:
    size = options.get("batch_size", 4)
    if not options.get("num_pairs", 1) and (size < 4 or size % 2):
        raise OptionError(
            f"--batch-size is {size}; required: an even number from 4 to {MOST}, unless --num-pairs is given"
        )


def _check_critic(options: dict[str, Any]) -> None:
    if options.get("num_transitions", 0) % options.get("num_chains", 1):
        raise OptionError(
            f"--num-transitions is {options['num_transitions']}; required: a multiple of --num-chains, "
            f"{options['num_chains']}"
        )
