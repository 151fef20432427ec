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


def build_bento(service: str, directory: str, version: str, labels: dict[str, str]) -> str:
    """Build a bento of a directory; its directory in the local store."""
    import bentoml

    # Without this the client asks the package index for the newest versions.
    python = {"lock_packages": False}
    bento = bentoml.build(service, build_ctx=directory, version=version, labels=labels, python=python)
    return str(bento.path)


def push_bento(tag: str, force: bool = False) -> None:
    import bentoml

    bentoml.push(tag, force=force)


def pull_bento(tag: str) -> dict[str, Any]:
    from bentoml.cloud import BentoCloudClient

    bento = BentoCloudClient().bento.pull(tag, with_models=True)
    return {"path": str(bento.path), "labels": bento.info.labels, "description": bento.doc}


def remote_bentos() -> list[str]:
    from bentoml.cloud import BentoCloudClient

    return [f"{bento.repository.name}:{bento.version}" for bento in BentoCloudClient().bento.list().items]


def remote_bento(name: str, version: str | None = None) -> dict[str, Any]:
    from bentoml.cloud import BentoCloudClient

    bento = BentoCloudClient().bento.get(name, version)
    return {
        "version": bento.version,
        "upload_status": bento.upload_status,
        "labels": {label.key: label.value for label in bento.labels},
        "description": bento.description,
        "models": bento.manifest.models,
        "services": [service.name for service in bento.manifest.services],
    }


def cli(*arguments: str) -> None:
    """`bentoml ARGUMENTS...`"""
    from bentoml_cli.cli import cli as command

    command(list(arguments), standalone_mode=False)


def version() -> str:
    import bentoml

    return bentoml.__version__


COMMANDS = {
    function.__name__: function
    for function in (
        create,
        push,
        pull,
        remote_list,
        remote_get,
        local_list,
        push_huggingface,
        build_bento,
        push_bento,
        pull_bento,
        remote_bentos,
        remote_bento,
        cli,
        version,
    )
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
