"""A tiny detector on the vendor's real serving code; runs in the vendor's environment, not in ours.

Prints the address that it listens on (127.0.0.1 only) as its first line on standard output. Finds the extent of the
bright pixels and of the dark ones; what it is asked to fail on is told by the size of an image.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

for name in ("SERVER_ADDRESS", "API_TOKEN", "TASK_ID", "TEAM_ID", "WORKSPACE_ID", "ENV"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402
import uvicorn  # noqa: E402
from supervisely.nn.inference import ObjectDetection  # noqa: E402
from supervisely.nn.prediction_dto import PredictionBBox  # noqa: E402

MODELS = ("blob-tiny", "blob-small", "blob-slow", "blob-broken")
FAILING_WIDTH = 13  # the model raises on images of this width


def write_models(directory: Path) -> Path:
    """The list of pretrained models, with their checkpoints, as the SDK reads it."""
    models = []
    for name in MODELS:
        checkpoint = directory / f"{name}.json"
        checkpoint.write_text("{}")
        meta = {"task_type": "object detection", "model_name": name, "model_files": {"checkpoint": str(checkpoint)}}
        models.append({"Model": name, "Size (px)": "any", "meta": meta})
    listing = directory / "models.json"
    listing.write_text(json.dumps(models))
    return listing


class TinyBlob(ObjectDetection):
    FRAMEWORK_NAME = "TinyBlob"
    load_seconds = 0.0
    predict_seconds = 0.0

    def load_model(
        self, model_files: dict[str, str], model_info: dict[str, Any], model_source: str, device: str, runtime: str
    ) -> None:
        name = model_info.get("meta", model_info)["model_name"]
        if name == "blob-slow":
            time.sleep(self.load_seconds)
        if name == "blob-broken":
            raise RuntimeError("the weights cannot be read")
        self.classes = ["bright", "dark"]

    def get_classes(self) -> list[str]:
        return self.classes

    def predict_batch(self, images_np: list[np.ndarray], settings: dict[str, Any]) -> list[list[PredictionBBox]]:
        return [self.found(image, settings["conf"]) for image in images_np]

    def found(self, image: np.ndarray, lowest: float) -> list[PredictionBBox]:
        if not self.is_model_deployed():
            raise RuntimeError("no model is loaded")
        time.sleep(self.predict_seconds)
        if image.shape[1] == FAILING_WIDTH:
            raise ValueError("the model cannot take this image")
        bright = image.mean(axis=2) > 128
        boxes = []
        for name, mask in (("bright", bright), ("dark", ~bright)):
            rows, columns = np.nonzero(mask)
            score = round(float(mask.mean()), 4)
            if len(rows) and score >= lowest:
                box = [int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())]
                boxes.append(PredictionBBox(name, box, score))
        return boxes

    def _run_server(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            config = uvicorn.Config(app=self._app, ws="websockets", log_level="warning")
            self._uvicorn_server = uvicorn.Server(config)
            listener.listen()
            announce(f"http://127.0.0.1:{listener.getsockname()[1]}")
            self._uvicorn_server.run(sockets=[listener])


def announce(line: str) -> None:
    os.write(OUTPUT, line.encode() + b"\n")


if __name__ == "__main__":
    OUTPUT = os.dup(1)
    os.dup2(2, 1)  # the SDK logs to standard output
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path, help="for the models' files")
    parser.add_argument("--unloaded", action="store_true", help="serve without a model")
    parser.add_argument("--load-seconds", type=float, default=0.0, help="what blob-slow takes to load")
    parser.add_argument("--predict-seconds", type=float, default=0.0, help="what an image takes")
    arguments = parser.parse_args()
    TinyBlob.MODELS = str(write_models(arguments.directory))
    TinyBlob.INFERENCE_SETTINGS = {"conf": 0.25, "min_area": 4}
    TinyBlob.load_seconds, TinyBlob.predict_seconds = arguments.load_seconds, arguments.predict_seconds
    sys.argv = [sys.argv[0], "deploy", "--model", MODELS[0], "--device", "cpu"]
    app = TinyBlob(use_gui=False)
    if arguments.unloaded:
        app.shutdown_model()
    app.serve()
