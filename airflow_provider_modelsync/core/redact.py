"""Making text fit for messages and logs: secrets masked, signed queries cut, control characters escaped."""

from __future__ import annotations

import base64
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from urllib.parse import quote, quote_plus, urlsplit

from pydantic import SecretStr

from airflow_provider_modelsync.core.settings import RegistrySettings

SHOWN_BYTES = 2048  # of what a server said
_MASK = "***"
_SHORTEST_ENCODED = 4  # characters; the encoded forms of shorter secrets would match anywhere

_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)[^\s/?#@\"'<>]+@")
_URL_QUERY = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://[^\s?#\"'<>]*)\?[^\s\"'<>]*")
_BARE_QUERY = re.compile(r"\?[\w.~%-]+=[^\s\"'<>]*")  # libraries name targets without scheme and host
_PARAMETER = re.compile(
    r"(?i)\b(x-(?:amz|goog)-[a-z-]+|signature|sig|[a-z_]{0,20}token|client_secret|password|api_?key)=[^&\s\"'<>]+"
)
_APP_TOKEN = re.compile(r"(/net/)[^\s/?#\"'<>]+")  # of a Supervisely app, part of its address
_AWS_TOKEN = re.compile(r"(?i)(x-amz-security-token['\"]?\s*:\s*(?:b?['\"])?)[^\s'\",]+")  # botocore logs headers
_TALKATIVE_LOGGERS = (
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.proxy",
    "urllib3.connectionpool",
    "urllib3.util.retry",
    "botocore.auth",
    "botocore.awsrequest",
    "botocore.client",
    "botocore.credentials",
    "botocore.endpoint",
    "botocore.handlers",
    "botocore.hooks",
    "botocore.httpsession",
    "botocore.parsers",
    "botocore.regions",
    "botocore.retries.standard",
    "botocore.signers",
    "botocore.utils",
)
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask secrets in a text, and cut what may hold one.

    :param text: the text.
    :param secrets: values to mask; also found URL-quoted, base64-encoded and JSON-escaped.
    :return: the text with ``***`` for each secret, ``?…`` for the query of each URL, and no URL credentials.
    """
    # Looked for one by one: an expression of all forms would cost as much as a process has seen secrets, on each line.
    folded = text.lower()
    found = {form for secret in secrets if secret for form, lowered in _forms_of(secret) if lowered in folded}
    if found:
        longest_first = sorted(found, key=len, reverse=True)
        # Quoted forms come in upper and lower case hex; a match too many does no harm.
        text = re.sub("|".join(map(re.escape, longest_first)), _MASK, text, flags=re.IGNORECASE)
    text = _USERINFO.sub(rf"\g<1>{_MASK}@", text)
    text = _APP_TOKEN.sub(rf"\g<1>{_MASK}", text)
    text = _URL_QUERY.sub(r"\g<1>?…", text)
    text = _BARE_QUERY.sub("?…", text)
    text = _AWS_TOKEN.sub(rf"\g<1>{_MASK}", text)
    return _PARAMETER.sub(rf"\g<1>={_MASK}", text)


def secrets_of(settings: RegistrySettings) -> tuple[str, ...]:
    """Return every secret that a connection holds, whatever its type calls the field.

    A proxy's URL counts through its password: the rest of it may be named.
    """
    found = []
    for name, value in settings:
        if isinstance(value, SecretStr):
            plain = value.get_secret_value()
            found.append(_password_in(plain) if name == "proxy" else plain)
    return tuple(secret for secret in found if secret)


def show_url(url: object, secrets: Iterable[str] = ()) -> str:
    """Return scheme, host and path of a URL: neither query, which may be a signature, nor credentials."""
    plain, _, _ = str(url).partition("#")
    plain, _, _ = plain.partition("?")
    return escape(redact(_USERINFO.sub(r"\g<1>", plain), secrets))


def excerpt(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the beginning of what a server said: redacted, escaped, at most 2 KiB."""
    # Far more than is shown, so that no secret is cut in two; not all, as a page can be made to match slowly.
    shown = escape(redact(text.strip()[: 4 * SHOWN_BYTES], secrets))
    raw = shown.encode("utf-8", "backslashreplace")
    return shown if len(raw) <= SHOWN_BYTES else raw[: SHOWN_BYTES - 3].decode("utf-8", "ignore") + "…"


def guard_logs(secrets: Iterable[str] = ()) -> None:
    """Redact what the HTTP libraries log: they write whole URLs, signatures included, httpx even at level INFO.

    :param secrets: values to mask besides, from now on.
    """
    _guard.secrets.update(secrets)
    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).addFilter(_guard)  # adding it again changes nothing


class _Guard(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), tuple(self.secrets)), ()
        return True


_guard = _Guard()


def escape(text: str) -> str:
    """Return a text with control characters, line ends and direction marks written as escapes."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in _BIDI:
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character


@lru_cache(maxsize=4096)
def _forms_of(secret: str) -> tuple[tuple[str, str], ...]:
    """Return how a secret may be written, each form also in lower case."""
    return tuple((form, form.lower()) for form in dict.fromkeys(_writings_of(secret)))


def _writings_of(secret: str) -> Iterator[str]:
    yield secret
    if len(secret) < _SHORTEST_ENCODED:
        return
    yield quote(secret, safe="")
    yield quote(secret)
    yield quote_plus(secret)
    yield json.dumps(secret)[1:-1]
    raw = secret.encode()
    # Inside a longer base64 text, such as "user:secret", the letters depend on the bytes before: three cases.
    for before in range(3):
        coded = base64.b64encode(bytes(before) + raw).decode()
        whole = coded[-(-8 * before // 6) : (8 * (before + len(raw))) // 6]
        yield whole
        yield whole.translate(str.maketrans("+/", "-_"))


def _password_in(url: str) -> str:
    try:
        return urlsplit(url if "://" in url else f"//{url}").password or ""
    except ValueError:
        return url
