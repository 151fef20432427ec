"""Signed models: what is signed at a push is proved before a model is used, and nothing else is believed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import read_tree
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable, UntrustedModel
from airflow_provider_modelsync.core.flow.steps import SyncDriver
from airflow_provider_modelsync.core.models import ModelVersion, PulledModel
from airflow_provider_modelsync.core.settings import RegistrySettings
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.checks import Checks
from airflow_provider_modelsync.core.verbs.signatures import Signer, Statement
from airflow_provider_modelsync.core.verbs.sync import Selection, Side, sync
from tests.core.stores import Store, hidden, snapshot, was_skipped, write_tree
from tests.support.keys import keys as keys_of

pytest.importorskip("model_signing", reason="the extra `signing` is not installed in this environment")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from sigstore import oidc
from sigstore._internal.tuf import DEFAULT_TUF_URL
from sigstore.errors import TUFError
from sigstore.models import ClientTrustConfig
from sigstore.verify import policy

FILES = {"weights.bin": b"weights" * 100, "tokenizer/vocab.txt": b"one\ntwo\n", "empty": b""}
PASSWORD = "of the key"


def write_key(directory: Path, name: str, password: str | None = None) -> Path:
    """Write a private key, and its public one beside it; return the former."""
    for kind, content in keys_of(password).items():
        (directory / f"{name}.{kind}").write_bytes(content)
    return directory / f"{name}.key"


def certify(directory: Path, name: str, authority: str | None = None) -> Path:
    """Write a certificate for a key: of an authority, or of itself."""

    def key_of(who: str) -> Any:
        return serialization.load_pem_private_key((directory / f"{who}.key").read_bytes(), None)

    def called(who: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)])

    issuer, now = authority or name, datetime.now(UTC)
    usage = x509.KeyUsage(True, False, False, False, False, authority is None, False, False, False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(called(name))
        .issuer_name(called(issuer))
        .public_key(key_of(name).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key_of(issuer), hashes.SHA256())
    )
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return directory / f"{name}.crt"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory with the keys of a team, and of a stranger."""
    directory = tmp_path / "keys"
    directory.mkdir()
    for name in ("team", "stranger"):
        write_key(directory, name)
    return directory


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "model", FILES)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "target"


def signer(how: Any, **fields: Any) -> Callable[..., bytes]:
    made = Signer.of(how, RegistrySettings(conn_id="c", **fields))
    assert made is not None
    return made.sign


def push(store: Store, model: Path, ref: str = "fraud:v1", sign: Any = None, **fields: Any) -> ModelVersion:
    return store.push(model, ref, sign=signer(sign, **fields) if sign else None)


def pull(
    store: Store, target: Path, *trusted: str | Path, policy: str = "require", ref: str = "fraud", **more: Any
) -> PulledModel:
    signers = [str(one) for one in trusted]
    checks = Checks.of(store.registry, signatures=policy, trusted_signers=signers)
    return store.pull(ref, target, checks=checks, **more)


def tamper(store: Store, ref: str, path: str) -> None:
    """Write another file, and a manifest that fits, as whoever may write to the store can."""
    file = store.files(ref) / path
    file.chmod(0o644)
    file.write_bytes(b"harm" + file.read_bytes()[4:])
    name, _, version = ref.partition(":")
    record = store.meta(name, f"{version}.json")
    told = json.loads(record.read_text())
    tree = read_tree(store.files(ref))
    told["files"] = [{**entry, "sha256": file.sha256} for entry, file in zip(told["files"], tree.files, strict=True)]
    record.chmod(0o644)
    record.write_text(json.dumps({**told, "digest": tree.digest}))


def command(*words: Any) -> subprocess.CompletedProcess[str]:
    """Run ``model_signing``."""
    return subprocess.run(
        (sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, words)), capture_output=True, text=True
    )


def test_what_is_signed_is_pulled(store: Store, model: Path, keys: Path, target: Path) -> None:
    signed, plain = push(store, model, sign=str(keys / "team.key")), push(store, model, "plain:v1")

    pull(store, target, keys / "team.pub")

    assert signed.digest == plain.digest  # the signature is no part of it
    assert snapshot(target) == snapshot(model)


def test_nobody_s_model_is_refused_before_anything_moves(store: Store, model: Path, keys: Path, target: Path) -> None:
    push(store, model)
    (store.files("fraud:v1") / "weights.bin").unlink()  # would be missed by whoever reads files

    with pytest.raises(UntrustedModel, match="fraud:v1 has no signature"):
        pull(store, target, keys / "team.pub")

    assert not target.exists()


def test_a_foreign_key_is_refused(store: Store, model: Path, keys: Path, target: Path) -> None:
    push(store, model, sign=str(keys / "stranger.key"))

    with pytest.raises(UntrustedModel, match=r"no signature of fraud:v1 is of a trusted signer: .*team\.pub"):
        pull(store, target, keys / "team.pub")

    assert not target.exists()
    assert hidden(target.parent) == []


def test_one_of_several_signers_is_enough(store: Store, model: Path, keys: Path, target: Path) -> None:
    for who in ("stranger", "team"):
        push(store, model, sign=str(keys / f"{who}.key"))

    pull(store, target, keys / "team.pub")

    assert target.exists()
    assert len([record for record in store.records("fraud") if record.endswith(".sig")]) == 2


def test_a_tampered_file_is_refused_although_its_manifest_fits(
    store: Store, model: Path, keys: Path, target: Path
) -> None:
    push(store, model, sign=str(keys / "team.key"))
    (signature,) = store.run(store.registry.signatures(store.get("fraud:v1")))
    tamper(store, "fraud:v1", "weights.bin")
    store.run(store.registry.keep_signature(store.get("fraud:v1"), signature))  # which they take along
    target.mkdir()

    store.pull("fraud:v1", target.parent / "unlooked")
    with pytest.raises(UntrustedModel, match=r"files of fraud:v1 are not as they were signed: 'weights\.bin'"):
        pull(store, target, keys / "team.pub")

    assert snapshot(target) == {}
    assert hidden(target.parent) == []


def test_a_signature_of_other_files_is_of_no_use(store: Store, model: Path, keys: Path, target: Path) -> None:
    push(store, model, sign=str(keys / "team.key"))
    (signature,) = store.run(store.registry.signatures(store.get("fraud:v1")))
    for files, fault in (
        ({**FILES, "more.py": b"import os"}, r"are not signed: 'more\.py'"),
        ({"weights.bin": FILES["weights.bin"]}, "are missing: 'empty'"),
    ):
        other = write_tree(model.parent / f"other-{len(files)}", files)
        version = push(store, other, f"fraud:w{len(files)}")
        store.run(store.registry.keep_signature(version, signature))
        with pytest.raises(UntrustedModel, match=fault):
            pull(store, target, keys / "team.pub", ref=version.ref)
    assert not target.exists()


@pytest.mark.parametrize("rubbish", [b"", b"{}", b"[]", b'{"dsseEnvelope": {"payload": "e30="}}', b"\xff" * 100])
def test_rubbish_is_no_signature(store: Store, model: Path, keys: Path, target: Path, rubbish: bytes) -> None:
    version = push(store, model)
    store.run(store.registry.keep_signature(version, rubbish))

    with pytest.raises(UntrustedModel, match="the signature cannot be read"):
        pull(store, target, keys / "team.pub")


def test_a_signed_text_that_was_changed_is_refused(store: Store, model: Path, keys: Path, target: Path) -> None:
    sign = signer(str(keys / "team.key"))
    bundle = json.loads(sign(read_tree(write_tree(model.parent / "harm", {"a": b"harm"})), "fraud"))
    other = json.loads(sign(read_tree(model), "fraud"))
    bundle["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]
    store.run(store.registry.keep_signature(push(store, model), json.dumps(bundle).encode()))

    with pytest.raises(UntrustedModel, match="InvalidSignature"):
        pull(store, target, keys / "team.pub")


def test_a_warning_is_all_where_that_is_wanted(
    store: Store, model: Path, keys: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(store, model)

    pull(store, target, keys / "team.pub", policy="warn")

    assert target.exists()
    assert "fraud:v1 has no signature; it is used all the same" in caplog.text


def test_a_model_that_is_there_already_must_be_signed_too(store: Store, model: Path, keys: Path, target: Path) -> None:
    push(store, model)
    store.pull("fraud", target)

    with pytest.raises(UntrustedModel):
        pull(store, target, keys / "team.pub")

    push(store, model, sign=str(keys / "team.key"))
    assert was_skipped(pull(store, target, keys / "team.pub").version)


def test_some_files_of_a_signed_model_are_proved(store: Store, model: Path, keys: Path, target: Path) -> None:
    push(store, model, sign=str(keys / "team.key"))

    pull(store, target, keys / "team.pub", include=["*.bin"])

    assert [path.name for path in target.iterdir()] == ["weights.bin"]


def test_signing_again_keeps_one_signature_of_each_signer(store: Store, model: Path, keys: Path) -> None:
    for _ in range(2):
        push(store, model, sign=str(keys / "team.key"))

    assert len(store.run(store.registry.signatures(store.get("fraud")))) == 1


def test_a_signature_belongs_to_the_bytes(store: Store, model: Path, keys: Path, target: Path) -> None:
    """Whatever version they have: they are the same."""
    push(store, model, sign=str(keys / "team.key"))
    push(store, model, "fraud:v2")

    pull(store, target, keys / "team.pub", ref="fraud:v2")


def test_a_signature_goes_with_the_last_version_of_its_bytes(store: Store, model: Path, keys: Path) -> None:
    push(store, model, sign=str(keys / "team.key"))
    push(store, model, "fraud:v2")
    write_tree(model, {"weights.bin": b"others"})
    push(store, model, "fraud:v3", sign=str(keys / "team.key"))
    left = []
    for version in ("v1", "v2", "v3"):
        store.run(store.registry.delete(store.registry.parse(f"fraud:{version}")))
        left.append(len([*store.root.rglob("*.sig")]))
    assert left == [2, 1, 0]


def test_a_push_that_begins_while_a_signature_is_removed_has_it_again(
    store: Store, model: Path, keys: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, model, sign=str(keys / "team.key"))
    place: Any = store.registry._store
    remove = place.remove

    def let_a_push_in(name: str, records: Any) -> None:
        if any(record.endswith(".sig") for record in records):
            monkeypatch.setattr(place, "remove", remove)
            push(store, model, "fraud:v2", sign=str(keys / "team.key"))
        remove(name, records)

    monkeypatch.setattr(place, "remove", let_a_push_in)
    store.run(store.registry.delete(store.registry.parse("fraud:v1")))

    pull(store, target, keys / "team.pub", ref="fraud:v2")


def test_a_sync_requires_and_takes_signatures_along(
    store: Store, model: Path, keys: Path, target: Path, tmp_path: Path
) -> None:
    push(store, model, sign=str(keys / "team.key"))
    push(store, write_tree(tmp_path / "unsigned", {"a": b"a"}), "other:v1")
    production = Store(tmp_path / "production")
    ends = (Side(store.registry, SyncDriver()), Side(production.registry, SyncDriver()))
    checks = Checks.of(store.registry, signatures="require", trusted_signers=[str(keys / "team.pub")])

    report = sync(*ends, Selection(), Control(), checks=checks)

    assert {done.source: done.outcome for done in report.versions} == {"fraud:v1": "copied", "other:v1": "failed"}
    pull(production, target, keys / "team.pub")


# Keys, certificates, and what is refused beforehand


def test_a_key_with_a_password(store: Store, model: Path, keys: Path, target: Path) -> None:
    key = write_key(keys, "locked", PASSWORD)
    push(store, model, sign=True, signing_key=key, signing_key_password=PASSWORD)

    pull(store, target, keys / "locked.pub")
    with pytest.raises(InvalidInput, match="nothing can be signed") as refused:
        push(store, model, "fraud:v2", sign=True, signing_key=key, signing_key_password="wrong")
    assert refused.value.argument == "sign"
    assert "wrong" not in str(refused.value)


def test_certificates_of_an_authority(store: Store, model: Path, keys: Path, target: Path) -> None:
    root = certify(keys, "team")
    write_key(keys, "member")
    push(store, model, sign={"key": str(keys / "member.key"), "certificate": str(certify(keys, "member", "team"))})

    pull(store, target, root)
    with pytest.raises(UntrustedModel, match="no signature of fraud:v1 is of a trusted signer"):
        pull(store, target.parent / "other", certify(keys, "stranger"))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (True, "names no signing_key"),
        ("/no/such/key", "there is no file /no/such/key"),
        ({"key": "a", "signature": "b"}, "one of key, signature and identity_token is needed"),
        ({"certificate": "a"}, "one of key, signature and identity_token is needed"),
        ({"pass": "word"}, "pass: Extra inputs"),
    ],
)
def test_what_cannot_sign_is_refused_beforehand(how: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as refused:
        Signer.of(how, RegistrySettings(conn_id="c"))
    assert refused.value.argument == "sign"


@pytest.mark.parametrize(
    ("trusted", "argument"), [([], "trusted_signers"), (["/no/such/key"], "trusted_signers"), (None, "trusted_signers")]
)
def test_nobody_to_trust_is_refused_beforehand(store: Store, trusted: Any, argument: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Checks.of(store.registry, signatures="require", trusted_signers=trusted)
    assert refused.value.argument == argument


def test_without_a_policy_nothing_is_looked_at(store: Store) -> None:
    assert not Checks.of(store.registry)
    assert not Checks.of(store.registry, signatures="off", trusted_signers=["/no/such/key"])


# Sigstore, which knows people in the place of keys

JANE = "jane@example.com|https://accounts.example.com"


@pytest.fixture
def sigstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Sigstore as its library was released, with nothing fetched. Holds what identities were asked for."""
    asked: list[dict[str, str]] = []
    made = policy.Identity.__init__

    def heard(self: policy.Identity, **wanted: str) -> None:
        asked.append(wanted)
        made(self, **wanted)

    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "of-sigstore"))
    monkeypatch.setattr(ClientTrustConfig, "production", lambda: ClientTrustConfig.from_tuf(DEFAULT_TUF_URL, True))
    monkeypatch.setattr(policy.Identity, "__init__", heard)
    monkeypatch.setattr(oidc, "Issuer", lambda _: None)
    return asked


@pytest.fixture
def no_sigstore(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch() -> None:
        raise TUFError("Failed to refresh TUF metadata")

    monkeypatch.setattr(ClientTrustConfig, "production", fetch)


def test_an_identity_is_believed_of_its_issuer_only_and_does_not_pass_for_a_key(
    store: Store, model: Path, keys: Path, target: Path, sigstore: list[dict[str, str]]
) -> None:
    push(store, model, sign=str(keys / "team.key"))

    with pytest.raises(UntrustedModel, match=r"of a trusted signer: jane@example\.com\|.*: InvalidBundle: "):
        pull(store, target, JANE)

    assert sigstore == [{"identity": "jane@example.com", "issuer": "https://accounts.example.com"}]
    assert not target.exists()


@pytest.mark.parametrize("signer", ["jane@example.com|", "|https://accounts.example.com", " | "])
def test_an_identity_of_anybody_s_word_is_refused(store: Store, signer: str) -> None:
    with pytest.raises(InvalidInput, match="is no identity and who has proved it") as refused:
        Checks.of(store.registry, signatures="require", trusted_signers=[signer])
    assert refused.value.argument == "trusted_signers"


@pytest.mark.usefixtures("no_sigstore")
def test_sigstore_out_of_reach_is_a_passing_fault(store: Store, model: Path, keys: Path, target: Path) -> None:
    push(store, model, sign=str(keys / "team.key"))

    with pytest.raises(RegistryUnavailable, match="Sigstore is out of reach: TUFError"):
        pull(store, target, JANE)
    assert not target.exists()

    pull(store, target, JANE, keys / "team.pub")


@pytest.mark.usefixtures("no_sigstore")
def test_a_warning_does_not_wait_for_sigstore(
    store: Store, model: Path, keys: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(store, model, sign=str(keys / "team.key"))

    pull(store, target, JANE, policy="warn")

    assert target.exists()
    assert "Sigstore is out of reach: TUFError" in caplog.text


@pytest.mark.usefixtures("no_sigstore")
def test_a_push_to_be_signed_by_sigstore_is_tried_again_when_that_is_out_of_reach(
    store: Store, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a.b.c")

    with pytest.raises(RegistryUnavailable, match="Sigstore is out of reach"):
        push(store, model, sign={"identity_token": str(tmp_path / "token")})
    assert store.list_versions("fraud") == []


@pytest.mark.usefixtures("sigstore")
@pytest.mark.parametrize(
    ("token", "fault"),
    [(" \n", "token holds no token"), ("eyJhbGciOi.eyJhdWQi.canary", "IdentityError: Identity token")],
)
def test_a_token_that_proves_nobody_is_refused_and_not_shown(
    store: Store, model: Path, tmp_path: Path, token: str, fault: str
) -> None:
    (tmp_path / "token").write_text(token)

    with pytest.raises(InvalidInput, match=fault) as refused:
        push(store, model, sign={"identity_token": str(tmp_path / "token")})

    assert refused.value.argument == "sign"
    assert "canary" not in str(refused.value)


# The command line of the library


def test_the_command_line_takes_our_signature(store: Store, model: Path, keys: Path, tmp_path: Path) -> None:
    push(store, model, sign=str(keys / "team.key"))
    (signature,) = store.run(store.registry.signatures(store.get("fraud")))
    (tmp_path / "model.sig").write_bytes(signature)
    words = ("verify", "key", "--signature", tmp_path / "model.sig", "--public_key")

    assert command(*words, keys / "team.pub", store.files("fraud")).returncode == 0
    assert command(*words, keys / "stranger.pub", store.files("fraud")).returncode != 0


def test_we_take_the_command_line_s_signature(
    store: Store, model: Path, keys: Path, target: Path, tmp_path: Path
) -> None:
    made = tmp_path / "model.sig"
    signed = command("sign", "key", "--signature", made, "--private_key", keys / "team.key", model)
    assert signed.returncode == 0, signed.stderr

    push(store, model, sign={"signature": str(made)})
    pull(store, target, keys / "team.pub")

    other = write_tree(tmp_path / "other", {"a": b"a"})
    with pytest.raises(InvalidInput, match=r"model\.sig: files of fraud are not signed: 'a'"):
        push(store, other, "fraud:v2", sign={"signature": str(made)})
    assert Statement.of(made.read_bytes()).digest is None  # it leaves .git out, and says so
