"""Train a classifier, push it to Wallaroo, wait until it is converted, deploy it, have it predict, and end it again.

Needs a connection ``wallaroo_default`` and the extra ``examples`` (scikit-learn, skl2onnx) on the workers. The pipeline
is ended whatever became of the predictions; leave the last task out to keep it serving.
"""

from __future__ import annotations

import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_modelsync.operators.deployment import (
    DeployModelOperator,
    PredictOperator,
    UndeployModelOperator,
)
from airflow_provider_modelsync.operators.transfer import PushModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor

CONNECTION = "wallaroo_default"
MODEL = "digits"
PIPELINE = "digits-example"
# Shared by the tasks of one run; on several workers let it be a shared disk, or object storage.
WORK = f"{tempfile.gettempdir()}/modelsync-examples/{{{{ run_id | replace(':', '-') }}}}"


@task
def train(work: str) -> dict[str, Any]:
    """Fit a classifier on scikit-learn's bundled digits, export it to ONNX, and put some digits aside for later."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    known, unseen, answers, _ = train_test_split(digits.data / 16, digits.target, test_size=0.25, random_state=7)
    classifier = LogisticRegression(max_iter=2000).fit(known, answers)
    onnx = skl2onnx.to_onnx(
        classifier,
        name="digits",  # a fixed name: equal training gives equal bytes
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
    )
    directory = Path(work)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "digits.onnx").write_bytes(onnx.SerializeToString())
    (directory / "batch.json").write_text(json.dumps([{"pixels": pixels} for pixels in unseen.tolist()]))
    return {"model": str(directory / "digits.onnx"), "expected": classifier.predict(unseen).tolist()}


@task
def compare(predictions: str, expected: list[int]) -> str:
    """Fail unless the pipeline has predicted exactly what the trained classifier does."""
    import numpy as np

    labels = [int(np.ravel(row["out"]["label"])[0]) for row in json.loads(Path(predictions).read_text())]
    if labels != expected:
        wrong = sum(one != other for one, other in zip(labels, expected, strict=True))
        raise ValueError(f"{wrong} of {len(expected)} predictions differ from the trained model's")
    return f"{len(expected)} of {len(expected)} predictions are identical"


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example", "wallaroo"],
    doc_md=__doc__,
)
def wallaroo_train_push_deploy() -> None:
    trained = train(WORK)
    pushed = PushModelOperator(
        task_id="push",
        registry_conn_id=CONNECTION,
        model=MODEL,
        source="{{ ti.xcom_pull('train')['model'] }}",
        options={"framework": "onnx"},
        wait_for_ready=False,
    )
    model = "{{ ti.xcom_pull('push')['ref'] }}"
    converted = ModelVersionSensor(
        task_id="wait", registry_conn_id=CONNECTION, model=model, deferrable=True, poke_interval=5, timeout=1800
    )
    deployed = DeployModelOperator(
        task_id="deploy",
        registry_conn_id=CONNECTION,
        deployment=PIPELINE,
        model=model,
        config={"engine": {"replicas": 1, "cpu": 0.5, "resources": {"requests": {"cpu": 0.5, "memory": "512Mi"}}}},
        deferrable=True,
        timeout=1800,
    )
    predicted = PredictOperator(
        task_id="predict",
        registry_conn_id=CONNECTION,
        deployment=PIPELINE,
        inputs=f"{WORK}/batch.json",
        output=f"{WORK}/predictions.json",
        options={"dataset": ["out"]},
    )
    compared = compare("{{ ti.xcom_pull('predict')['output'] }}", trained["expected"])
    undeployed = UndeployModelOperator(
        task_id="undeploy", registry_conn_id=CONNECTION, deployment=PIPELINE, deferrable=True
    )
    trained >> pushed >> converted >> deployed >> predicted >> compared
    compared >> undeployed.as_teardown(setups=deployed)


wallaroo_train_push_deploy()
