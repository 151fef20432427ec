"""What a task may leave in XCom: results live in the metadata database, which is no place for bulk.

Imports nothing of the package, so that the core's values, which users turn into XCom by ``to_xcom()``, can ask here how
much that may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

XCOM_LIMIT = 4096  # bytes of JSON


def fitted(fields: Mapping[str, JsonValue], spare: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a dictionary that fits; ``truncated`` is true when something had to go.

    :param fields: the whole.
    :param spare: what to put in place of which field while it does not fit, in this order.
    """
    xcom = dict(fields)
    for field, instead in spare.items():
        if _size(xcom) > XCOM_LIMIT:
            xcom |= {field: instead, "truncated": True}
    return xcom


def fitted_lists(
    fields: Mapping[str, JsonValue], lists: Mapping[str, list[JsonValue]], shorten: Sequence[str]
) -> dict[str, JsonValue]:
    """Return a dictionary with lists that are as long as they have room; ``truncated`` is true when one was cut.

    :param fields: what stays.
    :param lists: what is cut at its end.
    :param shorten: the lists in the order in which they are cut.
    """
    xcom: dict[str, JsonValue] = {**fields, **lists}
    for name in shorten:
        rest = lists[name]
        while rest and _size({**xcom, "truncated": True}) > XCOM_LIMIT:
            rest = rest[: len(rest) // 2]  # by halves: a list may hold thousands
            xcom |= {name: rest, "truncated": True}
    return xcom


def _size(xcom: Mapping[str, JsonValue]) -> int:
    return len(json.dumps(xcom).encode())
