"""Train a classifier, push it to BentoCloud, build a bento with it, push that, and deploy it.

Needs a connection ``bentocloud_default`` (an API token is enough), the extra ``examples`` on the workers, and there an
environment of its own with ``bentoml``, whose dependencies need not agree with Airflow's:
``python -m venv /opt/bentoml && /opt/bentoml/bin/pip install bentoml``. The workers' environment variable
``MODELSYNC_BENTOML`` names its command, e.g. ``/opt/bentoml/bin/bentoml``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.exceptions import AirflowFailException
from airflow.sdk import dag, task

from airflow_provider_modelsync.hooks.bentocloud import BentoCloudHook
from airflow_provider_modelsync.operators.bentocloud import PushBentoOperator
from airflow_provider_modelsync.operators.deployment import DeployModelOperator
from airflow_provider_modelsync.operators.transfer import PushModelOperator

CONNECTION = "bentocloud_default"
MODEL = "digits"
WORK = f"{tempfile.gettempdir()}/modelsync-examples/{{{{ run_id | replace(':', '-') }}}}"
SERVICE = """
from __future__ import annotations

from pathlib import Path

import bentoml


@bentoml.service(resources={"cpu": "1"})
class Digits:
    model = bentoml.models.BentoModel("<model>")

    def __init__(self) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(Path(self.model.path) / "model.onnx")

    @bentoml.api
    def classify(self, pixels: list[list[float]]) -> list[int]:
        import numpy

        return self.session.run(None, {"pixels": numpy.array(pixels, dtype="float32")})[0].tolist()
"""


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
    return {"directory": str(directory)}


@task
def build(model: str, work: str) -> str:
    """Build a bento with the pushed model by the ``bentoml`` command of another environment; return its directory.

    Each build has a version of its own. The command asks BentoCloud for the model, so it gets the connection's token.
    """
    command = shutil.which(os.environ.get("MODELSYNC_BENTOML") or "bentoml")
    if command is None:
        raise AirflowFailException(
            "there is no bentoml command: have MODELSYNC_BENTOML name that of an environment with bentoml, "
            "such as /opt/bentoml/bin/bentoml"
        )
    project, home = Path(work) / "project", Path(work) / "bentoml"
    for directory in (project, home):  # what an earlier try left
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    (project / "service.py").write_text(SERVICE.replace("<model>", model))
    # Locking would look all versions up at each build; pin them here instead when that matters.
    packages = {"packages": ["onnxruntime", "numpy"], "lock_packages": False}
    options = {"service": "service:Digits", "python": packages}
    (project / "bentofile.yaml").write_text(json.dumps(options))  # JSON is YAML
    hook = BentoCloudHook(CONNECTION)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "PATH": f"{Path(command).parent}:{os.environ['PATH']}",
        "BENTOML_HOME": str(home),
        "BENTO_CLOUD_API_ENDPOINT": str(hook.get_conn().base_url),
        "BENTO_CLOUD_API_KEY": hook.get_connection(CONNECTION).password or "",
    }
    subprocess.run((command, "build"), cwd=project, env=env, check=True)  # noqa: S603  # who runs the workers chose it
    (built,) = home.glob("bentos/*/*/bento.yaml")
    return str(built.parent)


@dag(
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example", "bentocloud"],
    doc_md=__doc__,
)
def bentocloud_train_push_deploy() -> None:
    trained = train(WORK)
    pushed = PushModelOperator(
        task_id="push",
        registry_conn_id=CONNECTION,
        model=MODEL,
        source="{{ ti.xcom_pull('train')['directory'] }}",
        options={"framework_name": "onnx"},
    )
    model = "{{ ti.xcom_pull('push')['ref'] }}"
    built = build(model, WORK)
    bento = PushBentoOperator(task_id="push_bento", registry_conn_id=CONNECTION, source="{{ ti.xcom_pull('build') }}")
    deployed = DeployModelOperator(
        task_id="deploy",
        registry_conn_id=CONNECTION,
        deployment=MODEL,
        model=model,
        config={
            "bento": "{{ ti.xcom_pull('push_bento')['ref'] }}",
            "services": {"Digits": {"instance_type": "cpu.1", "scaling": {"min_replicas": 0, "max_replicas": 1}}},
        },
        deferrable=True,
        timeout=3600,
    )
    trained >> pushed >> built >> bento >> deployed


bentocloud_train_push_deploy()
