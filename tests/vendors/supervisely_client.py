"""Drives the unmodified `supervisely` SDK; runs with the interpreter of an environment that has it.

    python supervisely_client.py URL TOKEN COMMAND...

URL is the platform's. Each COMMAND is a JSON array: a name of `COMMANDS` and its arguments. They run in order in one
process; standard output gets one JSON array with what each returned. The first that fails ends the process with a
traceback. A deployment is named by its task id, or by a URL of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

TEAM, WORKSPACE = 8, 58


def api() -> Any:
    import supervisely

    return supervisely.Api(os.environ["SERVER_ADDRESS"], os.environ["API_TOKEN"])


def model(deployment: int | str) -> Any:
    from supervisely.nn.model.model_api import ModelAPI

    return ModelAPI(url=deployment) if isinstance(deployment, str) else api().nn.connect(deployment)


# ---- Team Files -------------------------------------------------------------------------------------------------


def told(info: Any) -> dict[str, Any] | None:
    return info and {"path": info.path, "hash": info.hash, "size": info.sizeb, "id": info.id}


def upload(source: str, path: str) -> Any:
    return told(api().file.upload(TEAM, source, path))


def upload_async(source: str, path: str) -> None:
    asyncio.run(api().file.upload_async(TEAM, source, path))


def upload_directory(source: str, path: str) -> str:
    return str(api().file.upload_directory(TEAM, source, path))


def list_files(path: str) -> list[Any]:
    return [told(info) for info in api().file.list(TEAM, path, return_type="fileinfo")]


def list_storage(path: str, recursive: bool) -> list[Any]:
    return [{"path": info.path, "is_dir": info.is_dir} for info in api().storage.list(TEAM, path, recursive)]


def info(path: str) -> Any:
    found = api().file.get_info_by_path(TEAM, path)
    return found and [told(found), told(api().file.get_info_by_id(found.id))]


def exists(path: str) -> list[bool]:
    return [api().file.exists(TEAM, path), api().storage.exists(TEAM, path)]


def download(path: str, target: str) -> None:
    api().file.download(TEAM, path, target)


def download_async(path: str, target: str) -> None:
    asyncio.run(api().file.download_async(TEAM, path, target))


def remove(path: str) -> None:
    api().file.remove(TEAM, path)


# ---- who and where ----------------------------------------------------------------------------------------------


def whoami() -> list[Any]:
    one = api()
    found = [one.user.get_my_info().login, one.instance_version]
    found += [[team.id for team in one.team.get_list()], [ws.id for ws in one.workspace.get_list(TEAM)]]
    return [*found, one.workspace.get_info_by_id(WORKSPACE).team_id]


# ---- deployments ------------------------------------------------------------------------------------------------


def deploy(name: str) -> int:
    return int(api().nn.deploy(name, device="cpu", workspace_id=WORKSPACE).task_id)


def list_deployed() -> list[Any]:
    found = api().nn.list_deployed_models(workspace_id=WORKSPACE)
    return [[one["task_info"]["id"], one["model_info"]["model_name"]] for one in found]


def get_info(deployment: int | str) -> Any:
    return model(deployment).get_info()


def describe(deployment: int | str) -> dict[str, Any]:
    """What all the reading methods say."""
    one = model(deployment)
    return {
        "settings": one.get_settings(),
        "classes": one.get_classes(),
        "meta": one.get_model_meta().to_json(),
        "models": one.list_pretrained_models(),
        "infos": one.list_pretrained_model_infos(),
        "deployed": one.is_deployed(),
        "status": one.status(),
        "frozen": one.freeze_model(),
    }


def load(deployment: int | str, name: str) -> Any:
    return model(deployment).load(name, device="cpu")


def predict(deployment: int | str, path: str, settings: dict[str, Any]) -> list[Any]:
    found = model(deployment).predict(input=path, show_progress=False, **settings)
    return [[one.frame_index, list(one.classes), _numbers(one.boxes), _numbers(one.scores)] for one in found]


def _numbers(values: Any) -> Any:
    import numpy

    return numpy.asarray(values).tolist()


def shutdown(deployment: int | str) -> Any:
    return model(deployment).shutdown()


def task_status(task: int) -> str:
    return str(api().task.get_status(task))


def write_video(path: str, frames: int) -> None:
    """A video of 80 by 60 whose upper half is bright."""
    import cv2
    import numpy

    picture = numpy.zeros((60, 80, 3), numpy.uint8)
    picture[:30] = 255
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 10, (80, 60))
    for _ in range(frames):
        video.write(picture)
    video.release()


def version() -> str:
    import supervisely

    return str(supervisely.__version__)


COMMANDS = {
    function.__name__: function
    for function in (
        upload,
        upload_async,
        upload_directory,
        list_files,
        list_storage,
        info,
        exists,
        download,
        download_async,
        remove,
        whoami,
        deploy,
        list_deployed,
        get_info,
        describe,
        load,
        predict,
        shutdown,
        task_status,
        write_video,
        version,
    )
}


def main(url: str, token: str, *commands: str) -> None:
    os.environ["SERVER_ADDRESS"] = url
    os.environ["API_TOKEN"] = token
    os.environ["TEAM_ID"] = str(TEAM)
    os.environ["WORKSPACE_ID"] = str(WORKSPACE)
    results = []
    output = os.dup(1)
    os.dup2(2, 1)  # the SDK logs to standard output
    with contextlib.redirect_stdout(sys.stderr):
        for command in commands:
            name, *arguments = json.loads(command)
            results.append(COMMANDS[name](*arguments))
    os.write(output, json.dumps(results, default=str).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
