"""The distribution that users install: what the wheel holds, and that Airflow finds it in a fresh environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from email.parser import HeaderParser
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest

import airflow_provider_modelsync

ROOT = Path(__file__).parents[1]
PACKAGE = "airflow_provider_modelsync"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    directory = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(directory), str(ROOT))
    subprocess.run(command, check=True, capture_output=True)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The paths in the wheel."""
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, suffix: str) -> str:
    """Return the text of the one file in the wheel whose path ends so."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(suffix))
        return archive.read(name).decode()


def test_the_wheel_is_pure_python_of_this_version(wheel: Path) -> None:
    assert wheel.name == f"{PACKAGE}-{airflow_provider_modelsync.__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_whole_package(names: set[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("*.py")}

    assert modules <= names
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/provider_info.py"} <= names


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {PACKAGE}
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []


def test_the_wheel_holds_the_licence(wheel: Path) -> None:
    assert "Apache License" in read(wheel, ".dist-info/licenses/LICENSE")


def test_the_wheel_names_airflows_entry_point(wheel: Path) -> None:
    assert read(wheel, "entry_points.txt").split() == [
        "[console_scripts]",
        "modelsync",
        "=",
        f"{PACKAGE}.cli.definition:main",
        "[apache_airflow_provider]",
        "provider_info",
        "=",
        f"{PACKAGE}.provider_info:get_provider_info",
    ]


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    told = HeaderParser().parsestr(read(wheel, ".dist-info/METADATA"))

    assert told["Name"] == "airflow-provider-modelsync"
    assert told["License-Expression"] == "Apache-2.0"
    assert "Framework :: Apache Airflow :: Provider" in told.get_all("Classifier", [])
    assert "Typing :: Typed" in told.get_all("Classifier", [])
    (airflow,) = (one for one in told.get_all("Requires-Dist", []) if one.startswith("apache-airflow>"))
    assert airflow == "apache-airflow>=3.0.6"


def test_what_is_tested_is_what_is_installed() -> None:
    """The wheel with other versions of Airflow and Python; here this checkout."""
    told = json.loads(distribution("airflow-provider-modelsync").read_text("direct_url.json") or "")
    place = ROOT if told.get("dir_info", {}).get("editable") else Path(sysconfig.get_path("purelib"))

    assert Path(airflow_provider_modelsync.__file__).parents[1] == place


def test_airflow_finds_the_provider_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Airflow itself is that of this environment; this checkout is there, too, but what is installed comes first."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON", "COV"))}
    env["AIRFLOW_HOME"] = str(tmp_path / "home")
    python = tmp_path / "venv" / "bin" / "python"

    def uv(*arguments: str) -> None:
        subprocess.run((sys.executable, "-m", "uv", *arguments), check=True, capture_output=True, env=env)

    uv("venv", "--python", sys.executable, str(python.parents[1]))
    uv("pip", "install", "--python", str(python), "--no-deps", str(wheel))
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "airflow.pth").write_text(sysconfig.get_path("purelib"))
    script = (
        f"import json, {PACKAGE}\n"
        "from airflow.providers_manager import ProvidersManager\n"
        f"found = ProvidersManager().providers['airflow-provider-modelsync']\n"
        f"print(json.dumps([{PACKAGE}.__file__, found.version]))\n"
    )
    run = subprocess.run((str(python), "-c", script), env=env, cwd=tmp_path, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    loaded, version = json.loads(run.stdout.splitlines()[-1])
    assert Path(loaded).is_relative_to(site)
    assert version == airflow_provider_modelsync.__version__
