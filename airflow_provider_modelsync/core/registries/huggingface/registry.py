"""The Hugging Face Hub, and servers with its API.

A model is a git repository, an exact version a commit. Branches and tags are aliases of commits. The Hub tells the
SHA-256 of large files and git's id of small ones, so each file is proved as it comes, and the digest over all of them
is found out only where something is compared.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, cast

from pydantic import BaseModel, JsonValue

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import InvalidInput, ModelNotFound, NotSupported, VersionConflict
from airflow_provider_modelsync.core.flow.forks import Lock
from airflow_provider_modelsync.core.flow.steps import Flow, Policy
from airflow_provider_modelsync.core.http.policy import RequestPolicy, read_json
from airflow_provider_modelsync.core.models import (
    LATEST,
    NOBODY,
    Alias,
    ModelRef,
    ModelReference,
    ModelVersion,
    Query,
    VersionStatus,
)
from airflow_provider_modelsync.core.redact import excerpt
from airflow_provider_modelsync.core.registries.base import Capability, Registry
from airflow_provider_modelsync.core.registries.capabilities import Aliases, moved
from airflow_provider_modelsync.core.registries.huggingface.api import (
    ATTRIBUTES,
    COMMIT,
    DEFAULT_HOST,
    MAIN,
    Commit,
    GitRef,
    Hub,
    Info,
    Refs,
    Text,
    model_path,
)
from airflow_provider_modelsync.core.registries.huggingface.files import (
    read_tree,
    require_fetchable,
    way_down,
    with_hashes,
)
from airflow_provider_modelsync.core.registries.huggingface.patterns import HubPatterns
from airflow_provider_modelsync.core.registries.huggingface.push import Change, CommitPlan, Pushes, PushOptions
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url
from airflow_provider_modelsync.core.transfer.plan import Blob, DownloadPlan, PushRequest, PutBlobs, UploadPlan

log = logging.getLogger("modelsync")

_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?(?<!\.git)"
_NAME = re.compile(rf"(?:(?!(?:api|datasets|spaces)/){_PART}/)?{_PART}")
# What git allows in the name of a branch or a tag, as far as a version can hold it.
_REVISION = re.compile(
    r"(?!.*(?:\.\.|//|@\{|/\.|\.lock(?:/|$)))[^\s\x00-\x1f\x7f~^:?*\[\\./@-][^\s\x00-\x1f\x7f~^:?*\[\\]{0,254}(?<![./])"
)
_WILD = frozenset("*?[")
_COMMIT_PAGES = 10
_MODEL_PAGES = 50
_REMEMBERED = 2000  # commits
_TAGS_SECONDS = 300.0  # that a listing may be behind about branches and tags: only the main branch is looked at


class _Organization(BaseModel):
    name: str


class _User(BaseModel):
    name: Text = ""
    orgs: list[_Organization] = []


class HuggingFaceHubSettings(RegistrySettings):
    """A connection to the Hub.

    :param namespace: whose models are listed where nothing else says so: a user or an organisation.
    """

    namespace: str | None = None


class HuggingFaceHub(Registry, Aliases):
    """The models that one token may see.

    :param settings: the connection; ``password`` is the token, without which only what is public is seen.
    """

    conn_type = "huggingface_hub"
    title = "Hugging Face Hub"
    settings_type = HuggingFaceHubSettings
    settings: HuggingFaceHubSettings
    has_namespaces = True
    choice_type = HubPatterns
    capabilities = frozenset({Capability.PUSH, Capability.PULL})
    takes_tags = True
    leaves_out: ClassVar[Mapping[str, str | None]] = {ATTRIBUTES: None}
    compares = False
    remembers = False
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.CHOOSE_VERSION: "a commit names itself, and gets the version as a tag",
        Capability.LABELS: "tag the commit, or put them into the model card",
        Capability.METADATA: "put them into the model card, README.md",
        Capability.SIGNATURES: "a commit holds the model's files and nothing beside them; sync it into a registry that "
        "keeps signatures, signed by the key of that connection",
        Capability.DELETE: "a commit cannot be deleted; delete the branch or the tag",
    }

    def __init__(self, settings: RegistrySettings) -> None:
        super().__init__(settings)
        if not isinstance(settings, HuggingFaceHubSettings):
            raise InvalidInput("these are no settings of the Hugging Face Hub", connection=settings.conn_id)
        self._hub = Hub(settings, self.title)
        self.base_url: str = self._hub.base_url
        self._pushes = Pushes(self._hub)
        self._memory = _Memory()

    def policy(self) -> Policy:
        return RequestPolicy(self.settings)

    def page_of(self, model: ModelVersion | None = None) -> str | None:
        if model is None:
            namespace = self.settings.namespace
            return f"{self.base_url}/{namespace}" if namespace else f"{self.base_url}/models"
        return f"{self.base_url}/{model.name}/tree/{model.version}"

    def check(self, ref: ModelRef) -> None:
        if not _NAME.fullmatch(ref.name):
            raise InvalidInput(
                f"the name {show(ref.name)} is not 'namespace/name', each of at most 96 letters, digits, '-', '_' and "
                "'.', with none of '-' and '.' at an end, and without '--', '..' and a final '.git'",
                argument="model",
            )
        if ref.version is not None and (ref.version == LATEST or not _REVISION.fullmatch(ref.version)):
            raise InvalidInput(f"the version {show(ref.version)} is no commit, branch or tag", argument="model")
        if ref.alias is not None and (ref.alias == LATEST or "@" in ref.alias or not _REVISION.fullmatch(ref.alias)):
            raise InvalidInput(f"the alias {show(ref.alias)} is no branch or tag", argument="model")

    def test(self) -> Flow[str]:
        doing = "checking the token"
        response = yield from self._hub.answer("GET", "api/whoami-v2")
        if response.status_code == 401 and not self._hub.has_token:
            return f"Connected to {self.base_url} without a token: only public models are seen."
        if response.status_code == 404:
            raise InvalidInput(f"{doing}: there is no Hub at {self.base_url}", argument="host")
        self._hub.refuse(response, doing)
        user = read_json(response, _User, doing)
        member = ", ".join(organization.name for organization in user.orgs)
        return f"Connected to {self.base_url} as {user.name}" + (f" of {member}." if member else ".")

    # Reading

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        return (yield from self._at(name, version))

    def latest(self, name: str, query: Query) -> Flow[ModelVersion | None]:
        try:
            head = yield from self._at(name, MAIN)
        except ModelNotFound:
            return None
        return head if query.matches(head) else None

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        try:
            return [version for version in (yield from self._history(name)) if query.matches(version)]
        except ModelNotFound:
            return []

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        found: dict[str, ModelVersion] = {}
        for name in query.names:
            if not _WILD & set(name):
                self.check(ModelRef(name=name))
                head = yield from self.latest(name, Query())
                if head is not None:
                    found[name] = head.model_copy(update={"name": name})  # as it is asked for, should it be renamed
        for author, search in self._listings(query):
            for version in (yield from self._listed(author, search)):
                found.setdefault(version.name, version)
        chosen = [version for version in found.values() if query.matches(version)]
        return sorted(chosen, key=lambda version: version.age_key, reverse=True)

    def is_newer(self, version: ModelVersion, other: ModelVersion) -> Flow[bool]:
        """Compare places in history: what a commit says of its time is a claim."""
        if version.version == other.version:
            return False
        pair = version.version, other.version
        if pair not in self._memory.older:
            history, _ = yield from self._commits(other.name, other.version)
            if all(commit.id != version.version for commit in history):
                return True
            self._memory.older.add(pair)  # the branch was set back
        return False

    # Branches and tags

    def alias(self, name: str, alias: str) -> Flow[Alias]:
        commit = yield from self._hub.head(name, alias)
        if commit is None:
            commit = (yield from self._info(name, alias)).sha
        return Alias(name=name, alias=alias, version=commit)

    def aliases(self, name: str) -> Flow[list[Alias]]:
        try:
            refs = yield from self._refs(name)
        except ModelNotFound:
            return []
        found = {ref.name: ref.target for ref in (*refs.tags, *refs.branches)}
        return [Alias(name=name, alias=alias, version=found[alias]) for alias in sorted(found)]

    def set_alias(self, version: ModelVersion, alias: str, *, expected: str | None = None) -> Flow[Alias]:
        name, doing = version.name, f"tagging {version.ref} as {alias}"
        refs = yield from self._refs(name)
        if any(branch.name == alias for branch in refs.branches):
            raise InvalidInput(f"{name}@{alias} is a branch, which moves by being pushed to", argument="alias")
        found = next((tag.target for tag in refs.tags if tag.name == alias), None)
        if found != version.version:
            if expected is not None and (found or NOBODY) != expected:
                raise moved(f"{name}@{alias}", expected, found)
            if found is not None:  # a tag does not move: it is deleted and made again
                yield from self.delete_alias(name, alias)
            if not (yield from self._tag(name, version.version, alias)):
                now = yield from self.alias(name, alias)
                if now.version != version.version:
                    raise VersionConflict(f"{doing}: somebody else has made it, of the version {now.version}")
        return Alias(name=name, alias=alias, version=version.version)

    def delete_alias(self, name: str, alias: str) -> Flow[bool]:
        refs = yield from self._refs(name)
        kind = "branch" if any(branch.name == alias for branch in refs.branches) else "tag"
        if kind == "branch" and alias == MAIN:
            raise InvalidInput(f"{name}@{alias} is a branch that every model has", argument="alias")
        response = yield from self._hub.answer("DELETE", model_path(name, kind, alias))
        self._memory.histories.pop(name, None)
        if response.status_code == 404 and response.headers.get("X-Error-Code") != "RepoNotFound":
            return False
        self._hub.refuse(response, f"removing the {kind} {alias} of {name}", name)
        return True

    def _tag(self, name: str, commit: str, tag: str) -> Flow[bool]:
        """Give a commit a tag; return whether there was none of the name."""
        response = yield from self._hub.answer(
            "POST", model_path(name, "tag", commit), json={"tag": tag}, may_repeat=True
        )
        self._memory.histories.pop(name, None)
        if response.status_code == 409:
            return False
        self._hub.refuse(response, f"tagging {name}:{commit} as {tag}", name)
        return True

    # Push

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        name, tag, options = request.ref.name, request.tag, PushOptions.read(request.options)
        if tag is not None and COMMIT.fullmatch(tag):
            raise InvalidInput(
                f"{tag} is a commit, and a commit names itself; name a tag, or nothing", argument="model"
            )
        self.check(ModelRef(name=name, version=options.branch))
        if tag is not None and options.create_pr:
            raise InvalidInput(
                f"what a pull request proposes is not tagged as {tag} before it is merged; push it without a version",
                argument="model",
            )
        if tag is not None and (tagged := (yield from self._tagged(request.source, name, tag, options))):
            return UploadPlan(ref=request.ref, way=None, existing=tagged)
        change = yield from self._pushes.compare(request.source, name, options)
        if change.is_empty:
            if tag is not None:
                yield from self._tag_as(name, change.parent, tag)
            existing = yield from self._made(change, change.parent)
            return UploadPlan(ref=request.ref, way=None, existing=existing)
        if options.create_pr and (proposed := (yield from self._pushes.proposed(change))):
            existing = yield from self._made(change, proposed.commit, proposed.pull)
            return UploadPlan(ref=request.ref, way=None, existing=existing)
        blobs = yield from self._pushes.blobs(change, change.large)
        files = tuple(file for file in change.large if file.path in blobs)

        def ask(file: FileEntry) -> Flow[Blob | None]:
            return (yield from self._pushes.blobs(change, [file])).get(file.path)

        way = PutBlobs(
            request.source,
            files,
            blobs,
            ask,
            lambda file, blob, etags: self._pushes.finish_blob(change, file, blob, etags),
            further=sum(file.size for file in change.inline),
        )
        return CommitPlan(ref=request.ref, way=way, change=change, tag=tag)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        plan = cast(CommitPlan, plan)
        made = yield from self._pushes.commit(plan.change)
        if plan.tag is not None:
            yield from self._tag_as(plan.change.name, made.commit, plan.tag)
        return (yield from self._made(plan.change, made.commit, made.pull))

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        yield from ()  # objects that no commit names are no version: the Hub clears them away by itself

    def _tagged(self, source: Source, name: str, tag: str, options: PushOptions) -> Flow[ModelVersion | None]:
        """Return the version that has a tag already; ``None`` when there is none.

        :raises VersionConflict: when it holds other files.
        """
        try:
            commit = (yield from self.alias(name, tag)).version
        except ModelNotFound:
            return None
        change = Change(source, name, options, commit)
        if not (yield from self._pushes.holds(change, commit)):
            raise VersionConflict(
                f"{name}@{tag} is the commit {commit}, which holds other files; push under another tag"
            )
        return (yield from self._made(change, commit))

    def _tag_as(self, name: str, commit: str, tag: str) -> Flow[None]:
        if not (yield from self._tag(name, commit, tag)):
            now = yield from self.alias(name, tag)
            if now.version != commit:
                raise VersionConflict(
                    f"{name}@{tag} is the commit {now.version} already, and {commit} was pushed for it"
                )

    def _made(self, change: Change, commit: str, pull: str = "") -> Flow[ModelVersion]:
        """Return a version that was pushed or proposed, or was there already, with its digest."""
        self._memory.histories.pop(change.name, None)
        try:
            version = yield from self._at(change.name, commit)
        except ModelNotFound:  # what the Hub tells of a model can be behind
            version = self._commit_of(change.name, commit, ())
        if pull:
            version = version.model_copy(update={"metadata": {**version.metadata, "pull_request": pull}})
        if change.kept is not None:
            return (yield from self.with_digest(version))
        return version.model_copy(update={"digest": change.source.digest, "size_bytes": change.source.size_bytes})

    # Pull

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        name, commit = version.name, version.version
        info = self._memory.infos.get((name, commit))
        if info is None or info.security is None:
            info = yield from self._info(name, commit)
        if info.disabled:
            raise NotSupported(f"{version.ref} cannot be had: the Hub has disabled the model")
        entries = yield from read_tree(self._hub, info.id, commit)
        issues = info.security.issues if info.security else []

        def require(files: Sequence[FileEntry]) -> None:
            require_fetchable(version.ref, files, issues)

        way = way_down(self._hub, info.id, commit, entries)
        if not way.files:
            raise ModelNotFound(f"{version.ref} holds no file")
        return DownloadPlan(version=version, way=way, require=require)

    def with_hashes(self, plan: DownloadPlan) -> Flow[DownloadPlan]:
        return with_hashes(self._hub, plan)

    def referred(self, reference: ModelReference) -> ModelRef:
        here, there = self.base_url, reference.endpoint or DEFAULT_HOST
        if reference.registry != "huggingface" or not reference.model_id:
            return super().referred(reference)
        if base_url(there, None) != here:
            raise InvalidInput(
                f"{reference} is at {excerpt(there)}, and this connection leads to {here}", argument="reference_conn_id"
            )
        if not COMMIT.fullmatch(reference.revision or ""):
            raise InvalidInput(f"{reference} names no commit", argument="model")
        ref = ModelRef(name=reference.model_id, version=reference.revision)
        self.check(ref)
        return ref

    # What is asked

    def _at(self, name: str, revision: str) -> Flow[ModelVersion]:
        """Return what a commit, branch or tag stands for. Who looks again pays one request of the cheap kind."""
        memory, key = self._memory, (name, revision)
        asked = revision
        if key in memory.asked:
            if COMMIT.fullmatch(revision) and key in memory.infos:
                return self._version_of(memory.infos[key])
            commit = yield from self._hub.head(name, revision)
            if commit is not None and (name, commit) in memory.infos:
                return self._version_of(memory.infos[name, commit])
            asked = commit or revision
        memory.note_asked(key)
        info = yield from self._info(name, asked)
        if info.is_empty:
            raise ModelNotFound(f"{name}@{revision} holds no file yet", model=name)
        memory.note(name, info)
        return self._version_of(info)

    def _info(self, name: str, revision: str) -> Flow[Info]:
        doing = f"reading {name}@{revision}"
        info = yield from self._hub.need(
            "GET",
            model_path(name, "revision", revision),
            Info,
            doing,
            name=name,
            params={"blobs": "true", "securityStatus": "true"},
        )
        if not COMMIT.fullmatch(info.sha):
            raise NotSupported(f"{doing}: the server does not tell a commit of 40 digits, but {show(info.sha)}")
        if info.id != name:
            log.info("%s is called %s now", name, info.id)
        return info

    def _version_of(self, info: Info) -> ModelVersion:
        return ModelVersion(
            registry=self.conn_type,
            name=info.id,
            version=info.sha,
            status=VersionStatus.READY,
            size_bytes=info.size_bytes,
            metadata=_metadata(info),
            created_at=info.modified,
            uri=f"{self.base_url}/{info.id}/tree/{info.sha}",
            raw=info.model_dump(mode="json", exclude={"siblings"}),
        )

    def _history(self, name: str) -> Flow[list[ModelVersion]]:
        """Return the newest commits of the main branch, and what else has a tag; once, as long as its head stays."""
        memory = self._memory
        read_at, known = memory.histories.get(name, (0.0, []))
        if known and time.monotonic() - read_at < _TAGS_SECONDS:
            head = yield from self._hub.head(name, MAIN)
            if head == known[0].version:
                return known
        commits, is_all = yield from self._commits(name, MAIN)
        if is_all and commits and (yield from self._is_bare(name, commits[-1].id)):
            commits = commits[:-1]
        refs = yield from self._refs(name)
        named = [*refs.tags, *(branch for branch in refs.branches if branch.name != MAIN)]
        found = self._versions_of(name, commits, named)
        memory.histories[name] = time.monotonic(), found
        return found

    def _commits(self, name: str, revision: str) -> Flow[tuple[list[Commit], bool]]:
        doing = f"listing the commits of {name}"
        return (
            yield from self._hub.pages(
                model_path(name, "commits", revision), Commit, doing, name=name, most=_COMMIT_PAGES
            )
        )

    def _is_bare(self, name: str, commit: str) -> Flow[bool]:
        """Whether a commit is the one that the Hub makes with a repository."""
        if (name, commit) not in self._memory.bare:
            self._memory.bare[name, commit] = not (yield from read_tree(self._hub, name, commit))
        return self._memory.bare[name, commit]

    def _refs(self, name: str) -> Flow[Refs]:
        return (
            yield from self._hub.need(
                "GET", model_path(name, "refs"), Refs, f"listing the branches and tags of {name}", name=name
            )
        )

    def _versions_of(self, name: str, commits: Sequence[Commit], refs: Sequence[GitRef]) -> list[ModelVersion]:
        named: dict[str, list[str]] = {}
        for ref in refs:
            named.setdefault(ref.target, []).append(ref.name)
        found: list[ModelVersion] = []
        made_at: datetime | None = None
        for commit in reversed(commits):
            # Every commit is newer than the one before it, whatever its author's clock said.
            following = made_at and made_at + timedelta(microseconds=1)
            made_at = max(filter(None, (following, commit.date)), default=None)
            found.append(self._commit_of(name, commit.id, named.pop(commit.id, []), made_at, commit.title))
        others = [self._commit_of(name, commit, aliases) for commit, aliases in named.items()]
        return [*found[::-1], *others]

    def _commit_of(
        self, name: str, commit: str, aliases: Sequence[str], made_at: datetime | None = None, title: str = ""
    ) -> ModelVersion:
        return ModelVersion(
            registry=self.conn_type,
            name=name,
            version=commit,
            status=VersionStatus.READY,
            metadata={"title": title} if title else {},
            created_at=made_at,
            aliases=tuple(sorted(aliases)),
            uri=f"{self.base_url}/{name}/tree/{commit}",
        )

    def _listings(self, query: Query) -> list[tuple[str | None, str | None]]:
        """Return whose models, and with what in their names, are listed: never those of the whole Hub."""
        globs = [name for name in query.names if _WILD & set(name)]
        words = max(query.words, key=len, default=None)
        if query.names:
            found = []
            for glob in globs:
                author, slash, _ = glob.partition("/")
                if not slash or _WILD & set(author):
                    author = self.settings.namespace or ""
                if not author:
                    raise InvalidInput(
                        f"{glob!r} would list the whole Hub; write 'namespace/*', or name one in the connection",
                        argument="models",
                    )
                found.append((author, None))
            return list(dict.fromkeys(found))
        if words is not None and "/" in words:
            author, _, rest = words.partition("/")
            return [(author, rest or None)]
        if self.settings.namespace or words:
            return [(self.settings.namespace, words)]
        raise InvalidInput(
            "this would list the whole Hub; name a namespace in the connection, or a part of the names in the query",
            argument="query",
        )

    def _listed(self, author: str | None, search: str | None) -> Flow[list[ModelVersion]]:
        params: dict[str, Any] = {"full": "true", "limit": 1000}
        params |= {key: value for key, value in (("author", author), ("search", search)) if value}
        doing = f"listing the models of {author}" if author else f"listing the models with {search!r} in their names"
        infos, is_all = yield from self._hub.pages("api/models", Info, doing, most=_MODEL_PAGES, **params)
        if not is_all:
            raise NotSupported(f"{doing}: there are too many of them; name what is wanted more closely")
        return [self._version_of(info) for info in infos if COMMIT.fullmatch(info.sha) and not info.is_empty]


class _Memory:
    """What does not change once it is known, for those who look again and again. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.asked: set[tuple[str, str]] = set()  # name and revision that somebody has looked at
        self.infos: dict[tuple[str, str], Info] = {}  # by name and commit
        self.histories: dict[str, tuple[float, list[ModelVersion]]] = {}  # with when they were read
        self.bare: dict[tuple[str, str], bool] = {}
        self.older: set[tuple[str, str]] = set()

    def note_asked(self, key: tuple[str, str]) -> None:
        with self._lock:
            self.asked.add(key)

    def note(self, name: str, info: Info) -> None:
        with self._lock:
            if len(self.infos) > _REMEMBERED:
                self.infos.clear()
            for known in {name, info.id}:
                self.infos[known, info.sha] = info


def _metadata(info: Info) -> dict[str, JsonValue]:
    """Return what the model card says."""
    facts: dict[str, Any] = {
        "pipeline_tag": info.pipeline_tag,
        "library_name": info.library_name,
        "tags": info.tags,
        **{key: info.card[key] for key in ("license", "base_model", "language", "datasets") if key in info.card},
    }
    return {key: value for key, value in facts.items() if value}
