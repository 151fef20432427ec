"""OpenSSF's ``model_signing``, in an environment of its own: each takes what the other signs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.errors import UntrustedModel
from tests.core.stores import Store, write_tree
from tests.core.verbs.test_signatures import FILES, certify, pull, push, tamper, write_key

pytestmark = pytest.mark.vendor

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / ".venv-vendors" / "model-signing" / "bin" / "model_signing"


def run(*words: Any) -> subprocess.CompletedProcess[str]:
    command = Path(os.environ.get("MODELSYNC_MODEL_SIGNING", COMMAND))
    if not command.exists():
        pytest.fail(f"{command} is missing: run `make test-vendors`, or name it in MODELSYNC_MODEL_SIGNING")
    return subprocess.run((command, *map(str, words)), capture_output=True, text=True)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "keys"
    directory.mkdir()
    for name in ("team", "member", "stranger"):
        write_key(directory, name)
    certify(directory, "team")
    certify(directory, "member", "team")
    return directory


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "model", FILES)


def kept(store: Store, where: Path) -> Path:
    (signature,) = store.run(store.registry.signatures(store.get("fraud")))
    where.write_bytes(signature)
    return where


def test_the_command_takes_what_we_sign_by_a_key(store: Store, model: Path, keys: Path, tmp_path: Path) -> None:
    push(store, model, sign=str(keys / "team.key"))
    words = ("verify", "key", "--signature", kept(store, tmp_path / "model.sig"), "--public_key")

    done = run(*words, keys / "team.pub", store.files("fraud"))
    assert done.returncode == 0, done.stderr
    assert run(*words, keys / "stranger.pub", store.files("fraud")).returncode != 0
    tamper(store, "fraud:v1", "weights.bin")
    assert run(*words, keys / "team.pub", store.files("fraud")).returncode != 0


def test_the_command_takes_what_we_sign_by_a_certificate(store: Store, model: Path, keys: Path, tmp_path: Path) -> None:
    push(store, model, sign={"key": str(keys / "member.key"), "certificate": str(keys / "member.crt")})
    words = ("verify", "certificate", "--signature", kept(store, tmp_path / "model.sig"), "--certificate_chain")

    done = run(*words, keys / "team.crt", store.files("fraud"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("by", ["key", "certificate"])
def test_we_take_what_the_command_signs(store: Store, model: Path, keys: Path, tmp_path: Path, by: str) -> None:
    made, key = tmp_path / "model.sig", keys / "member.key"
    chain = ("--signing_certificate", keys / "member.crt", "--certificate_chain", keys / "team.crt")
    done = run("sign", by, "--signature", made, "--private_key", key, *(chain if by == "certificate" else ()), model)
    assert done.returncode == 0, done.stderr
    push(store, model, sign={"signature": str(made)})
    (tmp_path / "place").mkdir()

    pull(store, tmp_path / "place" / "target", keys / ("member.pub" if by == "key" else "team.crt"))

    with pytest.raises(UntrustedModel):
        pull(store, tmp_path / "place" / "other", keys / "stranger.pub")
