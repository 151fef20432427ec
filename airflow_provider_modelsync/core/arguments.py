"""What arguments mean, in every form that a DAG, a rendered template or another task's result gives them.

A signature declares its arguments by the types below. Plain templates render text, native ones anything, and what finds
nothing renders to ``None`` or to the text ``"None"``. :class:`Signature` reads each form into the one that the code
works with, or refuses it by name.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from types import NoneType
from typing import Annotated, Any, ParamSpec, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, JsonValue, TypeAdapter, ValidationError

from airflow_provider_modelsync.core.errors import InvalidInput

_SHOWN = 60  # characters of a value in a message
_LONGEST = 1000 * 365.25 * 86400  # seconds, as good as for ever: no calendar tells what is much later
_NOTHING = "None"  # what a template renders that has found nothing


class Reads(BeforeValidator):
    """Marks a type as one that arguments are declared by."""


def shown(value: Any) -> str:
    """Return what a message shows of an argument: only what is short and plain, as all else may hold secrets."""
    if isinstance(value, (str, int, float)) and len(text := str(value)) <= _SHOWN:
        return text
    return f"a value of type {type(value).__name__}"


def is_nothing(value: Any) -> bool:
    """Whether nothing was given: ``None``, or what a template renders that has found nothing."""
    return value is None or (isinstance(value, str) and value.strip() == _NOTHING)


def _fault(value: Any, wanted: str) -> ValueError:
    told = shown(value)
    return ValueError(f"{told!r} is not {wanted}" if told == value else f"{told} is not {wanted}")


def structure(text: str) -> Any:
    """Read the text of an object or a list: JSON, or what a plain template makes of a dictionary or a list.

    :raises ValueError: when it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise ValueError("the text is neither JSON nor what a template makes of a dictionary or a list") from None


def looks_structured(value: Any) -> bool:
    """Whether a value is text that can only be meant as an object or a list."""
    return isinstance(value, str) and value.lstrip()[:1] in ("{", "[")


def is_url(value: Any) -> bool:
    """Whether a value is the address of something that is reached by HTTP."""
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))


def restructured(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the texts read that stand where objects or lists are wanted: templates make texts.

    :param model: what the options are checked by.
    """
    given = dict(values)
    try:
        model.model_validate(given)
    except ValidationError as error:
        for key in {fault["loc"][0] for fault in error.errors(include_input=False, include_url=False) if fault["loc"]}:
            if isinstance(key, str) and looks_structured(given.get(key)):
                with suppress(ValueError):
                    given[key] = structure(given[key])
    return given


def _native(value: Any) -> Any:
    """Return a single number or text of numpy as Python's own."""
    return value.item() if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)) else value


def _text(value: Any) -> str:
    # A float is no text: nobody can tell 1.1 from 1.10 any more.
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _fault(value, "text")


def _reference(value: Any) -> str:
    """Read what leads to a model: text, or the dictionary of a version or of an asset's event."""
    if looks_structured(value):
        value = structure(value)
    if isinstance(value, Mapping):
        ref, name, version = (value.get(key) for key in ("ref", "name", "version"))
        if isinstance(ref, str) and ref:
            return ref
        if isinstance(name, str) and name:
            return f"{name}:{version}" if version else name
        raise ValueError("a dictionary leads to a model by its 'ref', or by 'name' and 'version'")
    if isinstance(ref := getattr(value, "ref", None), str):
        return ref
    try:
        return _text(value)
    except ValueError:
        raise _fault(value, "a model: text, or a version's dictionary") from None


def _model_name(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(name := value.get("name"), str):
        return name
    return _reference(value)


def _deployment(value: Any) -> str:
    if looks_structured(value):
        value = structure(value)
    if isinstance(value, Mapping):
        for key in ("name", "deployment"):
            if isinstance(name := value.get(key), str) and name:
                return name
        raise ValueError("a dictionary leads to a deployment by its 'name'")
    return _text(value)


def _flag(value: Any) -> bool:
    try:
        return _BOOLEAN.validate_python(value.strip() if isinstance(value, str) else value)
    except ValidationError:
        raise _fault(value, "true or false") from None


def _seconds(value: Any) -> float:
    """Read a duration: seconds, their text, a timedelta, its text, or one of ISO 8601."""
    wanted = "a duration: seconds, a timedelta, or ISO 8601 as PT1H30M"
    if isinstance(value, bool) or not isinstance(value, (str, int, float, timedelta)):
        raise _fault(value, wanted)
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    else:
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = _TIMEDELTA.validate_python(value).total_seconds()
            except ValidationError:
                raise _fault(value, wanted) from None
        except OverflowError:
            raise _fault(value, wanted) from None
    if not math.isfinite(seconds) or seconds < 0:
        raise _fault(value, wanted)
    return min(seconds, _LONGEST)


def seconds(value: Any, argument: str) -> float:
    """Read a duration that no signature declares; parameters and errors as of an argument."""
    try:
        return _seconds(value)
    except ValueError as error:
        raise InvalidInput(str(error), argument=argument) from None


def _moment(value: Any) -> str:
    """Read a version or a time: text, a date or time, or a version's dictionary."""
    if looks_structured(value):
        value = structure(value)
    if isinstance(value, date):  # a datetime is one, too
        return value.isoformat()
    if isinstance(value, Mapping) and isinstance(version := value.get("version"), str):
        made = value.get("created_at")  # tells the order when the version itself is gone
        return f"{version} {made}" if isinstance(made, str) and made else version
    try:
        return _text(value)
    except ValueError:
        raise _fault(value, "a version or a time") from None


def _version_name(value: Any) -> str:
    """Read a version: its text, a reference to it, or the dictionary of one."""
    if looks_structured(value):
        value = structure(value)
    if isinstance(value, Mapping) and isinstance(version := value.get("version"), str) and version:
        return version
    return _reference(value).rpartition(":")[2]


def _conditions(value: Any) -> list[dict[str, Any]]:
    """Read objects: one, a list, or the text of either."""
    if isinstance(value, str):
        value = structure(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise _fault(value, "a condition or a list of conditions")
    return [_at(index, _object, item) for index, item in enumerate(value)]


def _wanted_labels(value: Any) -> dict[str, str | None]:
    """Read labels to look for: an object, where nothing stands for any value, or a list of keys."""
    if isinstance(value, str) and looks_structured(value):
        value = structure(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return dict.fromkeys(_list(value, _text))
    return _changes(value)


def _object(value: Any) -> dict[str, Any]:
    """Read an object: a dictionary, or its text."""
    if isinstance(value, str):
        value = structure(value)
    if not isinstance(value, Mapping):
        raise _fault(value, "an object: a dictionary, or JSON text of one")
    if not all(isinstance(key, str) for key in value):
        raise ValueError("its keys are not all text")
    return dict(value)


def _scalar(value: Any) -> str:
    """Return a plain value as the text that a template would make of it."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (str, int, float)) and value != _NOTHING:
        return str(value)
    raise _fault(value, "text")


def _texts(value: Any) -> dict[str, str]:
    return {key: _at(key, _scalar, item) for key, item in _object(value).items()}


def _changes(value: Any) -> dict[str, str | None]:
    return {key: None if item is None else _at(key, _scalar, item) for key, item in _object(value).items()}


def _at(key: object, read: Callable[[Any], Any], item: Any) -> Any:
    try:
        return read(_native(item))
    except ValueError as error:
        raise ValueError(f"at {key!r}: {error}") from None


def _facts(value: Any) -> dict[str, JsonValue]:
    facts = _plain(_object(value))
    assert isinstance(facts, dict)
    return facts


def _plain(value: Any) -> Any:
    """Return a value with what tasks hand over written as JSON has it: times, paths, tuples, numbers of numpy."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _objects(value: Any) -> dict[str, dict[str, Any]]:
    return {key: _at(key, _object, item) for key, item in _object(value).items()}


def _list(value: Any, read: Callable[[Any], str]) -> list[str]:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "("):
        value = structure(value)
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not isinstance(value, (Sequence, set, frozenset)):
        raise _fault(value, "a list, or JSON text of one")
    return [_at(index, read, item) for index, item in enumerate(value)]


def _patterns(value: Any) -> list[str]:
    return _list(value, _text)


def whole_numbers(value: Any) -> list[int]:
    """Read numbers above zero: one, a list, or the text of either.

    :raises ValueError: when there is none, or anything else.
    """
    if looks_structured(value):
        value = structure(value)
    numbers = [_count(number) for number in (value if isinstance(value, (list, tuple)) else [value])]
    if not numbers:
        raise ValueError("there is none")
    return numbers


def _command(value: Any) -> str | list[str]:
    """Read a command: text, or a list of its words."""
    if isinstance(value, (list, tuple)) or (isinstance(value, str) and value.lstrip()[:1] == "["):
        return _list(value, _text)
    return _text(value)


def _signing(value: Any) -> bool | str | dict[str, str]:
    """Read how to sign: whether at all, the file of a key, or an object that names files."""
    if isinstance(value, Mapping) or looks_structured(value):
        return _texts(_plain(_object(value)))
    try:
        return _flag(value)
    except ValueError:
        return os.fspath(value) if isinstance(value, os.PathLike) else _text(value)


def _models(value: Any) -> list[str]:
    return _list(value, _model_name)


def _count(value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise _fault(value, "a number above zero")


def _between(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        with suppress(ValueError):
            if least <= (number := _count(value)) <= most:
                return number
        raise _fault(value, f"a number from {least} to {most}")

    return read


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value in words:
            return str(value)
        raise _fault(value, f"one of {', '.join(words)}")

    return read


def _versions(value: Any) -> Any:
    if value in ("latest", "all"):
        return value
    try:
        return _count(value)
    except ValueError:
        raise _fault(value, "'latest', 'all' or a number of versions") from None


def _values(value: Any) -> Any:
    return structure(value) if looks_structured(value) else value


_BOOLEAN = TypeAdapter(bool)
_TIMEDELTA = TypeAdapter(timedelta)

Text = Annotated[str, Reads(_text)]
Reference = Annotated[str, Reads(_reference)]
DeploymentName = Annotated[str, Reads(_deployment)]
Flag = Annotated[bool, Reads(_flag)]
Seconds = Annotated[float, Reads(_seconds)]
Span = Annotated[float | timedelta, Reads(_seconds)]
Moment = Annotated[str, Reads(_moment)]
VersionName = Annotated[str, Reads(_version_name)]
Conditions = Annotated[Sequence[Mapping[str, Any]], Reads(_conditions)]
Labels = Annotated[Mapping[str, str], Reads(_texts)]
WantedLabels = Annotated[Mapping[str, str | None], Reads(_wanted_labels)]
LabelChanges = Annotated[Mapping[str, str | None], Reads(_changes)]
Facts = Annotated[Mapping[str, Any], Reads(_facts)]  # JSON values; what has them kept says what it cannot keep
Options = Annotated[Mapping[str, Any], Reads(_object)]
OptionsByName = Annotated[Mapping[str, Mapping[str, Any]], Reads(_objects)]
Patterns = Annotated[Sequence[str], Reads(_patterns)]
Command = Annotated[str | Sequence[str], Reads(_command)]
Signing = Annotated[bool | str | Mapping[str, str], Reads(_signing)]
SignaturePolicy = Annotated[str, Reads(_one_of("off", "warn", "require"))]
ModelNames = Annotated[Sequence[str], Reads(_models)]
Versions = Annotated[Any, Reads(_versions)]
Count = Annotated[int, Reads(_count)]
Values = Annotated[Any, Reads(_values)]
OnReference = Annotated[str, Reads(_one_of("fail", "skip"))]
Threads = Annotated[int, Reads(_between(1, 64))]
PartSize = Annotated[int, Reads(_between(5, 5120))]  # MiB; storages take no others


@dataclass(frozen=True, slots=True)
class _Argument:
    reads: TypeAdapter[Any]
    default: Any
    may_be_none: bool

    def read(self, name: str, value: Any) -> Any:
        if is_nothing(value):
            if self.may_be_none:
                return None
            if self.default is inspect.Parameter.empty:
                raise InvalidInput("it is needed, and what was given for it is nothing", argument=name)
            value = self.default
        try:
            return self.reads.validate_python(_native(value))
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
            raise InvalidInput(fault["msg"].removeprefix("Value error, "), argument=name) from None
        except Exception as error:  # objects of others do anything; what leads into itself has no end
            raise InvalidInput(f"{shown(value)} cannot be read: {type(error).__name__}", argument=name) from None


class Signature:
    """The arguments of functions that are declared by the types above; others are left alone.

    :param functions: whose parameters to take together, e.g. a class's constructor and those of its bases.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self._annotations: dict[str, tuple[Any, Any]] = {}
        for function in functions:
            self._annotations |= dict(_declared(function))
        self._arguments: dict[str, _Argument] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arguments, in the order of declaration."""
        return tuple(self._annotations)

    def read(self, name: str, value: Any) -> Any:
        """Return the value of an argument as the code works with it; reading that again changes nothing.

        :param name: the argument's.
        :param value: whatever was given; ``None``, and what a template renders that finds nothing, is the default.
        :raises InvalidInput: naming the argument.
        """
        if name not in self._arguments:  # made when it is first needed: DAG files are parsed over and over
            annotation, default = self._annotations[name]
            self._arguments[name] = _Argument(TypeAdapter(annotation), default, NoneType in get_args(annotation))
        return self._arguments[name].read(name, value)


P = ParamSpec("P")
T = TypeVar("T")


def understood(function: Callable[P, T]) -> Callable[P, T]:
    """Have a function's declared arguments read before it is called."""
    signature, parameters = Signature(function), inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = parameters.bind(*args, **kwargs)
        for name in signature.names:
            if name in given.arguments:
                given.arguments[name] = signature.read(name, given.arguments[name])
        return function(*given.args, **given.kwargs)

    return call


def _declared(function: Callable[..., Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    function = inspect.unwrap(function)
    for parameter in inspect.signature(function).parameters.values():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, function.__globals__)  # noqa: S307  # the module's own source
            except NameError:  # imported for type checkers only, so none of ours
                continue
        if _reads(annotation):
            yield parameter.name, (annotation, parameter.default)


def _reads(annotation: Any) -> bool:
    return any(isinstance(part, Reads) or _reads(part) for part in get_args(annotation))
