"""Train a challenger, push it, and let it take the champion's place if it is better: deploy it, and have it predict.

The model store behind ``modelsync_default`` keeps versions and the alias ``champion``; Wallaroo behind
``wallaroo_default`` serves what that points to. A challenger that is no better ends the run early: what comes after
``promote`` is skipped. ``rollback_champion`` is the way back. Needs the extra ``examples`` on the workers.
"""

from __future__ import annotations

import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, Param, dag, task

from airflow_provider_modelsync.operators.deployment import DeployModelOperator, PredictOperator
from airflow_provider_modelsync.operators.lifecycle import PromoteModelOperator, PruneModelsOperator
from airflow_provider_modelsync.operators.transfer import PushModelOperator, SyncModelsOperator
from airflow_provider_modelsync.sensors.model import ModelVersionSensor

STORE, SERVING = "modelsync_default", "wallaroo_default"
MODEL = PIPELINE = "champion-digits"
ALIAS = "champion"
# Shared by the tasks of one run; on several workers let it be a shared disk, or object storage.
WORK = f"{tempfile.gettempdir()}/modelsync-examples/{{{{ run_id | replace(':', '-') }}}}"
# The version in Wallaroo, whether it was brought there by this run or is there already.
SERVED = "{{ (ti.xcom_pull('bring')['copied'] + ti.xcom_pull('bring')['skipped'])[0]['target'] }}"


@task
def train(work: str, rounds: int) -> dict[str, Any]:
    """Fit a classifier on scikit-learn's bundled digits and export it to ONNX: the more rounds, the better it is."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    known, unseen, answers, truth = train_test_split(digits.data / 16, digits.target, test_size=0.25, random_state=7)
    classifier = LogisticRegression(max_iter=int(rounds)).fit(known, answers)
    onnx = skl2onnx.to_onnx(
        classifier,
        name="digits",  # a fixed name: equal training gives equal bytes
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
    )
    directory = Path(work)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "digits.onnx").write_bytes(onnx.SerializeToString())
    (directory / "batch.json").write_text(json.dumps([{"pixels": pixels} for pixels in unseen[:50].tolist()]))
    return {
        "model": str(directory / "digits.onnx"),
        "facts": {"accuracy": round(float(classifier.score(unseen, truth)), 4)},
    }


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    params={"rounds": Param(2000, type="integer", minimum=1)},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["modelsync", "example"],
    doc_md=__doc__,
)
def champion_challenger() -> None:
    trained = train(WORK, "{{ params.rounds }}")  # type: ignore[arg-type]  # a template
    pushed = PushModelOperator(
        task_id="push",
        registry_conn_id=STORE,
        model=MODEL,
        source="{{ ti.xcom_pull('train')['model'] }}",
        metadata="{{ ti.xcom_pull('train')['facts'] }}",
    )
    promoted = PromoteModelOperator(
        task_id="promote",
        registry_conn_id=STORE,
        model="{{ ti.xcom_pull('push')['ref'] }}",
        alias=ALIAS,
        when={"metric": "accuracy", "mode": "max", "at_least": 0.005},
        outlets=[Asset(f"modelsync://{STORE}/{MODEL}@{ALIAS}")],
    )
    brought = SyncModelsOperator(
        task_id="bring",
        source_conn_id=STORE,
        target_conn_id=SERVING,
        models=[f"{MODEL}@{ALIAS}"],
        options={MODEL: {"framework": "onnx"}},
    )
    converted = ModelVersionSensor(
        task_id="wait", registry_conn_id=SERVING, model=SERVED, deferrable=True, poke_interval=5, timeout=1800
    )
    deployed = DeployModelOperator(
        task_id="deploy",
        registry_conn_id=SERVING,
        deployment=PIPELINE,
        model=SERVED,
        deferrable=True,
        timeout=1800,
    )
    predicted = PredictOperator(
        task_id="predict",
        registry_conn_id=SERVING,
        deployment=PIPELINE,
        inputs=f"{WORK}/batch.json",
        output=f"{WORK}/predictions.json",
        options={"dataset": ["out"]},
    )
    # What is champion, and would be gone back to, stays however many came after it.
    pruned = PruneModelsOperator(task_id="prune", registry_conn_id=STORE, models=[MODEL], keep_last=10, dry_run=False)
    trained >> pushed >> promoted >> brought >> converted >> deployed >> predicted >> pruned


champion_challenger()
