"""fsspec's in-memory file system for Airflow's object storage: ``memory://…`` works as ``s3://…`` does."""

from __future__ import annotations

from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

schemes = ["memory"]


def get_fs(conn_id: str | None, storage_options: dict[str, Any] | None = None) -> MemoryFileSystem:
    """Return the file system; its content is shared by the whole process."""
    return MemoryFileSystem()
