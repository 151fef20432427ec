from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_modelsync.core.archive.names import PathTree, clash_among, doubts, fault_of, show

QUICK = settings(max_examples=200)

UNUSUAL_BUT_FINE = [
    "weights.bin",
    "a/b/c.txt",
    ".hidden",
    "..twice",
    "trailing.",
    "-dash",
    "~home",
    "with blank",
    " leading blank",
    'quo\'te and "double"',
    "semi;colon $HOME `x` *?[]",
    "percent%2Fencoded",
    "colon:inside",
    "größe.txt",
    "模型/权重.bin",
    "emoji-🎉",
    "modelsync",
    ".modelsync2/x",
    "x.modelsync",
    "con-tent",
    "con",
    "dir/NUL.txt",
    "aux.tar.gz/x",
    "w:0.npy",
    "trailing.",
    "trailing /x",
    "nullable.txt",
    "s" * 255,
    "/".join(["d"] * 32),
    "/".join(["x" * 204] * 5),
]


@pytest.mark.parametrize("path", UNUSUAL_BUT_FINE)
@pytest.mark.row("H10", of=("target", "source"))
def test_unusual_paths_are_accepted(path: str) -> None:
    assert fault_of(path) is None


REFUSED = [
    ("", "empty"),
    ("/etc/passwd", "not relative"),
    ("C:/windows", "not relative"),
    ("c:", "not relative"),
    ("..", "'..' segment"),
    ("a/../b", "'..' segment"),
    (".", "'.' or"),
    ("./a", "'.' or"),
    ("a//b", "empty"),
    ("a/", "empty"),
    ("a\\b", "backslash"),
    ("a\x00b", "control character"),
    ("a\nb", "control character"),
    ("a\x7fb", "control character"),
    ("a\x85b", "control character"),
    ("a\u2028b", "control character"),
    ("invoice\u202egpj.exe", "direction mark"),
    ("a\u2066b", "direction mark"),
    ("bytes-\udcff", "not UTF-8"),
    (".modelsync", "reserved"),
    ("a/.modelsync/b", "reserved"),
    (".ModelSync/x", "reserved"),
    ("s" * 256, "segment longer than 255"),
    ("ä" * 128, "segment longer than 255"),
    ("/".join(["x" * 205] * 5), "longer than 1024"),
    ("/".join(["d"] * 33), "deeper than 32"),
]


@pytest.mark.parametrize(("path", "reason"), REFUSED)
@pytest.mark.row("H1", "H7", "H12", of=("target", "source"))
def test_paths_that_lead_elsewhere_or_deceive_are_refused(path: str, reason: str) -> None:
    assert reason in (fault_of(path) or "")


@pytest.mark.row("H5", of="target")
def test_the_limits_are_the_callers() -> None:
    assert fault_of("a/b", max_depth=1)
    assert fault_of("abc", max_bytes=2)


@pytest.mark.parametrize(
    ("files", "directories"),
    [
        (["a", "a"], []),
        (["a", "a/b"], []),
        (["a/b", "a"], []),
        (["a"], ["a"]),
        (["x/A"], ["x/A/b"]),
    ],
)
@pytest.mark.row("H6", of=("target", "source"))
def test_paths_that_cannot_live_side_by_side_clash(files: list[str], directories: list[str]) -> None:
    clash = clash_among(files, directories)
    assert clash is not None
    known = {*files, *directories} | {path.rpartition("/")[0] for path in (*files, *directories)}
    assert set(clash) <= known


@pytest.mark.parametrize(
    ("files", "directories"),
    [
        (["a", "b", "a.b", "c/a", "c/b"], []),
        (["a/b"], ["c", "a/d"]),
        (["a/b"], ["a"]),
        ([], []),
        (["Readme", "README", "straße", "STRASSE", "caf\u00e9", "cafe\u0301"], []),
        (["A/x", "a/y"], ["a/X"]),
    ],
)
def test_paths_that_can_live_side_by_side_do_not_clash(files: list[str], directories: list[str]) -> None:
    assert clash_among(files, directories) is None


@pytest.mark.parametrize(
    ("paths", "doubtful"),
    [
        (["con", "dir/NUL.txt", "lpt9.tar.gz/x", "fine"], {"con", "dir/NUL.txt", "lpt9.tar.gz/x"}),
        (["w:0.npy", "what?", "a<b>", 'quo"te', "pipe|", "all*", "d:/x"], None),
        (["dot.", "blank ", "dir./x", ".hidden", "a.b"], {"dot.", "blank ", "dir./x"}),
        (["Readme", "README", "other"], {"Readme", "README"}),
        (["A/x", "a/y", "b/x"], {"A/x", "a/y"}),
        (["straße", "STRASSE"], None),
        (["caf\u00e9", "cafe\u0301"], None),
        (["weights.bin", "tokenizer/vocab.txt", "größe", "a b/ c"], set()),
    ],
)
def test_names_that_some_file_systems_cannot_hold_are_doubtful(paths: list[str], doubtful: set[str] | None) -> None:
    assert doubts(paths).keys() == (set(paths) if doubtful is None else doubtful)


def test_a_doubt_says_why() -> None:
    told = doubts(["aux.npy", "A.npy", "a.npy", "w:0.npy"])
    assert told["aux.npy"] == "holds the device name 'aux.npy'"
    assert told["a.npy"] == "differs from 'A.npy' only in case or Unicode form"
    assert told["w:0.npy"] == "holds :"


def test_a_path_tree_lists_directories_parents_first() -> None:
    tree = PathTree()
    tree.add("a/b/c.txt", is_file=True)
    tree.add("d", is_file=False)
    assert tree.directories == ["a", "a/b", "d"]


def test_a_directory_may_be_added_again() -> None:
    tree = PathTree()
    assert tree.add("a", is_file=False) is None
    assert tree.add("a", is_file=False) is None
    assert tree.directories == ["a"]


def test_a_shown_path_escapes_what_a_terminal_would_obey() -> None:
    assert show("a\x1b[31m\u202eb\udcff") == r"'a\x1b[31m\u202eb\udcff'"


def test_a_shown_path_is_cut() -> None:
    assert len(show("x" * 5000)) == 201


PATHS = st.text(st.characters(codec=None), max_size=40)


@QUICK
@given(PATHS)
def test_an_accepted_path_can_be_created_below_any_directory_and_stays_there(path: str) -> None:
    if fault_of(path) is None:
        whole = Path("/root", path)
        assert whole.as_posix() == f"/root/{path}"
        assert ".." not in whole.parts
        assert path.encode().decode() == path


@QUICK
@given(PATHS)
def test_an_accepted_path_is_printable_but_for_formats_and_unassigned_characters(path: str) -> None:
    if fault_of(path) is None:
        assert not {unicodedata.category(character) for character in path} & {"Cc", "Cs", "Zl", "Zp"}


@QUICK
@given(PATHS)
def test_a_shown_path_is_one_line_of_ascii(path: str) -> None:
    shown = show(path).removesuffix("…")
    assert shown.isascii()
    assert shown.isprintable()
