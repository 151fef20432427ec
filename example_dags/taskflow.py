"""Hand versions from task to task: what one operator returns is what the next one takes, with no template in between.

A version's dictionary is understood wherever a model is asked for: by a pull, by a deployment, by each mapped task, and
by the hook inside a ``@task``. The connection ``modelsync_default`` decides where the models are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.operators.catalog import GetModelOperator, ListModelsOperator
from airflow_provider_modelsync.operators.deployment import DeployModelOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator

WORK = "{{ params.work }}"


@task
def train(work: str) -> str:
    """Write a model, and return where it is."""
    directory = Path(work) / "trained"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "weights.txt").write_text("0.1 0.2 0.3\n")
    return str(directory)


@task
async def count(version: dict[str, Any]) -> int:
    """Return how many versions there are of a model; an ``async`` task awaits the hook's ``a…`` verbs."""
    hook = get_registry_hook("modelsync_default")
    return len(await hook.alist_versions(version["name"]))


@dag(
    schedule=None,
    catchup=False,
    render_template_as_native_obj=True,
    params={"work": "/tmp/modelsync-taskflow", "deploy": False},  # for one machine; else a shared disk
    tags=["modelsync"],
)
def taskflow() -> None:
    push = PushModelOperator(task_id="push", model="digits", source=train(WORK), labels={"stage": "dev"})
    pull = PullModelOperator(task_id="pull", model=push.output, target=f"{WORK}/pulled")
    found = GetModelOperator(task_id="get", model=push.output, labels={"stage": "dev"})
    count(found.output)

    listed = ListModelsOperator(task_id="list", limit=100)
    pull >> listed
    PullModelOperator.partial(task_id="pull_each", target=f"{WORK}/each/{{{{ ti.map_index }}}}").expand(
        model=listed.output
    )

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def wanted(deploy: Any) -> bool:
        """Go on only where the system behind the connection deploys models."""
        return bool(deploy)

    wanted("{{ params.deploy }}") >> DeployModelOperator(task_id="deploy", deployment="digits", model=push.output)


taskflow()
