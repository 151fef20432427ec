"""What every registry promises, whatever system is behind it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelsync.core.archive.digest import digest_directory, read_tree
from airflow_provider_modelsync.core.archive.names import show
from airflow_provider_modelsync.core.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    NotSupported,
    SourceChanged,
    TargetExists,
    VersionConflict,
)
from airflow_provider_modelsync.core.models import NOBODY, Alias, ModelRef, ModelVersion, Query, SyncedVersion
from airflow_provider_modelsync.core.registries.base import Capability
from airflow_provider_modelsync.core.registries.capabilities import Aliases, Deploys, KeepsSignatures, Predicts
from airflow_provider_modelsync.core.transfer.control import Control
from airflow_provider_modelsync.core.verbs.checks import Checks
from airflow_provider_modelsync.core.verbs.drive import driver_for
from airflow_provider_modelsync.core.verbs.predict import predict, start_predict
from airflow_provider_modelsync.core.verbs.promote import promote, rollback
from airflow_provider_modelsync.core.verbs.prune import Retention, prune
from airflow_provider_modelsync.core.verbs.push import version_of
from airflow_provider_modelsync.core.verbs.sync import Selection, Side, sync
from airflow_provider_modelsync.core.verbs.wait import find_deployment, find_version
from tests.conformance.bench import Bench, needs
from tests.core.stores import CancelAfter, Store, hidden, snapshot, write_tree
from tests.support.at_once import at_once
from tests.support.maps import mapped
from tests.support.objects import containers_of

PUSH, PULL, FORCE = Capability.PUSH, Capability.PULL, Capability.FORCE
CHOOSE_VERSION, DELETE = Capability.CHOOSE_VERSION, Capability.DELETE
LABELS, METADATA = Capability.LABELS, Capability.METADATA
ALIASES, SIGNATURES = Capability.ALIASES, Capability.SIGNATURES

Run = Callable[..., Any]

UNUSABLE: dict[str, Callable[[Path], Any]] = {
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK),
}
# Of each of these somebody's file names, URLs or forms make something else.
UNUSUAL = (
    "a b.txt",
    "größe ±.bin",
    'it\'s "so".txt',
    "a+b&c=d;e,f",
    "(x)[y]{z}",
    "~tilde!$@^`|",
    "..dots...x",
    ".hidden/file",
    "dir with blank/ö/x",
    "question?.txt",
    "star*.txt",
    "<lt>.txt",
    "colon:x",
    "n" * 200,
)
MORE_UNUSUAL = ("hash#tag", "per%41cent", "a%2fb")


# Push


@needs(PUSH)
def test_a_pushed_model_is_ready_and_has_the_digest_of_its_source(bench: Bench) -> None:
    source = bench.source("one")
    pushed = bench.push(source, bench.model())
    bench.under_test.settle()
    found = bench.get(pushed.ref)
    assert found.ready
    assert (found.registry, found.name) == (bench.registry.conn_type, bench.name)
    assert found.digest == pushed.digest == digest_directory(source)


@needs(PUSH)
def test_a_push_tells_that_it_moved_bytes(bench: Bench) -> None:
    stats = bench.push(bench.source("one"), bench.model()).transfer
    assert stats is not None
    assert not stats.skipped
    assert stats.sent_bytes > 0


@needs(PUSH, CHOOSE_VERSION)
def test_a_version_may_be_chosen(bench: Bench) -> None:
    for number, version in enumerate(bench.under_test.versions):
        assert bench.push(bench.source("one"), bench.model(number)).version == version


@needs(PUSH, CHOOSE_VERSION)
def test_a_version_left_out_is_derived_from_the_digest(bench: Bench) -> None:
    source = bench.source("one")
    assert bench.push(source, bench.name).version == version_of(digest_directory(source))


@needs(PUSH)
def test_pushing_the_same_bytes_again_is_skipped_and_makes_no_second_version(bench: Bench, other_bench: Bench) -> None:
    first = bench.publish("one", bench.model())
    again = other_bench.push(other_bench.source("one"), bench.model())
    assert again.transfer is not None
    assert again.transfer.skipped
    assert again.ref == first.ref
    assert bench.ready_versions(bench.name) == [first.version]


@needs(PUSH, CHOOSE_VERSION)
@pytest.mark.row("S10")
def test_other_bytes_under_the_same_version_conflict_and_change_nothing(bench: Bench) -> None:
    first = bench.publish("one", bench.model())
    other = bench.source("two")
    with pytest.raises(VersionConflict) as caught:
        bench.push(other, bench.model())
    assert str(first.digest) in str(caught.value)
    assert digest_directory(other) in str(caught.value)
    assert bench.get(first.ref) == first


@needs(PUSH, CHOOSE_VERSION, FORCE)
def test_force_replaces_a_version(bench: Bench) -> None:
    bench.publish("one", bench.model())
    other = bench.source("two")
    bench.push(other, bench.model(), force=True)
    bench.under_test.settle()
    assert bench.get(bench.model()).digest == digest_directory(other)
    assert len(bench.ready_versions(bench.name)) == 1


@needs(PUSH)
@pytest.mark.row("D4")
def test_an_unusable_source_is_refused_before_anything_is_sent(bench: Bench) -> None:
    before = bench.under_test.trace()
    for name, make in UNUSABLE.items():
        source = bench.source("one")
        make(source / name)
        with pytest.raises(InvalidInput, match=f"'{name}'"):
            bench.push(source, bench.model())
    assert bench.under_test.trace() == before


@needs(PUSH, LABELS)
def test_labels_given_with_the_same_bytes_are_merged(bench: Bench) -> None:
    source = bench.source("one")
    bench.publish("one", bench.model(), labels={"stage": "dev", "team": "risk"})
    again = bench.push(source, bench.model(), labels={"stage": "prod"})
    assert again.transfer is not None
    assert again.transfer.skipped
    bench.under_test.settle()
    assert again.labels == bench.get(again.ref).labels == {"stage": "prod", "team": "risk"}
    assert bench.push(source, bench.model()).labels == again.labels


@needs(PUSH, METADATA)
def test_metadata_given_with_the_same_bytes_is_kept_or_told_of(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    first = bench.publish("one", bench.model(), metadata={"auc": 0.5})
    same = bench.push(bench.source("one"), bench.model(), metadata={"auc": 0.5}).transfer
    assert same is not None
    assert same.metadata_kept
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    again = bench.push(bench.source("one"), bench.model(), metadata={"auc": 0.9})
    assert again.transfer is not None
    bench.under_test.settle()
    found = bench.get(first.ref).metadata
    assert (found, again.transfer.metadata_kept) in [({"auc": 0.5}, False), ({"auc": 0.9}, True)]
    assert again.transfer.metadata_kept or "given now for 'auc' is not kept" in caplog.text


@needs(PUSH)
def test_only_chosen_files_are_pushed(bench: Bench) -> None:
    source, plain = bench.source("one"), bench.source("one")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("[core]")
    (source / "notes.txt").write_text("left out")
    pushed = bench.push(source, bench.model(), exclude=["/notes.txt"])
    assert pushed.digest == digest_directory(plain)


@needs(PUSH)
@pytest.mark.row("D3")
def test_bytes_that_change_unseen_once_they_were_hashed_are_never_published(bench: Bench) -> None:
    source = bench.source("one")
    largest = max((path for path in source.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    with mapped(largest) as view:
        tree = read_tree(source, checked=bench.registry.checks)
        view[1000] ^= 1
        with pytest.raises(SourceChanged, match=largest.name):
            bench.push(tree, bench.model())
    bench.under_test.settle()
    assert bench.ready_versions(bench.name) == []
    assert bench.push(source, bench.model()).digest == digest_directory(source)


# Pull


@needs(PUSH, PULL)
def test_chosen_files_are_pulled_verified_and_are_no_whole_model(bench: Bench) -> None:
    version = bench.publish("one", bench.model())
    target = bench.target()
    pulled = bench.pull(version.ref, target, include=["*.bin", bench.under_test.below("tokenizer")], exclude=["empty"])
    assert sorted(path.name for path in target.rglob("*") if path.is_file()) == ["vocab größe.txt", "weights.bin"]
    assert pulled.is_partial
    assert pulled.digest == digest_directory(target) != version.digest
    assert bench.whole(pulled.version).digest == version.digest


@needs(PUSH, PULL)
def test_other_files_of_the_model_replace_those_of_the_last_pull_unless_somebody_has_touched_them(
    bench: Bench,
) -> None:
    version, target = bench.publish("one", bench.model()), bench.target()
    for patterns in (["*.bin"], [bench.under_test.below("tokenizer")], None, ["*.bin"]):
        pulled = bench.pull(version.ref, target, include=patterns)
        assert pulled.is_partial == (patterns is not None)
        assert pulled.digest == digest_directory(target)
        again = bench.pull(version.ref, target, include=patterns).version.transfer
        assert again is not None
        assert again.skipped
    (target / "mine").touch()
    with pytest.raises(TargetExists):
        bench.pull(version.ref, target)


@needs(PUSH, PULL)
@pytest.mark.row("H4")
def test_the_umask_and_the_parent_decide_about_modes(bench: Bench) -> None:
    version = bench.publish("one", bench.model())
    target = bench.target()
    target.parent.chmod(0o2770)
    before = os.umask(0o002)
    try:
        bench.pull(version.ref, target)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (target, *target.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o2775}
    assert {mode for path, mode in modes.items() if path.is_file()} <= {0o664, 0o775}


@needs(PUSH, PULL)
def test_the_next_version_replaces_what_the_last_pull_put_there_and_a_repeated_pull_moves_nothing(
    bench: Bench,
) -> None:
    first, second = (bench.publish(model, bench.model(number)) for number, model in enumerate(("one", "two")))
    target = bench.target()
    for version in (first, second):
        pulled = bench.pull(version.ref, target)
        assert digest_directory(target) == pulled.digest
        again = bench.pull(version.ref, target).version.transfer
        assert again is not None
        assert again.skipped
    (target / "mine").touch()
    with pytest.raises(TargetExists):
        bench.pull(first.ref, target)


@needs(PUSH, PULL)
@pytest.mark.once_each
@pytest.mark.row("H10")
@pytest.mark.parametrize("names", [UNUSUAL, MORE_UNUSUAL], ids=["unusual", "more unusual"])
def test_unusual_names_come_back_as_they_were_or_are_refused_before_anything_is_sent(
    bench: Bench, names: tuple[str, ...]
) -> None:
    source = write_tree(bench.source("one"), {name: name.encode() for name in names})
    before, refused, target = bench.under_test.trace(), "", bench.target()
    try:
        version = bench.push(source, bench.model())
    except InvalidInput as error:
        refused = str(error)
    if refused and names is MORE_UNUSUAL:
        assert any(show(name) in refused for name in names)
        assert bench.under_test.trace() == before
    else:
        assert not refused
        bench.under_test.settle()
        bench.pull(version.ref, target)
        assert snapshot(target) == snapshot(source)


@needs(PUSH, PULL)
def test_a_pull_of_no_file_is_refused_and_leaves_nothing(bench: Bench) -> None:
    version = bench.publish("one", bench.model())
    target = bench.target()
    with pytest.raises(InvalidInput, match="holds no file that is chosen") as caught:
        bench.pull(version.ref, target, include=["*.onnx"])
    assert caught.value.argument == "include"
    assert list(target.parent.iterdir()) == []


@needs(PULL)
def test_a_pulled_tree_equals_the_published_one(bench: Bench) -> None:
    published = bench.publish("one", bench.model())
    target = bench.target()
    pulled = bench.pull(published.ref, target)
    assert snapshot(target) == snapshot(bench.source("one"))
    assert (pulled.path, pulled.version.ref) == (target, published.ref)
    assert hidden(target.parent) == []


@needs(PULL)
def test_a_target_that_holds_exactly_the_model_is_left_alone(bench: Bench) -> None:
    published, target = bench.publish("one", bench.model()), bench.target()
    stats = [bench.pull(published.ref, target).version.transfer for _ in range(2)]
    assert [stat.skipped for stat in stats if stat] == [False, True]


@needs(PULL)
def test_force_replaces_what_a_target_holds(bench: Bench) -> None:
    published, target = bench.publish("one", bench.model()), bench.source("two")
    bench.pull(published.ref, target, force=True)
    assert snapshot(target) == snapshot(bench.source("one"))


@needs(PULL)
def test_without_a_version_the_newest_is_pulled(bench: Bench) -> None:
    for number, text in enumerate(("one", "two")):
        newest = bench.publish(text, bench.model(number))
    target = bench.target()
    assert bench.pull(bench.name, target).version.ref == newest.ref
    assert snapshot(target) == snapshot(bench.source("two"))


@needs(PULL)
def test_what_is_not_there_cannot_be_pulled_and_leaves_no_target(bench: Bench) -> None:
    target = bench.target()
    with pytest.raises(ModelNotFound):
        bench.pull(bench.name, target)
    assert not target.exists()


# Sync: what goes by way of a store goes from each registry to each other


@needs(PUSH)
def test_a_model_is_synced_here_and_found_the_next_time(bench: Bench, tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), bench.source("one")
    store.push(source, "fraud:v1")
    options = {"fraud": bench.under_test.push_options}
    chosen = Selection(models=["fraud"], rename={"fraud": bench.name}, options=options)
    for outcome in ("copied", "skipped"):
        assert [one.outcome for one in _synced(bench, chosen, store, is_target=True)] == [outcome]
        bench.under_test.settle()
    assert len(bench.ready_versions(bench.name)) == 1
    assert bench.get(bench.name).digest == digest_directory(source)


@needs(PULL)
def test_a_model_is_synced_from_here(bench: Bench, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    bench.publish("one", f"{bench.name}:v1" if bench.offers(CHOOSE_VERSION) else bench.name)
    chosen = Selection(models=[bench.name], rename={bench.name: "fraud"})
    (copied,) = _synced(bench, chosen, store, is_target=False)
    assert copied.outcome == "copied"
    store.pull("fraud", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(bench.source("one"))


def _synced(bench: Bench, chosen: Selection, store: Store, *, is_target: bool) -> tuple[SyncedVersion, ...]:
    """Sync with a store in a directory."""
    with bench.under_test.driver(bench.registry, None) as driver, driver_for(store.registry) as other:
        sides = [Side(store.registry, other), Side(bench.registry, driver)]
        source, target = sides if is_target else sides[::-1]
        return sync(source, target, chosen, Control(workers=2)).versions


# Reading, by both drivers


def test_latest_is_the_newest_ready_version(bench: Bench, run: Run) -> None:
    published = [bench.publish(text, bench.model(number)) for number, text in enumerate(("one", "two", "three"))]
    for model in (bench.name, f"{bench.name}:latest"):
        assert run(lambda registry, model=model: registry.get(registry.parse(model))).ref == published[-1].ref


def test_an_exact_version_is_read(bench: Bench, run: Run) -> None:
    first = bench.publish("one", bench.model(0))
    bench.publish("two", bench.model(1))
    assert bench.whole(run(lambda registry: registry.get(registry.parse(first.ref)))) == first


def test_versions_are_listed_newest_first(bench: Bench, run: Run) -> None:
    published = [bench.publish(text, bench.model(number)) for number, text in enumerate(("one", "two", "three"))]
    listed = run(lambda registry: registry.list_versions(bench.name, Query()))
    assert [version.ref for version in listed] == [version.ref for version in reversed(published)]
    assert [bench.whole(version).digest for version in listed] == [version.digest for version in reversed(published)]


@pytest.mark.once_each
def test_a_listed_version_is_few_objects_for_the_garbage_collector(bench: Bench, run: Run) -> None:
    """A full collection stops an event loop while it looks at all of them, of thousands of versions at a time."""
    bench.publish("one", bench.model(0))
    listed = run(lambda registry: registry.list_versions(bench.name, Query()))
    assert [containers_of(version) <= 6 for version in listed] == [True]


def test_models_are_listed_by_their_newest_version_newest_first(bench: Bench, run: Run) -> None:
    names = bench.under_test.names
    published = [bench.publish(name, bench.model(0, name)) for name in (names[1], names[0], names[2])]
    listed = run(lambda registry: registry.list_models(Query()))
    assert [version.ref for version in listed] == [version.ref for version in reversed(published)]


def test_models_are_chosen_by_words_of_their_name(bench: Bench, run: Run) -> None:
    for name in bench.under_test.names:
        bench.publish(name, bench.model(0, name))
    wanted = bench.under_test.names[2]
    listed = run(lambda registry: registry.list_models(Query.parse(wanted)))
    assert [version.name for version in listed] == [name for name in bench.under_test.names if wanted in name]


def test_a_model_that_is_not_there_is_not_found(bench: Bench, run: Run) -> None:
    with pytest.raises(ModelNotFound, match=bench.name):
        run(lambda registry: registry.get(registry.parse(bench.name)))
    assert run(lambda registry: registry.list_versions(bench.name, Query())) == []
    assert run(lambda registry: registry.list_models(Query())) == []


def test_a_version_that_is_not_there_is_not_found(bench: Bench, run: Run) -> None:
    published = bench.publish("one", bench.model())
    absent = bench.under_test.versions[1] if bench.under_test.versions else published.version[::-1]
    with pytest.raises(ModelNotFound):
        run(lambda registry: registry.get(ModelRef(name=bench.name, version=absent)))


def test_the_connection_test_says_who_and_where(bench: Bench, run: Run) -> None:
    assert run(lambda registry: registry.test())


# Labels and metadata


@needs(PUSH, PULL, SIGNATURES)
def test_a_signature_is_kept_beside_a_version_and_is_no_part_of_it(bench: Bench) -> None:
    source, first, second = bench.source("one"), b'{"by": "us"}', b'{"by": "them"}'
    pushed = bench.push(source, bench.model(), sign=lambda model, name: first)
    bench.under_test.settle()

    def kept() -> set[bytes]:
        return set(bench.run(lambda registry: KeepsSignatures.of(registry).signatures(bench.get(pushed.ref))))

    assert pushed.digest == digest_directory(source)
    assert kept() == {first}
    with suppress(NotSupported):  # where it can only come with the push
        bench.run(lambda registry: KeepsSignatures.of(registry).keep_signature(bench.get(pushed.ref), second))
        assert kept() == {first, second}
    if bench.offers(LABELS):
        bench.run(lambda registry: registry.set_labels(registry.parse(pushed.ref), {"stage": "prod"}))
        assert first in kept()
    now, target = bench.get(pushed.ref), bench.target()
    assert now.digest == pushed.digest
    bench.pull(pushed.ref, target)
    assert snapshot(target) == snapshot(source)


@needs(PUSH, PULL, SIGNATURES)
def test_what_nobody_has_signed_has_no_signature(bench: Bench) -> None:
    version = bench.publish("one", bench.model())

    assert bench.run(lambda registry: KeepsSignatures.of(registry).signatures(version)) == []


@needs(PUSH, LABELS)
def test_labels_are_kept(bench: Bench) -> None:
    published = bench.publish("one", bench.model(), labels={"stage": "prod", "team": "risk"})
    assert published.labels == {"stage": "prod", "team": "risk"}


@needs(PUSH, LABELS)
def test_labels_choose_among_versions(bench: Bench, run: Run) -> None:
    labelled = bench.publish("one", bench.model(0), labels={"stage": "prod"})
    bench.publish("two", bench.model(1), labels={"stage": "dev"})
    for query in (Query.parse("label:stage=prod"), Query.parse("label:stage=prod,test")):
        assert run(lambda registry, query=query: registry.get(registry.parse(bench.name), query)).ref == labelled.ref
        for flow in (
            lambda r, query=query: r.list_versions(bench.name, query),
            lambda r, query=query: r.list_models(query),
            lambda r, query=query: r.list_all(query),
        ):
            assert [version.ref for version in run(flow)] == [labelled.ref]
    with pytest.raises(ModelNotFound):
        run(lambda registry: registry.get(registry.parse(bench.name), Query.parse("label:stage=test")))


@needs(PUSH)
def test_an_exact_version_must_be_the_one_that_is_asked_for(bench: Bench) -> None:
    published = bench.publish("one", bench.model())
    assert bench.get(published.ref, Query.parse(published.name[:3])).ref == published.ref
    for query, difference in (("banana", "does not hold 'banana'"), ("label:stage=approved", "no label 'stage'")):
        with pytest.raises(ModelNotFound, match=difference):
            bench.get(published.ref, Query.parse(query))


@needs(PUSH, LABELS)
def test_an_exact_version_must_have_the_labels_that_are_asked_for(bench: Bench) -> None:
    published = bench.publish("one", bench.model(), labels={"stage": "dev"})
    assert bench.get(published.ref, Query.parse("label:stage")).ref == published.ref
    with pytest.raises(ModelNotFound, match=r"label 'stage' is 'dev', not 'approved'"):
        bench.get(published.ref, Query.parse("label:stage=approved"))


@needs(PUSH, LABELS)
def test_labels_are_merged_and_none_removes(bench: Bench) -> None:
    published = bench.publish("one", bench.model(), labels={"stage": "dev", "team": "risk"})
    change = {"stage": "prod", "team": None, "more": "x"}
    changed = bench.run(lambda registry: registry.set_labels(registry.parse(published.ref), change))
    assert changed.labels == {"stage": "prod", "more": "x"}
    found = bench.get(published.ref)
    assert (found.labels, found.digest) == (changed.labels, published.digest)


@needs(LABELS)
def test_labels_of_what_is_not_there_cannot_change(bench: Bench) -> None:
    with pytest.raises(ModelNotFound):
        bench.run(lambda registry: registry.set_labels(registry.parse(bench.name), {"stage": "prod"}))


@needs(PUSH, METADATA)
def test_metadata_comes_back_as_it_was(bench: Bench) -> None:
    metadata = {"auc": 0.93, "größe": [1, None, True, {"nested": "x"}]}
    assert bench.publish("one", bench.model(), metadata=metadata).metadata == metadata


# Aliases


def _set(bench: Bench, version: ModelVersion, alias: str = "champion", expected: str | None = None) -> Alias:
    return bench.run(lambda registry: Aliases.of(registry).set_alias(version, alias, expected=expected))


def _alias(bench: Bench, alias: str = "champion") -> Alias:
    return bench.run(lambda registry: registry.alias(bench.name, alias))


def _published(bench: Bench, *texts: str) -> list[ModelVersion]:
    return [bench.publish(text, bench.model(number)) for number, text in enumerate(texts)]


@needs(PUSH, ALIASES)
def test_an_alias_is_followed_to_an_exact_version_that_tells_of_it(bench: Bench, run: Run) -> None:
    first, _ = _published(bench, "one", "two")
    moved = _set(bench, first)
    bench.under_test.settle()
    assert (moved.version, moved.ref, str(moved)) == (first.version, first.ref, f"{bench.name}@champion")
    found = bench.whole(run(lambda registry: registry.get(registry.parse(f"{bench.name}@champion"))))
    assert (found.ref, found.digest, found.alias) == (first.ref, first.digest, "champion")
    assert "champion" in found.aliases
    assert found.to_xcom()["ref"] == first.ref
    assert found.to_event()["alias"] == "champion"


@needs(PUSH, ALIASES)
def test_an_alias_moves_and_is_one_version_s_at_a_time(bench: Bench, run: Run) -> None:
    first, second = _published(bench, "one", "two")
    for version in (first, second, second, first):
        _set(bench, version)
        bench.under_test.settle()
        assert run(lambda registry: registry.alias(bench.name, "champion")).version == version.version
    for listed in run(lambda registry: registry.list_versions(bench.name, Query())):
        assert listed.aliases in ((), ("champion",) if listed.version == first.version else ())


@needs(PUSH, ALIASES)
def test_an_alias_remembers_where_it_pointed(bench: Bench) -> None:
    first, second = _published(bench, "one", "two")
    for version in (first, second):
        _set(bench, version)
        bench.under_test.settle()
    earlier = [held.version for held in _alias(bench).earlier]
    assert earlier == ([first.version] if Aliases.of(bench.registry).remembers else [])


@needs(PUSH, ALIASES)
def test_aliases_are_listed_by_their_names(bench: Bench, run: Run) -> None:
    first, second = _published(bench, "one", "two")
    _set(bench, second, "staging")
    _set(bench, first)
    bench.under_test.settle()
    found = run(lambda registry: Aliases.of(registry).aliases(bench.name))
    ours = [alias for alias in found if alias.alias in ("champion", "staging")]
    assert [(alias.alias, alias.version) for alias in ours] == [
        ("champion", first.version),
        ("staging", second.version),
    ]
    assert run(lambda registry: Aliases.of(registry).aliases(bench.under_test.names[1])) == []


@needs(PUSH, ALIASES)
def test_an_alias_that_has_been_moved_by_another_stays_where_it_is(bench: Bench, other_bench: Bench) -> None:
    first, second = _published(bench, "one", "two")
    _set(bench, first, expected=NOBODY)
    bench.under_test.settle()
    for expected in (NOBODY, second.version):
        with pytest.raises(VersionConflict, match=first.version):
            _set(other_bench, second, expected=expected)
    assert _set(other_bench, first, expected=second.version).version == first.version, "it is there already"
    assert _set(other_bench, second, expected=first.version).version == second.version


@needs(PUSH, ALIASES)
def test_a_removed_alias_leaves_the_version_alone(bench: Bench) -> None:
    (first,) = _published(bench, "one")
    _set(bench, first)
    bench.under_test.settle()
    for was_there in (True, False):
        assert bench.run(lambda registry: Aliases.of(registry).delete_alias(bench.name, "champion")) is was_there
        bench.under_test.settle()
    with pytest.raises(ModelNotFound, match="champion"):
        bench.get(f"{bench.name}@champion")
    found = bench.get(first.ref)
    assert (found.digest, found.labels, found.metadata) == (first.digest, first.labels, first.metadata)
    assert _set(bench, first, expected=NOBODY).version == first.version


@needs(PUSH, ALIASES)
def test_an_alias_that_is_not_there_is_not_found(bench: Bench, run: Run) -> None:
    with pytest.raises(ModelNotFound):
        run(lambda registry: registry.get(registry.parse(f"{bench.name}@champion")))
    _published(bench, "one")
    with pytest.raises(ModelNotFound, match="champion"):
        run(lambda registry: registry.get(registry.parse(f"{bench.name}@champion")))


@needs(PUSH, ALIASES, DELETE)
def test_an_alias_of_a_deleted_version_is_not_found(bench: Bench) -> None:
    first, _ = _published(bench, "one", "two")
    _set(bench, first)
    bench.run(lambda registry: registry.delete(registry.parse(first.ref)))
    with pytest.raises(ModelNotFound):
        bench.get(f"{bench.name}@champion")


@needs(PUSH, PULL, ALIASES)
def test_what_an_alias_points_to_is_pulled(bench: Bench) -> None:
    first, _ = _published(bench, "one", "two")
    _set(bench, first)
    bench.under_test.settle()
    target = bench.target()
    assert bench.pull(f"{bench.name}@champion", target).version.ref == first.ref
    assert snapshot(target) == snapshot(bench.source("one"))


@needs(PUSH, ALIASES)
def test_nothing_is_pushed_to_an_alias(bench: Bench) -> None:
    source, before = bench.source("one"), bench.under_test.trace()
    with pytest.raises(InvalidInput, match="alias"):
        bench.push(source, f"{bench.name}@champion")
    assert bench.under_test.trace() == before


@needs(PUSH, ALIASES)
def test_bad_aliases_are_refused_before_anything_is_written_or_sent(bench: Bench) -> None:
    before = bench.under_test.trace()
    for bad in bench.under_test.bad_aliases:
        with pytest.raises(InvalidInput):
            bench.registry.check(ModelRef(name=bench.name, alias=bad))
    with pytest.raises(InvalidInput):
        bench.registry.parse(f"{bench.name}@")
    assert bench.under_test.trace() == before


@needs(PUSH, ALIASES)
def test_of_two_who_move_an_alias_at_once_one_wins(bench: Bench, other_bench: Bench) -> None:
    if not Aliases.of(bench.registry).compares:
        pytest.skip("the system moves aliases without a condition: both may believe that they have")
    first, second, third = _published(bench, "one", "two", "three")
    _set(bench, first)
    bench.under_test.settle()
    results = at_once(
        lambda: _set(bench, second, expected=first.version), lambda: _set(other_bench, third, expected=first.version)
    )
    assert {type(result) for result in results} == {Alias, VersionConflict}
    winner = second if isinstance(results[0], Alias) else third
    assert _alias(bench).version == winner.version


# Promotion and rollback


def _promoted(bench: Bench, version: ModelVersion, *when: dict[str, Any]) -> str:
    done = bench.run(lambda registry: promote(registry, version.ref, "champion", when)).outcome
    bench.under_test.settle()
    return done


@needs(PUSH, ALIASES, METADATA)
def test_the_better_version_is_promoted_and_the_worse_is_not(bench: Bench) -> None:
    first, second, third = (
        bench.publish(text, bench.model(number), metadata={"auc": auc})
        for number, (text, auc) in enumerate((("one", 0.9), ("two", 0.93), ("three", 0.931)))
    )
    when = {"metric": "auc", "at_least": 0.005}
    outcomes = [_promoted(bench, version, when) for version in (first, second, third, second)]
    assert outcomes == ["promoted", "promoted", "refused", "there"]
    assert _alias(bench).version == second.version


@needs(PUSH, ALIASES)
def test_a_rollback_leads_to_the_version_before_or_to_the_one_that_is_named(bench: Bench) -> None:
    first, second, third = _published(bench, "one", "two", "three")
    for version in (first, second, third):
        _promoted(bench, version)
    if Aliases.of(bench.registry).remembers:
        done = bench.run(lambda registry: rollback(registry, bench.name, "champion"))
        assert (done.before, done.version.ref) == (third.ref, second.ref)
        bench.under_test.settle()
    else:
        with pytest.raises(NotSupported, match="name the version"):
            bench.run(lambda registry: rollback(registry, bench.name, "champion"))
    bench.run(lambda registry: rollback(registry, bench.name, "champion", first.version))
    assert _alias(bench).version == first.version


@needs(PUSH, ALIASES)
def test_a_move_of_an_alias_is_waited_for(bench: Bench, run: Run) -> None:
    first, second = _published(bench, "one", "two")

    def found(**options: Any) -> str | None:
        model = f"{bench.name}@champion"
        version = run(lambda registry: find_version(registry, model, Query(), **options))
        return version and version.ref

    assert found() is None
    _promoted(bench, second)
    assert (found(), found(newer_than=second.version)) == (second.ref, None)
    _promoted(bench, first)
    assert found(newer_than=second.version) == first.ref, "older, but another one"


@needs(PUSH, ALIASES)
def test_of_two_who_promote_at_once_one_wins(bench: Bench, other_bench: Bench) -> None:
    if not Aliases.of(bench.registry).compares:
        pytest.skip("the system moves aliases without a condition: both may believe that they have")
    first, second, third = _published(bench, "one", "two", "three")
    _promoted(bench, first)
    done = at_once(lambda: _promoted(bench, second), lambda: _promoted(other_bench, third))
    assert done == ["promoted", "promoted"], "one after the other, whatever was tried at once"
    alias = _alias(bench)
    assert alias.version in (second.version, third.version)
    if Aliases.of(bench.registry).remembers:
        held = [alias.version, *(held.version for held in alias.earlier)]
        assert sorted(map(str, held)) == sorted([first.version, second.version, third.version])


# Deleting


@needs(DELETE)
def test_a_deleted_version_is_gone_and_others_stay(bench: Bench) -> None:
    first, second = bench.publish("one", bench.model(0)), bench.publish("two", bench.model(1))
    assert bench.run(lambda registry: registry.delete(registry.parse(second.ref))) is True
    assert bench.ready_versions(bench.name) == [first.version]
    assert bench.get(bench.name).ref == first.ref
    with pytest.raises(ModelNotFound):
        bench.get(second.ref)


@needs(DELETE)
@pytest.mark.row("S13")
def test_deleting_what_is_gone_is_no_error(bench: Bench) -> None:
    published = bench.publish("one", bench.model())
    bench.run(lambda registry: registry.delete(registry.parse(published.ref)))
    assert bench.run(lambda registry: registry.delete(registry.parse(published.ref))) is False


@needs(PUSH, DELETE)
def test_a_deleted_version_may_be_pushed_again(bench: Bench) -> None:
    published = bench.publish("one", bench.model())
    bench.run(lambda registry: registry.delete(registry.parse(published.ref)))
    assert bench.publish("one", bench.model()).digest == published.digest


# Pruning


@needs(PUSH, DELETE)
def test_a_prune_keeps_the_newest_and_deletes_older_ones(bench: Bench) -> None:
    first, second, third = _published(bench, "one", "two", "three")
    rules = Retention(models=[bench.name], keep_last=2)
    told = bench.run(lambda registry: prune(registry, rules))
    assert (told.dry_run, [entry.ref for entry in told.of("deleted")]) == (True, [first.ref])
    assert len(bench.ready_versions(bench.name)) == 3
    done = bench.run(lambda registry: prune(registry, rules, dry_run=False))
    assert [entry.ref for entry in done.of("deleted")] == [first.ref]
    bench.under_test.settle()
    assert bench.ready_versions(bench.name) == [third.version, second.version]


@needs(PUSH, DELETE, ALIASES)
def test_a_prune_keeps_what_an_alias_points_to(bench: Bench) -> None:
    first, _, third = _published(bench, "one", "two", "three")
    _set(bench, first)
    bench.under_test.settle()
    rules = Retention(models=[bench.name], keep_last=1)
    bench.run(lambda registry: prune(registry, rules, dry_run=False))
    bench.under_test.settle()
    assert set(bench.ready_versions(bench.name)) == {first.version, third.version}
    assert bench.get(f"{bench.name}@champion").ref == first.ref


# What a registry lacks

PART_OF_PUSH = {CHOOSE_VERSION, FORCE, LABELS, METADATA, SIGNATURES}


def _use(bench: Bench, capability: Capability) -> None:
    """Ask for what needs a capability."""
    source = Path("/absent")  # refused before it would be looked at
    ref = ModelRef(name=bench.name, version="v1")
    match capability:
        case Capability.PUSH:
            bench.push(source, bench.name)
        case Capability.CHOOSE_VERSION:
            bench.push(source, f"{bench.name}:v1")
        case Capability.FORCE:
            bench.push(source, bench.model(), force=True)
        case Capability.LABELS:
            with pytest.raises(NotSupported):
                bench.run(lambda registry: registry.set_labels(ref, {"stage": "prod"}))
            bench.push(source, bench.model(), labels={"stage": "prod"})
        case Capability.METADATA:
            bench.push(source, bench.model(), metadata={"auc": 0.9})
        case Capability.ALIASES:
            bench.run(lambda registry: Aliases.of(registry).aliases(bench.name))
        case Capability.SIGNATURES:
            with pytest.raises(InvalidInput):
                Checks.of(bench.registry, signatures="require", trusted_signers=[__file__])
            bench.push(source, bench.model(), sign=lambda model, name: b"{}")
        case Capability.PULL:
            bench.pull(bench.name, bench.target())
        case Capability.DELETE:
            bench.run(lambda registry: registry.delete(ref))
        case Capability.DEPLOY:
            for ask in (lambda r: Deploys.of(r).deployment("d"), lambda r: Deploys.of(r).undeploy("d")):
                with pytest.raises(NotSupported):
                    bench.run(ask)
            bench.run(lambda registry: find_deployment(registry, "d"))
        case Capability.PREDICT:
            with bench.under_test.driver(bench.registry, None) as driver:
                with pytest.raises(NotSupported):
                    start_predict(bench.registry, driver, "d", {})
                predict(bench.registry, driver, "d", {}, Control())


def test_what_a_registry_derives_from_and_what_it_says_it_does_agree(bench: Bench) -> None:
    for offer in (Aliases, Deploys, KeepsSignatures, Predicts):
        assert isinstance(bench.registry, offer) == (offer.capability in bench.registry.capabilities)


def test_what_is_missing_is_refused_with_the_system_and_the_nearest_thing(bench: Bench, missing: Capability) -> None:
    before = bench.under_test.trace()
    with pytest.raises(NotSupported) as caught:
        _use(bench, missing)
    told = str(missing if bench.offers(PUSH) or missing not in PART_OF_PUSH else PUSH)
    refusal, _, hint = str(caught.value).partition("; ")
    assert refusal == f"{bench.registry.title} does not offer to {told}"
    assert hint
    assert bench.under_test.trace() == before


# Names


def test_good_names_are_taken(bench: Bench) -> None:
    for name in bench.under_test.names:
        assert bench.publish(name, bench.model(0, name)).name == name


@pytest.mark.row("H11")
def test_bad_names_are_refused_before_anything_is_written_or_sent(bench: Bench, run: Run) -> None:
    before = bench.under_test.trace()
    assert bench.under_test.bad_names
    for bad in bench.under_test.bad_names:
        for verb in (bench.registry.check, lambda ref: bench.registry.parse(ref.name)):
            with pytest.raises(InvalidInput):
                verb(ModelRef(name=bad))
        with pytest.raises(InvalidInput):
            run(lambda registry, bad=bad: registry.get(registry.parse(bad)))
    assert bench.under_test.trace() == before


@needs(PUSH)
@pytest.mark.row("H11")
def test_a_push_under_a_bad_name_is_refused_before_anything_is_written_or_sent(bench: Bench) -> None:
    source, before = bench.source("one"), bench.under_test.trace()
    for bad in bench.under_test.bad_names:
        with pytest.raises(InvalidInput):
            bench.push(source, bad)
    assert bench.under_test.trace() == before


@needs(PUSH, CHOOSE_VERSION)
@pytest.mark.row("H11")
def test_a_push_under_a_bad_version_is_refused_before_anything_is_written_or_sent(bench: Bench) -> None:
    source, before = bench.source("one"), bench.under_test.trace()
    assert bench.under_test.bad_versions
    for bad in bench.under_test.bad_versions:
        with pytest.raises(InvalidInput):
            bench.push(source, f"{bench.name}:{bad}")
    assert bench.under_test.trace() == before


@pytest.mark.row("H11")
def test_latest_is_never_a_version(bench: Bench) -> None:
    with pytest.raises(InvalidInput):
        bench.registry.check(ModelRef(name=bench.name, version="latest"))


# Cancelling


def _cancelled_ever_later(work: Callable[[Control], Any], check: Callable[[], None]) -> int:
    """Do work again and again, cancelled after ever more looks at the token, until it ends by itself.

    :param check: called after each cancellation.
    :return: how often it was cancelled.
    """
    looks = cancelled = 0
    while True:
        try:
            work(Control(cancel=CancelAfter(looks), workers=2))
        except Cancelled:
            check()
        else:
            return cancelled
        cancelled += 1
        looks += 1 + looks // 8  # every look at first, then ever fewer of them


@needs(PUSH)
def test_a_cancelled_push_leaves_no_ready_version_unless_it_was_whole_and_the_next_one_succeeds(bench: Bench) -> None:
    source, model = bench.source("one"), bench.model()
    left: list[int] = []

    def check() -> None:
        ready = bench.ready_versions(bench.name)
        left.append(len(ready))
        for version in ready:  # the cancellation came after the request that published it
            assert bench.get(f"{bench.name}:{version}").digest == digest_directory(source)

    _cancelled_ever_later(lambda control: bench.push(source, model, control=control), check)
    assert left.count(0) > 3
    assert set(left) <= {0, 1}
    bench.under_test.settle()
    assert bench.get(bench.name).digest == digest_directory(source)
    assert len(bench.ready_versions(bench.name)) == 1


@needs(PULL)
def test_a_cancelled_pull_leaves_no_target_and_the_next_one_succeeds(bench: Bench) -> None:
    published, target = bench.publish("one", bench.model()), bench.target()

    def check() -> None:
        assert not target.exists()

    assert _cancelled_ever_later(lambda control: bench.pull(published.ref, target, control=control), check) > 3
    assert snapshot(target) == snapshot(bench.source("one"))


# Two workers at once


@needs(PUSH)
@pytest.mark.row("D6")
def test_two_workers_pushing_the_same_bytes_both_succeed_with_them(bench: Bench, other_bench: Bench) -> None:
    source, model = bench.source("one"), bench.model()
    results = at_once(lambda: bench.push(source, model), lambda: other_bench.push(source, model))
    bench.under_test.settle()
    assert [getattr(result, "digest", result) for result in results] == [digest_directory(source)] * 2
    if bench.offers(CHOOSE_VERSION):
        assert len(bench.ready_versions(bench.name)) == 1


@needs(PUSH, CHOOSE_VERSION)
@pytest.mark.row("D6")
def test_two_workers_pushing_other_bytes_under_one_version_end_in_one_of_them(bench: Bench, other_bench: Bench) -> None:
    sources, model = [bench.source("one"), bench.source("two")], bench.model()
    results = at_once(lambda: bench.push(sources[0], model), lambda: other_bench.push(sources[1], model))
    bench.under_test.settle()
    assert {type(result) for result in results} <= {ModelVersion, VersionConflict}
    won = [source for source, result in zip(sources, results, strict=True) if isinstance(result, ModelVersion)]
    assert len(won) == 1 or (won and not bench.registry.publishes_once)
    assert bench.get(model).digest in map(digest_directory, won)
