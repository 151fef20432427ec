"""The values that registries, the engine and Airflow exchange. All are frozen."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    computed_field,
    field_validator,
    model_serializer,
)

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.xcom import fitted, fitted_lists

LATEST = "latest"
NEST = "/"  # between a namespace and a name, where a system has namespaces
FLAT = "--"  # in its place where a system has none; no part of a name that is written so may hold it
NOBODY = ""  # what an alias is expected to point to that is not to be there yet
HISTORY = 20  # targets of an alias that are remembered besides the present one
EMPTY = "empty"  # the revision of a deployment that runs, with no model loaded so far


_FLAT = re.compile(rf"(?<=[^-]){FLAT}(?=[^-])")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


def _in_utc(time: datetime | None) -> datetime | None:
    if time is None or time.tzinfo is None:
        return time and time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:  # a day from the end of all time
        return time


# As systems tell it: times without a zone are UTC. Parsers give every time a zone of its own, which is one more object.
Time = Annotated[datetime | None, BeforeValidator(lambda value: value or None), AfterValidator(_in_utc)]


class VersionStatus(StrEnum):
    """Where a model version stands. Unknown words of a server become ``unknown``, never an error."""

    PENDING = "pending"
    UPLOADING = "uploading"
    CONVERTING = "converting"
    READY = "ready"
    FAILED = "failed"
    UNKNOWN = "unknown"


class ModelRef(_Value):
    """A model by name, with an exact version, an alias, or neither.

    :param name: the model's name in its registry.
    :param version: an exact version; ``None`` stands for the one that the alias points to, or the newest ready one.
    :param alias: a name that moves from version to version, e.g. ``"champion"``.
    """

    name: str
    version: str | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str, *, aliases: bool = True) -> ModelRef:
        """Read ``"name"``, ``"name:version"``, ``"name:latest"`` or ``"name@alias"``.

        :param aliases: whether ``@`` stands between a name and an alias; else it is part of the name. Where there is a
            version, it is so, too: that is exact already.
        :raises InvalidInput: when a part is empty.
        """
        name, colon, version = text.partition(":")
        alias = None
        if aliases and not colon and "@" in name:
            name, _, alias = name.rpartition("@")
        if not name or alias == "" or (colon and not version):
            raise InvalidInput(
                f"{text!r} is not 'name', 'name:version', 'name:latest' or 'name@alias'", argument="model"
            )
        return cls(name=name, version=version if version and version != LATEST else None, alias=alias)

    def __str__(self) -> str:
        if self.alias:
            return f"{self.name}@{self.alias}"
        return f"{self.name}:{self.version}" if self.version else self.name


class Held(_Value):
    """What an alias pointed to for a while.

    :param version: the version; ``None`` while there was no such alias.
    :param since: when it was moved there, UTC, as far as that is known.
    """

    version: str | None
    since: datetime | None = None


class Alias(_Value):
    """A name that moves from one version of a model to another.

    :param name: the model's name.
    :param alias: the alias itself, e.g. ``"champion"``.
    :param version: what it points to.
    :param since: when it was moved there, UTC, as far as that is known.
    :param earlier: what it pointed to before, the latest first, as far as the system remembers; at most
        :data:`HISTORY`.
    """

    name: str
    alias: str
    version: str
    since: datetime | None = None
    earlier: tuple[Held, ...] = ()

    @property
    def ref(self) -> str:
        """The exact version, as ``name:version``."""
        return f"{self.name}:{self.version}"

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}"


class TransferStats(_Value):
    """What a push or pull moved.

    :param skipped: nothing had to be moved, the same bytes were there already.
    :param sent_bytes: payload bytes moved by this call.
    :param resumed_bytes: payload bytes that an earlier try had moved and this one did not repeat.
    :param metadata_kept: false when a version that was there already has other metadata than was given; told only then.
    """

    skipped: bool = False
    sent_bytes: int = 0
    resumed_bytes: int = 0
    metadata_kept: bool = True

    @model_serializer(mode="wrap")
    def _told(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = told(self)
        return {name: value for name, value in fields.items() if name != "metadata_kept" or not value}


class ModelReference(_Value):
    """Where the bytes of a version lie when its registry only points to them.

    :param registry: the registry that has them, e.g. ``"huggingface"``.
    :param model_id: what they are called there.
    :param revision: which state of them.
    :param url: where to look at them.
    :param endpoint: the server that has them, where it is not the registry's usual one.
    :param include: patterns of the files that are meant, as that registry takes them; without any, all are.
    :param exclude: patterns of those that are not.
    """

    registry: str
    model_id: str | None = None
    revision: str | None = None
    url: str | None = None
    endpoint: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __str__(self) -> str:
        revision = f", revision {self.revision}" if self.revision else ""
        return f"{self.model_id or 'a model'} at {self.registry}{revision}"


class ModelVersion(_Value):
    """One version of a model as its registry describes it.

    :param registry: the connection type, e.g. ``"modelstore"``.
    :param name: the model's name.
    :param version: the exact version.
    :param status: where it stands.
    :param digest: ``sha256:<hex>`` over the files, or ``None`` where it is not known.
    :param size_bytes: sum of the files' sizes, or ``None`` where it is not known.
    :param labels: short strings to choose by.
    :param metadata: the user's own facts, JSON values.
    :param created_at: when the registry made it, UTC.
    :param aliases: what points to it, where a listing or the version itself tells that anyway.
    :param alias: what led to it when it was asked for as ``name@alias``.
    :param uri: where it lies or is shown.
    :param reference: where the bytes lie, when this registry only points to them.
    :param raw: the system's own record. It is kept as JSON text, in :attr:`record`: a full garbage collection stops an
        event loop while it looks through all containers that there are, and a listing holds thousands of records.
    :param facts: what else the system's queries can ask for.
    :param transfer: what the call that returned this moved, if it moved models.
    """

    registry: str
    name: str
    version: str
    status: VersionStatus
    digest: str | None = None
    size_bytes: int | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    created_at: Time = None
    aliases: tuple[str, ...] = ()
    alias: str | None = None
    uri: str | None = None
    reference: ModelReference | None = None
    record: str = Field(default="{}", alias="raw", repr=False, exclude=True)
    facts: dict[str, str] = Field(default_factory=dict, repr=False, exclude=True)
    transfer: TransferStats | None = None

    @field_validator("record", mode="before")
    @classmethod
    def _as_text(cls, raw: Any) -> str:
        if not isinstance(raw, Mapping):
            raise ValueError("a record is a mapping")  # noqa: TRY004  # pydantic reports no TypeError
        return json.dumps(dict(raw), default=str, separators=(",", ":"))

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def raw(self) -> dict[str, Any]:
        """The system's own record, read anew each time."""
        record: dict[str, Any] = json.loads(self.record)
        return record

    @property
    def ref(self) -> str:
        """``name:version``."""
        return f"{self.name}:{self.version}"

    @property
    def ready(self) -> bool:
        """Whether it can be pulled and deployed."""
        return self.status is VersionStatus.READY

    @property
    def age_key(self) -> tuple[datetime, str]:
        """What versions are ordered by, oldest first; those without a time come first."""
        return self.created_at or datetime.min.replace(tzinfo=UTC), self.version

    def pointed_to(self, aliases: Iterable[str]) -> ModelVersion:
        """Return it with further aliases that point to it."""
        return self.model_copy(update={"aliases": tuple(sorted({*self.aliases, *aliases}))})

    def found_by(self, alias: str) -> ModelVersion:
        """Return it with the alias that led to it."""
        return self.pointed_to([alias]).model_copy(update={"alias": alias})

    def moved(self, stats: TransferStats) -> ModelVersion:
        """Return it with what a call has moved of it."""
        return self.model_copy(update={"transfer": stats})

    def to_event(self) -> dict[str, JsonValue]:
        """Return what an asset event about this version carries."""
        fields = {"registry", "name", "version", "digest", "created_at"}
        return self.model_dump(mode="json", include=fields | ({"alias"} if self.alias else set()))

    def to_json(self, **more: JsonValue) -> dict[str, JsonValue]:
        """Return all of it but the system's own record as a plain dictionary of JSON values.

        :param more: further entries, e.g. ``path``.
        """
        moved = self.transfer
        told = {} if moved is None else {"skipped": moved.skipped, "resumed_bytes": moved.resumed_bytes}
        return {**self.model_dump(mode="json", exclude={"raw", "transfer"}), "ref": self.ref, **told, **more}

    def to_xcom(self, **more: JsonValue) -> dict[str, JsonValue]:
        """Return a plain dictionary of JSON values, at most 4 KiB of JSON.

        Metadata, then labels and aliases are left out when it would be larger; ``truncated`` is then true.

        :param more: further entries, e.g. ``path``.
        """
        fields = self.model_dump(mode="json", exclude={"raw", "transfer"})
        return fitted({**fields, "ref": self.ref, **more}, spare={"metadata": {}, "labels": {}, "aliases": []})


class PulledModel(_Value):
    """A model on local disk.

    :param path: the directory that holds it; ``None`` where the system keeps the model on its own host.
    :param version: the exact version that was pulled.
    :param digest: of the files that lie there, where it is known.
    :param is_partial: whether these are only some of the version's: its own digest is not theirs, then.
    :param is_elsewhere: whether the registry only points to the model, and nothing was pulled.
    """

    path: Path | None
    version: ModelVersion
    digest: str | None = None
    is_partial: bool = False
    is_elsewhere: bool = False


_OUTCOMES = ("copied", "skipped", "failed")


class SyncedVersion(_Value):
    """What became of one version in a sync.

    :param source: its reference in the source, or the model's name.
    :param outcome: what became of it.
    :param target: its reference in the target.
    :param digest: as far as it is known.
    :param size_bytes: as far as it is known.
    :param created_at: when the target made its version, UTC.
    :param transfer: what was moved, when anything was looked at.
    :param dropped: what the target has no room for.
    :param note: why it was skipped or has failed, or that nothing vouches for its bytes.
    :param is_permanent: whether another try cannot help.
    :param is_planned: whether it would only be done: a dry run.
    """

    source: str
    outcome: Literal["copied", "skipped", "failed"]
    target: str | None = None
    digest: str | None = None
    size_bytes: int | None = None
    created_at: datetime | None = None
    transfer: TransferStats | None = None
    dropped: tuple[str, ...] = ()
    note: str | None = None
    is_permanent: bool = False
    is_planned: bool = False

    def __str__(self) -> str:
        outcome = f"would be {self.outcome}" if self.is_planned and self.outcome == "copied" else self.outcome
        facts = [
            f"as {self.target}" if self.target else "",
            f"without its {', '.join(self.dropped)}" if self.dropped else "",
        ]
        told = " ".join([self.source, outcome, *filter(None, facts)])
        return f"{told}: {self.note}" if self.note else told


class SyncReport(_Value):
    """What a sync did, or would do.

    :param dry_run: nothing was copied.
    :param versions: what became of each version.
    :param aliases: those of the target that were moved, with what they point to now.
    :param deleted: versions of the target that the source has not any more.
    """

    dry_run: bool = False
    versions: tuple[SyncedVersion, ...] = ()
    aliases: dict[str, str] = Field(default_factory=dict)
    deleted: tuple[str, ...] = ()

    def of(self, outcome: str) -> list[SyncedVersion]:
        """Return the versions that something became of."""
        return [version for version in self.versions if version.outcome == outcome]

    @property
    def counts(self) -> dict[str, int]:
        """How many versions each outcome has."""
        return {outcome: len(self.of(outcome)) for outcome in _OUTCOMES}

    @property
    def summary(self) -> str:
        """The counts, for people."""
        copied = "would be copied" if self.dry_run else "copied"
        return ", ".join(f"{count} {copied if name == 'copied' else name}" for name, count in self.counts.items())

    def to_json(self) -> dict[str, JsonValue]:
        """Return all of it as a plain dictionary of JSON values: counts, and a list for each outcome."""
        return {"dry_run": self.dry_run, "counts": dict(self.counts), **self._lists()}

    def to_xcom(self) -> dict[str, JsonValue]:
        """Return :meth:`to_json` as far as it has room in 4 KiB of JSON.

        What is shortened first is what matters least; ``truncated`` is then true.
        """
        facts: dict[str, JsonValue] = {"dry_run": self.dry_run, "counts": dict(self.counts)}
        lists = self._lists()
        order = ("skipped", "copied", "aliases", "deleted", "failed")
        return fitted_lists(facts, lists, shorten=[name for name in order if name in lists])

    def _lists(self) -> dict[str, list[JsonValue]]:
        left_out = {"outcome", "created_at", "is_permanent", "is_planned"}
        lists: dict[str, list[JsonValue]] = {
            outcome: [
                version.model_dump(mode="json", exclude_defaults=True, exclude=left_out) for version in self.of(outcome)
            ]
            for outcome in _OUTCOMES
        }
        if self.aliases:
            lists["aliases"] = [{"alias": alias, "ref": ref} for alias, ref in self.aliases.items()]
        if self.deleted:
            lists["deleted"] = list(self.deleted)
        return lists


class Patience(_Value):
    """How a task waits for what a system does by itself.

    :param seconds: when to give up.
    :param poll_interval: seconds between two looks.
    """

    seconds: float = 6 * 3600.0
    poll_interval: float = 5.0


class Fetch(_Value):
    """A model that a system has been asked to bring onto its own host.

    :param ref: what the system knows exactly this model by.
    :param name: what people call it.
    :param ours: whether this task has asked for it: then a killed task takes that back.
    :param version: the model, once it is there.
    """

    ref: str
    name: str
    ours: bool = False
    version: ModelVersion | None = None


class Deployment(_Value):
    """A served model.

    :param registry: the connection type.
    :param name: the deployment's name in its system.
    :param status: the system's own word for its state.
    :param ready: whether it answers requests.
    :param failed: whether waiting for that cannot help.
    :param gone: whether nothing of it runs any more.
    :param reason: why it failed, in the system's words.
    :param model: the reference that it serves, where it is known.
    :param artifact: what the system runs when that is not the model itself, e.g. a bento.
    :param revision: what tells one roll-out from the one before; :data:`EMPTY` while nothing is loaded.
    :param url: where it answers, once it does.
    :param page: where the system shows it to people.
    :param raw: the system's own record, without the values of environment variables.
    """

    registry: str
    name: str
    status: str
    ready: bool = False
    failed: bool = False
    gone: bool = False
    reason: str | None = None
    model: str | None = None
    artifact: str | None = None
    revision: str | None = None
    url: str | None = None
    page: str | None = None
    raw: dict[str, Any] = Field(default_factory=dict, repr=False)

    def to_xcom(self) -> dict[str, JsonValue]:
        """Return a plain dictionary of JSON values, at most 4 KiB of JSON.

        What only helps people is left out when it would be larger; ``truncated`` is then true.
        """
        fields = self.model_dump(mode="json", exclude={"raw"})
        return fitted(fields, spare={"reason": None, "page": None, "url": None})


class Predictions(_Value):
    """Predictions that were made, as one file.

    :param registry: the connection type.
    :param deployment: what made them; ``None`` for the connection's own.
    :param format: of the file: ``pandas-records`` (a JSON list of objects), ``arrow`` (IPC file), ``jsonl``.
    :param size_bytes: of the file.
    :param count: how many there are, where the format tells.
    :param model: the reference that was served, where it is known.
    :param path: the file.
    :param content: what it would hold, when no file was asked for.
    """

    registry: str
    deployment: str | None
    format: str
    size_bytes: int
    count: int | None = None
    model: str | None = None
    path: Path | None = None
    content: bytes | None = Field(default=None, repr=False)

    def to_xcom(self, **more: JsonValue) -> dict[str, JsonValue]:
        """Return a reference to them as a plain dictionary of JSON values: never the predictions themselves.

        :param more: further entries, e.g. ``output``.
        """
        return {**self.model_dump(mode="json", exclude={"path", "content"}), **more}


class Ticket(_Value):
    """Predictions that a system works on by itself. Holds no secret.

    :param deployment: what makes them, by a name that cannot pass on to another; ``None`` for the connection's own.
    :param request: what the system calls them.
    :param patience: seconds that they may go without getting any further.
    """

    deployment: str | None
    request: str
    patience: float


class Headway(_Value):
    """How far a system is with predictions.

    :param state: changes whenever they get any further.
    :param is_over: whether the system is done with them, or has failed.
    :param is_full: whether the system goes on only once what it has made is fetched.
    """

    state: str
    is_over: bool = False
    is_full: bool = False


class Undo(StrEnum):
    """How a roll-out is taken back."""

    TERMINATE = "terminate"
    RESTORE = "restore"
    LEAVE = "leave"


class RollOut(_Value):
    """What a task has changed about a deployment, so that it can be taken back. Holds no configuration.

    :param deployment: its name.
    :param model: what was to be served.
    :param undo: how to take it back.
    :param replaced: the revision that was there before; ``None`` when there was no deployment.
    :param revision: the revision that the change made; ``None`` until the answer is known.
    """

    deployment: str
    model: str
    undo: Undo
    replaced: str | None = None
    revision: str | None = None


class Query(_Value):
    """What versions to choose: terms that must all hold.

    :param words: substrings of the name.
    :param labels: label → wanted value, or ``None`` when the label's presence is enough.
    :param names: names, or globs of names, one of which must fit; without any, all do.
    :param either: labels and their values, of which one must hold, as often as there are such terms.
    :param facts: what only some systems know of a version → values, of which one must hold.
    :param sort: how a list is ordered, and so which version is the first; newest first when left out.
    """

    names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    labels: dict[str, str | None] = Field(default_factory=dict)
    either: tuple[tuple[tuple[str, str | None], ...], ...] = ()
    facts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    sort: str | None = None

    @classmethod
    def parse(
        cls,
        text: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        facts: Collection[str] = (),
        orders: Collection[str] = (),
    ) -> Query:
        """Read terms separated by blanks: name substrings, ``label:k``, ``label:k=v`` and ``label:k=a,b``.

        :param text: the terms.
        :param labels: further labels that must have exactly these values.
        :param facts: further keys that the system knows, as in ``creator:me``.
        :param orders: what the system can sort by, as in ``sort:size-asc``.
        :raises InvalidInput: for a term with any other key.
        """
        words: list[str] = []
        wanted: dict[str, str | None] = {}
        either: list[tuple[tuple[str, str | None], ...]] = []
        asked: dict[str, tuple[str, ...]] = {}
        sort = None
        for term in (text or "").split():
            key, colon, rest = term.partition(":")
            if not colon:
                words.append(term)
            elif key == "label" and (alternatives := _alternatives(rest)):
                (label, value), *others = alternatives
                if others or wanted.get(label) is not None:
                    either.append(alternatives)
                else:
                    wanted[label] = value
            elif key in facts and rest:
                asked[key] = (*asked.get(key, ()), rest)
            elif key == "sort" and rest.removesuffix("-asc").removesuffix("-desc") in orders:
                sort = rest
            else:
                known = "".join(f" nor {key!r}" for key in [*(f"{fact}:x" for fact in facts), *_spelled(orders)])
                raise InvalidInput(
                    f"{term!r} is neither a word nor 'label:k' nor 'label:k=v' nor 'label:k=a,b'{known}",
                    argument="query",
                )
        chosen = {**wanted, **(labels or {})}
        return cls(words=tuple(words), labels=chosen, either=tuple(either), facts=asked, sort=sort)

    @property
    def asks_for_labels(self) -> bool:
        """Whether labels decide at all."""
        return bool(self.labels or self.either)

    def matches_name(self, name: str) -> bool:
        """Whether the name holds every word, and fits a glob where there are any."""
        return all(word in name for word in self.words) and self._is_named(name)

    def matches(self, version: ModelVersion) -> bool:
        """Whether a version's name and labels satisfy every term."""
        return not self.misses(version)

    def misses(self, version: ModelVersion) -> str:
        """Return which terms a version does not satisfy, in words; empty when it satisfies all."""
        has = version.labels
        return "; ".join(
            [
                *(() if self._is_named(version.name) else ["its name is none of those"]),
                *(f"its name does not hold {word!r}" for word in self.words if word not in version.name),
                *(f"it has no label {key!r}" for key in self.labels if key not in has),
                *(
                    f"its label {key!r} is {has[key]!r}, not {value!r}"
                    for key, value in self.labels.items()
                    if key in has and value not in (None, has[key])
                ),
                *(
                    "it has none of the labels "
                    + ", ".join(key if value is None else f"{key}={value}" for key, value in one)
                    for one in self.either
                    if not any(key in has and value in (None, has[key]) for key, value in one)
                ),
                *(
                    f"its {key} is {version.facts.get(key)!r}, not {' or '.join(map(repr, values))}"
                    for key, values in self.facts.items()
                    if version.facts.get(key) not in values
                ),
            ]
        )

    def _is_named(self, name: str) -> bool:
        return not self.names or any(fits(name, glob) for glob in self.names)


def fits(name: str, glob: str) -> bool:
    """Whether a name is meant by a name or a glob: it may hold itself what a glob takes for wildcards."""
    return name == glob or fnmatchcase(name, glob)


def flat(name: str) -> str:
    """Return a name with namespaces as a system without them has it: ``org/name`` as ``org--name``.

    :raises InvalidInput: when nothing would tell what it was.
    """
    written = name.replace(NEST, FLAT)
    if nested(written) != name:
        raise InvalidInput(
            f"{name!r} cannot be told from another name once {NEST!r} is written as {FLAT!r}",
            remedy="give it another name",
            argument="rename",
        )
    return written


def nested(name: str) -> str:
    """Return a name as a system with namespaces has it: ``org--name`` as ``org/name``."""
    return _FLAT.sub(NEST, name)


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON, which tells ``true`` from 1, but not 1 from 1.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def _alternatives(text: str) -> tuple[tuple[str, str | None], ...]:
    """Read ``k``, ``k=v``, ``k=a,b`` and ``k=a,l=b``; empty when it is none of these."""
    found: list[tuple[str, str | None]] = []
    label = ""
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if label and not equals:  # one more value of the label before
            key, equals, value = label, "=", part
        if not key:
            return ()
        found.append((key, value if equals else None))
        label = key if equals else ""
    return tuple(found)


def _spelled(orders: Collection[str]) -> list[str]:
    return [f"sort:{'|'.join(orders)}-asc|desc"] if orders else []


def require_json(argument: str, value: Mapping[str, Any]) -> None:
    """Raise :class:`InvalidInput` for what would not come back from JSON as it was, or not go in."""
    try:
        json.dumps(dict(value), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{argument} cannot be kept as JSON: {error}", argument=argument) from None
