"""Runs of DAGs inside this process: Airflow's own task runner and execution API."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG


def run_dag(dag: DAG, **conf: Any) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Run a DAG without mapped tasks; return its state, those of its tasks, and what they left."""
    run = dag.test(run_conf=conf)
    instances = run.get_task_instances()
    left = {instance.task_id: instance.xcom_pull(task_ids=instance.task_id) for instance in instances}
    return str(run.state), {instance.task_id: str(instance.state) for instance in instances}, left


def run_example(name: str, **conf: Any) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Run an example, as :func:`run_dag` does."""
    from tests.integration.dags.examples import EXAMPLES

    return run_dag(EXAMPLES[name](), **conf)
