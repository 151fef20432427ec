"""The project's documents as tests see them: code blocks, headings, links, and settings that are named in the text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@dataclass(frozen=True)
class Block:
    """A code block.

    :param kind: what stands behind the opening fence: the language, for data also what it is data of.
    """

    where: str
    kind: str
    text: str


def _tokens(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(document.read_text())


def _inline(document: Path) -> Iterator[Token]:
    for token in _tokens(document):
        yield from token.children or ()


@cache
def code_blocks() -> tuple[Block, ...]:
    """Return every block of every document, indented ones included."""
    return tuple(
        Block(f"{document.relative_to(ROOT)}:{token.map[0] + 1}", token.info.strip(), token.content)
        for document in DOCUMENTS
        for token in _tokens(document)
        if token.type in ("fence", "code_block") and token.map
    )


def links(document: Path) -> list[str]:
    """Return where a document's links and pictures lead."""
    found = [token.attrs.get("href") or token.attrs.get("src") for token in _inline(document)]
    return [str(target) for target in found if target]


def anchors(document: Path) -> set[str]:
    """Return what GitHub makes of a document's headings."""
    tokens, seen, made = _tokens(document), Counter[str](), set()
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            text = "".join(child.content for child in content.children or () if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            made.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return made


def table(document: str, first: str) -> list[dict[str, str]]:
    """Return the rows of a table, each cell as it is written, by the words in the table's head.

    :param document: the document's path.
    :param first: the word in the table's upper left corner.
    """
    rows: list[list[str]] = []
    tokens = _tokens(ROOT / document)
    for token, inside in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(inside.content)
        elif token.type == "table_close":
            if rows[0][0] == first:
                return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
            rows = []
    raise LookupError(f"{document} has no table of {first}")


def code_in(text: str) -> list[str]:
    """Return what a text writes as code."""
    return re.findall(r"`([^`]+)`", text)


def settings() -> set[tuple[str, str]]:
    """Return the settings of Airflow's that the documents write as ``[section] key``."""
    code = (token.content for document in DOCUMENTS for token in _inline(document) if token.type == "code_inline")
    return {(found[1], found[2]) for text in code if (found := re.match(r"\[(\w+)\] (\w+)", text))}
