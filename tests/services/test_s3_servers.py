"""Servers without conditions, which are refused, and which leave nothing."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
from google.auth.credentials import AnonymousCredentials

from airflow_provider_modelsync.core.errors import NotSupported, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.registries.modelstore.registry import ModelStore
from airflow_provider_modelsync.core.registries.modelstore.settings import BucketSettings
from tests.core.registries.modelstore.buckets import BucketStore
from tests.services.s3_servers import running_gcs_emulator, running_localbucket, running_nanio, running_rclone
from tests.standins.s3 import S3StandIn

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("running", [running_localbucket, running_nanio, running_rclone])
def test_servers_that_ignore_conditions_are_refused_and_end(running: object) -> None:
    assert callable(running)
    with running() as service, S3StandIn(service) as s3:
        # Past the stand-in, which would keep the conditions itself.
        store = BucketStore(s3, {"endpoint_url": service.endpoint})
        with pytest.raises(NotSupported, match="Two pushes could mix"):
            store.test()
        assert store.keys() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(service.endpoint).port or 0))


def test_an_emulator_of_google_s_that_knows_no_conditions_is_refused() -> None:
    with running_gcs_emulator() as service:
        fields = {"host": "gs://test/models", "endpoint_url": service.endpoint}
        credentials = AnonymousCredentials()
        store = ModelStore(BucketSettings.read("gcs", fields), lambda: credentials)
        with pytest.raises(RegistryUnavailable, match="gave no generation"):
            SyncDriver().run(store.test())
