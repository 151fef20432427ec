"""The example DAGs: parsed often and everywhere, so their files must be light and need no connection."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "example_dags").glob("*.py"))
HEAVY = {"boto3", "botocore", "numpy", "onnx", "onnxruntime", "pandas", "scipy", "skl2onnx", "sklearn", "torch"}
AMAZON = {"boto3", "botocore"}
# Undefined in runs that an asset or the API has triggered, where templating then fails the task.
DATE_WORDS = re.compile(r"\b(ds|ds_nodash|ts|ts_nodash|logical_date|execution_date|data_interval_\w+)\b")

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def test_there_are_examples() -> None:
    assert EXAMPLES


# Loads Airflow once, and parses each file in a fork of its own.
PARSE = """
import json, os, runpy, sys, traceback
from airflow.sdk import DAG
from airflow.dag_processing.dagbag import DagBag

for example in sys.argv[1:]:
    if not os.fork():
        try:
            runpy.run_path(example)
            bag = DagBag(example, load_op_links=False)
            told = {"errors": bag.import_errors, "dags": {dag.dag_id: len(dag.tasks) for dag in bag.dags.values()}}
        except BaseException:
            told = {"errors": traceback.format_exc()}
        print(json.dumps({"example": example, **told, "modules": sorted(sys.modules)}), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def parsed() -> dict[Path, dict[str, Any]]:
    """What parsing each example has led to, by its path."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")}
    command = (sys.executable, "-c", PARSE, *map(str, EXAMPLES))
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"example"')]
    return {Path(told["example"]): told for told in lines}


@each_example
def test_it_parses_lightly_and_without_any_connection(example: Path, parsed: dict[Path, dict[str, Any]]) -> None:
    told = parsed[example]

    assert told["errors"] == {}
    assert told["dags"]
    assert all(told["dags"].values())
    loaded = set(told["modules"])
    # Where it is installed, Airflow's Amazon provider is asked about every asset's URI, and loads boto3.
    assert loaded.isdisjoint(HEAVY - AMAZON if "airflow.providers.amazon" in loaded else HEAVY)


@each_example
def test_it_uses_no_template_word_that_may_be_undefined(example: Path) -> None:
    texts = [node.value for node in ast.walk(ast.parse(example.read_text())) if isinstance(node, ast.Constant)]
    templates = [text for text in texts if isinstance(text, str) and "{{" in text]

    assert [text for text in templates if DATE_WORDS.search(text)] == []


@each_example
def test_it_explains_itself(example: Path) -> None:
    assert ast.get_docstring(ast.parse(example.read_text()))
