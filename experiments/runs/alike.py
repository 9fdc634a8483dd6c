"""What the processes of one run must have in common, and the comparison before anything compiles."""

import importlib.metadata
import itertools
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed

from experiments.files import canonical_json, digest, digest_of
from experiments.settings.algorithms import ALGORITHMS
from experiments.settings.config import Config, as_dict
from experiments.settings.options import OptionError

OURS = ("bilevel", "envs", "experiments")
PACKAGES = re.compile(r"jax|nvidia|libtpu|flax|optax|distrax|chex|orbax|numpy|bilevel", re.IGNORECASE)
# Settings of JAX that say where a process is, what it logs and what it keeps, not what it computes.
PLACES = re.compile(r"cache|visible_devices|num_cpu_devices|address|timeout|dump|log|traceback|pprint|profil")
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
VERSION = "version of "
MOST_NAMED = 8
_comparisons = itertools.count()


def refuse_differences(config: Config, out: str | Path | None, allow_layout_change: bool) -> None:
    """Compares what was asked of this process, with what and where it runs, with all others; each must call this.
    Nothing is compiled, and no device is used until all have been asked for the same. Raises OptionError in every
    process, where one differs."""
    if distributed.global_state.client is None:
        return
    _compare(_asked(config, out, allow_layout_change) | _code(config) | _versions(config) | _settings())
    _compare(_devices())


def refuse_other_options(options: Mapping[str, Any]) -> None:
    """Compares options of the command that a run knows nothing of, by their flags, as `refuse_differences` does; before
    it. Raises OptionError in every process, where one differs."""
    if distributed.global_state.client is not None:
        _compare(options)


def _asked(config: Config, out: str | Path | None, allow_layout_change: bool) -> dict[str, Any]:
    options = as_dict(config) | {"out": str(out or ""), "allow_layout_change": allow_layout_change}
    asked = {"--" + name.replace("_", "-"): value for name, value in options.items()}
    asked |= {f"file {number}": _hash(Path(path)) for number, path in enumerate(config.files())}
    # A folder is named from there.
    return asked if out and Path(out).is_absolute() else asked | {"working directory": os.getcwd()}


def _code(config: Config) -> dict[str, str]:
    """Digests of the modules of this package that are imported, and of those that define the world and the algorithm."""
    homes = {type(part).__module__ for part in config.parts.values()}
    homes.add(ALGORITHMS[config.algorithm_name].make.__module__)
    files = {
        name: getattr(module, "__file__", None)
        for name, module in sorted(sys.modules.items())
        if name in homes or name.partition(".")[0] in OURS
    }
    return {f"code of {name}": _hash(Path(file)) for name, file in files.items() if file}


def _versions(config: Config) -> dict[str, str]:
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    wanted = getattr(config.world, "packages", ())
    packages = {name: version for name, version in installed.items() if name in wanted or PACKAGES.match(name)}
    return {VERSION + name: version for name, version in ({"Python": platform.python_version()} | packages).items()}


def _settings() -> dict[str, str]:
    """What changes programs: settings of JAX, and variables of the environment."""
    settings = {name: value for name, value in jax.config.values.items() if not PLACES.search(name)}
    return {name: str(value) for name, value in (settings | {x: os.environ.get(x, "") for x in VARIABLES}).items()}


def _devices() -> dict[str, Any]:
    devices = jax.local_devices()
    kind = {"platform": devices[0].platform, "kind of device": devices[0].device_kind}
    return kind | {"number of devices of a process": len(devices)}


def _hash(path: Path) -> str:
    try:
        return digest_of(path)[:12]
    except OSError:
        return "missing"


def _compare(facts: Mapping[str, Any]) -> None:
    """Compares the facts, JSON values by name, and the number of processes with those of all other processes. Digests
    alone are exchanged unless they differ, through the store of JAX's distributed runtime: a collective would wait for
    programs and shapes that may differ too."""
    state = distributed.global_state
    store, folder = state.client, f"bilevel/alike/{next(_comparisons)}"
    text = canonical_json({"--num-processes": state.num_processes} | facts)
    if state.process_id == 0:
        store.key_value_set(f"{folder}/count/0", str(state.num_processes))
    store.key_value_set(f"{folder}/facts/{state.process_id}", text)
    store.key_value_set(f"{folder}/digest/{state.process_id}", digest(text.encode()))
    # Whatever this process was told; looked for again and again, since a signal is not heard in a call that waits.
    while not (count := store.key_value_dir_get(f"{folder}/count/")):
        time.sleep(0.05)
    count = int(count[0][1])
    while len(digests := store.key_value_dir_get(f"{folder}/digest/")) < count:
        time.sleep(0.05)  # the watch ends this process if another never comes
    alike: dict[str, list[int]] = {}
    for process, same in sorted((int(key.rpartition("/")[2]), value) for key, value in digests):
        alike.setdefault(same, []).append(process)
    said = [json.loads(store.key_value_try_get(f"{folder}/facts/{group[0]}")) for group in alike.values()]
    if different := differences(said, list(alike.values())):
        more = [f"{len(different) - MOST_NAMED} more"] if len(different) > MOST_NAMED else []
        raise OptionError(
            f"the processes differ: {'; '.join(different[:MOST_NAMED] + more)}; required: the same command, code, versions, "
            "settings and kind of devices in every process"
        )


def differences(said: list[Mapping[str, Any]], groups: list[list[int]]) -> list[str]:
    """What differs between groups of processes, as in "--seed is 0 in process 0, 1 in process 1", of what each says,
    JSON values by name, and the numbers of the processes of each. A name that one group leaves out belongs to another
    name that differs, such as that of the world, unless it is a version."""
    names = list(dict.fromkeys(name for facts in said for name in facts))
    kept = [name for name in names if name.startswith(VERSION) or all(name in facts for facts in said)]
    values = {name: [facts.get(name, "missing") for facts in said] for name in kept}
    return [
        f"{name} is {_holders(found, groups)}"
        for name, found in values.items()
        if any(value != found[0] for value in found)
    ]


def _holders(values: list[Any], groups: list[list[int]]) -> str:
    """As in "0 in 2 processes (0, 2), 1 in process 1"."""
    holders: dict[str, list[int]] = {}
    for value, group in zip(values, groups, strict=True):
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)  # as a command gives it
        holders.setdefault(shown or "not given", []).extend(group)
    return ", ".join(f"{value} in {_named(sorted(numbers))}" for value, numbers in holders.items())


def _named(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    return f"{len(numbers)} processes ({', '.join(map(str, numbers[:4]))}{', …' if len(numbers) > 4 else ''})"
