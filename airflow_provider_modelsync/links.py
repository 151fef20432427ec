"""Links from a task to where its registry shows the result."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

# A key of its own: Airflow overwrites that of the link with what get_link returns.
_KEY = "registry_console_url"

log = logging.getLogger("modelsync")


class RegistryConsoleLink(BaseOperatorLink):
    """Leads to what a task has made, in the registry's own console."""

    name = "Registry console"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return XCom.get_value(ti_key=ti_key, key=_KEY) or ""


def remember_link(context: Context, url: str | None) -> None:
    """Keep a URL for the task's link. A link only helps people, so that it never fails a task.

    :param context: of the running task.
    :param url: holds no secret.
    """
    if url is None:
        return
    try:
        context["ti"].xcom_push(key=_KEY, value=url)
    except Exception as error:
        log.warning("the link to %s could not be kept: %s", url, error)
