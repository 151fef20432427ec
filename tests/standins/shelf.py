"""Shelf, the made-up registry of the documents, in memory: files by their hash, and a record of each version.

    GET  /whoami                        a user's name
    GET  /models                        all records
    GET  /models/<name>/<version>       a record
    PUT  /models/<name>/<version>       writes it, once its files are there, unless there is another
    DEL. /models/<name>/<version>       whether it was there
    PUT  /files/<sha256>                a file; GET returns it

Nothing here imports the package under test.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.standins.http_server import Answer, Json, Refusal, Request, StandIn, json_answer

_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class ShelfStandIn(StandIn):
    """A server with nothing on its shelf."""

    token = "shelf-token-3f9a"

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, Json] = {}
        self.files: dict[str, bytes] = {}
        self._written = 0

    def answer(self, request: Request, body: Any) -> Answer:
        content = b"".join(body)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(json_answer(401, {"error": "who are you?"}))
        with self.lock:
            match request.method, request.path.strip("/").split("/"):
                case "GET", ["whoami"]:
                    return json_answer(200, "ada")
                case "GET", ["models"]:
                    return json_answer(200, [*self.records.values()])
                case "GET", ["models", name, version]:
                    return json_answer(200, self._of(self.records, f"{name}:{version}"))
                case "PUT", ["models", name, version]:
                    return json_answer(200, self._write(f"{name}:{version}", json.loads(content)))
                case "DELETE", ["models", name, version]:
                    return json_answer(200, self.records.pop(f"{name}:{version}", None) is not None)
                case "PUT", ["files", sha256] if hashlib.sha256(content).hexdigest() == sha256:
                    self.files[sha256] = content
                    return json_answer(200, {})
                case "GET", ["files", sha256]:
                    return Answer(200, self._of(self.files, sha256))
        raise Refusal(json_answer(400, {"error": f"{request.method} {request.path} makes no sense"}))

    def _write(self, ref: str, record: Json) -> Json:
        for file in record["files"]:
            self._of(self.files, file["sha256"])
        if there := self.records.get(ref):
            if there["files"] != record["files"]:
                raise Refusal(json_answer(409, {"error": f"{ref} is taken"}))
            return there
        self._written += 1
        self.records[ref] = {**record, "created_at": (_BEGINNING + timedelta(seconds=self._written)).isoformat()}
        return self.records[ref]

    def _of(self, things: dict[str, Any], key: str) -> Any:
        if key not in things:
            raise Refusal(json_answer(404, {"error": f"there is no {key}"}))
        return things[key]
