"""One Airflow and one browser for all tests of the forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.local_airflow import LocalAirflow, local_api_server
from tests.ui.page import ConnectionsPage, browser_page


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[LocalAirflow]:
    """An api-server without connections."""
    with local_api_server(tmp_path_factory.mktemp("airflow"), database=migrated_database) as running:
        yield running


@pytest.fixture(scope="session")
def series(airflow: LocalAirflow) -> tuple[int, int]:
    """Major and minor of that Airflow's version."""
    major, minor, *_ = airflow.get("/version")["version"].split(".")
    return int(major), int(minor)


@pytest.fixture(scope="session")
def is_old(series: tuple[int, int]) -> bool:
    """Whether that Airflow asks hooks for its forms, which are simpler then."""
    return series < (3, 2)


@pytest.fixture(scope="session")
def hides_secrets(series: tuple[int, int]) -> bool:
    """Whether its forms hide secrets among the further fields while they are typed."""
    return series >= (3, 3)


@pytest.fixture(scope="session")
def connections(airflow: LocalAirflow) -> Iterator[ConnectionsPage]:
    """The page of connections in a browser."""
    with browser_page() as page:
        page.goto(f"{airflow.base_url}/auth/token/login")  # before 3.3 it leads elsewhere than where it was come from
        yield ConnectionsPage(page, airflow.base_url)
