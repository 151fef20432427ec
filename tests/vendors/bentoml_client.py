"""Drives the unmodified `bentoml` client; runs with the interpreter of an environment that has it.

    python bentoml_client.py URL TOKEN HOME COMMAND...

Each COMMAND is a JSON array: a name of `COMMANDS` and its arguments. They run in order in one process; standard
output gets one JSON array with what each returned. The first that fails ends the process with a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any


def create(tag: str, source: str, labels: dict[str, str], metadata: dict[str, Any]) -> str:
    """Put a directory into the local store as a model."""
    import bentoml

    with bentoml.models.create(tag, labels=labels, metadata=metadata) as model:
        shutil.copytree(source, model.path, dirs_exist_ok=True)
    return str(model.tag)


def push(tag: str, force: bool = False) -> None:
    import bentoml

    bentoml.models.push(tag, force=force)


def pull(tag: str, force: bool = False, query: str | None = None) -> dict[str, Any] | None:
    from bentoml.cloud import BentoCloudClient

    model = BentoCloudClient().model.pull(tag, force=force, query=query)
    if model is None:
        return None
    info = model.info
    return {"tag": str(model.tag), "path": model.path, "labels": info.labels, "metadata": info.metadata}


def remote_list() -> list[str]:
    from bentoml.cloud import BentoCloudClient

    return [f"{model.repository.name}:{model.version}" for model in BentoCloudClient().model.list().items]


def remote_get(name: str, version: str | None = None) -> dict[str, Any]:
    from bentoml.cloud import BentoCloudClient

    model = BentoCloudClient().model.get(name, version)
    return {
        "version": model.version,
        "upload_status": str(getattr(model.upload_status, "value", model.upload_status)),
        "labels": {label.key: label.value for label in model.labels},
        "metadata": model.manifest.metadata,
        "size_bytes": model.manifest.size_bytes,
    }


def local_list() -> list[str]:
    import bentoml

    return sorted(str(model.tag) for model in bentoml.models.list())


def push_huggingface(model_id: str, endpoint: str) -> str:
    """Register a reference to a model of a Hugging Face endpoint."""
    import bentoml
    from bentoml.cloud import BentoCloudClient

    model = bentoml.models.HuggingFaceModel(model_id, endpoint=endpoint)
    BentoCloudClient().model.push(model)
    return str(model.to_info().tag)


def cli(*arguments: str) -> None:
    """`bentoml ARGUMENTS...`"""
    from bentoml_cli.cli import cli as command

    command(list(arguments), standalone_mode=False)


def version() -> str:
    import bentoml

    return bentoml.__version__


COMMANDS = {
    function.__name__: function
    for function in (create, push, pull, remote_list, remote_get, local_list, push_huggingface, cli, version)
}


def main(url: str, token: str, home: str, *commands: str) -> None:
    os.environ["BENTO_CLOUD_API_ENDPOINT"] = url
    os.environ["BENTO_CLOUD_API_KEY"] = token
    os.environ["BENTOML_HOME"] = home
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    Path(home).mkdir(parents=True, exist_ok=True)
    results = []
    with contextlib.redirect_stdout(sys.stderr):
        for command in commands:
            name, *arguments = json.loads(command)
            results.append(COMMANDS[name](*arguments))
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
