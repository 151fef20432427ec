"""Drives the unmodified `pieces_os_client`, of the generations on pydantic 1 and 2; runs where it is installed.

    python pieces_client.py URL COMMAND...

Each COMMAND is a JSON array: a name of `COMMANDS` and its arguments. They run in order in one process; standard
output gets one JSON array with what each returned. The first that fails ends the process with a traceback.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pieces_os_client
from pieces_os_client.api.model_api import ModelApi
from pieces_os_client.api.models_api import ModelsApi
from pieces_os_client.api.well_known_api import WellKnownApi
from pieces_os_client.api_client import ApiClient
from pieces_os_client.configuration import Configuration
from pieces_os_client.exceptions import ApiException
from pieces_os_client.models.model_delete_cache_input import ModelDeleteCacheInput
from pieces_os_client.models.seeded_model import SeededModel

Json = dict[str, Any]


def base_websocket() -> ModuleType:
    """The module of the wrapper's sockets, without the wrapper around it: that takes seconds to import."""
    path = Path(pieces_os_client.__file__).parent / "wrapper" / "websockets" / "base_websocket.py"
    spec = importlib.util.spec_from_file_location("base_websocket", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Commands:
    def __init__(self, url: str) -> None:
        self._url = url
        self._use(Configuration(host=url))

    def _use(self, configuration: Configuration) -> None:
        client = ApiClient(configuration)
        self._model, self._models, self._well_known = ModelApi(client), ModelsApi(client), WellKnownApi(client)

    def application(self, application_id: str) -> None:
        """Send an application's id from now on."""
        self._use(Configuration(host=self._url, api_key={"application": application_id}))

    def health(self) -> str:
        return self._well_known.get_well_known_health()

    def version(self) -> str:
        return self._well_known.get_well_known_version()

    def models(self) -> list[Json]:
        return [model.to_dict() for model in self._models.models_snapshot().iterable]

    def snapshot(self, model: str) -> Json:
        return self._model.models_specific_model_snapshot(model).to_dict()

    def download(self, model: str) -> Json:
        return self._model.model_specific_model_download(model).to_dict()

    def cancel(self, model: str) -> Json:
        return self._model.model_specific_model_download_cancel(model).to_dict()

    def progress(self, model: str) -> Json:
        """A plain GET: the generated method knows of no socket."""
        return self._model.model_specific_model_download_progress(model).to_dict()

    def load(self, model: str) -> Json:
        return self._model.model_specific_model_load(model).to_dict()

    def unload(self, model: str) -> Json:
        return self._model.model_specific_model_unload(model).to_dict()

    def update(self, model: str, changes: Json) -> Json:
        """Read, change attributes, write."""
        record = self._model.models_specific_model_snapshot(model)
        for name, value in changes.items():
            setattr(record, name, value)
        return self._model.model_update(model=record).to_dict()

    def update_with_nothing(self) -> Json:
        return self._model.model_update().to_dict()

    def create(self, record: Json) -> Json:
        return self._models.models_create_new_model(SeededModel.from_dict(record)).to_dict()

    def delete(self, model: str) -> None:
        self._models.models_delete_specific_model(model)

    def delete_cache(self, model: str) -> Json:
        return self._models.models_delete_specific_model_cache(model, ModelDeleteCacheInput()).to_dict()

    def refused(self, command: str, *arguments: Any) -> tuple[int, str]:
        """Status and text of a command that fails."""
        try:
            result = getattr(self, command)(*arguments)
        except ApiException as error:
            return error.status, error.body
        raise AssertionError(f"{command} gave {result}")

    def watch(self, model: str, download: bool = True) -> list[Json]:
        """What the wrapper's kind of socket hears until the server closes it, and its end as `{"closed": code}`.

        `download` starts one once the socket is open.
        """
        url = f"{self._url.replace('http', 'ws')}/model/{model}/download/progress"
        heard: list[Json] = []
        opened, over = threading.Event(), threading.Event()

        class ProgressSocket(base_websocket().BaseWebsocket):  # type: ignore[misc]
            url = property(lambda self: url)

            def on_message(self, ws: Any, message: str) -> None:
                heard.append(json.loads(message))

        def closed(ws: Any, code: Any, text: Any) -> None:
            heard.append({"closed": code})
            over.set()

        listener = ProgressSocket(
            SimpleNamespace(port=1),
            on_message_callback=lambda text: None,
            on_open_callback=lambda ws: opened.set(),
            on_close=closed,
        )
        listener.start()
        assert opened.wait(20), "the socket did not open"
        if download:
            self.download(model)
        assert over.wait(20), f"heard no end: {heard}"
        listener.close()
        return heard


def main(url: str, *lines: str) -> None:
    commands = Commands(url)
    results = []
    for line in lines:
        name, *arguments = json.loads(line)
        results.append(getattr(commands, name)(*arguments))
    print(json.dumps(results, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
