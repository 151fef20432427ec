"""Links from a task to where its registry shows the result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

log = logging.getLogger("modelsync")


class _KeptLink(BaseOperatorLink):
    """A URL that the task has kept. Airflow asks for it on the worker, once the task has ended.

    Tasks of ours have it at hand. XCom is asked for those of others only: what is not there is an error in the log.
    """

    # A key of its own: Airflow overwrites that of the link with what get_link returns.
    kept_as: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        kept = getattr(operator, "kept_links", None)
        return (XCom.get_value(ti_key=ti_key, key=self.kept_as) if kept is None else kept.get(self.kept_as)) or ""


class RegistryConsoleLink(_KeptLink):
    """Leads to what a task has made or found, in the registry's own console."""

    name = "Registry console"
    kept_as = "registry_console_url"


class DeploymentLink(_KeptLink):
    """Leads to where a deployment answers."""

    name = "Deployment"
    kept_as = "deployment_url"


def remember_link(
    context: Context, find: Callable[[], str | None], kind: type[_KeptLink] = RegistryConsoleLink
) -> None:
    """Keep a URL for the task's link. A link only helps people, so that it never fails a task.

    :param context: of the running task.
    :param find: returns the URL; anything but http and https, or one with credentials in it, is not kept.
    :param kind: the link that it is for.
    """
    try:
        url = find()
        if url is not None and _is_for_people(url):
            if (kept := getattr(context.get("task"), "kept_links", None)) is not None:
                kept[kind.kept_as] = url
            context["ti"].xcom_push(key=kind.kept_as, value=url)
    except Exception as error:
        log.warning("the link %r could not be kept: %s", kind.name, error)


def _is_for_people(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
