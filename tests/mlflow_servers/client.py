"""Drives the unmodified `mlflow` client; runs with the interpreter of an environment that has it.

    python client.py

Each line of standard input is a JSON array: a tracking server's URL, a name of `COMMANDS`, and its arguments. Each is
answered by one line of JSON: `[true, result]`, or `[false, traceback]`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

# Else what a model needs is found out by loading it once more, in a process of its own.
_NEEDS = {"pip_requirements": ["scikit-learn"]}


def _trained() -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression().fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])


def save(directory: str) -> None:
    """Write a model of scikit-learn that doubles and adds one, as `mlflow` writes it."""
    import mlflow.sklearn

    mlflow.sklearn.save_model(_trained(), directory, **_NEEDS)


def log(name: str) -> str:
    """Log such a model in a run, and register it; return the version."""
    import mlflow.sklearn

    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(_trained(), "model", registered_model_name=name, **_NEEDS)
    return str(logged.registered_model_version)


def log_files(name: str, directory: str) -> str:
    """Log plain files to a run, and register them; return the version."""
    import mlflow

    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        mlflow.log_artifacts(directory, "files")
    client.create_registered_model(name)
    source = f"runs:/{run.info.run_id}/files"
    return str(client.create_model_version(name, source, run_id=run.info.run_id).version)


def predict(uri: str) -> list[float]:
    """Load a model and have it predict for 1 and 10."""
    import mlflow.pyfunc
    import numpy as np

    return [round(float(value), 6) for value in mlflow.pyfunc.load_model(uri).predict(np.array([[1.0], [10.0]]))]


def download(uri: str, directory: str) -> list[str]:
    """Download what a URI stands for; return the paths."""
    import mlflow.artifacts

    root = Path(mlflow.artifacts.download_artifacts(uri, dst_path=directory))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def version(name: str, number: str) -> dict[str, Any]:
    """Return a version's tags, aliases and status."""
    import mlflow

    found = mlflow.MlflowClient().get_model_version(name, number)
    return {"tags": found.tags, "aliases": list(found.aliases), "status": str(found.status)}


def set_alias(name: str, alias: str, number: str) -> None:
    import mlflow

    mlflow.MlflowClient().set_registered_model_alias(name, alias, number)


def copy(name: str, number: str, target: str) -> str:
    """Copy a version to another model; return the version there."""
    import mlflow

    return str(mlflow.MlflowClient().copy_model_version(f"models:/{name}/{number}", target).version)


def delete(name: str, number: str) -> None:
    import mlflow

    mlflow.MlflowClient().delete_model_version(name, number)


COMMANDS = {one.__name__: one for one in (save, log, log_files, predict, download, version, set_alias, copy, delete)}


def main() -> None:
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import mlflow

    for line in sys.stdin:
        url, name, *arguments = json.loads(line)
        try:
            mlflow.set_tracking_uri(url)
            answer = [True, COMMANDS[name](*arguments)]
        except Exception:
            answer = [False, traceback.format_exc()]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
