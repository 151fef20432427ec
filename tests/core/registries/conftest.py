"""What the tests of registries share."""

from __future__ import annotations

import pytest

from airflow_provider_modelsync.core.http import Backoff


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
