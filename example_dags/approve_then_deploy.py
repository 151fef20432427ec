"""Push a model and the bento that serves it, ask a person, then deploy.

The question waits under *Required Actions* in Airflow's user interface and occupies no worker; the answer may also come
through the REST API. "Reject", and no answer within two days, skips the deployment.

Needs Airflow 3.2 or newer, a connection ``bentocloud_default`` and, where the workers see them, a model and a bento
built with it; the run's parameters say where they are.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, dag

from airflow_provider_modelsync.operators.bentocloud import PushBentoOperator
from airflow_provider_modelsync.operators.deployment import DeployModelOperator
from airflow_provider_modelsync.operators.transfer import PushModelOperator

CONNECTION = "bentocloud_default"
MODEL = "{{ ti.xcom_pull('push')['ref'] }}"
BENTO = "{{ ti.xcom_pull('push_bento')['ref'] }}"


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    params={
        "model": Param("fraud:v1", type="string", description="name:version, as the bento names it"),
        "source": Param("/srv/models/fraud", type="string", description="The model's directory"),
        "bento": Param("/srv/bentos/fraud", type="string", description="The built bento's directory"),
    },
    tags=["modelsync", "example", "bentocloud"],
    doc_md=__doc__,
)
def approve_then_deploy() -> None:
    pushed = PushModelOperator(
        task_id="push", registry_conn_id=CONNECTION, model="{{ params.model }}", source="{{ params.source }}"
    )
    bento = PushBentoOperator(task_id="push_bento", registry_conn_id=CONNECTION, source="{{ params.bento }}")
    approved = ApprovalOperator(
        task_id="approve",
        subject=f"Deploy {MODEL}?",
        body=f"- bento: {BENTO}\n- digest: {{{{ ti.xcom_pull('push')['digest'] }}}}",
        defaults=ApprovalOperator.REJECT,
        response_timeout=timedelta(days=2),
    )
    deployed = DeployModelOperator(
        task_id="deploy",
        registry_conn_id=CONNECTION,
        deployment="{{ ti.xcom_pull('push')['name'] }}",
        model=MODEL,
        config={"bento": BENTO},
        deferrable=True,
    )
    pushed >> bento >> approved >> deployed


approve_then_deploy()
