"""The test of a bucket: it does what a push does, with a few bytes, and tells what the storage cannot do.

What a model store cannot do without is an error. All else is missing with a reason, and done in another way.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from airflow_provider_modelsync.core.errors import ModelSyncError, NotSupported, RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.storages.base import Bucket, Listed
from airflow_provider_modelsync.core.transfer.mover import Mover, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address, Stored, Sums

_BYTES = b"modelsync"
_OTHER = b"other bytes"
_SHA256 = "0" * 64  # of what is no file
_ONCE_MORE = Backoff(attempts=2)  # as pulls do with what is not as it should be
# What a storage can do without, and what comes of it.
_COSTS = {
    "checks of sums": "damage on the way shows at the next pull only",
    "ranges": "large files come in one piece, and from the start again",
    "unfinished uploads": "what a killed push has sent of its large files is known to its own next try only",
    "copies": "files that another version holds are sent again instead of being copied",
    "conditional copies": "each copied file is looked at once more",
    "conditional deletes": "a file is removed whoever wrote it last",
}
_ORDER = tuple(_COSTS)


@dataclass(frozen=True, slots=True)
class Missing:
    """What a storage cannot do.

    :param ability: what that is.
    :param cost: what comes of it.
    """

    ability: str
    cost: str

    def __str__(self) -> str:
        return f"{self.ability} ({self.cost})"


def probe(bucket: Bucket, mover: Mover) -> list[Missing]:
    """Do what a push does below a bucket's root, and remove it all.

    :param bucket: the bucket; it remembers what its storage can do.
    :param mover: sends and receives bytes by presigned URLs.
    :return: the abilities that are missing.
    :raises NotSupported: when those are missing that no model store can do without.
    :raises ModelSyncError: when the bucket cannot be used, in the storage's own words.
    """
    return _Probe(bucket, mover).run()


class _Probe:
    def __init__(self, bucket: Bucket, mover: Mover) -> None:
        self._bucket = bucket
        self._mover = mover
        self._key = bucket.probe_key()
        self._missing: list[Missing] = []

    def run(self) -> list[Missing]:
        self._bucket.require_usable()
        try:
            doing = f"writing {self._bucket.shown_base}".rstrip()
            etag = self._bucket.put(self._key, _BYTES, doing=doing)  # alone: whoever may not do that may do nothing
            # At the same time what does not depend on one another: a storage far away takes long for each call.
            _together(lambda: self._record(etag, doing), self._list, self._files)
        except BaseException:
            with suppress(ModelSyncError):  # the first error tells more
                self._remove()
            raise
        self._remove()
        return sorted(self._missing, key=lambda missing: _ORDER.index(missing.ability))

    def _optional(self, step: Callable[[], object], ability: str) -> None:
        """Take a step; that it is refused is no more than a pity."""
        cost = _COSTS[ability]
        try:
            works = step()
        except RegistryUnavailable:
            raise
        except ModelSyncError as error:
            works, cost = False, f"{cost}; {error.message}"
        if not works:
            self._missing.append(Missing(ability, cost))

    def _lacks(self, ability: str) -> None:
        self._missing.append(Missing(ability, _COSTS[ability]))

    def _record(self, etag: str | None, doing: str) -> None:
        """Write as records are written: each under a condition that holds, and under one that does not.

        In one order, so that one answer of a storage is always told first.
        """
        put = self._bucket.put
        if put(self._key, _OTHER, doing=doing) is not None:
            raise self._mixing("it ignores If-None-Match")
        if put(self._key, _OTHER, etag=self._bucket.wrong_etag, doing=doing) is not None:
            raise self._mixing("it ignores If-Match")
        if put(f"{self._key}-absent", _OTHER, etag=self._bucket.wrong_etag, doing=doing) is not None:
            raise self._mixing("it writes on If-Match where nothing is, as MinIO did before September 2025; update it")
        if etag is None or put(self._key, _BYTES, etag=etag, doing=doing) is None:
            raise self._mixing("it refuses If-Match with the right tag")
        found = self._bucket.get(self._key)
        if found is None or found.content != _BYTES:
            raise RegistryUnavailable(f"{self._bucket.place} does not return what was just written to it")

    def _list(self) -> None:
        """List what is there."""
        if not any(entry.key == self._key for entry in self._bucket.objects(self._key)):
            raise NotSupported(f"{self._bucket.place} does not list what was just written to it")
        self._bucket.directories(self._bucket.base)

    def _files(self) -> None:
        self._bytes()
        _together(lambda: self._optional(self._parts, "unfinished uploads"), self._copy_and_delete)

    def _copy_and_delete(self) -> None:
        self._optional(self._copy, "copies")
        self._optional(self._conditional_delete, "conditional deletes")

    def _mixing(self, fault: str) -> NotSupported:
        return NotSupported(f"{self._bucket.place}: conditional writes do not work: {fault}. Two pushes could mix")

    def _bytes(self) -> None:
        """Send and fetch as files are: by presigned URLs, with a sum, and by ranges."""
        sent, key = Sums.of(_BYTES), f"{self._key}-file"
        stored = self._send(key, None, lambda: self._bucket.address_put(key, sent, _SHA256), sent)
        while self._accepts_damage(key):
            if not self._bucket.use_other_sum():
                self._lacks("checks of sums")
                break
        if not with_retries(lambda: self._gives_range(key, stored), cancel=CancelToken(), backoff=_ONCE_MORE):
            self._lacks("ranges")

    def _gives_range(self, key: str, stored: Stored) -> bool:
        """Fetch a range of what was sent: whether it comes, and not the whole."""
        address = self._bucket.address_get(Listed(key, stored.size, datetime.now(UTC), stored.etag))
        headers = {**address.headers, "Range": "bytes=1-3"}
        with self._mover.get(address.url, headers) as answer:
            if not 200 <= answer.status < 300:
                refusal = answer.answer()
                if address.explain is not None:
                    address.explain(refusal, "fetching a range")
                refusal.raise_for_store("fetching a range")
            got = answer.whole("GET", 1 << 20).body
        if (answer.status, got) != (206, _BYTES[1:4]) and got != _BYTES:
            raise RegistryUnavailable(
                f"{self._bucket.place} answers {answer.status} with {len(got)} B that are not what was just sent to it"
            )
        return got != _BYTES

    def _accepts_damage(self, key: str) -> bool:
        """Whether the storage takes bytes that are not those of their sum."""
        address = self._bucket.address_put(f"{key}-damaged", Sums.of(_OTHER), _SHA256)
        answer = self._mover.put(address.url, lambda: io.BytesIO(_BYTES), len(_BYTES), address.headers)
        if answer.status < 300:
            self._bucket.delete(f"{key}-damaged")
        return answer.status < 300

    def _send(self, key: str, upload_id: str | None, ask: Callable[[], Address], sums: Sums) -> Stored:
        """Send bytes as a push does; what the storage says of the sum is remembered."""

        def once() -> Stored:
            address = ask()
            answer = self._mover.put(address.url, lambda: io.BytesIO(sums.view), sums.size, address.headers)
            return self._bucket.receipt(key, upload_id, sums, address, answer, f"sending to {self._bucket.place}")

        return with_retries(once, cancel=CancelToken())

    def _parts(self) -> bool:
        """Begin an upload in parts, find it again, and give it up."""
        content, key = Sums.of(_BYTES), f"{self._key}-parts"
        upload_id = self._bucket.begin(key, _SHA256)
        try:
            self._send(key, upload_id, lambda: self._bucket.address_part(key, upload_id, 1, content), content)
            is_listed = (key, upload_id) in self._bucket.uploads(self._key, [key])
            parts = self._bucket.parts(key, upload_id)
        finally:
            self._bucket.abort(key, upload_id)
        self._bucket.abilities.part_lists = parts is not None and 1 in parts
        return is_listed and self._bucket.abilities.part_lists

    def _copy(self) -> bool:
        """Have an object copied, on its tag and on another."""
        abilities = self._bucket.abilities
        abilities.conditional_copies = None
        origin = next(iter(self._bucket.objects(f"{self._key}-file")))
        stale = replace(origin, etag=self._bucket.wrong_etag)
        abilities.copies = self._bucket.copy(origin, f"{self._key}-copy", _SHA256) is not None
        if abilities.copies:
            abilities.conditional_copies = self._bucket.copy(stale, f"{self._key}-copy", _SHA256) is None
            if not abilities.conditional_copies:
                self._lacks("conditional copies")
        return abilities.copies

    def _conditional_delete(self) -> bool:
        """Delete on a tag that the object does not have."""
        self._bucket.abilities.conditional_deletes = None
        self._bucket.delete(f"{self._key}-file", etag=self._bucket.wrong_etag)
        works = self._bucket.head(f"{self._key}-file") is not None
        self._bucket.abilities.conditional_deletes = works
        return works

    def _remove(self) -> None:
        doing = f"deleting {self._bucket.shown_base}".rstrip()
        left = (self._key + suffix for suffix in ("", "-absent", "-file", "-file-damaged", "-copy"))
        _together(*(partial(self._bucket.delete, key, doing=doing) for key in left))


def _together(*steps: Callable[[], object]) -> None:
    def take(step: Callable[[], object], cancel: CancelToken) -> None:
        step()

    for_each(take, steps, workers=len(steps), cancel=CancelToken())
