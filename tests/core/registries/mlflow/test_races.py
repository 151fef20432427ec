"""Pushes that are killed, given up, or met by others: a version never lacks its bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory, read_tree
from airflow_provider_modelsync.core.errors import BeginAgain, ModelNotFound, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import Flow, SyncDriver
from airflow_provider_modelsync.core.models import ModelRef, Query
from airflow_provider_modelsync.core.registries.mlflow.registry import MLflow
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.transfer.plan import PushRequest
from airflow_provider_modelsync.core.transfer.upload import upload
from airflow_provider_modelsync.core.verbs.drive import driver_for, mover_for
from tests.conformance.bench import Bench
from tests.conformance.registries import mlflow_under_test
from tests.core.processes import at_once
from tests.core.registries.mlflow.conftest import FILES, NAME, holders
from tests.core.stores import snapshot, write_tree
from tests.services.moto_server import running_moto
from tests.standins.http_server import Answer, LoseAnswer, Refusal, Request, Respond, text_answer
from tests.standins.mlflow import MLflowStandIn
from tests.support.steps import Victim, some_of

pytestmark = pytest.mark.faults

Worker = Callable[..., Bench]


class Deadly(MLflowStandIn):
    """Kills its client at one of its requests: before what was asked for is done, or after."""

    victim: Victim | None = None
    left = 0
    does_it = True

    def answer(self, request: Request, body: Iterator[bytes]) -> Answer:
        if self.victim:
            self.left -= 1
            if self.left == 0:
                victim, self.victim = self.victim, None
                try:
                    return super().answer(request, body) if self.does_it else text_answer(500, "")
                finally:
                    victim.kill()
        return super().answer(request, body)

    def kills(self, work: Callable[[], Any], *, at: int, does_it: bool) -> bool:
        """Do work in a process that is killed at its n-th request; return whether it came that far."""
        self.left, self.does_it, self.victim = at, does_it, (victim := Victim(work))
        is_killed = victim.run()
        self.victim = None
        return is_killed


def whole(worker: Worker, source: Path) -> list[str]:
    """Return the versions, each of which must come back as it was pushed."""
    bench = worker()
    versions = bench.ready_versions(NAME)
    for version in versions:
        target = bench.target()
        bench.pull(f"{NAME}:{version}", target)
        assert snapshot(target) == snapshot(source)
    return versions


@pytest.mark.slow
@pytest.mark.parametrize(("generation", "is_direct"), [(3, False), (2, False), (2, True)], ids=["3", "2", "2-bucket"])
@pytest.mark.parametrize("does_it", [True, False], ids=["after", "before"])
@pytest.mark.row("P1", "P3")
def test_a_push_that_is_killed_at_any_request_leaves_no_version_without_its_bytes_and_the_next_goes_on(
    tmp_path: Path, source: Path, generation: int, is_direct: bool, does_it: bool
) -> None:
    for at in some_of(count(1)):
        fields: dict[str, str] = {}
        where = {"storage": "local", "bucket": "none"}
        if is_direct:
            with running_moto() as moto:
                where = {"storage": "direct", "bucket": moto.new_bucket()}
                keys = {"aws_access_key_id": moto.access_key, "aws_secret_access_key": moto.secret_key}
                fields = {**keys, "endpoint_url": moto.endpoint}
        with Deadly(tmp_path / f"server-{at}", generation=generation, **where) as server:
            worker = _worker_of(server, tmp_path / f"workers-{at}", **fields)
            came_that_far = server.kills(
                lambda worker=worker: worker().push(source, NAME, control=Control(workers=1)), at=at, does_it=does_it
            )
            assert len(whole(worker, source)) <= 1
            again = worker().push(source, NAME)
            assert again.digest == digest_directory(source)
            assert whole(worker, source) == [again.version]
            assert len(holders(server)) == 1
        if not came_that_far:
            assert at > 12
            return


def _delete(bench: Bench, model: str) -> bool:
    done: bool = bench.run(lambda registry: registry.delete(registry.parse(model)))
    return done


def _worker_of(server: MLflowStandIn, scratch: Path, **fields: str) -> Worker:
    scratch.mkdir()

    def make() -> Bench:
        own = Path(mkdtemp(dir=scratch))  # also in a process that is forked from this one
        return Bench(mlflow_under_test(server.url, lambda: 0, **fields), own)

    return make


@pytest.mark.slow
def test_a_delete_that_is_killed_at_any_request_leaves_no_version_without_its_bytes(
    tmp_path: Path, source: Path
) -> None:
    for at in some_of(count(1)):
        with Deadly(tmp_path / f"server-{at}") as server:
            worker = _worker_of(server, tmp_path / f"workers-{at}")
            pushed = worker().push(source, NAME)
            bench = worker()
            came_that_far = server.kills(
                lambda bench=bench, ref=pushed.ref: _delete(bench, ref),
                at=at,
                does_it=True,
            )
            whole(worker, source)
            assert worker().push(source, NAME).digest == pushed.digest
            assert len(whole(worker, source)) == 1
        if not came_that_far:
            return


def test_ten_pushers_of_the_same_bytes_end_in_one_version(server: MLflowStandIn, worker: Worker, source: Path) -> None:
    benches = [worker() for _ in range(10)]
    results = at_once(*[lambda bench=bench: bench.push(source, NAME) for bench in benches])

    assert {result.ref for result in results} == {f"{NAME}:{results[0].version}"}
    assert whole(worker, source) == [results[0].version]
    (holder,) = holders(server)
    places = {path.split("/artifacts/")[0].rpartition("/")[2] for path in server.files()}
    # Of a run that is deleted while another push uses it, the files stay until `mlflow gc` removes them.
    assert places - (server.runs.keys() - {holder}) == {holder}


def test_ten_pushers_of_different_bytes_end_in_ten_versions(
    server: MLflowStandIn, worker: Worker, tmp_path: Path
) -> None:
    sources = [write_tree(tmp_path / str(number), {"w": b"%d" % number}) for number in range(10)]
    benches = [worker() for _ in sources]
    pairs = zip(benches, sources, strict=True)
    results = at_once(*[lambda bench=bench, source=source: bench.push(source, NAME) for bench, source in pairs])

    assert sorted(int(result.version) for result in results) == list(range(1, 11))
    assert [result.digest for result in results] == [digest_directory(source) for source in sources]


class Stepped:
    """A flow that takes a step at a time."""

    def __init__(self, flow: Flow[Any], driver: SyncDriver) -> None:
        self._flow = flow
        self._driver = driver
        self._step: Any = None
        self.is_over = False
        self.error: BaseException | None = None

    def go_on(self) -> None:
        try:
            if self._step is None:
                self._step = next(self._flow)
                return
            try:
                result = self._driver.run(_only(self._step))
            except Exception as error:
                self._step = self._flow.throw(error)
            else:
                self._step = self._flow.send(result)
        except StopIteration:
            self.is_over = True
        except Exception as error:
            self.is_over, self.error = True, error


def _only(step: Any) -> Flow[Any]:
    return (yield step)


def sent(registry: MLflow, driver: SyncDriver, source: Path) -> Any:
    """Plan a push and send its files; return the plan."""
    tree = read_tree(source)
    plan = driver.run(registry.plan_push(PushRequest(ref=ModelRef(name=NAME), source=tree)))
    control = Control(workers=1)
    assert plan.way is not None
    upload(plan.way, tree, control, driver, mover_for(registry, control))
    return plan


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.row("P13")
def test_whoever_gives_up_what_another_push_has_joined_takes_no_version_s_bytes(
    server: MLflowStandIn, worker: Worker, source: Path, seed: int
) -> None:
    order = random.Random(seed)
    one, two = worker().registry, worker().registry
    assert isinstance(one, MLflow)
    assert isinstance(two, MLflow)
    with driver_for(one, None) as first, driver_for(two, None) as second:
        plan, joined = sent(one, first, source), sent(two, second, source)
        assert plan.holder.source == joined.holder.source
        giving_up = Stepped(one.abort_push(plan, RegistryUnavailable("given up")), first)
        finishing = Stepped(two.finish_push(joined), second)
        while not (giving_up.is_over and finishing.is_over):
            order.choice([one for one in (giving_up, finishing) if not one.is_over]).go_on()

    assert giving_up.error is None
    # It begins again when it finds what it has sent given up, or gone.
    assert isinstance(finishing.error, BeginAgain | RegistryUnavailable | None)
    assert len(whole(worker, source)) == (0 if finishing.error else 1)
    assert worker().push(source, NAME).digest == digest_directory(source)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_whoever_gives_up_takes_no_bytes_of_a_push_that_is_killed_meanwhile(
    server: MLflowStandIn, worker: Worker, source: Path, seed: int
) -> None:
    """At any of its requests, with the one who gives up anywhere between two of its own."""
    for life in some_of(range(1, 16)):
        order = random.Random(f"{seed} {life}")
        one, two = worker().registry, worker().registry
        assert isinstance(one, MLflow)
        assert isinstance(two, MLflow)
        with driver_for(one, None) as first, driver_for(two, None) as second:
            plan, joined = sent(one, first, source), sent(two, second, source)
            assert plan.holder.source == joined.holder.source
            giving_up = Stepped(one.abort_push(plan, RegistryUnavailable("given up")), first)
            killed = Stepped(two.finish_push(joined), second)
            steps = [giving_up] * 16 + [killed] * life
            order.shuffle(steps)
            for one_of_them in steps:
                if not one_of_them.is_over:
                    one_of_them.go_on()
            assert giving_up.is_over

        assert len(whole(worker, source)) <= 1
        assert worker().push(source, NAME).digest == digest_directory(source)
        assert len(whole(worker, source)) == 1
        for version in worker().ready_versions(NAME):
            _delete(worker(), f"{NAME}:{version}")


def test_a_run_s_files_stay_while_a_push_may_make_a_version_of_them(source: Path, tmp_path: Path) -> None:
    with MLflowStandIn(tmp_path / "older", generation=2) as server:
        make = _worker_of(server, tmp_path / "workers")
        one, two = make().registry, make().registry
        assert isinstance(one, MLflow)
        assert isinstance(two, MLflow)
        with driver_for(one, None) as first, driver_for(two, None) as second:
            plan, joined = sent(one, first, source), sent(two, second, source)
            first.run(one.abort_push(plan, RegistryUnavailable("given up")))
            assert server.files()  # `mlflow gc` removes them with the deleted run
            assert holders(server) == []
            with pytest.raises(BeginAgain):
                second.run(two.finish_push(joined))
        assert server.versions(NAME) == []

        left = set(server.files())
        pushed = make().push(source, NAME)
        assert _delete(make(), pushed.ref)
        assert set(server.files()) == left


def test_a_push_that_fails_for_good_leaves_nothing_behind(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    server.fault("PUT", "weights.bin$", Respond(403, b"Permission denied"), times=None)
    with pytest.raises(Exception, match="Permission denied"):
        ml.push(source, NAME)
    assert holders(server) == []
    assert server.files() == {}
    assert server.versions(NAME) == []


def test_the_next_try_sends_what_is_missing(server: MLflowStandIn, worker: Worker, source: Path) -> None:
    server.fault("PUT", "weights.bin$", Respond(503), times=None)
    with pytest.raises(RegistryUnavailable):
        worker().push(source, NAME, control=Control(workers=1))
    server.faults.clear()
    server.requests.clear()
    stats = worker().push(source, NAME).transfer
    assert stats is not None
    assert stats.sent_bytes >= 7000
    assert stats.resumed_bytes + stats.sent_bytes == sum(map(len, FILES.values()))
    assert server.count("PUT", "weights.bin$") == 1
    assert len(holders(server)) == 1


@pytest.mark.row("S5")
def test_an_answer_that_is_lost_makes_no_second_version(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    server.fault("POST", "model-versions/create$", LoseAnswer())
    assert ml.push(source, NAME).version == "1"
    assert len(server.versions(NAME)) == 1


def test_an_upload_whose_answer_is_lost_is_not_sent_again(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    """A gateway's 504 may come after the server has stored all of it."""

    def answered_late(request: Request, body: Iterator[bytes]) -> Answer:
        answer = MLflowStandIn.answer(server, request, body)
        if request.method == "PUT" and request.path.endswith("weights.bin"):
            raise Refusal(text_answer(504, "<html>gateway time-out</html>"))
        return answer

    server._servers[0].answer = answered_late
    ml.push(source, NAME)
    assert server.count("PUT", "weights.bin$") == 1


def test_a_model_that_vanishes_is_not_found(server: MLflowStandIn, ml: Bench, source: Path) -> None:
    pushed = ml.push(source, NAME)
    server.models.clear()
    with pytest.raises(ModelNotFound):
        ml.get(pushed.ref)
    assert ml.run(lambda registry: registry.list_versions(NAME, Query())) == []
