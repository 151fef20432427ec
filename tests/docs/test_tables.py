"""Tables of the documents say what the code does."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import getmembers, isabstract, isclass
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger

from airflow_provider_modelsync.core import errors
from airflow_provider_modelsync.core.registries.base import Capability
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.provider_info import get_provider_info
from tests.docs.documents import ROOT, code_in, table

PACKAGE = "airflow_provider_modelsync"
TYPES: dict[str, dict[str, Any]] = {
    entry["connection-type"]: entry for entry in get_provider_info()["connection-types"]
}
NETWORK = {"verify_tls", "ca_bundle", "client_cert", "client_key", "proxy", "timeout_seconds"}
TRANSFER = {"max_workers", "min_rate_kib_s", "part_size_mib", "presigned_hosts"}
TRUST = {"signatures", "trusted_signers", "signing_key", "signing_key_password", "signing_certificate"}
OFFERS = {
    "Push": {Capability.PUSH},
    "Pull": {Capability.PULL},
    "Choose the version": {Capability.CHOOSE_VERSION},
    "Replace (`force`)": {Capability.FORCE},
    "Labels, metadata": {Capability.LABELS, Capability.METADATA},
    "Aliases": {Capability.ALIASES},
    "Signatures": {Capability.SIGNATURES},
    "Delete": {Capability.DELETE},
    "Deploy": {Capability.DEPLOY},
    "Predict": {Capability.PREDICT},
}


def hook_type(conn_type: str) -> type[RegistryHook]:
    module, _, name = TYPES[conn_type]["hook-class-name"].rpartition(".")
    found: type[RegistryHook] = getattr(import_module(module), name)
    return found


def test_what_each_registry_offers() -> None:
    rows = table("README.md", "Connection type")

    assert [code_in(row["Connection type"])[0] for row in rows] == list(TYPES)
    for row, conn_type in zip(rows, TYPES, strict=True):
        offered = hook_type(conn_type).registry_type().capabilities
        for column, capabilities in OFFERS.items():
            assert row[column].startswith("yes" if capabilities <= offered else "no"), (conn_type, column)


def test_what_each_connection_takes() -> None:
    rows = {code_in(row["Type"])[0]: set(code_in(row["Extras of its own"])) for row in table("README.md", "Type")}

    assert rows == {name: entry["conn-fields"].keys() - NETWORK - TRANSFER - TRUST for name, entry in TYPES.items()}
    for name, entry in TYPES.items():
        assert entry["conn-fields"].keys() >= NETWORK
        moves_bytes = Capability.PUSH in hook_type(name).registry_type().capabilities
        assert (entry["conn-fields"].keys() & TRANSFER != set()) == moves_bytes
        keeps_signatures = Capability.SIGNATURES in hook_type(name).registry_type().capabilities
        assert entry["conn-fields"].keys() & TRUST == (TRUST if keeps_signatures else set())


def test_the_page_of_trust_names_the_fields_about_it() -> None:
    rows = table("docs/trust.md", "Field")

    assert {name for row in rows for name in code_in(row["Field"])} == TRUST


def page_of(conn_type: str) -> Path:
    """Return the page that the README's table leads to."""
    (row,) = (row for row in table("README.md", "Connection type") if f"`{conn_type}`" in row["Connection type"])
    found = re.search(r"\]\((docs/[\w-]+\.md)\)", row["Connection type"])
    assert found
    return ROOT / found[1]


@pytest.mark.parametrize("conn_type", TYPES)
def test_each_registry_s_page_names_all_its_fields(conn_type: str) -> None:
    page = page_of(conn_type).read_text()
    fields = (
        TYPES[conn_type]["conn-fields"].keys() - TRUST - (NETWORK if conn_type in ("modelstore", "pieces") else set())
    )

    assert {field for field in fields - {"presigned_hosts"} if f"`{field}`" not in page} == set()


def test_which_classes_there_are() -> None:
    info = get_provider_info()
    modules = {
        module
        for kind in ("operators", "sensors", "triggers")
        for entry in info[kind]
        for module in entry["python-modules"]
    }
    there = {
        (name, module.removeprefix(f"{PACKAGE}."))
        for module in modules
        for name, kind in getmembers(import_module(module), isclass)
        if kind.__module__ == module
        and issubclass(kind, (BaseOperator, BaseTrigger))
        and not (name.startswith("_") or isabstract(kind) or module.endswith(".base"))
    }
    told = set()
    for row in table("README.md", "Class"):
        names, places = code_in(row["Class"]), code_in(row["Module"])
        family = places[0].partition(".")[0]
        spelled = [place if place.startswith(family) else f"{family}{place}" for place in places]
        told |= set(zip(names, spelled if len(spelled) == len(names) else spelled * len(names), strict=True))

    assert told == there


@pytest.mark.parametrize(("kind", "first"), [(errors.Retryable, "Retried"), (errors.Permanent, "Not retried")])
def test_which_errors_are_retried(kind: type, first: str) -> None:
    named = [name for row in table("docs/operations.md", first) for name in code_in(row[first])]

    assert sorted(named) == sorted(
        error.__name__ for error in kind.__subclasses__() if error.__module__ == errors.__name__
    )
