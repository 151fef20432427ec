"""The Wallaroo stand-in answers what was recorded, refuses what no client may send, and breaks where it is told to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.standins.http_server import LoseAnswer, Reset, Respond
from tests.standins.wallaroo import ARROW, PANDAS, WallarooStandIn
from tests.support.data import DATA

RECORDINGS = json.loads((DATA / "wallaroo-exchanges.json").read_text())
SCHEMA = base64.b64encode(b"\xff\xff\xff\xff\xb0\0\0\0rest").decode()
CONVERSION = {"framework": "onnx", "python_version": "3.8", "requirements": []}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WallarooStandIn]:
    with WallarooStandIn(tmp_path) as server:
        yield server


class Api:
    """A client with a fresh token of one user."""

    def __init__(self, server: WallarooStandIn, username: str | None = None) -> None:
        token = server.issue(username=username)["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=server.url, headers=headers, trust_env=False, verify=False, timeout=60)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/api/{path}", json=body)

    def ask(self, path: str, **body: Any) -> Any:
        """The answer to a request that must succeed."""
        answer = self.post(path, **body)
        assert answer.is_success, answer.text
        return answer.json()

    def send(self, path: str, *parts: tuple[str, tuple[str | None, bytes | str, str]]) -> httpx.Response:
        return self.http.post(f"/v1/api/models/{path}", files=list(parts))

    def upload(
        self,
        workspace: int,
        name: str = "tiny",
        content: bytes = b"weights",
        path: str = "upload_and_convert",
        **more: Any,
    ) -> int:
        """The number of the new version."""
        answer = self.send(path, *upload_parts(metadata(workspace, name, **more), content))
        assert answer.is_success, answer.text
        return int(answer.json()["insert_models"]["returning"][0]["models"][0]["id"])

    def version(self, number: int) -> Any:
        return self.ask("models/get_version_by_id", model_version_id=number)["model_version"]["model_version"]


def metadata(workspace: int, name: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"name": name, "visibility": "private", "workspace_id": workspace, "conversion": CONVERSION, **more}


def upload_parts(facts: Any, content: bytes = b"weights") -> list[tuple[str, tuple[str | None, bytes | str, str]]]:
    return [
        ("metadata", (None, json.dumps(facts), "application/json")),
        ("file", ("tiny.onnx", content, "application/octet-stream")),
    ]


@pytest.fixture
def api(server: WallarooStandIn) -> Iterator[Api]:
    api = Api(server)
    with api.http:
        yield api


@pytest.fixture
def workspace(server: WallarooStandIn) -> int:
    return server.add_workspace("ws").id


# ---- the recordings ---------------------------------------------------------------------------------------------

SECRET = "<redacted>"
VARIES = re.compile(r"[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)")


def statuses(recorded: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The versions with a status that an answer shows, by number."""
    if isinstance(recorded, dict):
        if "status" in recorded and isinstance(recorded.get("id"), int):
            yield recorded["id"], recorded
        for item in recorded.values():
            yield from statuses(item)
    elif isinstance(recorded, list):
        for item in recorded:
            yield from statuses(item)


# Three models come before those of a user.
FIRST = {"workspace": 101, "model": 1214, "version": 1135, "config": 1779}


class Replay:
    """Sends recorded requests with this server's secrets, UUIDs and digests in place of the recorded ones.

    The numbers are the recorded ones: the server's sequences begin where the recorded server's stood.
    """

    def __init__(self, server: WallarooStandIn, exchanges: list[dict[str, Any]]) -> None:
        self.server = server
        self.exchanges = exchanges
        self.ours: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.machine = ""  # a token without a user
        self.http = httpx.Client(trust_env=False, verify=False, timeout=60)
        server.predict = lambda version, rows: [{"dense_1": [0.0014974177]} for _ in rows]

    def prepare(self, exchange: dict[str, Any]) -> None:
        """Script what the recording shows of the version or the deployment that this request makes."""
        answer = exchange["response"]["json"]
        if exchange["path"].startswith("/v1/api/models/upload"):
            number = answer["insert_models"]["returning"][0]["models"][0]["id"]
            shown = [
                facts
                for other in self.exchanges
                for found, facts in statuses(other["response"]["json"])
                if found == number
            ]
            logs = [
                other["response"]["json"]["logs"]
                for other in self.exchanges
                if other.get("request_json", {}) == {"model_version_id": number, "lines": 5}
            ]
            name = shown[0].get("name") or shown[0]["model_id"] if shown else "unseen"
            summary = next((facts["error_summary"] for facts in shown if facts.get("error_summary")), None)
            script = [facts["status"] for facts in shown] or ["ready"]
            self.server.script_conversion(name, script, error_summary=summary, logs=logs[0] if logs else ())
        if exchange["path"] == "/v1/api/pipelines/deploy":
            polls = [one for one in self.exchanges if one["path"] == "/v1/api/status/get_deployment"]
            shown = [one["response"]["json"].get("status") for one in polls]
            self.server.script_deployment(exchange["request_json"]["deploy_id"], shown[: shown.index("Running") + 1])

    def send(self, exchange: dict[str, Any]) -> httpx.Response:
        self.prepare(exchange)
        bearer = self.machine if "/infer/" in exchange["path"] and self.machine else self.tokens.get("access_token")
        headers = {"Authorization": f"Bearer {bearer}"}
        body: dict[str, Any] = {}
        if "request_form" in exchange:
            secrets = {"password": self.server.password, **self.tokens}
            form = exchange["request_form"]
            body["data"] = {key: secrets[key] if value == SECRET else value for key, value in form.items()}
            headers = {}
            if client := exchange.get("basic_client_id"):
                body["auth"] = (client, self.server.client_secret)
        elif "request_multipart" in exchange:
            body["files"] = [
                (part["name"], (part["filename"], self.content(part), part["content_type"]))
                for part in exchange["request_multipart"]
            ]
        elif "request_body" in exchange:
            facts = exchange["request_body"]
            body["content"] = self.content({**facts, "size": facts["bytes"]})
            headers["Content-Type"] = exchange["request_headers"]["content-type"]
        elif "request_json" in exchange:
            body["content"] = self.translated(exchange["request_json"])
            headers["Content-Type"] = exchange["request_headers"]["content-type"]
        url = self.server.url + exchange["path"]
        answer = self.http.request(exchange["method"], url, params=exchange.get("query"), headers=headers, **body)
        if answer.is_success:
            self.learn(exchange["response"]["json"], answer.json())
            if "refresh_token" in answer.text:
                self.tokens = {key: answer.json()[key] for key in ("access_token", "refresh_token")}
            elif "access_token" in answer.text:
                self.machine = answer.json()["access_token"]
        return answer

    def content(self, part: dict[str, Any]) -> bytes:
        """The recorded bytes are not known, but their number is."""
        if part.get("json") is not None:
            return self.translated(part["json"])
        return (part["sha256"] * (part["size"] // 64 + 1))[: part["size"]].encode()

    def translated(self, value: Any) -> bytes:
        text = json.dumps(value)
        for theirs, ours in self.ours.items():
            text = text.replace(theirs, ours)
        return text.encode()

    def learn(self, recorded: Any, ours: Any) -> None:
        """Pair UUIDs and digests of the recorded answer with this server's."""
        if isinstance(recorded, dict) and isinstance(ours, dict):
            for key in recorded.keys() & ours.keys():
                self.learn(recorded[key], ours[key])
        elif isinstance(recorded, list) and isinstance(ours, list):
            for one, other in zip(recorded, ours, strict=False):
                self.learn(one, other)
        elif isinstance(recorded, str) and isinstance(ours, str) and VARIES.fullmatch(recorded):
            self.ours[recorded] = ours


def comparable(value: Any, key: str = "") -> Any:
    """The value with what differs from run to run replaced by its type."""
    if isinstance(value, dict):
        return {name: comparable(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value if not is_strangers(item)]
    if key == "last_model":
        return comparable(json.loads(value))
    if key in ("access_token", "refresh_token", "session_state", "time", "model_path", "url"):
        return type(value).__name__
    varies = isinstance(value, str) and VARIES.fullmatch(value)
    return "varies" if varies else value


def is_strangers(row: Any) -> bool:
    """A row of the model that either server had before."""
    return isinstance(row, dict) and row.get("models_pk_id", 9999) < 1217


@pytest.mark.parametrize("recording", RECORDINGS)
def test_the_answers_are_those_of_the_recording(recording: str, tmp_path: Path) -> None:
    steps = RECORDINGS[recording]["steps"]
    with WallarooStandIn(tmp_path, numbers=FIRST) as server:
        replay = Replay(server, [exchange for step in steps for exchange in step["exchanges"]])
        for step in steps:
            for exchange in step["exchanges"]:
                answer, recorded = replay.send(exchange), exchange["response"]
                where = f"{step['step']}: {exchange['path']}: {answer.text}"
                assert answer.status_code == recorded["status"], where
                assert comparable(answer.json()) == comparable(recorded["json"]), where
                for name, value in recorded.get("headers", {}).items():
                    assert answer.headers[name] == value, where


# ---- tokens -----------------------------------------------------------------------------------------------------


def login(server: WallarooStandIn, *, url: str | None = None, auth: Any = None, **form: str) -> httpx.Response:
    """A request for a token; the password grant of the server's user where no grant is named."""
    fields = form if "grant_type" in form else {"grant_type": "password", "username": server.username, **form}
    return httpx.post(
        (url or server.url) + server.token_path, data=fields, auth=auth, trust_env=False, verify=False, timeout=60
    )


def confidential(server: WallarooStandIn) -> tuple[str, str]:
    return server.client_id, server.client_secret


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


def claims(token: str) -> dict[str, Any]:
    middle = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4))))


def test_both_clients_and_both_origins_give_tokens(server: WallarooStandIn) -> None:
    answers = [
        login(server, auth=confidential(server), password=server.password),
        login(server, client_id="sdk-client", password=server.password),
        login(server, url=server.auth_url, client_id="sdk-client", password=server.password),
    ]
    found = [claims(answer.json()["access_token"]) for answer in answers]
    assert [(one["azp"], one["email"]) for one in found] == [
        ("api-client", server.username),
        ("sdk-client", server.username),
        ("sdk-client", server.username),
    ]


def test_the_auth_origin_has_nothing_but_tokens(server: WallarooStandIn) -> None:
    assert httpx.get(server.auth_url + "/v1/api/config", trust_env=False, verify=False, timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("auth", "form", "expected"),
    [
        (("api-client", "wrong"), {}, (401, "unauthorized_client")),
        (("nobody", ""), {}, (401, "invalid_client")),
        (None, {"client_id": "api-client"}, (401, "unauthorized_client")),
        (None, {"client_id": "sdk-client", "password": "wrong"}, (401, "invalid_grant")),
        (None, {"client_id": "sdk-client", "username": "nobody"}, (401, "invalid_grant")),
        (None, {"client_id": "sdk-client", "grant_type": "magic"}, (400, "unsupported_grant_type")),
        (None, {"client_id": "sdk-client", "grant_type": "client_credentials"}, (401, "unauthorized_client")),
        (None, {"client_id": "sdk-client", "grant_type": "refresh_token"}, (400, "invalid_grant")),
    ],
)
def test_no_token_is_given_for(
    auth: tuple[str, str] | None, form: dict[str, str], expected: tuple[int, str], server: WallarooStandIn
) -> None:
    assert error(login(server, auth=auth, **{"password": server.password, **form})) == expected


def test_wrong_passwords_in_a_row_lock_the_account(server: WallarooStandIn) -> None:
    for _ in range(server.lock_after - 1):
        login(server, client_id="sdk-client", password="wrong")
    assert login(server, client_id="sdk-client", password=server.password).is_success
    for _ in range(server.lock_after):
        login(server, client_id="sdk-client", password="wrong")
    assert error(login(server, client_id="sdk-client", password=server.password)) == (401, "invalid_grant")
    assert server.users[server.username].failures > server.lock_after


def refresh(server: WallarooStandIn, token: str, client: str = "sdk-client") -> httpx.Response:
    return login(server, grant_type="refresh_token", client_id=client, refresh_token=token)


def test_a_refresh_token_is_for_its_client_and_may_be_revoked(server: WallarooStandIn) -> None:
    token = login(server, client_id="sdk-client", password=server.password).json()["refresh_token"]
    other = login(server, auth=confidential(server), password=server.password).json()["refresh_token"]
    assert refresh(server, token).is_success
    assert error(refresh(server, other)) == (400, "invalid_grant")
    server.revoke_refresh_tokens()
    assert error(refresh(server, token)) == (400, "invalid_grant")


def test_a_refresh_token_is_good_once_where_they_rotate(server: WallarooStandIn) -> None:
    server.rotate_refresh_tokens = True
    token = server.issue()["refresh_token"]
    answer = refresh(server, token)
    assert answer.json()["refresh_token"] != token
    assert error(refresh(server, token)) == (400, "invalid_grant")


def test_an_offline_token_outlives_the_others(server: WallarooStandIn) -> None:
    server.refresh_seconds = 0
    usual = login(server, client_id="sdk-client", password=server.password).json()
    offline = login(server, client_id="sdk-client", password=server.password, scope="offline_access").json()
    assert offline["refresh_expires_in"] == 0
    assert refresh(server, usual["refresh_token"]).status_code == 400
    assert refresh(server, offline["refresh_token"]).is_success


@pytest.mark.parametrize("header", [None, "Bearer nonsense", "Basic {token}", "Bearer {token}x"])
def test_calls_without_a_token_of_this_instance_are_refused(server: WallarooStandIn, header: str | None) -> None:
    headers = {"Authorization": header.format(token=server.issue()["access_token"])} if header else {}
    url = server.url + "/v1/api/workspaces/list"
    assert httpx.post(url, json={}, headers=headers, trust_env=False, verify=False, timeout=60).status_code == 401


def test_tokens_expire_and_may_be_revoked(server: WallarooStandIn, api: Api) -> None:
    assert api.post("workspaces/list").is_success
    server.revoke_access_tokens()
    assert api.post("workspaces/list").status_code == 401
    server.token_seconds = 0
    assert Api(server).post("workspaces/list").status_code == 401


def test_a_token_without_a_user_is_good_for_inference_alone(server: WallarooStandIn) -> None:
    token = login(server, auth=confidential(server), grant_type="client_credentials").json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    listed = httpx.post(server.url + "/v1/api/workspaces/list", json={}, headers=headers, trust_env=False, timeout=60)
    assert (listed.status_code, listed.json()["msg"]) == (401, "the token belongs to no user")


# ---- workspaces -------------------------------------------------------------------------------------------------


def test_users_see_their_own_workspaces_and_no_name_is_given_twice(server: WallarooStandIn, api: Api) -> None:
    joe = Api(server, server.add_user("joe@example.com").email)
    number = api.ask("workspaces/create", workspace_name="ws")["workspace_id"]
    assert [one["id"] for one in api.ask("workspaces/list")["workspaces"]] == [number]
    assert joe.ask("workspaces/list") == {"workspaces": []}
    assert joe.post("workspaces/create", workspace_name="ws").status_code == 400
    server.duplicate_workspace_status = 500
    assert joe.post("workspaces/create", workspace_name="ws").json() == {
        "msg": "workspace ws already exists",
        "code": 500,
    }
    assert joe.post("models/list", workspace_id=number).status_code == 400


# ---- uploads ----------------------------------------------------------------------------------------------------


def test_digest_and_size_are_those_of_the_bytes_that_came(server: WallarooStandIn, api: Api, workspace: int) -> None:
    content = b"\r\n--" * 400_000  # looks like a boundary everywhere
    facts = api.version(api.upload(workspace, content=content))["file_info"]
    (version,) = server.versions_of("tiny")
    assert (facts["sha"], facts["size"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (facts["file_name"], facts["version"]) == ("tiny.onnx", version.uuid)
    assert version.path is not None
    assert version.path.read_bytes() == content


def test_identical_bytes_are_a_new_version_of_the_same_model(server: WallarooStandIn, api: Api, workspace: int) -> None:
    first, second = api.upload(workspace), api.upload(workspace)
    (listed,) = api.ask("models/list_versions_for_model", model_id="tiny", workspace_id=workspace)["models"]
    shown = [one["model_version"] for one in listed["model_versions"]]
    assert [one["id"] for one in shown] == [second, first]
    assert shown[0]["file_info"]["sha"] == shown[1]["file_info"]["sha"]
    assert shown[0]["file_info"]["version"] != shown[1]["file_info"]["version"]


def test_a_version_number_taken_for_a_model_number_gives_a_stranger_s_model(
    server: WallarooStandIn, api: Api, workspace: int
) -> None:
    number = api.upload(workspace)
    (listed,) = api.ask("models/list", workspace_id=workspace)["models"]
    assert (number, listed["model"]["id"]) == (1215, 1218)
    assert api.ask("models/get", id=number)["name"] == "ccfraud"
    rows = api.ask("models/list_versions", model_id="tiny", models_pk_id=number)
    assert [(row["model_id"], row["models_pk_id"]) for row in rows] == [("ccfraud", 1215), ("tiny", 1218)]
    api.upload(workspace, "two"), api.upload(workspace, "three")
    wrong = api.version(api.upload(workspace, "four"))
    assert (wrong["id"], wrong["name"]) == (listed["model"]["id"], "four")


def with_conversion(**more: Any) -> dict[str, Any]:
    return {"conversion": {**CONVERSION, **more}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workspace_id": "9"}, "expected an i64"),
        ({"workspace_id": True}, "expected an i64"),
        ({"workspace_id": 99}, "workspace 99 not found"),
        ({"name": "Tiny_1"}, "invalid model name"),
        ({"visibility": "secret"}, "unknown variant"),
        ({"conversion": None}, "expected a map"),
        (with_conversion(framework="tensorflou"), "unknown framework"),
        (with_conversion(requirements="numpy"), "expected a sequence"),
        (with_conversion(requirements=[1]), "must be strings"),
        (with_conversion(python_version="2.7"), "unsupported python version"),
        (with_conversion(framework="sklearn"), "are required for sklearn"),
        (with_conversion(framework="sklearn", input_schema=SCHEMA, output_schema=SCHEMA), "are required for sklearn"),
        ({**with_conversion(framework="sklearn"), "input_schema": SCHEMA, "output_schema": "eHg="}, "Arrow schema"),
        (with_conversion(framework="mlflow"), "registered by image_path"),
        (with_conversion(arch="arm", accel="openvino"), "not supported on arm"),
        (with_conversion(accel="qaic"), "unknown accelerator"),
        (with_conversion(framework_config={"framework": "vllm", "config": {}}), "does not match"),
    ],
)
def test_metadata_is_checked(
    changes: dict[str, Any], said: str, server: WallarooStandIn, api: Api, workspace: int
) -> None:
    answer = api.send("upload_and_convert", *upload_parts(metadata(workspace) | changes))
    assert answer.status_code == 400
    assert said in answer.text
    assert server.versions_of("tiny") == []


def test_a_containerised_framework_is_converted_with_its_schemas(
    server: WallarooStandIn, api: Api, workspace: int
) -> None:
    config = {"framework": "custom", "config": {"model_path": "./model/"}}
    more = {**with_conversion(framework="custom", framework_config=config, accel="cuda"), "input_schema": SCHEMA}
    number = api.upload(workspace, output_schema=SCHEMA, **more)
    found = api.ask("models/get_version_by_id", model_version_id=number)["model_version"]
    assert found["config"]["runtime"] == "flight"
    assert (found["config"]["input_schema"], found["config"]["output_schema"]) == (SCHEMA, SCHEMA)
    assert found["model_version"]["conversion"]["framework_config"]["config"] == {"model_path": "tiny.onnx/model"}
    answer = api.send("upload", *upload_parts(metadata(workspace, output_schema=SCHEMA, **more)))
    assert answer.json() == {
        "code": 400,
        "status": "Error",
        "error": "this framework needs conversion",
        "source": "engine",
    }


def test_an_image_is_registered_without_a_file(server: WallarooStandIn, api: Api, workspace: int) -> None:
    facts = metadata(workspace, image_path="example.com/model:1", **with_conversion(framework="mlflow"))
    assert api.send("upload", *upload_parts(facts)).status_code == 400
    (part, _) = upload_parts(facts)
    assert api.send("upload", part).status_code == 200
    (version,) = server.versions_of("tiny")
    assert (version.image_path, version.sha, version.size) == ("example.com/model:1", "", 0)


def test_the_parts_must_be_these_two_in_this_order(server: WallarooStandIn, api: Api, workspace: int) -> None:
    facts, file = upload_parts(metadata(workspace))
    named = ("metadata", ("metadata.json", json.dumps(metadata(workspace)), "application/json"))
    text = ("metadata", (None, json.dumps(metadata(workspace)), "text/plain"))
    octets = ("file", ("a/tiny.onnx", b"weights", "application/octet-stream"))
    plain = ("file", ("tiny.onnx", b"weights", "text/plain"))
    for parts in (
        [file, facts],
        [facts],
        [named, file],
        [text, file],
        [facts, octets],
        [facts, plain],
        [facts, file, file],
    ):
        assert api.send("upload_and_convert", *parts).status_code == 400
    assert server.versions_of("tiny") == []
    assert api.send("upload_and_convert", facts, file).status_code == 202


def test_a_body_of_unknown_length_is_refused(server: WallarooStandIn, api: Api) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = api.http.post("/v1/api/models/upload_and_convert", content=iter([b"--b"]), headers=headers)
    assert answer.status_code == 411


@pytest.mark.parametrize("cut", [10, 120, -20, -3])
def test_a_body_that_ends_early_makes_no_version(
    cut: int, server: WallarooStandIn, api: Api, workspace: int, tmp_path: Path
) -> None:
    request = api.http.build_request("POST", "/v1/api/models/upload", files=upload_parts(metadata(workspace)))
    before = set((tmp_path / "uploads").iterdir())
    headers = {"Content-Type": request.headers["Content-Type"]}
    answer = api.http.post("/v1/api/models/upload", content=request.read()[:cut], headers=headers)
    assert (answer.status_code, answer.text) == (400, "Multipart stream is incomplete")
    assert server.versions_of("tiny") == []
    assert set((tmp_path / "uploads").iterdir()) == before


# ---- conversion -------------------------------------------------------------------------------------------------


def test_a_version_goes_through_the_scripted_statuses(server: WallarooStandIn, api: Api, workspace: int) -> None:
    script = ["pending_load_native", "attempting_load_native", "rearranging", "error"]
    server.script_conversion("tiny", script, error_summary="no such package", logs=["newest", "older", "oldest"])
    number = api.upload(workspace)
    seen = [(one["status"], one["error_summary"]) for one in (api.version(number) for _ in range(5))]
    assert seen == [*((status, None) for status in script[:3]), *[("error", "no such package")] * 2]
    assert api.ask("models/get_upload_logs", model_version_id=number, lines=2) == {"logs": ["newest", "older"]}


def test_older_instances_list_models_flat_and_lack_the_scoped_listing(
    server: WallarooStandIn, api: Api, workspace: int
) -> None:
    api.upload(workspace)
    server.flat_listing, server.scoped_listing = True, False
    (item,) = api.ask("models/list", workspace_id=workspace)["models"]
    assert set(item) == {"id", "name", "owner_id", "created_at", "updated_at"}
    assert api.post("models/list_versions_for_model", model_id="tiny", workspace_id=workspace).status_code == 404


def test_configs_are_new_rows(server: WallarooStandIn, api: Api, workspace: int) -> None:
    number = api.upload(workspace)
    first = api.ask("models/get_config_by_id", model_id=number)["model_config"]
    added = api.ask("models/insert_model_config", model_version_id=number, tensor_fields=["x"])["model_config"]
    found = api.ask("models/get_config_by_id", model_id=number)["model_config"]
    assert found == {"id": added["id"], "runtime": "onnx", "tensor_fields": ["x"], "filter_threshold": None}
    assert added["id"] != first["id"]
    assert api.ask("models/get_config_by_id", model_id=9999) == {"model_config": None}
    refusals = [
        {"batch_config": "single", "dynamic_batching_config": {}},
        {"batch_config": "single", "continuous_batching_config": {}},
        {"tensor_field": ["x"]},
    ]
    for body in refusals:
        assert api.post("models/insert_model_config", model_version_id=number, **body).status_code == 400


def test_versions_and_models_are_deleted_when_it_is_confirmed(
    server: WallarooStandIn, api: Api, workspace: int
) -> None:
    first, second = (server.versions[api.upload(workspace)] for _ in range(2))
    wanted = {"model_versions": [first.uuid]}
    assert api.ask("models/delete_model_versions", **wanted) == {"bytes": 7}
    assert server.versions_of("tiny") == [first, second]
    assert api.ask("models/delete_model_versions", **wanted, confirm_delete=True) == {"bytes": 7}
    assert server.versions_of("tiny") == [second]
    assert api.post("models/delete_model_versions", **wanted, confirm_delete=True).status_code == 404
    api.ask("models/delete_model", model_id="tiny", workspace_id=workspace, confirm_delete=True)
    assert api.ask("models/list", workspace_id=workspace) == {"models": []}


# ---- pipelines --------------------------------------------------------------------------------------------------


class Pipe:
    """A pipeline of one version of a model."""

    def __init__(self, api: Api, workspace: int, name: str = "pipe") -> None:
        self.api = api
        self.workspace = workspace
        self.name = name
        self.number = 0

    def create(self, **step: Any) -> Any:
        steps = [{"ModelInference": {"models": [step]}}]
        body = {"pipeline_id": self.name, "workspace_id": self.workspace, "definition": {"steps": steps}}
        return self.api.post("pipelines/create", **body)

    def deploy(self, step: dict[str, Any], **more: Any) -> Any:
        number = self.create(**step).json()["pipeline_variant_pk_id"]
        answer = self.api.post("pipelines/deploy", deploy_id=self.name, pipeline_version_pk_id=number, **more)
        self.number = answer.json().get("id", self.number)
        return answer

    def status(self) -> Any:
        """What get_deployment says, or its status code where it says nothing."""
        answer = self.api.post("status/get_deployment", name=f"{self.name}-{self.number}")
        return answer.json() if answer.is_success else answer.status_code

    def serving(self) -> tuple[str, list[str]] | int:
        """The status and the versions that are served."""
        found = self.status()
        if isinstance(found, int):
            return found
        statuses = found["engines"][0]["model_statuses"] or {"models": []}
        return found["status"], [one["version"] for one in statuses["models"]]

    def infer(self, content: bytes, kind: str = PANDAS) -> httpx.Response:
        url = self.api.ask("admin/get_pipeline_external_url", workspace_id=self.workspace, pipeline_name=self.name)
        return self.api.http.post(url["url"], content=content, headers={"Content-Type": kind})


@pytest.fixture
def pipe(api: Api, workspace: int) -> Pipe:
    return Pipe(api, workspace)


def test_a_pipeline_is_deployed_replaced_and_undeployed(server: WallarooStandIn, pipe: Pipe) -> None:
    first, second = (server.seed(pipe.workspace, "tiny", content) for content in (b"one", b"two"))
    pipe.deploy(first.step)
    number = pipe.number
    assert [pipe.serving() for _ in range(3)] == [("Starting", []), *[("Running", [first.uuid])] * 2]
    server.script_deployment("pipe", ["stale", "Running"])
    pipe.deploy(second.step)
    assert pipe.number == number
    assert [pipe.serving() for _ in range(2)] == [("Running", [first.uuid]), ("Running", [second.uuid])]
    assert pipe.api.ask("pipelines/undeploy", deployment_id=number) == {}
    assert [pipe.serving() for _ in range(3)] == [("Running", [second.uuid]), 404, 404]
    assert pipe.api.post("pipelines/undeploy", deployment_id=number).status_code == 404


def test_a_deployment_follows_its_script(server: WallarooStandIn, pipe: Pipe) -> None:
    server.script_deployment("pipe", ["missing", "Starting", "Error"], reason="OOMKilled", required_memory="8Gi")
    pipe.deploy(server.seed(pipe.workspace, "tiny").step)
    assert [pipe.serving() for _ in range(2)] == [404, ("Starting", [])]
    found = pipe.status()
    (engine,) = found["engines"]
    assert (found["status"], engine["status"]) == ("Error", "Pending")
    assert (engine["reason"], engine["required_memory"]) == ("OOMKilled", "8Gi")


@pytest.mark.parametrize("said", ["null", "{}", ""])
def test_undeploy_answers_in_three_ways(said: str, server: WallarooStandIn, pipe: Pipe) -> None:
    server.undeploy_answer = said
    pipe.deploy(server.seed(pipe.workspace, "tiny").step)
    answer = pipe.api.post("pipelines/undeploy", deployment_id=pipe.number)
    assert (answer.status_code, answer.text) == (200, said)


def test_what_cannot_be_deployed(server: WallarooStandIn, pipe: Pipe) -> None:
    ready = server.seed(pipe.workspace, "tiny")
    failed = server.seed(pipe.workspace, "tiny", statuses=["error"])
    assert pipe.create(name="tiny", version=1215, sha=ready.sha).status_code == 400
    assert pipe.deploy({**ready.step, "sha": "0" * 64}).json()["source"] == "engine"
    assert pipe.deploy(failed.step).json()["error"] == "model tiny is error"
    assert pipe.deploy(ready.step, models=[failed.step]).status_code == 400
    assert pipe.deploy(ready.step, pipeline_id=77).status_code == 400
    assert pipe.api.post("pipelines/deploy", deploy_id="pipe", pipeline_version_pk_id=99).status_code == 404
    assert pipe.deploy(ready.step, models=[ready.step], pipeline_id=1).is_success


def test_what_is_deployed_is_not_deleted(server: WallarooStandIn, pipe: Pipe) -> None:
    version = server.seed(pipe.workspace, "tiny")
    pipe.deploy(version.step)
    model = {"model_id": "tiny", "workspace_id": pipe.workspace, "confirm_delete": True}
    pipeline = {"pipeline_id": "pipe", "workspace_id": pipe.workspace}
    assert pipe.api.post("models/delete_model", **model).status_code == 409
    assert pipe.api.post("pipelines/delete_pipeline", **pipeline).status_code == 409
    assert pipe.api.version(version.id)["deployed"] is True
    pipe.api.ask("pipelines/undeploy", deployment_id=pipe.number)
    assert pipe.api.version(version.id)["deployed"] is False
    pipe.api.ask("models/delete_model", **model)
    pipe.api.ask("pipelines/delete_pipeline", **pipeline)
    assert pipe.api.ask("pipelines/list_pipelines", workspace_id=pipe.workspace) == {"pipelines": []}


def test_pipelines_are_found_by_name_version_and_workspace(server: WallarooStandIn, pipe: Pipe) -> None:
    step = server.seed(pipe.workspace, "tiny").step
    created = pipe.create(**step).json()
    again = pipe.create(**step).json()
    assert again["pipeline_pk_id"] == created["pipeline_pk_id"]
    place = {"workspace_id": pipe.workspace}
    (listed,) = pipe.api.ask("pipelines/list_pipelines", **place)["pipelines"]
    assert (listed["pipeline"]["name"], listed["deployment"]) == ("pipe", None)
    assert pipe.api.ask("pipelines/get_pipeline_by_name", pipeline_name="pipe", **place)["pipeline"]["id"] == 1
    assert pipe.api.post("pipelines/get_pipeline_by_name", pipeline_name="other", **place).status_code == 404
    versions = pipe.api.ask("pipelines/list_pipeline_versions", pipeline_id="pipe", **place)["pipeline_versions"]
    uuids = [one["pipeline_version"]["version"] for one in versions]
    assert uuids == [again["pipeline_variant_version"], created["pipeline_variant_version"]]
    found = pipe.api.ask("pipelines/get_version", version=uuids[0])
    assert (found["pipeline_id"], found["definition"]["steps"][0]["ModelInference"]["models"]) == ("pipe", [step])
    pipe.deploy(step, engine_config={"engine": {"cpu": 1}})
    (listed,) = pipe.api.ask("pipelines/list_pipelines", **place)["pipelines"]
    assert (listed["deployment"]["id"], listed["deployment"]["engine_config"]) == (1, {"engine": {"cpu": 1}})


def test_inference_shows_what_came_in_and_who_answered(server: WallarooStandIn, pipe: Pipe) -> None:
    version = server.seed(pipe.workspace, "tiny")
    server.deployment = ["Running"]
    pipe.deploy(version.step)
    (first, second) = pipe.infer(b'[{"x": [1, 2.5]}, {"x": [[4], [5]]}]').json()
    assert (first["in"], first["out"], second["out"]) == ({"x": [1, 2.5]}, {"total": [3.5]}, {"total": [9]})
    assert json.loads(first["metadata"]["last_model"]) == {"model_name": "tiny", "model_sha": version.sha}
    table = b"ARROW1\0\0whatever"
    answer = pipe.infer(table, ARROW)
    assert (answer.content, answer.headers["content-type"]) == (table, ARROW)


def test_inference_wants_one_of_two_forms_a_token_and_a_running_deployment(server: WallarooStandIn, pipe: Pipe) -> None:
    step = server.seed(pipe.workspace, "tiny").step
    pipe.deploy(step)
    assert pipe.infer(b"[]").status_code == 503
    server.deployment = ["Running"]
    pipe.deploy(step)
    wrong = [(b"[]", "application/json"), (b"{}", PANDAS), (b"PK", ARROW), (b"[1]", PANDAS), (b"x", "text/plain")]
    assert [pipe.infer(content, kind).json()["code"] for content, kind in wrong] == [400] * 5
    url = f"{server.url}/v1/api/pipelines/infer/pipe-1/pipe"
    anonymous = {"content": b"[]", "headers": {"Content-Type": PANDAS}, "trust_env": False, "verify": False}
    assert httpx.post(url, **anonymous).status_code == 401
    machine = login(server, auth=confidential(server), grant_type="client_credentials").json()["access_token"]
    anonymous["headers"]["Authorization"] = f"Bearer {machine}"
    assert httpx.post(url, **anonymous).json() == []
    pipe.api.ask("pipelines/undeploy", deployment_id=1)
    assert httpx.post(url, **anonymous).status_code == 404


# ---- faults -----------------------------------------------------------------------------------------------------


def test_a_lost_answer_leaves_the_version_there(server: WallarooStandIn, api: Api, workspace: int) -> None:
    server.fault("POST", "/models/upload_and_convert$", LoseAnswer())
    with pytest.raises(httpx.TransportError):
        api.upload(workspace)
    (version,) = server.versions_of("tiny")
    assert version.sha == hashlib.sha256(b"weights").hexdigest()
    api.upload(workspace)
    assert len(server.versions_of("tiny")) == 2


@pytest.mark.parametrize("after", [0, 100, 10**9])
def test_a_reset_makes_no_version(after: int, server: WallarooStandIn, api: Api, workspace: int) -> None:
    server.fault("POST", "/models/upload_and_convert$", Reset(after))
    with pytest.raises(httpx.TransportError):
        api.upload(workspace)
    (request,) = server.find("POST", "/models/upload_and_convert$")
    assert request.received == min(after, int(request.headers["content-length"]))
    assert server.versions_of("tiny") == []


def test_one_bad_answer_comes_where_it_was_asked_for(server: WallarooStandIn, api: Api, workspace: int) -> None:
    number = api.upload(workspace)
    server.fault("POST", "/get_version_by_id$", Respond(503, b"<html>busy</html>"), nth=2)
    ask = {"model_version_id": number}
    answers = [api.post("models/get_version_by_id", **ask) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 503, 200]
    assert server.count("POST", "/get_version_by_id$") == 3


def test_the_log_knows_the_parts_of_an_upload_and_the_form_of_a_login(
    server: WallarooStandIn, api: Api, workspace: int
) -> None:
    api.upload(workspace)
    login(server, client_id="sdk-client", password="wrong")
    server.fault("POST", "/token$", Respond(502, b"busy"))
    login(server, client_id="sdk-client", password="other")
    (upload,) = server.find(path="/models/upload_and_convert$")
    assert [part["name"] for part in upload.body] == ["metadata", "file"]
    assert upload.body[0]["json"] == metadata(workspace)
    assert upload.body[1]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert [one.body["password"] for one in server.find(path="/token$")] == ["wrong", "other"]
