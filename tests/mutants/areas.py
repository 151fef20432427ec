"""What is mutated, and the tests that have to notice: those written for it, which are few and quick."""

from __future__ import annotations

CORE, TESTS = "airflow_provider_modelsync/core", "tests/core"
STORE = f"{CORE}/registries/modelstore"

# Area → modules, and the files of their tests.
AREAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "claims": (
        (f"{STORE}/claims.py", f"{STORE}/store.py"),
        (
            f"{TESTS}/registries/modelstore/test_claims.py",
            f"{TESTS}/registries/modelstore/test_registry.py",
            f"{TESTS}/registries/modelstore/test_machine.py",
            f"{TESTS}/registries/modelstore/test_s3_leftovers.py",
            f"{TESTS}/verbs/test_prune.py",
        ),
    ),
    "staging": (
        (f"{CORE}/durable.py", f"{CORE}/writer.py", f"{CORE}/transfer/room.py"),
        (
            f"{TESTS}/test_durable.py",
            f"{TESTS}/transfer/test_local.py",
            f"{TESTS}/transfer/test_room.py",
            f"{TESTS}/verbs/test_placed.py",
            f"{TESTS}/verbs/test_push_pull.py",
            f"{TESTS}/registries/modelstore/test_registry.py",
            f"{TESTS}/test_crash.py",
        ),
    ),
    "redaction": ((f"{CORE}/redact.py", f"{CORE}/text.py"), (f"{TESTS}/test_redact.py", f"{TESTS}/test_text.py")),
    "http": (
        (f"{CORE}/http/faults.py", f"{CORE}/http/policy.py", f"{CORE}/http/addresses.py", f"{CORE}/http/storage.py"),
        (f"{TESTS}/http",),
    ),
    "transfer": (
        (f"{CORE}/transfer/mover.py", f"{CORE}/transfer/checkpoint.py", f"{CORE}/transfer/walk.py"),
        (f"{TESTS}/transfer/test_mover.py", f"{TESTS}/transfer/test_checkpoint.py", f"{TESTS}/transfer/test_ranges.py"),
    ),
}
# Here nothing may survive without a reason.
STRICT = ("claims", "staging", "redaction")
