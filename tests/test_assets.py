"""Models as assets: one way to write each, and nothing in it that belongs elsewhere."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from airflow.sdk import Asset

from airflow_provider_modelsync.assets import model_asset, sanitize_uri
from tests.support.versions import lineage


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("fraud", "modelsync://registry/fraud"),
        ("team/fraud", "modelsync://registry/team/fraud"),
        ("été 100%", "modelsync://registry/%C3%A9t%C3%A9%20100%25"),
        ("a:b", "modelsync://registry/a%3Ab"),
        ("a?b#c", "modelsync://registry/a%3Fb%23c"),
    ],
)
def test_a_model_has_one_uri(name: str, uri: str) -> None:
    assert model_asset("registry", name).uri == uri
    assert Asset(uri).uri == Asset(f"{uri}/").uri == uri


def test_the_same_model_is_written_the_same_however_it_is_typed() -> None:
    assert Asset("a name", "modelsync://registry/été").uri == model_asset("registry", "été").uri
    assert Asset("MODELSYNC://registry/fraud").uri == model_asset("registry", "fraud").uri


def test_a_model_has_a_name_that_people_can_read() -> None:
    assert model_asset("registry", "team/fraud").name == "team/fraud (registry)"
    assert model_asset("registry", "été 100%").name in ("été 100% (registry)", "%C3%A9t%C3%A9 100%25 (registry)")


def test_it_is_ascii_where_airflow_takes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow.sdk.definitions.asset.SQL_ALCHEMY_CONN", "mysql://localhost/airflow", raising=False)

    assert model_asset("registry", "été 100%").name == "%C3%A9t%C3%A9 100%25 (registry)"
    assert model_asset("registry", "été 100%").uri == "modelsync://registry/%C3%A9t%C3%A9%20100%25"


def test_it_takes_what_an_asset_takes() -> None:
    asset = model_asset("registry", "fraud", group="models", extra={"owner": "risk"})

    assert (asset.group, asset.extra) == ("models", {"owner": "risk"})


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("modelsync://registry", "write modelsync"),
        ("modelsync:///fraud", "write modelsync"),
        ("modelsync://registry/fraud?token=secret", "no query"),
        ("modelsync://registry/fraud:v1", "not a version"),
    ],
)
def test_what_is_no_model_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Asset(uri)


def test_credentials_are_refused() -> None:
    # Asked directly: older versions of Airflow leave them out before they ask.
    with pytest.raises(ValueError, match="no credentials"):
        sanitize_uri(urlsplit("modelsync://user@registry/fraud"))


def test_airflow_makes_them_by_their_scheme() -> None:
    made = lineage.get_hook_lineage_collector().create_asset(
        scheme="modelsync", asset_kwargs={"conn_id": "registry", "name": "fraud"}, asset_extra={"version": "v1"}
    )

    assert made == model_asset("registry", "fraud", extra={"version": "v1"})
