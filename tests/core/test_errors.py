from __future__ import annotations

import errno
import os
import pickle

import pytest

from airflow_provider_modelsync.core import errors
from airflow_provider_modelsync.core.errors import (
    DigestMismatch,
    DiskFull,
    InvalidInput,
    ModelSyncError,
    Permanent,
    RegistryUnavailable,
    Retryable,
    from_os_error,
)

RETRYABLE = {
    "RegistryUnavailable",
    "NotReady",
    "TransferStalled",
    "CorruptArchive",
    "SourceChanged",
    "DiskFull",
    "Cancelled",
    "BeginAgain",
}
PERMANENT = {
    "InvalidInput",
    "TargetExists",
    "ModelNotFound",
    "VersionConflict",
    "NotSupported",
    "Unauthorized",
    "UnsafeArchive",
    "UntrustedModel",
    "DigestMismatch",
    "VersionFailed",
    "DeploymentFailed",
}


def _names_below(base: type[ModelSyncError]) -> set[str]:
    return {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }


def test_retryable_errors_are_those_that_another_try_can_help_with() -> None:
    assert _names_below(Retryable) == RETRYABLE


def test_permanent_errors_are_those_that_it_cannot() -> None:
    assert _names_below(Permanent) == PERMANENT


def test_an_error_reads_as_its_message_and_the_facts_that_are_known() -> None:
    error = InvalidInput("it is empty", argument="source").about(model="m:v1", connection="store")
    assert str(error) == "it is empty [argument 'source', model 'm:v1', connection 'store']"


def test_an_error_without_facts_is_its_message() -> None:
    assert str(DiskFull("no room")) == "no room"


def test_what_a_lower_layer_knew_is_not_overwritten() -> None:
    error = DigestMismatch("bad", model="m:v1").about(model="m", connection="store")
    assert (error.model, error.connection) == ("m:v1", "store")


def test_an_error_survives_pickling_with_its_facts() -> None:
    error = InvalidInput("it is empty", argument="source").about(model="m", connection="store")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (InvalidInput, str(error))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EACCES, InvalidInput),
        (errno.EPERM, InvalidInput),
        (errno.EROFS, InvalidInput),
        (errno.EIO, RegistryUnavailable),
    ],
)
def test_an_operating_system_error_is_classified_by_its_number(code: int, kind: type[ModelSyncError]) -> None:
    error = from_os_error(OSError(code, os.strerror(code)), "writing /models/m")
    assert type(error) is kind
    assert str(error) == f"writing /models/m: {os.strerror(code)}"


def test_missing_permission_names_the_argument_at_fault() -> None:
    error = from_os_error(PermissionError(errno.EACCES, "Permission denied"), "writing /m", argument="target")
    assert error.argument == "target"


@pytest.mark.parametrize(
    ("message", "remedy", "text"),
    [
        ("it is full", "Free space there", "it is full. Free space there"),
        ("it is full", "free space there", "it is full; free space there"),
        ("Is this an https port?", "Correct the host", "Is this an https port? Correct the host"),
    ],
)
def test_a_remedy_is_a_sentence_of_its_own(message: str, remedy: str, text: str) -> None:
    assert str(InvalidInput(message, remedy=remedy)) == text
