from __future__ import annotations

import threading

import pytest

from airflow_provider_modelsync.core.errors import RegistryUnavailable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.core.transfer.mover import with_retries
from airflow_provider_modelsync.core.transfer.progress import Progress, Report, Tally, readable


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def reports() -> list[Report]:
    return []


def test_bytes_of_many_threads_add_up() -> None:
    progress = Progress(40_000)
    threads = [threading.Thread(target=lambda: [progress.add(1) for _ in range(10_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.done == 40_000


def test_a_tenth_is_reported(clock: _Clock, reports: list[Report]) -> None:
    progress = Progress(1000, reports.append, clock)
    clock.now = 2
    progress.add(99)
    assert reports == []
    progress.add(1)
    assert reports == [Report(100, 1000, 2)]


def test_ten_seconds_are_reported_however_little_moved(clock: _Clock, reports: list[Report]) -> None:
    progress = Progress(1000, reports.append, clock)
    clock.now = 9.9
    progress.add(1)
    clock.now = 10
    progress.add(1)
    assert reports == [Report(2, 1000, 10)]


def test_a_fast_transfer_reports_once_a_second_at_most(clock: _Clock, reports: list[Report]) -> None:
    progress = Progress(1000, reports.append, clock)
    for _ in range(100):
        clock.now += 0.03
        progress.add(10)
    assert 1 <= len(reports) <= 3


def test_the_end_is_reported_once(clock: _Clock, reports: list[Report]) -> None:
    progress = Progress(1000, reports.append, clock)
    clock.now = 60
    progress.add(1000)
    progress.finish()
    assert reports == [Report(1000, 1000, 60)]


def test_a_slow_reader_of_reports_holds_up_no_other_thread(clock: _Clock) -> None:
    begun, release = threading.Event(), threading.Event()

    def report(_: Report) -> None:
        begun.set()
        release.wait(60)

    progress = Progress(1000, report, clock)
    clock.now = 10
    reporting = threading.Thread(target=progress.add, args=(1,))
    counting = threading.Thread(target=progress.add, args=(1,))
    try:
        reporting.start()
        assert begun.wait(30)
        counting.start()
        counting.join(30)
        assert reporting.is_alive()
        assert not counting.is_alive()
    finally:
        release.set()
        reporting.join()
        counting.join()


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (Report(512, 1024, 2), "512 B of 1.0 KiB (50 %), 256 B/s"),
        (Report(512, 0, 2), "512 B, 256 B/s"),
        (Report(3 << 30, 4 << 30, 3), "3.0 GiB of 4.0 GiB (75 %), 1.0 GiB/s"),
        (
            Report(3 << 30, 4 << 30, 2, passed_over=1 << 30),  # the rate is of what moves
            "3.0 GiB of 4.0 GiB (75 %), 1.0 GiB/s, 1.0 GiB of it was there already",
        ),
    ],
)
def test_a_report_reads_as_share_and_speed(report: Report, text: str) -> None:
    assert str(report) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 << 20, "1.5 GiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_read_as_people_write_them(count: int, text: str) -> None:
    assert readable(count) == text


def test_a_tally_adds_up_all_transfers_of_an_operation() -> None:
    tally = Tally()
    first, second = Progress(10, tally=tally), Progress(5, tally=tally)
    first.add(4)
    first.add(-1)  # of a try that has failed
    second.pass_over(5)

    assert (tally.done, tally.total, tally.passed_over) == (8, 15, 5)
    assert (first.done, second.done) == (3, 5)


def test_only_repetitions_of_a_part_count_as_sent_again() -> None:
    tally = Tally()
    progress = Progress(1, tally=tally)
    outcomes = iter(["sent", RegistryUnavailable("busy"), RegistryUnavailable("busy"), "sent"])

    def part() -> str:
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    for _ in range(2):
        assert with_retries(part, cancel=CancelToken(), backoff=Backoff(first=0), on_repeat=progress.resend) == "sent"
    assert tally.parts_resent == 2
