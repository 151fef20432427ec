"""Train a classifier, push it, wait for it, pull it back and prove that it is the same.

Runs against any registry that takes and gives models: only the connection ``modelsync_default`` decides which.
Needs the extra ``examples`` (scikit-learn, skl2onnx, onnxruntime) on the workers.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_modelsync.assets import model_asset
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor

MODEL = "digits"
# Shared by the tasks of one run; on several workers let it be a shared disk.
WORK = f"{tempfile.gettempdir()}/modelsync-examples/{{{{ run_id | replace(':', '-') }}}}"


@task(multiple_outputs=True)
def train(work: str) -> dict[str, Any]:
    """Fit a classifier on scikit-learn's bundled digits and export it to ONNX."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    known, unseen, answers, truth = train_test_split(digits.data, digits.target, test_size=0.25, random_state=7)
    classifier = LogisticRegression(max_iter=2000).fit(known / 16, answers)
    onnx = skl2onnx.to_onnx(
        classifier,
        name="digits",  # a fixed name: equal training gives equal bytes
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
    )
    directory = Path(work) / "trained"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(onnx.SerializeToString())
    return {
        "directory": str(directory),
        "facts": {"accuracy": round(float(classifier.score(unseen / 16, truth)), 4), "framework": "onnx"},
        "predictions": classifier.predict(unseen / 16).tolist(),
    }


@task
def compare(pulled: dict[str, Any], predictions: list[int]) -> str:
    """Run the pulled model and fail unless it predicts exactly what the trained one did."""
    import numpy as np
    import onnxruntime
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    _, unseen, _, _ = train_test_split(digits.data, digits.target, test_size=0.25, random_state=7)
    session = onnxruntime.InferenceSession(Path(pulled["path"]) / "model.onnx", providers=["CPUExecutionProvider"])
    (again, *_) = session.run(None, {"pixels": (unseen / 16).astype(np.float32)})
    if again.tolist() != predictions:
        wrong = sum(one != other for one, other in zip(again.tolist(), predictions, strict=True))
        raise ValueError(f"{wrong} of {len(predictions)} predictions differ from the trained model's")
    return f"{len(predictions)} of {len(predictions)} predictions are identical"


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 1, "retry_delay": timedelta(seconds=5)},
    tags=["modelsync", "example"],
    doc_md=__doc__,
)
def train_push_wait_pull() -> None:
    trained = train(WORK)
    pushed = PushModelOperator(
        task_id="push",
        model=MODEL,
        source="{{ ti.xcom_pull('train')['directory'] }}",
        labels={"stage": "candidate"},
        metadata=trained["facts"],
        outlets=[model_asset("modelsync_default", MODEL)],
    )
    version = "{{ ti.xcom_pull('push')['ref'] }}"
    waited = ModelVersionSensor(task_id="wait", model=version, deferrable=True, poke_interval=5, timeout=600)
    pulled = PullModelOperator(task_id="pull", model=version, target=f"{WORK}/pulled")
    trained >> pushed >> waited >> pulled
    compare(pulled.output, trained["predictions"])


train_push_wait_pull()
