"""What other clients were seen to write to a real registry, as we read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import NotSupported
from airflow_provider_modelsync.core.registries.oci.manifest import contents_of, parse
from tests.support.data import DATA

SCENARIOS: dict[str, Any] = json.loads((DATA / "oci-exchanges.json").read_text())["scenarios"]


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what was put as manifests, by who did."""
    for scenario, told in SCENARIOS.items():
        for number, exchange in enumerate(told["exchanges"]):
            body = exchange["request_body"]
            if exchange["method"] == "PUT" and "/manifests/" in exchange["path"] and isinstance(body, dict):
                yield f"{scenario} {number}", body


def test_there_are_manifests_of_all_clients() -> None:
    told = " ".join(scenario for scenario, _ in manifests())
    assert all(client in told for client in ("modelpack-client", "oras-py", "skopeo", "hand-made"))


def is_a_file(layer: dict[str, Any]) -> bool:
    annotations = layer.get("annotations") or {}
    if layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar":  # as ORAS calls files, too
        return "org.opencontainers.image.title" in annotations and "io.deis.oras.content.unpack" not in annotations
    return "tar" not in layer["mediaType"] and any(key.endswith(("title", "filepath")) for key in annotations)


@pytest.mark.parametrize("manifest", [pytest.param(body, id=scenario) for scenario, body in manifests()])
def test_a_manifest_is_read_when_its_layers_are_files(manifest: dict[str, Any]) -> None:
    layers = manifest.get("layers", [])
    content = json.dumps(manifest).encode()
    if not layers or not all(map(is_a_file, layers)):
        with pytest.raises(NotSupported):
            contents_of(parse(content))
        return
    contents = contents_of(parse(content))
    assert sorted(file.sha256 for file in contents.files) == sorted(layer["digest"][7:] for layer in layers)


def test_modelpack_client_s_artifact_has_its_files_and_their_modes() -> None:
    manifest = next(body for scenario, body in manifests() if "push of six files" in scenario)
    contents = contents_of(parse(json.dumps(manifest).encode()))
    assert len(contents.files) == 6
    assert sum(file.size == 0 for file in contents.files) == 1
