"""Storages that compare each part with the checksum which the hash pass has taken of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import SourceTree, digest_directory, read_tree
from airflow_provider_modelsync.core.errors import SourceChanged
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from tests.core.storages.test_azure import store_in
from tests.core.storages.test_gcs import KIB, PART, GcsStore
from tests.core.stores import write_tree
from tests.standins.azure import AzureStandIn
from tests.standins.gcs import GcsStandIn
from tests.standins.http_server import Respond, StandIn
from tests.support.maps import mapped

pytestmark = pytest.mark.usefixtures("small_parts", "no_waiting")

SIZE = 2 * PART + 9
MODEL = "weights.bin"


@dataclass(frozen=True)
class Storage:
    """A model store in a stand-in.

    :param server: the stand-in.
    :param store: as one worker sees it.
    :param stored: what it has stored, by name.
    :param check_nothing: makes it an emulator that neither looks at the sums that come, nor tells any.
    """

    server: StandIn
    store: Any
    stored: Mapping[str, object]
    check_nothing: Callable[[], None]

    @property
    def registry(self) -> ModelStore:
        found: ModelStore = self.store.registry
        return found

    def hashed(self, source: Path) -> SourceTree:
        """Hash a model as a push does."""
        return read_tree(source, checked=self.registry.checks)

    def sent(self) -> list[Any]:
        """The requests that brought bytes of the file."""
        return [one for one in self.server.find("PUT", MODEL) if "blocklist" not in one.query.get("comp", "")]

    def versions(self) -> list[str]:
        return [name for name in self.stored if name.endswith(".json")]


@pytest.fixture(params=["gcs", "azure"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    if request.param == "gcs":
        with GcsStandIn(smallest_part=16 * KIB) as gcs:
            yield Storage(gcs, GcsStore(gcs), gcs.objects, partial(setattr, gcs, "checks_sums", False))
    else:
        with AzureStandIn() as azure:
            yield Storage(
                azure, store_in(azure, part_size_mib=5), azure.blobs, partial(setattr, azure, "crc64", "ignored")
            )


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return where a source is read from now on; what the kernel sends by itself does not count."""
    reads: list[int] = []
    read_into = SourceTree.read_into

    def counted(tree: SourceTree, path: str, offset: int, view: memoryview) -> int:
        reads.append(offset)
        return read_into(tree, path, offset, view)

    monkeypatch.setattr(SourceTree, "read_into", counted)
    return reads


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source", {MODEL: random.Random(1).randbytes(SIZE)})


def test_what_the_storage_checks_is_neither_read_nor_summed_up_again(
    storage: Storage, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = storage.hashed(source)
    reads = counted_reads(monkeypatch)
    assert storage.store.push(tree, "fraud:v1").digest == digest_directory(source)
    assert reads == []
    assert len(storage.sent()) == 3


@pytest.mark.parametrize("place", [0, PART - 1, PART, SIZE - 1])
@pytest.mark.parametrize("is_checked", [True, False], ids=["checked", "not checked"])
@pytest.mark.row("D3", of="source")
def test_a_part_that_is_not_what_was_hashed_is_refused_and_nothing_published(
    storage: Storage, source: Path, place: int, is_checked: bool
) -> None:
    if not is_checked:
        storage.check_nothing()
    with mapped(source / MODEL) as view:
        tree = storage.hashed(source)
        view[place] ^= 1
        with pytest.raises(SourceChanged, match=MODEL):
            storage.store.push(tree, "fraud:v1")
        assert storage.versions() == []
        assert storage.store.push(source, "fraud:v1").digest == digest_directory(source)


def test_a_part_that_was_damaged_on_its_way_is_read_compared_and_sent_again(
    storage: Storage, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.server.fault("PUT", MODEL, Respond(400, b"<Error><Code>BadDigest</Code></Error>"), times=1)
    tree = storage.hashed(source)
    reads = counted_reads(monkeypatch)
    assert storage.store.push(tree, "fraud:v1").digest == digest_directory(source)
    assert len(storage.sent()) == 4
    assert len(reads) == 1


def test_where_nothing_is_checked_parts_are_compared_here(storage: Storage, source: Path) -> None:
    storage.check_nothing()
    assert storage.store.push(storage.hashed(source), "fraud:v1").digest == digest_directory(source)
    assert len(storage.sent()) <= 2 * 3, "each once more at most"
    before = len(storage.sent())
    write_tree(source, {MODEL: random.Random(2).randbytes(SIZE)})
    assert storage.store.push(source, "fraud:v2").digest == digest_directory(source)
    assert len(storage.sent()) - before == 3


def test_a_model_that_was_hashed_for_another_storage_is_compared_here(storage: Storage, source: Path) -> None:
    with mapped(source / MODEL) as view:
        tree = read_tree(source, checked="crc32")
        view[0] ^= 1
        with pytest.raises(SourceChanged, match=MODEL):
            storage.store.push(tree, "fraud:v1")
    assert storage.sent() == []
    assert storage.store.push(read_tree(source, checked="crc32"), "fraud:v1").digest == digest_directory(source)
