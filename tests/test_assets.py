"""Models as assets: one way to write each, and nothing in it that belongs elsewhere."""

from __future__ import annotations

import pytest
from airflow.sdk import Asset

from airflow_provider_modelsync.assets import model_asset
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
    asset = model_asset("registry", name)

    assert (asset.name, asset.uri) == (f"{name} (registry)", uri)
    assert Asset(uri).uri == Asset(f"{uri}/").uri == uri


def test_the_same_model_is_written_the_same_however_it_is_typed() -> None:
    assert Asset("modelsync://registry/été").uri == model_asset("registry", "été").uri
    assert Asset("MODELSYNC://registry/fraud").uri == model_asset("registry", "fraud").uri


def test_it_takes_what_an_asset_takes() -> None:
    asset = model_asset("registry", "fraud", group="models", extra={"owner": "risk"})

    assert (asset.group, asset.extra) == ("models", {"owner": "risk"})


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("modelsync://registry", "write modelsync"),
        ("modelsync:///fraud", "write modelsync"),
        ("modelsync://user@registry/fraud", "no credentials"),
        ("modelsync://registry/fraud?token=secret", "no query"),
        ("modelsync://registry/fraud:v1", "not a version"),
    ],
)
def test_what_is_no_model_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Asset(uri)


def test_airflow_makes_them_by_their_scheme() -> None:
    made = lineage.get_hook_lineage_collector().create_asset(
        scheme="modelsync", asset_kwargs={"conn_id": "registry", "name": "fraud"}, asset_extra={"version": "v1"}
    )

    assert made == model_asset("registry", "fraud", extra={"version": "v1"})
