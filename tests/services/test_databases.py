"""PostgreSQL and Redis are there for as long as they are wanted, for those who know the password, and leave nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.postgres import running_postgres
from tests.services.redis import running_redis

pytestmark = pytest.mark.celery


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; others may enter."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


def test_postgres_keeps_what_it_is_told_until_it_ends(scratch: Path) -> None:
    import psycopg

    with running_postgres() as place:
        with psycopg.connect(f"postgresql://{place}") as connection:
            connection.execute("create table kept as select 7 as value")
        with psycopg.connect(f"postgresql://{place}") as connection:
            assert connection.execute("select value from kept").fetchone() == (7,)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"postgresql://tests:wrong@{place.partition('@')[2]}")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(f"postgresql://{place}")
    assert list(scratch.iterdir()) == []


def test_redis_keeps_what_it_is_told_until_it_ends(scratch: Path) -> None:
    import redis

    with running_redis() as url:
        with redis.Redis.from_url(url) as client:
            client.set("kept", "7")
        with redis.Redis.from_url(url) as client:
            assert client.get("kept") == b"7"
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(f"redis://{url.partition('@')[2]}").get("kept")
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(url).get("kept")
    assert list(scratch.iterdir()) == []
