"""What Airflow is told about the provider, held against Airflow's own schemas and against the code."""

from __future__ import annotations

import inspect
import json
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType, UnionType
from typing import Any, get_args
from unittest.mock import MagicMock

import airflow
import jsonschema
import pytest
from airflow.sdk import BaseOperator, BaseSensorOperator
from airflow.triggers.base import BaseTrigger
from pydantic import SecretStr

import airflow_provider_modelsync
from airflow_provider_modelsync.compat import READS_FORMS, BaseHook
from airflow_provider_modelsync.hooks.registry import RegistryHook
from airflow_provider_modelsync.provider_info import get_provider_info
from tests.support.versions import masker, since_3_3
from tests.ui.forms import FORMS, STANDARD
from tests.ui.servers import SERVERS

INFO = get_provider_info()
CONNECTION_TYPES: list[dict[str, Any]] = INFO["connection-types"]
KINDS: dict[str, type] = {
    "hooks": BaseHook,
    "operators": BaseOperator,
    "sensors": BaseSensorOperator,
    "triggers": BaseTrigger,
}
each_type = pytest.mark.parametrize("declared", CONNECTION_TYPES, ids=lambda declared: declared["connection-type"])


def schema(name: str) -> dict[str, Any]:
    """Return a schema that is part of Airflow."""
    (found,) = (path for root in airflow.__path__ if (path := Path(root) / name).exists())
    return json.loads(found.read_text())


def modules_of(package: str) -> list[ModuleType]:
    """Import the modules of one of this provider's packages."""
    parent = import_module(f"{airflow_provider_modelsync.__name__}.{package}")
    return [import_module(f"{parent.__name__}.{module.name}") for module in pkgutil.iter_modules(parent.__path__)]


def offers(module: ModuleType, kind: type) -> bool:
    """Whether a module defines a class that users put into DAGs, or build upon."""
    return any(
        issubclass(found, kind) and found.__module__ == module.__name__ and _is_whole(found)
        for _, found in inspect.getmembers(module, inspect.isclass)
    )


def _is_whole(found: type) -> bool:
    ours = [base for base in found.__mro__ if base.__module__.startswith(airflow_provider_modelsync.__name__)]
    does_something = any(name in vars(base) for base in ours for name in ("execute", "poke"))
    return not issubclass(found, BaseOperator) or (does_something and not inspect.isabstract(found))


def test_it_follows_airflows_schema() -> None:
    jsonschema.validate(INFO, schema("provider_info.schema.json"))


def test_the_connection_forms_follow_airflows_schema() -> None:
    jsonschema.validate(CONNECTION_TYPES, schema("provider.yaml.schema.json")["properties"]["connection-types"])


@since_3_3
def test_it_holds_no_key_that_airflow_does_not_know() -> None:
    assert set(INFO) <= set(schema("provider_info.schema.json")["properties"])


def test_it_names_the_distribution() -> None:
    assert INFO["package-name"] == "airflow-provider-modelsync"


@pytest.mark.parametrize("section", KINDS)
def test_it_lists_the_modules_that_have_something_to_offer(section: str) -> None:
    listed = {module for entry in INFO[section] for module in entry["python-modules"]}

    assert listed == {module.__name__ for module in modules_of(section) if offers(module, KINDS[section])}


@pytest.mark.parametrize("section", KINDS)
def test_every_listed_module_belongs_to_a_declared_integration(section: str) -> None:
    integrations = {integration["integration-name"] for integration in INFO["integrations"]}

    assert {entry["integration-name"] for entry in INFO[section]} <= integrations


def test_every_hook_class_has_a_connection_type() -> None:
    classes = {
        f"{found.__module__}.{found.__qualname__}"
        for module in modules_of("hooks")
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, RegistryHook) and hasattr(found, "conn_type")
    }
    assert {declared["hook-class-name"] for declared in CONNECTION_TYPES} == classes


@each_type
def test_the_hook_agrees_with_its_connection_type(declared: dict[str, Any]) -> None:
    hook = resolve_name(declared["hook-class-name"])

    assert issubclass(hook, RegistryHook)
    assert (hook.conn_type, hook.hook_name) == (declared["connection-type"], declared["hook-name"])
    assert hook.registry_type().conn_type == declared["connection-type"]
    assert hook.conn_name_attr == "registry_conn_id"
    assert hook.default_conn_name == f"{hook.conn_type.removesuffix('_hub')}_default"


@each_type
def test_the_form_is_declared_in_one_place_only(declared: dict[str, Any]) -> None:
    hook = resolve_name(declared["hook-class-name"])
    source = inspect.getsource(hook)

    for method in ("get_connection_form_widgets", "get_ui_field_behaviour"):
        assert method not in source
        assert (method in vars(hook)) == (not READS_FORMS)


@pytest.mark.skipif(READS_FORMS, reason="this Airflow reads the declaration itself")
@each_type
def test_hooks_tell_an_older_airflow_the_declared_form(declared: dict[str, Any]) -> None:
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
    from airflow.providers_manager import ProvidersManager

    ProvidersManager()._cleanup()  # it knows no form of a hook that it was asked for elsewhere, where there is no FAB
    forms = HookMetaService.hook_meta_data()
    # What it puts into the place of FAB it leaves there, and hooks that are loaded with that are none.
    for name in [name for name, module in sys.modules.items() if isinstance(module, MagicMock)]:
        del sys.modules[name]
    (form,) = (one for one in forms if one.connection_type == declared["connection-type"])

    assert form.hook_name == declared["hook-name"]
    standard = form.standard_fields.model_dump(by_alias=True, exclude_none=True)
    behaviour = declared["ui-field-behaviour"]
    told = {name.removeprefix("url_"): field for name, field in standard.items()}
    assert {name for name, field in told.items() if field.get("hidden")} == set(behaviour["hidden-fields"])
    assert {name: field["title"] for name, field in told.items() if field.get("title")} == behaviour["relabeling"]
    assert set(form.extra_fields) == set(declared["conn-fields"])
    for name, field in declared["conn-fields"].items():
        told, schema = form.extra_fields[name], field["schema"]
        assert told["schema"]["title"] == field["label"]
        assert told["description"] == field["description"]
        assert told["value"] == schema.get("default")
        kept = {key: schema[key] for key in ("format", "enum") if key in schema}
        kind = "string" if "number" in schema["type"] else schema["type"][0]
        assert told["schema"] == {"title": field["label"], "type": [kind, "null"], **kept}


@each_type
def test_connection_types_and_fields_have_names_that_the_form_can_split(declared: dict[str, Any]) -> None:
    assert not [name for name in (declared["connection-type"], *declared["conn-fields"]) if "__" in name]


@each_type
def test_the_browser_s_tests_know_this_form_and_a_server_for_it(declared: dict[str, Any]) -> None:
    form = FORMS[declared["connection-type"]]
    expected = {
        name: field.label for section, fields in form.items() if section != STANDARD for name, field in fields.items()
    }

    assert {name: field["label"] for name, field in declared["conn-fields"].items()} == expected
    assert declared["connection-type"] in SERVERS


@each_type
def test_no_placeholder_looks_like_a_value(declared: dict[str, Any]) -> None:
    shown = declared["ui-field-behaviour"]["placeholders"]

    assert {name: text for name, text in shown.items() if " " not in text} == {}


@each_type
def test_every_form_field_is_read_by_the_registry(declared: dict[str, Any]) -> None:
    settings = resolve_name(declared["hook-class-name"]).registry_type().settings_type

    assert set(declared["conn-fields"]) <= set(settings.model_fields)


@each_type
def test_every_form_field_may_be_left_empty(declared: dict[str, Any]) -> None:
    for name, field in declared["conn-fields"].items():
        assert "null" in field["schema"]["type"], name


@each_type
def test_every_secret_is_masked_by_its_name(declared: dict[str, Any]) -> None:
    settings = resolve_name(declared["hook-class-name"]).registry_type().settings_type
    secret = {name for name, field in settings.model_fields.items() if _is_secret(field.annotation)}
    entered_hidden = {
        name for name, field in declared["conn-fields"].items() if field["schema"].get("format") == "password"
    }

    assert "password" in secret
    unmasked = {name for name in secret if not masker.should_hide_value_for_key(name)}
    assert unmasked <= (set() if READS_FORMS else {"proxy"})  # what docs/upgrading.md says of Airflow 3.0
    # A plain field would show three stars for what is masked.
    masked = {name for name in declared["conn-fields"] if masker.should_hide_value_for_key(name)}
    assert masked | secret & set(declared["conn-fields"]) <= entered_hidden


def _is_secret(annotation: Any) -> bool:
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return SecretStr in kinds


def test_reading_it_imports_nothing_but_the_standard_library() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        "from airflow_provider_modelsync.provider_info import get_provider_info\n"
        "get_provider_info()\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)\n"
    )
    run = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)

    assert run.stdout.split() == ["airflow_provider_modelsync"]


def test_airflow_finds_it_by_its_entry_point() -> None:
    from importlib.metadata import distribution

    points = distribution("airflow-provider-modelsync").entry_points.select(group="apache_airflow_provider")

    assert [point.load() for point in points] == [get_provider_info]
