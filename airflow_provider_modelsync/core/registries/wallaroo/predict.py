"""Inference by Wallaroo's pipelines: records or an Arrow file go up, predictions come down, both block by block.

Facts come from the vendor's public tutorials and from the wallaroo 2026.1.3 client, read and seen on the wire.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_provider_modelsync.core.arguments import restructured
from airflow_provider_modelsync.core.errors import (
    DeploymentFailed,
    InvalidInput,
    ModelNotFound,
    RegistryUnavailable,
    from_os_error,
)
from airflow_provider_modelsync.core.flow.steps import Flow, call
from airflow_provider_modelsync.core.models import Predictions
from airflow_provider_modelsync.core.redact import excerpt
from airflow_provider_modelsync.core.registries.base import Registry
from airflow_provider_modelsync.core.registries.wallaroo.auth import Login
from airflow_provider_modelsync.core.registries.wallaroo.pipelines import Pipelines
from airflow_provider_modelsync.core.transfer.mover import UNPROCESSED, BodyFactory, Download, with_retries
from airflow_provider_modelsync.core.transfer.plan import PredictRequest
from airflow_provider_modelsync.core.transfer.watchdog import Pace

ARROW, RECORDS = "arrow", "pandas-records"
_CONTENT_TYPES = {ARROW: "application/vnd.apache.arrow.file", RECORDS: "application/json; format=pandas-records"}
_MAGIC = b"ARROW1"  # begins and ends an Arrow file
_HEAD = 4096  # bytes that tell of what kind a file is


class PredictOptions(BaseModel):
    """What ``options`` of a prediction may hold: the fields of the query, and one of our own.

    :param dataset: the columns to return; all by default.
    :param dataset_exclude: columns to leave out, e.g. ``["metadata"]``.
    :param dataset_separator: what joins the parts of nested columns' names.
    :param timeout: seconds that the pipeline may take before its answer begins.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: list[str] | None = None
    dataset_exclude: list[str] | None = None
    dataset_separator: str | None = None
    timeout: float = Field(default=300.0, gt=0)

    @property
    def query(self) -> str:
        """The query of the request, without what is not set."""
        fields = {"dataset[]": self.dataset, "dataset.exclude[]": self.dataset_exclude}
        pairs = [(name, value) for name, values in fields.items() for value in values or ()]
        if self.dataset_separator:
            pairs.append(("dataset.separator", self.dataset_separator))
        return f"?{urlencode(pairs)}" if pairs else ""


@dataclass(frozen=True, slots=True)
class _Body:
    format: str
    length: int
    open: BodyFactory


class Inference:
    """Predictions by the pipelines of one connection.

    :param registry: where they are.
    :param pipelines: where each of them answers.
    :param login: gets the token that requests carry.
    """

    def __init__(self, registry: Registry, pipelines: Pipelines, login: Login) -> None:
        self._registry = registry
        self._pipelines = pipelines
        self._login = login

    def predict(self, request: PredictRequest) -> Flow[Predictions]:
        """Send inputs to a pipeline that is running, and write what it predicts.

        What a pipeline computes may be logged or counted, so that a request is repeated only if it was certainly not
        processed.

        :raises InvalidInput: for inputs that are neither records nor an Arrow file, before anything is sent.
        :raises DeploymentFailed: when the pipeline is not deployed, or has failed.
        :raises RegistryUnavailable: when it is not running yet, or gave no whole answer.
        """
        options = _checked(request.options)
        body = yield from call(_body_of, request.inputs)
        deployment = yield from self._pipelines.get(request.deployment or "")
        if not deployment.ready or deployment.url is None:
            said = f"{deployment.name} cannot predict: it is {deployment.status}"
            raise (DeploymentFailed if deployment.failed or deployment.gone else RegistryUnavailable)(said)
        url = deployment.url + options.query
        doing = f"predicting with {deployment.name}"
        headers = {"Content-Type": _CONTENT_TYPES[body.format]}
        if body.format == ARROW:
            headers["Accept"] = _CONTENT_TYPES[ARROW]

        def send(credentials: Mapping[str, str], is_last: bool) -> Predictions | None:
            """Return what was predicted, or ``None`` when a fresh token may help."""
            pace = Pace(answer_seconds=options.timeout)
            sized = {**headers, **credentials}
            with request.mover.exchange(url, body.open, body.length, sized, pace=pace) as answer:
                if answer.status == 401 and not is_last:
                    return None
                if not 200 <= answer.status < 300:
                    answer.answer().raise_for_status(doing, not_found=ModelNotFound)
                    raise RegistryUnavailable(f"{doing}: the server answered {answer.status}")
                written = _write(answer, request.target, doing)
            return Predictions(
                registry=self._registry.conn_type,
                deployment=deployment.name,
                model=deployment.model,
                path=request.target,
                **written,
            )

        yield from self._login.ensure()
        for is_last in (False, True):
            credentials = self._login.headers()
            once = partial(send, credentials, is_last or not self._login.can_renew)
            made = yield from call(with_retries, once, cancel=request.control.cancel, passing=UNPROCESSED)
            if made is not None:
                return made
            yield from self._login.renewed()
        raise AssertionError("unreachable")


def _checked(options: Mapping[str, Any]) -> PredictOptions:
    try:
        return PredictOptions.model_validate(restructured(PredictOptions, options))
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise InvalidInput(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", argument="options") from None


def _body_of(inputs: Any) -> _Body:
    """Return what is to be sent for a file, an Arrow table, a data frame, or records."""
    if isinstance(inputs, Path):
        return _file_body(inputs)
    package = type(inputs).__module__.partition(".")[0]
    if package == "pyarrow":
        return _bytes_body(ARROW, _arrow_bytes(inputs))
    if package == "pandas":
        return _bytes_body(RECORDS, inputs.to_json(orient="records").encode())
    if not isinstance(inputs, Sequence) or not inputs or not all(isinstance(row, Mapping) for row in inputs):
        raise InvalidInput(
            "neither a file nor records: give a path, a list of objects such as [{'column': [1.0]}], "
            "a pandas DataFrame or a pyarrow Table",
            argument="inputs",
        )
    try:
        text = json.dumps([dict(row) for row in inputs], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"these records are no JSON: {error}", argument="inputs") from None
    return _bytes_body(RECORDS, text.encode())


def _bytes_body(kind: str, content: bytes) -> _Body:
    return _Body(kind, len(content), lambda: io.BytesIO(content))


def _arrow_bytes(table: Any) -> bytes:
    ipc: Any = import_module("pyarrow.ipc")  # an optional package: a table was made with it
    sink = io.BytesIO()
    with ipc.new_file(sink, table.schema) as writer:
        writer.write(table)
    return sink.getvalue()


def _file_body(path: Path) -> _Body:
    try:
        with io.FileIO(path, opener=_open_at_once) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InvalidInput(f"{path} is no file", argument="inputs")
            kind = _kind_of(path, file.read(_HEAD))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InvalidInput(f"{path} is no file", argument="inputs") from None
    except OSError as error:
        raise from_os_error(error, f"reading {path}", argument="inputs") from error
    return _Body(kind, facts.st_size, lambda: io.FileIO(path))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for somebody who writes


def _kind_of(path: Path, head: bytes) -> str:
    if head.startswith(_MAGIC):
        return ARROW
    text = head.lstrip(b" \t\r\n")
    if text.startswith(b"["):
        return RECORDS
    if head.startswith(b"PAR1"):
        raise InvalidInput(f"{path} is a Parquet file", remedy="write it as an Arrow IPC file", argument="inputs")
    hint = "; a JSON file must hold a list of objects" if text.startswith(b"{") else ""
    raise InvalidInput(f"{path} is neither an Arrow IPC file nor pandas-records JSON{hint}", argument="inputs")


def _write(answer: Download, target: Path, doing: str) -> dict[str, Any]:
    """Write an answer as it comes; say what it is, once it is certain that it came as a whole."""
    records = RecordCounter()
    head = tail = b""
    size = 0
    with target.open("wb") as file:
        for block in answer.blocks():
            if len(head) < _HEAD:
                head += bytes(block[: _HEAD - len(head)])
            if not head.startswith(_MAGIC[: len(head)]):
                records.feed(block)
            tail = (tail + bytes(block[-len(_MAGIC) :]))[-len(_MAGIC) :]
            size += file.write(block)
    if head.startswith(_MAGIC) and tail == _MAGIC and size > 2 * len(_MAGIC):
        return {"format": ARROW, "size_bytes": size}
    if records.is_complete:
        return {"format": RECORDS, "size_bytes": size, "count": records.count}
    said = excerpt(head.decode("utf-8", "replace")[:200])
    raise RegistryUnavailable(f"{doing}: the answer of {size} bytes is not whole, or no prediction: {said or 'empty'}")


class RecordCounter:
    """Counts the objects of a JSON list while its text goes by, in blocks of any size."""

    _OUTSIDE = re.compile(rb'["\[\]{}]')
    _INSIDE = re.compile(rb'["\\]')

    def __init__(self) -> None:
        self.count = 0
        self._depth = 0
        self._is_text = False
        self._skipped = 0  # of the next block: what a backslash at the end of this one has escaped
        self._is_list: bool | None = None
        self._is_closed = False

    @property
    def is_complete(self) -> bool:
        """Whether a whole list has gone by."""
        return bool(self._is_list) and self._is_closed

    def feed(self, block: bytes | memoryview) -> None:
        """Take the next bytes."""
        place, self._skipped = self._skipped, 0
        while found := (self._INSIDE if self._is_text else self._OUTSIDE).search(block, place):
            place = found.end()
            match found[0]:
                case b'"':
                    self._is_text = not self._is_text
                case b"\\":
                    place += 1
                case b"[" | b"{" as opening:
                    if self._is_list is None:
                        self._is_list = opening == b"["
                    self.count += self._depth == 1 and opening == b"{"
                    self._depth += 1
                case _:
                    self._depth -= 1
                    self._is_closed = self._depth == 0
        self._skipped = max(0, place - len(block))
