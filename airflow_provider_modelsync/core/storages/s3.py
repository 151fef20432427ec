"""A bucket of a storage that speaks S3. boto3 is loaded at the first use.

Facts come from the AWS documentation of the S3 API, and from what the storages of docs/modelstore.md answer. What one
cannot do is found out where it refuses, remembered for the process, and done in another way from then on.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from typing import Any, TypeVar

from airflow_provider_modelsync.core.archive import names
from airflow_provider_modelsync.core.archive.checksums import CRC32
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.parallel import for_each
from airflow_provider_modelsync.core.http.faults import classify
from airflow_provider_modelsync.core.http.network import READ_SECONDS
from airflow_provider_modelsync.core.http.storage import NotOffered, Refusal, SumRefused
from airflow_provider_modelsync.core.redact import excerpt, guard_logs, secrets_of, show_url
from airflow_provider_modelsync.core.storages.base import Abilities, Bucket, Deadline, Listed, OpenSession, StoredObject
from airflow_provider_modelsync.core.storages.boto import S3Settings, connect
from airflow_provider_modelsync.core.transfer.mover import MovedResponse, with_retries
from airflow_provider_modelsync.core.transfer.plan import Address, Stored, Sums, md5_of

SIGNED_SECONDS = 3600  # that a presigned URL is good for; each try of a request asks for its own
_LARGEST_COPY = 5 << 30  # bytes that S3 copies in one request
_COPY_PART = 1 << 30
_LOOKERS = 8  # threads that list the uploads of single keys

_SHA256 = "modelsync-sha256"  # metadata of objects that come in parts
_CRC32 = "x-amz-checksum-crc32"
_MD5_HEADER = "Content-MD5"
_CONDITION_FAILED = 412
_MD5 = re.compile(r"[0-9a-f]{32}")
_MISSING = frozenset({"NoSuchKey", "NoSuchUpload", "NotFound", "404"})
_CHANGED = frozenset({"PreconditionFailed"})
_BAD_REQUEST = frozenset({"InvalidArgument", "InvalidRequest"})
_ODD_TAG = re.compile(r"(?i)if-match|e-?tag")  # said of a tag that is spelled in another way
_RECORD_BYTES = 64 << 20  # of a record: one of 100,000 files with long names has half of that
# How a listing goes on: each of these is the next page's when the one before has it with "Next".
_MARKERS = ("ContinuationToken", "KeyMarker", "UploadIdMarker", "PartNumberMarker")
_ENTRIES = ("Contents", "CommonPrefixes", "Uploads", "Parts")

T = TypeVar("T")


@dataclass(slots=True)
class S3Abilities(Abilities):
    """What differs in storages that speak S3, besides.

    :param quoted_tags: whether ``If-Match`` wants its tag in quotes; storages that compare it literally differ.
    :param crc32: whether it checks the CRC-32 that comes with bytes.
    """

    quoted_tags: bool | None = None
    crc32: bool | None = None


_abilities: dict[tuple[str, ...], S3Abilities] = {}  # of the storages that this process has met


class S3Bucket(Bucket):
    """A bucket of a storage that speaks S3.

    :param name: the bucket's name.
    :param settings: the connection.
    :param session: opens a boto3 session; by default one with the connection's keys, or those that AWS's
        own tools find.
    :param base: what all keys begin with.
    """

    wrong_etag = "0" * 32
    checks = CRC32
    begins_unhashed = True

    def __init__(self, name: str, settings: S3Settings, session: OpenSession | None = None, *, base: str = "") -> None:
        self._secrets = secrets_of(settings)
        place = f"the bucket {name}"
        if settings.endpoint_url:
            place += f" at {show_url(settings.endpoint_url, self._secrets)}"
        identity = settings.endpoint_url or "", name, settings.conn_id, settings.login or ""
        super().__init__(name, settings, base=base, place=place, identity=identity)
        self._settings = settings
        self._open_session = session or self._session
        self._lock = Lock()
        self._client: Any = None
        self._calls = threading.local()
        self._with_crc32: set[str] = set()  # the uploads that were begun for parts with one: they all need it, then
        guard_logs(self._secrets)
        self.abilities: S3Abilities = _abilities.setdefault(identity, S3Abilities())

    def url(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def get(self, key: str) -> StoredObject | None:
        def read() -> StoredObject:
            answer = self.client.get_object(Bucket=self.name, Key=key)
            with answer["Body"] as body:
                content = body.read(_RECORD_BYTES + 1)
                if len(content) > _RECORD_BYTES:
                    raise RegistryUnavailable(f"{names.show(key)} is larger than any record of a model store")
                return StoredObject(content, answer["LastModified"], _tag(answer))

        return self._ask(f"reading {key}", read, none_for=_MISSING)

    def head(self, key: str) -> Listed | None:
        def look() -> Listed:
            answer = self.client.head_object(Bucket=self.name, Key=key)
            sha256 = answer.get("Metadata", {}).get(_SHA256)
            return Listed(key, answer["ContentLength"], answer["LastModified"], _tag(answer), sha256)

        return self._ask(f"looking at {key}", look, none_for=_MISSING)

    def put(self, key: str, content: bytes, *, etag: str | None = None, doing: str | None = None) -> str | None:
        doing = doing or f"writing {key}"
        # Of what was hashed, and known everywhere; under Object Lock a sum is demanded.
        write = partial(
            self._call, "put_object", Key=key, Body=content, ContentMD5=md5_of(content), ContentLength=len(content)
        )
        try:
            if etag is None:
                return self._ask(doing, lambda: _tag(write(IfNoneMatch="*")), none_for=_CHANGED)
            return self._on_tag(key, etag, doing, lambda tag: _tag(write(IfMatch=tag)))
        except NotOffered as error:
            raise NotSupported(f"{error.message}. The model store needs conditional writes") from None

    def delete(self, key: str, *, etag: str | None = None, doing: str | None = None) -> None:
        doing = doing or f"deleting {key}"
        remove = partial(self._call, "delete_object", Key=key)
        if etag is not None and self.abilities.conditional_deletes is not False:
            try:
                self._on_tag(key, etag, doing, lambda tag: bool(remove(IfMatch=tag)))
            except NotOffered:
                self.abilities.conditional_deletes = False
            else:
                return
        self._ask(doing, remove, none_for=_MISSING)

    def _on_tag(self, key: str, etag: str, doing: str, attempt: Callable[[str], T]) -> T | None:
        """Do what depends on an object's tag, spelled as the storage wants it; ``None``: it has another tag.

        A storage that wants another spelling refuses the right tag, too. So a refusal counts once one was accepted, or
        when the object really has changed.
        """
        known = self.abilities.quoted_tags
        for quoted in (True, False) if known is None else (known,):
            spelled = f'"{etag}"' if quoted else etag
            result = self._ask(
                doing,
                partial(attempt, spelled),
                none_for=_CHANGED | _MISSING,
                none_for_words=_ODD_TAG if known is None else None,
            )
            if result is not None:
                self.abilities.quoted_tags = quoted
                return result
            if known is not None or (found := self.head(key)) is None or found.etag != etag:
                return None
        raise NotSupported(
            f"{doing} in {self.place}: the storage refuses If-Match with the very tag that it gave, in quotes and "
            "without. The model store needs conditional writes"
        )

    def objects(self, prefix: str) -> Iterator[Listed]:
        for page in self._pages(f"listing {prefix}", "list_objects_v2", Prefix=prefix):
            for entry in page.get("Contents", ()):
                yield Listed(entry["Key"], entry["Size"], entry["LastModified"], _tag(entry))

    def directories(self, prefix: str) -> list[str]:
        pages = self._pages(f"listing {prefix or 'the root'}", "list_objects_v2", Prefix=prefix, Delimiter="/")
        found = (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ()))
        return [name.removeprefix(prefix).rstrip("/") for name in found]

    def uploads(self, prefix: str, keys: Iterable[str] = ()) -> list[tuple[str, str]]:
        # MinIO lists the uploads of one exact key only.
        found = self.begun_uploads(prefix)
        seen = {key for key, _, _ in found}
        if not seen:

            def look(key: str, cancel: CancelToken) -> None:
                found.extend(upload for upload in self.begun_uploads(key) if upload[0] == key)

            for_each(look, set(keys), workers=_LOOKERS, cancel=CancelToken())
        return [(key, upload_id) for key, upload_id, _ in sorted(found, key=lambda upload: upload[2])]

    def last_written(self, key: str, upload_id: str, begun: datetime) -> datetime:
        times = [begun]
        if self.abilities.part_lists is not False:
            doing = f"listing the parts of {key}"
            with suppress(NotOffered):
                for page in self._pages(doing, "list_parts", none_for=_MISSING, Key=key, UploadId=upload_id):
                    times += [part["LastModified"] for part in (page or {}).get("Parts", ()) if "LastModified" in part]
        return max(times)

    def begun_uploads(self, prefix: str) -> list[tuple[str, str, datetime]]:
        if self.abilities.upload_lists is False:
            return []
        pages = self._pages(f"listing the uploads of {prefix}", "list_multipart_uploads", Prefix=prefix)
        try:
            entries = [entry for page in pages for entry in page.get("Uploads", ())]
        except NotOffered:
            self.abilities.upload_lists = False
            return []
        return [(entry["Key"], entry["UploadId"], entry["Initiated"]) for entry in entries]

    def parts(self, key: str, upload_id: str) -> dict[int, Stored] | None:
        found: dict[int, Stored] = {}
        if self.abilities.part_lists is False:
            return found
        doing = f"listing the parts of {key}"
        try:
            for page in self._pages(doing, "list_parts", none_for=_MISSING, Key=key, UploadId=upload_id):
                if page is None:
                    return None
                for part in page.get("Parts", ()):
                    found[part["PartNumber"]] = Stored(part["Size"], _tag(part), part.get("ChecksumCRC32"))
        except NotOffered:  # so nothing is known of them but what a task remembers
            self.abilities.part_lists = False
        else:
            self.abilities.part_lists = True
        return found

    def begin(self, key: str, sha256: str) -> str:
        def create() -> str:
            sums = {} if self.abilities.crc32 is False else {"ChecksumAlgorithm": "CRC32"}
            metadata = {_SHA256: sha256} if sha256 else {}
            made = self._call("create_multipart_upload", Key=key, Metadata=metadata, **sums)
            upload_id = str(made["UploadId"])
            if sums:
                self._with_crc32.add(upload_id)
            return upload_id

        return self._do(f"beginning the upload of {key}", create)

    def complete(
        self, key: str, upload_id: str, parts: Mapping[int, Stored], sha256: str, *, etag: str | None = None
    ) -> str | None:
        listed = [
            {"PartNumber": number, "ETag": f'"{part.etag}"', **({"ChecksumCRC32": part.crc32} if part.crc32 else {})}
            for number, part in sorted(parts.items())
        ]

        def finish() -> str:
            return _tag(
                self.client.complete_multipart_upload(
                    Bucket=self.name, Key=key, UploadId=upload_id, MultipartUpload={"Parts": listed}
                )
            )

        none_for = _MISSING | {"InvalidPart"}
        # Putting many parts together takes time.
        etag = self._ask(f"completing {key}", finish, none_for=none_for, answer_seconds=self._settings.timeout_seconds)
        if etag == "" and (found := self.head(key)):  # Ceph 16 leaves the tag out of its answer
            return found.etag
        return etag

    def is_made_of(self, found: Listed, parts: Mapping[int, Stored]) -> bool:
        tags = [part.etag for _, part in sorted(parts.items())]
        return all(map(_MD5.fullmatch, tags)) and found.etag == _tag_of(map(bytes.fromhex, tags), f"-{len(tags)}")

    def abort(self, key: str, upload_id: str) -> None:
        self._ask(
            f"aborting the upload of {key}",
            lambda: self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id),
            none_for=_MISSING,
        )

    def copy(self, origin: Listed, key: str, sha256: str) -> str | None:
        if self.abilities.copies is False:
            return None
        source = {
            "CopySource": {"Bucket": self.name, "Key": origin.key},
            "CopySourceIfMatch": f'"{origin.etag}"',
        }
        doing = f"copying {origin.key}"
        try:
            if origin.size > _LARGEST_COPY:
                return self._copy_parts(doing, origin, key, source, sha256)
            answer = self._ask(
                doing,
                partial(self._call, "copy_object", Key=key, **source),
                none_for=_CHANGED | _MISSING,
                answer_seconds=self._settings.timeout_seconds,
            )
        except NotOffered:
            self.abilities.copies = False
            return None
        if answer is None:
            return None
        if self.abilities.conditional_copies is False and not self._still_is(origin):
            self.delete(key)
            return None
        return _tag(answer["CopyObjectResult"])

    def _still_is(self, origin: Listed) -> bool:
        found = self.head(origin.key)
        return found is not None and found.etag == origin.etag

    def _copy_parts(self, doing: str, origin: Listed, key: str, source: Mapping[str, Any], sha256: str) -> str | None:
        upload_id = self.begin(key, sha256)
        etag = None
        try:
            parts: dict[int, Stored] = {}
            for number, start in enumerate(range(0, origin.size, _COPY_PART), 1):
                end = min(start + _COPY_PART, origin.size)
                part = {"PartNumber": number, "CopySourceRange": f"bytes={start}-{end - 1}", **source}
                answer = self._ask(
                    doing,
                    partial(self._call, "upload_part_copy", Key=key, UploadId=upload_id, **part),
                    none_for=_CHANGED | _MISSING,
                    answer_seconds=self._settings.timeout_seconds,
                )
                if answer is None:
                    return None
                result = answer["CopyPartResult"]
                parts[number] = Stored(end - start, _tag(result), result.get("ChecksumCRC32"))
            etag = self.complete(key, upload_id, parts, sha256)
            return etag
        finally:
            if etag is None:
                self.abort(key, upload_id)

    def address_get(self, found: Listed) -> Address:
        return self.sign("get_object", found.key)

    def wanted(self, found: Listed) -> str | None:
        return f'"{found.etag}"'

    def address_put(
        self, key: str, sums: Sums, sha256: str, *, etag: str | None = None, overwrites: bool = False
    ) -> Address:
        """Return where an object goes to in one request. Further parameters as of :class:`Bucket`.

        :param overwrites: whatever is there now.
        """
        condition = {} if overwrites else {"IfNoneMatch": "*"} if etag is None else {"IfMatch": self._spelled(etag)}
        return self.sign("put_object", key, **condition, **self._sum_in(sums))

    def address_part(self, key: str, upload_id: str, number: int, sums: Sums) -> Address:
        with_crc32 = upload_id in self._with_crc32
        return self.sign(
            "upload_part", key, UploadId=upload_id, PartNumber=number, **self._sum_in(sums, with_crc32=with_crc32)
        )

    def _sum_in(self, sums: Sums, *, with_crc32: bool = False) -> dict[str, str]:
        if self.abilities.crc32 is False and not with_crc32:
            return {"ContentMD5": sums.md5_base64}
        return {"ChecksumAlgorithm": "CRC32", "ChecksumCRC32": sums.crc32}

    def receipt(
        self, key: str, upload_id: str | None, sums: Sums, address: Address, answer: MovedResponse, doing: str
    ) -> Stored:
        if answer.status == _CONDITION_FAILED:
            return Stored(sums.size, sums.md5)  # the tag of the same bytes
        try:
            answer.raise_for_store(doing, not_found=BeginAgain)
        except SumRefused:
            self._refused_crc32()
            raise
        etag, crc32 = _tag(answer.headers), answer.headers.get(_CRC32)
        if not etag:
            raise RegistryUnavailable(f"{doing}: the storage gave no ETag")
        # A storage that checks the sum need not make its tag of the bytes, as when it encrypts them.
        is_checked = _MD5_HEADER in address.headers
        if not is_checked and crc32 != sums.crc32 and _MD5.fullmatch(etag) and etag != sums.md5:
            if crc32 is None:
                self._refused_crc32()  # it checks none, and may make its tags of anything: the next try brings an MD5
            raise RegistryUnavailable(f"{doing}: the storage has stored other bytes than were sent")
        if _CRC32 in address.headers:
            self.abilities.crc32 = crc32 is not None
        return Stored(sums.size, etag, crc32)

    def is_part(self, sums: Sums, stored: Stored) -> bool:
        return sums.size == stored.size and (stored.etag == sums.md5 or stored.crc32 == sums.crc32)

    def is_file(self, found: Listed, size: int, sha256: str, count: int, parts: Iterable[Sums]) -> bool:
        # The tag is the MD5 of its bytes, or of the MD5s of the parts that it came in.
        suffix = found.etag[32:]
        if found.size != size or suffix not in ("", f"-{count}"):
            return False
        return found.etag == _tag_of((bytes.fromhex(part.md5) if suffix else part.view for part in parts), suffix)

    def use_other_sum(self) -> bool:
        if self.abilities.crc32 is False:
            return False
        self.abilities.crc32 = False
        return True

    def _refused_crc32(self) -> None:
        """Send no CRC-32 any more."""
        self.abilities.crc32 = False
        self._with_crc32.clear()

    def _spelled(self, etag: str) -> str:
        if self.abilities.quoted_tags is None:
            self._prove_tags()
        return f'"{etag}"' if self.abilities.quoted_tags else etag

    def _prove_tags(self) -> None:
        """Find out how the storage wants tags, where a refusal would not tell."""
        key = self.probe_key()
        etag = self.put(key, b"")
        try:
            if etag is not None:
                self.put(key, b"1", etag=etag)
        finally:
            self.delete(key)

    def sign(self, operation: str, key: str, **parameters: Any) -> Address:
        """Return where one operation on one object is allowed for an hour, and the headers that are signed along.

        :param operation: what boto3 calls it, e.g. ``"upload_part"``.
        :param parameters: what the operation needs besides bucket and key.
        """
        request = {"Bucket": self.name, "Key": key, **parameters}

        def make() -> Address:
            client = self.client
            url = client.generate_presigned_url(operation, Params=request, ExpiresIn=SIGNED_SECONDS)
            model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation])
            given = {**self._settings.usual_parameters, **request}
            headers = {
                member.serialization["name"]: str(given[name])
                for name, member in model.input_shape.members.items()
                if name in given and member.serialization.get("location") == "header"
            }
            return Address(url, headers, presigned=True)

        return self._do(f"signing for {key}", make)

    @property
    def client(self) -> Any:
        """The boto3 client."""
        with self._lock:
            if self._client is None:
                session = self._open_session()
                self._client = connect(self.name, self._settings, session, self.mover, self._deadline)
            return self._client

    def _deadline(self) -> Deadline:
        """Return that of the call that this thread is in."""
        found: Deadline | None = getattr(self._calls, "deadline", None)
        return found or Deadline(f"reaching {self.place}", time.monotonic() + self._settings.timeout_seconds)

    @contextmanager
    def _within(self, deadline: Deadline) -> Iterator[None]:
        before = getattr(self._calls, "deadline", None)
        self._calls.deadline = deadline
        try:
            yield
        finally:
            self._calls.deadline = before

    def _pages(
        self, doing: str, operation: str, *, none_for: frozenset[str] = frozenset(), **parameters: Any
    ) -> Iterator[Any]:
        """Yield a listing's pages; ``None`` in place of one that was answered with a code of ``none_for``.

        All pages together have the time of one call: new ones could come for ever.
        """
        end = time.monotonic() + self._settings.timeout_seconds
        seen: set[str] = set()
        while True:
            page = self._ask(doing, partial(self._call, operation, **parameters), none_for=none_for, end=end)
            yield page
            if page is None or not page.get("IsTruncated"):
                return
            markers = {name: page[f"Next{name}"] for name in _MARKERS if page.get(f"Next{name}")}
            if not markers:
                raise RegistryUnavailable(f"{doing} in {self.place}: the storage cuts its listing and does not go on")
            # By what it begins with, too: a page may come again under another token.
            signs = {repr(markers), *(repr(page[kind][0]) for kind in _ENTRIES if page.get(kind))}
            if signs & seen:
                raise RegistryUnavailable(f"{doing} in {self.place}: the storage repeats a page of its listing")
            seen |= signs
            parameters |= markers

    def _call(self, operation: str, **parameters: Any) -> Any:
        return getattr(self.client, operation)(Bucket=self.name, **parameters)

    def _do(
        self, doing: str, fn: Callable[[], T], *, end: float | None = None, answer_seconds: float = READ_SECONDS
    ) -> T:
        """Call boto3, as often as anything is tried, raising this package's errors instead of its own.

        :param end: until when, seconds, monotonic; the connection's time from now when ``None``.
        :param answer_seconds: how long the storage may think about one request.
        """
        doing = f"{doing} in {self.place}"
        if self._client is None:  # loading boto3 does not count
            self._tried(Deadline(doing, time.monotonic() + self._settings.timeout_seconds), lambda: self.client)
        deadline = Deadline(doing, end or time.monotonic() + self._settings.timeout_seconds, answer_seconds)
        return self._tried(deadline, fn)

    def _tried(self, deadline: Deadline, fn: Callable[[], T]) -> T:
        from botocore.exceptions import BotoCoreError, ClientError

        doing = deadline.doing

        def once() -> T:
            try:
                with self._within(deadline):
                    return fn()
            # From nothing: boto3's own messages may quote what was signed.
            except ClientError as error:
                raise self._refusal(error, doing) from None
            except BotoCoreError as error:
                raise self._fault(error, doing) from None
            except Exception as error:
                raise classify(error, doing) from None

        return with_retries(once, cancel=CancelToken(), seconds=max(deadline.rest, 0.0))

    def _ask(
        self,
        doing: str,
        fn: Callable[[], T],
        *,
        none_for: frozenset[str],
        none_for_words: re.Pattern[str] | None = None,
        **limits: Any,
    ) -> T | None:
        """Call boto3; the error codes in ``none_for`` are an answer, too, and such words about a request."""
        from botocore.exceptions import ClientError

        def ask() -> T | None:
            try:
                return fn()
            except ClientError as error:
                code, words = _code(error), str(error.response.get("Error", {}).get("Message"))
                if code in none_for or (none_for_words and code in _BAD_REQUEST and none_for_words.search(words)):
                    return None
                raise

        return self._do(doing, ask, **limits)

    def _session(self) -> Any:
        import boto3
        from botocore.session import get_session

        settings = self._settings
        session = get_session()
        models = _models(session.get_config_variable("data_path"))
        models.search_paths[:] = dict.fromkeys(models.search_paths)  # each boto3 session adds its own once more
        session.register_component("data_loader", models)
        return boto3.Session(
            botocore_session=session,
            aws_access_key_id=settings.login,
            aws_secret_access_key=settings.password.get_secret_value() if settings.password else None,
            aws_session_token=settings.session_token.get_secret_value() if settings.session_token else None,
        )

    def _refusal(self, error: Any, doing: str) -> Exception:
        said, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        # As they are looked up; here in lower case.
        headers = {name.title(): value for name, value in meta.get("HTTPHeaders", {}).items()}
        status, code = meta.get("HTTPStatusCode", 0), _code(error)
        refusal = Refusal(status, "" if code == str(status) else code, said.get("Message") or "", headers)
        refused = refusal.error(doing, secrets=self._secrets)
        if isinstance(refused, SumRefused):
            self._refused_crc32()  # the next try goes without
        return refused

    def _fault(self, error: Exception, doing: str) -> Exception:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}:
            return Unauthorized(f"{doing}: no usable AWS credentials are to be found ({type(error).__name__})")
        if kinds & {"HTTPClientError", "ConnectionError", "ResponseStreamingError", "IncompleteReadError"}:
            try:
                return classify(error, doing)
            except Exception:  # botocore has wrapped nothing that tells more
                return RegistryUnavailable(f"{doing}: the connection failed ({type(error).__name__})")
        if "ResponseParserError" in kinds:
            return RegistryUnavailable(f"{doing}: the answer is not that of a storage which speaks S3")
        return InvalidInput(f"{doing}: {excerpt(str(error), self._secrets)}")


@cache
def _models(path: str | None) -> Any:
    """Return botocore's descriptions of services, which take each session 0.1 s of CPU to read by itself."""
    from botocore.loaders import create_loader

    return create_loader(path)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _tag_of(pieces: Iterable[bytes | memoryview], suffix: str) -> str:
    """Return the tag of what comes in pieces: of its bytes, or of its parts' MD5s, as a suffix says."""
    total = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        total.update(piece)
    return f"{total.hexdigest()}{suffix}"


def _tag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).removeprefix("W/").strip('"')
