"""Archives that must not be unpacked, and odd ones that must, written header by header.

Nothing in here uses :mod:`tarfile`, which would refuse to write most of it. Names that leave the target lead to a
directory of the test's own (``away``), never to a real file of the system.

Run as a program it unpacks all of them under limits on memory, file size and time, see :func:`main`.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck

from airflow_provider_modelsync.core.archive.extract import Limits, extract_archive
from airflow_provider_modelsync.core.errors import CorruptArchive, ModelSyncError, UnsafeArchive

# For examples that share a test's directory.
WITH_FIXTURES = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)

POSIX = b"ustar\x0000"
GNU = b"ustar  \0"
OLD = bytes(8)
END = bytes(1024)


def header(
    name: str | bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    mode: int | bytes = 0o644,
    link: str = "",
    magic: bytes = POSIX,
    prefix: str | bytes = b"",
    owner: bytes = b"0000000\0",
    time_field: bytes = b"00000000000\0",
    checksum: Callable[[int], bytes] = lambda total: b"%06o\0 " % total,
    signed: bool = False,
) -> bytes:
    """Return the 512 bytes of a header; whatever is given as bytes goes in as it is."""

    def text(value: str | bytes, width: int) -> bytes:
        raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        assert len(raw) <= width, "does not fit"
        return raw.ljust(width, b"\0")

    def number(value: int | bytes, width: int) -> bytes:
        return value if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)

    before = text(name, 100) + number(mode, 8) + owner * 2 + number(size, 12) + time_field
    after = kind + text(link, 100) + magic + bytes(64) + b"0000000\0" * 2 + text(prefix, 155) + bytes(12)
    if magic == OLD:
        after = kind + text(link, 100) + bytes(88) + text(prefix, 155) + bytes(12)
    total = sum(before) + 8 * 32 + sum(after)
    if signed:
        total -= 256 * sum(byte > 127 for byte in before + after)
    block = before + checksum(total) + after
    assert len(block) == 512
    return block


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: str | bytes, data: bytes = b"x", **facts: object) -> bytes:
    return header(name, len(data), **facts) + padded(data)  # type: ignore[arg-type]


def folder(name: str | bytes, **facts: object) -> bytes:
    return header(name, 0, b"5", **{"mode": 0o755, **facts})  # type: ignore[arg-type]


def record(key: str, value: str | bytes) -> bytes:
    """Return one line of a pax header."""
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    rest = b" " + key.encode() + b"=" + raw + b"\n"
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    data = b"".join(records)
    return header("PaxHeaders/x", len(data), kind) + padded(data)


def long_name(name: str | bytes) -> bytes:
    raw = (name.encode() if isinstance(name, str) else name) + b"\0"
    return header("././@LongLink", len(raw), b"L", magic=GNU) + padded(raw)


def base256(value: int) -> bytes:
    return b"\x80" + value.to_bytes(11, "big") if value >= 0 else value.to_bytes(12, "big", signed=True)


def squeezed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def tar(*parts: bytes) -> bytes:
    return b"".join(parts) + END


GOOD = file("good", b"good")


@dataclass(frozen=True)
class Case:
    """One archive.

    :param name: what it is.
    :param verdict: the error that must be raised, ``None`` when it must be unpacked.
    :param build: makes the bytes, given the absolute path of a directory outside of the target without its first slash.
    :param holds: path → content of what a harmless one must unpack to.
    :param limits: when they are not the usual ones.
    """

    name: str
    verdict: type[ModelSyncError] | None
    build: Callable[[str], bytes]
    holds: dict[str, bytes] = field(default_factory=dict)
    limits: Limits | None = None


def unsafe(name: str, build: Callable[[str], bytes] | bytes, limits: Limits | None = None) -> Case:
    return Case(name, UnsafeArchive, build if callable(build) else lambda _: build, limits=limits)


def corrupt(name: str, data: bytes) -> Case:
    return Case(name, CorruptArchive, lambda _: data)


def harmless(name: str, data: bytes, **holds: bytes) -> Case:
    return Case(name, None, lambda _: data, holds)


def _names_that_leave() -> list[Case]:
    """The same bad names by every way in which an archive can tell a name."""
    ways: dict[str, Callable[[str], bytes]] = {
        "name": lambda bad: file(bad),
        "directory": lambda bad: folder(f"{bad}/"),
        "pax path": lambda bad: pax(record("path", bad)) + file("fine"),
        "GNU long name": lambda bad: long_name(bad) + file("fine", magic=GNU),
    }
    bad: dict[str, Callable[[str], str]] = {
        "absolute": lambda away: f"/{away}/evil",
        "up and out": lambda _: "../evil",
        "up in the middle": lambda _: "a/../../evil",
        "up and back": lambda _: "a/../b",
        "dot slash up": lambda _: "./../evil",
        "dot slash slash": lambda away: f".//{away}/evil",
        "backslashes": lambda _: "..\\evil",
        "drive letter": lambda _: "C:/evil",
        "control character": lambda _: "a\x1bb",
        "direction mark": lambda _: "a\u202egpj",
        "not UTF-8": lambda _: "a\udcff",
        "reserved directory": lambda _: ".modelsync/manifest.json",
    }
    return [
        unsafe(f"{what} by {way}", lambda away, tell=tell, spell=spell: tar(GOOD, tell(spell(away))))  # type: ignore[misc]
        for what, spell in bad.items()
        for way, tell in ways.items()
        if not (way == "GNU long name" and what == "not UTF-8")
    ]


HOSTILE: list[Case] = [
    *_names_that_leave(),
    unsafe("up by prefix", tar(file("evil", prefix=".."))),
    unsafe("absolute by prefix", lambda away: tar(file("evil", prefix=f"/{away}"[:155]))),
    unsafe("up by GNU prefix", tar(file("evil", prefix="..", magic=GNU))),
    unsafe("up by global header", tar(pax(record("path", "../evil"), kind=b"g"), GOOD)),
    unsafe("good name by global header", tar(pax(record("path", "fine"), kind=b"g"), GOOD)),
    unsafe("size by global header", tar(pax(record("size", "0"), kind=b"g"), GOOD)),
    unsafe("up in the second name of a pax member", tar(pax(record("path", "fine")), file("../evil"))),
    unsafe("absolute second name", lambda away: tar(long_name("fine"), file(f"/{away}"[:80], magic=GNU))),
    unsafe("two long names", tar(long_name("a"), long_name("b"), file("c", magic=GNU))),
    unsafe("pax path and long name", tar(pax(record("path", "a")), long_name("b"), file("c"))),
    unsafe("two pax headers", tar(pax(record("comment", "a")), pax(record("mtime", "1")), GOOD)),
    unsafe("pax path twice", tar(pax(record("path", "../evil"), record("path", "fine")), GOOD)),
    unsafe("empty name", tar(file(""))),
    unsafe("empty pax path", tar(pax(record("path", "")), GOOD)),
    unsafe("empty long name", tar(header("././@LongLink", 0, b"L", magic=GNU), GOOD)),
    unsafe("NUL inside of a name", tar(file(b"a\0b"))),
    unsafe("NUL inside of a long name", tar(long_name(b"a\0b"), GOOD)),
    unsafe("NUL inside of a pax path", tar(pax(record("path", "a\0b")), GOOD)),
    unsafe("file with a slash at the end", tar(file("a/"))),
    unsafe("doubled slash", tar(file("a//b"))),
    unsafe("dot inside", tar(file("a/./b"))),
    unsafe("root as a file", tar(file("."))),
    unsafe("root twice", tar(folder("./"), folder("."))),
    unsafe("segment of 256 bytes", tar(pax(record("path", "n" * 256)), GOOD)),
    unsafe("name of 1,025 bytes", tar(pax(record("path", "/".join(["n" * 205] + ["n" * 204] * 4))), GOOD)),
    unsafe("33 levels", tar(file("/".join("d" * 33)))),
    # links and other things that are no files
    unsafe("symbolic link out", lambda away: tar(header("l", 0, b"2", link=f"/{away}"[:100]))),
    unsafe("symbolic link inside", tar(GOOD, header("l", 0, b"2", link="good"))),
    unsafe("write through a link", tar(header("l", 0, b"2", link=".."), file("l/evil"))),
    unsafe("write through a chain", tar(folder("d/"), header("d/l", 0, b"2", link=".."), file("d/l/../evil"))),
    unsafe("hard link out", lambda away: tar(header("l", 0, b"1", link=f"{away}/canary"[:100]))),
    unsafe("hard link up", tar(header("l", 0, b"1", link="../canary"))),
    unsafe("hard link inside", tar(GOOD, header("l", 0, b"1", link="good"))),
    unsafe("hard link with content", tar(GOOD, header("good2", 1, b"1", link="good"), padded(b"x"))),
    unsafe("pax link path", tar(pax(record("linkpath", "../canary")), GOOD)),
    unsafe("global pax link path", tar(pax(record("linkpath", "../canary"), kind=b"g"), GOOD)),
    unsafe("GNU long link", tar(header("././@LongLink", 10, b"K", magic=GNU), padded(b"../canary\0"), GOOD)),
    unsafe("character device", tar(header("null", 0, b"3"))),
    unsafe("block device", tar(header("disk", 0, b"4"))),
    unsafe("named pipe", tar(header("pipe", 0, b"6"))),
    unsafe("contiguous file", tar(file("c", kind=b"7"))),
    unsafe("multi-volume", tar(file("m", kind=b"M"))),
    unsafe("incremental directory", tar(file("d", b"Ya\0\0", kind=b"D", magic=GNU))),
    unsafe("volume label", tar(header("label", 0, b"V", magic=GNU))),
    unsafe("Solaris pax header", tar(pax(record("path", "../evil"), kind=b"X"), GOOD)),
    unsafe("unknown type", tar(file("u", kind=b"Z"))),
    unsafe("unknown type beyond ASCII", tar(file("u", kind=b"\xff"))),
    unsafe("GNU sparse file", tar(file("s", kind=b"S", magic=GNU))),
    unsafe("pax sparse file", tar(pax(record("GNU.sparse.major", "1"), record("GNU.sparse.name", "../evil")), GOOD)),
    # numbers
    unsafe("negative size", tar(header("n", base256(-512)), GOOD)),
    unsafe("negative octal size", tar(header("n", b"-0000000512\0"), GOOD)),
    unsafe("hexadecimal size", tar(header("n", b"0x000000200\0"), GOOD)),
    unsafe("size in two pieces", tar(header("n", b"1\x0000000001\0\0"), GOOD)),
    unsafe("size beyond any file", tar(header("n", base256(1 << 80)))),
    unsafe("size of a pebibyte", tar(header("n", base256(1 << 50)), bytes(512))),
    unsafe("negative pax size", tar(pax(record("size", "-1")), GOOD)),
    unsafe("pax size with blanks", tar(pax(record("size", " 4")), GOOD)),
    unsafe("huge pax size", tar(pax(record("size", "9" * 400)), GOOD)),
    unsafe("two sizes", tar(pax(record("size", "512")), header("n", 1024), bytes(1024))),
    unsafe("directory with content", tar(header("d/", 512, b"5"), file("../evil"))),
    unsafe("negative mode", tar(file("n", mode=b"\xff" * 8))),
    unsafe("huge pax header", tar(header("x", 1 << 20, b"x"), bytes(1 << 20), GOOD)),
    unsafe("huge long name", tar(header("x", base256(1 << 40), b"L", magic=GNU), GOOD)),
    unsafe("negative pax header", tar(header("x", base256(-1), b"x"), GOOD)),
    unsafe("pax record without a length", tar(pax(b"path=../evil\n"), GOOD)),
    unsafe("pax record longer than its header", tar(pax(b"99 path=../evil\n"), GOOD)),
    unsafe("pax record of no length", tar(pax(b"0 path=a\n" * 9), GOOD)),
    unsafe("pax record shorter than itself", tar(pax(b"2 path=a\n"), GOOD)),
    unsafe("pax record without a key", tar(pax(b"6 =aa\n"), GOOD)),
    unsafe("pax record without a value", tar(pax(b"7 path\n"), GOOD)),
    unsafe("header of no known format", tar(file("a", magic=b"ustaz\x0000"))),
    # clashes
    unsafe("file twice", tar(GOOD, GOOD)),
    unsafe("file twice, once with a dot", tar(GOOD, file("./good"))),
    unsafe("directory twice", tar(folder("d/"), folder("d"))),
    unsafe("file, then a directory", tar(GOOD, folder("good/"))),
    unsafe("file, then a file below it", tar(GOOD, file("good/a"))),
    unsafe("directory, then a file", tar(file("d/a"), file("d"))),
    # limits
    unsafe("too many members", tar(*(file(f"f{n}") for n in range(11))), Limits(max_members=10)),
    unsafe("too many global headers", tar(pax(record("comment", "c"), kind=b"g") * 11, GOOD), Limits(max_members=10)),
    unsafe("too many directories", tar(*(file(f"{n}/a/b/c/f") for n in range(9))), Limits(max_members=10)),
    unsafe("too many bytes", tar(file("a", bytes(600)), file("b", bytes(600))), Limits(max_bytes=1000)),
    unsafe("too many bytes told", tar(header("a", 1 << 30)), Limits(max_bytes=1000)),
    unsafe("too deep for the caller", tar(file("a/b/c")), Limits(max_depth=2)),
    unsafe("too long for the caller", tar(file("abcdef")), Limits(max_name_bytes=5)),
    unsafe("gzip bomb", lambda _: squeezed(tar(file("bomb", bytes(12 << 20))))),
    unsafe("large gzip bomb", lambda _: squeezed(tar(file("bomb", bytes(60 << 20))))),
    unsafe("gzip bomb behind the end", lambda _: squeezed(tar(GOOD) + bytes(60 << 20))),
    # cut and damaged archives
    corrupt("nothing", b""),
    corrupt("one byte", b"\0"),
    corrupt("cut first header", GOOD[:300]),
    corrupt("cut second header", GOOD + GOOD[:300]),
    corrupt("cut content", header("a", 1024) + bytes(700)),
    corrupt("cut padding", file("a")[:600]),
    corrupt("cut at a member boundary", GOOD),
    corrupt("cut after a pax header", tar(pax(record("path", "a")))),
    corrupt("cut inside of a pax header", header("x", 600, b"x") + bytes(100)),
    corrupt("one block of zeros", GOOD + bytes(512)),
    corrupt("one block of zeros in the middle", GOOD + bytes(512) + file("b") + END),
    corrupt("end mark cut by a byte", GOOD + bytes(1023)),
    corrupt("false size", header("a", 1 << 30) + bytes(512) + END),
    corrupt("false size of 512 TiB", header("a", base256(1 << 49)) + bytes(512) + END),
    corrupt("size that swallows the next header", tar(header("a", 513), bytes(512), GOOD)),
    corrupt("bad checksum", tar(GOOD, header("b", checksum=lambda total: b"%06o\0 " % (total + 1)))),
    corrupt("no checksum", tar(GOOD, header("b", checksum=lambda _: bytes(8)))),
    corrupt("checksum in words", tar(GOOD, header("b", checksum=lambda _: b"correct!"))),
    corrupt("bad checksum of the first header", tar(header("b", checksum=lambda _: b"000001\0 "))),
    corrupt("data after the end", tar(GOOD) + b"more"),
    corrupt("archive after the end", tar(GOOD) + tar(file("../evil"))),
    corrupt("zeros only", bytes(10240)),
    corrupt("HTML error page", b"<!DOCTYPE html>\n<html><body>502 Bad Gateway</body></html>" * 20),
    corrupt("XML error", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
    corrupt("JSON error", b'{"error": "not found"}'),
    corrupt("zip archive", b"PK\x03\x04" + bytes(600)),
    corrupt("noise", bytes(range(256)) * 40),
    corrupt("gzip of nothing", squeezed(b"")),
    corrupt("gzip of an error page", squeezed(b"<html>502</html>" * 99)),
    corrupt("gzip of gzip", squeezed(squeezed(tar(GOOD)))),
    corrupt("gzip cut in its header", squeezed(tar(GOOD))[:5]),
    corrupt("gzip cut in the middle", squeezed(tar(GOOD))[:60]),
    corrupt("gzip cut in its trailer", squeezed(tar(GOOD))[:-3]),
    corrupt("gzip without its trailer", squeezed(tar(GOOD))[:-8]),
    corrupt("gzip with a wrong sum", squeezed(tar(GOOD))[:-8] + bytes(4) + squeezed(tar(GOOD))[-4:]),
    corrupt("gzip with a wrong length", squeezed(tar(GOOD))[:-4] + bytes(4)),
    corrupt("gzip with junk behind it", squeezed(tar(GOOD)) + b"junk"),
    corrupt("gzip of a cut archive", squeezed(GOOD)),
    corrupt("two gzip members", squeezed(tar(GOOD)) + squeezed(tar(file("b")))),
    corrupt("an archive over two gzip members", squeezed(GOOD) + squeezed(END)),
    corrupt("many empty gzip members", squeezed(b"") * 5000 + squeezed(tar(GOOD))),
    corrupt("gzip of an unknown method", b"\x1f\x8b\x09" + bytes(600)),
]

HARMLESS: list[Case] = [
    harmless("plain", tar(GOOD), good=b"good"),
    harmless(
        "names that Windows has no room for",
        tar(file("aux.txt", b"1"), file("w:0", b"2")),
        **{"aux.txt": b"1", "w:0": b"2"},
    ),
    harmless("names that differ only in case", tar(file("D/a", b"1"), file("d/A", b"2")), **{"D/a": b"1", "d/A": b"2"}),
    harmless(
        "names that differ only in form",
        tar(file("caf\u00e9/x", b"1"), file("cafe\u0301/x", b"2")),
        **{"caf\u00e9/x": b"1", "cafe\u0301/x": b"2"},
    ),
    harmless("padded to 10,240 bytes", tar(GOOD).ljust(10240, b"\0"), good=b"good"),
    harmless("much padding", tar(GOOD).ljust(1 << 20, b"\0"), good=b"good"),
    harmless("gzip", squeezed(tar(GOOD)), good=b"good"),
    harmless(
        "gzip with a name and a comment",
        b"\x1f\x8b\x08\x18" + bytes(6) + b"m.tar\0hi\0" + squeezed(tar(GOOD))[10:],
        good=b"good",
    ),
    harmless("stored gzip", gzip.compress(tar(GOOD), 0), good=b"good"),
    harmless("dot slash names", tar(folder("./"), folder("./d/"), file("./d/a", b"1")), **{"d/a": b"1"}),
    harmless("root named by a dot", tar(folder("."), GOOD), good=b"good"),
    harmless("directories after their files", tar(file("d/e/a", b"1"), folder("d/"), folder("d/e")), **{"d/e/a": b"1"}),
    harmless("pax name", tar(pax(record("path", "n" * 255)), file("n" * 100, b"1")), **{"n" * 255: b"1"}),
    harmless(
        "pax name and size", tar(pax(record("path", "a"), record("size", "3")), header("b"), padded(b"123")), a=b"123"
    ),
    harmless("long directory", tar(pax(record("path", "d" * 200 + "/")), folder("d"), GOOD), good=b"good"),
    harmless(
        "GNU long name", tar(long_name("g/" + "n" * 200), file("n" * 100, b"1", magic=GNU)), **{"g/" + "n" * 200: b"1"}
    ),
    harmless("prefix", tar(file("a", b"1", prefix="p/q")), **{"p/q/a": b"1"}),
    harmless(
        "name of 100 bytes and prefix of 155",
        tar(file("n" * 100, b"1", prefix="p" * 155)),
        **{"p" * 155 + "/" + "n" * 100: b"1"},
    ),
    harmless(
        "name of 1,024 bytes",
        tar(pax(record("path", "/".join(["n" * 204] * 5))), GOOD),
        **{"/".join(["n" * 204] * 5): b"good"},
    ),
    harmless("32 levels", tar(file("/".join("d" * 32), b"1")), **{"/".join("d" * 32): b"1"}),
    harmless("Unicode", tar(file("caf\u00e9/模型🤗", b"1")), **{"caf\u00e9/模型🤗": b"1"}),
    harmless("blanks and quotes", tar(file(' it\'s "a b" $(x) ;*?', b"1")), **{' it\'s "a b" $(x) ;*?': b"1"}),
    harmless(
        "dots in names",
        tar(file("...", b"1"), file("a..b", b"2"), file(".hid", b"3")),
        **{"...": b"1", "a..b": b"2", ".hid": b"3"},
    ),
    harmless("empty file", tar(file("empty", b"")), empty=b""),
    harmless("empty directory", tar(folder("d/"), GOOD), good=b"good"),
    harmless("exactly one block", tar(file("b", b"b" * 512)), b=b"b" * 512),
    harmless("old format", tar(file("a", b"1", kind=b"\0", magic=OLD), header("d/", 0, b"\0", magic=OLD)), a=b"1"),
    harmless("signed checksum", tar(file("\u00e9", b"1", signed=True)), é=b"1"),
    harmless("base-256 size", tar(header("a", base256(2)), padded(b"12")), a=b"12"),
    harmless("numbers with blanks", tar(header("a", b"          2 ", mode=b"   644 \0"), padded(b"12")), a=b"12"),
    harmless("global comment", tar(pax(record("comment", "c" * 40), kind=b"g"), GOOD), good=b"good"),
    harmless(
        "odd pax records",
        tar(pax(record("mtime", "-1.5"), record("uid", "-3"), record("x.y", "=\n")), GOOD),
        good=b"good",
    ),
    harmless(
        "wild modes", tar(file("a", b"1", mode=0o7777), file("b", b"2", mode=0), folder("d", mode=0)), a=b"1", b=b"2"
    ),
    harmless("wild owner and time", tar(file("a", b"1", owner=b"\xff" * 8, time_field=b"\xff" * 12)), a=b"1"),
]

CASES = [*HOSTILE, *HARMLESS]
assert len({case.name for case in CASES}) == len(CASES), "each needs a name of its own"


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield an empty directory, in memory where that is possible: what is unpacked is written to disk for good."""
    shared = Path("/dev/shm")
    room = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    try:
        yield room
    finally:
        shutil.rmtree(room)


def listing(directory: Path) -> dict[str, bytes | None]:
    """Return path → content, ``None`` for what is no file, of everything below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in directory.rglob("*")
    }


def try_case(case: Case, room: Path) -> str:
    """Unpack one case in a directory of its own and say how that ended: an error's class, or ``unpacked``.

    :raises AssertionError: when anything but the target of a harmless archive appeared or changed.
    """
    (room / "beside").mkdir(parents=True)
    (room / "away").mkdir()
    for canary in ("canary", "beside/canary", "away/canary"):
        (room / canary).write_bytes(b"alive")
    (room / "archive").write_bytes(case.build(str(room / "away").lstrip("/")))
    before = listing(room)
    facts = os.stat(room / "canary")
    target = room / "beside" / "target"
    try:
        extract_archive(room / "archive", target, limits=case.limits)
        outcome = "unpacked"
    except (UnsafeArchive, CorruptArchive) as error:
        outcome = type(error).__name__
    after = {path: data for path, data in listing(room).items() if not path.startswith("beside/target/")}
    if outcome == "unpacked":
        assert after.pop("beside/target", b"") is None, "the target is no directory"
    assert after == before, f"{case.name}: {after.keys() ^ before.keys()}"
    assert os.stat(room / "canary").st_nlink == facts.st_nlink
    return outcome


def main(room: str) -> None:
    """Try all cases under limits and print name → outcome and seconds as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    outcomes: dict[str, tuple[str, float]] = {}
    for number, case in enumerate(CASES):
        start = time.process_time()
        try:
            outcome = try_case(case, Path(room) / str(number))
        except Exception as error:
            outcome = repr(error)
        outcomes[case.name] = outcome, time.process_time() - start
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1])
