"""Drives the unmodified `huggingface_hub`, of the generations on httpx2 and requests; runs where it is installed.

    python huggingface_client.py COMMAND...

Each COMMAND is a JSON array: a name of `COMMANDS` and its arguments. They run in order in one process; standard
output gets one JSON array with what each returned. The server and the token come by `HF_ENDPOINT` and `HF_TOKEN`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from huggingface_hub import HfApi, snapshot_download

api = HfApi()


def upload(name: str, directory: str) -> str:
    """Push a directory; return the commit."""
    api.create_repo(name, exist_ok=True, private=True)
    return str(api.upload_folder(repo_id=name, folder_path=directory).oid)


def download(name: str, target: str, *patterns: str) -> str:
    """Pull into a directory; return the commit that `main` is."""
    snapshot_download(name, local_dir=target, allow_patterns=list(patterns) or None)
    return str(api.model_info(name).sha)


def cache(name: str, *patterns: str) -> str:
    """Pull into the cache; return the snapshot's directory."""
    return snapshot_download(name, allow_patterns=list(patterns) or None)


def tag(name: str, tag: str) -> None:
    api.create_tag(name, tag=tag)
    api.create_branch(name, branch=f"{tag}-branch")


def listed(name: str) -> dict[str, Any]:
    refs = api.list_repo_refs(name)
    return {
        "commits": [commit.commit_id for commit in api.list_repo_commits(name)],
        "tags": {ref.name: ref.target_commit for ref in refs.tags},
        "files": sorted(api.list_repo_files(name)),
        "models": [model.id for model in api.list_models(author=name.partition("/")[0])],
        "whoami": api.whoami()["name"],
    }


COMMANDS = {function.__name__: function for function in (upload, download, cache, tag, listed)}

if __name__ == "__main__":
    print(json.dumps([COMMANDS[name](*arguments) for name, *arguments in map(json.loads, sys.argv[1:])]))
