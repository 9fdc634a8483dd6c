"""Shared fixtures: the reference instances, float64 where a test asks for it, and runs that are quickly begun."""

import functools
import json
import os
import pathlib

# Programs are compiled once and kept for the next test, and for the next run of the tests; subprocesses share them.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Twice as fast to compile, which is what tests do; as a run's own programs are (`bilevel.lanes`).
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"

import jax
import pytest
from reference_instances import load_reference

from experiments.runs import cohort, driver
from experiments.settings.config import as_dict


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
    resolve, jobs = driver.resolve, {}

    def resolve_once(config):
        name = json.dumps(as_dict(config) | dict.fromkeys(("steps", "seeds", "chunk")))
        jobs[name] = jobs.get(name) or resolve(config)
        return jobs[name]._replace(config=config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "write_report", lambda folder, *rest: folder / "report.html")
        patch.setattr(driver, "resolve", resolve_once)
        patch.setattr(driver, "baselines", lambda job: {})
        patch.setattr(cohort, "programs", functools.cache(cohort.programs))
        yield
    jax.config.update("jax_default_matmul_precision", precision)


@pytest.fixture(params=[1, 2])
def reference(request, x64):
    """Each of the two reference instances, float64."""
    return load_reference(request.param)
