"""Which files take part: what git would say, and what tools leave behind that is no part of a model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.choice import BY_HABIT, Choice
from airflow_provider_modelsync.core.archive.digest import read_tree
from airflow_provider_modelsync.core.errors import InvalidInput
from tests.core.stores import write_tree

PATHS = [
    "weights.bin",
    "shards/1.bin",
    "shards/keep.bin",
    "shards/index.json",
    "docs/readme.md",
    "docs/deep/er.md",
    "a b.txt",
    "größe.txt",
    ".hidden",
    "#1",
]
EXCLUDED: list[list[str]] = [
    ["*.bin"],
    ["*.bin", "!keep.bin"],
    ["/*.bin"],
    ["shards/"],
    ["shards/*", "!shards/keep.bin"],
    ["shards", "!shards/keep.bin"],
    ["docs/**/er.md"],
    ["**/deep"],
    [".*", "\\#*", "# a comment"],
    ["gr[öo]*", "a b.txt"],
    ["*", "!*.json"],
]


def _by_git(directory: Path, patterns: Sequence[str]) -> list[str]:
    (directory / ".git-ignores").write_text("\n".join(patterns))
    command = ["git", "-c", "core.quotePath=false", "-c", f"core.excludesFile={directory / '.git-ignores'}"]
    subprocess.run(["git", "init", "-q"], cwd=directory, check=True)
    listed = subprocess.run(
        [*command, "ls-files", "--others", "--exclude-standard"], cwd=directory, check=True, capture_output=True
    ).stdout.decode()
    return sorted(set(listed.splitlines()) & set(PATHS))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed, which tells what the patterns mean")
@pytest.mark.parametrize("patterns", EXCLUDED, ids=str)
def test_patterns_leave_out_what_git_ignores(tmp_path: Path, patterns: list[str]) -> None:
    write_tree(tmp_path, dict.fromkeys(PATHS, b"x"))
    choice = Choice(exclude=patterns)
    assert sorted(path for path in PATHS if choice.takes(path)) == _by_git(tmp_path, patterns)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.bin"], None, ["weights.bin", "shards/1.bin", "shards/keep.bin"]),
        (["shards/", "!*.json"], None, ["shards/1.bin", "shards/keep.bin"]),
        (["*.bin"], ["shards/"], ["weights.bin"]),
        (None, ["*", "!a b.txt"], ["a b.txt"]),
        ([], [], PATHS),
    ],
)
def test_a_file_takes_part_when_it_is_included_and_not_excluded(
    include: list[str] | None, exclude: list[str] | None, expected: list[str]
) -> None:
    choice = Choice(include, exclude)
    assert [path for path in PATHS if choice.takes(path)] == expected


@pytest.mark.parametrize(
    ("patterns", "reason"), [(["!"], "no pattern"), ("*.bin", "a list"), ([1], "a list"), (["a\nb"], "not one pattern")]
)
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_what_is_no_list_of_patterns_is_refused(patterns: Any, reason: str, argument: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        Choice(**{argument: patterns})
    assert caught.value.argument == argument


def test_who_chooses_nothing_loads_no_library() -> None:
    program = (
        "import sys; from airflow_provider_modelsync.core.archive.choice import Choice, EVERYTHING; "
        "assert EVERYTHING.is_all and Choice().takes('a'); sys.exit('pathspec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# In a source


MODEL = {
    "weights.bin": b"w",
    "tokenizer/vocab.txt": b"v",
    ".git/config": b"[core]",
    ".cache/huggingface/download/config.json.metadata": b"etag",
    ".cache/other": b"kept",
    "code/.git": b"gitdir: elsewhere",
    "code/.gitignore": b"*.pyc",
}


def test_what_tools_leave_behind_is_no_part_of_a_model_and_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, MODEL)
    tree = read_tree(tmp_path, choice=Choice(by_habit=BY_HABIT))
    assert [file.path for file in tree.files] == [
        ".cache/other",
        "code/.gitignore",
        "tokenizer/vocab.txt",
        "weights.bin",
    ]
    assert tree.left_out == (".cache/huggingface/", ".git/", "code/.git")


def test_what_is_left_out_by_habit_can_be_had(tmp_path: Path) -> None:
    write_tree(tmp_path, MODEL)
    choice = Choice(exclude=["!.git", "!.cache/huggingface/"], by_habit=BY_HABIT)
    tree = read_tree(tmp_path, choice=choice)
    assert {file.path for file in tree.files} == MODEL.keys()
    assert tree.left_out == ()


def test_what_is_left_out_is_not_looked_at(tmp_path: Path) -> None:
    write_tree(tmp_path, {"weights.bin": b"w", "run/back\\slash": b""})
    os.mkfifo(tmp_path / "run" / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    tree = read_tree(tmp_path, choice=Choice(exclude=["run/", "link"]))
    assert [file.path for file in tree.files] == ["weights.bin"]


def test_empty_directories_take_part_as_files_do(tmp_path: Path) -> None:
    write_tree(tmp_path, {"w/a.bin": b""}, directories=["empty", "w/void", "x"])
    (tmp_path / "x" / "left").touch()
    assert read_tree(tmp_path, choice=Choice(exclude=["left"])).directories == ("empty", "w/void")
    assert read_tree(tmp_path, choice=Choice(["w/"])).directories == ("w/void",)
    assert read_tree(tmp_path, choice=Choice(["*.bin"], ["empty"])).directories == ()


@pytest.mark.parametrize("choice", [Choice(["*.onnx"]), Choice(exclude=["*"])], ids=str)
def test_a_choice_of_nothing_is_refused(tmp_path: Path, choice: Choice) -> None:
    write_tree(tmp_path, MODEL)
    with pytest.raises(InvalidInput, match=r"holds no file that is chosen by (in|ex)clude"):
        read_tree(tmp_path, choice=choice)
