"""Runs, from Python: configure one, train it, load what it measured and learned.

from experiments import configure, load_params, load_run, train

config = configure(world="gridworld", algorithm="bilevel", seeds=32, sigma=(0.03, 0.1))
folder = train(config, say=print)
run = load_run(folder)
reward_params, policy_params = load_params(folder, seed=0)
"""

from typing import TYPE_CHECKING

__all__ = ["configure", "load_params", "load_policy", "load_run", "train"]

if TYPE_CHECKING:
    from experiments.runs.driver import load_params, train
    from experiments.runs.metrics import load_run
    from experiments.runs.policy import load_policy
    from experiments.settings.config import configure
else:
    # Loaded when first used: help and tab completion need none of it, and JAX takes a second to import.
    import importlib

    _HOMES = {
        "configure": "experiments.settings.config",
        "train": "experiments.runs.driver",
        "load_params": "experiments.runs.driver",
        "load_policy": "experiments.runs.policy",
        "load_run": "experiments.runs.metrics",
    }

    def __getattr__(name):
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'experiments' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
