from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.models import (
    ModelRef,
    ModelVersion,
    Query,
    TransferStats,
    VersionStatus,
)
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.support.objects import containers_of

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def _version(**fields: Any) -> ModelVersion:
    known: dict[str, Any] = {"registry": "modelstore", "name": "fraud", "version": "v1", "status": VersionStatus.READY}
    return ModelVersion(**{**known, **fields})


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("fraud", "fraud", None),
        ("fraud:v1", "fraud", "v1"),
        ("fraud:latest", "fraud", None),
        ("fraud:a:b", "fraud", "a:b"),
    ],
)
def test_a_reference_is_a_name_and_an_exact_version_or_none(text: str, name: str, version: str | None) -> None:
    ref = ModelRef.parse(text)
    assert (ref.name, ref.version) == (name, version)


@pytest.mark.parametrize("text", ["", ":", ":v1", "fraud:"])
def test_a_reference_with_an_empty_part_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ModelRef.parse(text)
    assert caught.value.argument == "model"


@pytest.mark.parametrize("text", ["fraud", "fraud:v1"])
def test_a_reference_reads_as_it_was_written(text: str) -> None:
    assert str(ModelRef.parse(text)) == text


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _version().version = "v2"  # type: ignore[misc]


@pytest.mark.parametrize("status", VersionStatus)
def test_only_a_ready_version_is_ready(status: VersionStatus) -> None:
    assert _version(status=status).ready is (status == "ready")


def test_versions_are_ordered_by_time_then_version_and_those_without_a_time_come_first() -> None:
    oldest = _version(version="v9")
    older, newer = _version(version="v1", created_at=NOON), _version(version="v2", created_at=NOON)
    assert sorted([newer, oldest, older], key=lambda version: version.age_key) == [oldest, older, newer]


def test_the_raw_record_is_a_mapping_of_one_s_own() -> None:
    record = {"name": "größe", "labels": [{"key": "a", "value": None}], "size": 1.5, "none": {}, "made": NOON}
    version = _version(raw=record)
    told = {**record, "made": str(NOON)}
    assert version.raw == told
    version.raw["labels"].clear()
    assert version.raw == version.model_dump()["raw"] == json.loads(version.model_dump_json())["raw"] == told
    assert _version().raw == {}
    assert "record" not in version.model_dump()
    assert "größe" not in repr(version)


@pytest.mark.parametrize("record", ["{}", None, ["a"], {1: {...: 2}.keys}])
def test_what_is_no_mapping_of_json_values_is_at_most_shown(record: Any) -> None:
    if isinstance(record, dict):
        assert isinstance(_version(raw=record).raw["1"], str)
    else:
        with pytest.raises(ValidationError, match="mapping"):
            _version(raw=record)


def test_whatever_its_record_holds_a_version_is_few_objects_for_the_garbage_collector() -> None:
    """A full collection stops an event loop while it looks at all of them, of thousands of versions at a time."""
    rich = {"labels": [{"key": str(number), "value": {"deep": [number]}} for number in range(100)]}
    assert containers_of(_version(raw=rich)) == containers_of(_version(raw={})) <= 6


@pytest.mark.parametrize("time", ["2026-07-01T14:00:00+02:00", "2026-07-01T12:00:00", "2026-07-01T12:00:00Z", NOON])
def test_times_are_utc(time: Any) -> None:
    made = _version(created_at=time).created_at
    assert made == NOON
    assert made.tzinfo is UTC


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-02:00"])
def test_a_time_that_utc_cannot_tell_stays_as_it_is(time: str) -> None:
    assert _version(created_at=time).created_at == datetime.fromisoformat(time)


def test_an_event_carries_what_identifies_a_version() -> None:
    version = _version(digest="sha256:0", created_at=NOON, labels={"stage": "prod"}, metadata={"a": 1})
    assert version.to_event() == {
        "registry": "modelstore",
        "name": "fraud",
        "version": "v1",
        "digest": "sha256:0",
        "created_at": "2026-07-01T12:00:00Z",
    }


def test_an_xcom_holds_plain_json_without_the_raw_record() -> None:
    version = _version(created_at=NOON, raw={"secret": "x"}, transfer=TransferStats(sent_bytes=1))
    xcom = version.to_xcom(path="/models/fraud")
    assert json.loads(json.dumps(xcom)) == xcom
    assert not {"raw", "transfer", "truncated"} & xcom.keys()
    assert (xcom["ref"], xcom["path"], xcom["created_at"]) == ("fraud:v1", "/models/fraud", "2026-07-01T12:00:00Z")


@pytest.mark.row("P14", of="tasks")
def test_an_xcom_that_is_too_large_leaves_out_metadata_and_keeps_labels() -> None:
    xcom = _version(metadata={"note": "x" * XCOM_LIMIT}, labels={"stage": "prod"}).to_xcom()
    assert (xcom["metadata"], xcom["labels"], xcom["truncated"]) == ({}, {"stage": "prod"}, True)
    assert len(json.dumps(xcom).encode()) <= XCOM_LIMIT


def test_an_xcom_that_is_still_too_large_leaves_out_labels_too() -> None:
    xcom = _version(metadata={"note": "x" * XCOM_LIMIT}, labels={"note": "ä" * XCOM_LIMIT}).to_xcom()
    assert (xcom["metadata"], xcom["labels"], xcom["truncated"]) == ({}, {}, True)
    assert len(json.dumps(xcom).encode()) <= XCOM_LIMIT


def test_an_xcom_of_just_the_limit_is_whole() -> None:
    def size(note: int) -> int:
        return len(json.dumps(_version(metadata={"note": "x" * note}).to_xcom()).encode())

    fits = XCOM_LIMIT - size(0)
    assert "truncated" not in _version(metadata={"note": "x" * fits}).to_xcom()
    assert "truncated" in _version(metadata={"note": "x" * (fits + 1)}).to_xcom()


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        (None, True),
        ("", True),
        ("fra", True),
        ("fra ud", True),
        ("fra card", False),
        ("label:stage", True),
        ("label:stage=prod", True),
        ("label:stage=dev", False),
        ("label:team", False),
        ("label:empty=", True),
        ("label:stage=", False),
        ("label:formula=a=b", True),
        ("label:stage=dev,prod", True),
        ("label:stage=dev,test", False),
        ("label:stage=dev,empty=", True),
        ("label:team,stage", True),
        ("label:team,state", False),
        ("label:stage=prod label:stage=dev", False),
        ("label:stage label:stage=prod", True),
        ("fraud label:stage=prod label:empty", True),
        ("card label:stage=prod", False),
    ],
)
def test_a_query_chooses_by_words_of_the_name_and_by_labels(text: str | None, matches: bool) -> None:
    version = _version(labels={"stage": "prod", "empty": "", "formula": "a=b"})
    assert Query.parse(text).matches(version) is matches


def test_labels_given_apart_win_over_those_in_the_text() -> None:
    query = Query.parse("label:stage=dev label:team", {"stage": "prod"})
    assert query.labels == {"stage": "prod", "team": None}


@pytest.mark.parametrize(
    "term", ["name:fraud", "label:", "label:=x", ":x", "label:,a", "creator:me", "module:m", "sort:size"]
)
def test_a_term_that_is_no_word_and_no_label_is_refused(term: str) -> None:
    with pytest.raises(InvalidInput, match="is neither a word nor") as caught:
        Query.parse(f"fraud {term}")
    assert caught.value.argument == "query"
