"""Text of others on one line, and spans of time as people read them."""

from __future__ import annotations

import pytest

from airflow_provider_modelsync.core.text import span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.04, "0.0 s"),
        (0.4, "0.4 s"),
        (0.6, "1 s"),
        (1, "1 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (5400, "1 h 30 min"),
        (90000, "1 d 1 h"),
        (86400 + 61, "1 d 1 min"),
        (86400 + 3661, "1 d 1 h"),
    ],
)
def test_a_span_of_time_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text
