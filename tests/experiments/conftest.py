"""Shared by the tests of runs: runs that are quickly begun."""

import functools
import json

import jax
import pytest

from experiments.runs import cohort as groups
from experiments.runs import driver
from experiments.settings.config import as_dict


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
