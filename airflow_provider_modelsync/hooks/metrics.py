"""What transfers report to Airflow's stats, once each: ``modelsync.<verb>.<what>``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_modelsync.compat import stats
from airflow_provider_modelsync.core.models import SyncReport, TransferStats
from airflow_provider_modelsync.core.transfer.progress import Tally

log = logging.getLogger("modelsync")

Note = Callable[[TransferStats | SyncReport | None], None]


@contextmanager
def measured(verb: str, tally: Tally | None, tags: Mapping[str, str]) -> Iterator[Note]:
    """Report what the block does, whether it succeeds or fails. Stats only help people: they never fail a transfer.

    :param verb: ``push``, ``pull``, ``sync``, ``deploy`` or ``predict``.
    :param tally: counts what the block moves, if that is what it is for.
    :param tags: for the back ends that take tags.
    :return: what to call with the result; a block that never does so has failed.
    """
    results: list[TransferStats | SyncReport | None] = []
    start = time.monotonic()
    try:
        yield results.append
    finally:
        seconds = time.monotonic() - start
        try:
            _report(f"modelsync.{verb}", results, tally, timedelta(seconds=seconds), tags)
        except Exception as error:
            log.warning("the %s could not be reported to the stats: %s", verb, error)


def _report(
    prefix: str,
    results: Iterable[TransferStats | SyncReport | None],
    tally: Tally | None,
    took: timedelta,
    tags: Mapping[str, str],
) -> None:
    outcome = "failed"
    if tally is None:
        report(prefix, took, {**tags, "outcome": "done" if [*results] else outcome})
        return
    counters = {"bytes": tally.done - tally.passed_over, "resumed_bytes": tally.passed_over}
    for result in results:
        outcome = "done"
        if isinstance(result, SyncReport):
            moved = [version.transfer for version in result.versions if version.transfer]
            counters |= {name: len(result.of(name)) for name in ("copied", "skipped", "failed")}
        else:
            moved = [result or TransferStats()]
            outcome = "skipped" if moved[0].skipped else outcome
        counters["bytes"] = sum(transfer.sent_bytes for transfer in moved)
        counters["resumed_bytes"] = sum(transfer.resumed_bytes for transfer in moved)
    tagged = {**tags, "outcome": outcome}
    report(prefix, took, tagged)
    for name, count in {**counters, "parts_resent": tally.parts_resent}.items():
        stats.incr(f"{prefix}.{name}", count, tags=tagged)


def report(prefix: str, took: timedelta, tags: Mapping[str, str]) -> None:
    """Report how long something took.

    :param prefix: of the metric's name.
    """
    stats.timing(f"{prefix}.seconds", took, tags=dict(tags))


def report_wait(since: Any, conn_type: str, conn_id: str) -> None:
    """Report how long a task has waited for what is there now.

    :param since: when the task began; nothing is reported when that is no time.
    """
    if not isinstance(since, datetime):
        return
    tags = {"registry": conn_type, "connection": conn_id, "outcome": "done"}
    try:
        report("modelsync.wait", datetime.now(UTC) - since, tags)
    except Exception as error:
        log.warning("the wait could not be reported to the stats: %s", error)
