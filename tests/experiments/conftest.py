"""Shared by the tests of experiments: runs that are quickly begun, and claims that are quickly measured."""

import functools
import json

import jax
import pytest

from experiments.runs import cohort, driver
from experiments.settings.config import as_dict


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


@pytest.fixture
def claims(monkeypatch):
    """Two claims in place of the papers', see `fake_claims`."""
    from fake_claims import only_claims  # late: most tests need no claims

    yield from only_claims(monkeypatch)
