"""A configuration as a file, flat as `config.json`: written as YAML, read from YAML or TOML."""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.files import read_bytes
from experiments.settings.options import OptionError

MOST = 2**20  # bytes of a file
SCALARS = (bool, int, float, str)


class Loader(yaml.SafeLoader):
    """Reads YAML, and takes 1e-3 and inf for numbers, as everybody else does."""


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        """True: a list that two options share is written twice, not named."""
        return True


for kind in (Loader, Dumper):
    number = re.compile(r"[-+]?(\d+(\.\d*)?[eE][-+]?\d+|inf)$")
    kind.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789i"))


def as_yaml(options: Mapping[str, Any]) -> str:
    """The options, values of flags by name, as a text that `read_options` reads."""
    return yaml.dump(
        dict(options), Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120
    )


def read_options(path: str) -> dict[str, Any]:
    """The options that a file holds, by name with underscores: numbers, truths, texts, and lists of these. Raises
    OptionError where the file is missing, damaged, of another kind, or holds anything else."""
    required = "a YAML or TOML file of options, as bilevel train --print-config > run.yaml writes it"
    read = {".yaml": _pairs_of_yaml, ".yml": _pairs_of_yaml, ".toml": _pairs_of_toml}.get(Path(path).suffix)
    if read is None:
        raise OptionError(f"--config is {path!r}, which ends in none of .yaml, .yml, .toml; required: {required}")
    try:
        pairs = [(str(name).replace("-", "_"), value) for name, value in read(read_bytes(path, MOST).decode())]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = "it nests too deep" if isinstance(error, RecursionError) else error
        raise OptionError(f"--config {path} cannot be read ({why}); required: {required}") from error
    for name, number in Counter(name for name, _ in pairs).items():
        if number > 1:
            raise OptionError(f"--config {path} has {name} {number} times; required: once")
    for name, value in pairs:
        if not all(isinstance(x, SCALARS) for x in (value if isinstance(value, list) else [value])):
            raise OptionError(
                f"--config {path}: {name} has neither a value nor a list of them; required: as in {name}: 3"
            )
    return dict(pairs)


def _pairs_of_yaml(text: str) -> list[tuple[Any, Any]]:
    loader = Loader(text)
    node = loader.get_single_node()
    return loader.construct_pairs(node, deep=True) if node else []


def _pairs_of_toml(text: str) -> list[tuple[str, Any]]:
    return list(tomllib.loads(text).items())
