"""Pictures of the connection forms for the documentation: ``python -m tests.ui.screenshots docs/images``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from airflow_provider_modelsync.provider_info import get_provider_info
from scripts.local_airflow import local_api_server, migrated_database
from tests.ui.page import ConnectionsPage, browser_page

HEIGHT = 2600  # pixels; a form that is longer would be cut


def main(directory: Path) -> None:
    """Write ``connection-<type>.png`` for every type into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        database = migrated_database(Path(scratch) / "database")
        with local_api_server(home, database=database) as airflow, browser_page(HEIGHT) as page:
            connections = ConnectionsPage(page, airflow.base_url)
            for declared in get_provider_info()["connection-types"]:
                conn_type = declared["connection-type"]
                form = connections.add(f"{conn_type}_default", declared["hook-name"])
                target = directory / f"connection-{conn_type}.png"
                target.write_bytes(_small(form.picture()))
                print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def _small(png: bytes) -> bytes:
    return subprocess.run(("pngquant", "--speed=1", "-"), input=png, capture_output=True, check=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
