"""A proxy before a server of somebody else's: it changes nothing, logs every request, and breaks where it is told to.

    with Tap(server.url) as tap:
        tap.fault("PUT", r"\\.json$", After(lambda request: ...))
        ...  # talk to tap.url instead of server.url

``Before`` and ``After`` act when a request has come, and when it was served but not answered. Nothing here imports the
package under test.
"""

from __future__ import annotations

import http.client
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from tests.standins import http_server
from tests.standins.http_server import After, Answer, Before, Handler, StandIn

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_OWN = {*_HOP, "date", "server"}  # what the proxy says itself
_PATIENCE = 60.0  # seconds for an answer


@dataclass
class Request(http_server.Request):
    """One request as it arrived.

    :param target: path and query as they were sent.
    """

    target: str = ""

    def matches(self, method: str, path: re.Pattern[str], part: int | None) -> bool:
        # Of what a listing asks for, only its query tells.
        return method in ("*", self.method) and path.search(unquote_plus(self.target)) is not None


@dataclass(frozen=True)
class _Passed(Answer):
    """An answer whose headers say how long its body would be."""

    told_length: str = "0"


class _Handler(Handler):
    def parsed(self) -> Request:
        known = super().parsed()
        return Request(known.origin, known.method, known.path, known.query, known.headers, target=self.path)

    def framing(self, answer: Answer) -> dict[str, str]:
        if self.command == "HEAD" and isinstance(answer, _Passed):
            return {"Content-Length": answer.told_length} | self.closing()
        return super().framing(answer)


class Tap(StandIn):
    """The proxy.

    :param server: base URL of the server behind it; the paths are its own.
    """

    def __init__(self, server: str) -> None:
        super().__init__(handler=_Handler, stall_seconds=_PATIENCE)
        self._behind = urlsplit(server)

    def answer(self, request: http_server.Request, body: Any) -> Answer:
        assert isinstance(request, Request)
        content = b"".join(body)
        for action in request.actions:
            if isinstance(action, Before):
                action.hook(request)
        answer = self._passed_on(request, content)
        for action in request.actions:
            if isinstance(action, After):
                action.hook(request)
        return answer

    def _passed_on(self, request: Request, content: bytes) -> Answer:
        behind = http.client.HTTPConnection(self._behind.hostname or "", self._behind.port, timeout=_PATIENCE)
        try:
            # With the client's own Host: signatures may count it in.
            behind.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name not in _HOP:
                    behind.putheader(name, value)
            if content or "content-length" in request.headers:
                behind.putheader("Content-Length", str(len(content)))
            behind.endheaders(content or None)
            answer = behind.getresponse()
            headers = {
                name: value for name, value in answer.getheaders() if name.lower() not in (*_HOP, "date", "server")
            }
            return _Passed(answer.status, answer.read(), headers, told_length=answer.headers.get("Content-Length", "0"))
        finally:
            behind.close()
