"""``airflow modelsync`` as people and scripts meet it.

Signals and a terminal need a process of Airflow's own; all else is called in this one.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

from airflow_provider_modelsync.compat import READS_FORMS
from airflow_provider_modelsync.core.archive.digest import digest_directory
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.provider_info import get_provider_info
from tests.conftest import Connect
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.http_server import Delay
from tests.support.cloud import changes, running_cloud
from tests.support.command import Run, airflow, modelsync_alone
from tests.support.keys import keys
from tests.support.pipelines import running_instance
from tests.support.until import until
from tests.ui.servers import GOOD, SERVERS, UNREACHABLE, WRONG

AIRFLOW = (sys.executable, "-m", "airflow")
MODELSYNC: tuple[str, ...] = (*AIRFLOW, "modelsync")
CALLED = "airflow modelsync"
if not READS_FORMS:  # before Airflow 3.2 no commands were taken from providers either
    MODELSYNC = (sys.executable, "-c", "from airflow_provider_modelsync.cli.definition import main; main()")
    CALLED = "modelsync"
CANARY = "canary-4f1c0de5"
KILL_LIMIT = 4.0  # seconds from the signal to the end
TRY_AGAIN = 75


def modelsync(*arguments: str | Path, **env: str) -> Run:
    """Run a command that is to succeed."""
    run = airflow("modelsync", *arguments, **env)
    assert run.status == 0, run.stderr
    return run


def refused(*arguments: str | Path, code: int) -> str:
    """Run a command that is to fail, and return what it says about that."""
    run = airflow("modelsync", *arguments)
    assert (run.status, run.stdout) == (code, ""), run.stderr
    assert "Traceback" not in run.stderr
    *_, (begin, _) = [at for at in enumerate(run.stderr.splitlines()) if at[1].startswith(f"{CALLED} ")]
    lines = run.stderr.splitlines()[begin:]
    assert lines[0].startswith(f"{CALLED} {arguments[0]} failed: ")
    assert lines[-1].endswith(f"(exit status {code})")
    assert any(line.startswith("  what to do: ") for line in lines)
    return "\n".join(lines)


def test_a_command_of_its_own_does_the_same(modelstore: Path, source: Path) -> None:
    run = modelsync_alone("push", source, "digits:v1", "--json")
    assert (run.status, json.loads(run.stdout)["ref"]) == (0, "digits:v1")
    assert modelsync_alone("ls").stdout == modelsync("ls").stdout != ""
    assert modelsync_alone("alias", "ls", "digits").status == 0

    for missing in (modelsync_alone("show", "absent"), airflow("modelsync", "show", "absent")):
        assert missing.status == 1
        assert "absent" in missing.stderr.partition("modelsync show failed: ")[2].splitlines()[0]
    assert modelsync_alone("show").status == modelsync_alone().status == 2
    assert "Move models in and out of registries" in modelsync_alone("--help").stdout


@pytest.fixture
def server(tmp_path: Path, connect: Connect) -> Iterator[BentoCloudStandIn]:
    """A BentoCloud behind the default connection."""
    with BentoCloudStandIn(tmp_path / "cloud") as server:
        extra = {"timeout_seconds": 60}
        connect("modelsync_default", conn_type="bentocloud", host=server.url, password=server.token, extra=extra)
        yield server


def test_a_model_goes_up_is_found_and_comes_back(modelstore: Path, source: Path, tmp_path: Path) -> None:
    pushed = modelsync("push", source, "digits:v1", "--label", "stage=dev", "--metadata", '{"acc": 0.5}', "--json")
    listed = modelsync("ls", "label:stage=dev")
    shown = modelsync("show", "digits")
    pulled = modelsync("pull", "digits", tmp_path / "pulled", "--label", "stage=dev")

    told = json.loads(pushed.stdout)
    assert (told["ref"], told["labels"], told["metadata"]) == ("digits:v1", {"stage": "dev"}, {"acc": 0.5})
    assert (told["skipped"], told["resumed_bytes"]) == (False, 0)
    assert "pushing digits:v1: 10.0 KiB of 10.0 KiB (100 %)" in pushed.stderr
    head, row = listed.stdout.splitlines()
    assert head.split() == ["NAME", "VERSION", "SIZE", "CREATED", "LABELS"]
    assert row.split()[:4] == ["digits", "v1", "10.0", "KiB"]
    assert row.endswith("stage=dev")
    facts = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert facts["digest"] == told["digest"] == digest_directory(tmp_path / "pulled")
    assert facts["metadata"] == "acc=0.5"
    assert pulled.stdout == f"pulled digits:v1 (10.0 KiB) in {tmp_path / 'pulled'}\n"
    for run in (listed, shown):
        assert run.stderr == ""


def test_what_is_there_already_is_neither_sent_nor_fetched(modelstore: Path, source: Path, tmp_path: Path) -> None:
    ModelStoreHook("modelsync_default").push(source, "digits:v1")
    ModelStoreHook("modelsync_default").pull("digits:v1", tmp_path / "pulled")

    again = modelsync("push", source, "digits:v1")
    pulled = modelsync("pull", "digits:v1", tmp_path / "pulled", "--json")

    assert again.stdout == "digits:v1 is there already\n"
    told = json.loads(pulled.stdout)
    assert (told["path"], told["skipped"]) == (str(tmp_path / "pulled"), True)


def test_a_sync_says_what_it_would_do_and_does_it(
    modelstore: Path, connect: Connect, source: Path, tmp_path: Path
) -> None:
    connect("backup", conn_type="modelstore", host=(tmp_path / "backup").as_uri())
    hook = ModelStoreHook("modelsync_default")
    for ref in ("churn:v1", "digits:v1", "digits:v2"):
        hook.push(source, ref)
    wanted = ("sync", "modelsync_default", "backup", "--models", "digits", "chu*", "--versions", "all")

    would = modelsync(*wanted, "--rename", "churn=attrition", "--dry-run")
    assert not (tmp_path / "backup").exists()
    done = modelsync(*wanted, "--rename", "churn=attrition", "--json")

    *lines, counts = would.stdout.splitlines()
    assert lines == [
        f"{ref} would be copied as {ref.replace('churn', 'attrition')}"
        for ref in ("churn:v1", "digits:v1", "digits:v2")
    ]
    assert counts == "3 would be copied, 0 skipped, 0 failed"
    told = json.loads(done.stdout)
    assert told["counts"] == {"copied": 3, "skipped": 0, "failed": 0}
    assert [version["target"] for version in told["copied"]] == ["attrition:v1", "digits:v1", "digits:v2"]
    assert {version.ref for version in ModelStoreHook("backup").list_models()} == {"attrition:v1", "digits:v2"}


def test_a_sync_that_lacks_a_model_copies_the_others_and_fails(
    modelstore: Path, connect: Connect, source: Path, tmp_path: Path
) -> None:
    connect("backup", conn_type="modelstore", host=(tmp_path / "backup").as_uri())
    ModelStoreHook("modelsync_default").push(source, "digits:v1")

    run = airflow("modelsync", "sync", "modelsync_default", "backup", "--models", "digits", "absent")

    assert run.status == 1
    assert run.stdout.splitlines()[-1] == "1 copied, 0 skipped, 1 failed"
    assert ModelStoreHook("backup").get("digits").version == "v1"


def test_what_is_refused_is_told_in_one_block(modelstore: Path, tmp_path: Path) -> None:
    assert "no version 'v1' of 'digits'" in refused("pull", "digits:v1", tmp_path / "pulled", code=1)
    assert not (tmp_path / "pulled").exists()
    missing = refused("ls", "--conn-id", "nonesuch", code=1)
    assert "`nonesuch` isn't defined" in missing
    assert "airflow connections add nonesuch" in missing


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("push", "/srv/model"), "model"),
        (("push", "/srv/model", "digits", "--label", "stage"), "'stage' is not KEY=VALUE"),
        (("sync", "one", "other", "--versions", "some"), "'some' is neither"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_done(arguments: tuple[str, ...], complaint: str) -> None:
    told = airflow("modelsync", *arguments)

    assert told.status == 2
    assert complaint in told.stderr


@pytest.mark.parametrize("conn_type", SERVERS)
def test_good_wrong_and_unreachable_credentials_are_told_apart(
    conn_type: str, connect: Connect, tmp_path: Path, no_waiting: None
) -> None:
    with SERVERS[conn_type](tmp_path) as cases:
        for name in (GOOD, WRONG, UNREACHABLE):
            connect(f"its_{name}", conn_type=conn_type, **cases[name].fields())

        assert isinstance(json.loads(modelsync("ls", "--conn", "its_good", "--json").stdout), list)
        wrong = refused("ls", "--conn", "its_wrong", code=1)
        unreachable = refused("ls", "--conn", "its_unreachable", code=TRY_AGAIN)

    for name, told in ((WRONG, wrong), (UNREACHABLE, unreachable)):
        assert cases[name].answer in told
        assert f"  connection:  its_{name} (" in told
    assert "canary" not in wrong + unreachable


def test_threads_parts_references_and_all_versions_are_for_the_command_line_too(
    server: BentoCloudStandIn, source: Path, tmp_path: Path
) -> None:
    reference = ":".join(server.seed_huggingface("Google-BERT/bert", "a" * 40))
    cloud = ("-c", "modelsync_default")
    pushed = modelsync("push", source, "digits:v1", *cloud, "--threads", "2", "--part-size-mib", "8")
    assert pushed.stdout.startswith("pushed digits:v1")
    skipped = modelsync("pull", reference, tmp_path / "pulled", *cloud, "-t", "2", "--on-reference", "skip")
    assert skipped.stdout == f"{reference} only points to Google-BERT/bert at huggingface, revision {'a' * 40}\n"
    assert not (tmp_path / "pulled").exists()
    listed = json.loads(modelsync("ls", "sort:created_at-asc", "--all-versions", *cloud, "--json").stdout)
    assert [one["ref"] for one in listed] == [reference, "digits:v1"]
    assert "field:       threads" in refused("push", source, "digits:v2", *cloud, "--threads", "65", code=1)


def test_a_verbose_refusal_tells_where_it_comes_from_and_no_secret(server: BentoCloudStandIn, connect: Connect) -> None:
    connect("wrong", conn_type="bentocloud", host=server.url, password=CANARY)
    denied = airflow("modelsync", "ls", "--conn", "wrong", "--verbose")

    assert (denied.status, denied.stdout) == (1, "")
    assert "Traceback" in denied.stderr
    assert f"connection:  wrong ({server.url})" in denied.stderr
    assert CANARY not in denied.stderr


def test_connections_may_be_kept_by_a_secrets_backend(source: Path, tmp_path: Path) -> None:
    kept = {"kept_secret": {"conn_type": "modelstore", "host": (tmp_path / "store").as_uri()}}
    (tmp_path / "connections.json").write_text(json.dumps(kept))
    backend = {
        "AIRFLOW__SECRETS__BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
        "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({"connections_file_path": str(tmp_path / "connections.json")}),
    }
    run = modelsync("push", source, "digits:v1", "--conn-id", "kept_secret", "--json", **backend)

    assert json.loads(run.stdout)["ref"] == "digits:v1"


def test_connections_may_be_kept_in_the_metadata_database(airflow_database: Path, source: Path, tmp_path: Path) -> None:
    store = (tmp_path / "store").as_uri()
    added = airflow("connections", "add", "kept_inside", "--conn-type", "modelstore", "--conn-host", store)
    assert added.status == 0, added.stderr

    run = modelsync("push", source, "digits:v1", "--conn-id", "kept_inside", "--json")

    assert json.loads(run.stdout)["ref"] == "digits:v1"


def test_airflow_tests_a_connection(modelstore: Path) -> None:
    run = airflow("connections", "test", "modelsync_default", AIRFLOW__CORE__TEST_CONNECTION="Enabled")

    assert run.status == 0, run.stderr
    assert "Connection success!" in run.stdout


def begun(server: BentoCloudStandIn, source: Path) -> subprocess.Popen[str]:
    """Start a push whose bytes the server is slow to take, and wait until they are on the way."""
    server.transmission_strategy = "proxy"
    server.fault("PUT", "upload", Delay(30), times=None)
    command = (*MODELSYNC, "push", str(source), "digits:v1")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: server.find("PUT", path="upload") or process.poll() is not None, "bytes to be on the way")
    assert process.poll() is None
    return process


def test_ctrl_c_ends_a_push_cleanly(server: BentoCloudStandIn, source: Path) -> None:
    process = begun(server, source)
    assert process.stderr is not None
    sent_at = time.monotonic()
    process.send_signal(signal.SIGINT)
    told = [process.stderr.readline()]
    while told[-1] and not told[-1].startswith(f"{CALLED} "):
        told.append(process.stderr.readline())
    took = time.monotonic() - sent_at
    stdout, rest = process.communicate(timeout=300)  # Python takes Airflow apart

    assert took < KILL_LIMIT
    assert (told[-1], rest) == (f"{CALLED} push: cancelled; run the same command to go on\n", "")
    assert "Traceback" not in "".join(told)
    assert (process.returncode, stdout) == (128 + signal.SIGINT, "")
    assert not server.find("PATCH", "finish_upload")  # somebody else may push the same


def on_a_terminal(*arguments: str | Path) -> tuple[str, str]:
    """Run a command whose standard error is a terminal; return what it answers and what it draws."""
    ours, theirs = pty.openpty()
    command = (*MODELSYNC, *map(str, arguments))
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    drawn = b""
    try:
        while block := os.read(ours, 4096):
            drawn += block
    except OSError:  # a terminal's way of telling that nobody has it open any more
        pass
    finally:
        os.close(ours)
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0, drawn
    return stdout, drawn.decode()


def test_a_terminal_shows_a_bar_and_the_answer_stays_clean(modelstore: Path, source: Path) -> None:
    stdout, drawn = on_a_terminal("push", source, "digits:v1", "--json")

    assert json.loads(stdout)["ref"] == "digits:v1"
    assert "pushing digits:v1" in drawn
    assert "━" in drawn
    assert "(100 %)" not in drawn  # the bar says so


def test_the_answer_may_be_cut_short(modelstore: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = airflow("modelsync", "ls", "--json", stdout=writer)
    os.close(writer)

    assert (run.status, run.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not READS_FORMS, reason="this Airflow takes no commands from providers")
def test_help_lists_the_commands_and_loads_nothing_of_ours_but_their_definition() -> None:
    script = (
        "import json, sys\n"
        "from airflow.cli.cli_parser import get_parser\n"
        "shown = get_parser().format_help()\n"
        "print(json.dumps({'shown': shown, 'ours': [m for m in sys.modules if m.startswith('airflow_provider_')],"
        "}))\n"
    )
    run = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    told = json.loads(run.stdout.splitlines()[-1])

    assert "Move models in and out of registries" in told["shown"]
    package = "airflow_provider_modelsync"
    assert set(told["ours"]) == {
        package,
        f"{package}.provider_info",
        f"{package}.cli",
        f"{package}.cli.definition",
    }


def test_an_empty_list_says_where_it_has_looked(modelstore: Path) -> None:
    listed = modelsync("ls", "label:stage=dev")

    assert listed.stdout == ""
    assert listed.stderr == f"no models in modelsync_default ({modelstore.as_uri()}) that label:stage=dev chooses\n"
    assert json.loads(modelsync("ls", "--json").stdout) == []


def test_a_signature_is_printed_and_required(modelstore: Path, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="the extra `signing` is not installed in this environment")
    for kind, content in keys().items():
        (tmp_path / f"team.{kind}").write_bytes(content)
    modelsync("push", source, "digits:v1")
    required = ("--signatures", "require", "--trusted-signer", tmp_path / "team.pub")

    assert "has no signature" in refused("pull", "digits:v1", tmp_path / "pulled", *required, code=1)
    assert "has no signature" in refused("signature", "digits:v1", code=1)
    modelsync("push", source, "digits:v1", "--sign", tmp_path / "team.key")

    assert "dsseEnvelope" in json.loads(modelsync("signature", "digits:v1").stdout)
    modelsync("pull", "digits:v1", tmp_path / "pulled", *required)


def test_every_command_is_implemented() -> None:
    (path,) = get_provider_info()["cli"]
    (group,) = resolve_name(path)()
    commands = dict(_commands_of(group))

    assert set(commands) == {
        *("ls", "versions", "show", "push", "pull", "sync", "label", "delete", "wait", "deploy", "undeploy", "predict"),
        *("promote", "rollback", "prune", "alias ls", "alias set", "alias rm", "signature"),
    }
    for function in commands.values():
        assert callable(resolve_name(f"airflow_provider_modelsync.cli.commands:{function}"))


def _commands_of(group: Any, before: str = "") -> Iterator[tuple[str, str]]:
    for sub in group.subcommands:
        if hasattr(sub, "subcommands"):
            yield from _commands_of(sub, f"{before}{sub.name} ")
        else:
            yield before + sub.name, sub.func.__name__


def test_versions_are_listed_labelled_waited_for_and_deleted(modelstore: Path, source: Path) -> None:
    hook = ModelStoreHook("modelsync_default")
    for ref in ("digits:v1", "digits:v2"):
        hook.push(source, ref, labels={"stage": "dev", "old": "yes"})

    labelled = modelsync("label", "digits:v1", "stage=prod", "--remove", "old")
    assert labelled.stdout.split() == ["digits:v1", "stage=prod"]
    head, newest, oldest = modelsync("versions", "digits").stdout.splitlines()
    assert head.split() == ["VERSION", "STATUS", "SIZE", "CREATED", "LABELS"]
    assert (newest.split()[:2], oldest.split()[:2]) == (["v2", "ready"], ["v1", "ready"])
    (listed,) = json.loads(modelsync("versions", "digits", "--label", "stage=prod", "-o", "json").stdout)
    assert listed["ref"] == "digits:v1"
    assert modelsync("wait", "digits:v1", "--label", "stage=prod").stdout == "digits:v1 is there\n"
    hasty = ("--timeout", "0.05", "--poll-interval", "0.01")
    waited = refused("wait", "digits:v2", "--label", "stage=prod", *hasty, code=75)
    assert "digits:v2 is not there yet" in waited
    assert modelsync("delete", "digits:v1").stdout == "digits:v1 is deleted\n"
    assert modelsync("delete", "digits:v1").stdout == "digits:v1 was not there\n"
    assert [version.version for version in hook.list_versions("digits")] == ["v2"]


def test_answers_have_the_form_that_is_asked_for(modelstore: Path, source: Path) -> None:
    ModelStoreHook("modelsync_default").push(source, "digits:v1")

    told = {form: modelsync("ls", "-o", form).stdout for form in ("plain", "table", "json", "yaml")}

    (version,) = json.loads(told["json"])
    assert yaml.safe_load(told["yaml"]) == [version]
    assert told["plain"].splitlines()[0].split() == ["NAME", "VERSION", "SIZE", "CREATED", "LABELS"]
    assert [cell.strip() for cell in told["table"].splitlines()[0].split("|")][:2] == ["NAME", "VERSION"]
    assert json.loads(modelsync("ls", "--json").stdout) == [version]


def test_a_model_is_deployed_and_undeployed(tmp_path: Path, connect: Connect) -> None:
    with running_cloud(tmp_path / "cloud") as server:
        connect("modelsync_default", conn_type="bentocloud", host=server.url, password=server.token)

        deployed = modelsync("deploy", "fraud:v1", "-d", "demo", "--config", '{"envs": []}', "-o", "json")
        ended = modelsync("undeploy", "demo")

        assert json.loads(deployed.stdout)["name"] == "demo"
        assert ended.stdout.split()[:2] == ["deployment", "demo"]
        assert [method for method, _ in changes(server)] == ["POST", "POST"]
        assert "bento" in refused("predict", "[1]", tmp_path / "out", "-d", "demo", code=1)


def test_predictions_are_written_to_a_file(tmp_path: Path, connect: Connect) -> None:
    with running_instance(tmp_path / "instance") as instance:
        connect("modelsync_default", conn_type="wallaroo", **instance.fields)
        instance.serve()

        told = modelsync("predict", '[{"pixels": [0.5, 1.0]}]', tmp_path / "out.json", "--deployment", "demo")

    assert told.stdout.startswith(f"1 in {tmp_path / 'out.json'}")
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["out"]["total"] == [1.5]


def test_an_alias_is_moved_promoted_rolled_back_and_removed(modelstore: Path, source: Path) -> None:
    for version, accuracy in (("v1", 0.5), ("v2", 0.6)):
        (source / "weights.bin").write_text(version)
        modelsync("push", source, f"digits:{version}", "--metadata", json.dumps({"acc": accuracy}))
    assert modelsync("alias", "set", "digits:v1", "champion").stdout == "digits@champion points to digits:v1\n"
    assert "digits:v1" in modelsync("show", "digits@champion").stdout
    when = ("--when", '{"metric": "acc", "at_least": 0.05}')
    assert "0.6" in modelsync("promote", "digits:v2", "champion", *when).stdout
    run = airflow("modelsync", "promote", "digits:v1", "champion", *when)
    assert (run.status, "not at least 0.05 above 0.6" in run.stdout) == (1, True)
    assert "points to digits:v1, no more to digits:v2" in modelsync("rollback", "digits", "champion").stdout
    assert modelsync("alias", "ls", "digits").stdout.split()[3:5] == ["champion", "v1"]
    run = airflow("modelsync", "alias", "set", "digits:v2", "champion", "--expected", "v2")
    assert (run.status, run.stdout) == (1, "")
    assert "points to the version v1, and it was expected to point to v2" in run.stderr
    assert f"\n{run.stderr}".count(f"\n{CALLED} alias set failed: ") == 1
    for told in ("is removed", "was not there"):
        assert modelsync("alias", "rm", "digits", "champion").stdout == f"digits@champion {told}\n"


def test_a_prune_deletes_only_when_it_is_told_to(modelstore: Path, source: Path) -> None:
    for version in ("v1", "v2"):
        (source / "weights.bin").write_text(version)
        modelsync("push", source, f"digits:{version}")
    for flags in ((), ("--dry-run",), ("--delete", "--dry-run")):
        run = modelsync("prune", "digits", "--keep-last", "1", *flags)
        assert "DRY RUN: nothing was deleted" in run.stderr
        assert run.stdout.splitlines()[-1] == "1 deleted, 1 kept (dry run)"
    assert "digits:v1 deleted" in modelsync("prune", "digits", "--keep-last", "1", "--delete").stdout
    assert json.loads(modelsync("versions", "digits", "--json").stdout)[0]["version"] == "v2"
    assert "v1" not in modelsync("versions", "digits").stdout
    assert "how many versions to keep" in refused("prune", "digits", code=1)
