"""Runs and studies: the driver, the command line, and readers of their results."""

import importlib
from typing import Any

_HOMES = {
    "configure": "experiments.config",
    "train": "experiments.driver",
    "load_params": "experiments.driver",
    "load_policy": "experiments.policy",
    "load_run": "experiments.metrics",
}
__all__ = ["configure", "load_params", "load_policy", "load_run", "train"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: help and tab completion need none of it, and JAX takes a second to import.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'experiments' has no attribute {name!r}")
