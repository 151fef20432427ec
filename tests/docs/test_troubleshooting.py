"""``docs/troubleshooting.md`` holds every message that users can see and that has a remedy."""

from __future__ import annotations

import pytest

from airflow_provider_modelsync.core.errors import Permanent
from airflow_provider_modelsync.core.http.faults import CREDENTIALS, TOO_LARGE
from airflow_provider_modelsync.core.http.storage import remedies_by_code
from tests.docs.documents import code_in, table
from tests.docs.messages import FILLED_IN, kinds, messages, warnings

DOCUMENT = "docs/troubleshooting.md"


def _rows(first: str, column: str = "What to do") -> dict[str, str]:
    return {row[first].strip("`").replace("\\|", "|"): row[column] for row in table(DOCUMENT, first)}


def test_each_message_with_a_remedy_is_in_it() -> None:
    assert _rows("Message") == {message.text: message.remedy for message in messages() if message.text != FILLED_IN}


def test_each_class_of_errors_is_in_it() -> None:
    assert _rows("Class") == {name: kind.remedy for name, kind in kinds().items()}
    retried = {name: "no" if issubclass(kind, Permanent) else "yes" for name, kind in kinds().items()}
    assert _rows("Class", "Retried") == retried


def test_each_warning_is_in_it() -> None:
    told = _rows("Warning")
    assert told.keys() == warnings()
    assert all(remedy.strip("? ") for remedy in told.values())


def test_each_code_of_a_storage_that_has_a_remedy_is_in_it() -> None:
    told = {code: row["What to do"] for row in table(DOCUMENT, "Code") for code in code_in(row["Code"])}
    assert told == remedies_by_code()


@pytest.mark.parametrize(("status", "remedy"), [("401, 403", CREDENTIALS), ("413", TOO_LARGE)])
def test_what_statuses_mean_is_in_it(status: str, remedy: str) -> None:
    assert _rows("Status")[status] == remedy
