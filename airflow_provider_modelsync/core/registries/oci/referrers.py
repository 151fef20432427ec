"""Signatures that refer to a manifest, as the OCI distribution specification 1.1 has it.

Tools as ``oras discover`` and ``cosign`` find them so, and those that others have attached are found here. Where a
registry does not know referrers, it says so by leaving ``OCI-Subject`` out of its answer; they are then listed by an
index under a tag of their own, ``sha256-<digest>``.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from airflow_provider_modelsync.core.errors import ModelNotFound, RegistryUnavailable
from airflow_provider_modelsync.core.flow.steps import Flow
from airflow_provider_modelsync.core.registries.capabilities import MOST_SIGNATURES
from airflow_provider_modelsync.core.registries.oci.api import (
    MANIFEST,
    PULL,
    PUSH,
    Api,
    Refusal,
    Stored,
    raise_for_push,
)

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_EMPTY_TYPE, _EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
_SIGNATURE_BYTES = 32 << 20


class Referrers:
    """What refers to the manifests of one connection.

    :param api: makes the calls.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def signatures(self, name: str, digest: str) -> Flow[list[bytes]]:
        """Return the signatures that refer to a manifest."""
        found: list[bytes] = []
        for descriptor in (yield from self._listed(name, digest))[:MOST_SIGNATURES]:
            if descriptor.get("artifactType") != BUNDLE:
                continue
            try:
                stored = yield from self._api.manifest(name, str(descriptor.get("digest")))
                layers = json.loads(stored.content)["layers"] if stored else []
                found += (
                    [(yield from self._api.blob(name, str(layers[0]["digest"]), _SIGNATURE_BYTES))] if layers else []
                )
            except (ModelNotFound, ValueError, KeyError, TypeError, IndexError):  # whatever others have attached
                continue
        return found

    def put(self, name: str, subject: Stored, signature: bytes) -> Flow[None]:
        """Have a signature refer to a manifest."""
        config = yield from self._put_blob(name, _EMPTY, _EMPTY_TYPE)
        layer = yield from self._put_blob(name, signature, BUNDLE)
        content = _dumped(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "artifactType": BUNDLE,
                "config": config,
                "layers": [layer],
                "subject": _descriptor(subject.content, subject.media_type),
            }
        )
        own = {**_descriptor(content, MANIFEST), "artifactType": BUNDLE}
        response = yield from self._api.send(
            "PUT",
            f"v2/{self._api.repository(name)}/manifests/{own['digest']}",
            self._api.scopes(name, PUSH),
            headers={"Content-Type": MANIFEST},
            content=content,
        )
        raise_for_push(Refusal.of(response), f"attaching a signature in {name}")
        if "OCI-Subject" not in response.headers:
            listed = [
                one for one in (yield from self._by_tag(name, subject.digest)) if one.get("digest") != own["digest"]
            ]
            index = _dumped({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [*listed, own]})
            refusal = yield from self._api.put_manifest(name, _tag_of(subject.digest), _INDEX, index)
            raise_for_push(refusal, f"listing a signature in {name}")

    def _listed(self, name: str, digest: str) -> Flow[list[dict[str, Any]]]:
        response = yield from self._api.send(
            "GET",
            f"v2/{self._api.repository(name)}/referrers/{digest}",
            self._api.scopes(name, PULL),
            headers={"Accept": _INDEX},
        )
        if response.status_code == 200 and (found := _manifests_in(response.content)) is not None:
            return found
        return (yield from self._by_tag(name, digest))

    def _by_tag(self, name: str, digest: str) -> Flow[list[dict[str, Any]]]:
        stored = yield from self._api.manifest(name, _tag_of(digest))
        return (_manifests_in(stored.content) if stored else None) or []

    def _put_blob(self, name: str, content: bytes, media_type: str) -> Flow[dict[str, Any]]:
        descriptor = _descriptor(content, media_type)
        digest = descriptor["digest"]
        if (yield from self._api.has_blob(name, digest, len(content), actions=PUSH)):
            return descriptor
        location = yield from self._api.begin_upload(name, digest)
        if location is not None:
            refusal = yield from self._api.put_blob(name, location, digest, content)
            refusal.raise_for_status("uploading a signature", not_found=RegistryUnavailable)
        return descriptor


def _descriptor(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def _tag_of(digest: str) -> str:
    return digest.replace(":", "-")


def _manifests_in(content: bytes) -> list[dict[str, Any]] | None:
    try:
        found = json.loads(content)["manifests"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else None


def _dumped(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
