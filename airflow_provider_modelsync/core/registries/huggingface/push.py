"""Pushing: which files have to go up, where to, and the commit that makes them a version."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.steps import Flow, call, sleep
from airflow_provider_modelsync.core.http.policy import read_json
from airflow_provider_modelsync.core.registries.huggingface.api import (
    ATTRIBUTES,
    MAIN,
    Entry,
    Hub,
    Refs,
    Text,
    model_path,
)
from airflow_provider_modelsync.core.registries.huggingface.files import MOST_FILES, read_tree
from airflow_provider_modelsync.core.transfer.plan import Address, Blob, UploadPlan

CARD = "README.md"

_AT_ONCE = 256  # files of one call
_SAMPLE = 512  # bytes by which the Hub tells text from the rest
_LARGEST = 500 * 10**9  # bytes of a file
_MOST_INLINE = 128 << 20  # bytes that may travel in the commit itself
_REFUSED = frozenset({".git", ".cache", ".."})
_COMMIT_SECONDS = 120.0  # a commit may take 60
_LOOKS = 3  # at the head, after an answer that was lost
_PULLS = 10  # the newest open pull requests, of which one may be what is to be proposed
_LFS = {"Accept": "application/vnd.git-lfs+json", "Content-Type": "application/vnd.git-lfs+json"}


class PushOptions(BaseModel):
    """What a push to the Hub may say.

    :param branch: where the commit goes; made from ``main`` when it is not there.
    :param private: whether a model that is made by the push can be seen by its owners only.
    :param message: the commit's title.
    :param keep_card: whether a ``README.md`` that the source does not have stays as it is.
    :param create_pr: whether the commit is proposed by a pull request to the branch, which needs no right to write.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    branch: str = Field(default=MAIN, min_length=1)
    private: bool = True
    message: str = Field(default="", max_length=500)
    keep_card: bool = True
    create_pr: bool = False

    @property
    def params(self) -> dict[str, str]:
        """What calls about the branch say."""
        return {"create_pr": "1"} if self.create_pr else {}

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> PushOptions:
        """Check options.

        :raises InvalidInput: naming the one at fault.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]
            raise InvalidInput(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", argument="options") from None


class _Preupload(BaseModel):
    path: str
    mode: Text = Field(default="", alias="uploadMode")
    ignored: bool | None = Field(default=False, alias="shouldIgnore")


class _Preuploads(BaseModel):
    files: list[_Preupload]
    commit: str = Field(alias="commitOid")


class _Action(BaseModel):
    href: str
    header: dict[str, str] = {}


class _Fault(BaseModel):
    code: int = 0
    message: Text = ""


class _Object(BaseModel):
    oid: str
    size: int = 0
    actions: dict[str, _Action] | None = None
    error: _Fault | None = None


class _Batch(BaseModel):
    objects: list[_Object]


class _Discussion(BaseModel):
    number: int = Field(alias="num")


class _Discussions(BaseModel):
    found: list[_Discussion] = Field(alias="discussions")


class Committed(BaseModel):
    """A commit that was made.

    :param pull: where the pull request is that proposes it, if one does.
    """

    model_config = ConfigDict(populate_by_name=True)

    commit: str = Field(alias="commitOid")
    pull: Text = Field(default="", alias="pullRequestUrl")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPlan(UploadPlan):
    """How a version gets into a repository."""

    change: Change
    tag: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """What turns the head of a branch into a version.

    :param source: the model.
    :param name: the model's name.
    :param options: of the push.
    :param parent: the head, which must still be that when the commit is made.
    :param inline: files that travel in the commit.
    :param large: files that lie in LFS.
    :param removed: paths of the head that the source does not have.
    :param kept: the model card that stays although the source has none.
    """

    source: Source
    name: str
    options: PushOptions
    parent: str
    inline: tuple[FileEntry, ...] = ()
    large: tuple[FileEntry, ...] = ()
    removed: tuple[str, ...] = ()
    kept: Entry | None = field(default=None, compare=False)

    @property
    def is_empty(self) -> bool:
        """Whether the head holds the model already."""
        return not (self.inline or self.large or self.removed)


class Pushes:
    """Pushes models to the Hub.

    :param hub: makes the calls.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def compare(self, source: Source, name: str, options: PushOptions) -> Flow[Change]:
        """Return what has to change, making the model and the branch where they are not there.

        :raises InvalidInput: for what the Hub would refuse, or leave out.
        """
        _require_takeable(source)
        if not self._hub.has_token:
            raise Unauthorized("a token that may write is needed for a push", argument="password")
        if any(file.path == CARD for file in source.files):
            yield from self._check_card(source)
        told = yield from self._preuploads(source, name, options)
        head = told[0].commit
        there = {entry.path: entry for entry in (yield from read_tree(self._hub, name, head))}
        modes = {file.path: file for part in told for file in part.files}
        differing = yield from call(_differing, source, there)
        for file in differing:
            if modes[file.path].ignored:
                raise InvalidInput(
                    f"the .gitignore of {name} drops {show(file.path)}; leave it out with exclude, or change that file",
                    argument="source",
                )
        large = tuple(file for file in differing if modes[file.path].mode == "lfs" and file.size)
        inline = tuple(file for file in differing if file not in large)
        if (size := sum(file.size for file in inline)) > _MOST_INLINE:
            raise NotSupported(
                f"the Hub wants {size} bytes of {len(inline)} files in the commit itself; name their patterns in the "
                f"{ATTRIBUTES} of {name}, so that they go to LFS"
            )
        kept = there.get(CARD) if options.keep_card and all(file.path != CARD for file in source.files) else None
        ours = {file.path for file in source.files}
        removed = tuple(path for path in there if path not in ours and (kept is None or path != CARD))
        return Change(source, name, options, head, inline, large, removed, kept)

    def blobs(self, change: Change, files: Sequence[FileEntry]) -> Flow[dict[str, Blob]]:
        """Return where large files go up to; those that are there already are left out."""
        doing = f"asking where {change.name} goes up to"
        found: dict[str, Blob] = {}
        for part in _parts_of(files):
            wanted: dict[str, Any] = {
                "operation": "upload",
                "transfers": ["basic", "multipart"],
                "hash_algo": "sha256",
                "objects": [{"oid": file.sha256, "size": file.size} for file in part],
            }
            if not change.options.create_pr:
                wanted["ref"] = {"name": change.options.branch}
            batch = yield from self._hub.need(
                "POST",
                f"{change.name}.git/info/lfs/objects/batch",
                _Batch,
                doing,
                name=change.name,
                headers=_LFS,
                content=json.dumps(wanted).encode(),
            )
            objects = {entry.oid: entry for entry in batch.objects}
            for file in part:
                entry = objects.get(file.sha256)
                if entry is None:
                    raise RegistryUnavailable(f"{doing}: nothing is said of {show(file.path)}")
                if entry.error is not None:
                    raise InvalidInput(f"{doing}: {show(file.path)} is refused: {entry.error.message}")
                if entry.actions and "upload" in entry.actions:
                    found[file.path] = self._blob(entry, file)
        return found

    def _blob(self, entry: _Object, file: FileEntry) -> Blob:
        assert entry.actions is not None
        upload, verify = entry.actions["upload"], entry.actions.get("verify")
        for url in (upload.href, *(value for key, value in upload.header.items() if key.isdigit())):
            self._hub.check_server_url(url)
        chunk = upload.header.get("chunk_size")
        verify_url = verify.href if verify else None
        if chunk is None:
            return Blob(verify=verify_url, whole=Address(upload.href, presigned=True))
        parts = {int(key): value for key, value in upload.header.items() if key.isdigit()}
        size = int(chunk) if chunk.isdigit() else 0
        if not size or sorted(parts) != list(range(1, -(-file.size // size) + 1)):
            raise RegistryUnavailable(f"the parts that {show(file.path)} is to go up in do not fit its size")
        addresses = tuple(Address(parts[number], presigned=True) for number in sorted(parts))
        return Blob(verify=verify_url, part_size=size, parts=addresses, complete=upload.href)

    def finish_blob(self, change: Change, file: FileEntry, blob: Blob, etags: Sequence[str]) -> Flow[None]:
        """Have a large file put together, and looked at, once all of it has gone up."""
        doing = f"finishing the upload of {show(file.path)}"
        if blob.complete is not None:
            parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(etags, 1)]
            content = json.dumps({"oid": file.sha256, "parts": parts}).encode()
            response = yield from self._hub.answer(
                "POST", blob.complete, content=content, headers=_LFS, may_repeat=True, seconds=_COMMIT_SECONDS
            )
            if 400 <= response.status_code < 500 and response.status_code != 429:
                # Perhaps by our own try whose answer was lost: the next question tells whether it is there.
                raise BeginAgain(f"{doing}: the server answered {response.status_code}")
            self._hub.refuse(response, doing, change.name)
        if blob.verify is not None:
            body = {"oid": file.sha256, "size": file.size}
            response = yield from self._hub.answer("POST", blob.verify, json=body, may_repeat=True)
            if response.status_code == 404:  # said of the object: the repository was there a moment ago
                raise BeginAgain(f"{doing}: the object is not there")
            self._hub.refuse(response, doing, change.name)

    def commit(self, change: Change) -> Flow[Committed]:
        """Make the commit, or propose it. An answer that is lost is settled by looking at the head.

        :raises BeginAgain: when somebody else has moved the branch.
        """
        body = yield from call(_body_of, change)
        path = model_path(change.name, "commit", change.options.branch)
        doing = f"making the commit in {change.name}"
        lost: Exception = RegistryUnavailable(f"{doing}: no answer came")
        for look in range(_LOOKS):
            try:
                response = yield from self._hub.answer(
                    "POST",
                    path,
                    params=change.options.params,
                    content=body,
                    headers={"Content-Type": "application/x-ndjson"},
                    seconds=_COMMIT_SECONDS,
                    may_repeat=False,
                )
            except RegistryUnavailable as error:
                lost = error
            else:
                if response.status_code < 500 and response.status_code != 412:
                    return (yield from self._committed(response, doing, change))
                lost = RegistryUnavailable(f"{doing}: the server answered {response.status_code}")
            if change.options.create_pr and (proposed := (yield from self.proposed(change))):
                return proposed
            head = yield from self._head(change)
            if head != change.parent:
                if (yield from self.holds(change, head)):
                    return Committed(commit=head)
                raise BeginAgain(f"{doing}: somebody else has moved {change.options.branch} to {head}")
            yield from sleep(float(look))  # with its parent named, it cannot be made twice
        raise lost

    def _committed(self, response: httpx.Response, doing: str, change: Change) -> Flow[Committed]:
        self._hub.refuse(response, doing, change.name)
        return read_json(response, Committed, doing)
        yield

    def proposed(self, change: Change) -> Flow[Committed | None]:
        """Return the commit of an open pull request that proposes the model already."""
        name, doing = change.name, f"looking at the pull requests of {change.name}"
        found = yield from self._hub.need(
            "GET",
            model_path(name, "discussions"),
            _Discussions,
            doing,
            name=name,
            params={"type": "pull_request", "status": "open"},
        )
        numbers = sorted((one.number for one in found.found), reverse=True)
        for number in numbers[:_PULLS]:
            commit = yield from self._hub.head(name, f"refs/pr/{number}")
            if commit is not None and (yield from self.holds(change, commit)):
                return Committed(commit=commit, pull=f"{self._hub.base_url}/{name}/discussions/{number}")
        return None

    def _head(self, change: Change) -> Flow[str]:
        doing = f"looking at the branches of {change.name}"
        refs = yield from self._hub.need("GET", model_path(change.name, "refs"), Refs, doing, name=change.name)
        head = next((branch.target for branch in refs.branches if branch.name == change.options.branch), None)
        if head is None:
            raise ModelNotFound(f"{doing}: there is no {change.options.branch} any more")
        return head

    def holds(self, change: Change, commit: str) -> Flow[bool]:
        """Whether a commit holds the model, besides a model card that is kept."""
        there = {entry.path: entry for entry in (yield from read_tree(self._hub, change.name, commit))}
        keeps_card = change.options.keep_card and all(file.path != CARD for file in change.source.files)
        kept = {CARD} if keeps_card else set()
        if there.keys() - kept != {file.path for file in change.source.files}:
            return False
        return not (yield from call(_differing, change.source, there))

    def _check_card(self, source: Source) -> Flow[None]:
        text = yield from call(source.head, CARD, _MOST_INLINE)
        body = {"content": text.decode("utf-8", "replace"), "repoType": "model"}
        response = yield from self._hub.answer("POST", "api/validate-yaml", json=body, may_repeat=True)
        if response.is_success:  # other servers have no such call
            faults = read_json(response, _CardFaults, f"checking {CARD}").errors
            if faults:
                raise InvalidInput(f"the Hub refuses its {CARD}: {faults[0].message}", argument="source")

    def _preuploads(self, source: Source, name: str, options: PushOptions) -> Flow[list[_Preuploads]]:
        parts = list(_parts_of(source.files))
        told: list[_Preuploads] = []
        for part in parts:
            told += [(yield from self._preupload(source, name, options, part))]
        if any(one.commit != told[0].commit for one in told):
            raise BeginAgain(f"somebody else has moved {options.branch} of {name}")
        return told

    def _preupload(
        self, source: Source, name: str, options: PushOptions, files: Sequence[FileEntry]
    ) -> Flow[_Preuploads]:
        doing = f"preparing a push to {name}"
        body = {"files": (yield from call(_samples_of, source, files))}
        for is_made in (False, True):
            response = yield from self._hub.answer(
                "POST", model_path(name, "preupload", options.branch), params=options.params, json=body, may_repeat=True
            )
            code = response.headers.get("X-Error-Code")
            if response.status_code != 404 or is_made or options.create_pr:
                break
            if code == "RevisionNotFound":
                yield from self._make_branch(name, options.branch)
            else:
                yield from self._make_model(name, options)
                if options.branch != MAIN:
                    yield from self._make_branch(name, options.branch)
        self._hub.refuse(response, doing, name)
        told = read_json(response, _Preuploads, doing)
        if {file.path for file in files} - {file.path for file in told.files}:
            raise RegistryUnavailable(f"{doing}: the server does not say how each file is to go up")
        return told

    def _make_model(self, name: str, options: PushOptions) -> Flow[None]:
        owner, slash, plain = name.rpartition("/")
        body: dict[str, Any] = {"name": plain, "type": "model", "private": options.private}
        if slash:
            body["organization"] = owner
        response = yield from self._hub.answer("POST", "api/repos/create", json=body, may_repeat=True)
        if response.status_code != 409:  # it exists, perhaps by our own try whose answer was lost
            self._hub.refuse(response, f"making the model {name}", None)

    def _make_branch(self, name: str, branch: str) -> Flow[None]:
        response = yield from self._hub.answer("POST", model_path(name, "branch", branch), json={}, may_repeat=True)
        if response.status_code != 409:
            self._hub.refuse(response, f"making the branch {branch} of {name}", name)


class _CardFault(BaseModel):
    message: Text = ""


class _CardFaults(BaseModel):
    errors: list[_CardFault] = []


def _require_takeable(source: Source) -> None:
    if len(source.files) > MOST_FILES:
        raise InvalidInput(f"the Hub takes no more than {MOST_FILES} files", argument="source")
    for file in source.files:
        if file.path == ATTRIBUTES or _REFUSED.intersection(file.path.split("/")):
            raise InvalidInput(f"the Hub does not take {show(file.path)}", argument="source")
        if file.size > _LARGEST:
            raise InvalidInput(f"the Hub takes no file above {_LARGEST} bytes, as {show(file.path)}", argument="source")


def _parts_of(files: Iterable[FileEntry]) -> Iterator[list[FileEntry]]:
    rest = iter(files)
    while part := list(islice(rest, _AT_ONCE)):
        yield part


def _samples_of(source: Source, files: Sequence[FileEntry]) -> list[dict[str, Any]]:
    return [
        {
            "path": file.path,
            "size": file.size,
            "sample": base64.b64encode(bytes(source.read(file.path, 0, min(file.size, _SAMPLE)))).decode(),
        }
        for file in files
    ]


def _differing(source: Source, there: Mapping[str, Entry]) -> list[FileEntry]:
    """Return the files that a commit does not hold; small ones are read to be compared."""
    found: list[FileEntry] = []
    for file in source.files:
        entry = there.get(file.path)
        if entry is None or entry.size != file.size:
            found.append(file)
        elif entry.sha256:
            if entry.sha256 != file.sha256:
                found.append(file)
        elif entry.blob != _blob_id(source, file):
            found.append(file)
    return found


def _blob_id(source: Source, file: FileEntry) -> str:
    total = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    for start in range(0, file.size, 1 << 20):
        total.update(source.read(file.path, start, min(1 << 20, file.size - start)))
    source.confirm([file.path])
    return total.hexdigest()


def _body_of(change: Change) -> bytes:
    """Return the commit; reads the files that travel in it."""
    count = len(change.inline) + len(change.large)
    title = change.options.message or f"Push {count} file{'' if count == 1 else 's'}"
    header = {"summary": title, "description": "", "parentCommit": change.parent}
    lines = [_line("header", header)]
    for file in change.inline:
        content = base64.b64encode(change.source.read(file.path, 0, file.size)).decode()
        lines.append(_line("file", {"path": file.path, "content": content, "encoding": "base64"}))
    change.source.confirm(file.path for file in change.inline)
    lines += [
        _line("lfsFile", {"path": file.path, "algo": "sha256", "oid": file.sha256, "size": file.size})
        for file in change.large
    ]
    lines += [_line("deletedFile", {"path": path}) for path in change.removed]
    return b"\n".join(lines)


def _line(key: str, value: Mapping[str, Any]) -> bytes:
    return json.dumps({"key": key, "value": value}, ensure_ascii=False).encode()
