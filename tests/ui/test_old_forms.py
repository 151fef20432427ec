"""The connection form before Airflow 3.2, with a browser: all further fields in one section, by fewer kinds of widgets.

``make test-ui-3.0`` and ``make test-ui-3.1`` have such an Airflow serve the pages.
"""

from __future__ import annotations

import pytest

from scripts.local_airflow import LocalAirflow
from tests.ui.forms import EXTRA, FORMS, JSON, STANDARD
from tests.ui.page import ConnectionsPage
from tests.ui.test_connection_forms import TYPES, stored

pytestmark = [pytest.mark.ui, pytest.mark.slow]

each_type = pytest.mark.parametrize("conn_type", TYPES)


@pytest.fixture(autouse=True)
def old_enough(is_old: bool) -> None:
    if not is_old:
        pytest.skip("tests/ui/test_connection_forms.py has what this Airflow shows")


@each_type
def test_the_form_shows_the_same_fields_and_no_other(connections: ConnectionsPage, conn_type: str) -> None:
    sections = FORMS[conn_type]
    form = connections.add("new", TYPES[conn_type]["hook-name"])

    assert form.sections() == [STANDARD, EXTRA, JSON]
    standard = [field.label for field in sections[STANDARD].values()]
    assert [label.capitalize() for label in form.labels(STANDARD)] == [label.capitalize() for label in standard]
    further = [field.label for name, fields in sections.items() if name != STANDARD for field in fields.values()]
    assert form.labels(EXTRA) == further


@each_type
def test_what_is_entered_is_stored(airflow: LocalAirflow, connections: ConnectionsPage, conn_type: str) -> None:
    conn_id = f"old_{conn_type}"
    extras = TYPES[conn_type]["conn-fields"]
    form = connections.add(conn_id, TYPES[conn_type]["hook-name"])
    form.enter("host", "https://registry.example")
    form.open(EXTRA)
    entered = {}
    for name in extras:
        if form.widget(name) == "text":
            entered[name] = f"of {name}"
            form.enter(name, entered[name])
    form.save()

    kept = stored(airflow, conn_id)
    assert len(entered) > 3
    assert {name: kept[name] for name in entered} == entered
    assert kept["host"] == "https://registry.example"
