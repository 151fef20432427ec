"""What goes where: the answers of registries to "how do I push / pull this?".

A registry fills in a plan, the transfer engine carries it out; neither knows the other's business. A *way* says how
the bytes move; a new kind of way is one class here and one branch each in ``upload.py`` or ``download.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airflow_provider_modelsync.core.archive.digest import FileEntry
from airflow_provider_modelsync.core.models import ModelRef, ModelVersion


@dataclass(frozen=True, slots=True)
class IntoDirectory:
    """Push: every file is written below a directory of this machine.

    :param directory: exists and is empty.
    """

    directory: Path


@dataclass(frozen=True, slots=True)
class FromDirectory:
    """Pull: every file is read from below a directory of this machine.

    :param directory: holds the files.
    :param files: which files, with what they should hash to.
    :param directories: the empty directories to make.
    """

    directory: Path
    files: tuple[FileEntry, ...]
    directories: tuple[str, ...]


UploadWay = IntoDirectory
DownloadWay = FromDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlan:
    """How a version gets into its registry. Registries add what they need in order to finish it.

    :param ref: the exact version.
    :param way: how the bytes move; ``None`` when nothing has to move.
    :param existing: the version that holds these bytes already, when nothing has to move.
    """

    ref: ModelRef
    way: UploadWay | None
    existing: ModelVersion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPlan:
    """How a version gets out of its registry.

    :param version: the exact version.
    :param way: how the bytes move.
    """

    version: ModelVersion
    way: DownloadWay
