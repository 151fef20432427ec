"""Making text fit for messages and logs: secrets masked, signed queries cut, control characters escaped."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from urllib.parse import quote, quote_plus, urlsplit

from pydantic import SecretStr

from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.text import escape

SHOWN_BYTES = 2048  # of what a server said
_MATCHED = 8 << 10  # characters that are looked at; whoever writes more has nothing to tell people
_MASK = "***"
_SHORTEST = 4  # characters; a shorter secret protects nothing, and masking it everywhere would garble each message

# None of these looks at a character more often than a fixed number of times, whatever the text is.
# On Azure a container stands where others have a password.
_CONTAINER = r"(?!(?:abfss?|az|wasbs?)://[a-z0-9-]{3,63}@)"
_USERINFO = re.compile(rf"(?i)\b{_CONTAINER}([a-z][a-z0-9+.-]{{0,20}}+://)[^\s/?#@\"…'<>]++(?:@|…\Z)")
_WORD = re.compile(r"[^\s\"'<>]+")
_BARE_QUERY = re.compile(r"\?[\w.~%-]++=[^\s\"'<>]*")  # libraries name targets without scheme and host
_PARAMETER = re.compile(
    r"(?i)\b(x-(?:amz|goog)-[a-z-]{1,40}|signature|sig|[a-z_]{0,20}token|client_secret|password|api_?key)=[^&\s\"'<>]+"
)
# The same in JSON, where an answer that should have held it is quoted.
_MEMBER = re.compile(r"(?i)\b([a-z_]{0,20}(?:token|secret|password|api_?key)\\?[\"']\s{0,4}:\s{0,4}\\?[\"'])[^\"'\s]++")
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


OUR_LOGGERS = ("modelsync", "modelsync.socket")  # a logger's filters do not count for those below it


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask secrets in a text, and cut what may hold one.

    :param text: the text; what is beyond 8,192 characters is left out, so that no text can be made to take long.
    :param secrets: values to mask, if they have 4 characters or more; also found URL-quoted, base64-encoded and
        JSON-escaped.
    :return: the text with ``***`` for each secret, ``?…`` for the query of each URL, and no URL credentials.
    """
    forms = [form for secret in secrets if len(secret) >= _SHORTEST for form in _forms_of(secret)]
    # What straddles the cut must be recognised as well.
    window = text[: _MATCHED + max((len(form) for form, _ in forms), default=0)]
    # Looked for one by one: an expression of all forms would cost as much as a process has seen secrets, on each line.
    folded = window.lower()
    found = {form for form, lowered in forms if lowered in folded}
    end = _MATCHED
    if found:
        longest_first = sorted(found, key=len, reverse=True)
        # Quoted forms come in upper and lower case hex; a match too many does no harm.
        pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)
        end = next((match.start() for match in pattern.finditer(window) if match.start() < end < match.end()), end)
    cut = window[:end] + ("…" if len(text) > end else "")
    if found:
        cut = pattern.sub(_MASK, cut)
    cut = _USERINFO.sub(rf"\g<1>{_MASK}@", cut)
    cut = _APP_TOKEN.sub(rf"\g<1>{_MASK}", cut)
    if "://" in cut:
        cut = _WORD.sub(_without_query, cut)
    cut = _BARE_QUERY.sub("?…", cut)
    cut = _AWS_TOKEN.sub(rf"\g<1>{_MASK}", cut)
    cut = _MEMBER.sub(rf"\g<1>{_MASK}", cut)
    return _PARAMETER.sub(rf"\g<1>={_MASK}", cut)


def _without_query(word: re.Match[str]) -> str:
    """Return a word without the query of the URL in it, if there is one."""
    start = word[0].find("://")
    query = word[0].find("?", start) if start > 0 else -1
    return word[0] if query < 0 else f"{word[0][:query]}?…"


def secret_fields(settings: RegistrySettings) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a connection's fields that hold a secret, whatever its type calls them.

    A proxy's URL counts through its password: the rest of it may be named.
    """
    for name, value in settings:
        if isinstance(value, SecretStr):
            plain = value.get_secret_value()
            if secret := _password_in(plain) if name == "proxy" else plain:
                yield name, secret


def secrets_of(settings: RegistrySettings) -> tuple[str, ...]:
    """Return every secret that a connection holds, as :func:`secret_fields` finds them."""
    return tuple(secret for _, secret in secret_fields(settings))


def show_url(url: object, secrets: Iterable[str] = ()) -> str:
    """Return scheme, host and path of a URL: neither query, which may be a signature, nor credentials."""
    plain, _, _ = str(url).partition("#")
    plain, _, _ = plain.partition("?")
    return escape(redact(_USERINFO.sub(r"\g<1>", plain[: 2 * _MATCHED]), secrets))


def excerpt(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the beginning of what a server said: redacted, escaped, at most 2 KiB."""
    shown = escape(redact(text.strip(), secrets))
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
        record.msg, record.args = escape(redact(record.getMessage(), tuple(self.secrets))), ()
        return True


class _OneLine(logging.Filter):
    """Keeps what a server, or somebody else's model, is called from writing lines of its own into our log."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        record.msg, record.args = escape(said[:_MATCHED]) + ("…" if len(said) > _MATCHED else ""), ()
        return True


_guard = _Guard()
_one_line = _OneLine()
for _name in OUR_LOGGERS:
    logging.getLogger(_name).addFilter(_one_line)


@lru_cache(maxsize=4096)
def _forms_of(secret: str) -> tuple[tuple[str, str], ...]:
    """Return how a secret may be written, each form also in lower case."""
    return tuple((form, form.lower()) for form in dict.fromkeys(_writings_of(secret)))


def _writings_of(secret: str) -> Iterator[str]:
    yield secret
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
