from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_modelsync.core import durable, writer
from airflow_provider_modelsync.core.writer import Writer
from tests.core.processes import at_once, running
from tests.core.stores import age, hidden, snapshot, write_tree
from tests.support.until import until

KEY = "0123456789ab"
OTHER_KEY = "ba9876543210"
DAY = 86400
ME = writer.this_process()
GONE = replace(ME, pid=2_147_483_000)  # no kernel has that many


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "target"


def _left(place: Path, by: Writer, key: str = KEY, *, seconds: float = 0) -> Path:
    """Leave what a writer leaves that was killed some time ago."""
    private = place.with_name(f".{place.name}.{key}.{by}-0123ef")
    write_tree(private / "model", {"a/b": b"half"})
    private.chmod(0o700)
    age(private, seconds)
    return private


def _kept(_: Path, __: BaseException) -> bool:
    return True


# Staging


def test_staging_is_an_empty_directory(place: Path) -> None:
    with durable.staging(place, KEY) as staging:
        assert list(staging.path.iterdir()) == []


def test_only_its_owner_may_look_into_staging(place: Path) -> None:
    with durable.staging(place, KEY):
        (name,) = hidden(place.parent)
        assert stat.S_IMODE((place.parent / name).stat().st_mode) == 0o700


def test_the_name_tells_machine_boot_and_process(place: Path) -> None:
    with durable.staging(place, KEY):
        (name,) = hidden(place.parent)
    assert name.startswith(f".target.{KEY}.{writer.this_process()}-")
    assert str(os.getpid()) in name.split("-")


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_umask_and_the_parent_decide_about_what_is_published(place: Path, umask: int) -> None:
    place.parent.chmod(0o2775)
    before = os.umask(umask)
    try:
        with durable.staging(place, KEY) as staging:
            assert staging.publish(place)
        durable.create_file(place / "record", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o2777 & ~umask
    assert stat.S_IMODE((place / "record").stat().st_mode) == 0o666 & ~umask


def test_what_is_left_in_staging_is_removed_at_the_end(place: Path) -> None:
    with durable.staging(place, KEY) as staging:
        write_tree(staging.path, {"a/b": b"x"})
    assert hidden(place.parent) == []


def test_what_is_left_in_staging_is_removed_after_an_error(place: Path) -> None:
    def fail() -> None:
        with durable.staging(place, KEY) as staging:
            write_tree(staging.path, {"a/b": b"x"})
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail()
    assert hidden(place.parent) == []


def test_a_published_directory_stays(place: Path) -> None:
    with durable.staging(place, KEY) as staging:
        write_tree(staging.path, {"a": b"x"})
        assert staging.publish(place)
    assert snapshot(place.parent) == {
        "target": ("directory", b"", False),
        "target/a": ("file", b"x", False),
    }


def test_nothing_is_published_over_what_is_there(place: Path) -> None:
    write_tree(place, {"old": b"old"})
    with durable.staging(place, KEY) as staging:
        assert not staging.publish(place)
    assert (place / "old").exists()


def test_what_was_set_aside_can_be_put_back(place: Path) -> None:
    write_tree(place, {"old": b"old"})
    with durable.staging(place, KEY) as staging:
        staging.set_aside(place)
        assert not place.exists()
        staging.put_back(place)
    assert (place / "old").read_bytes() == b"old"


def test_two_writers_of_one_process_have_two_directories(place: Path) -> None:
    with durable.staging(place, KEY, keep=_kept) as first, durable.staging(place, KEY, keep=_kept) as second:
        write_tree(first.path, {"a": b"x"})
        assert list(second.path.iterdir()) == []
    assert hidden(place.parent) == []


def test_a_living_process_shares_nothing(place: Path) -> None:
    def hold() -> None:
        with durable.staging(place, KEY) as staging:
            write_tree(staging.path, {"alive": b""})
            signal.pause()  # until this process is killed

    def alive() -> list[Path]:
        return list(place.parent.glob(".*/model/alive"))

    with running(hold):
        until(lambda: bool(alive()), "the other process to stage")
        with durable.staging(place, KEY, keep=_kept) as staging:
            assert list(staging.path.iterdir()) == []
            assert alive()
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert [path.name for path in staging.path.iterdir()] == ["alive"]


def test_what_a_gone_writer_left_is_taken_up(place: Path) -> None:
    _left(place, GONE)
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert (staging.path / "a/b").read_bytes() == b"half"
        assert len(hidden(place.parent)) == 1
    assert hidden(place.parent) == []


def test_what_a_gone_writer_left_is_removed_by_one_that_cannot_use_it(place: Path) -> None:
    _left(place, GONE)
    with durable.staging(place, KEY) as staging:
        assert list(staging.path.iterdir()) == []
        assert len(hidden(place.parent)) == 1


def test_a_process_with_the_id_of_a_gone_one_is_told_apart(place: Path) -> None:
    _left(place, replace(ME, start=ME.start - 1))
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert (staging.path / "a/b").exists()


def test_what_was_kept_is_taken_up_whether_or_not_its_process_lives(place: Path) -> None:
    def fail() -> None:
        with durable.staging(place, KEY, keep=_kept) as staging:
            write_tree(staging.path, {"piece": b"x"})
            raise ValueError

    def take_up() -> list[str]:
        with durable.staging(place, KEY, keep=_kept) as staging:
            found = [path.name for path in staging.path.iterdir()]
            raise OSError(*found)

    with pytest.raises(ValueError):  # noqa: PT011 - without a message
        fail()
    (error,) = at_once(take_up)
    assert error.args == ("piece",)
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert [path.name for path in staging.path.iterdir()] == ["piece"]


def test_of_many_leftovers_one_is_taken_up_and_the_others_go(place: Path) -> None:
    _left(place, GONE)
    _left(place, replace(GONE, pid=GONE.pid + 1))
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert (staging.path / "a/b").exists()
        assert len(hidden(place.parent)) == 1


OTHERS = {
    "another machine": replace(GONE, host="01234567", boot="0123456789ab"),
    "another machine of the same name": replace(GONE, boot="0123456789ab"),
    "another container of this machine": replace(ME, space=1, pid=1),
    "a process that cannot be": replace(ME, pid=9_999_999_999),
    "a living process": replace(ME, pid=1, start=writer._look(1)[1]),
}


@pytest.mark.parametrize("keep", [None, _kept])
@pytest.mark.parametrize("other", OTHERS)
def test_what_is_not_surely_left_by_this_machine_is_passed_over(place: Path, other: str, keep: durable.Keep) -> None:
    left = _left(place, OTHERS[other], seconds=5)
    before = snapshot(left)
    with durable.staging(place, KEY, keep=keep) as staging:
        assert list(staging.path.iterdir()) == []
    durable.clear_up(place)
    assert snapshot(left) == before


@pytest.mark.parametrize("other", ["another machine", "a living process"])
def test_however_old_it_is(place: Path, other: str) -> None:
    left = _left(place, OTHERS[other], seconds=9999 * DAY)
    with durable.staging(place, KEY):
        pass
    assert (left / "model/a/b").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to other users")
def test_what_another_user_left_is_passed_over(place: Path) -> None:
    left = _left(place, GONE, seconds=9 * DAY)
    os.chown(left, 65534, 65534)
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert list(staging.path.iterdir()) == []
    assert (left / "model/a/b").exists()


def test_what_others_could_write_to_is_not_taken_up(place: Path) -> None:
    _left(place, GONE).chmod(0o770)
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert list(staging.path.iterdir()) == []


def test_what_was_left_before_this_machine_started_is_removed(place: Path) -> None:
    left = _left(place, OTHERS["another machine of the same name"], seconds=writer.seconds_since_boot() + 3600)
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert list(staging.path.iterdir()) == []
        assert not left.exists()


def test_what_was_left_as_this_machine_started_is_passed_over(place: Path) -> None:
    """Clocks of disks run unevenly: it may have been written since."""
    left = _left(place, OTHERS["another machine of the same name"], seconds=writer.seconds_since_boot() + 20)
    with durable.staging(place, KEY, keep=_kept):
        assert left.exists()


def test_what_another_user_left_hides_nothing_of_ours(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = _left(place, GONE), _left(place, replace(GONE, pid=GONE.pid + 1))
    os.chown(theirs, 65534, 65534)
    found = durable._found
    monkeypatch.setattr(durable, "_found", lambda *of: sorted(found(*of), key=lambda one: one.string != theirs.name))
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert (staging.path / "a/b").read_bytes() == b"half"
    assert theirs.exists()
    assert not ours.exists()


def test_what_was_taken_over_to_be_removed_is_not_kept_with_what_is_ours(place: Path) -> None:
    _left(place, GONE, OTHER_KEY, seconds=2 * DAY)

    def fail() -> None:
        with durable.staging(place, KEY, keep=_kept):
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail()
    (kept,) = hidden(place.parent)
    assert [path.name for path in (place.parent / kept).iterdir()] == ["model"]


def test_a_link_in_what_was_left_is_as_old_as_itself(place: Path, tmp_path: Path) -> None:
    (tmp_path / "fresh").touch()
    left = _left(place, GONE, OTHER_KEY)
    (left / "model" / "link").symlink_to(tmp_path / "fresh")
    age(left, 2 * DAY)
    with durable.staging(place, KEY):
        assert not left.exists()


@pytest.mark.parametrize("by", [GONE, replace(ME, space=1)])
def test_what_was_left_for_a_day_is_removed(place: Path, by: Writer) -> None:
    left = _left(place, by, OTHER_KEY, seconds=2 * DAY)
    with durable.staging(place, KEY):
        assert not left.exists()


def test_its_age_is_that_of_the_youngest_thing_inside(place: Path) -> None:
    left = _left(place, GONE, OTHER_KEY, seconds=2 * DAY)
    (left / "model/a/b").touch()
    with durable.staging(place, KEY):
        assert left.exists()


def test_what_is_left_of_a_finished_writer_goes_at_once(place: Path) -> None:
    left = _left(place, GONE, OTHER_KEY)
    (left / "model").rename(left / "replaced")
    durable.clear_up(place)
    assert not left.exists()


@pytest.mark.parametrize(
    "name",
    [f".target.{KEY}", ".target.deadbeef0001", f".target.{KEY}.{KEY}", f".other.{KEY}.{GONE}-0123ef", ".target"],
    ids=["an older name", "another key", "two keys", "another target", "no key"],
)
def test_what_a_person_may_have_named_so_is_never_touched(place: Path, name: str) -> None:
    own = write_tree(place.with_name(name), {"precious": b"x"})
    age(own, 9 * DAY)
    with durable.staging(place, KEY, keep=_kept):
        pass
    durable.clear_up(place)
    assert (own / "precious").exists()


def test_files_and_links_of_such_a_name_are_not_followed(place: Path, tmp_path: Path) -> None:
    elsewhere = write_tree(tmp_path / "elsewhere", {"model/precious": b""})
    names = [f".target.{KEY}.{replace(GONE, pid=GONE.pid + number)}-0123ef" for number in range(2)]
    (tmp_path / names[0]).symlink_to(elsewhere)
    (tmp_path / names[1]).write_bytes(b"not ours")
    with durable.staging(place, KEY, keep=_kept) as staging:
        assert list(staging.path.iterdir()) == []
    assert (elsewhere / "model/precious").exists()
    assert (tmp_path / names[1]).read_bytes() == b"not ours"


def test_whatever_becomes_of_its_name_writes_go_into_the_same_directory(place: Path, tmp_path: Path) -> None:
    home = write_tree(tmp_path / "home", {})
    with durable.staging(place, KEY) as staging:
        (staging.path / "plugins").mkdir()
        (name,) = hidden(tmp_path)
        (tmp_path / name).rename(tmp_path / "stolen")  # as somebody can who may write to the parent
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").mkdir()
        (tmp_path / name / "model" / "plugins").symlink_to(home)
        (staging.path / "plugins" / "own.py").write_bytes(b"")
        assert staging.publish(place)
    assert list(home.iterdir()) == []
    assert (place / "plugins" / "own.py").exists()
    assert (tmp_path / name / "model" / "plugins").is_symlink()  # somebody else's, so it stays


def test_what_was_taken_up_cannot_be_published_by_its_writer_any_more(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with durable.staging(place, KEY) as zombie:
        write_tree(zombie.path, {"a": b"x"})
        monkeypatch.setattr(durable, "_in_use", set())  # it looks as if its writer were gone
        with durable.staging(place, KEY, keep=_kept) as heir:
            assert (heir.path / "a").exists()
            with pytest.raises(FileNotFoundError):
                zombie.publish(place)
            with pytest.raises(FileNotFoundError):
                (zombie.path / "b").write_bytes(b"late")
            assert heir.publish(place)
    assert [path.name for path in place.iterdir()] == ["a"]


@pytest.mark.row("D5", of="target")
def test_many_processes_at_once_never_share_a_directory(place: Path) -> None:
    def work() -> bool:
        for _ in range(10):
            with suppress(ValueError), durable.staging(place, KEY, keep=_kept) as staging:
                mark = staging.path / str(os.getpid())
                for left in staging.path.iterdir():
                    left.unlink()
                mark.touch(exist_ok=False)
                time.sleep(0.001)
                if [path.name for path in staging.path.iterdir()] != [mark.name]:
                    return False
                raise ValueError
        return True

    assert at_once(*[work] * 4) == [True] * 4


def test_many_processes_at_once_publish_what_they_have_written(place: Path) -> None:
    def work() -> list[int]:
        found = []
        for turn in range(10):
            with durable.staging(place, KEY) as staging:
                for number in range(5):
                    (staging.path / str(number)).touch(exist_ok=False)
                mine = place.with_name(f"{os.getpid()}-{turn}")
                assert staging.publish(mine)
            found.append(len(list(mine.iterdir())))
        return found

    assert at_once(*[work] * 4) == [[5] * 10] * 4
    assert hidden(place.parent) == []


def test_the_copy_of_a_process_that_forks_cleans_up_nothing(place: Path) -> None:
    with ExitStack() as held:
        staging = held.enter_context(durable.staging(place, KEY))
        if (pid := os.fork()) == 0:
            try:
                held.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert staging.path.exists()


def test_a_directory_of_ours_is_swept_of_whatever_was_abandoned(tmp_path: Path) -> None:
    abandoned = [_left(tmp_path / "v1", GONE, seconds=2 * DAY), tmp_path / f".v2.json.{KEY}"]
    abandoned[1].write_bytes(b"{")
    kept = [_left(tmp_path / "v3", GONE), tmp_path / "v1.json", tmp_path / f".v3.json.{KEY}"]
    for file in kept[1:]:
        file.write_bytes(b"{")
    for path in [abandoned[1], kept[1]]:
        age(path)
    (link := tmp_path / f".v4.json.{KEY}").symlink_to(kept[1])  # which is old enough
    kept.append(link)
    durable.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_the_disk_s_clock_says_what_is_a_day_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, old = tmp_path / f".v1.json.{KEY}", tmp_path / f".v2.json.{KEY}"
    for file in (fresh, old):
        file.touch()
    age(old)
    for wrong in (-9 * DAY, 9 * DAY):
        now = time.time() + wrong
        monkeypatch.setattr(time, "time", lambda now=now: now)
        durable.sweep(tmp_path)
        assert fresh.exists()
    assert not old.exists()


@pytest.mark.parametrize("error", [FileNotFoundError(), ValueError("another kernel's words")])
def test_of_a_process_that_cannot_be_looked_at_nobody_knows_that_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def look(_: int) -> None:
        raise error

    assert not writer.is_gone(ME, ME)
    assert writer.is_gone(replace(ME, start=ME.start + 1), ME)
    monkeypatch.setattr(writer, "_look", look)
    assert not writer.is_gone(replace(ME, start=ME.start + 1), ME)


def test_a_kernel_whose_words_are_not_known_tells_of_nobody_that_he_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"another kernel's words")
    assert not writer.is_gone(replace(ME, start=ME.start + 1), ME)


@pytest.mark.parametrize(
    ("what", "told"),
    [("readlink", "1"), ("boot_id", FileNotFoundError()), ("_look", ValueError("another kernel's words"))],
    ids=["the processes of another space", "no boot", "no start"],
)
def test_where_the_system_does_not_tell_who_runs_nobody_ever_recognises_a_process(
    monkeypatch: pytest.MonkeyPatch, what: str, told: str | Exception
) -> None:
    def tell(*_: object) -> str:
        if isinstance(told, Exception):
            raise told
        return told

    monkeypatch.setattr(os if what == "readlink" else writer, what, tell)
    me, again = writer.this_process(), writer.this_process()
    assert (me.space, me.pid, me.start) == (0, os.getpid(), 0)
    assert me.boot != again.boot
    assert not writer.is_gone(replace(me, pid=GONE.pid), again)


@pytest.mark.parametrize("error", [PermissionError(), OverflowError()])
def test_a_process_that_takes_no_signals_of_ours_is_known_by_its_start(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def kill(*_: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", kill)
    assert not writer.is_gone(ME, ME)
    assert writer.is_gone(replace(ME, start=ME.start + 1), ME)


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


def test_files_created_one_after_the_other_have_rising_times(tmp_path: Path) -> None:
    for number in range(50):
        durable.create_file(tmp_path / f"{number:02}", b"")
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    assert times == sorted(set(times))


@pytest.mark.parametrize(("steps", "looks"), [([5, 5, 5, 6], 3), ([5, 6], 1), ([5] * 9, durable._CLOCK_LOOKS)])
def test_a_file_is_stamped_until_the_disk_s_clock_has_gone_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], looks: int
) -> None:
    """On a disk whose stamps are coarser than a write takes; one without end of it is not waited for."""
    done: list[str] = []
    clock = iter(steps)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fstat", lambda _: SimpleNamespace(st_mtime_ns=next(clock)))
        disk.setattr(os, "utime", lambda _: done.append("stamped"))
        disk.setattr(time, "sleep", lambda _: done.append("slept"))
        durable._stamp(0)
    assert done == ["slept", "stamped"] * looks


def test_a_file_is_stamped_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(durable, "_stamp", lambda _: seen.append([path.name for path in tmp_path.iterdir()]))
    assert durable.create_file(tmp_path / "a", b"content")
    ((name,),) = seen
    assert name.startswith(".a.")


def test_names_of_full_length_can_be_created(tmp_path: Path) -> None:
    assert durable.create_file(tmp_path / ("x" * 255), b"")


# The rest


@pytest.mark.parametrize("remove", ["tree", "entry", "directory"])
def test_what_is_not_there_is_removed_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, remove: str
) -> None:
    with durable._open_directory(tmp_path) as above:
        match remove:
            case "tree":
                durable.remove_tree(tmp_path / "absent")
            case "entry":
                durable._remove("absent", above)
            case _:
                durable._remove_directory("absent", above, above)
    assert caplog.text == ""


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_an_entry_that_is_left_behind_is_removed_whatever_it_is(tmp_path: Path, what: str) -> None:
    elsewhere = write_tree(tmp_path / "elsewhere", {"precious": b""})
    if what == "link":
        (tmp_path / "left").symlink_to(elsewhere)
    else:
        write_tree(tmp_path, {"left" if what == "file" else "left/below": b"x"})
    with durable._open_directory(tmp_path) as above:
        durable._remove("left", above)
    assert [path.name for path in tmp_path.rglob("*")] == ["elsewhere", "precious"]


def test_a_link_in_the_place_of_a_directory_is_somebody_else_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "private").symlink_to("moved")
    with durable._open_directory(tmp_path) as above, durable._open_directory("moved", above) as moved:
        durable._remove_directory("private", above, moved)
    assert (sorted(os.listdir(tmp_path)), caplog.text) == (["moved", "private"], "")


def test_what_cannot_be_removed_is_logged_and_hides_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = write_tree(tmp_path / "full", {"a": b""})
    with durable._open_directory(tmp_path) as above, durable._open_directory(full) as descriptor:
        durable._remove_directory("full", above, descriptor)
        assert "could not remove full" in caplog.text
        durable._remove("x" * 300, above)  # no disk has such names
        assert "could not remove xxx" in caplog.text
        durable._remove_directory("full", above, above)  # another one than is open
    assert full.exists()


def test_a_descriptor_outlives_its_directory_for_a_while_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_retired", deque())
    monkeypatch.setattr(durable, "_RETIRED", 2)
    retired = [os.open("/", os.O_RDONLY) for _ in range(3)]
    for descriptor in retired:
        durable._retire(descriptor)
    for descriptor in retired[1:]:
        os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(retired[0])


def test_a_directory_is_open_for_late_writers_after_an_error_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retired: list[int] = []
    monkeypatch.setattr(durable, "_retire", retired.append)

    def fail() -> None:
        with durable.staging(place, KEY):
            raise ValueError("first")

    with durable.staging(place, KEY):
        pass
    assert retired == []
    with pytest.raises(ValueError, match="first"):
        fail()
    (descriptor,) = retired
    os.close(descriptor)


def test_nothing_stays_open_or_in_use(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    before = opened(), set(durable._in_use)
    with durable.staging(place, KEY) as staged:
        write_tree(staged.path, {"a": b"x"})
    durable.sync_directory(place.parent)
    durable.clear_up(place)
    assert (opened(), durable._in_use) == before
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="full"), durable.staging(place, KEY):
        pytest.fail("there is no room")
    assert (opened(), durable._in_use) == before


def test_nothing_is_made_where_there_is_nothing_to_sweep(tmp_path: Path) -> None:
    (tmp_path / "v1.json").touch()
    age(tmp_path)
    before = tmp_path.stat().st_mtime_ns
    durable.sweep(tmp_path)
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.row("D7", of="target")
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


def test_a_system_without_that_call_syncs_all_its_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[None] = []
    monkeypatch.setattr(durable, "_find_syncfs", lambda: None)
    monkeypatch.setattr(os, "sync", lambda: synced.append(None))
    durable.sync_file_system(tmp_path)
    assert synced == [None]


def test_the_real_call_says_why_it_is_refused() -> None:
    ctypes.set_errno(0)
    assert durable._syncfs(-1) != 0
    assert ctypes.get_errno() == errno.EBADF


def test_a_refused_call_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_syncfs", lambda descriptor: -1)
    with pytest.raises(OSError):  # noqa: PT011 - its number is whatever was last
        durable.sync_file_system(tmp_path)


def test_what_was_set_aside_before_is_removed_when_more_is(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with durable.staging(place, KEY) as staged:
        for number in range(2):
            place.mkdir()
            (place / str(number)).touch()
            staged.set_aside(place)
        assert not place.exists()
        staged.put_back(place)
        assert [path.name for path in place.iterdir()] == ["1"]


def test_a_small_file_takes_the_place_of_what_is_there(tmp_path: Path) -> None:
    place = tmp_path / "record"
    place.write_bytes(b"old")
    with durable.staging(tmp_path / "place", KEY) as staged:
        staged.put_file(place, b"new")
    assert place.read_bytes() == b"new"


def test_a_created_file_is_durable_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sizes, fsync = [], [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    assert durable.create_file(tmp_path / "file", b"content")
    assert [path.parent for path in synced] == [tmp_path, tmp_path.parent]
    assert synced[-1] == tmp_path
    assert sizes[0] == len(b"content")  # and nothing of it was still in a buffer of ours
