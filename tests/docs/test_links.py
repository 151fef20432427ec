"""What the documents point to is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.configuration import conf

from airflow_provider_modelsync.provider_info import get_provider_info
from tests.docs.documents import DOCUMENTS, ROOT, anchors, links, settings

LARGEST = 100_000  # bytes of a picture


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_headings_that_are_linked_exist(document: Path) -> None:
    broken = []
    for link in links(document):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.is_relative_to(ROOT) or not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_every_page_is_linked_from_the_first_one() -> None:
    first = ROOT / "README.md"
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(first)}

    assert set(DOCUMENTS) - linked == {first}


def test_every_picture_is_shown_and_every_connection_form_has_one() -> None:
    pictures = {path.relative_to(ROOT) for path in (ROOT / "docs" / "images").iterdir()}
    shown = {
        (document.parent / link).resolve().relative_to(ROOT)
        for document in DOCUMENTS
        for link in links(document)
        if link.endswith((".png", ".svg")) and "://" not in link
    }
    forms = {f"connection-{one['connection-type']}.png" for one in get_provider_info()["connection-types"]}

    assert pictures == shown
    assert forms <= {picture.name for picture in pictures}
    assert max(path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()) < LARGEST


def test_settings_of_airflow_are_called_what_it_calls_them() -> None:
    known = conf.configuration_description
    named = settings()

    assert named
    assert {(section, key) for section, key in named if key not in known.get(section, {}).get("options", {})} == set()
