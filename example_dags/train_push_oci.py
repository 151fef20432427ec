"""Train a classifier and push it to an OCI registry twice: as a ModelPack for people, as an image for Kubernetes.

Needs a connection ``oci_registry_default`` and the extra ``examples`` on the workers. The last task leaves the manifest
of a pod in XCom that mounts the image, by a digest which nobody can move: hand it to ``KubernetesPodOperator``, or to
``kubectl apply``.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_modelsync.operators.transfer import PushModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor

CONNECTION = "oci_registry_default"
MODEL = "examples/digits"
WORK = f"{tempfile.gettempdir()}/modelsync-examples/{{{{ run_id | replace(':', '-') }}}}"
SOURCE = "{{ ti.xcom_pull('train')['directory'] }}"


@task(multiple_outputs=True)
def train(work: str) -> dict[str, Any]:
    """Fit a classifier on scikit-learn's bundled digits and export it to ONNX."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    classifier = LogisticRegression(max_iter=2000).fit(digits.data / 16, digits.target)
    onnx = skl2onnx.to_onnx(
        classifier,
        name="digits",  # a fixed name: equal training gives equal bytes
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
    )
    directory = Path(work) / "trained"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(onnx.SerializeToString())
    (directory / "README.md").write_text("# Digits\n\nA classifier of handwritten digits.\n")
    return {"directory": str(directory)}


@task
def pod(uri: str) -> dict[str, Any]:
    """Return the manifest of a pod that has the model below ``/mnt/digits/models``."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "digits"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "server",
                    "image": "busybox:stable",
                    "command": ["ls", "-l", "/mnt/digits/models"],
                    "volumeMounts": [{"name": "model", "mountPath": "/mnt/digits", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "model", "image": {"reference": uri.removeprefix("oci://")}}],
        },
    }


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example", "oci"],
    doc_md=__doc__,
)
def train_push_oci() -> None:
    trained = train(WORK)
    pushed = PushModelOperator(
        task_id="push",
        registry_conn_id=CONNECTION,
        model=MODEL,
        source=SOURCE,
        labels={"stage": "staging"},
        options={"architecture": "logistic-regression"},
    )
    image = PushModelOperator(
        task_id="push_image",
        registry_conn_id=CONNECTION,
        model=f"{MODEL}-image",
        source=SOURCE,
        options={"layout": "image"},
    )
    there = ModelVersionSensor(
        task_id="wait", registry_conn_id=CONNECTION, model="{{ ti.xcom_pull('push_image')['ref'] }}", timeout=600
    )
    trained >> [pushed, image]
    image >> there >> pod("{{ ti.xcom_pull('push_image')['uri'] }}")


train_push_oci()
