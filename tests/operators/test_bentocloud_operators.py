"""The push of bentos as a task."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG, Asset, AssetAlias

from airflow_provider_modelsync.assets import bento_asset
from airflow_provider_modelsync.compat import AirflowException, AirflowFailException
from airflow_provider_modelsync.core.http.policy import Backoff
from airflow_provider_modelsync.operators.bentocloud import PushBentoOperator
from airflow_provider_modelsync.xcom import XCOM_LIMIT
from tests.conftest import Connect
from tests.core.stores import write_tree
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Delay, Respond
from tests.support.versions import serialize

CONNECTION = "bentocloud_default"
KILL_LIMIT = 4.0  # seconds from the signal to the end: Airflow sends SIGKILL after five
KEYS = {
    "registry",
    "name",
    "version",
    "ref",
    "status",
    "digest",
    "size_bytes",
    "labels",
    "metadata",
    "alias",
    "aliases",
    "created_at",
    "uri",
    "reference",
    "skipped",
    "resumed_bytes",
}


@pytest.fixture
def server(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[BentoCloudStandIn]:
    monkeypatch.setattr(Backoff, "delay", lambda self, failures: 0.0)
    with BentoCloudStandIn(tmp_path / "cloud") as server:
        connect(CONNECTION, conn_type="bentocloud", host=server.url, password=server.token)
        server.seed("tiny", "v1")
        yield server


@pytest.fixture
def bento(tmp_path: Path) -> Path:
    """A built bento, with what its build may have put beside it."""
    facts = {
        "name": "svc",
        "version": "b1",
        "service": "service:Svc",
        "labels": {"stage": "dev"},
        "services": [{"name": "Svc", "service": "", "models": [{"tag": "tiny:v1"}]}],
        "spec": 2,
    }
    files = {"bento.yaml": yaml.safe_dump(facts).encode(), "README.md": b"# Svc\n", "src/service.py": b"pass\n"}
    return write_tree(tmp_path / "bento", files)


def push(source: Path | str, **arguments: Any) -> PushBentoOperator:
    return PushBentoOperator(**{"task_id": "push", "source": source, **arguments})


def test_returns_the_bento_as_a_plain_dictionary(server: BentoCloudStandIn, bento: Path, context: Any) -> None:
    pushed = push(bento).execute(context)

    assert json.loads(json.dumps(pushed)) == pushed == serialize(pushed)
    assert len(json.dumps(pushed).encode()) <= XCOM_LIMIT
    assert pushed.keys() == KEYS
    facts = {key: pushed[key] for key in ("ref", "registry", "status", "labels", "skipped", "resumed_bytes")}
    assert facts == {
        "ref": "svc:b1",
        "registry": "bentocloud",
        "status": "ready",
        "labels": {"stage": "dev"},
        "skipped": False,
        "resumed_bytes": 0,
    }
    assert server.bentos["svc:b1"].upload_status == "success"


def test_repeated_sends_nothing(server: BentoCloudStandIn, bento: Path, context: Any) -> None:
    first = push(bento).execute(context)
    sent = server.count("PUT")

    second = push(bento).execute(context)

    assert (first["skipped"], second["skipped"], first["ref"]) == (False, True, second["ref"])
    assert server.count("PUT") == sent


def test_of_other_bytes_fails_for_good_unless_forced(server: BentoCloudStandIn, bento: Path, context: Any) -> None:
    push(bento).execute(context)
    (bento / "README.md").write_text("# Other\n")

    with pytest.raises(AirflowFailException, match=rf"svc:b1 exists with other bytes.*{CONNECTION}"):
        push(bento).execute(context)
    assert push(bento, force=True).execute(context)["skipped"] is False
    assert server.bentos["svc:b1"].description == "# Other\n"


def test_without_its_model_fails_for_good_and_names_it(server: BentoCloudStandIn, bento: Path, context: Any) -> None:
    server.repositories.clear()

    with pytest.raises(AirflowFailException, match=r"svc:b1 was built with the model tiny:v1.*argument 'source'"):
        push(bento).execute(context)
    assert server.bentos == {}


@pytest.mark.parametrize("strategy", ["proxy", None, "presigned_url"])
def test_that_fails_in_passing_may_be_retried(
    server: BentoCloudStandIn, bento: Path, context: Any, strategy: str | None
) -> None:
    server.transmission_strategy = strategy
    server.fault("PUT", ".", Respond(503), times=None)

    with pytest.raises(AirflowException) as raised:
        push(bento).execute(context)
    assert not isinstance(raised.value, AirflowFailException)

    server.faults.clear()
    assert push(bento).execute(context)["status"] == "ready"


@pytest.mark.parametrize("source", ["absent", "."])
def test_of_what_is_no_bento_fails_for_good(
    server: BentoCloudStandIn, tmp_path: Path, context: Any, source: str
) -> None:
    with pytest.raises(AirflowFailException, match=r"no built bento: bento\.yaml cannot be read.*argument 'source'"):
        push(tmp_path / source).execute(context)
    assert server.count() == 0


def test_of_a_name_that_the_server_would_not_take_fails_for_good(
    server: BentoCloudStandIn, bento: Path, context: Any
) -> None:
    (bento / "bento.yaml").write_text("name: Svc\nversion: b1\n")

    with pytest.raises(AirflowFailException, match="the name 'Svc' is not lower-case"):
        push(bento).execute(context)
    assert server.count() == 0


@pytest.mark.usefixtures("modelstore")
def test_needs_a_connection_to_bentocloud(bento: Path, context: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"not a connection of type 'modelstore'.*modelsync_default"):
        push(bento, registry_conn_id="modelsync_default").execute(context)


def test_uses_bentoclouds_connection_by_default(bento: Path) -> None:
    assert push(bento).registry_conn_id == CONNECTION


def test_renders_its_templates(server: BentoCloudStandIn, bento: Path) -> None:
    with DAG("templates"):
        operator = push("{{ where }}", registry_conn_id="{{ conn }}")
    variables: Any = {"where": str(bento), "conn": "other"}
    operator.render_template_fields(variables)

    assert (operator.source, operator.registry_conn_id) == (str(bento), "other")


def test_tells_the_outlet_assets(server: BentoCloudStandIn, bento: Path, context: Any) -> None:
    asset = Asset("modelsync://bentocloud_default/svc")

    push(bento, outlets=[asset]).execute(context)

    assert context["outlet_events"][asset].extra["name"] == "svc"


def test_is_no_model_to_those_who_wait_for_models(server: BentoCloudStandIn, bento: Path, context: Any) -> None:
    alias = AssetAlias("bentos")
    operator = push(bento, outlets=[alias])
    operator.execute(context)

    (event,) = context["outlet_events"][alias].asset_alias_events
    assert (
        event.dest_asset_key.uri
        == bento_asset("bentocloud_default", "svc").uri
        == "modelsync-bento://bentocloud_default/svc"
    )
    assert operator._trace.written == []
    told = operator.get_openlineage_facets_on_complete(None)
    assert told is not None
    assert [(one.namespace, one.name) for one in told.outputs] == [("modelsync-bento://bentocloud_default", "svc")]
    assert [(one.namespace, one.name) for one in told.inputs] == [("file", str(bento))]


def test_ends_in_time_when_it_is_killed(server: BentoCloudStandIn, bento: Path, context: Any) -> None:
    server.transmission_strategy = "proxy"
    server.fault("PUT", "/upload$", Delay(30))
    operator = push(bento)
    killed_at: list[float] = []

    def kill() -> None:
        while not server.count("PUT", "/upload$"):
            time.sleep(0.01)
        killed_at.append(time.monotonic())
        operator.on_kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(AirflowException):
        operator.execute(context)
    killer.join()

    assert time.monotonic() - killed_at[0] < KILL_LIMIT
    assert server.count("PATCH", "/finish_upload$") == 0


class TestTheExample:
    """The task that builds a bento by a command of another environment."""

    @pytest.fixture
    def build(self) -> Any:
        import runpy

        return runpy.run_path(str(EXAMPLE))["build"].function

    def test_says_what_to_do_without_a_command(
        self, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MODELSYNC_BENTOML", str(tmp_path / "absent"))

        with pytest.raises(AirflowFailException, match="MODELSYNC_BENTOML"):
            build("tiny:v1", str(tmp_path / "work"))
        assert not (tmp_path / "work").exists()

    def test_gives_the_command_a_project_and_returns_what_it_built(
        self, server: BentoCloudStandIn, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: Any
    ) -> None:
        command = tmp_path / "bentoml"
        command.write_text(
            "#!/bin/sh\nset -e\n"
            'mkdir -p "$BENTOML_HOME/bentos/digits/b1"\n'
            'env > "$BENTOML_HOME/../seen.txt"\n'
            'cp service.py "$BENTOML_HOME/bentos/digits/b1/"\n'
            "printf 'name: digits\\nversion: b1\\nmodels: [{tag: \"tiny:v1\"}]\\n' "
            '> "$BENTOML_HOME/bentos/digits/b1/bento.yaml"\n'
        )
        command.chmod(0o755)
        monkeypatch.setenv("MODELSYNC_BENTOML", str(command))

        first, directory = (build("tiny:v1", str(tmp_path / "work")) for _ in range(2))

        assert first == directory
        assert 'BentoModel("tiny:v1")' in (Path(directory) / "service.py").read_text()
        seen = (tmp_path / "work" / "seen.txt").read_text().splitlines()
        assert f"BENTO_CLOUD_API_ENDPOINT={server.url}" in seen
        assert f"BENTO_CLOUD_API_KEY={server.token}" in seen
        assert [line for line in seen if line.startswith("AIRFLOW")] == []
        assert push(directory).execute(context)["ref"] == "digits:b1"


EXAMPLE = Path(__file__).parents[2] / "example_dags" / "bentocloud_train_push_deploy.py"
