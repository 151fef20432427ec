"""The unmodified `bentoml` client works with the stand-in: what it accepts is what our client is tested against."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.core.registries.bentocloud.cloud import BentoStore, Cloud
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Request, Respond

pytestmark = pytest.mark.vendor

ROOT = Path(__file__).parents[2]
INTERPRETER = "MODELSYNC_VENDOR_BENTOCLOUD"
MIB = 1024 * 1024
SERVICE = """
from __future__ import annotations

import bentoml


@bentoml.service(envs=[{"name": "STAGE", "value": "dev"}], resources={"cpu": "1"})
class Tiny:
    model = bentoml.models.BentoModel("tiny:v1")

    @bentoml.api
    def length(self, text: str) -> int:
        return len(text)
"""


class VendorError(Exception):
    """The vendor's client raised; the text is its traceback."""


@dataclass(frozen=True)
class VendorClient:
    """The vendor's client against one server, with a local store of its own."""

    python: Path
    home: Path
    server: BentoCloudStandIn
    token: str

    def run(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run commands of bentoml_client.py in one process; what each returned."""
        script = str(Path(__file__).with_name("bentoml_client.py"))
        arguments = [json.dumps(command) for command in commands]
        done = subprocess.run(
            [str(self.python), script, self.server.url, self.token, str(self.home), *arguments],
            # Builds look for uv, which lies beside this interpreter.
            env={"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": str(self.home), "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise VendorError(done.stderr)
        results: list[Any] = json.loads(done.stdout)
        return results

    def push(self, tag: str, source: Path, *, labels: dict[str, str] | None = None, **metadata: Any) -> None:
        """Make a model of a directory and push it."""
        self.run(("create", tag, str(source), labels or {}, metadata), ("push", tag))

    def build(self, model: Path, *bentos: str) -> list[Path]:
        """Push a model as ``tiny:v1`` and build bentos with it, from one project; their directories."""
        project = self.home.parent / "project"
        project.mkdir(exist_ok=True)
        (project / "service.py").write_text(SERVICE)
        (project / "README.md").write_text("# Größe\n")
        self.push("tiny:v1", model)
        labels = {"stage": "dev"}
        built = self.run(*(("build_bento", "service:Tiny", str(project), version, labels) for version in bentos))
        return [Path(directory) for directory in built]

    def pull(self, tag: str) -> Path:
        """Pull a model; the directory in the local store."""
        (pulled,) = self.run(("pull", tag))
        return Path(pulled["path"])


@pytest.fixture(scope="session")
def interpreter() -> Path:
    python = Path(os.environ.get(INTERPRETER, ROOT / ".venv-vendors" / "bentocloud" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"{python} is missing: run `make test-vendors`, or name an interpreter in {INTERPRETER}")
    return python


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BentoCloudStandIn]:
    with BentoCloudStandIn(tmp_path / "server") as server:
        yield server


@pytest.fixture
def vendor(interpreter: Path, server: BentoCloudStandIn, tmp_path: Path) -> VendorClient:
    return VendorClient(interpreter, tmp_path / "vendor", server, server.token)


@pytest.fixture
def elsewhere(interpreter: Path, server: BentoCloudStandIn, tmp_path: Path) -> VendorClient:
    """The same client on another machine: its local store is empty."""
    return VendorClient(interpreter, tmp_path / "elsewhere", server, server.token)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model: files in two directories."""
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "weights.bin").write_bytes(bytes(range(256)) * 300)
    (directory / "sub" / "labels.txt").write_text("cat\ndog\n")
    return directory


def digests(directory: Path) -> dict[str, str]:
    """Each file's digest, but for what the vendor's client adds."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "model.yaml"
    }


def calls(server: BentoCloudStandIn) -> list[str]:
    """The requests in short: method and last segment."""
    return [f"{request.method} {request.path.rsplit('/', 1)[1]}" for request in server.requests]


def assert_no_credential(requests: list[Request]) -> None:
    assert requests
    for request in requests:
        assert set(request.headers) <= {
            "host",
            "accept",
            "accept-encoding",
            "connection",
            "user-agent",
            "content-length",
        }


def test_the_client_is_the_recorded_one(vendor: VendorClient) -> None:
    assert vendor.run(("version",)) == ["1.4.40"]


def test_proxy(server: BentoCloudStandIn, vendor: VendorClient, elsewhere: VendorClient, source: Path) -> None:
    server.transmission_strategy = "proxy"
    vendor.push("tiny:v1", source)
    assert calls(server) == [
        "GET tiny",
        "POST model_repositories",
        "GET v1",
        "POST models",
        "PATCH start_upload",
        "PUT upload",
    ]
    assert server.model("tiny", "v1").upload_status == "success"
    pulled = elsewhere.pull("tiny:v1")
    assert calls(server)[6:] == ["PATCH presign_download_url", "GET download"]
    assert digests(pulled) == digests(source)


def test_no_strategy_and_no_presigned_urls_is_proxy(
    server: BentoCloudStandIn, vendor: VendorClient, elsewhere: VendorClient, source: Path
) -> None:
    server.presigned_urls = False
    vendor.push("tiny:v1", source)
    pulled = elsewhere.pull("tiny:v1")
    assert (server.count("PUT", "/upload$"), server.count("GET", "/download$")) == (1, 1)
    assert digests(pulled) == digests(source)


def test_single_presigned(
    server: BentoCloudStandIn, vendor: VendorClient, elsewhere: VendorClient, source: Path
) -> None:
    vendor.push("tiny:v1", source)
    assert calls(server)[4:] == [
        "PATCH presign_upload_url",
        "PATCH start_upload",
        "PUT v1.tar.gz",
        "PATCH finish_upload",
    ]
    pulled = elsewhere.pull("tiny:v1")
    assert calls(server)[8:] == ["PATCH presign_download_url", "PATCH presign_download_url", "GET v1.tar.gz"]
    assert digests(pulled) == digests(source)
    assert_no_credential(server.find(path=r"\.tar\.gz$"))


def test_multipart(server: BentoCloudStandIn, vendor: VendorClient, elsewhere: VendorClient, source: Path) -> None:
    server.transmission_strategy = "presigned_url"
    with (source / "large.bin").open("wb") as file:
        for offset in (0, 99 * MIB, 150 * MIB, 205 * MIB):
            file.seek(offset)
            file.write(os.urandom(4096))
        file.truncate(210 * MIB)
    vendor.push("wide:v1", source)
    puts = server.find("PUT", r"\.tar\.gz$")
    stored = server.stored("wide", "v1")
    assert {request.part: request.received for request in puts} == {
        1: 100 * MIB,
        2: 100 * MIB,
        3: stored.size - 200 * MIB,
    }
    assert stored.etag.endswith('-3"')
    assert calls(server)[-2:] == ["PATCH complete_multipart_upload", "PATCH finish_upload"]
    assert server.find("PATCH", "/finish_upload$")[0].body == {"status": "success", "reason": ""}
    pulled = elsewhere.pull("wide:v1")
    assert server.count("GET", r"\.tar\.gz$") == 1
    assert digests(pulled) == digests(source)
    assert_no_credential(server.find(path=r"\.tar\.gz$"))


def test_a_small_model_is_multipart_too_under_presigned_url(
    server: BentoCloudStandIn, vendor: VendorClient, source: Path
) -> None:
    server.transmission_strategy = "presigned_url"
    vendor.push("tiny:v1", source)
    assert [request.part for request in server.find("PUT")] == [1]
    assert server.stored("tiny", "v1").etag.endswith('-1"')


def test_a_part_is_sent_again_after_an_error(server: BentoCloudStandIn, vendor: VendorClient, source: Path) -> None:
    server.transmission_strategy = "presigned_url"
    server.fault("PUT", r"\.tar\.gz$", Respond(503))
    vendor.push("tiny:v1", source)
    assert [request.status for request in server.find("PUT")] == [503, 200]
    assert server.model("tiny", "v1").upload_status == "success"


def test_a_failed_upload_is_reported(server: BentoCloudStandIn, vendor: VendorClient, source: Path) -> None:
    server.fault("PUT", r"\.tar\.gz$", Respond(503, b"busy"))
    with pytest.raises(VendorError, match='Failed to upload model "tiny:v1"'):
        vendor.push("tiny:v1", source)
    model = server.model("tiny", "v1")
    assert (model.upload_status, model.upload_finished_reason) == ("failed", "busy")


def test_the_archive_is_a_plain_tar_of_the_directory(
    server: BentoCloudStandIn, vendor: VendorClient, source: Path
) -> None:
    vendor.push("tiny:v1", source, labels={"stage": "dev"}, acc=0.91)
    stored = server.stored("tiny", "v1")
    with tarfile.open(stored.path, mode="r:") as tar:
        assert tar.getnames() == [".", "./model.yaml", "./sub", "./sub/labels.txt", "./weights.bin"]
        sizes = sum(member.size for member in tar if member.isfile())
    assert stored.size % 10240 == 0
    manifest = server.model("tiny", "v1").manifest
    assert (manifest["size_bytes"], manifest["metadata"]) == (sizes, {"acc": 0.91})


def test_a_second_push_sends_nothing_and_force_sends_again(
    server: BentoCloudStandIn, vendor: VendorClient, source: Path
) -> None:
    vendor.push("tiny:v1", source)
    vendor.run(("push", "tiny:v1"))
    assert server.count("PUT") == 1
    vendor.run(("push", "tiny:v1", True))
    assert server.count("PUT") == 2
    assert server.count("POST", "/models$") == 1


def test_list_get_latest_and_query(vendor: VendorClient, elsewhere: VendorClient, source: Path, tmp_path: Path) -> None:
    vendor.push("tiny:v1", source, labels={"stage": "dev"}, acc=0.91)
    vendor.push("tiny:v2", source, labels={"stage": "prod"})
    listed, first, latest = vendor.run(("remote_list",), ("remote_get", "tiny", "v1"), ("remote_get", "tiny"))
    assert listed == ["tiny:v2", "tiny:v1"]
    assert (first["upload_status"], first["labels"], first["metadata"]) == ("success", {"stage": "dev"}, {"acc": 0.91})
    assert latest["version"] == "v2"
    (newest,) = elsewhere.run(("pull", "tiny"))
    # With any version in its local store the client does not ask the server for the latest: use an empty one.
    (labelled,) = replace(elsewhere, home=tmp_path / "third").run(("pull", "tiny:latest", False, "label:stage=dev"))
    assert (newest["tag"], labelled["tag"]) == ("tiny:v2", "tiny:v1")


def test_missing_models_and_bad_tokens(server: BentoCloudStandIn, vendor: VendorClient) -> None:
    server.seed("tiny", "v1")
    with pytest.raises(VendorError, match='NotFound: Model "tiny:v2" not found'):
        vendor.run(("remote_get", "tiny", "v2"))
    server.dialect = "yatai"
    with pytest.raises(VendorError, match='NotFound: Model "tiny:v2" not found'):
        vendor.run(("remote_get", "tiny", "v2"))
    stranger = replace(vendor, token="wrong")
    with pytest.raises(VendorError, match=r"403.*get api token: record not found"):
        stranger.run(("remote_get", "tiny", "v1"))


def test_yatai(server: BentoCloudStandIn, vendor: VendorClient, elsewhere: VendorClient, source: Path) -> None:
    server.dialect = "yatai"
    server.transmission_strategy = "proxy"
    vendor.push("tiny:v1", source)
    assert digests(elsewhere.pull("tiny:v1")) == digests(source)


def test_the_command_line(
    server: BentoCloudStandIn, vendor: VendorClient, elsewhere: VendorClient, source: Path
) -> None:
    endpoint = ("--endpoint", server.url, "--api-token", server.token)
    vendor.run(
        ("cli", "cloud", "login", *endpoint),
        ("create", "tiny:v1", str(source), {}, {}),
        ("cli", "models", "push", "tiny:v1", "--threads", "2"),
    )
    assert calls(server)[:2] == ["GET current", "GET current_org"]
    _, local = elsewhere.run(("cli", "models", "pull", "tiny:v1"), ("local_list",))
    assert local == ["tiny:v1"]


def test_a_seeded_directory_is_pulled(server: BentoCloudStandIn, vendor: VendorClient, source: Path) -> None:
    server.seed("tiny", "v1", source, labels={"stage": "dev"}, metadata={"n": 3})
    (pulled,) = vendor.run(("pull", "tiny:v1"))
    assert (pulled["tag"], pulled["labels"], pulled["metadata"]) == ("tiny:v1", {"stage": "dev"}, {"n": 3})
    assert digests(Path(pulled["path"])) == digests(source)


# ---- between the vendor's client and ours -----------------------------------------------------------------------

both_ways = pytest.mark.parametrize("strategy", ["proxy", None], ids=["proxy", "presigned"])


@both_ways
def test_the_client_pulls_what_we_push(
    server: BentoCloudStandIn, elsewhere: VendorClient, source: Path, strategy: str | None
) -> None:
    server.transmission_strategy = strategy
    Cloud(server).push(source, "tiny:v1", labels={"stage": "dev"}, metadata={"acc": 0.91})
    (pulled,) = elsewhere.run(("pull", "tiny:v1"))
    assert digests(Path(pulled["path"])) == digests(source)
    assert (pulled["tag"], pulled["labels"], pulled["metadata"]) == ("tiny:v1", {"stage": "dev"}, {"acc": 0.91})


@both_ways
def test_we_pull_what_the_client_pushes(
    server: BentoCloudStandIn, vendor: VendorClient, source: Path, tmp_path: Path, strategy: str | None
) -> None:
    server.transmission_strategy = strategy
    vendor.push("tiny:v1", source, labels={"stage": "dev"}, acc=0.91)
    version = Cloud(server).pull(tmp_path / "pulled", "tiny").version
    assert digests(tmp_path / "pulled") == digests(source)
    assert (tmp_path / "pulled" / "model.yaml").exists()
    assert (version.ref, version.labels, version.metadata) == ("tiny:v1", {"stage": "dev"}, {"acc": 0.91})


@both_ways
def test_what_the_client_pushed_goes_through_us_and_back(
    server: BentoCloudStandIn,
    vendor: VendorClient,
    elsewhere: VendorClient,
    source: Path,
    tmp_path: Path,
    strategy: str | None,
) -> None:
    server.transmission_strategy = strategy
    vendor.push("tiny:v1", source, labels={"stage": "dev"})
    Cloud(server).pull(tmp_path / "pulled", "tiny:v1")
    server.repositories.clear()
    pushed = Cloud(server).push(tmp_path / "pulled", "tiny:v1")
    assert (pushed.labels, digests(elsewhere.pull("tiny:v1"))) == ({"stage": "dev"}, digests(source))


# ---- bentos -----------------------------------------------------------------------------------------------------

every_way = pytest.mark.parametrize("strategy", ["proxy", None, "presigned_url"], ids=["proxy", "presigned", "parts"])


def files_of(server: BentoCloudStandIn, version: str) -> dict[str, bytes]:
    """The files in the archive of a bento."""
    with tarfile.open(server.stored("tiny", version, "bento").path, mode="r:") as tar:
        members = [member for member in tar if member.isfile()]
        return {member.name.removeprefix("./"): tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def bento_calls(server: BentoCloudStandIn) -> list[str]:
    """The requests about bentos in short."""
    api = [f"{r.method} {r.path.rsplit('/', 1)[1]}" for r in server.requests if "/bento" in r.path]
    return [call for call in api if not call.startswith("GET")]


def manifest_of(server: BentoCloudStandIn, version: str) -> dict[str, Any]:
    """What the record says that may not differ from push to push."""
    facts = server.bentos[f"tiny:{version}"].manifest
    return {key: value for key, value in facts.items() if key != "size_bytes"}


@pytest.mark.parametrize(
    ("strategy", "sent"),
    [
        ("proxy", ["PATCH start_upload", "PUT upload"]),
        (None, ["PATCH presign_upload_url", "PATCH start_upload", "PUT b1.tar.gz", "PATCH finish_upload"]),
        (
            "presigned_url",
            [
                "PATCH start_upload",
                "PATCH start_multipart_upload",
                "PATCH presign_multipart_upload_url",
                "PUT b1.tar.gz",
                "PATCH complete_multipart_upload",
                "PATCH finish_upload",
            ],
        ),
    ],
)
def test_the_client_pushes_lists_and_pulls_a_bento(
    server: BentoCloudStandIn,
    vendor: VendorClient,
    elsewhere: VendorClient,
    source: Path,
    strategy: str | None,
    sent: list[str],
) -> None:
    server.transmission_strategy = strategy
    (built,) = vendor.build(source, "b1")
    vendor.run(("push_bento", "tiny:b1"), ("push_bento", "tiny:b1"))
    assert bento_calls(server) == ["POST bento_repositories", "POST bentos", *sent]
    listed, shown, newest, pulled = elsewhere.run(
        ("remote_bentos",), ("remote_bento", "tiny", "b1"), ("remote_bento", "tiny"), ("pull_bento", "tiny:b1")
    )
    assert listed == ["tiny:b1"]
    assert (shown["upload_status"], shown["models"], shown["labels"]) == ("success", ["tiny:v1"], {"stage": "dev"})
    assert newest == shown
    assert digests(Path(pulled["path"])) == digests(built)
    assert (elsewhere.home / "models" / "tiny" / "v1" / "weights.bin").exists()
    if strategy != "proxy":
        assert_no_credential(server.find(path=r"\.tar\.gz$"))


def test_the_client_updates_a_bento_with_force(server: BentoCloudStandIn, vendor: VendorClient, source: Path) -> None:
    vendor.build(source, "b1")
    vendor.run(("push_bento", "tiny:b1"), ("push_bento", "tiny:b1", True))
    (update,) = server.find("PATCH", "/bentos/b1$")
    assert set(update.body) == {"description", "manifest", "labels"}
    assert server.count("PUT", "/bentos/") == 2


@every_way
def test_we_push_a_bento_as_the_client_does(
    server: BentoCloudStandIn, vendor: VendorClient, elsewhere: VendorClient, source: Path, strategy: str | None
) -> None:
    server.transmission_strategy = strategy
    (built,) = vendor.build(source, "b1")
    vendor.run(("push_bento", "tiny:b1"))
    manifest, files = manifest_of(server, "b1"), files_of(server, "b1")
    theirs = server.bentos.pop("tiny:b1")
    # What a bento of the client's holds besides when its models were put into it.
    (built / "models" / "tiny").mkdir(parents=True)
    (built / "models" / "tiny" / "weights.bin").write_bytes(b"weights")

    pushed = BentoStore(server).push(built)

    ours = server.bentos["tiny:b1"]
    assert pushed.ready
    assert (manifest_of(server, "b1"), files_of(server, "b1")) == (manifest, files)
    assert (ours.description, ours.build_at) == (theirs.description, theirs.build_at)
    assert [label for label in ours.labels if label["key"] != "modelsync-digest"] == theirs.labels
    assert ours.manifest["size_bytes"] == sum(len(content) for content in files.values())
    listed, shown, pulled = elsewhere.run(("remote_bentos",), ("remote_bento", "tiny", "b1"), ("pull_bento", "tiny:b1"))
    assert listed == ["tiny:b1"]
    assert (shown["upload_status"], shown["models"], shown["services"]) == ("success", ["tiny:v1"], ["Tiny"])
    assert pulled["description"] == "# Größe\n"
    assert {name: Path(pulled["path"], name).read_bytes() for name in files} == files


def test_the_client_takes_a_bento_of_ours_for_pushed(
    server: BentoCloudStandIn, vendor: VendorClient, source: Path
) -> None:
    (built,) = vendor.build(source, "b1")
    BentoStore(server).push(built)
    server.requests.clear()
    vendor.run(("push_bento", "tiny:b1"))
    assert bento_calls(server) == []


# ---- references to Hugging Face ---------------------------------------------------------------------------------


class HubHandler(BaseHTTPRequestHandler):
    """As much of a Hugging Face endpoint as a reference needs."""

    def do_GET(self) -> None:
        files = [{"rfilename": "config.json", "size": 30}, {"rfilename": "model.safetensors", "size": 400}]
        body = json.dumps({"id": "Google-BERT/bert", "sha": "a" * 40, "siblings": files}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{hub.server_port}"
        hub.shutdown()
        thread.join()


def test_a_hugging_face_model_is_a_record_without_content(
    server: BentoCloudStandIn, vendor: VendorClient, hub: str
) -> None:
    tag, listed = vendor.run(("push_huggingface", "Google-BERT/bert", hub), ("remote_list",))
    name, version = tag.split(":")
    model = server.model(name, version)
    assert listed == [tag]
    assert name == "google-bert--bert"
    assert (model.upload_status, model.manifest["size_bytes"]) == ("pending", 430)
    assert model.manifest["context"]["framework_name"] == "huggingface"
    assert model.manifest["metadata"]["registry"] == "huggingface"
    assert server.count("PUT") == 0
    assert vendor.run(("pull", tag)) == [None]


def test_a_seeded_reference_is_what_the_client_registers(
    server: BentoCloudStandIn, vendor: VendorClient, hub: str
) -> None:
    (tag,) = vendor.run(("push_huggingface", "Google-BERT/bert", hub))
    theirs = server.model(*tag.split(":"))
    server.repositories.clear()
    seeded = server.seed_huggingface("Google-BERT/bert", "a" * 40, endpoint=hub, size_bytes=430)
    ours = server.model(*seeded)
    assert ":".join(seeded) == tag
    assert ours.manifest["metadata"] == theirs.manifest["metadata"]
    assert ours.manifest["context"]["framework_name"] == theirs.manifest["context"]["framework_name"]
    assert (ours.upload_status, ours.manifest["size_bytes"]) == (theirs.upload_status, theirs.manifest["size_bytes"])
    assert vendor.run(("pull", tag)) == [None]
