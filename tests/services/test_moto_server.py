"""moto runs where it is started, and no longer."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from tests.services.moto_server import running_moto


def test_servers_have_ports_of_their_own_and_end() -> None:
    with running_moto() as first, running_moto() as second:
        assert first.endpoint != second.endpoint
        buckets = {service.new_bucket() for service in (first, second)}
        assert buckets <= {bucket["Name"] for bucket in second.client().list_buckets()["Buckets"]}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(first.endpoint).port or 0))
