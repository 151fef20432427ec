"""What users can be told: the messages in the package's code, with a placeholder for what is filled in."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import airflow_provider_modelsync
from airflow_provider_modelsync.core import errors
from airflow_provider_modelsync.core.errors import ModelSyncError

PACKAGE = Path(next(iter(airflow_provider_modelsync.__path__)))
FILLED_IN = "…"
_SAYS_SOMETHING = 8  # letters
_FACTS = ("model", "connection", "field", "server said", "what to do", "next")
_LEVELS = ("warning", "error", "exception")


@dataclass(frozen=True, order=True)
class Message:
    """A message that says what to do.

    :param text: as it is written, with :data:`FILLED_IN` for what is filled in.
    :param remedy: what to do, likewise.
    """

    text: str
    remedy: str


def kinds() -> dict[str, type[ModelSyncError]]:
    """Return the classes of errors that say what to do about all of their kind."""
    found = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    bases = ("ModelSyncError", "Retryable", "Permanent")
    return {name: kind for name, kind in found.items() if issubclass(kind, ModelSyncError) and name not in bases}


def messages() -> set[Message]:
    """Return the messages that have a remedy of their own."""
    return {message for path in _modules() for message in _messages_in(ast.parse(path.read_text()))}


def warnings() -> set[str]:
    """Return what is logged as a warning or an error, without those that only repeat another message."""
    texts = {
        _template(call.args[0])
        for path in _modules()
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in _LEVELS
        and ast.unparse(call.func.value) in ("log", "_log", "self.log")
        and call.args
    }
    return {text for text in texts if re.search(r"\w{3}", text)}


def patterns_of_lines() -> set[str]:
    """Return patterns of the lines that the package writes into logs: every text in it that says something.

    Texts of a few letters would fit whatever a document says.
    """
    texts = {
        _template(node)
        for path in _modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.JoinedStr, ast.Constant))
    }
    return {
        ".*".join(map(re.escape, text.split(FILLED_IN)))
        for text in texts
        if len(re.sub(r"\W", "", text)) >= _SAYS_SOMETHING and "\n" not in text
    } | {rf"^  {name}: +\S" for name in _FACTS}


def _modules() -> Iterator[Path]:
    return iter(sorted(PACKAGE.rglob("*.py")))


def _messages_in(tree: ast.Module) -> Iterator[Message]:
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        remedy = next((keyword.value for keyword in call.keywords if keyword.arg == "remedy"), None)
        if isinstance(remedy, ast.Name):
            remedy = constants.get(remedy.id)
        if remedy is None or not call.args:
            continue
        text, told = _template(call.args[0]), _template(remedy)
        if re.search(r"\w{3}", told):
            yield Message(text, told)


def _template(node: ast.AST) -> str:
    """Return a text as it stands in the code, with a placeholder for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            text = re.sub(r"%(?:\.\d)?[sdrf]", FILLED_IN, text)
        case ast.JoinedStr(values=parts):
            text = "".join(map(_template, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            text = _template(left) + _template(right)
        case _:
            text = FILLED_IN
    return re.sub(rf"{FILLED_IN}+", FILLED_IN, text)
