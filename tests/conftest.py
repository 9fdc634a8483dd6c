"""Shared fixtures: the reference instances, and float64 where a test asks for it."""

import contextlib
import ctypes
import gc
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


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go():
    """Frees the programs of a file once its tests are over, down to the system: kept by a worker, they fill gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library keeps what is free
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def x64():
    """Runs one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[1, 2])
def reference(request, x64):
    """Each of the two reference instances, float64."""
    return load_reference(request.param)
