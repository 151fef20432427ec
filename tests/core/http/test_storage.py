"""What a storage's refusals mean, the same for calls of its API and for presigned URLs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from airflow_provider_modelsync.core.errors import (
    InvalidInput,
    ModelNotFound,
    ModelSyncError,
    NotSupported,
    RegistryUnavailable,
    Unauthorized,
)
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.http.faults import ServerBusy
from airflow_provider_modelsync.core.http.storage import NotOffered, Refusal, SumRefused, UrlExpired, is_url_over
from airflow_provider_modelsync.core.transfer.mover import with_retries

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
CLOCK = {"Date": format_datetime(NOW, usegmt=True)}


def refusal(status: int, code: str, words: str = "As it says.", **headers: str) -> Refusal:
    page = f"<Error><Code>{code}</Code><Message>{words}</Message></Error>"
    return Refusal.read(status, {**CLOCK, **headers}, page)


@pytest.mark.parametrize(
    ("status", "code", "words", "kind"),
    [
        (409, "ConditionalRequestConflict", "", RegistryUnavailable),
        (409, "OperationAborted", "", RegistryUnavailable),
        (400, "RequestTimeout", "", RegistryUnavailable),
        (503, "SlowDown", "", RegistryUnavailable),
        (200, "InternalError", "", RegistryUnavailable),
        (507, "XMinioStorageFull", "", RegistryUnavailable),
        (403, "QuotaExceeded", "", RegistryUnavailable),
        (403, "InvalidAccessKeyId", "", Unauthorized),
        (403, "SignatureDoesNotMatch", "", Unauthorized),
        (403, "RequestTimeTooSkewed", "", Unauthorized),
        (301, "PermanentRedirect", "", InvalidInput),
        (400, "IllegalLocationConstraintException", "", InvalidInput),
        (403, "SecondLevelDomainForbidden", "", InvalidInput),
        (404, "NoSuchBucket", "", InvalidInput),
        (403, "InvalidObjectState", "", NotSupported),
        (403, "AccessDenied", "Access Denied because object protected by object lock.", NotSupported),
        (400, "InvalidRequest", "Object is WORM protected and cannot be overwritten", NotSupported),
        (501, "NotImplemented", "A header you provided implies functionality", NotOffered),
        (405, "MethodNotAllowed", "", NotOffered),
        (501, "NotImplemented", "Header 'x-amz-checksum-crc32' with value 'x' not implemented", SumRefused),
        (400, "InvalidArgument", "Unsupported header 'x-amz-sdk-checksum-algorithm' received", SumRefused),
        (404, "NoSuchUpload", "", ModelNotFound),
        (400, "EntityTooLarge", "", InvalidInput),
    ],
)
@pytest.mark.parametrize("is_signed", [False, True])
def test_a_code_means_the_same_whoever_asked(
    status: int, code: str, words: str, kind: type[ModelSyncError], is_signed: bool
) -> None:
    error = refusal(status, code, words or "As it says.").error(
        "writing a", not_found=ModelNotFound, is_signed=is_signed, is_over=False if is_signed else None
    )
    assert type(error) is kind
    assert str(error).startswith(f"{code}: {words or 'As it says.'} (status {status}, writing a)")
    assert "expired" not in str(error)


def test_a_storage_s_wait_is_kept() -> None:
    error = refusal(503, "SlowDown", **{"Retry-After": "7"}).error("writing a")
    assert isinstance(error, ServerBusy)
    assert error.wait == 7


def test_a_page_without_a_code_is_named_by_its_status() -> None:
    error = Refusal.read(502, CLOCK, "<html>Bad Gateway, says nginx</html>").error("writing a")
    assert str(error).startswith("502 Bad Gateway: <html>Bad Gateway, says nginx</html> (status 502")


# Presigned URLs


@pytest.mark.parametrize(
    ("code", "words", "is_over", "says_expired"),
    [
        ("AccessDenied", "Request has expired", False, True),
        ("AccessDenied", "Access Denied", True, True),
        ("AccessDenied", "Access Denied", False, False),
        ("AccessDenied", "Access Denied", None, False),
        ("ExpiredToken", "The provided token has expired.", False, True),
    ],
)
def test_expired_is_said_only_of_what_has(code: str, words: str, is_over: bool | None, says_expired: bool) -> None:
    error = refusal(403, code, words).error("sending a", is_signed=True, is_over=is_over)
    assert isinstance(error, UrlExpired)  # in each case a new URL tells more
    assert ("has expired" in error.message.partition(")")[2]) == says_expired


@pytest.mark.row("A4", of=("sends", "fetches"))
def test_what_a_second_url_is_refused_for_is_no_matter_of_urls() -> None:
    tries = []

    def send() -> None:
        tries.append(1)
        raise refusal(403, "AccessDenied", "explicit deny").error("sending a", is_signed=True, is_over=False)

    with pytest.raises(Unauthorized, match=r"^AccessDenied: explicit deny"):
        with_retries(send, cancel=Patient())
    assert len(tries) == 2


class Patient(CancelToken):
    def sleep(self, seconds: float) -> None:
        pass


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Date=20261129T110000Z&X-Amz-Expires={seconds}&X-Amz-Signature=a",
        "X-Goog-Date=20261129T110000Z&X-Goog-Expires={seconds}&X-Goog-Signature=a",
        "Expires={epoch}&Signature=a",
        "se={iso}&sig=a",
    ],
)
@pytest.mark.parametrize("seconds", [3599, 3601])
@pytest.mark.row("A7", of=("sends", "fetches"))
def test_the_storage_s_clock_tells_whether_a_url_is_over(query: str, seconds: int) -> None:
    end = NOW - timedelta(hours=1) + timedelta(seconds=seconds)
    shown = query.format(seconds=seconds, epoch=int(end.timestamp()), iso=end.strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert is_url_over(f"https://b.example/k?{shown}", CLOCK) is (seconds == 3599)


@pytest.mark.parametrize("query", ["", "?X-Amz-Date=yesterday&X-Amz-Expires=9", "?se=never&sig=a"])
def test_a_url_that_tells_no_end_may_be_over(query: str) -> None:
    assert is_url_over(f"https://b.example/k{query}", CLOCK) is None
