"""The Supervisely stand-ins answer what was recorded, and break where they are told to."""

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

from tests.standins.http_server import FlipBit, LoseAnswer, Reset, Respond, Truncate
from tests.standins.supervisely import API, CHECKSUM, WRONG, SuperviselyStandIn, agent, wrong_hash
from tests.standins.supervisely_app import BOTSORT, FAILING_WIDTH, SuperviselyApp
from tests.support.data import DATA
from tests.support.images import brightness, png
from tests.support.until import until

RECORDING = json.loads((DATA / "supervisely-exchanges.json").read_text())["scenarios"]
PICTURE = png(80, 60, (20, 10, 59, 29))
BRIGHT = {"exterior": [[20, 10], [59, 29]], "interior": []}
EVERYTHING = {"exterior": [[0, 0], [79, 59]], "interior": []}


@pytest.fixture
def app() -> Iterator[SuperviselyApp]:
    with SuperviselyApp() as app:
        yield app


@pytest.fixture
def server(tmp_path: Path, app: SuperviselyApp) -> Iterator[SuperviselyStandIn]:
    with SuperviselyStandIn(tmp_path, app=app.url) as server:
        yield server


def http(url: str, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers=headers, trust_env=False, verify=False, timeout=60)


@pytest.fixture
def api(server: SuperviselyStandIn) -> Iterator[httpx.Client]:
    with http(server.url + API, **{"x-api-key": server.token}) as api:
        yield api


@pytest.fixture
def serving(app: SuperviselyApp) -> Iterator[httpx.Client]:
    with http(app.url) as serving:
        yield serving


def sha256(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


# ---- the recording ----------------------------------------------------------------------------------------------


def unlike(value: Any, recorded: list[Any], where: str = "") -> str:
    """Where a value has other keys or types than all that was recorded in its place; empty when it fits."""
    if isinstance(value, dict):
        alike = [one for one in recorded if isinstance(one, dict) and one.keys() == value.keys()]
        if not alike:
            return f"{where}: {sorted(value)}"
        return next(
            (text for key in value if (text := unlike(value[key], [one[key] for one in alike], where + "/" + key))), ""
        )
    if isinstance(value, list):
        if not any(isinstance(one, list) for one in recorded):
            return f"{where}: a list"
        items = [item for one in recorded if isinstance(one, list) for item in one]
        return next((text for item in value if (text := unlike(item, items, where + "[]"))), "")
    kinds = {type(one) for one in recorded} | ({int} if float in map(type, recorded) else set())
    return "" if type(value) in kinds else f"{where}: {type(value).__name__}"


def answers_to(path: str, status: int) -> list[Any]:
    """All JSON that was recorded as the answer of this path."""
    recorded = [
        (method_of(exchange["path"]), exchange["response_body"]["json"])
        for scenario in RECORDING.values()
        for step in scenario
        for exchange in step["exchanges"]
        if exchange["status"] == status and "json" in exchange["response_body"]
    ]
    found = [answer for method, answer in recorded if method == method_of(path)]
    if method_of(path) == "get_inference_progress":  # the same but for a number; none was recorded of a failure
        found += [{**answer, "pending_results": 0} for method, answer in recorded if method == "pop_inference_results"]
    return found


def method_of(path: str) -> str:
    return path.partition("?")[0].rpartition("/")[2]


class Replay:
    """Sends recorded requests, with our token, session and request ids in place of the recorded ones."""

    def __init__(self, url: str, **ours: str) -> None:
        self.url = url
        self.ours = ours

    def translated(self, text: str) -> str:
        for theirs, ours in self.ours.items():
            text = text.replace(theirs, ours)
        return text

    def send(self, step: str, exchange: dict[str, Any]) -> httpx.Response:
        headers = {name: self.translated(value) for name, value in exchange.get("request_headers", {}).items()}
        body = exchange.get("request_body", {})
        arguments: dict[str, Any] = {}
        if "multipart" in body:
            del headers["content-type"]
            arguments["files"] = [self.part(step, part) for part in body["multipart"]]
        elif "json" in body:
            arguments["content"] = self.translated(json.dumps(body["json"]))
        elif "text" in body:
            arguments["content"] = body["text"]
        elif "length" in body:
            arguments["content"] = iter([b"x" * body["length"]])
        with http(self.url, **headers) as client:
            answer = client.request(exchange["method"], self.translated(exchange["path"]), **arguments)
        recorded = exchange["response_body"].get("json")
        if isinstance(recorded, dict) and "inference_request_uuid" in recorded and answer.is_success:
            self.ours[recorded["inference_request_uuid"]] = answer.json()["inference_request_uuid"]
        return answer

    def part(self, step: str, part: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
        names = dict(re.findall(r'(\w+)="([^"]*)"', part["disposition"]))
        content = part["body"]
        if isinstance(content, dict):
            content = b"x" * min(content["length"], 1000)
        if names["name"] == "files" and not names["filename"].endswith(".mp4"):
            content = {"predict corrupt file": b"junk", "predict fails in the model": png(FAILING_WIDTH, 5)}.get(
                step, PICTURE
            )
        return names["name"], (names.get("filename"), content, part.get("type"))


def known(value: Any) -> Any:
    """An answer without what clients may read, but the stand-in of the recording did not tell."""
    if isinstance(value, list):
        return [known(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "file":  # of file-storage.v2.list
        value = {
            **{key: value[key] for key in ("type", "name", "path", "id", "updatedAt")},
            "meta": {"size": value["meta"]["size"]},
        }
    unknown = {"name"} if "sessionToken" in value else set()
    return {key: known(item) for key, item in value.items() if key not in unknown}


def assert_as_recorded(step: str, exchange: dict[str, Any], answer: httpx.Response) -> None:
    where = f"{step}: {exchange['method']} {exchange['path']}"
    recorded = exchange["response_body"]
    assert answer.status_code == exchange["status"], where
    kind = exchange.get("response_headers", {}).get("content-type")
    assert kind is None or answer.headers["content-type"] == kind, where
    if "text" in recorded:
        assert answer.text == recorded["text"], where
    elif "json" in recorded:
        assert unlike(known(answer.json()), answers_to(exchange["path"], exchange["status"])) == "", where
    else:
        assert len(answer.content) == recorded["length"], where


def finished(app: SuperviselyApp) -> None:
    until(lambda: all(inference.finished for inference in app.inferences.values()), "every inference to finish")


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        ("url_mode", {}),
        ("url_mode_states_errors_video", {"model": None, "predict_seconds": 0.02}),
        ("url_mode_tracking", {"tracks": True}),
        ("url_mode_raw", {}),
    ],
)
def test_the_app_answers_as_recorded(scenario: str, options: dict[str, Any]) -> None:
    with SuperviselyApp(**options) as app:
        replay = Replay(app.url)
        for step in RECORDING[scenario]:
            for exchange in step["exchanges"]:
                if exchange["path"] == "/pop_inference_results":
                    finished(app)
                assert_as_recorded(step["step"], exchange, replay.send(step["step"], exchange))


def test_the_platform_answers_as_recorded(server: SuperviselyStandIn, app: SuperviselyApp) -> None:
    task = server.seed_task(id=12345)
    server.next_statuses = ["started"]
    replay = Replay(server.url, **{"<token>": server.token, "sess-12345-token": task.session_token})
    content = 0
    for step in RECORDING["task_mode"]:
        for exchange in step["exchanges"]:
            finished(app)
            # What was downloaded is what the recording says was there, whose bytes it does not hold.
            if method_of(exchange["path"]) == "file-storage.download":
                content += 1
                server.seed_file(exchange["request_body"]["json"]["path"], b"x" * exchange["response_body"]["length"])
            assert_as_recorded(step["step"], exchange, replay.send(step["step"], exchange))
    assert content


def test_what_does_not_fit_the_recording_is_seen() -> None:
    recorded = [{"a": 1, "b": [{"c": "x"}]}, {"a": None, "b": []}]
    assert unlike({"a": 2, "b": []}, recorded) == ""
    assert unlike({"a": 2, "b": [{"c": "y"}]}, recorded) == ""
    assert unlike({"a": "2", "b": []}, recorded) == "/a: str"
    assert unlike({"a": 2, "b": [{"d": "y"}]}, recorded) == "/b[]: ['d']"
    assert unlike({"a": 2}, recorded) == ": ['a']"
    assert unlike({"a": 2, "b": None}, recorded) == "/b: NoneType"


# ---- Team Files -------------------------------------------------------------------------------------------------


def upload(api: httpx.Client, path: str, content: Any, team: int = 8) -> httpx.Response:
    headers = {"Content-Type": "application/octet-stream"}
    return api.post("file-storage.upload", params={"teamId": team, "path": path}, content=content, headers=headers)


def download(api: httpx.Client, path: str, **headers: str) -> httpx.Response:
    return api.post("file-storage.download", json={"teamId": 8, "path": path}, headers=headers)


def entities(api: httpx.Client, path: str, **more: Any) -> dict[str, Any]:
    asked = {"teamId": 8, "path": path, "withMetadata": True, "files": True, "folders": True, **more}
    return api.post("file-storage.v2.list", json=asked).json()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_is_stored_and_told_with_its_hash(
    server: SuperviselyStandIn, api: httpx.Client, chunked: bool
) -> None:
    content = bytes(range(256)) * 4000
    blocks = [content[:1], content[1:700_000], content[700_000:]]
    told = upload(api, "/a/größe w.pt", iter(blocks) if chunked else content).json()
    assert (told["hash"], told["meta"]) == (
        sha256(content),
        {"mime": "application/octet-stream", "ext": "pt", "size": len(content)},
    )
    assert (told["name"], told["path"]) == ("größe w.pt", "/a/größe w.pt")
    assert server.content("/a/größe w.pt") == content
    assert server.requests[0].received == len(content)
    assert download(api, "/a/größe w.pt").content == content
    assert api.post("file-storage.info", json={"id": told["id"]}).json() == told


def test_an_upload_over_a_file_replaces_it(server: SuperviselyStandIn, api: httpx.Client) -> None:
    first, second = (upload(api, "/a/x", content).json() for content in (b"one", b"three"))
    assert first["id"] == second["id"]
    assert server.content("/a/x") == b"three"
    assert server.paths() == ["/a/x"]


def test_an_upload_that_breaks_off_leaves_nothing(
    server: SuperviselyStandIn, api: httpx.Client, tmp_path: Path
) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"begun"
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        upload(api, "/a/x", blocks())
    until(lambda: server.count() == 1 and server.requests[0].received == 5, "five bytes to arrive")
    until(lambda: not list((tmp_path / "team-files").iterdir()), "them to be thrown away")
    assert server.paths() == []


def form(*files: tuple[str, str, bytes]) -> list[tuple[str, tuple[Any, ...]]]:
    return [
        part
        for name, directory, content in files
        for part in (("name", (None, name)), ("path", (None, directory)), ("file", (name, content)))
    ]


def test_a_bulk_upload_stores_every_file_of_its_form(server: SuperviselyStandIn, api: httpx.Client) -> None:
    large = bytes(range(256)) * 3000
    sent = form(("one.pt", "/a/b/", large), ("two", "/a/b/", b""))
    told = api.post("file-storage.bulk.upload", params={"teamId": 8}, files=sent).json()
    assert [one["path"] for one in told] == ["/a/b/one.pt", "/a/b/two"]
    assert [one["hash"] for one in told] == [sha256(large), sha256(b"")]
    assert (server.content("/a/b/one.pt"), server.content("/a/b/two")) == (large, b"")


def test_a_form_in_another_order_is_refused(server: SuperviselyStandIn, api: httpx.Client) -> None:
    name, path, file = form(("one", "/a/", b"x"))
    answer = api.post("file-storage.bulk.upload", params={"teamId": 8}, files=[file, name, path])
    assert answer.status_code == 400
    assert server.paths() == []


@pytest.mark.parametrize("path", ["a/x", ""])
def test_a_path_begins_with_a_slash(server: SuperviselyStandIn, api: httpx.Client, path: str) -> None:
    assert upload(api, path, b"x").status_code == 400


def test_another_team_is_out_of_reach(server: SuperviselyStandIn, api: httpx.Client) -> None:
    assert upload(api, "/a", b"x", team=9).status_code == 403
    assert api.post("file-storage.list", json={"teamId": 9, "path": "/"}).status_code == 403


@pytest.mark.parametrize(
    ("asked", "status", "told", "body"),
    [
        ("bytes=2-4", 206, "bytes 2-4/10", b"234"),
        ("bytes=7-", 206, "bytes 7-9/10", b"789"),
        ("bytes=8-99", 206, "bytes 8-9/10", b"89"),
        ("bytes=10-", 416, "bytes */10", b""),
        ("nonsense", 200, None, b"0123456789"),
    ],
)
def test_a_download_honours_a_range(
    server: SuperviselyStandIn, api: httpx.Client, asked: str, status: int, told: str | None, body: bytes
) -> None:
    server.seed_file("/x", b"0123456789")
    answer = download(api, "/x", Range=asked)
    assert (answer.status_code, answer.headers.get("content-range"), answer.content) == (status, told, body)


def test_a_server_may_know_no_ranges_and_tell_no_checksum(server: SuperviselyStandIn, api: httpx.Client) -> None:
    server.seed_file("/x", b"0123456789")
    assert download(api, "/x").headers[CHECKSUM] == sha256(b"0123456789")
    server.ranges = server.checksums = False
    answer = download(api, "/x", Range="bytes=2-4")
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert CHECKSUM not in answer.headers


def test_a_missing_file(api: httpx.Client) -> None:
    assert download(api, "/x").status_code == 404
    assert api.post("file-storage.info", json={"id": 1}).status_code == 404


def test_a_list_is_a_prefix_match(server: SuperviselyStandIn, api: httpx.Client) -> None:
    for path in ("/a/x", "/a/x.json", "/a/b/x", "/ab"):
        server.seed_file(path, b"")

    def listed(path: str, **more: Any) -> list[str]:
        return [one["path"] for one in api.post("file-storage.list", json={"teamId": 8, "path": path, **more}).json()]

    assert listed("/a") == ["/a/b/x", "/a/x", "/a/x.json", "/ab"]
    assert listed("/a/x", recursive=True) == ["/a/x", "/a/x.json"]
    assert listed("/a/", recursive=False) == ["/a/b", "/a/x", "/a/x.json"]
    assert listed("/none/") == []


@pytest.mark.parametrize(("slash", "folder"), [(False, "/a/b"), (True, "/a/b/")])
def test_a_directory_is_listed_with_its_folders(
    server: SuperviselyStandIn, api: httpx.Client, slash: bool, folder: str
) -> None:
    server.folder_slash = slash
    for path in ("/a/x", "/a/b/y", "/a/b/c/z", "/ab"):
        server.seed_file(path, b"")
    near = entities(api, "/a/", recursive=False)["entities"]
    assert [(one["type"], one["path"]) for one in near] == [("folder", folder), ("file", "/a/x")]
    assert [one["path"] for one in entities(api, "/a/", recursive=False, files=False)["entities"]] == [folder]
    assert [one["path"] for one in entities(api, "/a/", recursive=True)["entities"]] == ["/a/b/c/z", "/a/b/y", "/a/x"]
    assert api.post("file-storage.v2.list", json={"teamId": 8, "path": "/a"}).status_code == 400


def test_a_long_directory_comes_in_pages(server: SuperviselyStandIn, api: httpx.Client) -> None:
    server.page_size = 2
    for name in "abcde":
        server.seed_file(f"/d/{name}", b"")
    pages, token = [], {}
    while True:
        page = entities(api, "/d/", recursive=True, **token)
        pages.append([one["name"] for one in page["entities"]])
        if "continuationToken" not in page:
            break
        token = {"continuationToken": page["continuationToken"]}
    assert pages == [["a", "b"], ["c", "d"], ["e"]]
    assert len(entities(api, "/d/", recursive=True, limit=1)["entities"]) == 1


def test_a_listing_may_leave_out_hashes_or_all_metadata(server: SuperviselyStandIn, api: httpx.Client) -> None:
    server.seed_file("/d/a", b"x")
    assert entities(api, "/d/")["entities"][0]["hash"] == sha256(b"x")
    assert entities(api, "/d/", withMetadata=False)["entities"][0].keys() == {"type", "id", "name", "path"}
    server.listed_hashes = False
    assert "hash" not in entities(api, "/d/")["entities"][0]


def test_removing_takes_a_file_or_a_directory_and_is_silent_about_what_is_not_there(
    server: SuperviselyStandIn, api: httpx.Client
) -> None:
    for path in ("/a/x", "/a/x2", "/a/b/y", "/c", "/d"):
        server.seed_file(path, b"")
    for path in ("/a/x", "/a/b/", "/none", "/none/"):
        assert api.post("file-storage.remove", json={"teamId": 8, "path": path}).status_code == 200
    assert server.paths() == ["/a/x2", "/c", "/d"]
    api.post("file-storage.bulk.remove", json={"teamId": 8, "paths": ["/c", "/d", "/none"]})
    assert server.paths() == ["/a/x2"]


def test_team_files_break_where_they_are_told_to(server: SuperviselyStandIn, api: httpx.Client) -> None:
    server.fault("POST", r"file-storage\.upload$", Respond(503))
    assert [upload(api, "/x", iter([b"0123456789"])).status_code for _ in range(2)] == [503, 200]
    server.fault("POST", r"file-storage\.upload$", wrong_hash(), nth=2)
    server.fault("POST", r"file-storage\.list$", wrong_hash("/x"))
    assert upload(api, "/y", b"0123456789").json()["hash"] == sha256(b"0123456789")
    assert upload(api, "/x", b"0123456789").json()["hash"] == WRONG
    listed = api.post("file-storage.list", json={"teamId": 8, "path": "/"}).json()
    assert [one["hash"] for one in listed] == [WRONG, sha256(b"0123456789")]
    server.fault("POST", r"download$", Truncate(4))
    server.fault("POST", r"download$", FlipBit(0), nth=2)
    server.fault("POST", r"download$", Reset(), nth=3)
    with pytest.raises(httpx.TransportError):
        download(api, "/x")
    assert download(api, "/x").content == b"1123456789"
    with pytest.raises(httpx.TransportError):
        download(api, "/x")
    assert server.count("POST", r"download$") == 3


# ---- who, where and what runs -----------------------------------------------------------------------------------


def test_only_the_token_opens_the_api(server: SuperviselyStandIn, api: httpx.Client) -> None:
    assert api.post("users.me", json={}).json()["login"] == "me"
    for headers in ({}, {"x-api-key": "wrong"}):
        with http(server.url + API, **headers) as stranger:
            assert stranger.post("users.me", json={}).status_code == 401
            assert upload(stranger, "/x", b"x").status_code == 401
            assert stranger.post("instance.version", json={}).status_code == 200
    assert server.paths() == []


def test_teams_and_workspaces(server: SuperviselyStandIn, api: httpx.Client) -> None:
    assert [team["id"] for team in api.post("teams.list", json={}).json()["entities"]] == [8]
    assert [one["teamId"] for one in api.post("workspaces.list", json={"teamId": 8}).json()["entities"]] == [8]
    assert api.post("workspaces.info", json={"id": 58}).json()["teamId"] == 8
    assert api.post("workspaces.info", json={"id": 59}).status_code == 404
    assert api.post("teams.info", json={"id": 9}).status_code == 403
    server.datasets[4] = 7
    assert api.post("datasets.info", json={"id": 4}).json()["projectId"] == 7
    assert api.post("datasets.info", json={"id": 5}).status_code == 404


def test_agents_are_chosen_by_state_and_gpu(server: SuperviselyStandIn, api: httpx.Client) -> None:
    server.agents = [agent(1), agent(2, available=5), agent(3, available=9, status="waiting")]

    def found(**asked: bool) -> list[int]:
        return [one["id"] for one in api.post("agents.available", json={"teamId": 8, **asked}).json()]

    assert found(needGPU=True) == [2]
    assert found(needGPU=False) == [1, 2]
    assert found(anyStatus=True, needGPU=True) == [2, 3]


def test_the_ecosystem_comes_in_pages(server: SuperviselyStandIn, api: httpx.Client) -> None:
    server.modules = [
        type(server.modules[0])(number, f"Serve {number}", ("serve", f"framework:{number}")) for number in range(3)
    ]
    asked = {"categories": ["serve"], "categoriesOperation": "and"}
    page = api.post("ecosystem.list", json={**asked, "page": 2, "per_page": 2}).json()
    assert (page["total"], page["pagesCount"], [one["id"] for one in page["entities"]]) == (3, 2, [2])
    exact = api.post("ecosystem.list", json={**asked, "categories": ["serve", "framework:1"]}).json()
    assert [one["id"] for one in exact["entities"]] == [1]


RUN = {"agentId": 3, "workspaceId": 58, "moduleId": 77, "taskName": "mine"}


def test_a_started_app_goes_through_its_statuses_before_it_serves(
    server: SuperviselyStandIn, api: httpx.Client
) -> None:
    (run,) = api.post("tasks.run.app", json=RUN).json()
    assert run["status"] == "queued"
    call = {"taskId": run["taskId"], "command": "is_running", "context": {}, "state": {}}
    answers = [api.post("tasks.request.direct", json=call).status_code for _ in range(3)]
    assert answers == [503, 200, 200]
    told = api.post("tasks.info", json={"id": run["taskId"]}).json()
    assert (told["status"], told["meta"]["name"], told["meta"]["app"]["moduleId"]) == ("started", "mine", 77)


def test_an_app_needs_a_module_an_agent_and_a_workspace(server: SuperviselyStandIn, api: httpx.Client) -> None:
    for wrong in ({"moduleId": 1}, {"agentId": 1}, {"workspaceId": 1}):
        assert api.post("tasks.run.app", json={**RUN, **wrong}).status_code == 404
    assert server.tasks == {}


def test_tasks_are_listed_by_status(server: SuperviselyStandIn, api: httpx.Client) -> None:
    train, serve = server.seed_task(status="finished"), server.seed_task()
    output = {"experiment": {"data": {"experiment_name": "x"}}}
    assert api.post("tasks.output.set", json={"taskId": train.id, "output": output}).status_code == 200

    def listed(*statuses: str) -> list[dict[str, Any]]:
        rule = {"field": "status", "operator": "in", "value": list(statuses)}
        return api.post("tasks.list", json={"workspaceId": 58, "filter": [rule]}).json()["entities"]

    assert [task["id"] for task in listed("started")] == [serve.id]
    assert [task["meta"]["output"] for task in listed("finished")] == [output]
    assert len(listed("started", "finished")) == 2


def test_a_stopped_task_serves_no_more(server: SuperviselyStandIn, api: httpx.Client, app: SuperviselyApp) -> None:
    task = server.seed_task()
    assert api.post("tasks.stop", json={"id": task.id}).json() == {"id": task.id, "status": "terminating"}
    assert api.post("tasks.info", json={"id": task.id}).json()["status"] == "stopped"
    with http(server.url) as client:
        assert client.post(f"/net/{task.session_token}/get_status", json={}).status_code == 503
    assert api.post("tasks.stop", json={"id": 1}).status_code == 404
    assert app.requests == []


# ---- the proxies ------------------------------------------------------------------------------------------------


def test_a_direct_request_reaches_the_app_with_who_sent_it(
    server: SuperviselyStandIn, api: httpx.Client, app: SuperviselyApp
) -> None:
    task = server.seed_task()
    call = {"taskId": task.id, "command": "get_status", "context": {"outside_request": True}, "state": {"a": 1}}
    assert api.post("tasks.request.direct", json=call).json()["is_deployed"]
    sent = {
        "context": {"outside_request": True},
        "state": {"a": 1},
        "api_token": server.token,
        "server_address": server.url,
    }
    assert [(request.path, request.body) for request in app.requests] == [("/get_status", sent)]


def test_a_direct_request_is_given_up_while_the_app_goes_on(
    server: SuperviselyStandIn, api: httpx.Client, app: SuperviselyApp
) -> None:
    app.loads.clear()
    server.proxy_limit = 0.1
    task = server.seed_task()
    state = {"deploy_params": {"model_source": "Pretrained models"}, "model_name": "blob-slow"}
    call = {"taskId": task.id, "command": "deploy_from_api", "context": {}, "state": state}
    answer = api.post("tasks.request.direct", json=call)
    assert (answer.status_code, answer.json()["error"]) == (504, "Timeout")
    until(lambda: app.loaded is None, "the app to begin")
    app.loads.set()

    def deployed() -> bool:
        status = api.post("tasks.request.direct", json={**call, "command": "get_status", "state": {}})
        return bool(status.json()["is_deployed"])

    until(deployed, "the app to be deployed")
    assert app.loaded is not None
    assert app.loaded["model_name"] == "blob-slow"


def test_a_session_forwards_anything_and_needs_no_other_credential(
    server: SuperviselyStandIn, app: SuperviselyApp
) -> None:
    task = server.seed_task()
    with http(f"{server.url}/net/{task.session_token}") as session:
        assert session.post("/list_pretrained_models", json={}).json()[0] == "blob-tiny"
        answer = session.post("/inference_image", files=[("files", ("a.png", PICTURE))], data={"state": "{}"})
        assert answer.json()["annotation"]["size"] == {"height": 60, "width": 80}
        assert session.get("/is_alive").json()["running"]
    with http(f"{server.url}/net/wrong") as session:
        assert session.post("/get_status", json={}).status_code == 404
    assert app.count() == 3


def test_an_app_that_is_gone_is_told_so(server: SuperviselyStandIn, app: SuperviselyApp) -> None:
    task = server.seed_task()
    with http(f"{server.url}/net/{task.session_token}") as session:
        assert session.post("/sly/shutdown", json={}).json() is None
        assert app.down.wait(60)
        assert session.post("/get_status", json={}).status_code == 503


# ---- the app ----------------------------------------------------------------------------------------------------


def start(serving: httpx.Client, *files: tuple[str, bytes], route: str = "inference_batch_async", **state: Any) -> str:
    sent = [("files", file) for file in files]
    answer = serving.post(f"/{route}", files=sent, data={"state": json.dumps(state)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["inference_request_uuid"])


def ask(serving: httpx.Client, route: str, uuid: str, **more: Any) -> Any:
    answer = serving.post(f"/{route}", json={"state": {"inference_request_uuid": uuid, **more}, "context": {}})
    assert answer.status_code == 200, answer.text
    return answer.json()


def pop(serving: httpx.Client, uuid: str) -> list[dict[str, Any]]:
    return list(ask(serving, "pop_inference_results", uuid)["pending_results"])


def boxes(prediction: dict[str, Any]) -> list[Any]:
    return [one["points"] for one in prediction["annotation"]["objects"]]


def test_pictures_are_predicted_in_their_order_and_popped_once(serving: httpx.Client, app: SuperviselyApp) -> None:
    uuid = start(serving, ("a.png", PICTURE), ("b.png", png()), settings={"conf": 0.1})
    finished(app)
    first, second = pop(serving, uuid)
    assert (boxes(first), boxes(second)) == ([BRIGHT, EVERYTHING], [EVERYTHING])
    assert pop(serving, uuid) == []
    assert ask(serving, "clear_inference_request", uuid) == {"success": True}


def test_settings_choose_what_is_found(serving: httpx.Client) -> None:
    def found(**settings: Any) -> list[str]:
        files = [("files", ("a.png", PICTURE))]
        answer = serving.post("/inference_image", files=files, data={"state": json.dumps({"settings": settings})})
        return [one["classTitle"] for one in answer.json()["annotation"]["objects"]]

    assert found() == ["dark"]
    assert found(conf=0.1) == ["bright", "dark"]
    assert found(conf=0.1, classes=["bright"]) == ["bright"]


def test_a_lost_answer_loses_its_results(serving: httpx.Client, app: SuperviselyApp) -> None:
    app.fault("POST", "/pop_inference_results$", LoseAnswer())
    uuid = start(serving, ("a.png", PICTURE))
    finished(app)
    with pytest.raises(httpx.TransportError):
        pop(serving, uuid)
    assert pop(serving, uuid) == []


def test_equal_file_names_get_each_others_prediction(serving: httpx.Client, app: SuperviselyApp) -> None:
    app.gate.clear()
    first = start(serving, ("a.png", PICTURE), settings={"conf": 0.1})
    start(serving, ("a.png", png()), settings={"conf": 0.1})
    app.gate.set()
    finished(app)
    assert boxes(pop(serving, first)[0]) == [EVERYTHING]


def test_progress_is_told_while_an_inference_runs(serving: httpx.Client, app: SuperviselyApp) -> None:
    app.gate.clear()
    uuid = start(serving, *((f"{number}.png", PICTURE) for number in range(3)))
    until(lambda: app.inferences[uuid].stage == "Running inference...", "the inference to run")
    told = ask(serving, "get_inference_progress", uuid)
    assert (told["progress"]["current"], told["progress"]["total"], told["finished"]) == (0, 3, False)
    assert serving.post("/get_status", json={}).json()["progress"]["total"] == 3
    app.gate.set()
    finished(app)
    told = ask(serving, "get_inference_progress", uuid)
    assert (told["progress"], told["pending_results"], told["finished"]) == ({"current": 0, "total": 1}, 3, True)
    assert ask(serving, "get_inference_status", uuid)["stage"] == "Finished"


def test_a_picture_that_the_model_cannot_take_ends_the_inference(serving: httpx.Client, app: SuperviselyApp) -> None:
    uuid = start(serving, ("a.png", PICTURE), ("b.png", png(FAILING_WIDTH, 5)), batch_size=1)
    finished(app)
    told = ask(serving, "pop_inference_results", uuid)
    assert (told["stage"], told["exception"]["type"], len(told["pending_results"])) == ("Error", "ValueError", 1)
    sent = [("files", ("b.png", png(FAILING_WIDTH, 5)))]
    assert serving.post("/inference_batch", files=sent).json() == []
    assert serving.post("/inference_image", files=sent).status_code == 500


def test_junk_is_refused_at_the_start(serving: httpx.Client, app: SuperviselyApp) -> None:
    answer = serving.post("/inference_batch_async", files=[("files", ("a.png", b"junk"))])
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert app.inferences == {}


def test_a_batch_of_uploads_is_not_stopped_but_ids_are(serving: httpx.Client, app: SuperviselyApp) -> None:
    app.pictures = {1: PICTURE, 2: PICTURE}
    app.gate.clear()
    uploads = start(serving, ("a.png", PICTURE), ("b.png", PICTURE), batch_size=1)
    until(lambda: app.inferences[uploads].stage == "Running inference...", "the first to run")
    body = {"state": {"images_ids": [1, 2], "batch_size": 1}}
    ids = serving.post("/inference_batch_ids_async", json=body).json()["inference_request_uuid"]
    for uuid in (uploads, ids):
        assert ask(serving, "stop_inference", uuid)["success"]
    app.gate.set()
    finished(app)
    assert (len(pop(serving, uploads)), len(pop(serving, ids))) == (2, 0)
    assert {inference.stage for inference in app.inferences.values()} == {"Cancelled"}


def test_ids_wait_for_a_reader(serving: httpx.Client, app: SuperviselyApp) -> None:
    app.pictures, app.unread_limit = dict.fromkeys(range(1, 6), PICTURE), 2
    body = {"state": {"images_ids": [1, 2, 3, 4, 5], "batch_size": 1}}
    uuid = serving.post("/inference_batch_ids_async", json=body).json()["inference_request_uuid"]
    sizes = []
    while sum(sizes) < 5:
        until(lambda: app.inferences[uuid].paused or app.inferences[uuid].finished, "a pause")
        sizes.append(len(pop(serving, uuid)))
    assert sizes == [2, 2, 1]


def test_projects_and_datasets_are_predicted_by_their_images(serving: httpx.Client, app: SuperviselyApp) -> None:
    app.pictures, app.projects, app.datasets = dict.fromkeys((1, 2), PICTURE), {7: [1, 2]}, {4: [1], 5: [2]}

    def predicted(**state: Any) -> list[tuple[Any, ...]]:
        answer = serving.post("/inference_project_id_async", json={"state": state}).json()
        finished(app)
        found = pop(serving, answer["inference_request_uuid"])
        return [(one["project_id"], one["dataset_id"], one["image_id"]) for one in found]

    assert predicted(project_id=7) == [(7, 4, 1), (7, 5, 2)]
    assert predicted(project_id=7, dataset_ids=[5]) == [(7, 5, 2)]
    assert predicted(project_id=7, upload_mode="append") == []
    assert [one["image_id"] for one in app.uploaded] == [1, 2]
    assert serving.post("/inference_batch_ids_async", json={"state": {"images_ids": [9]}}).status_code == 500


@pytest.mark.parametrize(
    ("asked", "uploaded", "by_id"),
    [
        ({}, 10, 10),
        ({"startFrameIndex": 4, "framesCount": 3}, 3, 3),
        ({"startFrameIndex": 2, "endFrameIndex": 5}, 4, 3),
        ({"start_frame": 4, "num_frames": 3}, 10, 3),
        ({"startFrameIndex": 0, "framesCount": 10, "stride": 5}, 2, 2),
    ],
)
def test_a_range_of_a_video(
    serving: httpx.Client, app: SuperviselyApp, asked: dict[str, int], uploaded: int, by_id: int
) -> None:
    uuid = start(serving, ("v.mp4", b"video"), route="inference_video_async", **asked)
    other = serving.post("/inference_video_id_async", json={"state": {"video_id": 3, **asked}}).json()
    finished(app)
    frames = pop(serving, uuid)
    assert (len(frames), len(pop(serving, other["inference_request_uuid"]))) == (uploaded, by_id)
    assert frames[0]["frame_index"] == asked.get("startFrameIndex", 0)
    assert ask(serving, "get_inference_result", uuid) == {"ann": [], "video_ann": None}


def test_a_tracked_video_has_track_ids_where_the_app_can_track(serving: httpx.Client, app: SuperviselyApp) -> None:
    uuid = start(serving, ("v.mp4", b"video"), route="inference_video_async", tracker="botsort")
    finished(app)
    assert ask(serving, "pop_inference_results", uuid)["exception"]["type"] == "NameError"
    assert serving.post("/get_tracking_settings", json={}).json() == {}
    app.tracks = True
    assert serving.post("/get_tracking_settings", json={}).json() == {"botsort": BOTSORT}
    settings = {"new_track_thresh": 0.4}
    uuid = start(
        serving, ("v.mp4", b"video"), route="inference_video_async", tracker="botsort", tracker_settings=settings
    )
    finished(app)
    frame = pop(serving, uuid)[0]["annotation"]
    assert len(frame["objects"]) == 2
    assert frame["customBigData"] == [1, 2]
    assert len(ask(serving, "get_inference_result", uuid)["video_ann"]["frames"]) == 10


def test_without_a_model_only_some_routes_answer(serving: httpx.Client, app: SuperviselyApp) -> None:
    app.loaded = None
    codes = {
        route: serving.post(f"/{route}", json={}).status_code
        for route in app.ROUTES
        if not route.startswith(("inf", "sly"))  # the last ones shut it down
    }
    assert {route for route, code in codes.items() if route.startswith("get") and code == 200} == {
        "get_status",
        "get_custom_inference_settings",
        "get_output_classes_and_tags",
        "get_model_meta",
    }
    assert codes["is_ready"] == 503
    with SuperviselyApp(model=None) as empty, http(empty.url) as client:
        assert client.post("/get_status", json={}).json()["is_deployed"] is False
        assert client.post("/is_deployed", json={}).json()["deployed"] is False
        uuid = start(client, ("a.png", PICTURE))
        finished(empty)
        assert ask(client, "pop_inference_results", uuid)["exception"]["message"] == "no model is loaded"


@pytest.mark.parametrize("name", ["blob-broken", "unknown"])
def test_a_load_that_fails_leaves_nothing_served(serving: httpx.Client, app: SuperviselyApp, name: str) -> None:
    state = {"deploy_params": {"model_source": "Pretrained models"}, "model_name": name}
    assert serving.post("/deploy_from_api", json={"state": state}).status_code == 500
    assert app.loaded is None


def test_a_slow_load_leaves_the_status_readable(app: SuperviselyApp) -> None:
    app.loads.clear()
    state = {"deploy_params": {"model_source": "Pretrained models", "device": "cuda:0"}, "model_name": "blob-slow"}
    with http(app.url) as one, http(app.url) as other:
        request = one.build_request(
            "POST", "/deploy_from_api", json={"state": state}, timeout=httpx.Timeout(60, read=0.05)
        )
        with pytest.raises(httpx.ReadTimeout):
            one.send(request)
        until(lambda: not other.post("/get_status", json={}).json()["is_deployed"], "the app to begin")
        app.loads.set()
        until(lambda: bool(other.post("/get_status", json={}).json()["is_deployed"]), "the model to load")
        assert other.post("/get_deploy_info", json={}).json()["device"] == "cuda:0"


def test_a_freeze_says_what_came_of_it_and_an_inference_undoes_it(serving: httpx.Client, app: SuperviselyApp) -> None:
    def freeze() -> str:
        return str(serving.post("/freeze_model", json={}).json()["message"])

    assert freeze().startswith("Failed to freeze model.")
    app.freezes = True
    assert [freeze(), freeze()] == ["Model is frozen.", "Model is already frozen."]
    serving.post("/inference_image", files=[("files", ("a.png", PICTURE))])
    assert freeze() == "Model is frozen."


def test_an_app_that_is_shut_down_is_gone(app: SuperviselyApp) -> None:
    with http(app.url) as client:
        assert client.post("/sly/shutdown", json={}).json() is None
    assert app.down.wait(60)
    with http(app.url) as client, pytest.raises(httpx.ConnectError):
        client.post("/get_status", json={})


def test_pictures_are_read_as_they_were_written() -> None:
    rows = brightness(png(4, 3, (1, 1, 2, 2)))
    assert rows == [[0, 0, 0, 0], [0, 255, 255, 0], [0, 255, 255, 0]]
    large = png(4, 3, (1, 1, 2, 2), padding=100_000)
    assert (brightness(large), len(large) > 100_000) == (rows, True)
    with pytest.raises(ValueError, match="no PNG"):
        brightness(b"junk")
