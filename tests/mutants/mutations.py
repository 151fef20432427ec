"""Print the mutants of modules as JSON lines. Needs cosmic-ray, whose environment `make mutants` brings.

Beside some of cosmic-ray's operators there are three of our own: a call that is a statement is left out, what stands
below an ``if`` never happens, and an exception is not caught. Those find forgotten safeguards, which swapped operators
hardly do.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from parso.python.tree import Name

# Those whose mutants can be told apart from the code: one opposite and one neighbour of each comparison.
CHOSEN = (
    "AddNot",
    "RemoveDecorator",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ReplaceUnaryOperator_Delete_Not",
    "ZeroIterationForLoop",
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_Lt_GtE",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_LtE_Gt",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_Gt_LtE",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_GtE_Lt",
    "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_IsNot_Is",
)


class DropCall(Operator):
    """A call that is a statement of its own is left out, unless it only tells the log."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        first = node.children[0] if node.type == "simple_stmt" else node
        if first is not node and first.type in ("atom_expr", "power") and first.get_first_leaf().value != "log":
            yield (node.start_pos, node.children[0].end_pos)

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0]
        node.children[0] = Name("pass", first.start_pos, prefix=first.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class DropGuard(Operator):
    """What stands below an ``if`` or ``elif`` never happens."""

    def _conditions(self, node: Any) -> list[int]:
        if node.type != "if_stmt":
            return []
        return [at + 1 for at, child in enumerate(node.children) if child.type == "keyword" and child.value != "else"]

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        for at in self._conditions(node):
            yield (node.children[at].start_pos, node.children[at].end_pos)

    def mutate(self, node: Any, index: int) -> Any:
        at = self._conditions(node)[index]
        node.children[at] = Name("False", node.children[at].start_pos, prefix=" ")
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class DropHandler(Operator):
    """An exception is not caught; another one is that nothing raises."""

    def _caught(self, node: Any) -> list[Any]:
        if node.type != "except_clause":
            return []
        caught = node.children[1]
        if caught.type != "atom":
            return [caught]
        return [child for child in caught.children[1].children if child != ","]

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        for caught in self._caught(node):
            yield (caught.start_pos, caught.end_pos)

    def mutate(self, node: Any, index: int) -> Any:
        caught = self._caught(node)[index]
        siblings = caught.parent.children
        prefix = caught.get_first_leaf().prefix
        siblings[siblings.index(caught)] = Name("ZeroDivisionError", caught.start_pos, prefix=prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


def _place(node: Any) -> str:
    """Return the names of the classes and functions around a node."""
    names: list[str] = []
    while node is not None:
        if node.type in ("funcdef", "classdef"):
            names.append(node.name.value)
        node = node.parent
    return ".".join(reversed(names))


def mutants(path: str) -> Iterator[dict[str, Any]]:
    """Yield a module's mutants: where, what was there, what is there now, and the whole text."""
    source = Path(path).read_text()
    lines = source.splitlines()
    operators: dict[str, Operator] = {name: get_operator(f"core/{name}")() for name in CHOSEN}
    tree = get_ast(source)
    nodes = list(ast_nodes(tree))
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    seen = {source}
    for name, operator in {
        "DropCall": DropCall(),
        "DropGuard": DropGuard(),
        "DropHandler": DropHandler(),
        **operators,
    }.items():
        for node in nodes:
            for index, _ in enumerate(operator.mutation_positions(node)):
                first, last = (starts[line - 1] + column for line, column in (node.start_pos, node.end_pos))
                changed = operator.mutate(_copy(node), index)
                mutated = source[:first] + (changed.get_code(include_prefix=False) if changed else "") + source[last:]
                if mutated in seen or not _compiles(mutated):
                    continue
                seen.add(mutated)
                after = mutated.splitlines()
                at = next(at for at, (a, b) in enumerate(zip(lines, after, strict=False)) if a != b)
                if ("@dataclass(" in lines[at] and "@dataclass(" in after[at]) or "ConfigDict(frozen=" in after[at]:
                    continue  # that saves memory and mistakes, and does nothing
                yield {
                    "module": path,
                    "place": _place(node),
                    "operator": name,
                    "line": at + 1,
                    "was": lines[at].strip(),
                    "is": after[at].strip(),
                    "source": mutated,
                }


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _copy(node: Any) -> Any:
    """Return a node with all that is below it, and nothing of what is above."""
    above, node.parent = node.parent, None
    try:
        found = copy.deepcopy(node)
    finally:
        node.parent = above
    found.parent = above  # operators ask what kind it is
    return found


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for mutant in mutants(argument):
            print(json.dumps(mutant))
