"""Which directories of this machine a model may be pulled into or pushed from.

What the user names is resolved here, once: links in it are followed as the kernel follows them. What is dangerous to
replace or to publish is refused before anything is touched. Every way in comes through here: hooks, operators, the
command line, a sync.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from airflow_provider_modelsync.core.errors import InvalidInput

_HOMES = ("/home", "/Users")
# What the system keeps directly below its root; a container's models are often in a directory beside these.
_SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/run", "/sbin", "/srv", "/sys", "/usr"),
    *("/usr/bin", "/usr/lib", "/usr/local", "/usr/share", "/var", "/var/lib"),
    *("/tmp", "/var/tmp"),  # noqa: S108  # nothing is written there
    *_HOMES,
)
_OCTAL = re.compile(rb"\\([0-7]{3})")


def target(named: str | os.PathLike[str], *, store: Path | None = None) -> Path:
    """Return the directory that a model may be pulled into.

    :param named: absent, or a directory that may be replaced as a whole; links are followed.
    :param store: the directory that the models come from, when they come from one.
    :raises InvalidInput: when it names no such directory, or one that must stay.
    """
    place = _resolved(named, "target")
    for directory, what in (*_precious(), *_homes()):
        if place == directory or place in directory.parents:
            raise InvalidInput(
                f"{place} is or holds {what}", remedy="name a directory for the model alone", argument="target"
            )
    if fault := _fault_of(place):
        raise InvalidInput(f"{place} is {fault}", remedy="name a directory for the model alone", argument="target")
    mounts = tuple(_mounts())
    if place in mounts or os.path.ismount(str(place)):
        raise InvalidInput(f"{place} is a mount point", remedy="name a directory inside of it", argument="target")
    for mount in mounts:
        if place in mount.parents:
            raise InvalidInput(f"{place} holds the mount point {mount} and cannot be replaced", argument="target")
    if store is not None:
        require_apart(place, store.resolve(), "target")
    return place


def require_source(named: str | os.PathLike[str], *, store: Path | None = None) -> None:
    """Raise unless a model may be pushed from a directory or file.

    Names that mean whatever directory a process runs in are refused; the same directory by its path is not.

    :param named: a directory or a file; it may be a link.
    :param store: the directory that the model goes to, when it goes to one.
    :raises InvalidInput: when it names nothing that could be a model.
    """
    place = _resolved(named, "source")
    for home, what in _homes():
        if place == home or place in home.parents:
            raise InvalidInput(f"{place} is or holds {what}, not a model", argument="source")
    if fault := _fault_of(place):
        raise InvalidInput(f"{place} is {fault}, not a model", argument="source")
    if store is not None and (place == (root := store.resolve()) or place in root.parents):
        raise InvalidInput(f"{place} holds the model store {root} that it is to go to", argument="source")


def output(named: str | os.PathLike[str]) -> Path:
    """Return the file that may be written.

    :param named: absent, or a file that may be replaced; links are followed.
    :raises InvalidInput: when it names none.
    """
    place = _resolved(named, "output")
    if place.is_dir():
        raise InvalidInput(f"{place} is a directory", remedy="name the file to write", argument="output")
    return place


def require_apart(place: Path, other: Path, argument: str) -> None:
    """Raise when one of two resolved directories is the other or lies in it."""
    if place == other or place in other.parents or other in place.parents:
        raise InvalidInput(f"{place} and the model store {other} lie in one another", argument=argument)


def _resolved(named: str | os.PathLike[str], argument: str) -> Path:
    text = os.fspath(named) if isinstance(named, (str, os.PathLike)) else named
    if not isinstance(text, str):
        raise InvalidInput(f"a value of type {type(text).__name__} is no path", argument=argument)
    if not text.strip():
        raise InvalidInput("it is empty", argument=argument)
    if "\0" in text:
        raise InvalidInput("a path holds no NUL", argument=argument)
    if "://" in text:
        raise InvalidInput(f"{text!r} is no path of this machine", argument=argument)
    if os.path.basename(text.rstrip("/")) in ("", ".", ".."):
        raise InvalidInput(f"{text!r} is no directory's name", remedy="write its path", argument=argument)
    try:
        return Path(os.path.realpath(text))
    except OSError as error:
        raise InvalidInput(f"{text!r} cannot be resolved: {error.strerror}", argument=argument) from error


def _precious() -> Iterator[tuple[Path, str]]:
    with suppress(FileNotFoundError):  # it may have been removed meanwhile
        yield Path(os.getcwd()).resolve(), "the working directory"
    yield Path(sys.prefix).resolve(), "the Python that runs this"


def _homes() -> Iterator[tuple[Path, str]]:
    yield Path(os.path.realpath(os.path.expanduser("~"))), "a home directory"
    with suppress(KeyError):  # containers run as users that no list knows
        yield Path(pwd.getpwuid(os.geteuid()).pw_dir).resolve(), "a home directory"


def _fault_of(place: Path) -> str | None:
    """Say what a resolved path is that can never be one model."""
    if place.parent == place:
        return "a root"
    if place.parent in map(Path, _HOMES):
        return "a home directory"
    if any(place in (Path(name), Path(os.path.realpath(name))) for name in _SYSTEM):
        return "a directory of the system"
    return None


def _mounts() -> Iterator[Path]:
    """Yield what is mounted here, bound directories too, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            name = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])
            yield Path(os.fsdecode(name))
