"""Arguments of all operators and sensors, in every form in which a DAG, a template or another task gives them."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy
import pytest
from airflow.sdk import DAG, BaseOperator, ObjectStoragePath, XComArg
from airflow.sdk.definitions.mappedoperator import MappedOperator

from airflow_provider_modelsync.compat import AirflowFailException
from airflow_provider_modelsync.core import arguments
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.operators.arguments import Place
from airflow_provider_modelsync.operators.base import ModelSyncOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator, SyncModelsOperator
from airflow_provider_modelsync.provider_info import get_provider_info
from airflow_provider_modelsync.sensors.model import ModelVersionSensor
from tests.support.versions import DagSerialization

VERSION = {"registry": "modelstore", "name": "fraud", "version": "v1", "ref": "fraud:v1"}
EVENT = {"registry": "modelstore", "name": "fraud", "version": "v1", "digest": None}
WRONG = object()
KINDS = ("operators", "sensors")

# Type → pairs of what is given and what it means. The first one of each is what the walk below gives everywhere.
FORMS: dict[Any, list[tuple[Any, Any]]] = {
    arguments.Text: [("some", "some"), (2024, "2024")],
    arguments.Reference: [
        ("fraud:v1", "fraud:v1"),
        (2024, "2024"),
        (VERSION, "fraud:v1"),
        (EVENT, "fraud:v1"),
        ({"name": "fraud"}, "fraud"),
        (str(VERSION), "fraud:v1"),
        (json.dumps(VERSION), "fraud:v1"),
    ],
    arguments.DeploymentName: [("demo", "demo"), (2024, "2024"), ({"name": "demo", "status": "running"}, "demo")],
    arguments.Flag: [
        (False, False),
        (True, True),
        *((text, False) for text in ("False", "false", "0", "no", "off", " False ")),
        *((text, True) for text in ("True", "true", "1", "yes", "on")),
        (0, False),
        (1, True),
    ],
    arguments.Seconds: [
        (7.5, 7.5),
        (60, 60.0),
        ("60", 60.0),
        (" 1.5 ", 1.5),
        (timedelta(minutes=5), 300.0),
        (str(timedelta(days=1, minutes=5)), 86700.0),
        ("PT1H30M", 5400.0),
        (0, 0.0),
    ],
    arguments.Moment: [
        ("v1", "v1"),
        (20200101, "20200101"),
        (datetime(2020, 1, 1, tzinfo=UTC), "2020-01-01T00:00:00+00:00"),
        (date(2020, 1, 1), "2020-01-01"),
        (VERSION, "v1"),
        ({**VERSION, "created_at": "2026-01-01T00:00:00Z"}, "v1 2026-01-01T00:00:00Z"),
        ({**VERSION, "created_at": None}, "v1"),
    ],
    arguments.VersionName: [("v1", "v1"), (7, "7"), ("fraud:v1", "v1"), (VERSION, "v1")],
    arguments.Conditions: [
        ([{"metric": "auc", "at_least": 0.1}], [{"metric": "auc", "at_least": 0.1}]),
        ({"metric": "auc"}, [{"metric": "auc"}]),
        ('{"metric": "auc"}', [{"metric": "auc"}]),
        ("[{'metric': 'auc'}, {'metric': 'f1'}]", [{"metric": "auc"}, {"metric": "f1"}]),
    ],
    arguments.Labels: [
        ({"stage": "dev"}, {"stage": "dev"}),
        ('{"stage": "dev"}', {"stage": "dev"}),
        ("{'stage': 'dev', 'year': 2024}", {"stage": "dev", "year": "2024"}),
        ({"year": 2024, "ok": True}, {"year": "2024", "ok": "True"}),
    ],
    arguments.WantedLabels: [
        ({"stage": "dev", "pinned": None}, {"stage": "dev", "pinned": None}),
        (["pinned"], {"pinned": None}),
        ("['pinned', 'stage']", {"pinned": None, "stage": None}),
    ],
    arguments.LabelChanges: [({"stage": "dev", "old": None}, {"stage": "dev", "old": None})],
    arguments.Facts: [
        ({"auc": 0.9, "at": [date(2020, 1, 1)]}, {"auc": 0.9, "at": ["2020-01-01"]}),
        ('{"auc": 0.9}', {"auc": 0.9}),
    ],
    arguments.Options: [({"framework": "onnx"}, {"framework": "onnx"}), ('{"a": [1]}', {"a": [1]})],
    arguments.OptionsByName: [({"fraud*": {"a": 1}}, {"fraud*": {"a": 1}}), ({"x": '{"a": 1}'}, {"x": {"a": 1}})],
    arguments.ModelNames: [
        (["fraud*"], ["fraud*"]),
        (["fraud", 2024, VERSION], ["fraud", "2024", "fraud"]),
        ("['fraud', 'churn']", ["fraud", "churn"]),
        (("a",), ["a"]),
    ],
    arguments.Patterns: [(["*.bin"], ["*.bin"]), ('["*.bin"]', ["*.bin"])],
    arguments.Versions: [("latest", "latest"), ("all", "all"), (3, 3), ("3", 3)],
    arguments.Count: [(10, 10), ("10", 10)],
    arguments.Threads: [(8, 8), ("8", 8)],
    arguments.PartSize: [(64, 64), ("64", 64)],
    arguments.OnReference: [("skip", "skip"), ("fail", "fail")],
    arguments.SignaturePolicy: [("require", "require"), ("off", "off")],
    arguments.Signing: [
        (True, True),
        ("no", False),
        ("/keys/team.key", "/keys/team.key"),
        ({"key": "/keys/team.key"}, {"key": "/keys/team.key"}),
        ('{"signature": "/x.sig"}', {"signature": "/x.sig"}),
    ],
    arguments.Command: [
        ("modelscan -p", "modelscan -p"),
        (["modelscan", "-p"], ["modelscan", "-p"]),
        ('["modelscan", "-p"]', ["modelscan", "-p"]),
    ],
    arguments.Values: [([1, 2], [1, 2]), ("/data/in.json", "/data/in.json"), ("[1, 2]", [1, 2]), ({"a": 1}, {"a": 1})],
    Place: [
        ("/models/x", "/models/x"),
        (Path("/models/x"), Path("/models/x")),
        (2024, "2024"),
        ({**VERSION, "path": "/models/x"}, "/models/x"),
    ],
}
FORMS[arguments.Span] = FORMS[arguments.Seconds]

REFUSED: dict[Any, list[Any]] = {
    arguments.Text: [WRONG, 1.5, True, [], {}],
    arguments.Reference: [WRONG, 1.5, [], {"x": 1}, "{"],
    arguments.DeploymentName: [WRONG, 1.5, [], {"x": 1}],
    arguments.Flag: [WRONG, "maybe", "", 2, [], "{{ params.force }}"],
    arguments.Seconds: [WRONG, "soon", "", -1, "-1", True, float("nan"), "inf", [], timedelta(seconds=-1)],
    arguments.Moment: [WRONG, 1.5, [], {}],
    arguments.VersionName: [WRONG, 1.5, [], {"x": 1}],
    arguments.Conditions: [WRONG, "auc", 5, ["auc"], [5]],
    arguments.Labels: [WRONG, "stage", ["stage"], {"stage": None}, {"stage": "None"}, {"stage": []}, {1: "x"}, 5],
    arguments.WantedLabels: [WRONG, "stage", {"stage": []}, [None]],
    arguments.LabelChanges: [WRONG, "stage", {"stage": "None"}, {"stage": []}],
    arguments.Facts: [WRONG, "auc", ["auc"], 5],
    arguments.Options: [WRONG, "onnx", ["onnx"], 5, "{{ params.options }}"],
    arguments.OptionsByName: [WRONG, {"fraud": "onnx"}, {"fraud": 1}],
    arguments.ModelNames: [WRONG, "fraud", [None], [1.5], 5],
    arguments.Patterns: [WRONG, "*.bin", [None], [[]]],
    arguments.Versions: [WRONG, "newest", 0, -1, "0", True, 1.5],
    arguments.Count: [WRONG, 0, "many", True, 1.5],
    arguments.Threads: [WRONG, 0, 65, "many", True, 1.5],
    arguments.PartSize: [WRONG, 4, 5121, "large", True, 7.5],
    arguments.OnReference: [WRONG, "ignore", "Skip", True, []],
    arguments.SignaturePolicy: [WRONG, "always", "Off", True, []],
    arguments.Signing: [WRONG, 1.5, [], {"key": None}, "{"],
    arguments.Command: [WRONG, 1.5, True, {}, [None]],
    arguments.Values: [],  # each system takes its own
    Place: [WRONG, 1.5, True, [], {"x": 1}, b"/models"],
}
REFUSED[arguments.Span] = REFUSED[arguments.Seconds]


def _classes() -> Iterator[type[BaseOperator]]:
    """Return every class that users put into DAGs."""
    info = get_provider_info()
    for module in (
        import_module(name) for section in KINDS for entry in info[section] for name in entry["python-modules"]
    ):
        for name, found in inspect.getmembers(module, inspect.isclass):
            is_whole = not name.startswith("_") and not inspect.isabstract(found)
            if is_whole and issubclass(found, BaseOperator) and found.__module__ == module.__name__:
                yield found


CLASSES = list(_classes())
each_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def public_arguments(kind: type[BaseOperator]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class that are not Airflow's own."""
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("airflow_provider_modelsync") and "__init__" in vars(base):
            parameters = inspect.signature(inspect.unwrap(vars(base)["__init__"])).parameters.values()
            found |= {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return found


def declared(kind: Any, name: str) -> Any:
    """Return the type that an argument is declared by."""
    annotation, _ = kind._signature._annotations[name]
    (found,) = (known for known in FORMS if known == annotation or known | None == annotation)
    return found


def cases(kind: type[BaseOperator], forms: dict[Any, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, form) for name in public_arguments(kind) for form in forms[declared(kind, name)]]


def usual(kind: type[BaseOperator]) -> dict[str, Any]:
    """Return an argument's first form for all arguments that are needed."""
    needed = [name for name, parameter in public_arguments(kind).items() if parameter.default is parameter.empty]
    return {name: FORMS[declared(kind, name)][0][0] for name in needed}


def read(operator: Any, name: str) -> Any:
    operator.read_arguments()
    return getattr(operator, name)


def rendered(operator: Any, context: Any = None) -> Any:
    """Render an operator's templates as Airflow does; return the operator that then runs."""
    context = context if context is not None else {}
    operator.render_template_fields(context)
    return operator


def test_all_classes_are_looked_at() -> None:
    assert {PushModelOperator, PullModelOperator, SyncModelsOperator, ModelVersionSensor} <= set(CLASSES)


@each_class
def test_every_argument_is_a_template_field_of_its_own_name(kind: type[BaseOperator]) -> None:
    operator = kind(task_id="task", **usual(kind))

    assert {name.rstrip("_") for name in kind.template_fields} == set(public_arguments(kind))
    assert set(kind.template_fields_renderers) <= set(kind.template_fields)
    assert {name: getattr(operator, name) for name in usual(kind)} == usual(kind)


@each_class
def test_every_form_is_understood_and_stays_so(kind: Any) -> None:
    for name, (given, meant) in cases(kind, FORMS):
        operator = kind(task_id="task", **{**usual(kind), name: given})

        assert read(operator, name) == meant, (name, given)
        assert type(read(operator, name)) is type(meant), (name, given)


@each_class
def test_every_form_comes_through_a_native_template_and_another_task(kind: Any) -> None:
    for name, (given, meant) in cases(kind, FORMS):
        if isinstance(given, (set, Path)):  # no XCom
            continue
        with DAG("dag", render_template_as_native_obj=True):
            other = BaseOperator(task_id="other")
            native = kind(task_id="native", **{**usual(kind), name: "{{ value }}"})
            task = kind(task_id="task", **{**usual(kind), name: XComArg(other)})
        assert task.upstream_task_ids == {"other"}, name

        native = rendered(native, {"value": given})
        # Native rendering reads text as Python wherever it can: that of an object is one.
        assert read(native, name) == meant or isinstance(given, str), (name, given)
        setattr(task, name, given)
        assert read(task, name) == meant, (name, given)


@each_class
def test_every_form_comes_through_the_text_of_a_template(kind: Any) -> None:
    for name, (given, meant) in cases(kind, FORMS):
        with DAG("dag"):
            operator = kind(task_id="task", **{**usual(kind), name: "{{ value }}"})

        if name == "metadata" and "datetime" in str(given):  # Python's own words for a date are no text of an object
            continue
        told = read(rendered(operator, {"value": given}), name)
        assert str(told).replace(" ", "T") == str(meant).replace(" ", "T"), (name, given)


@each_class
def test_every_argument_is_mapped_over_and_waits_for_what_it_comes_from(kind: Any) -> None:
    for name, partial in itertools.product(public_arguments(kind), (True, False)):
        given, meant = FORMS[declared(kind, name)][0]
        spread = next(other for other in reversed(public_arguments(kind)) if other != name)
        rest = {other: value for other, value in usual(kind).items() if other != name}
        with DAG("dag"):
            other = BaseOperator(task_id="other")
            if partial:
                rest.pop(spread, None)
                mapped = kind.partial(task_id="task", **{**rest, name: XComArg(other)}).expand(**{spread: ["a", "b"]})
            else:
                mapped = kind.partial(task_id="task", **rest).expand(**{name: XComArg(other)})
        assert isinstance(mapped, MappedOperator)
        assert mapped.upstream_task_ids == {"other"}, name

        if not partial:
            assert read(mapped.unmap({name: given}), name) == meant


@each_class
def test_all_arguments_come_by_expand_kwargs_and_by_default_args(kind: Any) -> None:
    every = {name: FORMS[declared(kind, name)][0][0] for name in public_arguments(kind)}
    with DAG("dag", default_args={**every, "nonsense": 1}):
        mapped = kind.partial(task_id="mapped").expand_kwargs([every])
        plain = kind(task_id="plain")

    for operator in (mapped.unmap(every), plain):
        assert {name: getattr(operator, name) for name in every} == every


@each_class
def test_nothing_is_the_default_or_refused_by_name(kind: Any) -> None:
    for name, parameter in public_arguments(kind).items():
        for nothing in (None, "None", " None "):
            operator = kind(task_id="task", **{**usual(kind), name: nothing})
            if "None" in str(parameter.annotation):
                assert read(operator, name) is None
            elif parameter.default is parameter.empty:
                with pytest.raises(InvalidInput, match=f"argument '{name}'") as refused:
                    operator.read_arguments()
                assert "None" not in str(refused.value)
            else:
                assert read(operator, name) == kind._signature.read(name, parameter.default)


@each_class
def test_what_is_not_understood_is_refused_before_anything_else(
    kind: Any, connect: Callable[..., None], context: Any
) -> None:
    for name, given in cases(kind, REFUSED):
        operator = kind(task_id="task", **{**usual(kind), name: given})

        # There are no such connections: to look for one would be another error.
        with pytest.raises(AirflowFailException, match=f"argument '{name}'") as refused:
            operator.execute(context)
        cause = refused.value.__context__
        assert isinstance(cause, InvalidInput)
        assert cause.connection, (name, given)
        if "model" in public_arguments(kind):
            assert cause.model, (name, given)


@pytest.mark.parametrize("name", ["options", "metadata", "labels"])
@pytest.mark.parametrize("given", ["{'a': hunter2hunter2", ["hunter2hunter2"], "x" * 61], ids=["cut", "list", "long"])
def test_what_is_refused_is_not_shown_where_it_may_be_a_secret(name: str, given: Any) -> None:
    operator = PushModelOperator(task_id="push", model="m", source="/m", **{name: given})

    with pytest.raises(InvalidInput) as refused:
        operator.read_arguments()
    assert "hunter2" not in str(refused.value)
    assert "xxx" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "given", "meant"),
    [
        (arguments.Count, numpy.int64(10), 10),
        (arguments.Text, numpy.int64(7), "7"),
        (arguments.Reference, numpy.array(2024), "2024"),
        (arguments.ModelNames, [numpy.int32(1), numpy.str_("a")], ["1", "a"]),
        (arguments.Labels, {"rows": numpy.uint8(3), "auc": numpy.float32(0.5)}, {"rows": "3", "auc": "0.5"}),
        (
            arguments.Facts,
            {"auc": numpy.float32(0.5), "by_class": numpy.array([1, 2])},
            {"auc": 0.5, "by_class": [1, 2]},
        ),
        (arguments.Flag, numpy.bool_(False), False),
        (arguments.Seconds, numpy.float32(1.5), 1.5),
        (arguments.Versions, numpy.int64(3), 3),
    ],
)
def test_what_numpy_has_counted_is_understood(kind: Any, given: Any, meant: Any) -> None:
    def take(value: Any) -> Any:
        return value

    take.__annotations__["value"] = kind
    assert repr(arguments.understood(take)(given)) == repr(meant)


@pytest.mark.parametrize("path", [Path("/models/{{ run_id }}"), ObjectStoragePath("file:///models/{{ run_id }}")])
def test_paths_are_templates(path: Any, context: Any) -> None:
    with DAG("dag"):
        pull = PullModelOperator(task_id="pull", model="m", target=path)
        mapped = PullModelOperator.partial(task_id="mapped", model="m").expand(target=[path])

    run: Any = {**context, "task": mapped, "dag": None}
    for operator in (rendered(pull, context), mapped.unmap({"target": path})):
        operator.render_template_fields(run)
        assert str(operator.target).endswith("/models/manual__1")
        assert type(operator.target) in (type(path), type(Path()))


class TestDataIsKept:
    """What false text did: replace a version, delete a foreign directory, copy nothing."""

    NO = (False, "False", "{{ no }}", 0, "no")

    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        other = tmp_path / "other"
        other.mkdir()
        (other / "weights.bin").write_bytes(b"other")
        return other

    @pytest.mark.parametrize("no", NO, ids=str)
    def test_a_false_force_replaces_no_version(
        self, no: Any, modelstore: Path, source: Path, other: Path, context: Any
    ) -> None:
        hook = ModelStoreHook("modelsync_default")
        before = hook.push(source, "fraud:v1").digest
        with DAG("dag"):
            push = PushModelOperator(task_id="push", model="fraud:v1", source=str(other), force=no)

        with pytest.raises(AirflowFailException, match="exists with"):
            rendered(push, {**context, "no": False}).execute(context)
        assert hook.get("fraud:v1").digest == before

    @pytest.mark.parametrize("no", NO, ids=str)
    def test_a_false_force_deletes_no_target(
        self, no: Any, modelstore: Path, source: Path, other: Path, context: Any
    ) -> None:
        ModelStoreHook("modelsync_default").push(source, "fraud:v1")
        with DAG("dag"):
            pull = PullModelOperator(task_id="pull", model="fraud:v1", target=str(other), force=no)

        with pytest.raises(AirflowFailException, match="something other"):
            rendered(pull, {**context, "no": False}).execute(context)
        assert (other / "weights.bin").read_bytes() == b"other"

    @pytest.mark.parametrize("no", NO, ids=str)
    def test_a_false_dry_run_copies(
        self, no: Any, modelstore: Path, source: Path, context: Any, connect: Callable[..., None], tmp_path: Path
    ) -> None:
        connect("backup", conn_type="modelstore", host=(tmp_path / "backup").as_uri())
        ModelStoreHook("modelsync_default").push(source, "fraud:v1")
        with DAG("dag"):
            sync = SyncModelsOperator(
                task_id="sync", source_conn_id="modelsync_default", target_conn_id="backup", dry_run=no
            )

        report = rendered(sync, {**context, "no": False}).execute(context)
        assert (report["dry_run"], report["counts"]["copied"]) == (False, 1)
        assert ModelStoreHook("backup").get("fraud:v1")


def test_the_next_try_on_the_same_object_is_not_told_to_stop(modelstore: Path, source: Path, context: Any) -> None:
    push = PushModelOperator(task_id="push", model="fraud:v1", source=str(source))
    push.execute(context)
    push.on_kill()  # as Airflow does once a try is out of time

    assert push.execute(context)["skipped"]
    assert len(push._trace.written) == 1


def test_every_entry_of_a_task_reads_its_arguments() -> None:
    for kind in CLASSES:
        if not issubclass(kind, ModelSyncOperator):
            continue
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("execute") and method.__module__.startswith("airflow_provider_modelsync"):
                assert "self.attempt()" in inspect.getsource(inspect.unwrap(method)), f"{kind.__name__}.{name}"


@each_class
def test_every_form_survives_in_a_serialized_dag(kind: Any) -> None:
    with DAG("dag") as dag:
        for number, (name, (given, _)) in enumerate(cases(kind, FORMS)):
            kind(task_id=f"task_{number}", **{**usual(kind), name: given})

    back = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))

    assert {task.task_id for task in dag.tasks} == set(back.task_ids)
