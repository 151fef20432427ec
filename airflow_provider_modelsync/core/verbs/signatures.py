"""Signatures of models: what is signed at a push, and looked at before a model is used.

A signature is a Sigstore bundle over the list of a model's files with their hashes, as OpenSSF's library
``model-signing`` makes and reads it (https://github.com/sigstore/model-transparency); its command line takes ours, and
the other way round. The library comes with the extra ``signing`` and is imported when it is first needed. It is told
the hashes that a push or a pull knows already, so that no file is read again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from airflow_provider_modelsync.core.archive.digest import FileEntry, Source, digest_of, read_tree
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import InvalidInput, RegistryUnavailable, UntrustedModel
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.registries.capabilities import MOST_SIGNATURES
from airflow_provider_modelsync.core.settings import RegistrySettings

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("modelsync")

Policy = Literal["off", "warn", "require"]

LARGEST_SIGNATURE = 32 << 20  # bytes
_SHOWN = 5
_IDENTITY = "|"  # between an identity and its issuer
_PREDICATE = "https://model_signing/signature/v1.0"


class _Signing(BaseModel):
    """How to sign; see :class:`Signer`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Path | None = None
    certificate: Path | None = None
    signature: Path | None = None
    identity_token: Path | None = None


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs what is pushed.

    :param key: file of a private key (PEM, elliptic curve P-256, P-384 or P-521).
    :param password: of the key.
    :param certificate: file of the key's certificate, and of those between it and a root (PEM).
    :param signature: file of a signature that was made elsewhere, to be kept instead of making one.
    :param identity_token: file of an OpenID Connect token, to sign with Sigstore, without a key of one's own.
    """

    key: Path | None = None
    password: SecretStr | None = field(default=None, repr=False)
    certificate: Path | None = None
    signature: Path | None = None
    identity_token: Path | None = None

    @classmethod
    def of(cls, sign: bool | str | Mapping[str, Any] | None, settings: RegistrySettings) -> Self | None:
        """Return what signs a push, or ``None`` where nothing does.

        :param sign: whether to sign with the connection's key; the file of another key; or the parameters of this class
            but the password. ``None``: as far as the connection names a key.
        :param settings: the connection.
        :raises InvalidInput: when a key is wanted and missing, or a file is not there.
        """
        if sign is False or (sign is None and settings.signing_key is None):
            return None
        if sign in (None, True):
            if settings.signing_key is None:
                raise InvalidInput("the connection names no signing_key", argument="sign")
            signer = cls(settings.signing_key, settings.signing_key_password, settings.signing_certificate)
        else:
            try:
                told = _Signing.model_validate({"key": sign} if isinstance(sign, str) else sign)
            except ValidationError as error:
                fault = error.errors(include_input=False)[0]
                raise InvalidInput(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}", argument="sign") from None
            if sum(map(bool, (told.key, told.signature, told.identity_token))) != 1:
                raise InvalidInput("one of key, signature and identity_token is needed", argument="sign")
            password = settings.signing_key_password if told.key == settings.signing_key else None
            signer = cls(told.key, password, told.certificate, told.signature, told.identity_token)
        for file in filter(None, (signer.key, signer.certificate, signer.signature, signer.identity_token)):
            if not file.is_file():
                raise InvalidInput(f"there is no file {file} on this machine", argument="sign")
        return signer

    def sign(self, model: Source, name: str) -> bytes:
        """Return a signature of a model.

        :param model: with the hashes of its files.
        :param name: for those who read it.
        :raises InvalidInput: when the key cannot be used, or a signature that was made elsewhere is not of this model.
        :raises RegistryUnavailable: when Sigstore is to sign, and is out of reach.
        """
        if self.signature is not None:
            signature = self.signature.read_bytes()
            try:
                Statement.of(signature).compare(model.files, name)
            except UntrustedModel as error:
                raise InvalidInput(f"{self.signature}: {error.message}", argument="sign") from None
            return signature
        signing = _library().signing.Config()
        with _named("sign", "nothing can be signed with what is given"):
            if self.identity_token is not None:
                # Without a token the library would ask a browser for one.
                if not (token := self.identity_token.read_text().strip()):
                    raise InvalidInput(f"{self.identity_token} holds no token", argument="sign")
                signing.use_sigstore_signer(identity_token=token)
            elif self.certificate is not None:
                signing.use_certificate_signer(
                    private_key=self.key,
                    signing_certificate=self.certificate,
                    certificate_chain=[self.certificate],  # which may hold the others, and the library wants some
                )
            else:
                password = self.password.get_secret_value().encode() if self.password else None
                signing.use_elliptic_key_signer(private_key=self.key, password=password)
            signing.set_hashing_config(_Known(model.files))
            with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
                signing.sign(Path(name), Path(scratch) / "model.sig")
                return (Path(scratch) / "model.sig").read_bytes()


@dataclass(frozen=True, slots=True)
class Statement:
    """What a signature says, whoever has signed it.

    :param signature: the bundle.
    :param method: how files were hashed.
    :param files: path → SHA-256, where that is how.
    :param ignored: paths that the signer has left out, with all below them.
    """

    signature: bytes = field(repr=False)
    method: str
    files: Mapping[str, str]
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, signature: bytes) -> Self:
        """Read a signature. Nothing of it is proved by that.

        :raises UntrustedModel: when it is none.
        """
        try:
            predicate = _predicate_of(signature)
            told = predicate["serialization"]
            method = f"{told['method']} {told['hash_type']}"
            files = {one["name"]: one["digest"] for one in predicate["resources"]}
            ignored = tuple(path for path in told.get("ignore_paths", ()) if path not in ("", "."))
            if not all(isinstance(text, str) for text in (*files, *files.values(), *ignored)):
                raise TypeError("its paths are no texts")  # noqa: TRY301
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UntrustedModel(f"the signature cannot be read: {type(error).__name__}: {error}") from None
        return cls(signature, method, files, ignored)

    @property
    def signer(self) -> str:
        """What tells the signer from others: the same key, or certificate, has always the same."""
        material = json.loads(self.signature).get("verificationMaterial", {})
        return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def is_by_hashes(self) -> bool:
        """Whether the hashes in it are those that this package knows of files."""
        return self.method == "files sha256"

    @property
    def digest(self) -> str | None:
        """The digest of a model of exactly these files, where that can be told."""
        if not self.is_by_hashes or self.ignored:
            return None
        return digest_of([FileEntry(path, 0, sha256) for path, sha256 in self.files.items()])

    def compare(self, files: Iterable[FileEntry], ref: str, *, is_partial: bool = False) -> None:
        """Raise :class:`UntrustedModel` unless a model holds what it says, and nothing else.

        :param files: of the model.
        :param ref: the version, for messages.
        :param is_partial: whether some of its files may be missing.
        """
        held = {file.path: file.sha256 for file in files}
        other = [path for path, sha256 in held.items() if path in self.files and self.files[path] != sha256]
        extra = [path for path in held if path not in self.files and not self._ignores(path)]
        missing = [] if is_partial else [path for path in self.files if path not in held]
        for paths, what in (
            (other, "are not as they were signed"),
            (extra, "are not signed"),
            (missing, "are missing"),
        ):
            if paths:
                told = ", ".join(map(show, sorted(paths)[:_SHOWN]))
                more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
                raise UntrustedModel(f"files of {ref} {what}: {told}{more}")

    def _ignores(self, path: str) -> bool:
        return any(PurePosixPath(path).is_relative_to(ignored) for ignored in self.ignored)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signatures count.

    :param policy: what becomes of a model without one: ``warn`` only says so.
    :param signers: files of public keys and of certificates of authorities (PEM), or ``identity|issuer`` of Sigstore.
    """

    policy: Policy
    signers: tuple[str, ...]

    @classmethod
    def of(cls, policy: str | None, signers: Sequence[str] | None, settings: RegistrySettings) -> Self | None:
        """Return what arguments ask for, or the connection where they say nothing; ``None`` for nothing.

        :raises InvalidInput: for a policy that is none, or when nobody is trusted.
        """
        policy = policy or settings.signatures
        if policy == "off":
            return None
        if policy not in ("warn", "require"):
            raise InvalidInput(f"{policy!r} is none of off, warn, require", argument="signatures")
        trusted = tuple(signers if signers is not None else settings.trusted_signers)
        if not trusted:
            raise InvalidInput("nobody is named whose signatures count", argument="trusted_signers")
        for signer in trusted:
            if _IDENTITY in signer:
                if not all(part.strip() for part in signer.split(_IDENTITY, 1)):
                    raise InvalidInput(
                        f"{signer!r} is no identity and who has proved it, as jane@example.com|https://accounts.google.com",
                        argument="trusted_signers",
                    )
            elif not Path(signer).is_file():
                raise InvalidInput(f"there is no file {signer} on this machine", argument="trusted_signers")
        _library()
        return cls(policy, trusted)  # type: ignore[arg-type]

    def proved(self, signatures: Sequence[bytes], ref: str) -> Statement:
        """Return what a signer of these says of a version.

        :raises UntrustedModel: when there is no signature, or none of theirs.
        :raises RegistryUnavailable: when one is required, and Sigstore, which would have to be asked, is out of reach.
        """
        if not signatures:
            raise UntrustedModel(f"{ref} has no signature", argument="signatures")
        refusals: list[str] = []
        out_of_reach: RegistryUnavailable | None = None
        for signature in signatures[:MOST_SIGNATURES]:
            try:
                statement = Statement.of(signature)
            except UntrustedModel as error:
                refusals.append(error.message)
                continue
            for signer in self.signers:
                try:
                    refusal = _refusal_of(statement, signer)
                except RegistryUnavailable as error:
                    out_of_reach, refusal = error, error.message
                if refusal is None:
                    log.info("%s is signed by %s", ref, signer)
                    return statement
                refusals.append(f"{signer}: {refusal}")
        if out_of_reach and self.policy == "require":
            raise out_of_reach
        told = "; ".join(refusals[:_SHOWN])
        raise UntrustedModel(f"no signature of {ref} is of a trusted signer: {told}", argument="signatures")


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """Compares a model with what a trusted signer says of it.

    :param statement: what is proved to be signed.
    :param is_partial: whether only some of its files are looked at.
    """

    statement: Statement
    is_partial: bool

    def __call__(
        self, directory: Path, ref: str, cancel: CancelToken, files: Sequence[FileEntry] | None, digest: str | None
    ) -> None:
        statement = self.statement
        if digest is not None and digest == statement.digest:
            return
        if not statement.is_by_hashes:
            self._read_anew(directory, ref)
            return
        if files is None:
            files = read_tree(directory, cancel=cancel).files
        statement.compare(files, ref, is_partial=self.is_partial)

    def _read_anew(self, directory: Path, ref: str) -> None:
        """Have the library hash files as the signer did."""
        if self.is_partial:
            raise UntrustedModel(
                f"the signature of {ref} is not by SHA-256 of whole files: of some files it tells nothing",
                argument="signatures",
                remedy="Pull all files, or have the model signed by SHA-256 of files",
            )
        try:
            hashing = _library().hashing.Config()
            how = _predicate_of(self.statement.signature)["serialization"]
            if how["method"] == "shards":
                hashing.use_shard_serialization(hashing_algorithm=how["hash_type"], shard_size=how["shard_size"])
            else:
                hashing.use_file_serialization(hashing_algorithm=how["hash_type"])
            hashing.set_ignored_paths(paths=self.statement.ignored, ignore_git_paths=False)
            held = {one.identifier: one.digest.digest_hex for one in hashing.hash(directory).resource_descriptors()}
        except (ValueError, KeyError, TypeError) as error:
            raise UntrustedModel(f"files of {ref} cannot be compared with the signature: {error}") from None
        if held != dict(self.statement.files):
            differing = sorted({*held.items()} ^ {*self.statement.files.items()})
            raise UntrustedModel(f"files of {ref} are not as they were signed: {show(differing[0][0])}")


def _predicate_of(signature: bytes) -> Any:
    statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"], validate=True))
    if statement["predicateType"] != _PREDICATE:
        raise ValueError("it is not of a model")
    return statement["predicate"]


def _refusal_of(statement: Statement, signer: str) -> str | None:
    """Return why a statement is not by a signer; ``None`` when it is proved to be.

    :raises RegistryUnavailable: when Sigstore is out of reach, of which one learns whom to believe.
    """
    verifying = _library().verifying.Config()
    try:
        if _IDENTITY in signer:
            identity, _, issuer = signer.partition(_IDENTITY)
            verifying.use_sigstore_verifier(identity=identity, oidc_issuer=issuer)
        elif b"BEGIN CERTIFICATE" in Path(signer).read_bytes():
            verifying.use_certificate_verifier(certificate_chain=[Path(signer)])
        else:
            verifying.use_elliptic_key_verifier(public_key=Path(signer))
        # What the library has proved is compared with what was read here: it is the same, or nothing is proved.
        verifying.set_hashing_config(_Said(statement))
        with tempfile.TemporaryDirectory(prefix="modelsync-") as scratch:
            bundle = Path(scratch) / "model.sig"
            bundle.write_bytes(statement.signature)
            verifying.verify(Path(scratch), bundle)
    except Exception as error:  # whatever the library raises: nothing is proved
        _require_within_reach(error)
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return None


def _require_within_reach(error: BaseException) -> None:
    """Raise :class:`RegistryUnavailable` when an error of the library says that Sigstore has not answered."""
    from requests import exceptions
    from sigstore.errors import NetworkError, TUFError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (exceptions.ConnectionError, exceptions.Timeout, NetworkError, TUFError)):
            raise RegistryUnavailable(
                f"Sigstore is out of reach: {type(cause).__name__}: {cause}",
                remedy="Let this machine reach it, as docs/trust.md says, or use keys or certificates",
            ) from None
        cause = cause.__cause__ or cause.__context__


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise InvalidInput(
            f"signatures need the library model-signing: {error}",
            remedy="pip install 'airflow-provider-modelsync[signing]'",
        ) from None
    return model_signing


@contextmanager
def _named(argument: str, what: str) -> Iterator[None]:
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:  # of the library, and of what it is made of
        _require_within_reach(error)
        raise InvalidInput(f"{what}: {type(error).__name__}: {error}", argument=argument) from None


class _Hashing:
    """Stands in the place of the library's hashing: it is asked for a manifest, and told what is ignored."""

    def add_ignored_paths(self, *, model_path: Any, paths: Iterable[Any]) -> None:
        """Hear what the signed list leaves out."""

    def hash(self, model_path: Path, *, files_to_hash: Any = None) -> Any:
        """Return the manifest of files whose hashes are known."""
        from model_signing import manifest
        from model_signing._hashing.hashing import Digest

        how = manifest.SerializationType.from_args(dict(self.how))
        items = [how.new_item(name, Digest(kind, value)) for name, kind, value in self.items()]
        return manifest.Manifest(model_path.name, items, how)

    how: Mapping[str, Any]
    items: Callable[[], Iterable[tuple[str, str, bytes]]]


class _Known(_Hashing):
    def __init__(self, files: Sequence[FileEntry]) -> None:
        self.how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
        self.items = lambda: ((file.path, "sha256", bytes.fromhex(file.sha256)) for file in files)


class _Said(_Hashing):
    def __init__(self, statement: Statement) -> None:
        predicate = _predicate_of(statement.signature)
        self.how = predicate["serialization"]
        self._told = statement.ignored
        self.items = lambda: (
            (one["name"], one["algorithm"], bytes.fromhex(one["digest"])) for one in predicate["resources"]
        )

    def add_ignored_paths(self, *, model_path: Any, paths: Iterable[Any]) -> None:
        if tuple(path for path in map(str, paths) if path not in ("", ".")) != self._told:
            raise ValueError("what is signed to be left out is not what was read")
