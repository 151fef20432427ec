"""Every example DAG through a real scheduler and triggerer, against stand-ins of the systems that it names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.wallaroo import WallarooHook
from scripts.local_airflow import LocalAirflow
from tests.e2e.conftest import BENTOML, EXAMPLES
from tests.e2e.runs import Run, remembered, runs_of
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.huggingface import HuggingFaceStandIn
from tests.standins.mlflow import MLflowStandIn
from tests.standins.oci import OCIStandIn
from tests.standins.pieces import PiecesStandIn
from tests.standins.supervisely_app import SuperviselyApp
from tests.standins.wallaroo import WallarooStandIn
from tests.support.cloud import changes
from tests.support.images import png
from tests.support.pieces import DOWNLOAD, PHI, verbs
from tests.support.until import until

pytestmark = pytest.mark.e2e

BY_HAND = "LC_ALL=C; find . -type f -printf '%P\\0' | sort -z | xargs -0 sha256sum | sha256sum"
IDENTICAL = "450 of 450 predictions are identical"
BENTO = {
    "name": "scorer",
    "version": "b1",
    "service": "service:Scorer",
    "services": [{"name": "Scorer", "service": "", "models": [{"tag": "risk:v1"}]}],
    "spec": 2,
}


def test_no_example_is_left_out() -> None:
    tested = {name.removeprefix("test_") for name in vars(sys.modules[__name__])}

    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_train_push_wait_pull(airflow: LocalAirflow, base: Path) -> None:
    run = Run.start(airflow, "train_push_wait_pull").succeed()

    assert run.left("compare") == IDENTICAL
    for task, where, doing in (("push", "uri", "pushing digits"), ("pull", "path", "pulling digits:")):
        left = run.left(task)
        directory = left[where].removeprefix("file://")
        by_hand = subprocess.run(BY_HAND, shell=True, cwd=directory, check=True, capture_output=True, text=True).stdout
        assert left["digest"] == f"sha256:{by_hand.split()[0]}"
        for text in (doing, "(100 %)"):
            run.until_logged(task, text)
    assert_one_version(run, lambda: sorted((base / "store" / "digits" / ".modelsync").glob("*.json")))


def test_taskflow(airflow: LocalAirflow, bentocloud: BentoCloudStandIn, tmp_path: Path) -> None:
    run = Run.start(airflow, "taskflow", work=str(tmp_path / "work")).succeed()

    assert run.left("count") >= 1
    assert run.left("get")["ref"] == run.left("push")["ref"]


def test_bentocloud_train_push(airflow: LocalAirflow, bentocloud: BentoCloudStandIn) -> None:
    run = Run.start(airflow, "bentocloud_train_push").succeed()

    version = run.left("push")["version"]
    assert bentocloud.model("digits", version).upload_status == "success"
    assert {"key": "stage", "value": "staging"} in bentocloud.model("digits", version).labels
    assert_one_version(run, lambda: [*bentocloud.repositories["digits"].models])


def test_bentocloud_train_push_deploy(airflow: LocalAirflow, bentocloud: BentoCloudStandIn) -> None:
    assert BENTOML.exists(), f"{BENTOML} is missing: run `make test-e2e`"
    run = Run.start(airflow, "bentocloud_train_push_deploy").succeed()

    bento = bentocloud.bentos[run.left("push_bento")["ref"]]
    assert (bento.upload_status, bento.models) == ("success", [run.left("push")["ref"]])
    assert bentocloud.deployments["digits"].revisions[-1].body["bento"] == bento.tag
    assert run.left("deploy")["ready"]


def test_wallaroo_train_push_deploy(airflow: LocalAirflow, wallaroo: WallarooStandIn) -> None:
    run = Run.start(airflow, "wallaroo_train_push_deploy").succeed()

    assert run.left("compare") == IDENTICAL
    assert run.left("deploy")["ready"]
    assert run.left("undeploy")["gone"]
    assert_one_version(run, lambda: wallaroo.versions_of("digits"))


@dataclass(frozen=True)
class Outcome:
    """What a run has led to.

    :param run: of a DAG about the champion.
    :param champion: the version that is champion then.
    :param served: the one that is served then.
    """

    run: Run
    champion: str
    served: str

    @classmethod
    def of(cls, run: Run) -> Outcome:
        """Wait for a run's success, and see what it has led to."""
        run.succeed()
        champion = ModelStoreHook("modelsync_default").get("champion-digits@champion")
        served = WallarooHook("wallaroo_default").deployment("champion-digits").model
        return cls(run, champion.ref, str(served))


@pytest.fixture(scope="module")
def challenged(airflow: LocalAirflow, wallaroo: WallarooStandIn) -> list[Outcome]:
    """A first model, a better one, and one that is worse than that."""
    return [Outcome.of(Run.start(airflow, "champion_challenger", rounds=rounds)) for rounds in (5, 2000, 6)]


def test_champion_challenger(challenged: list[Outcome]) -> None:
    first, better, worse = challenged
    assert first.champion != better.champion
    assert first.served != better.served
    told = better.run.left("promote")
    assert (told["promoted"], told["from"], told["to"]) == (True, first.champion, better.champion)
    assert better.run.left("predict")["count"] == 50
    assert better.run.left("deploy")["ready"]
    assert worse.run.left("promote")["promoted"] is False
    assert (worse.champion, worse.served) == (better.champion, better.served)
    assert (worse.run.states["promote"], worse.run.states["deploy"]) == ("skipped", "skipped")


def test_rollback_champion(airflow: LocalAirflow, challenged: list[Outcome]) -> None:
    first, better, _ = challenged
    back = Outcome.of(Run.start(airflow, "rollback_champion"))
    told = back.run.left("back")
    assert (told["from"], told["to"]) == (better.champion, first.champion)
    assert back.champion == first.champion
    assert back.served != better.served


def test_supervisely_batch_predict(airflow: LocalAirflow, detector: SuperviselyApp, images: Path) -> None:
    for number in range(3):
        (images / f"{number}.png").write_bytes(png(80, 8, (0, 0, 60 + number, 7)))

    run = Run.start(airflow, "supervisely_batch_predict", framework="TinyBlob", model="blob-slow").succeed()

    made = run.left("predict")
    lines = [json.loads(line) for line in Path(made["output"]).read_text().splitlines()]
    assert [line["path"] for line in lines] == [str(images / f"{number}.png") for number in range(3)]
    assert run.left("freeze")["frozen"]
    assert detector.frozen


def test_pieces_local_model(airflow: LocalAirflow, pieces: PiecesStandIn) -> None:
    run = Run.start(airflow, "pieces_local_model", model=PHI["unique"]).succeed()

    assert f"{PHI['unique']} is loaded: True" in run.left("use")
    assert verbs(pieces) == [DOWNLOAD, "load", "unload"]
    assert pieces.models[PHI["id"]]["downloaded"]
    assert not pieces.models[PHI["id"]]["loaded"]


def test_nightly_sync(airflow: LocalAirflow, source: Path) -> None:
    pushed = BentoCloudHook().push(source, "nightly:v1", labels={"of": "the night"})

    # Soon after its hour, Airflow starts a run of its own, which may be the one that copies.
    first, second = (Run.start(airflow, "nightly_sync").succeed().left("sync")["counts"] for _ in range(2))

    assert (first["failed"], second["failed"]) == (0, 0)
    assert second == {"copied": 0, "skipped": first["copied"] + first["skipped"], "failed": 0}
    copy = ModelStoreHook("modelstore_default").get("nightly:v1")
    assert (copy.digest, copy.labels) == (pushed.digest, {"of": "the night"})


def test_sync_into_production(airflow: LocalAirflow, base: Path, source: Path) -> None:
    (base / "plain").mkdir()
    (base / "plain" / "model.json").write_text("{}")
    ModelStoreHook("modelsync_default").push(base / "plain", "plain:v1")
    ModelStoreHook("modelsync_default").push(source, "unplain:v1")  # raw weights

    run = Run.start(airflow, "sync_into_production")

    assert run.end() == "failed"
    run.until_logged("sync", "unplain:v1 holds what is not allowed: 'weights.bin' (other)")
    assert [one.ref for one in ModelStoreHook("modelstore_default").list_models("plain")] == ["plain:v1"]


def test_train_push_oci(airflow: LocalAirflow, oci: OCIStandIn) -> None:
    run = Run.start(airflow, "train_push_oci").succeed()

    (volume,) = run.left("pod")["spec"]["volumes"]
    place, _, digest = volume["image"]["reference"].partition("@")
    assert place == f"{oci.host}/team/examples/digits-image"
    assert digest in oci.repositories["team/examples/digits-image"].manifests
    assert run.left("push")["digest"] == run.left("push_image")["digest"]
    assert run.left("push")["labels"] == {"stage": "staging"}


def test_mlflow_train_promote_pull(airflow: LocalAirflow, mlflow: MLflowStandIn) -> None:
    run = Run.start(airflow, "mlflow_train_promote_pull").succeed()

    assert (run.left("promote")["promoted"], run.left("promote")["to"]) == (True, run.left("push")["ref"])
    assert (run.left("pull")["alias"], run.left("pull")["ref"]) == ("champion", run.left("push")["ref"])
    assert digest_directory(run.left("pull")["path"]) == run.left("push")["digest"]


def test_mirror_hub_model(airflow: LocalAirflow, hub: HuggingFaceStandIn) -> None:
    first, second = (Run.start(airflow, "mirror_hub_model").succeed().left("mirror")["counts"] for _ in range(2))

    assert (first["failed"], second) == (0, {"copied": 0, "skipped": 1, "failed": 0})
    copy = ModelStoreHook("modelstore_default").get("acme--fraud")
    assert copy.version == hub.repositories["acme/fraud"].head.id
    assert copy.size_bytes == 5002  # without the notes


def test_fleet_sync(airflow: LocalAirflow, bentocloud: BentoCloudStandIn, source: Path) -> None:
    names = {name for name, repository in bentocloud.repositories.items() if repository.models}
    for name in ("fleet-a", "fleet-b"):
        BentoCloudHook().push(source, f"{name}:v1")

    run = Run.start(airflow, "fleet_sync").succeed()

    synced = [task["map_index"] for task in run.instances() if task["task_id"] == "sync"]
    assert len(synced) == len(names) + 2
    copies = {version.ref for version in ModelStoreHook("modelstore_default").list_models()}
    assert {"fleet-a:v1", "fleet-b:v1"} <= copies


def test_the_connection_form_knows_the_model_store(airflow: LocalAirflow) -> None:
    form = airflow.connection_types()["modelstore"]

    assert form["hook_name"] == "Model Store"
    assert form["standard_fields"]["host"]["title"] == "Root"
    assert form["standard_fields"]["password"]["title"] == "Secret key, key file (JSON) or signature"
    assert form["extra_fields"]["max_workers"]["schema"]["title"] == "Threads"


@pytest.fixture
def conf(tmp_path: Path, source: Path) -> dict[str, str]:
    """What the example with an approval is started with: a model, and a bento built with it."""
    bento = tmp_path / "bento"
    bento.mkdir()
    (bento / "bento.yaml").write_text(yaml.safe_dump(BENTO))
    return {"model": "risk:v1", "source": str(source), "bento": str(bento)}


def asked(airflow: LocalAirflow, conf: dict[str, str]) -> Run:
    """Start the example with an approval, and wait until it waits for a person."""
    run = Run.start(airflow, "approve_then_deploy", **conf)
    run.until("approve", "awaiting_input")
    # Nobody answers in the blink before the scheduler has noticed; Airflow would lose it and ask once more.
    noticed = f"task_id=approve, run_id={run.run_id}"
    until(lambda: noticed in (airflow.home / "scheduler.log").read_text(errors="replace"), "the scheduler to notice")
    return run


def test_approve_then_deploy(airflow: LocalAirflow, bentocloud: BentoCloudStandIn, conf: dict[str, str]) -> None:
    before = changes(bentocloud, "risk")
    run = asked(airflow, conf)
    question = run.question("approve")

    assert (question["subject"], question["options"]) == ("Deploy risk:v1?", ["Approve", "Reject"])
    assert "scorer:b1" in question["body"]
    assert run.left("push")["digest"] in question["body"]
    assert changes(bentocloud, "risk") == before

    run.answer("approve", "Approve")
    run.succeed()

    deployed = run.left("deploy")
    assert (deployed["name"], deployed["ready"], deployed["artifact"]) == ("risk", True, "scorer:b1")
    assert run.links("deploy") == {"Registry console": deployed["page"], "Deployment": deployed["url"]}
    for task, page in (
        ("push", "model_repositories/risk/models/v1"),
        ("push_bento", "bento_repositories/scorer/bentos/b1"),
    ):
        assert run.links(task) == {"Registry console": f"{bentocloud.url}/{page}"}


def test_nothing_is_deployed_when_a_person_refuses(
    airflow: LocalAirflow, bentocloud: BentoCloudStandIn, conf: dict[str, str]
) -> None:
    before = changes(bentocloud, "risk")
    run = asked(airflow, conf)
    run.answer("approve", "Reject")

    assert run.succeed().states == {
        "push": "success",
        "push_bento": "success",
        "approve": "success",
        "deploy": "skipped",
    }
    assert changes(bentocloud, "risk") == before


def test_deploy_on_new_version(airflow: LocalAirflow, bentocloud: BentoCloudStandIn, source: Path) -> None:
    dag_id = "deploy_on_new_version"
    until(lambda: remembered(airflow, "bentocloud_default/fraud"), "the first sight")
    assert runs_of(airflow, dag_id) == []

    bentocloud.seed_bento("detector", "b1", models=["fraud:v1"])
    BentoCloudHook().push(source, "fraud:v1")

    (run,) = until(lambda: runs_of(airflow, dag_id), "a run")
    run.succeed()
    assert (run.left("deploy")["name"], run.left("deploy")["artifact"]) == ("fraud", "detector:b1")
    assert runs_of(airflow, dag_id) == [run]


def assert_one_version(run: Run, versions: Callable[[], list[Any]]) -> None:
    """Clear a push that has succeeded: it finds what it has pushed and sends nothing again."""
    before = versions()
    run.clear("push")

    assert versions() == before
    assert run.left("push")["skipped"] is True
    run.until_logged("push", "nothing is sent")
