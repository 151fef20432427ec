"""The unmodified `wallaroo` SDK works with the stand-in: what it accepts is what our client is tested against."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.models import Deployment, ModelVersion, Query
from airflow_provider_modelsync.core.registries.wallaroo.registry import Wallaroo, WallarooSettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.push import push
from tests.standins.wallaroo import WallarooStandIn, run_onnx, total

pytestmark = pytest.mark.vendor

ROOT = Path(__file__).parents[2]
INTERPRETER = "MODELSYNC_VENDOR_WALLAROO"
WORKSPACE = "api-ws"
ROWS = [{"x": [1.0, 2.5]}, {"x": [4.0, -3.0]}]
DOUBLED = [{"y": [2.0, 5.0]}, {"y": [8.0, -6.0]}]


class VendorError(Exception):
    """The SDK raised; the text is its traceback."""


@dataclass(frozen=True)
class VendorClient:
    """The SDK as a user of one server. It keeps its login in its home directory."""

    python: Path
    home: Path
    server: WallarooStandIn

    def run(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run commands of wallaroo_client.py in one process; what each returned."""
        script = str(Path(__file__).with_name("wallaroo_client.py"))
        arguments = [json.dumps(command) for command in commands]
        self.home.mkdir(exist_ok=True)
        done = subprocess.run(
            [str(self.python), script, self.server.url, WORKSPACE, *arguments],
            env={
                "PATH": os.defpath,
                "HOME": str(self.home),
                "NO_PROXY": "*",
                "WALLAROO_USER": self.server.username,
                "WALLAROO_PASSWORD": self.server.password,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise VendorError(done.stderr)
        results: list[Any] = json.loads(done.stdout)
        return results


@pytest.fixture(scope="session")
def interpreter() -> Path:
    python = Path(os.environ.get(INTERPRETER, ROOT / ".venv-vendors" / "wallaroo" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"{python} is missing: run `make test-vendors`, or name an interpreter in {INTERPRETER}")
    return python


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WallarooStandIn]:
    """A server that converts and deploys at once: the SDK looks only every few seconds."""
    with WallarooStandIn(tmp_path / "server") as server:
        server.conversion, server.deployment = ["ready"], ["Running"]
        server.predict = run_onnx
        yield server


@pytest.fixture
def vendor(interpreter: Path, server: WallarooStandIn, tmp_path: Path) -> VendorClient:
    return VendorClient(interpreter, tmp_path / "vendor", server)


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that doubles two numbers."""
    from onnx import TensorProto, checker, helper

    path = tmp_path_factory.mktemp("model") / "double.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A model for the custom framework."""
    path = tmp_path / "byop.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("main.py", "print()\n")
        file.writestr("requirements.txt", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def served(status: dict[str, Any]) -> list[str]:
    """The versions that a deployment's engine serves."""
    return [one["version"] for one in status["engines"][0]["model_statuses"]["models"]]


class Ours:
    """Our registry, with its verbs run in place."""

    def __init__(self, server: WallarooStandIn) -> None:
        fields = {"host": server.url, "login": server.username, "password": server.password, "workspace": WORKSPACE}
        self.registry = Wallaroo(WallarooSettings.read("wallaroo", {**fields, "create_workspace": True}))

    def push(self, source: Path, name: str, **options: Any) -> ModelVersion:
        with driver_for(self.registry) as driver:
            ref = self.registry.parse(name)
            return push(self.registry, driver, source, ref, Control(), options=options)

    def list_versions(self, name: str) -> list[ModelVersion]:
        with driver_for(self.registry) as driver:
            return driver.run(self.registry.list_versions(name, Query()))

    def deploy(self, pipeline: str, ref: str) -> Deployment:
        with driver_for(self.registry) as driver:
            return driver.run(self.registry.deploy(pipeline, self.registry.parse(ref), {}))

    def deployment(self, pipeline: str) -> Deployment:
        with driver_for(self.registry) as driver:
            return driver.run(self.registry.deployment(pipeline))

    def get(self, ref: str) -> ModelVersion:
        with driver_for(self.registry) as driver:
            return driver.run(self.registry.get(self.registry.parse(ref), Query()))


# ---- the SDK and the stand-in -----------------------------------------------------------------------------------


def test_the_sdk_uploads_lists_and_configures(
    server: WallarooStandIn, vendor: VendorClient, onnx_file: Path, archive: Path
) -> None:
    version, first, custom, image, again, listed, versions, newest, fields, logs, schemas = vendor.run(
        ("version",),
        ("upload", "double", str(onnx_file), "onnx"),
        ("upload", "byop", str(archive), "custom"),
        ("register_image", "image", "example.com/team/model:1"),
        ("upload", "double", str(onnx_file), "onnx"),
        ("listed",),
        ("versions", "double"),
        ("get", "double"),
        ("configure", "double", "dense_input"),
        ("logs", "byop"),
        ("schemas",),
    )
    ours = server.versions_of("double")
    assert version == "2026.1.3"
    assert [one["sha"] for one in (first, custom, image)] == [sha256(onnx_file), sha256(archive), ""]
    assert [one["status"] for one in (first, custom, image)] == ["ready"] * 3
    assert [(one["id"], one["version"]) for one in versions] == [(one.id, one.uuid) for one in reversed(ours)]
    assert newest == again == versions[0]
    assert listed == [["image", 1], ["byop", 1], ["double", 2]]
    assert (fields, logs) == (["dense_input"], [])
    assert ours[-1].configs[-1]["tensor_fields"] == ["dense_input"]
    assert server.count(path="/workspaces/create$") == 1
    assert [one.path for one in server.find(path="/models/upload")] == [
        "/v1/api/models/upload",
        "/v1/api/models/upload_and_convert",
        "/v1/api/models/upload",
        "/v1/api/models/upload",
    ]
    (sent,) = server.find(path="/upload_and_convert$")
    assert schemas.items() <= sent.body[0]["json"].items()
    assert server.versions_of("byop")[0].configs[0]["input_schema"] == schemas["input_schema"]


def test_the_sdk_deploys_infers_replaces_and_undeploys(
    server: WallarooStandIn, vendor: VendorClient, onnx_file: Path
) -> None:
    first, deployed, status, predictions, table, names, second, replaced, after, ended = vendor.run(
        ("upload", "double", str(onnx_file), "onnx"),
        ("deploy", "pipe", "double"),
        ("status", "pipe"),
        ("infer", "pipe", ROWS),
        ("infer_arrow", "pipe", ROWS),
        ("pipelines",),
        ("upload", "double", str(onnx_file), "onnx"),
        ("deploy", "pipe", "double"),
        ("status", "pipe"),
        ("undeploy", "pipe"),
    )
    assert deployed == {"status": "Running", "url": f"{server.url}/v1/api/pipelines/infer/pipe-1/pipe"}
    assert replaced == deployed
    assert (served(status), served(after)) == ([first["version"]], [second["version"]])
    assert [one["out"] for one in predictions] == DOUBLED
    assert table == ROWS
    assert (names, ended) == (["pipe"], None)
    deployment = server.pipelines[1].deployment
    assert deployment is not None
    assert not deployment.deployed
    assert deployment.engine_config["engine"]["cpu"] == 1


def test_the_sdk_tells_why_a_conversion_failed(server: WallarooStandIn, vendor: VendorClient, archive: Path) -> None:
    server.script_conversion("byop", ["error"], error_summary="no such package: numpi", logs=["the newest line"])
    failed, logs = vendor.run(("upload", "byop", str(archive), "custom"), ("logs", "byop"))
    assert (failed["status"], failed["error_summary"]) == ("error", "no such package: numpi")
    assert logs == ["the newest line"]


def test_the_sdk_is_not_let_in_with_a_wrong_password(server: WallarooStandIn, vendor: VendorClient) -> None:
    server.users[server.username].password = "another"
    with pytest.raises(VendorError):
        vendor.run(("listed",))
    assert server.users[server.username].failures > 0
    assert server.count(path="^/v1/api/") == 0


def test_the_generated_client_reads_every_answer(server: WallarooStandIn, vendor: VendorClient) -> None:
    server.predict = total
    workspace = {"workspace_id": server.add_workspace(WORKSPACE).id}
    version, other = (server.seed(workspace["workspace_id"], "tiny", content) for content in (b"1", b"2"))
    model = {"model_id": "tiny", **workspace}
    pipe = {"pipeline_id": "pipe", **workspace}
    number, step = version.id, {"ModelInference": {"models": [version.step]}}
    asked: dict[str, dict[str, Any]] = {
        "workspace.workspaces_list": {},
        "model.list_models": workspace,
        "model.list_versions_for_model": model,
        "model.models_list_versions": {"model_id": "tiny", "models_pk_id": version.model.id},
        "model.models_get": {"id": version.model.id},
        "model.get_model_version_by_id": {"model_version_id": number},
        "model.v1_model_get_config": {"model_id": number},
        "model.v1_model_get_model_by_id": {"id": version.model.id},
        "model.insert_model_config": {"model_version_id": number, "tensor_fields": ["x"]},
        "model.get_upload_logs": {"model_version_id": number, "lines": 5},
        "pipelines.pipelines_create": {**pipe, "definition": {"id": "pipe", "steps": [step]}},
        "pipelines.pipelines_deploy": {"deploy_id": "pipe", "pipeline_version_pk_id": 51, "pipeline_id": 1},
        "pipelines.get_pipeline_by_name": {"pipeline_name": "pipe", **workspace},
        "pipelines.list_pipelines": workspace,
        "pipelines.list_pipeline_versions": pipe,
        "admin.admin_get_pipeline_external_url": {"pipeline_name": "pipe", **workspace},
    }
    answers = dict(zip(asked, vendor.run(*(("generated", *call) for call in asked.items())), strict=True))
    assert {module: status for module, (status, found) in answers.items() if status != 200 or found is None} == {}
    (listed,) = answers["model.list_versions_for_model"][1]["models"]
    assert [one["model_version"]["id"] for one in listed["model_versions"]] == [other.id, number]
    assert answers["model.get_model_version_by_id"][1]["model_version"]["model_version"]["id"] == number
    assert answers["pipelines.pipelines_deploy"][1] == {"id": 1}

    drop = {"model_versions": [version.uuid], "confirm_delete": True}
    undeploy = ("generated", "pipelines.pipelines_undeploy", {"deployment_id": 1})
    delete = ("generated", "model.delete_model_versions", drop)
    refused, _, deleted, model_deleted, pipeline_deleted = vendor.run(
        delete,
        undeploy,
        delete,
        ("generated", "model.delete_model", {**model, "confirm_delete": True}),
        ("generated", "pipelines.delete_pipeline", pipe),
    )
    assert [one[0] for one in (refused, deleted, model_deleted, pipeline_deleted)] == [409, 200, 200, 200]
    assert deleted[1] == {"bytes": 1}
    assert (server.versions_of("tiny"), server.pipelines) == ([], {})


# ---- the SDK and ours -------------------------------------------------------------------------------------------


def test_the_sdk_deploys_what_we_pushed(server: WallarooStandIn, vendor: VendorClient, onnx_file: Path) -> None:
    pushed = Ours(server).push(onnx_file, "double", framework="onnx")
    seen, deployed, predictions, status = vendor.run(
        ("get", "double"), ("deploy", "pipe", "double"), ("infer", "pipe", ROWS), ("status", "pipe")
    )
    assert (seen["version"], seen["sha"], seen["file_name"]) == (pushed.version, sha256(onnx_file), onnx_file.name)
    assert (deployed["status"], served(status)) == ("Running", [pushed.version])
    assert [one["out"] for one in predictions] == DOUBLED


def test_we_find_what_the_sdk_uploaded_and_do_not_send_it_again(
    server: WallarooStandIn, vendor: VendorClient, onnx_file: Path, archive: Path
) -> None:
    native, custom, schemas = vendor.run(
        ("upload", "double", str(onnx_file), "onnx"), ("upload", "byop", str(archive), "custom"), ("schemas",)
    )
    ours = Ours(server)
    assert [one.version for one in ours.list_versions("double")] == [native["version"]]
    found = ours.get(f"byop:{custom['version']}")
    assert (found.version, found.status.value) == (custom["version"], "ready")
    uploads = server.count(path="/models/upload")
    assert ours.push(onnx_file, "double", framework="onnx", arch="x86").version == native["version"]
    assert ours.push(archive, "byop", framework="custom", arch="x86", **schemas).version == custom["version"]
    assert server.count(path="/models/upload") == uploads


def test_the_sdk_infers_through_a_pipeline_of_ours(
    server: WallarooStandIn, vendor: VendorClient, onnx_file: Path
) -> None:
    ours = Ours(server)
    pushed = ours.push(onnx_file, "double", framework="onnx")
    ours.deploy("pipe", f"double:{pushed.version}")
    assert ours.deployment("pipe").ready
    status, predictions, _ = vendor.run(("status", "pipe"), ("infer", "pipe", ROWS), ("undeploy", "pipe"))
    assert served(status) == [pushed.version]
    assert [one["out"] for one in predictions] == DOUBLED
    assert ours.deployment("pipe").gone


def test_our_upload_says_what_the_sdk_s_says(server: WallarooStandIn, vendor: VendorClient, archive: Path) -> None:
    _, schemas = vendor.run(("upload", "byop", str(archive), "custom"), ("schemas",))
    Ours(server).push(archive, "ours", framework="custom", arch="x86", **schemas)
    theirs, sent = server.find(path="/upload_and_convert$")
    assert sent.body[0]["json"] | {"name": "byop"} == theirs.body[0]["json"]
    assert sent.body[1] == theirs.body[1]
