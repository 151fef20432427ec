"""What an object storage has to be able to do, and what it says of its objects.

Whoever keeps files in a bucket uses these calls alone; what one vendor spells, counts or refuses in its own way stays
in its module. A tag, ``etag``, tells one state of an object from another: it is opaque, and no checksum.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable
from airflow_provider_modelsync.core.http.network import READ_SECONDS
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, Mover
from airflow_provider_modelsync.core.transfer.plan import Address, Stored, Sums
from airflow_provider_modelsync.core.transfer.watchdog import Pace

LARGEST_RECORD = 64 << 20  # bytes of a small object: a manifest of 100,000 files with long names has half of that
LARGEST_ANSWER = 16 << 20  # bytes of any other answer: a page of a thousand long names is far smaller
LONGEST_KEY = 1024  # bytes, everywhere
OpenSession = Callable[[], Any]  # opens what holds credentials, as the vendor's own library has it
_DELETERS = 8  # threads: deletions come in more than bytes


@dataclass(slots=True)
class Abilities:
    """What a storage was found to be able to do; ``None``: nobody has asked yet.

    :param copies: whether it copies objects.
    :param conditional_copies: whether it copies no object whose tag has changed.
    :param upload_lists: whether it tells which uploads are unfinished.
    :param part_lists: whether it tells the parts of an upload.
    :param conditional_deletes: whether it leaves an object whose tag has changed.
    """

    copies: bool | None = None
    conditional_copies: bool | None = None
    upload_lists: bool | None = None
    part_lists: bool | None = None
    conditional_deletes: bool | None = None


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A small object.

    :param content: its bytes.
    :param modified: when it was written, UTC.
    :param etag: its tag.
    """

    content: bytes
    modified: datetime
    etag: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as its storage tells of it.

    :param key: its name.
    :param size: bytes.
    :param modified: when it was written, UTC.
    :param etag: its tag.
    :param sha256: what its writer has said that it would hash to, where that is told.
    :param crc32c: base64 of the CRC-32C of its bytes, where that is told.
    """

    key: str
    size: int
    modified: datetime
    etag: str
    sha256: str | None = None
    crc32c: str | None = None


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call has to be done with all its tries.

    :param doing: what the call does, for messages.
    :param at: seconds, monotonic.
    :param answer_seconds: how long the storage may think about one request.
    """

    doing: str
    at: float
    answer_seconds: float = READ_SECONDS

    @property
    def rest(self) -> float:
        """Return the seconds that are left; negative when it is over."""
        return self.at - time.monotonic()

    def pace(self) -> Pace:
        """Return what the next request may take.

        :raises RegistryUnavailable: when no time is left.
        """
        rest = self.rest
        if rest <= 0:
            raise RegistryUnavailable(f"{self.doing}: the server did not answer within the time limit")
        wait = min(self.answer_seconds, rest)
        return Pace(min_bytes=1, window_seconds=wait, answer_seconds=wait, total_seconds=rest)


class Bucket(ABC):
    """A bucket, or what a storage has in place of one. All calls block; safe to use from many threads.

    :param name: what it is called.
    :param settings: the connection.
    :param base: what all keys begin with.
    :param place: what messages call it.
    :param identity: what must be the same for two objects of one key to be the same object.
    """

    wrong_etag: ClassVar[str]  # that no object has
    checks: ClassVar[str | None] = None  # the kind of checksum that it compares bytes with, where it can
    # Whether an upload in parts may begin before its hash is known, and can be given up without touching another one.
    begins_unhashed: ClassVar[bool] = False

    abilities: Abilities

    def __init__(
        self, name: str, settings: RegistrySettings, *, base: str, place: str, identity: tuple[str, ...]
    ) -> None:
        self.name = name
        self.base = base
        self.place = place
        self.identity = identity
        self.mover = Mover(settings.model_copy(update={"max_workers": settings.max_workers + _DELETERS}))

    @property
    def shown_base(self) -> str:
        """Return where everything lies, for messages; empty for the whole bucket."""
        return f"below {self.base}" if self.base else ""

    def probe_key(self) -> str:
        """Return the name of an object that is only there to find something out."""
        return f"{self.base}{names.RESERVED_DIRECTORY}-probe-{secrets.token_hex(6)}"

    def require_keys(self, keys: Iterable[str]) -> None:
        """Raise :class:`InvalidInput` when a name is longer than a storage takes: before anything is claimed."""
        for key in keys:
            if len(key.encode()) > LONGEST_KEY:
                raise InvalidInput(
                    f"the key {names.show(key)} would have {len(key.encode())} bytes, and a storage takes "
                    f"{LONGEST_KEY}: shorten the root's prefix, or the path in the model",
                    argument="source",
                )

    @abstractmethod
    def url(self, key: str) -> str:
        """Return where an object is, as roots are written."""

    def require_usable(self) -> None:
        """Raise :class:`NotSupported` when a bucket of this kind can hold no model store, whatever it takes."""
        return

    # -- small objects

    @abstractmethod
    def get(self, key: str) -> StoredObject | None:
        """Return a small object, or ``None`` when it is not there."""

    @abstractmethod
    def head(self, key: str) -> Listed | None:
        """Return what an object is, or ``None`` when it is not there."""

    @abstractmethod
    def put(self, key: str, content: bytes, *, etag: str | None = None, doing: str | None = None) -> str | None:
        """Write a small object on a condition; return its tag, or ``None`` when the condition does not hold.

        :param etag: the tag that it must have now; ``None`` when it must not be there.
        :param doing: what errors call it, where the key would tell nobody anything.
        :raises NotSupported: by storages that know no conditional writes.
        """

    @abstractmethod
    def delete(self, key: str, *, etag: str | None = None, doing: str | None = None) -> None:
        """Remove an object; one that is not there is fine.

        :param etag: leave it when it has another tag by now; storages that do not know this remove it all the same.
        :param doing: as for :meth:`put`.
        """

    # -- listings

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[Listed]:
        """Yield all objects below a prefix, by name."""

    @abstractmethod
    def directories(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix that have something below themselves."""

    # -- uploads in parts

    @abstractmethod
    def begun_uploads(self, prefix: str) -> list[tuple[str, str, datetime]]:
        """Return key, id and beginning of the unfinished uploads in parts below a prefix, as far as they are listed."""

    def uploads(self, prefix: str, keys: Iterable[str] = ()) -> list[tuple[str, str]]:
        """Return key and id of all unfinished uploads in parts below a prefix, the oldest first.

        :param keys: those below it that may have some, for storages whose listings are not to be relied on.
        """
        found = sorted(self.begun_uploads(prefix), key=lambda upload: upload[2])
        return [(key, upload_id) for key, upload_id, _ in found]

    @abstractmethod
    def last_written(self, key: str, upload_id: str, begun: datetime) -> datetime:
        """Return when something was last sent to an unfinished upload in parts, where the storage tells.

        :param begun: when it was begun.
        """

    @abstractmethod
    def parts(self, key: str, upload_id: str) -> dict[int, Stored] | None:
        """Return the parts of an upload by number, or ``None`` when it is over."""

    @abstractmethod
    def begin(self, key: str, sha256: str) -> str:
        """Begin an upload in parts; return its id.

        :param sha256: what the object will hash to; :meth:`head` tells it. Empty when that is not known yet.
        """

    @abstractmethod
    def complete(
        self, key: str, upload_id: str, parts: Mapping[int, Stored], sha256: str, *, etag: str | None = None
    ) -> str | None:
        """Make an object of an upload's parts; return its tag, or ``None`` when it does not have these any more.

        :param sha256: as for :meth:`begin`.
        :param etag: as for :meth:`put`; storages whose uploads know no conditions pass over it.
        """

    def is_made_of(self, found: Listed, parts: Mapping[int, Stored]) -> bool:
        """Whether an object's tag says that it was put together of these very parts."""
        return False

    @abstractmethod
    def abort(self, key: str, upload_id: str) -> None:
        """Give an upload up; one that is over is fine. No :meth:`complete` that arrives later finds its parts."""

    @abstractmethod
    def copy(self, origin: Listed, key: str, sha256: str) -> str | None:
        """Have the storage copy an object as it was listed; return the copy's tag.

        :param sha256: as for :meth:`begin`.
        :return: ``None`` when the object has changed, or when the storage does not copy.
        """

    # -- bytes of size, which the mover carries

    @abstractmethod
    def address_get(self, found: Listed) -> Address:
        """Return where an object comes from."""

    def wanted(self, found: Listed) -> str | None:
        """Return what ``If-Match`` must say so that no other state of an object comes.

        :return: ``None`` where the address itself sees to that.
        """
        return None

    @abstractmethod
    def address_put(self, key: str, sums: Sums, sha256: str, *, etag: str | None = None) -> Address:
        """Return where an object goes to in one request, on the condition that there is none.

        :param sums: of its bytes.
        :param sha256: as for :meth:`begin`.
        :param etag: the tag that it must have now instead.
        """

    @abstractmethod
    def address_part(self, key: str, upload_id: str, number: int, sums: Sums) -> Address:
        """Return where a part, counted from 1, goes to."""

    @abstractmethod
    def receipt(
        self, key: str, upload_id: str | None, sums: Sums, address: Address, answer: MovedResponse, doing: str
    ) -> Stored:
        """Return what a storage has stored of what was sent to an address.

        A condition that does not hold is no error here: an answer was lost, or another writer was faster. Whether it
        has written the same bytes is seen before the version is published, if not at once.

        :param upload_id: of a part; ``None`` for an object in one request.
        :param doing: what was being done, for messages.
        :raises UrlExpired: when another address may do.
        :raises BeginAgain: when the upload is gone.
        :raises RegistryUnavailable: when it has stored something else.
        """

    @abstractmethod
    def is_part(self, sums: Sums, stored: Stored) -> bool:
        """Whether a part of an upload holds these bytes."""

    @abstractmethod
    def is_file(self, found: Listed, size: int, sha256: str, count: int, parts: Iterable[Sums]) -> bool:
        """Whether an object holds a file.

        :param size: the file's.
        :param sha256: the file's.
        :param count: in how many parts it would go up.
        :param parts: those parts, which are read when they are asked for.
        """

    def use_other_sum(self) -> bool:
        """Send another kind of sum from now on; return whether there is one: the storage did not check the last."""
        return False
