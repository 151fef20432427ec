from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.settings import RegistrySettings, base_url

SECRET = "canary-7f3a"


def _read(**fields: Any) -> RegistrySettings:
    return RegistrySettings.read("models", fields)


def test_fields_that_are_left_out_have_safe_defaults() -> None:
    settings = _read()
    assert settings.conn_id == "models"
    assert settings.verify_tls
    assert settings.proxy is None
    assert settings.presigned_hosts == ()


@pytest.mark.parametrize("unset", [None, ""])
@pytest.mark.parametrize("field", ["host", "password", "verify_tls", "timeout_seconds", "part_size_mib", "ca_bundle"])
def test_null_and_empty_mean_unset(field: str, unset: str | None) -> None:
    assert _read(**{field: unset}) == _read()


def test_zero_and_false_are_values() -> None:
    assert _read(verify_tls=False).verify_tls is False
    with pytest.raises(InvalidInput, match="timeout_seconds"):
        _read(timeout_seconds=0)


def test_forms_may_store_values_as_text() -> None:
    settings = _read(verify_tls="false", timeout_seconds="2.5", max_workers="8", ca_bundle="/etc/ca.pem")
    assert (settings.verify_tls, settings.timeout_seconds, settings.max_workers) == (False, 2.5, 8)
    assert settings.ca_bundle == Path("/etc/ca.pem")


@pytest.mark.parametrize("hosts", ["a.test, b.test", "a.test b.test", ["a.test", "b.test"]])
def test_hosts_may_be_listed_as_text_or_json(hosts: str | list[str]) -> None:
    assert _read(presigned_hosts=hosts).presigned_hosts == ("a.test", "b.test")


def test_fields_that_nobody_knows_are_ignored() -> None:
    assert _read(some_other_tool={"a": 1}) == _read()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", f"{SECRET}"),
        ("verify_tls", SECRET),
        ("timeout_seconds", SECRET),
        ("timeout_seconds", -1),
        ("max_workers", 0),
        ("max_workers", 65),
        ("part_size_mib", 4),
        ("part_size_mib", 5121),
        ("password", {"not": SECRET}),
    ],
)
def test_a_value_that_is_not_usable_is_refused_with_its_field_and_connection(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=field) as caught:
        _read(**{field: value})
    assert caught.value.connection == "models"


def test_all_fields_at_fault_are_named_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        _read(port="x", max_workers=0)
    assert "port: " in str(caught.value)
    assert "max_workers: " in str(caught.value)


@pytest.mark.parametrize("field", ["port", "timeout_seconds", "max_workers"])
def test_a_refusal_never_quotes_a_value(field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _read(**{field: SECRET, "password": SECRET})
    assert SECRET not in f"{caught.value}{caught.value.__cause__}{caught.value!r}"


def test_secrets_do_not_show_in_the_representation() -> None:
    assert SECRET not in repr(_read(password=SECRET, proxy=f"http://u:{SECRET}@proxy.test"))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _read().host = "x"  # type: ignore[misc]


@pytest.mark.parametrize("host", ["https://acme.com/team/", " https://acme.com/team\n", "acme.com/team"])
def test_a_host_may_be_bare_and_have_blanks_around_it(host: str) -> None:
    assert base_url(host, 8443) == "https://acme.com:8443/team"
