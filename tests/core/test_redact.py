"""Text for messages and logs: secrets masked, what may hold one cut, control characters escaped, none of it slow."""

from __future__ import annotations

import base64
import logging
import time
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from pydantic import SecretStr

from airflow_provider_modelsync.core import redact as redact_module
from airflow_provider_modelsync.core.errors import InvalidInput, ModelSyncError
from airflow_provider_modelsync.core.redact import (
    OUR_LOGGERS,
    SHOWN_BYTES,
    excerpt,
    guard_logs,
    redact,
    secret_fields,
    secrets_of,
    show_url,
)
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.text import escape

TOKEN = "canary-7f+3/a=secret"  # holds characters that look different once quoted
HOSTILE = "evil\n2026-01-01 ERROR all is lost\r\x1b[31m\u202e\u2028\x9b\udc80"
MATCHED = 8 << 10  # characters that are looked at


def test_a_secret_that_grows_in_lower_case_is_masked() -> None:
    secret = "\u0130stanbul-\u00c4"
    assert redact(f"it said {secret}, sorry", [secret]) == "it said ***, sorry"


def test_what_other_connections_hold_does_not_slow_a_line_down() -> None:
    """Neither are the forms of a secret made again, nor are all of them put into one expression."""
    secrets = [f"{TOKEN}-{number}" for number in range(500)]
    redact("warm", secrets)
    before = redact_module._forms_of.cache_info()

    assert redact(f"it said {secrets[7]}, sorry", secrets) == "it said ***, sorry"

    after = redact_module._forms_of.cache_info()
    assert (after.hits - before.hits, after.misses) == (500, before.misses)


@pytest.mark.parametrize(
    "form",
    [
        TOKEN,
        quote(TOKEN, safe=""),
        quote(TOKEN, safe="").lower(),
        base64.b64encode(TOKEN.encode()).decode(),
        base64.urlsafe_b64encode(TOKEN.encode()).decode(),
        base64.b64encode(f"u:{TOKEN}".encode()).decode(),
        base64.b64encode(f"us:{TOKEN}".encode()).decode(),
        base64.b64encode(f"user:{TOKEN}".encode()).decode(),
    ],
)
def test_a_secret_is_masked_in_every_form(form: str) -> None:
    text = redact(f"it said {form}, sorry", [TOKEN])
    assert text.startswith("it said ")
    assert text.endswith(", sorry")
    assert "***" in text
    assert form[6:-6] not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://s3.example/k?X-Amz-Signature=1&b=2 now", "at https://s3.example/k?… now"),
        ("url: /bucket/key?sig=1 (failed)", "url: /bucket/key?… (failed)"),
        ("<a href='https://u:p@x.example/'>", "<a href='https://***@x.example/'>"),
        ("abfs://models@acme/m, wasbs://u:p@acme/m", "abfs://models@acme/m, wasbs://***@acme/m"),
        ("grant failed: client_secret=abc&x=1", "grant failed: client_secret=***&x=1"),
        ("is it there? yes", "is it there? yes"),
        ("why?so: https://x.example/k?s1gned", "why?so: https://x.example/k?…"),
    ],
)
def test_queries_and_credentials_of_urls_are_cut(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize("key", ["access_token", "refreshToken", "token", "client_secret", "password", "api_key"])
@pytest.mark.parametrize("form", ['{"%s":"%s","n":1}', '{"%s" : "%s"', "{'%s': '%s'}", r'"{\"%s\": \"%s\"}"'])
def test_a_token_in_an_answer_that_is_quoted_is_masked(key: str, form: str) -> None:
    shown = redact(form % (key, "eyJhbGciOi.x-y_z.AAAA"))
    assert key in shown
    assert "eyJ" not in shown
    assert "AAAA" not in shown
    about = f'{key}: Field required, "{key}er": "kept"'
    assert redact(about) == about


def test_a_url_is_shown_without_query_and_credentials() -> None:
    assert show_url("https://u:p@x.example:1/a/b?c=d#e") == "https://x.example:1/a/b"
    assert show_url(httpx.URL(f"https://x.example/net/{TOKEN}/api"), [TOKEN]) == "https://x.example/net/***/api"


def test_an_excerpt_of_just_the_right_length_is_whole() -> None:
    assert excerpt("x" * SHOWN_BYTES) == "x" * SHOWN_BYTES
    assert excerpt("x" * (SHOWN_BYTES + 1)) == "x" * (SHOWN_BYTES - 3) + "…"


def test_an_excerpt_is_short_and_printable() -> None:
    shown = excerpt("é\n\u202e" + "ü" * 5000)
    assert shown.startswith("é\\n\\u202e")
    assert len(shown.encode()) <= 2048


def test_a_secret_that_another_one_begins_with_is_masked_whole() -> None:
    assert redact("it said canary-longer, sorry", ["canary", "canary-longer"]) == "it said ***, sorry"


@pytest.mark.parametrize(
    ("field", "value", "secret"),
    [
        ("signing_key_password", TOKEN, TOKEN),
        ("proxy", "http://jane:canary@proxy.example:3128", "canary"),
        ("proxy", "jane:canary@proxy.example", "canary"),
        ("proxy", "http://proxy.example:3128", None),
        ("proxy", "http://jane:canary@[proxy.example", "http://jane:canary@[proxy.example"),
        ("conn_id", TOKEN, None),
    ],
)
def test_the_secrets_of_a_connection_are_its_hidden_fields(field: str, value: str, secret: str | None) -> None:
    told: Any = value if field == "conn_id" else SecretStr(value)
    settings = RegistrySettings.model_construct(**{"conn_id": "c", field: told})
    assert dict(secret_fields(settings)) == ({field: secret} if secret else {})
    assert secrets_of(settings) == ((secret,) if secret else ())


@pytest.mark.parametrize("secret", ["", "t", "to", "the"])
def test_a_secret_too_short_to_protect_anything_garbles_no_message(secret: str) -> None:
    assert redact("the token is told to stop", [secret]) == "the token is told to stop"
    assert show_url("https://the.example/to", [secret]) == "https://the.example/to"


def test_a_secret_of_four_letters_is_masked() -> None:
    assert redact("it said abcd.", ["abcd"]) == "it said ***."


UNITS = [
    "a.",
    "a://",
    "?a=",
    "://@",
    "a://b@",
    "token",
    "x-amz-",
    "/net/",
    "a" * 21 + "-",
    "\u202e",
    "password=",
    'token" : ',
    "_token':'",
    " ",
    "?",
]
UNITS += ["x-amz-security-token ", "x://" + "y" * 1000, "\u0130"]


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_no_text_can_be_made_to_match_slowly(unit: str) -> None:
    """The whole costs about what its first 8 KiB cost, and these no more than those of a harmless text."""

    def cost(text: str) -> float:
        secrets = [f"{TOKEN}-{number}" for number in range(5)]
        best = 60.0
        for _ in range(3):
            started = time.thread_time()
            redact(text, secrets)
            excerpt(text, secrets)
            show_url(text, secrets)
            best = min(best, time.thread_time() - started)
        return best

    short = (unit * MATCHED)[:MATCHED]
    harmless = cost(("word " * MATCHED)[:MATCHED])
    assert cost(short) < 100 * harmless  # quadratic: thousands
    assert cost(unit * ((10 << 20) // len(unit))) < 100 * harmless  # 10 MB: 1,280 times as much


@pytest.mark.parametrize("before", range(MATCHED - 40, MATCHED + 5))
def test_no_part_of_a_secret_is_left_at_the_cut(before: int) -> None:
    for said in (TOKEN, f"https://user:{TOKEN}@x.example/", f"https://x.example/?sig={TOKEN}", f"password={TOKEN}"):
        # What is cut out before makes the end of what was looked at show in an excerpt.
        text = "?a=" + "q" * (before - 4) + " " + said + " and so on" * 2000
        for shown in (redact(text, [TOKEN]), excerpt(text, [TOKEN])):
            assert "canary" not in shown
    plain = redact("?a=" + "q" * (before - 4) + " https://user:canary-7f@x.example/" + "z" * MATCHED)
    assert "canary" not in plain


def test_a_secret_that_ends_where_the_text_is_cut_is_masked() -> None:
    before = "x" * (MATCHED - len(TOKEN) - 1) + " "
    assert redact(f"{before}{TOKEN} and so on", [TOKEN]) == f"{before}***…"


def test_a_short_text_is_left_whole() -> None:
    text = ("word " * MATCHED)[:MATCHED]
    assert redact(text) == text
    assert redact(text * 2).endswith("…")


@pytest.mark.parametrize("name", OUR_LOGGERS)
def test_what_a_server_says_stays_on_one_line_of_our_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=name):
        logging.getLogger(name).warning("%s is there", HOSTILE)
        logging.getLogger(name).info("x" * MATCHED)
        logging.getLogger(name).info("x" * (10 << 20))
    assert caplog.messages[0] == escape(HOSTILE) + " is there"
    assert [len(message) for message in caplog.messages[1:]] == [MATCHED, MATCHED + 1]


def test_the_http_libraries_stay_on_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    guard_logs([TOKEN])
    with caplog.at_level(logging.INFO, logger="httpx"):
        logging.getLogger("httpx").info("HTTP Request: %s %s", HOSTILE, TOKEN)
    assert caplog.messages == [f"HTTP Request: {escape(HOSTILE)} ***"]


def test_no_error_of_ours_writes_lines_of_its_own() -> None:
    error = InvalidInput(f"{HOSTILE} is no name", model=HOSTILE)
    for shown in (str(error), error.message, *map(str, error.args)):
        assert shown.isprintable()
    assert str(ModelSyncError("plain é")) == "plain é"
