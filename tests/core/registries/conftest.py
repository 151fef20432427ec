"""What the tests of registries share."""

from __future__ import annotations

import pytest


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to buckets in parts of some KiB, and are copied; moto takes them, S3 itself and Ceph want megabytes."""
    import moto.s3.models

    from airflow_provider_modelsync.core.registries.modelstore import buckets
    from airflow_provider_modelsync.core.transfer import plan
    from tests.core.registries.modelstore.buckets import KIB

    monkeypatch.setattr(plan, "_MIB", 16 * KIB)
    monkeypatch.setattr(buckets, "_WORTH_COPYING", 1)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 16 * KIB)
