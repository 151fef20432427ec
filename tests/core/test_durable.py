from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_modelsync.core import durable
from tests.core.processes import at_once, running
from tests.core.stores import hidden, write_tree
from tests.support.until import until

KEY = "0123456789ab"
OTHER_KEY = "ba9876543210"
TWO_DAYS_AGO = time.time() - 2 * 86400


def _age(path: Path) -> None:
    os.utime(path, (TWO_DAYS_AGO, TWO_DAYS_AGO))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / f".target.{KEY}"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network disks: locks are granted to everybody."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)


# Staging


def test_staging_is_an_empty_directory_at_the_wanted_path(base: Path) -> None:
    with durable.staging(base) as staging:
        assert staging == base
        assert list(staging.iterdir()) == []


def test_what_is_left_in_staging_is_removed_at_the_end(base: Path) -> None:
    with durable.staging(base) as staging:
        write_tree(staging, {"a/b": b"x"})
    assert hidden(base.parent) == []


def test_what_is_left_in_staging_is_removed_after_an_error(base: Path) -> None:
    def fail() -> None:
        with durable.staging(base) as staging:
            write_tree(staging, {"a/b": b"x"})
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail()
    assert hidden(base.parent) == []


def test_a_renamed_staging_directory_stays(base: Path) -> None:
    target = base.with_name("target")
    with durable.staging(base) as staging:
        write_tree(staging, {"a": b"x"})
        staging.rename(target)
    assert (target / "a").read_bytes() == b"x"


def test_the_next_writer_may_have_the_path_as_soon_as_the_first_has_renamed_its_directory(base: Path) -> None:
    with durable.staging(base) as first:
        first.rename(base.with_name("target"))
        with durable.staging(base) as second:
            write_tree(second, {"a": b"x"})
            second.rename(base.with_name("kept"))
            write_tree(base, {"third": b"is working here"})
    assert (base / "third").exists()


def test_a_second_writer_while_the_first_lives_gets_a_private_directory(base: Path) -> None:
    with durable.staging(base) as first, durable.staging(base) as second:
        assert second != first
        assert second.name.startswith(f"{base.name}.")
        assert list(second.iterdir()) == []
    assert hidden(base.parent) == []


def test_what_a_killed_writer_left_is_taken_up_and_emptied(base: Path) -> None:
    write_tree(base, {"a/b": b"half"})
    with durable.staging(base) as staging:
        assert staging == base
        assert list(staging.iterdir()) == []


def test_a_directory_locked_by_another_process_is_not_taken_up(base: Path) -> None:
    def hold() -> None:
        with durable.staging(base) as staging:
            write_tree(staging, {"alive": b""})
            signal.pause()  # until this process is killed

    with running(hold):
        until(lambda: (base / "alive").exists(), "the other process to stage")
        with durable.staging(base) as staging:
            assert staging != base
            assert (base / "alive").exists()
    with durable.staging(base) as staging:  # its lock has died with it
        assert staging == base


@pytest.mark.usefixtures("no_locks")
def test_where_locks_do_nothing_every_writer_gets_a_private_directory(base: Path) -> None:
    with durable.staging(base) as first, durable.staging(base) as second:
        assert base not in (first, second)
        assert first != second
    assert hidden(base.parent) == []


def test_a_file_in_the_way_leads_to_a_private_directory(base: Path) -> None:
    base.write_bytes(b"not ours")
    with durable.staging(base) as staging:
        assert staging != base
    assert base.read_bytes() == b"not ours"


def test_a_link_in_the_way_is_not_followed(base: Path, tmp_path: Path) -> None:
    elsewhere = write_tree(tmp_path / "elsewhere", {"precious": b""})
    base.symlink_to(elsewhere)
    with durable.staging(base) as staging:
        assert staging != base
    assert (elsewhere / "precious").exists()


def test_many_processes_at_once_never_share_a_directory(base: Path) -> None:
    def work() -> bool:
        for _ in range(20):
            with durable.staging(base) as staging:
                (staging / str(os.getpid())).touch(exist_ok=False)
                time.sleep(0.001)
                if [path.name for path in staging.iterdir()] != [str(os.getpid())]:
                    return False
        return True

    assert at_once(*[work] * 4) == [True] * 4
    assert hidden(base.parent) == []


def test_many_processes_at_once_may_rename_theirs_away(base: Path) -> None:
    def work() -> list[int]:
        found = []
        for turn in range(20):
            with durable.staging(base) as staging:
                for number in range(5):
                    (staging / str(number)).touch(exist_ok=False)
                place = base.with_name(f"{os.getpid()}-{turn}")
                staging.rename(place)
            found.append(len(list(place.iterdir())))
        return found

    assert at_once(*[work] * 4) == [[5] * 20] * 4


@pytest.mark.parametrize("name", [f".target.{OTHER_KEY}", f".target.{OTHER_KEY}.{KEY}"])
def test_directories_of_the_same_family_abandoned_for_a_day_are_swept(base: Path, name: str) -> None:
    abandoned = write_tree(base.with_name(name), {"a": b"x"})
    _age(abandoned)
    with durable.staging(base):
        assert not abandoned.exists()


@pytest.mark.parametrize(
    "name", [f".other.{OTHER_KEY}", f"target.{OTHER_KEY}", f".target.{OTHER_KEY}x", ".target.config", ".target"]
)
def test_what_is_not_of_the_family_is_never_swept(base: Path, name: str) -> None:
    other = write_tree(base.with_name(name), {"a": b"x"})
    _age(other)
    with durable.staging(base):
        pass
    assert (other / "a").exists()


def test_a_file_beside_the_target_is_never_swept(base: Path) -> None:
    file = base.with_name(f".target.{OTHER_KEY}")
    file.touch()
    _age(file)
    with durable.staging(base):
        pass
    assert file.exists()


def test_fresh_directories_of_the_family_are_not_swept(base: Path) -> None:
    fresh = write_tree(base.with_name(f".target.{OTHER_KEY}"), {"a": b"x"})
    with durable.staging(base):
        pass
    assert fresh.exists()


def test_an_old_directory_whose_writer_lives_is_not_swept(base: Path) -> None:
    with durable.staging(base.with_name(f".target.{OTHER_KEY}")) as old:
        _age(old)
        with durable.staging(base):
            assert old.exists()


def test_a_directory_of_ours_is_swept_of_whatever_was_abandoned(tmp_path: Path) -> None:
    abandoned = [write_tree(tmp_path / f".v1.{KEY}", {"a": b""}), tmp_path / f".v2.json.{KEY}"]
    abandoned[1].write_bytes(b"{")
    kept = [write_tree(tmp_path / f".v3.{KEY}", {"a": b""}), tmp_path / "v1.json", tmp_path / f".v3.json.{KEY}"]
    for file in kept[1:]:
        file.write_bytes(b"{")
    for path in [*abandoned, kept[1]]:
        _age(path)
    durable.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


# Files that are there as a whole or not at all


def test_a_created_file_has_its_whole_content(tmp_path: Path) -> None:
    assert durable.create_file(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    assert hidden(tmp_path) == []


def test_a_taken_name_is_not_created_again(tmp_path: Path) -> None:
    assert durable.create_file(tmp_path / "a", b"first")
    assert not durable.create_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert hidden(tmp_path) == []


def test_of_many_processes_one_creates_a_file(tmp_path: Path) -> None:
    def create(number: int) -> Callable[[], bool]:
        return lambda: durable.create_file(tmp_path / "a", bytes([number]))

    results = at_once(*[create(number) for number in range(6)])
    assert sorted(results) == [False] * 5 + [True]
    assert (tmp_path / "a").read_bytes() == bytes([results.index(True)])


def test_a_replaced_file_has_the_new_content(tmp_path: Path) -> None:
    durable.replace_file(tmp_path / "a", b"first")
    durable.replace_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second"
    assert hidden(tmp_path) == []


def test_readers_see_the_old_or_the_new_content_of_a_replaced_file(tmp_path: Path) -> None:
    contents = [bytes([letter]) * 100_000 for letter in b"ab"]
    durable.replace_file(tmp_path / "a", contents[0])

    def write() -> None:
        while True:
            for content in contents:
                durable.replace_file(tmp_path / "a", content)

    with running(write):
        end = time.monotonic() + 0.3
        seen = set()
        while time.monotonic() < end:
            seen.add((tmp_path / "a").read_bytes())
    assert seen <= set(contents)


def test_files_created_one_after_the_other_have_rising_times(tmp_path: Path) -> None:
    for number in range(50):
        durable.create_file(tmp_path / f"{number:02}", b"")
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    assert times == sorted(set(times))


def test_names_of_full_length_can_be_created(tmp_path: Path) -> None:
    assert durable.create_file(tmp_path / ("x" * 255), b"")


def test_a_directory_lock_excludes_other_processes(tmp_path: Path) -> None:
    def count() -> None:
        for _ in range(25):
            with durable.directory_lock(tmp_path):
                number = int((tmp_path / "number").read_text())
                time.sleep(0.0005)
                (tmp_path / "number").write_text(str(number + 1))

    (tmp_path / "number").write_text("0")
    at_once(*[count] * 4)
    assert (tmp_path / "number").read_text() == "100"


@pytest.mark.usefixtures("no_locks")
def test_a_directory_lock_where_locks_do_nothing_does_nothing(tmp_path: Path) -> None:
    with durable.directory_lock(tmp_path), durable.directory_lock(tmp_path):
        pass


def test_a_directory_lock_where_locks_are_refused_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with durable.directory_lock(tmp_path):
        pass


# The rest


def test_a_tree_that_is_not_there_is_removed_without_an_error(tmp_path: Path) -> None:
    durable.remove_tree(tmp_path / "absent")


def test_a_tree_that_cannot_be_removed_is_logged_and_hides_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    durable.remove_tree(tmp_path / "file")
    assert "could not remove" in caplog.text


def test_emptying_a_directory_removes_links_and_not_what_they_lead_to(tmp_path: Path) -> None:
    elsewhere = write_tree(tmp_path / "elsewhere", {"precious": b""})
    directory = write_tree(tmp_path / "directory", {"a/b": b"", "c": b""})
    (directory / "link").symlink_to(elsewhere)
    durable.empty_directory(directory)
    assert list(directory.iterdir()) == []
    assert (elsewhere / "precious").exists()


def test_a_file_system_is_made_durable_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[os.stat_result] = []
    monkeypatch.setattr(durable, "_syncfs", lambda descriptor: synced.append(os.fstat(descriptor)) or 0)
    durable.sync_file_system(tmp_path)
    assert [os.path.samestat(facts, tmp_path.stat()) for facts in synced] == [True]


def test_the_real_call_succeeds_on_a_real_directory(tmp_path: Path) -> None:
    durable.sync_file_system(tmp_path)
    durable.sync_directory(tmp_path)


def test_a_refused_call_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_syncfs", lambda descriptor: -1)
    with pytest.raises(OSError):  # noqa: PT011 - its number is whatever was last
        durable.sync_file_system(tmp_path)
