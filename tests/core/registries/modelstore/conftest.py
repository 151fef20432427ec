"""What the tests of a model store in S3 have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.registries.modelstore.buckets import BucketStore, bucket_store


@pytest.fixture
def store(small_parts: None, no_waiting: None) -> Iterator[BucketStore]:
    """An empty model store in moto, with small parts; where it fails, tries follow each other at once."""
    with bucket_store() as store:
        yield store
