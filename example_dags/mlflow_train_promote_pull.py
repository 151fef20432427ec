"""Train a classifier, push it to MLflow, let it become the champion if it is better, and pull the champion.

Needs a connection ``mlflow_default`` and the extra ``examples`` on the workers, and no MLflow there. The model is a
directory with an ``MLmodel`` file, so that ``mlflow.pyfunc.load_model("models:/digits@champion")`` loads it and
``mlflow models serve -m models:/digits@champion`` serves it.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_modelsync.operators.lifecycle import PromoteModelOperator
from airflow_provider_modelsync.operators.transfer import PullModelOperator, PushModelOperator

CONNECTION = "mlflow_default"
MODEL = "digits"
# Shared by the tasks of one run; on several workers let it be a shared disk, or object storage.
WORK = f"{tempfile.gettempdir()}/modelsync-examples/{{{{ run_id | replace(':', '-') }}}}"
MLMODEL = """\
flavors:
  onnx:
    data: model.onnx
    onnx_version: {onnx_version}
  python_function:
    data: model.onnx
    loader_module: mlflow.onnx
"""


@task(multiple_outputs=True)
def train(work: str) -> dict[str, Any]:
    """Fit a classifier on scikit-learn's bundled digits, and describe it as MLflow wants it."""
    import onnx
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    known, unseen, told, answers = train_test_split(digits.data / 16, digits.target, test_size=0.25, random_state=7)
    classifier = LogisticRegression(max_iter=2000).fit(known, told)
    exported = skl2onnx.to_onnx(
        classifier,
        name="digits",  # a fixed name: equal training gives equal bytes
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
    )
    directory = Path(work) / "trained"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(exported.SerializeToString())
    (directory / "MLmodel").write_text(MLMODEL.format(onnx_version=onnx.__version__))
    return {"directory": str(directory), "accuracy": float(classifier.score(unseen, answers))}


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example", "mlflow"],
    doc_md=__doc__,
)
def mlflow_train_promote_pull() -> None:
    trained = train(WORK)
    pushed = PushModelOperator(
        task_id="push",
        registry_conn_id=CONNECTION,
        model=MODEL,
        source="{{ ti.xcom_pull('train')['directory'] }}",
        labels={"trained_by": "{{ dag.dag_id }}"},
        metadata={"accuracy": trained["accuracy"]},
    )
    promoted = PromoteModelOperator(
        task_id="promote",
        registry_conn_id=CONNECTION,
        model=pushed.output,
        alias="champion",
        when={"metric": "accuracy", "mode": "max"},
        on_refusal="pass",  # then the champion stays who it is
    )
    pulled = PullModelOperator(
        task_id="pull", registry_conn_id=CONNECTION, model=f"{MODEL}@champion", target=f"{WORK}/champion"
    )
    trained >> pushed >> promoted >> pulled


mlflow_train_promote_pull()
