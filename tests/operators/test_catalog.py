"""Operators that list, label and delete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset

from airflow_provider_modelsync.compat import AirflowFailException
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.operators.catalog import (
    DeleteModelOperator,
    GetModelOperator,
    LabelModelOperator,
    ListModelsOperator,
    ListModelVersionsOperator,
)
from tests.support.versions import serialize


@pytest.fixture
def hook(modelstore: Path, source: Path) -> ModelStoreHook:
    """A store with two models."""
    hook = ModelStoreHook("modelsync_default")
    hook.push(source, "letters:v1", labels={"stage": "production"})
    hook.push(source, "digits:v1", labels={"stage": "candidate"})
    return hook


def test_list_returns_plain_dictionaries_newest_first(hook: ModelStoreHook, context: Any) -> None:
    listed = ListModelsOperator(task_id="list").execute(context)

    assert [version["ref"] for version in listed] == ["digits:v1", "letters:v1"]
    assert json.loads(json.dumps(listed)) == listed == serialize(listed)


def test_list_chooses_by_query(hook: ModelStoreHook, context: Any) -> None:
    listed = ListModelsOperator(task_id="list", query="label:stage=production").execute(context)

    assert [version["name"] for version in listed] == ["letters"]


def test_list_of_an_empty_store_is_empty(modelstore: Path, context: Any) -> None:
    assert ListModelsOperator(task_id="list").execute(context) == []


def test_list_refuses_a_query_that_makes_no_sense(hook: ModelStoreHook, context: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"'stage:production'.*argument 'query'"):
        ListModelsOperator(task_id="list", query="stage:production").execute(context)


def test_label_merges_removes_and_returns_the_version(hook: ModelStoreHook, context: Any) -> None:
    labelled = LabelModelOperator(task_id="label", model="digits:v1", labels={"stage": None, "team": "vision"}).execute(
        context
    )

    assert labelled["labels"] == hook.get("digits:v1").labels == {"team": "vision"}
    assert json.loads(json.dumps(labelled)) == labelled == serialize(labelled)


def test_label_tells_outlet_assets(hook: ModelStoreHook, context: Any) -> None:
    asset = Asset("modelsync://modelsync_default/digits")
    LabelModelOperator(task_id="label", model="digits", labels={"stage": "production"}, outlets=[asset]).execute(
        context
    )

    assert context["outlet_events"][asset].extra["version"] == "v1"


def test_label_of_a_missing_version_is_permanent(hook: ModelStoreHook, context: Any) -> None:
    with pytest.raises(AirflowFailException, match="digits:v9"):
        LabelModelOperator(task_id="label", model="digits:v9", labels={"stage": "production"}).execute(context)


def test_delete_repeats_without_an_error(hook: ModelStoreHook, context: Any) -> None:
    operator = DeleteModelOperator(task_id="delete", model="digits:v1")

    assert operator.execute(context) == {"ref": "digits:v1", "deleted": True}
    assert operator.execute(context) == {"ref": "digits:v1", "deleted": False}
    assert [version.ref for version in hook.list_models()] == ["letters:v1"]


def test_delete_demands_an_exact_version(hook: ModelStoreHook, context: Any) -> None:
    with pytest.raises(AirflowFailException, match="exact version"):
        DeleteModelOperator(task_id="delete", model="digits").execute(context)
    assert hook.get("digits").version == "v1"


def test_lists_are_limited_and_may_be_references_only(hook: ModelStoreHook, context: Any) -> None:
    assert ListModelsOperator(task_id="list", refs_only=True).execute(context) == ["digits:v1", "letters:v1"]
    assert ListModelsOperator(task_id="list", refs_only="yes", limit="1").execute(context) == ["digits:v1"]
    (listed,) = ListModelsOperator(task_id="list", labels={"stage": "production"}).execute(context)
    assert listed["name"] == "letters"


def test_all_versions_of_a_model_are_listed_newest_first(hook: ModelStoreHook, source: Path, context: Any) -> None:
    (source / "weights.bin").write_bytes(b"newer")
    hook.push(source, "digits:v2", labels={"stage": "production"})

    def listed(**arguments: Any) -> Any:
        return ListModelVersionsOperator(task_id="list", model="digits", refs_only=True, **arguments).execute(context)

    assert listed() == ["digits:v2", "digits:v1"]
    assert listed(limit=1) == listed(labels={"stage": "production"}) == listed(query="label:stage=production")
    assert ListModelVersionsOperator(task_id="list", model="none").execute(context) == []
    (whole, _) = ListModelVersionsOperator(task_id="list", model="digits:v1").execute(context)
    assert json.loads(json.dumps(whole)) == whole == hook.get("digits:v2").to_xcom()


def test_a_list_that_airflow_would_not_map_over_says_what_helps(
    hook: ModelStoreHook, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "1")
    with DAG("mapped"):
        alone = ListModelsOperator(task_id="alone")
        mapped = ListModelsOperator(task_id="list", limit="{{ limit }}")
        LabelModelOperator.partial(task_id="label", labels={"a": "b"}).expand(model=mapped.output)

    assert len(alone.execute(context)) == 2
    mapped.limit = None  # type: ignore[assignment]
    with pytest.raises(AirflowFailException, match=r"2 entries.*max_map_length is 1.*argument 'limit'"):
        mapped.execute(context)
    mapped.limit = 1
    assert len(mapped.execute(context)) == 1


def test_get_returns_a_version_or_says_what_differs(hook: ModelStoreHook, context: Any) -> None:
    asset = Asset("modelsync://modelsync_default/digits")
    get = GetModelOperator(task_id="get", model="digits", outlets=[asset])
    found = get.execute(context)

    assert found == hook.get("digits").to_xcom()
    assert context["outlet_events"][asset].extra["version"] == "v1"
    with pytest.raises(AirflowFailException, match="label 'stage' is 'candidate', not 'production'"):
        GetModelOperator(task_id="get", model="digits:v1", labels={"stage": "production"}).execute(context)
