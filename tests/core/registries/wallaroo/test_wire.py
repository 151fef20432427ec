"""What Wallaroo sees: requests as the recorded clients make them, and options that are checked before any is made."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import ModelRef
from airflow_provider_modelsync.core.registries.wallaroo.upload import PushOptions, one_file
from tests.core.registries.wallaroo.instance import NAME, SCHEMA, SCHEMAS, UPLOAD, VERSION, WORKSPACE, Instance
from tests.standins.http_server import Request, Respond
from tests.standins.wallaroo import WallarooStandIn
from tests.support.data import DATA

RECORDED: dict[str, dict[str, Any]] = json.loads((DATA / "wallaroo-requests.json").read_text())
SECRETS = ("password", "refresh_token")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WallarooStandIn]:
    with WallarooStandIn(tmp_path / "server") as server:
        server.conversion = ["ready"]
        yield server


@pytest.fixture
def instance(server: WallarooStandIn) -> Instance:
    return Instance(server)


def push(instance: Instance, tmp_path: Path, file_name: str, options: Mapping[str, Any], name: str = NAME) -> None:
    (tmp_path / file_name).write_bytes(b"weights")
    instance.push(tmp_path / file_name, name, options=options)


# ---- requests as recorded ---------------------------------------------------------------------------------------


def compare(request: Request, step: str, **renamed: Any) -> None:
    """Compare a request with a recorded one: call, content type, kind of credentials, and all of the body.

    :param renamed: fields of the recorded body whose values are other ones here.
    """
    recorded = RECORDED[step]
    assert (request.method, request.path) == (recorded["method"], recorded["path"])
    headers = request.headers
    for name in ("content-type", "authorization"):
        mine, theirs = (found.get(name, "").partition(" ")[0] for found in (headers, recorded["headers"]))
        if step != "default architecture":  # which may be asked for without a token, or with one
            assert mine.partition(";")[0] == theirs.partition(";")[0]
    if "client" in recorded:
        pair = base64.b64decode(headers["authorization"].partition(" ")[2]).decode()
        assert pair.partition(":")[0] == recorded["client"]
    if "form" in recorded:
        form = {key: "<redacted>" if key in SECRETS else value for key, value in request.body.items()}
        assert form == {key: value for key, value in recorded["form"].items() if key != "scope"}
    if "json" in recorded:
        assert request.body == {**recorded["json"], **renamed}


def compare_upload(request: Request, step: str, server: WallarooStandIn, file_name: str | None) -> None:
    """Compare an upload's parts; ours also names what the guide leaves to defaults."""
    compare(request, step)
    assert "transfer-encoding" not in request.headers
    assert int(request.headers["content-length"]) == request.received
    recorded = RECORDED[step]["multipart"]
    assert [part["name"] for part in request.body] == ["metadata", "file"][: len(recorded)]
    assert [part["content_type"] for part in request.body] == [part["content_type"] for part in recorded]
    assert [part["filename"] for part in request.body] == [None, file_name][: len(recorded)]
    mine, theirs = request.body[0]["json"], recorded[0]["json"]
    workspace = next(one.id for one in server.workspaces.values() if one.name == WORKSPACE)
    assert mine["workspace_id"] == workspace
    assert mine.keys() == theirs.keys()
    assert {key: mine[key] for key in ("name", "visibility")} == {key: theirs[key] for key in ("name", "visibility")}
    defaults = {"arch": "x86", "accel": "none", "framework_config": None}
    assert {**defaults, **mine["conversion"]} == {**defaults, **theirs["conversion"]}


def test_logging_in_and_renewing(server: WallarooStandIn) -> None:
    for kind, fields in (("public", {}), ("confidential", {"client_secret": server.client_secret})):
        instance = Instance(server, fields)
        before = server.count("POST", "/token$")
        instance.list_models()
        server.revoke_access_tokens()
        instance.list_models()
        first, second = server.find("POST", "/token$")[before:]
        compare(first, f"password, {kind} client", username=server.username)
        compare(second, f"refresh, {kind} client")


def test_workspaces_and_models(server: WallarooStandIn, instance: Instance) -> None:
    instance.list_models()
    instance.list_versions("api-sample-model")
    workspace = max(server.workspaces)
    compare(server.find("POST", "/workspaces/list$")[0], "workspaces")
    compare(server.find("POST", "/workspaces/create$")[0], "new workspace", workspace_name=WORKSPACE)
    compare(server.find("POST", "/models/list$")[0], "models", workspace_id=workspace)
    compare(server.find("POST", "/list_versions_for_model$")[0], "versions of a model", workspace_id=workspace)


def test_the_older_listing_is_asked_for_with_the_models_own_number(server: WallarooStandIn, tmp_path: Path) -> None:
    server.scoped_listing, server.flat_listing = False, True
    instance = Instance(server)
    push(instance, tmp_path, "m.onnx", {"framework": "onnx"}, "api-sample-model")
    instance.list_versions("api-sample-model")
    number = server.versions_of("api-sample-model")[0].model.id
    compare(server.find("POST", "/list_versions$")[0], "versions of a model, older", models_pk_id=number)


def test_uploading_onnx(server: WallarooStandIn, instance: Instance, tmp_path: Path) -> None:
    options = {"framework": "onnx", "visibility": "public"}
    push(instance, tmp_path, "ccfraud.onnx", options, "api-sample-model")
    compare(server.find("GET", "/config$")[0], "default architecture")
    compare_upload(server.find("POST", UPLOAD)[0], "upload onnx", server, "ccfraud.onnx")
    number = server.versions_of("api-sample-model")[0].id
    compare(server.find("POST", VERSION)[0], "version", model_version_id=number)


def test_uploading_pytorch(server: WallarooStandIn, instance: Instance, tmp_path: Path) -> None:
    recorded = RECORDED["upload pytorch"]["multipart"][0]["json"]
    schemas = {key: recorded[key] for key in SCHEMAS}
    push(instance, tmp_path, "model.pt", {"framework": "pytorch", **schemas}, "pt-model")
    (request,) = server.find("POST", UPLOAD)
    compare_upload(request, "upload pytorch", server, "model.pt")
    assert {key: request.body[0]["json"][key] for key in schemas} == schemas  # beside the conversion, not in it


def test_uploading_a_custom_framework(server: WallarooStandIn, instance: Instance, tmp_path: Path) -> None:
    push(instance, tmp_path, "byop.zip", {"framework": "custom", **SCHEMAS}, "byop-model")
    compare_upload(server.find("POST", UPLOAD)[0], "upload custom", server, "byop.zip")


def test_configuration_logs_image_and_deletion(server: WallarooStandIn, instance: Instance, tmp_path: Path) -> None:
    push(instance, tmp_path, "m.onnx", {"framework": "onnx"})
    (stored,) = server.versions_of(NAME)
    ref = ModelRef(name=NAME, version=stored.uuid)
    instance.run(lambda registry: registry.config_of(ref))
    instance.run(lambda registry: registry.insert_config(ref, {"tensor_fields": ["dense_input"]}))
    instance.run(lambda registry: registry.upload_logs(ref, 5))
    instance.delete(str(ref))
    instance.run(lambda registry: registry.register_image("mlflow-img", "example.com/team/model:1"))
    number = stored.id
    compare(server.find("POST", "/get_config_by_id$")[0], "configuration", model_id=number)
    compare(server.find("POST", "/insert_model_config$")[0], "new configuration", model_version_id=number)
    compare(server.find("POST", "/get_upload_logs$")[0], "upload logs", model_version_id=number)
    compare(server.find("POST", "/delete_model_versions$")[0], "deletion", model_versions=[stored.uuid])
    (image,) = server.find("POST", "/models/upload$")
    compare_upload(image, "image", server, None)
    assert image.body[0]["json"]["image_path"] == RECORDED["image"]["multipart"][0]["json"]["image_path"]


def test_an_accelerator_must_go_with_the_default_architecture(
    server: WallarooStandIn, instance: Instance, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="jetson goes with arch arm, not x86"):
        push(instance, tmp_path, "m.onnx", {"framework": "onnx", "accel": "jetson"})
    assert server.count("POST", UPLOAD) == 0
    server.default_arch = "arm"
    push(instance, tmp_path, "m.onnx", {"framework": "onnx", "accel": "jetson"})
    assert server.count("POST", UPLOAD) == 1


@pytest.mark.parametrize("answer", [Respond(404), Respond(200, b"<html>"), Respond(200, {"default_arch": None})])
def test_without_a_known_default_the_architecture_is_left_out(
    server: WallarooStandIn, tmp_path: Path, answer: Respond
) -> None:
    server.fault("GET", "/config$", answer, times=None)
    instance = Instance(server)
    push(instance, tmp_path, "m.onnx", {"framework": "onnx"})
    push(instance, tmp_path, "m.onnx", {"framework": "onnx"})
    assert "arch" not in server.find("POST", UPLOAD)[0].body[0]["json"]["conversion"]
    assert server.count("POST", UPLOAD) == 1


# ---- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({}, "framework"),
        ({"framework": None}, "framework"),
        ({"framework": "onyx"}, "framework"),
        ({"framework": "mlflow"}, "framework"),
        ({"framework": "onnx", "arch": "riscv"}, "arch"),
        ({"framework": "onnx", "accel": "tpu"}, "accel"),
        ({"framework": "onnx", "accel": "qaic"}, "accel"),
        ({"framework": "onnx", "accel": {"cuda": {}}}, "accel"),
        ({"framework": "onnx", "accel": {"qaic": {}, "cuda": {}}}, "accel"),
        ({"framework": "onnx", "accel": "jetson", "arch": "x86"}, "accel"),
        ({"framework": "onnx", "accel": "openvino", "arch": "arm"}, "accel"),
        ({"framework": "onnx", "accel": {"qaic": {}}, "arch": "power10"}, "accel"),
        ({"framework": "onnx", "python_version": "2.7"}, "python_version"),
        ({"framework": "onnx", "requirements": "numpy"}, "requirements"),
        ({"framework": "onnx", "requirements": [1]}, "requirements.0"),
        ({"framework": "onnx", "visibility": "secret"}, "visibility"),
        ({"framework": "onnx", "colour": "red"}, "colour"),
        ({"framework": "onnx", "input_schema": "none"}, "input_schema"),
        ({"framework": "onnx", "framework_config": {"framework": "onnx", "config": {}}}, "framework_config"),
        ({"framework": "pytorch"}, "input_schema"),
        ({"framework": "pytorch", "input_schema": SCHEMA}, "output_schema"),
        ({"framework": "python"}, "input_schema"),
        ({"framework": "pytorch", **SCHEMAS, "output_schema": "/no/such/file"}, "output_schema"),
        ({"framework": "pytorch", **SCHEMAS, "output_schema": base64.b64encode(b"no").decode()}, "output_schema"),
        ({"framework": "pytorch", **SCHEMAS, "output_schema": 5}, "output_schema"),
        ({"framework": "custom", **SCHEMAS, "framework_config": {"model_path": "x"}}, "framework_config"),
        (
            {"framework": "custom", **SCHEMAS, "framework_config": {"framework": "vllm", "config": {}}},
            "framework_config",
        ),
        ({"framework": "onnx", "image_path": "example.com/image:1"}, "image_path"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidInput, match=f"option '{option}'") as caught:
        PushOptions.read(options)
    assert caught.value.argument == "options"


@pytest.mark.parametrize(
    "options",
    [
        {"framework": "onnx", "arch": "arm", "accel": "jetson"},
        {"framework": "onnx", "arch": "x86", "accel": {"qaic": {"num_cores": 16}}},
        {"framework": "tensorflow", "requirements": [], "arch": None, "accel": None},
        {"framework": "onnx", **SCHEMAS},
        {"framework": "tensorflow", "input_schema": SCHEMA, "output_schema": None},
        {"framework": "hugging-face-summarization", **SCHEMAS, "python_version": "3.9", "requirements": ["tokenizers"]},
    ],
)
def test_good_options_are_taken(options: dict[str, Any]) -> None:
    read = PushOptions.read(options)
    for name, value in options.items():
        if value is not None:
            assert getattr(read, name) == (tuple(value) if isinstance(value, list) else value)


def test_a_python_script_may_do_without_schemas_when_they_are_left_out_on_purpose() -> None:
    assert PushOptions.read({"framework": "python", "input_schema": None, "output_schema": None}).schemas() == {}


def test_a_schema_is_text_or_a_file(tmp_path: Path) -> None:
    raw = base64.b64decode(SCHEMA)
    (tmp_path / "schema.arrow").write_bytes(raw)

    for given in (SCHEMA, str(tmp_path / "schema.arrow"), tmp_path / "schema.arrow"):
        options = PushOptions.read({"framework": "pytorch", "input_schema": given, "output_schema": given})
        assert options.schemas() == SCHEMAS


@pytest.mark.parametrize("framework", ["onnx", "tensorflow", "python", "pytorch"])
def test_schemas_of_pyarrow_travel_as_the_guide_writes_them(instance: Instance, tmp_path: Path, framework: str) -> None:
    fields = pyarrow.schema([pyarrow.field("tensor", pyarrow.list_(pyarrow.float32(), 3)), ("count", pyarrow.int64())])
    empty = pyarrow.schema([])
    endings = {"onnx": "onnx", "tensorflow": "zip", "python": "py", "pytorch": "pt"}
    options = {"framework": framework, "input_schema": fields, "output_schema": empty}
    push(instance, tmp_path, f"model.{endings[framework]}", options)

    (request,) = instance.server.find("POST", UPLOAD)
    sent = request.body[0]["json"]
    for name, schema in (("input_schema", fields), ("output_schema", empty)):
        raw = base64.b64decode(sent[name])
        assert raw == bytes(schema.serialize())
        assert pyarrow.ipc.read_schema(pyarrow.py_buffer(raw)).equals(schema)


def test_framework_configurations_are_completed_as_the_vendors_client_does() -> None:
    mine = {"framework": "vllm", "config": {"max_num_seqs": 8, "max_model_len": 4096}}
    config = PushOptions.read({"framework": "vllm", **SCHEMAS, "framework_config": mine}).framework_config
    assert config is not None
    assert config["framework"] == "vllm"
    assert config["config"] == {
        "gpu_memory_utilization": 0.9,
        "kv_cache_dtype": "auto",
        "max_num_seqs": 8,
        "quantization": "none",
        "max_model_len": 4096,
    }


# ---- a source need not be on this machine -----------------------------------------------------------------------


class Elsewhere(Source):
    """A model whose bytes come from nowhere in the file system."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._bytes = dict(files)
        self.directories = ()
        self.files = tuple(
            FileEntry(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()
        )

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        view[:] = self._bytes[path][offset : offset + len(view)]
        return len(view)

    def confirm(self) -> None:
        """Nothing has changed."""


@pytest.mark.parametrize("framework", ["onnx", "custom"])
def test_a_source_that_is_elsewhere_will_do(framework: str) -> None:
    source = Elsewhere({"a.onnx": b"weights", "b.txt": b"words"})
    file = SyncDriver().run(one_file("digits", framework, source))
    content = file.layout.reader().readall()
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert file.name == {"onnx": "a.onnx", "custom": "digits.zip"}[framework]
