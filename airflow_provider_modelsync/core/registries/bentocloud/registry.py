"""BentoCloud, and Yatai, which speaks the same model API.

Facts come from the unmodified bentoml 1.4.40 client on the wire, the public OpenAPI document, and Yatai's source. A
model is a tar of plain files; its record's ``manifest.metadata`` is the one place where a client can keep facts of its
own, so the digest lies there, under ``modelsync``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, Field

from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    BeginAgain,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    RegistryUnavailable,
    VersionConflict,
    VersionFailed,
)
from airflow_provider_modelsync.core.flow.steps import Flow, Policy, call, send, sleep
from airflow_provider_modelsync.core.http.policy import ApiClient, RequestPolicy
from airflow_provider_modelsync.core.models import (
    LATEST,
    NOBODY,
    Alias,
    Deployment,
    ModelRef,
    ModelVersion,
    Query,
    VersionStatus,
)
from airflow_provider_modelsync.core.registries.base import (
    ANY,
    KEEPS_MODELS,
    Capability,
    Registry,
    newest_first,
    note_unknown,
)
from airflow_provider_modelsync.core.registries.bentocloud.aliases import (
    Holder,
    alias_of,
    holders_of,
    is_ours,
    label_of,
    stamp_after,
)
from airflow_provider_modelsync.core.registries.bentocloud.api import (
    CLIENT_VERSION,
    Calls,
    Repository,
    User,
    is_missing,
    is_unknown_route,
    null_as,
    pairs,
    refuse,
)
from airflow_provider_modelsync.core.registries.bentocloud.deployments import Deployments
from airflow_provider_modelsync.core.registries.bentocloud.records import (
    OURS,
    Draft,
    ModelRecord,
    check_pulled,
    make_draft,
)
from airflow_provider_modelsync.core.registries.bentocloud.upload import (
    PROXY,
    Tag,
    TagPlan,
    Uploads,
    replaced,
    still_there,
)
from airflow_provider_modelsync.core.registries.capabilities import Aliases, Deploys, KeepsSignatures, moved
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url
from airflow_provider_modelsync.core.transfer.plan import (
    DownloadPlan,
    GetArchive,
    PushRequest,
    UploadPlan,
)

_T = TypeVar("_T")

_DEFAULT_HOST = "https://cloud.bentoml.com"
_TAG_PART = re.compile(r"[a-z0-9](?:[-._a-z0-9]{0,61}[a-z0-9])?")
_PAGE = 100
_MAX_LISTED = 100_000
ROUNDS = 3  # how often a record may change under our hands
# How long, and how often, a push looks whether a record that is not its own is about to be finished.
_LOOKS = 6
_LOOK_SECONDS = 0.5
_PLAIN_TERM = re.compile(r"[\w./=:@,-]+")
_ME = "@me"


class _Page(BaseModel):
    total: Annotated[int, null_as(0)] = 0
    items: Annotated[list[ModelRecord], null_as([])] = Field(default=[], max_length=10 * _PAGE)


class _Organization(BaseModel):
    name: str


class BentoCloudSettings(RegistrySettings):
    """A BentoCloud connection.

    :param organization: whose models; by default the organisation that the token belongs to.
    :param cluster: where deployments run.
    """

    organization: str | None = None
    cluster: str | None = None


class BentoCloud(Registry, Aliases, KeepsSignatures, Deploys):
    """The models of one organisation.

    :param settings: the connection; ``password`` is the API token.
    """

    conn_type = "bentocloud"
    title = "BentoCloud"
    settings_type = BentoCloudSettings
    capabilities = KEEPS_MODELS
    compares = False
    query_facts = ("creator", "module")
    query_orders = ("created_at", "build_at", "size")
    instead: ClassVar[Mapping[Capability, str]] = {
        Capability.PREDICT: "call the deployment's own routes; a bento defines them",
    }

    def __init__(self, settings: RegistrySettings) -> None:
        super().__init__(settings)
        if not isinstance(settings, BentoCloudSettings) or settings.password is None:
            raise InvalidInput("an API token is needed", argument="password", connection=settings.conn_id)
        self._token = settings.password
        self.base_url: str = base_url(settings.host or _DEFAULT_HOST, settings.port)
        headers = {"X-Bentoml-Version": CLIENT_VERSION}
        self._organization = settings.organization
        if settings.organization:
            headers["X-Yatai-Organization"] = settings.organization
        self._api = ApiClient(settings, self.base_url, headers=headers, credentials=self._credentials)
        self._calls = Calls(self._api, self.title)
        self._uploads = Uploads(
            self._api,
            self._calls,
            lambda: {**headers, **self._credentials()},
            self.title,
            settings.part_size_mib,
        )
        self._deployments = Deployments(self, self._calls, settings.cluster)

    def _credentials(self) -> dict[str, str]:
        return {"X-YATAI-API-TOKEN": self._token.get_secret_value()}

    def policy(self) -> Policy:
        return RequestPolicy(self.settings)

    def check(self, ref: ModelRef) -> None:
        for part, text in (("name", ref.name), ("version", ref.version), ("alias", ref.alias)):
            if text is not None and not (_TAG_PART.fullmatch(text) and text != LATEST):
                raise InvalidInput(
                    f"the {part} {show(text)} is not lower-case letters, digits, '-', '_' and '.', at most 63, "
                    "with a letter or digit at both ends",
                    argument="model",
                )

    def test(self) -> Flow[str]:
        user = yield from self._user("checking the token")
        organization = yield from self._calls.need(
            "GET", "/api/v1/current_org", _Organization, "reading the organisation"
        )
        return f"Connected to {self.base_url} as {user.name or user.email} of the organisation {organization.name}."

    def _user(self, doing: str) -> Flow[User]:
        user = yield from self._calls.find("GET", "/api/v1/auth/current", User, doing)
        if user is None:
            wanted = self._organization
            raise InvalidInput(
                f"{doing}: there is no organisation {wanted!r}" if wanted else f"{doing}: this is no BentoCloud",
                argument="organization" if wanted else "host",
            )
        return user

    def _meant(self, query: Query) -> Flow[Query]:
        """Return a query with the user's name in the place of ``@me``."""
        if _ME not in query.facts.get("creator", ()):
            return query
        name = (yield from self._user("looking for one's own models")).name
        creators = tuple(name if creator == _ME else creator for creator in query.facts["creator"])
        return query.model_copy(update={"facts": {**query.facts, "creator": creators}})

    def get(self, ref: ModelRef, query: Query = ANY) -> Flow[ModelVersion]:
        return (yield from super().get(ref, (yield from self._meant(query))))

    def read_version(self, name: str, version: str) -> Flow[ModelVersion]:
        record = yield from self._record(Tag(name, version))
        if record is None:
            raise ModelNotFound(f"{self.title} has no version {version!r} of {name!r}")
        return self._version_of(record, name)

    def latest(self, name: str, query: Query) -> Flow[ModelVersion | None]:
        if not query.matches_name(name):
            return None
        if query.sort:
            return (yield from super().latest(name, query))
        # The server lists the newest first, whatever their state, so the first page that holds a match decides.
        start: int | None = 0
        while start is not None:
            doing = f"looking for the newest {name}"
            records, start = yield from self._page(_versions_of(name), start, query, doing)
            if chosen := [version for version in self._chosen(records, query, name).values() if version.ready]:
                return max(chosen, key=lambda version: version.age_key)
        return None

    def list_versions(self, name: str, query: Query) -> Flow[list[ModelVersion]]:
        if not query.matches_name(name):
            return []
        query = yield from self._meant(query)
        chosen: dict[str, ModelVersion] = {}
        held: list[ModelRecord] = []  # that an alias points to, or has pointed to

        def take(records: list[ModelRecord]) -> None:
            chosen.update(self._chosen(records, query, name))
            held.extend(record for record in records if any(is_ours(label.key) for label in record.labels))

        yield from self._each_page(_versions_of(name), query, f"listing the versions of {name}", take)
        # Of a list that the server has shortened nothing tells who holds an alias.
        holders = {} if query.labels else holders_of(held)
        pointing: dict[str, tuple[str, ...]] = {}
        for alias, (present, *_) in sorted(holders.items()):
            pointing[present.record.version] = (*pointing.get(present.record.version, ()), alias)
        for version, aliases in pointing.items():
            if pointed := chosen.get(f"{name}:{version}"):
                chosen[pointed.ref] = pointed.model_copy(update={"aliases": aliases})
        return _ordered(chosen.values(), query)

    def list_models(self, query: Query) -> Flow[list[ModelVersion]]:
        newest: dict[str, ModelVersion] = {}
        for version in newest_first((yield from self.list_all(query))):
            if version.ready:
                newest.setdefault(version.name, version)
        return _ordered(newest.values(), query)

    def list_all(self, query: Query) -> Flow[list[ModelVersion]]:
        query = yield from self._meant(query)
        chosen: dict[str, ModelVersion] = {}
        yield from self._each_page(
            "/api/v1/models", query, "listing the models", lambda records: chosen.update(self._chosen(records, query))
        )
        return _ordered(chosen.values(), query)

    def delete(self, ref: ModelRef) -> Flow[bool]:
        return self._delete(Tag.of(ref))

    def set_labels(self, ref: ModelRef, labels: Mapping[str, str | None]) -> Flow[ModelVersion]:
        _require_own(labels)
        version = yield from self.get(ref)
        record = yield from self._label(Tag(version.name, version.version), labels)
        return self._version_of(record, version.name)

    def _label(self, tag: Tag, changes: Mapping[str, str | None]) -> Flow[ModelRecord]:
        """Merge labels into a version's, those of aliases included."""
        record = yield from self._record(tag)
        if record is None:
            raise ModelNotFound(f"{self.title} has no version {tag.version!r} of {tag.name!r}")
        merged = {**{label.key: label.value for label in record.labels}, **changes}
        # The list replaces all labels there are.
        body = {"labels": pairs({key: value for key, value in merged.items() if value is not None})}
        return (yield from self._calls.need("PATCH", tag.path, ModelRecord, f"labelling {tag}", json=body))

    def alias(self, name: str, alias: str) -> Flow[Alias]:
        holders = yield from self._holders(name)
        if alias not in holders:
            raise ModelNotFound(f"{self.title} has no alias {alias!r} of {name!r}")
        return alias_of(name, alias, holders[alias])

    def aliases(self, name: str) -> Flow[list[Alias]]:
        holders = yield from self._holders(name)
        return [alias_of(name, alias, held) for alias, held in sorted(holders.items())]

    def set_alias(self, version: ModelVersion, alias: str, *, expected: str | None = None) -> Flow[Alias]:
        name, label = version.name, label_of(alias)
        held = (yield from self._holders(name)).get(alias, [])
        now = held[0].record.version if held else None
        if now == version.version:
            return alias_of(name, alias, held)
        if expected is not None and (now or NOBODY) != expected:
            raise moved(f"{name}@{alias}", expected, now)
        yield from self._label(Tag(name, version.version), {label: stamp_after(held)})
        # Going back takes those out that came after it: nobody wants to go back to what was left for being bad.
        versions = [holder.record.version for holder in held]
        for left in versions[: versions.index(version.version)] if version.version in versions else ():
            yield from self._label(Tag(name, left), {label: None})
        return (yield from self.alias(name, alias))

    def delete_alias(self, name: str, alias: str) -> Flow[bool]:
        held = (yield from self._holders(name)).get(alias, [])
        for holder in reversed(held):  # the present one last: no older one is to count meanwhile
            yield from self._label(Tag(name, holder.record.version), {label_of(alias): None})
        return bool(held)

    def _holders(self, name: str) -> Flow[dict[str, list[Holder]]]:
        doing = f"looking for aliases of {name}"
        records: list[ModelRecord] = []
        yield from self._each_page(_versions_of(name), ANY, doing, records.extend)
        return holders_of(records)

    def repository(self, ref: ModelRef) -> Flow[Repository]:
        """Return what the versions of a model belong to."""
        path = Tag(ref.name, "").repository
        return self._calls.need("GET", path, Repository, f"looking for the model {ref.name}")

    def describe(
        self, ref: ModelRef, description: str | None, labels: Mapping[str, str | None] | None
    ) -> Flow[Repository]:
        """Change description and labels of what the versions of a model belong to; return it as it is then."""
        found = yield from self.repository(ref)
        return (yield from self._uploads.describe_repository(Tag(ref.name, ""), found, description, labels))

    def signatures(self, version: ModelVersion) -> Flow[list[bytes]]:
        record = yield from self._record(Tag(version.name, version.version))
        return [one.encode() for one in record.signatures] if record else []

    def keep_signature(self, version: ModelVersion, signature: bytes) -> Flow[None]:
        raise NotSupported(
            f"{version.ref} is there already, and its record cannot be changed: a signature comes with the push",
            argument="sign",
            remedy="delete the version and push it signed, or push it under another version",
        )
        yield

    def plan_push(self, request: PushRequest) -> Flow[UploadPlan]:
        tag = Tag.of(request.ref)
        _require_own(request.labels)
        draft = yield from call(make_draft, tag, request)
        # Before anything is registered: this refuses what cannot be archived.
        layout = yield from call(draft.layout, draft.build_at)
        options = draft.options
        yield from self._uploads.ensure_repository(tag, options.repository_description, options.repository_labels)
        record, is_there = yield from self._settle(tag, draft, request.force, request.renew)
        if is_there:
            return UploadPlan(ref=request.ref, way=None, existing=self._version_of(record, tag.name))
        if record.build_at and record.build_at != draft.build_at:  # an earlier try's record
            layout = yield from call(draft.layout, record.build_at)
        with still_there(tag):
            way = yield from self._uploads.way_up(tag, record, layout, request.memory)
        if way is None:
            existing = yield from self.read_version(tag.name, tag.version)
            return UploadPlan(ref=request.ref, way=None, existing=existing)
        return _ModelPlan(ref=request.ref, way=way, tag=tag, digest=draft.digest)

    def finish_push(self, plan: UploadPlan) -> Flow[ModelVersion]:
        plan = cast(_ModelPlan, plan)
        if not plan.is_proxy:
            yield from self._own_record(plan)  # what others registered meanwhile is not ours to publish
        yield from self._uploads.finish(plan)
        record = yield from self._own_record(plan)
        if record.status is VersionStatus.FAILED:
            reason = record.upload_finished_reason or "no reason given"
            raise VersionFailed(f"{self.title} gave {plan.ref} up: {reason}")
        return self._version_of(record, plan.tag.name)

    def abort_push(self, plan: UploadPlan, error: BaseException) -> Flow[None]:
        """Leave the record as it is: see :meth:`Uploads.finish`."""
        return
        yield

    def plan_pull(self, version: ModelVersion) -> Flow[DownloadPlan]:
        tag = Tag(version.name, version.version)
        record = yield from self._uploads.presigned(tag, "download", ModelRecord)
        if reference := record.reference:
            raise NotSupported(
                f"{tag} only points to {reference}; get the bytes there, or pull with on_reference='skip'"
            )
        if record.digest != version.digest:
            raise BeginAgain(f"{tag} was replaced a moment ago")
        is_proxy = record.transmission_strategy == PROXY or (
            record.transmission_strategy is None and not record.presigned_download_url
        )
        uploads = self._uploads
        address = uploads.proxy(tag, "download") if is_proxy else uploads.presigning(tag, "download", record)
        return DownloadPlan(
            version=version,
            way=GetArchive(address, is_proxy=is_proxy, size_bytes=record.most_bytes),
            generated=record.generated,
            check=lambda directory, files: check_pulled(tag, record, directory, files),
        )

    def deploy(self, deployment: str | None, ref: ModelRef, config: Mapping[str, Any]) -> Flow[Deployment]:
        return self._deployments.deploy(deployment, ref, config)

    def deployment(self, name: str) -> Flow[Deployment]:
        return self._deployments.get(name)

    def undeploy(self, name: str) -> Flow[Deployment]:
        return self._deployments.terminate(name)

    def deployed_models(self) -> Flow[Mapping[str, str] | None]:
        return self._deployments.models()

    def _settle(self, tag: Tag, draft: Draft, force: bool, renew: bool) -> Flow[tuple[ModelRecord, bool]]:
        """Find or make the record to upload to; return it, and whether it holds these bytes already."""
        aliases: dict[str, str] = {}  # of a record that is replaced
        for _ in range(ROUNDS):
            record = yield from self._record(tag)
            if record is None:
                body = draft.body()
                body["labels"] += pairs(aliases)
                record = yield from self._calls.create(tag.versions, ModelRecord, f"registering {tag}", body)
                if record is not None:
                    return record, False
                continue  # another push was faster: look what it made
            is_ready = record.status is VersionStatus.READY
            if is_ready and renew:
                renew = False
            elif record.digest == draft.digest and (is_ready or draft.describes(record)):
                return record, is_ready
            if is_ready and not force:
                known = record.digest or "bytes of an unknown digest"
                raise VersionConflict(
                    f"{tag} exists with {known}, the source has {draft.digest}",
                    remedy="push under another version, or with force to replace it",
                )
            if not is_ready and (yield from self._comes_to_an_end(tag, record)):
                continue
            aliases = {label.key: label.value for label in record.labels if is_ours(label.key)}
            yield from self._delete(tag)
        raise RegistryUnavailable(f"the record of {tag} keeps changing; another push is at work")

    def _comes_to_an_end(self, tag: Tag, record: ModelRecord) -> Flow[bool]:
        """Whether somebody else's unfinished record ends within moments: then its writer is alive, and may win."""
        seen: ModelRecord | None = record
        for _ in range(_LOOKS):
            if seen is None or seen.uid != record.uid or seen.status is VersionStatus.READY:
                return True
            if seen.status is VersionStatus.FAILED:
                return False
            yield from sleep(_LOOK_SECONDS)
            seen = yield from self._record(tag)
        return seen is None or seen.uid != record.uid or seen.status is VersionStatus.READY

    def _delete(self, tag: Tag) -> Flow[bool]:
        doing = f"deleting {tag}"
        response = yield from send(self._api.request("DELETE", tag.path))
        if is_unknown_route(response):
            raise NotSupported(
                f"{doing}: this server cannot delete or replace versions", remedy="push under another version"
            )
        if is_missing(response):
            return False
        refuse(response, doing)
        return True

    def _own_record(self, plan: _ModelPlan) -> Flow[ModelRecord]:
        """Return the record of a push; raise when another push has taken its place."""
        record = yield from self._record(plan.tag)
        if record is None or record.digest != plan.digest:
            raise replaced(plan.tag)
        return record

    def _record(self, tag: Tag) -> Flow[ModelRecord | None]:
        return self._calls.find("GET", tag.path, ModelRecord, f"reading {tag}")

    def _each_page(self, path: str, query: Query, doing: str, take: Callable[[list[ModelRecord]], None]) -> Flow[None]:
        """Have each page of a list taken; whole lists of records would be a burden to the garbage collector."""
        seen: set[tuple[str | None, str]] = set()
        start: int | None = 0
        while start is not None:
            more, start = yield from self._page(path, start, query, doing)
            known = len(seen)
            seen |= {(record.repository.name if record.repository else None, record.version) for record in more}
            if more and len(seen) == known:
                raise RegistryUnavailable(f"{doing}: the server repeats a page of its list")
            take(more)

    def _page(self, path: str, start: int, query: Query, doing: str) -> Flow[tuple[list[ModelRecord], int | None]]:
        """Return one page, and where the next one starts; a missing repository has none.

        The server may ignore the query, and give fewer than were asked for.
        """
        if start >= _MAX_LISTED:
            raise RegistryUnavailable(f"{doing}: the list does not end after {_MAX_LISTED}")
        params: dict[str, Any] = {"start": start, "count": _PAGE}
        if terms := _terms(query):
            params["q"] = terms
        page = yield from self._calls.find("GET", path, _Page, doing, params=params)
        if page is None:
            return [], None
        end = start + len(page.items)
        goes_on = end < page.total if page.total else len(page.items) >= _PAGE
        return page.items, end if page.items and goes_on else None

    def _chosen(self, records: Sequence[ModelRecord], query: Query, name: str | None = None) -> dict[str, ModelVersion]:
        """Return by reference what a query chooses: pages may overlap when versions come or go meanwhile."""
        versions = {}
        for record in records:
            owner = name or (record.repository.name if record.repository else None)
            if owner is not None:
                version = self._version_of(record, owner)
                if query.matches(version):
                    versions[version.ref] = version
        return versions

    def page_of(self, model: ModelVersion | None = None) -> str | None:
        """Return where the console shows a model or a bento; its routes are the API's without the prefix.

        Source: ``dashboard/src/routes.tsx`` of Yatai.
        """
        if model is None or model.uri is None:
            return f"{self.base_url}/models"
        return model.uri.replace("/api/v1/", "/", 1)

    def _version_of(self, record: ModelRecord, name: str) -> ModelVersion:
        if record.status is VersionStatus.UNKNOWN:
            note_unknown(str(Tag(name, record.version)), record.upload_status)
        return ModelVersion(
            registry=self.conn_type,
            name=name,
            version=record.version,
            status=record.status,
            digest=record.digest,
            size_bytes=record.size_bytes,
            labels=record.own_labels,
            metadata={key: value for key, value in record.manifest.metadata.items() if key != OURS},
            created_at=record.created_at or record.build_at,
            uri=f"{self.base_url}{Tag(name, record.version).path}",
            reference=record.reference,
            facts={"creator": record.creator.name if record.creator else "", "module": record.manifest.module},
            raw=record.model_dump(mode="json", exclude={"presigned_upload_url", "presigned_download_url"}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelPlan(TagPlan):
    digest: str


def _require_own(labels: Mapping[str, str | None]) -> None:
    if taken := sorted(filter(is_ours, labels)):
        raise InvalidInput(f"the label {show(taken[0])} is that of an alias: move the alias", argument="labels")


def _versions_of(name: str) -> str:
    return Tag(name, "").versions


def _terms(query: Query) -> str:
    """Write a query in the server's grammar, as far as that has room for it; answers are checked in any case."""
    labels = [[(key, value)] for key, value in query.labels.items() if "," not in (value or "")] + [*query.either]
    terms = [
        *("label:" + ",".join(key if value is None else f"{key}={value}" for key, value in one) for one in labels),
        *(f"{key}:{value}" for key, values in query.facts.items() for value in values),
        *([f"sort:{query.sort}"] if query.sort else []),
    ]
    return " ".join(term for term in terms if _PLAIN_TERM.fullmatch(term))


def _ordered(versions: Iterable[ModelVersion], query: Query) -> list[ModelVersion]:
    """Return versions in the order that a query wants, equal ones newest first."""
    found = newest_first(versions)
    if query.sort:
        order = _ORDERS[query.sort.removesuffix("-asc").removesuffix("-desc")]
        found.sort(key=order, reverse=not query.sort.endswith("-asc"))
    return found


_ORDERS: dict[str, Callable[[ModelVersion], Any]] = {
    "created_at": lambda version: version.age_key[0],
    "build_at": lambda version: str(version.raw.get("build_at") or ""),
    "size": lambda version: version.size_bytes or 0,
}
