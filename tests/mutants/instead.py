"""A plugin of pytest that loads a mutant in its module's place, for those that are more than a function's code."""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads a mutant in its module's place."""

    def __init__(self, mutant: dict[str, Any]) -> None:
        self._name = mutant["module"].removesuffix(".py").replace("/", ".")
        self._path = str(Path(__file__).parents[2] / mutant["module"])
        self._source = mutant["source"]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=self._path)

    def exec_module(self, module: Any) -> None:
        module.__file__ = self._path
        exec(compile(self._source, self._path, "exec"), module.__dict__)


sys.meta_path.insert(0, Instead(json.loads(Path(os.environ["MODELSYNC_MUTANT"]).read_text())))
