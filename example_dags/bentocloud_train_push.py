"""Train a classifier and push it to BentoCloud under a version of its own, with its accuracy and a stage.

Needs a connection ``bentocloud_default`` (an API token is enough), and the extra ``examples`` on the workers. The next
task of a real pipeline builds a bento with the model ``{{ ti.xcom_pull('push')['ref'] }}``.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.operators.catalog import LabelModelOperator
from airflow_provider_modelsync.operators.transfer import PushModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor

CONNECTION = "bentocloud_default"
MODEL = "digits"
WORK = f"{tempfile.gettempdir()}/modelsync-examples/{{{{ run_id | replace(':', '-') }}}}"


@task(multiple_outputs=True)
def train(work: str) -> dict[str, Any]:
    """Fit a classifier on scikit-learn's bundled digits and export it to ONNX."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    digits = load_digits()
    classifier = LogisticRegression(max_iter=2000)
    accuracy = cross_val_score(classifier, digits.data / 16, digits.target, cv=3).mean()
    classifier.fit(digits.data / 16, digits.target)
    onnx = skl2onnx.to_onnx(
        classifier,
        name="digits",  # a fixed name: equal training gives equal bytes
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
    )
    directory = Path(work) / "trained"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(onnx.SerializeToString())
    return {"directory": str(directory), "facts": {"accuracy": round(float(accuracy), 4)}}


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example", "bentocloud"],
    doc_md=__doc__,
)
def bentocloud_train_push() -> None:
    trained = train(WORK)
    pushed = PushModelOperator(
        task_id="push",
        registry_conn_id=CONNECTION,
        model=MODEL,
        source="{{ ti.xcom_pull('train')['directory'] }}",
        labels={"stage": "candidate"},
        metadata=trained["facts"],
        options={"framework_name": "onnx", "description": "digits, logistic regression"},
        outlets=[model_asset(CONNECTION, MODEL)],
    )
    version = "{{ ti.xcom_pull('push')['ref'] }}"
    waited = ModelVersionSensor(
        task_id="wait", registry_conn_id=CONNECTION, model=version, deferrable=True, timeout=600
    )
    promoted = LabelModelOperator(
        task_id="promote", registry_conn_id=CONNECTION, model=version, labels={"stage": "staging"}
    )
    trained >> pushed >> waited >> promoted


bentocloud_train_push()
