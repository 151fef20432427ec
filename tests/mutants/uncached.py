"""A plugin of pytest that has the package forget what it has cached: each test then reaches all that it needs."""

from __future__ import annotations

import gc
from functools import _lru_cache_wrapper, cache
from typing import Any

import pytest


@cache
def _caches() -> list[Any]:
    gc.unfreeze()
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, _lru_cache_wrapper) and str(one.__module__).startswith("airflow_provider_modelsync")
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    for one in _caches():
        one.cache_clear()
