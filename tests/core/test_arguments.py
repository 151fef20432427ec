"""Arguments of odd kinds, and options that hold what templates have made of lists and numbers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_provider_modelsync.core import arguments
from airflow_provider_modelsync.core.arguments import restructured, whole_numbers
from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.registries.bentocloud import deployments as bentocloud
from airflow_provider_modelsync.core.registries.supervisely.predict import PredictOptions
from airflow_provider_modelsync.core.registries.wallaroo import pipelines as wallaroo


@pytest.mark.parametrize(
    ("read", "given", "meant"),
    [
        (
            lambda options: list(PredictOptions.read(options).classes or ()),
            {"classes": "['car', 'sign']"},
            ["car", "sign"],
        ),
        (lambda options: PredictOptions.read(options).conf, {"conf": "0.25"}, 0.25),
        (lambda options: PredictOptions.read(options).recursive, {"recursive": "False"}, False),
        (lambda config: bentocloud._checked(config)["secrets"], {"secrets": '["a", "b"]'}, ["a", "b"]),
        (lambda config: bentocloud._checked(config)["weight"], {"weight": "30"}, 30),
        (lambda config: bentocloud._checked(config)["dev"], {"dev": "False"}, False),
        (lambda config: bentocloud._checked(config)["bento"], {"bento": "fraud:1"}, "fraud:1"),
    ],
)
def test_the_text_of_a_value_is_the_value(read: Callable[[Any], Any], given: dict[str, Any], meant: Any) -> None:
    assert read(given) == meant
    assert type(read(given)) is type(meant) or isinstance(meant, list)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (PredictOptions.read, {"classes": "[1"}),  # what it does not know is the app's to judge
        (bentocloud._checked, {"nonsense": "[1]"}),
        (bentocloud._checked, {"secrets": "[1"}),
        (wallaroo._checked, {"nonsense": "[1]"}),
        (wallaroo._checked, {"replicas": "[1"}),
    ],
)
def test_what_is_no_option_is_still_refused(check: Callable[[Any], Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        check(wrong)


def test_texts_that_are_wanted_as_texts_stay_as_they_are() -> None:
    assert restructured(bentocloud.DeployConfig, {"description": "[draft]"}) == {"description": "[draft]"}


@pytest.mark.parametrize(
    ("given", "numbers"), [(7, [7]), ("7", [7]), ([1, "2"], [1, 2]), ("[1, 2]", [1, 2]), ((3,), [3])], ids=str
)
def test_numbers_are_read_from_text(given: Any, numbers: list[int]) -> None:
    assert whole_numbers(given) == numbers


@pytest.mark.parametrize("given", [[], "[]", "", "x", 0, -1, True, 1.5, [None], {"a": 1}], ids=str)
def test_what_is_no_number_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a number|there is none"):
        whole_numbers(given)


@pytest.mark.parametrize("seconds", [1e12, "1e300", timedelta.max, "P999999999D"])
def test_a_duration_is_never_longer_than_calendars_bear(seconds: Any) -> None:
    now = datetime.now(UTC)
    read = arguments.seconds(seconds, "timeout")
    assert now - timedelta(seconds=read) < now - timedelta(days=300_000) < now + timedelta(seconds=read)
    assert arguments.seconds(read, "timeout") == read


class Odd(list[str]):
    """What raises whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(name)

    def __iter__(self) -> Any:
        raise OSError

    __eq__ = __len__ = __str__ = __repr__ = __iter__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def _endless() -> dict[str, Any]:
    endless: dict[str, Any] = {}
    endless["itself"] = endless
    return endless


@pytest.mark.parametrize("value", [Odd(["x"]), _endless(), [_endless()]], ids=["odd", "endless", "endless list"])
@pytest.mark.parametrize(
    "kind",
    [arguments.Text, arguments.Reference, arguments.Labels, arguments.Facts, arguments.Patterns, arguments.Flag],
)
def test_whatever_an_object_does_when_it_is_read_the_argument_is_refused_by_name(kind: Any, value: Any) -> None:
    def push(model: Any) -> None:
        raise AssertionError

    push.__annotations__["model"] = kind
    with pytest.raises(InvalidInput) as refused:
        arguments.understood(push)(value)
    assert refused.value.argument == "model"


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x")])
def test_bytes_are_no_list(value: Any) -> None:
    def push(include: arguments.Patterns) -> None:
        raise AssertionError

    with pytest.raises(InvalidInput, match="list"):
        arguments.understood(push)(value)
