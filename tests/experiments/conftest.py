"""Fixtures of the tests of experiments."""

import pytest


@pytest.fixture
def claims(monkeypatch):
    """Two claims in place of the papers', see `fake_claims`."""
    from fake_claims import only_claims  # late: most tests need no claims

    yield from only_claims(monkeypatch)
