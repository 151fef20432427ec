"""One container of Azure Blob Storage, by its REST API.

Facts come from "Blob service REST API" of Microsoft's documentation, and from what Azurite answers. What differs most
from S3: an upload in parts has no id. Each name has one list of uncommitted blocks, shared by all who write there, so a
block tells in its own id what it holds, a commit carries the condition, and an upload is ended by a commit of nothing.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ClassVar
from urllib.parse import quote, unquote, urlencode, urlsplit
from xml.etree.ElementTree import Element

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.checksums import CRC64
from airflow_provider_modelsync.core.errors import BeginAgain, InvalidInput, NotSupported, RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.http.storage import Refusal, SumRefused
from airflow_provider_modelsync.core.redact import secrets_of, show_url
from airflow_provider_modelsync.core.storages.azure_auth import VERSION, AzureSettings, OpenCredential, credentials_for
from airflow_provider_modelsync.core.storages.base import LARGEST_RECORD, Abilities, Listed, StoredObject
from airflow_provider_modelsync.core.storages.rest import RestBucket, read_xml
from airflow_provider_modelsync.core.transfer.mover import MovedResponse
from airflow_provider_modelsync.core.transfer.plan import Address, Stored, Sums, md5_of

SCHEMES = frozenset({"abfs", "abfss", "az", "wasb", "wasbs"})

_PUBLIC = "blob.core.windows.net"
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_HOST = re.compile(r"[a-z0-9]{3,24}(\.[a-z0-9-]+)+")
_CONTAINER = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*")
_SHA256 = "x-ms-meta-modelsync_sha256"  # names of metadata are C# identifiers
_DIRECTORY = "hdi_isfolder"  # the metadata of a directory where directories are objects
_MOST_SEGMENTS = 254
_LARGEST_PAGE = 32 << 20  # bytes: 5,000 long names with what is told of each have less
_COPY_SECONDS = 5.0  # between two looks at a copy, at most
_CRC64 = "x-ms-content-crc64"
_BY_CRC64 = "crc64nvme-------"  # so long that what follows makes it as long as an MD5
_BLOCK = re.compile(rf"(\d{{5}})-([0-9a-f]{{32}}|{_BY_CRC64}[0-9a-f]{{16}})")

_MISSING = frozenset({"BlobNotFound", "ResourceNotFound"})
_CHANGED = frozenset({"ConditionNotMet", "TargetConditionNotMet", "BlobAlreadyExists"})
_NO_SOURCE = frozenset({"SourceConditionNotMet", "CannotVerifyCopySource"})
_GONE = frozenset({"InvalidBlockList", "InvalidBlobOrBlock"})  # said of blocks that are not there
_ODD_BLOCKS = frozenset({"InvalidBlobOrBlock", "InvalidBlockId"})  # of ids that are not as long as those of others


@dataclass(frozen=True, slots=True)
class Place:
    """A container, as a root names it.

    :param account: the account's name.
    :param container: the container.
    :param service: base URL of the account's Blob service.
    :param root: how a root names it, in one spelling.
    """

    account: str
    container: str
    service: str
    root: str

    @classmethod
    def read(cls, authority: str, settings: AzureSettings) -> Place:
        """Read what stands before the first slash of a root.

        :param authority: ``container@account``, or ``container@account.dfs.core.windows.net`` in any cloud.
        :raises InvalidInput: when it is something else.
        """
        container, _, host = authority.partition("@")
        host = host.lower()
        if not (_CONTAINER.fullmatch(container) and (_ACCOUNT.fullmatch(host) or _HOST.fullmatch(host))):
            raise InvalidInput(
                "a root on Azure is abfs://container@account/prefix, with an account's name or the host of its service",
                argument="host",
                connection=settings.conn_id,
            )
        # Data Lake's host serves another API.
        host = host.replace(".dfs.", ".blob.", 1) if "." in host else f"{host}.{_PUBLIC}"
        account = host.partition(".")[0]
        service = (settings.endpoint_url or f"https://{host}").rstrip("/")
        return cls(account, container, service, f"abfs://{container}@{host.removesuffix(f'.{_PUBLIC}')}")


class Container(RestBucket):
    """A container.

    :param authority: where it is, as roots say it.
    :param settings: the connection.
    :param opened: opens the credential of the connection that ``azure_conn_id`` names.
    :param base: what all keys begin with.
    :raises InvalidInput: naming the field that is not usable, or the extra that is to be installed.
    """

    wrong_etag: ClassVar[str] = "0x0"
    checks = CRC64
    usual_headers: ClassVar[Mapping[str, str]] = {"x-ms-version": VERSION}

    def __init__(
        self, authority: str, settings: AzureSettings, opened: OpenCredential | None = None, *, base: str = ""
    ) -> None:
        self._at = place = Place.read(authority, settings)
        shown = f"the container {place.container} of {place.account}"
        if settings.endpoint_url:
            shown += f" at {show_url(settings.endpoint_url, secrets_of(settings))}"
        super().__init__(
            place.container,
            settings,
            base=base,
            place=shown,
            identity=(place.service, place.container, settings.conn_id, settings.login or ""),
        )
        self.abilities = Abilities(
            copies=True, conditional_copies=True, upload_lists=True, part_lists=True, conditional_deletes=True
        )
        self._root = f"{place.service}/{place.container}"
        self._knows_crc64 = True  # as the service does; an emulator may not
        self._credentials = credentials_for(
            settings,
            place.account,
            place.container,
            is_https=urlsplit(place.service).scheme == "https",
            opened=opened,
        )

    def _may_be_stale(self, refusal: Refusal) -> bool:
        # A signature's end is told by 403; Azurite has another word for it.
        return super()._may_be_stale(refusal) or refusal.code in ("AuthenticationFailed", "AuthorizationFailure")

    def url(self, key: str) -> str:
        return f"{self._at.root}/{key}"

    def require_keys(self, keys: Iterable[str]) -> None:
        for key in keys:
            super().require_keys((key,))
            segments = key.split("/")
            if len(segments) > _MOST_SEGMENTS or any(part.partition("~")[0].endswith(".") for part in segments):
                raise InvalidInput(
                    f"the key {names.show(key)} has a segment that ends in a dot, which Azure drops, or too many",
                    argument="source",
                )

    # -- small objects

    def get(self, key: str) -> StoredObject | None:
        answer = self._call(f"reading {key}", "GET", self._url(key), none_for=_MISSING, largest=LARGEST_RECORD)
        return None if answer is None else StoredObject(answer.body, _time_of(answer), _tag(answer))

    def head(self, key: str) -> Listed | None:
        answer = self._look(key)
        if answer is None or _is_directory(answer):
            return None
        size = int(answer.headers.get("Content-Length", "0"))
        return Listed(key, size, _time_of(answer), _tag(answer), answer.headers.get(_SHA256))

    def put(self, key: str, content: bytes, *, etag: str | None = None, doing: str | None = None) -> str | None:
        headers = {
            **_condition(etag),
            "x-ms-blob-type": "BlockBlob",
            "Content-MD5": md5_of(content),
            "Content-Length": str(len(content)),
        }
        answer = self._call(
            doing or f"writing {key}", "PUT", self._url(key), headers, content, none_for=_CHANGED | _MISSING
        )
        return None if answer is None else _tag(answer)

    def delete(self, key: str, *, etag: str | None = None, doing: str | None = None) -> None:
        headers = {"x-ms-delete-snapshots": "include", **(_condition(etag) if etag else {})}
        self._call(
            doing or f"deleting {key}", "DELETE", self._url(key), headers, none_for=_MISSING | {"ConditionNotMet"}
        )

    # -- listings

    def objects(self, prefix: str) -> Iterator[Listed]:
        for blob in self._blobs(prefix):
            listed = _listed(blob)
            if listed is not None:
                yield listed

    def directories(self, prefix: str) -> list[str]:
        pages = self._pages(prefix, delimiter="/")
        found = (_name(entry) for page in pages for entry in page.iterfind("Blobs/BlobPrefix"))
        return [name.removeprefix(prefix).rstrip("/") for name in found]

    # -- uploads in parts

    def begun_uploads(self, prefix: str) -> list[tuple[str, str, datetime]]:
        names_there = [(_name(blob), blob) for blob in self._blobs(prefix, "uncommittedblobs")]
        # The service tells no tag of a name that was never committed; Azurite does, as of an object without bytes.
        bare = [name for name, blob in names_there if not blob.findtext("Properties/Etag")]
        doubtful = {name for name, blob in names_there if _size(blob) == 0} - set(bare)
        if doubtful:
            doubtful -= {_name(blob) for blob in self._blobs(prefix)}
        # Nobody tells when: of what may have been written just now nothing is to be removed. The service drops blocks
        # a week after the last one.
        now = datetime.now(UTC)
        return [(name, name, now) for name, _ in names_there if name in doubtful or name in bare]

    def last_written(self, key: str, upload_id: str, begun: datetime) -> datetime:
        return begun

    def parts(self, key: str, upload_id: str) -> dict[int, Stored] | None:
        doing = f"listing the blocks of {key}"
        url = self._url(key, comp="blocklist", blocklisttype="uncommitted")
        answer = self._call(doing, "GET", url, none_for=_MISSING)
        if answer is None:
            return None
        found = {}
        for block in read_xml(answer, doing).iterfind("UncommittedBlocks/Block"):
            told = _BLOCK.fullmatch(_decoded(block.findtext("Name", "")))
            if told:
                found[int(told[1])] = Stored(int(block.findtext("Size", "0")), told[2])
        return found

    def begin(self, key: str, sha256: str) -> str:
        return key

    def complete(
        self, key: str, upload_id: str, parts: Mapping[int, Stored], sha256: str, *, etag: str | None = None
    ) -> str | None:
        blocks = [_block(number, part.etag) for number, part in sorted(parts.items())]
        return self._commit(f"completing {key}", key, blocks, {**_condition(etag), _SHA256: sha256})

    def abort(self, key: str, upload_id: str) -> None:
        # A deleted name would keep its blocks for whoever comes late: only a commit drops them.
        doing = f"ending the upload of {key}"
        etag = self._commit(doing, key, [], _condition(None))
        if etag is not None:
            self.delete(key, etag=etag, doing=doing)

    def copy(self, origin: Listed, key: str, sha256: str) -> str | None:
        doing = f"copying {origin.key}"
        source = self._url(origin.key)
        headers = {
            **_condition(None),
            "x-ms-copy-source": self._credentials.proof("GET", source).on(source),
            "x-ms-source-if-match": f'"{origin.etag}"',
            _SHA256: sha256,
        }
        none_for = _CHANGED | _MISSING | _NO_SOURCE
        answer = self._call(
            doing, "PUT", self._url(key), headers, none_for=none_for, answer_seconds=self._settings.timeout_seconds
        )
        if answer is None:
            return None
        return self._copied(doing, key, answer)

    def require_usable(self) -> None:
        """Raise :class:`NotSupported` where directories are objects of their own.

        They stay when their last file is gone, and are in no listing's way of telling a model; a flat container has no
        object at the name of a directory.
        """
        key = self.probe_key()
        try:
            self.put(f"{key}/file", b"")
            answer = self._look(key)
        finally:
            self.delete(f"{key}/file")
        if answer is not None and _is_directory(answer):
            self.delete(key)
            raise NotSupported(
                f"{self.place}: the account {self._at.account} has a hierarchical namespace (Data Lake Storage), where "
                "no model store can be yet",
                remedy="Name a container of an account without one",
            )

    # -- bytes of size

    def address_get(self, found: Listed) -> Address:
        return self._address("GET", self._url(found.key), {})

    def wanted(self, found: Listed) -> str | None:
        return f'"{found.etag}"'

    def address_put(self, key: str, sums: Sums, sha256: str, *, etag: str | None = None) -> Address:
        headers = {
            **_condition(etag),
            "x-ms-blob-type": "BlockBlob",
            "Content-Type": "application/octet-stream",
            "Content-MD5": sums.md5_base64,
            _SHA256: sha256,
        }
        return self._address("PUT", self._url(key), headers)

    def address_part(self, key: str, upload_id: str, number: int, sums: Sums) -> Address:
        if self._knows_crc64 and sums.crc64 is not None:
            token, proof, is_checked = _token(sums.crc64), {_CRC64: _spelled(sums.crc64)}, True
        else:
            token, proof, is_checked = sums.md5, {"Content-MD5": sums.md5_base64}, False
        address = self._address("PUT", self._url(key, comp="block", blockid=_block(number, token)), proof)
        return replace(address, is_checked=is_checked)

    def receipt(
        self, key: str, upload_id: str | None, sums: Sums, address: Address, answer: MovedResponse, doing: str
    ) -> Stored:
        if not 200 <= answer.status < 300:
            refusal = self._refusal(answer)
            if upload_id is None and refusal.code in _CHANGED:
                return self._found(key, sums.size, address.headers[_SHA256], doing)
            if upload_id is not None and refusal.code in _ODD_BLOCKS:
                self.abort(key, upload_id)
                raise BeginAgain(f"{doing}: somebody else has left blocks at this name, which are gone now")
            error = self._error(answer, doing, address.refused, not_found=BeginAgain)
            if isinstance(error, SumRefused):
                self._knows_crc64 = False
            raise error
        # The service has compared the bytes with their sum; of a block it tells no tag.
        if upload_id is None:
            return Stored(sums.size, _tag(answer))
        if _CRC64 not in address.headers or sums.crc64 is None:
            return Stored(sums.size, sums.md5)
        if answer.headers.get(_CRC64) != address.headers[_CRC64]:
            self._knows_crc64 = False
            raise SumRefused(f"{doing}: the storage does not tell the CRC-64 of what it has stored")
        return Stored(sums.size, _token(sums.crc64))

    def is_part(self, sums: Sums, stored: Stored) -> bool:
        if stored.size != sums.size:
            return False
        if stored.etag.startswith(_BY_CRC64):
            return sums.crc64 is not None and stored.etag == _token(sums.crc64)
        return stored.etag == sums.md5

    def is_file(self, found: Listed, size: int, sha256: str, count: int, parts: Iterable[Sums]) -> bool:
        # Whoever writes the object anew writes its metadata anew, and each of its bytes was checked as it came.
        return (found.size, found.sha256) == (size, sha256)

    def _found(self, key: str, size: int, sha256: str, doing: str) -> Stored:
        """Return what another writer of the same bytes, or a request whose answer was lost, has stored."""
        found = self.head(key)
        if found is None or (found.size, found.sha256) != (size, sha256):
            raise BeginAgain(f"{doing}: somebody else has written other bytes there")
        return Stored(size, found.etag)

    def _url(self, key: str = "", **query: str) -> str:
        place = f"{self._root}/{quote(key, safe='/~')}" if key else self._root
        return f"{place}?{urlencode(query)}" if query else place

    def _look(self, key: str) -> MovedResponse | None:
        return self._call(f"looking at {key}", "HEAD", self._url(key), none_for=_MISSING)

    def _commit(self, doing: str, key: str, blocks: Iterable[str], headers: Mapping[str, str]) -> str | None:
        """Make an object of blocks; ``None``: they are not there any more, or the condition does not hold."""
        listed = "".join(f"<Uncommitted>{block}</Uncommitted>" for block in blocks)
        content = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        answer = self._call(
            doing,
            "PUT",
            self._url(key, comp="blocklist"),
            {**headers, "Content-Length": str(len(content)), "x-ms-blob-content-type": "application/octet-stream"},
            content,
            none_for=_CHANGED | _GONE | _MISSING,
            answer_seconds=self._settings.timeout_seconds,
        )
        return None if answer is None else _tag(answer)

    def _copied(self, doing: str, key: str, answer: MovedResponse | None) -> str | None:
        """Wait for a copy; return its tag, or ``None`` when it did not come about."""
        begun = answer.headers.get("x-ms-copy-id", "") if answer else ""
        end, wait = time.monotonic() + self._settings.timeout_seconds, 0.1
        while answer is not None and answer.headers.get("x-ms-copy-id") == begun:
            status = answer.headers.get("x-ms-copy-status", "success")
            if status == "success":
                return _tag(answer)
            if status != "pending" or time.monotonic() + wait > end:
                break
            CancelToken().sleep(wait)
            wait = min(2 * wait, _COPY_SECONDS)
            answer = self._look(key)
        else:
            return None  # somebody else has written there
        if status == "pending":
            self._call(
                doing,
                "PUT",
                self._url(key, comp="copy", copyid=begun),
                {"x-ms-copy-action": "abort"},
                none_for=_MISSING | {"NoPendingCopyOperation"},
            )
        self.delete(key)
        return None

    def _blobs(self, prefix: str, *include: str) -> Iterator[Element]:
        for page in self._pages(prefix, include=",".join(("metadata", *include))):
            yield from page.iterfind("Blobs/Blob")

    def _pages(self, prefix: str, **query: str) -> Iterator[Element]:
        """Yield a listing's pages, of which any may be short or empty."""
        doing = f"listing {prefix or 'the root'}"
        asked = {"restype": "container", "comp": "list", "prefix": prefix, **query}

        def ask(marks: Mapping[str, str], end: float) -> Element:
            answer = self._call(doing, "GET", self._url(**asked, **marks), end=end, largest=_LARGEST_PAGE)
            assert answer is not None
            return read_xml(answer, doing)

        def more(page: Element) -> Mapping[str, str]:
            marker = page.findtext("NextMarker")
            return {"marker": marker} if marker else {}

        return self._paged(doing, ask, more)


def _condition(etag: str | None) -> dict[str, str]:
    return {"If-None-Match": "*"} if etag is None else {"If-Match": f'"{etag}"'}


def _tag(answer: MovedResponse) -> str:
    return answer.headers.get("ETag", "").strip('"')


def _time_of(answer: MovedResponse) -> datetime:
    return _time(answer.headers.get("Last-Modified", ""))


def _time(text: str) -> datetime:
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        raise RegistryUnavailable("the storage does not tell when an object was written") from None


def _is_directory(answer: MovedResponse) -> bool:
    headers = answer.headers
    is_folder = headers.get(f"x-ms-meta-{_DIRECTORY}", "").lower() == "true"
    return is_folder or headers.get("x-ms-resource-type", "").lower() == "directory"


def _block(number: int, token: str) -> str:
    """Return a block's id: what it holds, and all of one length, as the service wants those of one name."""
    return base64.b64encode(f"{number:05d}-{token}".encode()).decode()


def _token(crc64: int) -> str:
    """Return what tells a block by its CRC-64, as long as an MD5."""
    return f"{_BY_CRC64}{crc64:016x}"


def _spelled(crc64: int) -> str:
    """Return a CRC-64 as the service's header has it, which is the one that NVMe has."""
    return base64.b64encode(crc64.to_bytes(8, "little")).decode()


def _decoded(block: str) -> str:
    try:
        return base64.b64decode(block).decode("ascii", "replace")
    except ValueError:
        return ""


def _name(entry: Element) -> str:
    found = entry.find("Name")
    text = "" if found is None else found.text or ""
    # So are names that XML cannot hold.
    return unquote(text) if found is not None and found.get("Encoded") == "true" else text


def _size(blob: Element) -> int:
    return int(blob.findtext("Properties/Content-Length") or 0)


def _listed(blob: Element) -> Listed | None:
    """Return what a listing tells of an object; ``None`` of a directory."""
    metadata = {item.tag.lower(): item.text or "" for item in blob.iterfind("Metadata/*")}
    is_folder = metadata.get(_DIRECTORY, "").lower() == "true"
    if is_folder or blob.findtext("Properties/ResourceType", "").lower() == "directory":
        return None
    etag = blob.findtext("Properties/Etag", "").strip('"')
    modified = _time(blob.findtext("Properties/Last-Modified", ""))
    return Listed(_name(blob), _size(blob), modified, etag, metadata.get(_SHA256.removeprefix("x-ms-meta-")))
