"""What is unpacked, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_modelsync.core.archive.digest import read_tree
from airflow_provider_modelsync.core.archive.extract import DirectorySink, Limits, extract_archive, unpack
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    CorruptArchive,
    DiskFull,
    InvalidInput,
    RegistryUnavailable,
    TargetExists,
    UnsafeArchive,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from tests.core.archive import hostile
from tests.core.archive.hostile import (
    CASES,
    GOOD,
    HARMLESS,
    HOSTILE,
    Case,
    file,
    folder,
    header,
    listing,
    pax,
    record,
    squeezed,
    tar,
)


def named(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=case.name) for case in cases]


class Pipe:
    """A reader like the body of a response: it only reads, and gives as much as it likes."""

    def __init__(self, data: bytes, most: Callable[[], int] = lambda: 1 << 20) -> None:
        self._data = io.BytesIO(data)
        self._most = most

    def read(self, size: int) -> bytes:
        return self._data.read(min(size, self._most()))


class Recorder:
    """A sink that keeps everything in memory."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def make_directory(self, path: str) -> None:
        self.events.append((path, None))

    def add_file(self, path: str, content: memoryview, *, executable: bool) -> None:
        self.events.append((path, (bytes(content), len(content), executable)))

    @contextlib.contextmanager
    def create_file(self, path: str, *, size: int, executable: bool) -> Iterator[Callable[[memoryview], None]]:
        content = bytearray()
        yield content.extend
        self.events.append((path, (bytes(content), size, executable)))


class Discard(Recorder):
    def add_file(self, path: str, content: memoryview, *, executable: bool) -> None:
        pass

    @contextlib.contextmanager
    def create_file(self, path: str, *, size: int, executable: bool) -> Iterator[Callable[[memoryview], None]]:
        yield lambda block: None


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_there_are_many_cases() -> None:
    assert len(HOSTILE) >= 60
    assert len(HARMLESS) >= 12


@pytest.mark.parametrize("case", named(HOSTILE))
@pytest.mark.row("H1", "H2", "H3", "H5", "H6", "H7", "H8", "H9", of="archives")
def test_a_hostile_archive_is_refused_and_leaves_nothing_behind(case: Case, tmp_path: Path) -> None:
    assert case.verdict is not None
    assert hostile.try_case(case, tmp_path) == case.verdict.__name__


@pytest.mark.parametrize("case", named(HARMLESS))
@pytest.mark.row("H10", of="archives")
def test_a_harmless_archive_is_unpacked(case: Case, tmp_path: Path) -> None:
    assert hostile.try_case(case, tmp_path) == "unpacked"
    content = listing(tmp_path / "beside" / "target")
    assert {path: data for path, data in content.items() if data is not None} == case.holds


@pytest.mark.slow
@pytest.mark.row("H5", of="archives")
def test_all_cases_are_decided_within_limits_on_memory_file_size_and_time(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, hostile.__file__, str(tmp_path)], capture_output=True, text=True, check=True)
    outcomes = json.loads(done.stdout)
    assert {name: outcome for name, (outcome, _) in outcomes.items()} == {
        case.name: case.verdict.__name__ if case.verdict else "unpacked" for case in CASES
    }
    assert max(seconds for _, seconds in outcomes.values()) < 5


@pytest.mark.slow
def test_the_verdict_does_not_depend_on_how_the_bytes_arrive(tmp_path: Path) -> None:
    chance = random.Random(1)
    for number, case in enumerate(CASES):
        data = case.build("nowhere")
        if len(data) > 1 << 16:
            continue
        for most in (lambda: 7, lambda: chance.randint(1, 2000)):
            target = tmp_path / str(number)
            if case.verdict is None:
                tree = extract_archive(Pipe(data, most), target, limits=case.limits)
                assert {entry.path for entry in tree.files} == set(case.holds)
                target.rename(tmp_path / f"{number}-{time.monotonic_ns()}")
            else:
                with pytest.raises(case.verdict):
                    extract_archive(Pipe(data, most), target, limits=case.limits)
                assert not target.exists()


@pytest.mark.parametrize("whole", [tar(GOOD, folder("d/"), file("d/a", b"a" * 700)), squeezed(tar(GOOD, file("b")))])
@pytest.mark.row("H8", of="archives")
def test_an_archive_cut_anywhere_is_corrupt(whole: bytes, tmp_path: Path) -> None:
    for length in {*range(0, len(whole), 37), *range(0, len(whole), 512), *range(len(whole) - 20, len(whole))}:
        with pytest.raises(CorruptArchive):
            extract_archive(io.BytesIO(whole[:length]), tmp_path / "target")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("squeeze", [lambda data: data, squeezed])
def test_zeros_without_end_after_the_end_are_not_waited_for(squeeze: Callable[[bytes], bytes], tmp_path: Path) -> None:
    class Zeros(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            self.taken += size
            return super().read(size) or bytes(size)

    zeros = Zeros(squeeze(tar(GOOD)))
    with pytest.raises((CorruptArchive, UnsafeArchive), match=r"follows? the end"):
        extract_archive(zeros, tmp_path / "target")
    assert zeros.taken < 16 << 20
    blocked = extract_archive(io.BytesIO(tar(GOOD) + bytes(2 << 20)), tmp_path / "target")  # tar --blocking-factor=4096
    assert len(blocked.files) == 1


@pytest.mark.parametrize("sizes", [[3 << 30], [1024, 2 << 20], [600 << 10] * 3])
@pytest.mark.parametrize("is_aside", [False, True])
@pytest.mark.row("H5", of="archives")
def test_much_more_than_was_told_is_refused_before_it_is_written(sizes: list[int], *, is_aside: bool) -> None:
    class Told(Skipping):
        def read(self, size: int, /) -> bytes:
            return super().read(size) or bytes(size)  # as large as the headers promise

    recorder, aside = Discard(), Aside()
    data = b"".join(
        header(f"w{number}", size) + bytes(size if size < 1 << 20 else 0) for number, size in enumerate(sizes)
    )
    with pytest.raises(CorruptArchive, match="its record says 1000"):
        unpack(Told(data), recorder, limits=Limits(told_bytes=1000), put_aside=aside if is_aside else None)
    unpack(io.BytesIO(tar(file("a", bytes(1000)))), Recorder(), limits=Limits(told_bytes=1000))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"<!doctype html><p>502", "an HTML page"),
        (b"\n  <Error><Code>ExpiredToken</Code></Error>", "markup"),
        (b'{"message": "gone"}', "JSON"),
        (b"BZh91AY&SY", "a bzip2 archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "a zstd archive"),
        (b"\x1b[31mred", "something unknown"),
    ],
)
@pytest.mark.row("H9", of="archives")
def test_what_is_no_archive_is_named_by_its_look(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptArchive) as caught:
        extract_archive(io.BytesIO(data), tmp_path / "target")
    assert str(caught.value).endswith(words)  # nothing of it is quoted


@pytest.mark.row("H7", of="archives")
def test_a_refused_name_is_escaped_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive) as caught:
        extract_archive(io.BytesIO(tar(file("a\x1b[2J\u202e"))), tmp_path / "target")
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_the_ratio_is_judged_by_the_whole_archive(tmp_path: Path) -> None:
    """Zeros at its start are no bomb when enough follows."""
    zeros, noise = file("zeros", bytes(8 << 20)), file("noise", random.Random(1).randbytes(64 << 10))
    extract_archive(io.BytesIO(squeezed(tar(zeros, noise))), tmp_path / "target")
    with pytest.raises(UnsafeArchive):
        extract_archive(io.BytesIO(squeezed(tar(zeros))), tmp_path / "other")
    extract_archive(io.BytesIO(squeezed(tar(zeros))), tmp_path / "other", limits=Limits(max_ratio=2000))


# --- the result ------------------------------------------------------------------------------------------------------


def test_the_result_is_what_was_written(tmp_path: Path) -> None:
    files = file("d/run", b"#!", mode=0o4711), file("z", b"zz"), file("é", b"")
    tree = extract_archive(io.BytesIO(tar(*files, folder("d/e"), folder("d"), folder("x/y"))), tmp_path / "target")
    assert tree == read_tree(tmp_path / "target")
    assert tree.directories == ("d/e", "x/y")
    assert [entry.path for entry in tree.files if entry.executable] == ["d/run"]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
@pytest.mark.row("H4", of="archives")
def test_modes_follow_the_executable_bit_and_the_umask_only(umask: int, tmp_path: Path) -> None:
    data = tar(file("a", mode=0o7777), file("b", mode=0o066), file("d/c", mode=0o100), folder("d", mode=0o7000))
    before = os.umask(umask)
    try:
        extract_archive(io.BytesIO(data), tmp_path / "target")
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in (tmp_path).rglob("*")}
    assert modes == {
        "target": 0o777 & ~umask,
        "target/a": 0o777 & ~umask,
        "target/b": 0o666 & ~umask,
        "target/d": 0o777 & ~umask,
        "target/d/c": 0o777 & ~umask,
    }


@pytest.mark.row("H4", of="archives")
def test_times_and_owner_are_our_own(tmp_path: Path) -> None:
    extract_archive(io.BytesIO(tar(file("a", owner=b"0001750\0"))), tmp_path / "target")
    facts = (tmp_path / "target" / "a").stat()
    assert facts.st_uid == os.geteuid()
    assert abs(facts.st_mtime - time.time()) < 60


def build_source(root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "plain.txt").write_bytes(b"plain")
    (root / "nothing").write_bytes(b"")
    (root / "deep" / "er" / ("n" * 200)).write_bytes(b"n" * 5000)
    (root / "deep" / '模型 "quoted".bin').write_bytes(random.Random(2).randbytes(70000))
    (root / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "run.sh").chmod(0o750)


@pytest.mark.parametrize("packing", ["", "gz"])
@pytest.mark.parametrize("dialect", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_archives_of_the_standard_library_are_read(dialect: int, packing: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    build_source(source)
    with tarfile.open(tmp_path / "a.tar", f"w:{packing}", format=dialect) as archive:  # type: ignore[call-overload]
        archive.add(source, arcname=".")
    tree = extract_archive(tmp_path / "a.tar", tmp_path / "target")
    assert (tree.files, tree.directories) == (read_tree(source).files, read_tree(source).directories)


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix"], ["--format=gnu", "-z"], ["--format=oldgnu"]])
def test_archives_of_gnu_tar_are_read(options: list[str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    build_source(source)
    subprocess.run(["tar", *options, "-C", source, "-cf", tmp_path / "a.tar", "."], check=True)
    tree = extract_archive(tmp_path / "a.tar", tmp_path / "target")
    assert (tree.files, tree.directories) == (read_tree(source).files, read_tree(source).directories)


def test_a_sparse_archive_of_gnu_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with open(tmp_path / "source" / "holes", "wb") as holes:
        holes.truncate(1 << 20)
    for dialect in ("gnu", "posix"):
        subprocess.run(
            ["tar", f"--format={dialect}", "-S", "-C", tmp_path / "source", "-cf", tmp_path / "a.tar", "."], check=True
        )
        with pytest.raises(UnsafeArchive):
            extract_archive(tmp_path / "a.tar", tmp_path / "target")


# --- target and archive ----------------------------------------------------------------------------------------------


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    extract_archive(io.BytesIO(tar(GOOD)), f"{tmp_path}/target/")
    assert (tmp_path / "target" / "good").read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["target"]


def test_a_relative_target_is_taken_from_where_work_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = extract_archive(io.BytesIO(tar(GOOD)), "target")
    assert tree.root == Path(os.path.realpath(tmp_path)) / "target"


def make_file(place: Path) -> None:
    place.write_bytes(b"")


def make_full_directory(place: Path) -> None:
    place.mkdir()
    (place / "a").write_bytes(b"")


def make_link_to_an_empty_directory(place: Path) -> None:
    (place.parent / "real").mkdir()
    place.symlink_to("real")


def make_dangling_link(place: Path) -> None:
    place.symlink_to("nowhere")


@pytest.mark.parametrize(
    "make", [make_file, make_full_directory, make_link_to_an_empty_directory, make_dangling_link, os.mkfifo]
)
def test_anything_but_an_empty_directory_is_kept(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "target")
    before = listing(tmp_path)
    with pytest.raises(TargetExists):
        extract_archive(io.BytesIO(tar(GOOD)), tmp_path / "target")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("target", ["", "/", ".", "..", "a/..", "missing/target", "file/target", "a\0b", "n" * 256])
def test_a_bad_target_is_named_before_anything_is_read(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    archive = io.BytesIO(tar(GOOD))
    with pytest.raises(InvalidInput) as caught:
        extract_archive(archive, target)
    assert caught.value.argument == "target"
    assert archive.tell() == 0
    assert os.listdir(tmp_path) == ["file"]


def test_a_mount_point_cannot_be_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path / "target"))
    with pytest.raises(InvalidInput, match="mount point"):
        extract_archive(io.BytesIO(tar(GOOD)), tmp_path / "target")


def test_a_read_only_parent_is_found_before_anything_is_read() -> None:
    # Not below tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o555)
        child = os.fork()
        if child == 0:  # as somebody else, since nothing is forbidden to root
            found = False
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                archive = io.BytesIO(tar(GOOD))
                try:
                    extract_archive(archive, Path(place) / "target")
                except InvalidInput:
                    found = archive.tell() == 0
            finally:
                os._exit(0 if found else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert os.listdir(place) == []


def test_a_target_that_is_filled_meanwhile_wins(tmp_path: Path) -> None:
    target = tmp_path / "target"

    class Rival(Pipe):
        def read(self, size: int) -> bytes:
            data = super().read(size)
            if not data:
                make_full_directory(target)
            return data

    with pytest.raises(TargetExists):
        extract_archive(Rival(tar(GOOD)), target)
    assert listing(tmp_path) == {"target": None, "target/a": b""}


@pytest.mark.parametrize("archive", ["missing", "directory", "file/a", "a\0b"])
def test_a_bad_archive_path_is_the_callers_mistake(archive: str, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput) as caught:
        extract_archive(tmp_path / archive, tmp_path / "target")
    assert caught.value.argument == "archive"
    assert not (tmp_path / "target").exists()


# --- faults while it works -------------------------------------------------------------------------------------------


def test_a_failing_reader_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken(Pipe):
        def read(self, size: int) -> bytes:
            if data := super().read(size):
                return data
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(RegistryUnavailable, match="Input/output error"):
        extract_archive(Broken(GOOD), tmp_path / "target")
    assert not os.listdir(tmp_path)


@pytest.mark.row("D1", of="target")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DiskFull, match="good"):
        extract_archive(io.BytesIO(tar(GOOD)), tmp_path / "target")
    assert not os.listdir(tmp_path)


def test_a_kill_while_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    class Killed(Pipe):
        def read(self, size: int) -> bytes:
            if data := super().read(size):
                return data
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_archive(Killed(GOOD), tmp_path / "target")
    assert not os.listdir(tmp_path)


@pytest.mark.row("D7", of="target")
def test_the_first_error_is_told_when_the_cleanup_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def rmtree(path: str, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(UnsafeArchive):
        extract_archive(io.BytesIO(tar(file("../evil"))), tmp_path / "target")
    assert re.search(r"could not remove .*Permission denied", caplog.text)


# --- the streaming function ------------------------------------------------------------------------------------------


def test_a_sink_gets_parents_first_and_the_content_of_each_file() -> None:
    sink = Recorder()
    unpack(Pipe(tar(file("a/b/c", b"1" * 3000, mode=0o700), folder("a/"), folder("e"), file("d", b""))), sink)
    assert sink.events == [
        ("a", None),
        ("a/b", None),
        ("a/b/c", (b"1" * 3000, 3000, True)),
        ("e", None),
        ("d", (b"", 0, False)),
    ]


@pytest.mark.parametrize(
    "data", [tar(GOOD, file("big", bytes(3 << 20))), squeezed(tar(GOOD))], ids=["plain", "squeezed"]
)
def test_every_byte_of_the_stream_is_counted(data: bytes) -> None:
    counts: list[int] = []
    unpack(Pipe(data), Recorder(), on_bytes=counts.append)
    assert sum(counts) == len(data)


@pytest.mark.parametrize(
    "data", [tar(file("big", bytes(9 << 20))), squeezed(tar(file("big", bytes(9 << 20))))], ids=["plain", "squeezed"]
)
def test_a_cancelled_token_ends_the_work(data: bytes, tmp_path: Path) -> None:
    token = CancelToken()

    class Cancelling(DirectorySink):
        @contextlib.contextmanager
        def create_file(self, path: str, *, size: int, executable: bool) -> Iterator[Callable[[memoryview], None]]:
            with super().create_file(path, size=size, executable=executable) as write:
                token.cancel()
                yield write

    with pytest.raises(Cancelled):
        unpack(Pipe(data), Cancelling(tmp_path), cancel=token)
    assert (tmp_path / "big").stat().st_size <= 1 << 20


@pytest.mark.slow
def test_no_cost_grows_with_the_square() -> None:
    """Each of these takes well under a second, and would take minutes if a member were compared with all others."""
    wide = tar(*(file(f"d{n % 100}/f{n}", b"") for n in range(10_000)))
    deep = tar(*(file("/".join([f"{n:x}"] * 31), b"") for n in range(0xF0)))
    records = tar(pax(*(record(f"k{n}", "v") for n in range(6_000))), GOOD)
    for data in (wide, deep, records):
        start = time.thread_time()
        unpack(Pipe(data), Recorder())
        assert time.thread_time() - start < 8
    start = time.thread_time()
    unpack(Pipe(tar(pax(record("comment", "c" * 60_000)), GOOD), lambda: 1), Recorder())
    assert time.thread_time() - start < 8


def test_memory_does_not_grow_with_the_archive() -> None:
    class Endless:
        """A file of 256 MiB that is never in memory as a whole."""

        def __init__(self) -> None:
            self.rest = 256
            self.head = header("big", 256 << 20)

        def read(self, size: int) -> bytes:
            head, self.head = self.head, b""
            if head or not self.rest:
                return head
            self.rest -= 1
            return bytes(1 << 20)

    tracemalloc.start()
    try:
        with pytest.raises(CorruptArchive, match="end mark should be"):
            unpack(Endless(), Discard())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# --- content that comes another way ----------------------------------------------------------------------------------


class Skipping(Pipe):
    """A reader that can jump, as one over ranges can; it counts what it was made to give."""

    def __init__(self, data: bytes, most: Callable[[], int] = lambda: 4096) -> None:
        super().__init__(data, most)
        self.given = 0

    def read(self, size: int) -> bytes:
        block = super().read(size)
        self.given += len(block)
        return block

    def skip(self, count: int) -> None:
        assert count > 0
        self._data.seek(count, os.SEEK_CUR)


class Aside:
    """Takes the files from some size on, and notes all that it was asked for."""

    def __init__(self, smallest: int = 0) -> None:
        self.smallest = smallest
        self.asked: list[tuple[str, int, bool, int]] = []

    def __call__(self, path: str, size: int, executable: bool, offset: int) -> bool:
        self.asked.append((path, size, executable, offset))
        return size >= self.smallest


LARGE_FILES = {f"d/{number}": random.Random(number).randbytes(50_000 + number) for number in range(4)}
MIXED = tar(
    file("small", b"small"),
    *(file(name, content, mode=0o755 if name == "d/1" else 0o644) for name, content in LARGE_FILES.items()),
    file("empty", b""),
    folder("void/"),
    file("last", b"last"),
)


def test_content_that_is_put_aside_is_told_where_it_lies_and_jumped_over() -> None:
    stream, sink, aside = Skipping(MIXED), Recorder(), Aside(1000)
    unpack(stream, sink, put_aside=aside)
    assert [(path, size, executable) for path, size, executable, _ in aside.asked] == [
        ("small", 5, False),
        *((name, len(content), name == "d/1") for name, content in LARGE_FILES.items()),
        ("empty", 0, False),
        ("last", 4, False),
    ]
    for path, size, _, offset in aside.asked:
        content = {"small": b"small", "empty": b"", "last": b"last", **LARGE_FILES}[path]
        assert MIXED[offset : offset + size] == content
    assert dict(sink.events) == {
        "small": (b"small", 5, False),
        "d": None,
        "empty": (b"", 0, False),
        "void": None,
        "last": (b"last", 4, False),
    }
    assert stream.given < len(MIXED) - sum(map(len, LARGE_FILES.values())) + 4 * 4096


def test_what_is_put_aside_does_not_depend_on_how_the_bytes_arrive() -> None:
    wanted = Aside(1000)
    unpack(Skipping(MIXED), Recorder(), put_aside=wanted)
    for most in (1, 511, 512, 513, 50_000, 1 << 20):
        sink, aside = Recorder(), Aside(1000)
        unpack(Skipping(MIXED, lambda most=most: most), sink, put_aside=aside)  # type: ignore[misc]
        assert aside.asked == wanted.asked
        assert dict(sink.events)["last"] == (b"last", 4, False)


def test_everything_may_be_put_aside() -> None:
    sink, aside = Recorder(), Aside()
    unpack(Skipping(MIXED), sink, put_aside=aside)
    assert dict(sink.events) == {"d": None, "void": None}
    assert len(aside.asked) == len(LARGE_FILES) + 3


@pytest.mark.parametrize("stream", [Skipping(squeezed(MIXED)), Pipe(MIXED), Pipe(squeezed(MIXED))])
def test_nothing_is_put_aside_where_nothing_can_be_jumped_over(stream: Pipe) -> None:
    sink, aside = Recorder(), Aside()
    unpack(stream, sink, put_aside=aside)
    assert aside.asked == []
    assert dict(sink.events)["d/3"] == (LARGE_FILES["d/3"], len(LARGE_FILES["d/3"]), False)


@pytest.mark.parametrize("case", named(HOSTILE))
def test_a_hostile_archive_is_refused_whatever_is_put_aside(case: Case, tmp_path: Path) -> None:
    assert case.verdict is not None
    with pytest.raises(case.verdict):
        unpack(Skipping(case.build(str(tmp_path))), Recorder(), limits=case.limits, put_aside=Aside())


def test_an_archive_cut_anywhere_is_corrupt_whatever_is_put_aside() -> None:
    data = tar(file("a", bytes(3000)), file("b", b"b" * 700), file("c", b""))
    cuts = [*range(0, len(data), 100), *range(511, len(data), 512), *range(512, len(data), 512)]
    for cut in cuts:
        for smallest in (0, 1000):
            with pytest.raises(CorruptArchive):
                unpack(Skipping(data[:cut]), Recorder(), put_aside=Aside(smallest))


def test_content_that_is_put_aside_counts_for_the_limit() -> None:
    total = sum(map(len, LARGE_FILES.values())) + len(b"small" + b"last")
    unpack(Skipping(MIXED), Recorder(), limits=Limits(max_bytes=total), put_aside=Aside())
    with pytest.raises(UnsafeArchive, match="more than"):
        unpack(Skipping(MIXED), Recorder(), limits=Limits(max_bytes=total - 1), put_aside=Aside())
