"""Drives the unmodified `wallaroo` SDK; runs with the interpreter of an environment that has it.

    python wallaroo_client.py URL WORKSPACE COMMAND...

User and password come from WALLAROO_USER and WALLAROO_PASSWORD, as the SDK wants. Each COMMAND is a JSON array: a
name of `COMMANDS` and its arguments. They run in order in one process; standard output gets one JSON array with what
each returned. The first that fails ends the process with a traceback.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import sys
import typing
from typing import Any

import pandas
import pyarrow
import wallaroo
from wallaroo.deployment_config import DeploymentConfigBuilder
from wallaroo.framework import CustomConfig, Framework

SCHEMAS = {
    "input_schema": pyarrow.schema([pyarrow.field("input", pyarrow.list_(pyarrow.float32(), 4))]),
    "output_schema": pyarrow.schema([pyarrow.field("output", pyarrow.int64())]),
}


class Driver:
    """One session of the SDK in one workspace, which is made where it is missing."""

    def __init__(self, url: str, workspace: str) -> None:
        self.client = wallaroo.Client(api_endpoint=url, auth_type="user_password", interactive=False)
        self.workspace = self.client.get_workspace(workspace, create_if_not_exist=True)
        self.client.set_current_workspace(self.workspace)

    def upload(self, name: str, path: str, framework: str) -> dict[str, Any]:
        """Upload and wait, with schemas where the framework needs them."""
        native = framework in ("onnx", "tensorflow")
        extra = {"framework_config": CustomConfig()} if framework == "custom" else {}
        version = self.client.upload_model(
            name, path, framework=Framework(framework), **({} if native else SCHEMAS), **extra
        )
        return self._facts(version)

    def register_image(self, name: str, image: str) -> dict[str, Any]:
        return self._facts(self.client.register_model_image(name, image))

    def schemas(self) -> dict[str, str]:
        """The schemas of `upload`, as they go over the wire."""
        return {key: base64.b64encode(schema.serialize()).decode() for key, schema in SCHEMAS.items()}

    def listed(self) -> list[list[Any]]:
        models = self.client.list_models(workspace_id=self.workspace.id())
        return [[model.name(), len(model.versions())] for model in models]

    def versions(self, name: str) -> list[dict[str, Any]]:
        """All versions of a model, newest first."""
        model = next(one for one in self.client.list_models(workspace_id=self.workspace.id()) if one.name() == name)
        return [self._facts(version) for version in model.versions()]

    def get(self, name: str, version: str | None = None) -> dict[str, Any]:
        return self._facts(self.client.get_model(name, version))

    def configure(self, name: str, field: str) -> list[str]:
        """Give the newest version another tensor field; what its config says then."""
        version = self.client.get_model(name).configure(tensor_fields=[field])
        return list(version.config().tensor_fields())

    def logs(self, name: str) -> list[str]:
        return list(self.client.get_model(name).get_upload_logs(limit=5))

    def generated(self, module: str, body: dict[str, Any]) -> list[Any]:
        """Status and content of an answer, as the SDK's generated client for an endpoint reads it."""
        endpoint = importlib.import_module(f"wallaroo.wallaroo_ml_ops_api_client.api.{module}")
        body_type = typing.get_type_hints(endpoint.sync_detailed)["body"]
        answer = endpoint.sync_detailed(client=self.client.mlops(), body=body_type.from_dict(body))
        found = answer.parsed
        if isinstance(found, list):
            return [int(answer.status_code), [item.to_dict() for item in found]]
        return [int(answer.status_code), found and found.to_dict()]

    def deploy(self, pipeline: str, name: str, version: str | None = None) -> dict[str, Any]:
        """Make a pipeline of one version, deploy it and wait."""
        config = DeploymentConfigBuilder().replica_count(1).cpus(1).memory("1Gi").build()
        built = self.client.build_pipeline(pipeline)
        built.add_model_step(self.client.get_model(name, version))
        built.deploy(deployment_config=config)
        return {"status": built.status()["status"], "url": built.url()}

    def status(self, pipeline: str) -> dict[str, Any]:
        return dict(self.client.get_pipeline(pipeline).status())

    def infer(self, pipeline: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The columns with predictions."""
        found = self.client.get_pipeline(pipeline).infer(pandas.DataFrame.from_records(rows))
        outputs = found[[column for column in found.columns if column.startswith("out")]]
        return list(json.loads(outputs.to_json(orient="records")))

    def infer_arrow(self, pipeline: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(self.client.get_pipeline(pipeline).infer(pyarrow.Table.from_pylist(rows)).to_pylist())

    def pipelines(self) -> list[str]:
        return [one.name() for one in self.client.list_pipelines(workspace_id=self.workspace.id())]

    def undeploy(self, pipeline: str) -> None:
        self.client.get_pipeline(pipeline).undeploy()

    def version(self) -> str:
        return str(wallaroo.__version__)

    def _facts(self, version: Any) -> dict[str, Any]:
        return {
            "id": version.id(),
            "name": version.name(),
            "version": version.version(),
            "sha": version.sha(),
            "status": str(getattr(version.status(), "value", version.status())),
            "file_name": version.file_name(),
            "error_summary": version.error_summary(),
        }


def main(url: str, workspace: str, *commands: str) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        driver = Driver(url, workspace)
        results = [getattr(driver, name)(*arguments) for name, *arguments in map(json.loads, commands)]
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
