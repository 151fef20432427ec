"""Where versions of Airflow keep what tests alone look at, and what is tested on new enough ones only."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

import pytest

from airflow_provider_modelsync.compat import TELLS_OF_KILLS

for place in ("airflow.sdk.execution_time.secrets_masker", "airflow.sdk._shared.secrets_masker.secrets_masker"):
    with suppress(ImportError):
        masker = import_module(place)

since_3_3 = pytest.mark.skipif(not TELLS_OF_KILLS, reason="this Airflow is older than what is tested")
