"""Drives the unmodified `google-cloud-storage`; runs where it is installed.

    python gcs_client.py ENDPOINT TOKEN COMMAND...

Each COMMAND is a JSON array: a name of `COMMANDS` and its arguments. They run in order in one process; standard
output gets one JSON array with what each returned.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from google.api_core.exceptions import PreconditionFailed
from google.cloud import storage
from google.cloud.storage import transfer_manager
from google.oauth2.credentials import Credentials

client = storage.Client(
    project="project", credentials=Credentials(sys.argv[2]), client_options={"api_endpoint": sys.argv[1]}
)


def listed(bucket: str, prefix: str) -> dict[str, Any]:
    """Return size, generation, sum and metadata of all objects below a prefix."""
    return {
        blob.name: [blob.size or 0, blob.generation, blob.crc32c, blob.metadata or {}]
        for blob in client.list_blobs(bucket, prefix=prefix)
    }


def directories(bucket: str, prefix: str) -> list[str]:
    found = client.list_blobs(bucket, prefix=prefix, delimiter="/")
    list(found)
    return sorted(found.prefixes)


def download(bucket: str, prefix: str, target: str) -> None:
    """Fetch all objects below a prefix, each checked by its sum."""
    for blob in client.list_blobs(bucket, prefix=prefix):
        path = Path(target, blob.name.removeprefix(prefix))
        path.parent.mkdir(parents=True, exist_ok=True)
        blob.download_to_filename(path)


def upload(bucket: str, key: str, path: str, part: int) -> int:
    """Send a file in parts; return its generation."""
    blob = client.bucket(bucket).blob(key)
    transfer_manager.upload_chunks_concurrently(
        path, blob, chunk_size=part, worker_type=transfer_manager.THREAD, max_workers=2, checksum="crc32c"
    )
    blob.reload()
    return int(blob.generation)


def copy(bucket: str, key: str, target: str) -> int:
    """Have an object copied, in as many calls as it takes; return how many that were."""
    place = client.bucket(bucket)
    calls, token = 1, None
    token, _, _ = place.blob(target).rewrite(place.blob(key), if_generation_match=0)
    while token:
        token, _, _ = place.blob(target).rewrite(place.blob(key), token=token, if_generation_match=0)
        calls += 1
    return calls


def delete(bucket: str, key: str, generation: int) -> bool:
    """Remove one generation of an object; return whether it was that."""
    try:
        client.bucket(bucket).blob(key).delete(if_generation_match=generation)
    except PreconditionFailed:
        return False
    return True


COMMANDS = {function.__name__: function for function in (listed, directories, download, upload, copy, delete)}

if __name__ == "__main__":
    commands = map(json.loads, sys.argv[3:])
    print(json.dumps([COMMANDS[name](*arguments) for name, *arguments in commands]))
