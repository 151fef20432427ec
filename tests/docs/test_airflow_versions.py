"""What `docs/upgrading.md` says of each version of Airflow, asked of the Airflow that these tests run with."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec

import pytest
from airflow import providers_manager
from airflow.sdk.definitions import context
from airflow.triggers.base import BaseTrigger
from packaging.requirements import Requirement
from packaging.version import Version

from airflow_provider_modelsync.operators.deployment import PredictOperator
from tests.docs.documents import ROOT, code_in, table
from tests.support.versions import RETRIES_KILLED, masker

PAGE = "docs/upgrading.md"
ROWS = {row.pop(""): row for row in table(PAGE, "")}
COLUMNS = list(next(iter(ROWS.values())))
AIRFLOW = version("apache-airflow")


def series(text: str) -> str:
    """Return major and minor of the version that a text begins with."""
    return ".".join(map(str, Version(text.split()[0]).release[:2]))


def draws_ranges() -> bool:
    return "conn-fields" in inspect.getsource(providers_manager)


def forms() -> str:
    """Ask for a connection form where nothing is installed that FAB brings."""
    script = """
import sys
sys.modules |= dict.fromkeys(("flask_appbuilder", "flask_babel", "wtforms"))
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
for form in HookMetaService.hook_meta_data():
    print(form.connection_type, len(form.extra_fields or ()))
"""
    told = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True).stdout
    return "yes" if re.search(r"^modelstore [1-9]", told, re.M) else "with FAB installed"


def stores_state() -> bool:
    return "task_state_store" in context.Context.__annotations__


def shares_streams() -> bool:
    return find_spec("airflow.triggers.shared_stream") is not None


def forgets_cleared_tasks() -> bool:
    from airflow.api_fastapi.core_api.datamodels.task_instances import ClearTaskInstancesBody

    return "keep_task_state" in ClearTaskInstancesBody.model_fields


def takes_commands() -> bool:
    return '"cli"' in files("airflow").joinpath("provider_info.schema.json").read_text()


def examples() -> str:
    """Name the examples that this Airflow cannot load: each is loaded by the only thread of a fork."""
    script = """
import os, runpy, sys, airflow.sdk
for example in sys.argv[1:]:
    if not os.fork():
        try:
            runpy.run_path(example)
        except Exception:
            print("cannot", example, flush=True)
        os._exit(0)
    os.wait()
"""
    command = (sys.executable, "-c", script, *map(str, sorted((ROOT / "example_dags").glob("*.py"))))
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    broken = [f"`{name}`" for name in re.findall(r"^cannot .*/(\w+)\.py$", told, re.M)]
    return f"all but {', '.join(broken)}" if broken else "all"


def output_field() -> str:
    (field,) = {"output", "output_"} & {*PredictOperator.template_fields}
    return f"`{field}`"


# Each row's cell in the column of an Airflow, by what that Airflow is and has: nothing of compat decides it.
CELLS: dict[str, Callable[[], str]] = {
    "hooks, operators, sensors, triggers, watchers": lambda: "yes",  # which all other tests show
    "connection forms": forms,
    "sections, ranges and numbers in forms": lambda: "yes" if draws_ranges() else "no",
    "what tasks and watchers remember": lambda: "state store" if stores_state() else "`state_url`",
    "a cleared task remembers its tries before": lambda: "if it is asked to" if forgets_cleared_tasks() else "yes",
    "a waiting task that is ended takes back what it started": lambda: (
        "told by Airflow" if hasattr(BaseTrigger, "on_kill") else "asks for the state"
    ),
    "watchers of the same model share one look": lambda: "yes" if shares_streams() else "no",
    "commands": lambda: "both" if takes_commands() else "`modelsync`",
    "`proxy` is masked in connections": lambda: "yes" if masker.should_hide_value_for_key("proxy") else "add it",
    "a task whose process is killed has its next try": lambda: "yes" if RETRIES_KILLED else "no: clear it",
    "`output` of `PredictOperator` as a rendered template": output_field,
    "[examples](../example_dags)": examples,
}


def test_every_row_is_held() -> None:
    assert list(ROWS) == list(CELLS)


@pytest.mark.parametrize("row", CELLS)
def test_the_table_says_what_this_airflow_can_do(row: str) -> None:
    (column,) = (name for name in COLUMNS if series(name) == series(AIRFLOW))

    assert ROWS[row][column] == CELLS[row]()


def test_each_column_has_an_environment_and_a_target() -> None:
    pinned = {}
    for path in (ROOT / "requirements").glob("airflow-[0-9]*.in"):
        (pin,) = re.findall(r"^apache-airflow==\S+$", path.read_text(), re.M)
        assert f"\n{pin} " in path.with_suffix(".txt").read_text()
        pinned[path.stem.removeprefix("airflow-")] = pin.rpartition("=")[2]

    assert [f"{series(name)}{'b' if 'beta' in name else ''}" for name in COLUMNS] == sorted(pinned)
    assert COLUMNS[0] == pinned["3.0"]
    (sentence,) = re.findall(r"`make test-airflow-.*? runs", (ROOT / PAGE).read_text())
    assert {code.removeprefix("make test-airflow-") for code in code_in(sentence)} == set(pinned)


def test_the_services_are_within_what_is_supported() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    taken = {found.name: found.specifier for found in map(Requirement, dependencies)}
    for row in table(PAGE, "Service"):
        for column, package in (("Airflow", "apache-airflow"), ("boto3 there", "boto3")):
            told = re.findall(r"\d+\.\d+\.\d+", row[column])
            assert [one for one in told if one not in taken[package]] == [], row["Service"]
        assert {series(one) for one in re.findall(r"\d+\.\d+\.\d+", row["Airflow"])} <= set(map(series, COLUMNS))
