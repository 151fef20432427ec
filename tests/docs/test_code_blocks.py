"""Every code block of the documents is executed. One of a kind that is not in ``KINDS`` fails: there is no way around.

Two things cannot be done here and are checked instead: `make` (it would run this very test) by its targets, and `pip
install` by the names of the package and its extras.
"""

from __future__ import annotations

import asyncio
import configparser
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import aclosing
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import version
from inspect import isabstract
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.models import Connection
from airflow.sdk import DAG
from airflow.triggers.base import BaseTrigger
from airflow.utils.session import create_session
from packaging.requirements import Requirement
from sqlalchemy import select

from airflow_provider_modelsync.compat import BaseHook, conf
from airflow_provider_modelsync.core.models import ModelVersion, RollOut, Ticket, VersionStatus
from airflow_provider_modelsync.hooks.modelstore import ModelStoreHook
from airflow_provider_modelsync.hooks.registry import get_registry_hook
from airflow_provider_modelsync.operators.transfer import PushModelOperator
from airflow_provider_modelsync.provider_info import get_provider_info
from tests.docs.documents import ROOT, Block, code_blocks
from tests.docs.messages import patterns_of_lines
from tests.docs.policy import check_policy
from tests.docs.skeleton import FILES, sources
from tests.docs.tutorial import DOCUMENT as TUTORIAL
from tests.docs.world import World, world_of
from tests.standins.bentocloud import BentoCloudStandIn
from tests.standins.oci import OCIStandIn
from tests.support.command import airflow
from tests.support.examples import run_dag
from tests.support.until import until

pytestmark = pytest.mark.documents

# The tutorial's are steps of one way, which ``test_tutorial.py`` goes.
BLOCKS = [block for block in code_blocks() if not block.where.startswith(TUTORIAL)]
PATIENCE = 300  # seconds


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, airflow_database: Path
) -> Iterator[World]:
    block: Block = request.node.callspec.params["block"]
    with world_of(block.text, tmp_path, monkeypatch) as world:
        yield world


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_does_what_it_says(block: Block, world: World) -> None:
    assert block.kind in KINDS, f"nobody knows how to execute {block.kind!r}: write a handler, or use one of {[*KINDS]}"

    KINDS[block.kind](world.local(block.text), world)


def test_there_are_blocks_of_every_kind() -> None:
    assert {block.kind for block in BLOCKS} == set(KINDS)


# ---- Python: a DAG file, or what belongs into one ---------------------------------------------------------------


def run_python(text: str, world: World) -> None:
    """Import it as Airflow imports DAG files, run its DAGs, and fire its watchers.

    Operators alone get a DAG around them. Hooks do their work while the file is imported.
    """
    from airflow.dag_processing.dagbag import DagBag

    if not re.search(r"\bDAG\(|@dag\b", text):
        text = "from airflow.sdk import DAG\n\nwith DAG('block'):\n" + textwrap.indent(text, "    ")
    file = world.root / "dags" / "block.py"
    file.parent.mkdir(exist_ok=True)
    world.monkeypatch.setattr("airflow.settings.DAGS_FOLDER", str(file.parent))
    # Object storage is a file system in memory; Airflow's S3 brings no files of its own.
    file.write_text(text.replace("'s3://", "'memory://").replace('"s3://', '"memory://'))

    bag = DagBag(file, load_op_links=False)

    assert bag.import_errors == {}
    for dag in bag.dags.values():
        hurry(dag)
        if dag.tasks:
            state, tasks, _ = run_dag(dag)
            assert (state, set(tasks.values())) == ("success", {"success"}), tasks
        for watcher in watchers(dag):
            asyncio.run(fire(watcher, dag, world))


def hurry(dag: DAG) -> None:
    """Look more often than anybody should."""
    for task in dag.tasks:
        if hasattr(task, "poll_interval"):
            task.poll_interval = 0.1


def watchers(dag: DAG) -> list[Any]:
    assets = dag.schedule if isinstance(dag.schedule, list) else []
    return [watcher for asset in assets for watcher in asset.watchers]


async def fire(watcher: Any, dag: DAG, world: World) -> None:
    """Push a version once the watcher has looked, and hand the event to the DAG's tasks."""
    trigger = watcher.trigger
    trigger.poll_interval = 0.1
    hook = get_registry_hook(trigger.registry_conn_id)
    server = world.registries[hook.conn_type].server
    begun = server.count("GET", f"/{trigger.model}/models$")
    async with aclosing(trigger.run()) as events:
        fired = asyncio.ensure_future(anext(events))
        await asyncio.to_thread(
            until, lambda: server.count("GET", f"/{trigger.model}/models$") > begun + 1, "the watcher to look"
        )
        pushed = await asyncio.to_thread(hook.push, world.root / "model", f"{trigger.model}:v2")
        payload = (await asyncio.wait_for(fired, PATIENCE)).payload
    assert payload == pushed.to_event()
    for task in dag.tasks:
        task.python_callable(triggering_asset_events={"asset": [SimpleNamespace(extra={"payload": payload})]})


# ---- shells -----------------------------------------------------------------------------------------------------

# Facts of the moment in what commands print.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00")


def run_bash(text: str, world: World) -> None:
    """Run each command."""
    for words in commands(text.splitlines()):
        run_command(words, world)


def run_console(text: str, world: World) -> None:
    """Run what stands behind a prompt, and compare what it prints with what stands below."""
    for session in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, *printed = session.splitlines()
        (command,) = commands([line])
        told = run_command(command, world, "\n".join(printed))
        if told is not None:
            assert lines_of(told) == lines_of("\n".join(printed)), command


def commands(lines: list[str]) -> Iterator[str]:
    """Yield commands; a quotation or a backslash may carry one over lines."""
    command = ""
    for line in lines:
        command += line
        try:
            if shlex.split(command, comments=True):
                yield command
            command = ""
        except ValueError:
            command = command.removesuffix("\\") + "\n"
    assert not command, f"{command!r} does not end"


def lines_of(text: str) -> list[list[str]]:
    return [_MOMENT.sub("<time>", line).split() for line in text.strip().splitlines()]


def run_command(command: str, world: World, printed: str = "") -> str | None:
    """Run one command; return what it prints, if it was really run."""
    words = shlex.split(command, comments=True)
    if words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:], world, printed)
    # Whatever else is the shell's own business.
    run = subprocess.run(("bash", "-euo", "pipefail", "-c", command), capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def export(words: list[str], world: World, printed: str) -> str:
    """Set variables; connections among them must work as they are written, and lead somewhere in this world."""
    for word in words:
        name, _, value = word.partition("=")
        world.monkeypatch.setenv(name, value)
        if name.startswith("AIRFLOW_CONN_"):
            use_connection(name.removeprefix("AIRFLOW_CONN_").lower(), world)
    return ""


def use_connection(conn_id: str, world: World) -> None:
    """Open a connection as it is written, then with this world's addresses."""
    written = BaseHook.get_connection(conn_id)
    get_registry_hook(conn_id).get_conn()
    fields = {name: getattr(written, name) for name in ("host", "login", "password", "port")}
    world.connect(conn_id, written.conn_type, **fields, extra=written.extra_dejson)
    ok, said = get_registry_hook(conn_id).test_connection()
    assert ok, said


def run_airflow(words: list[str], world: World, printed: str) -> str:
    """Run Airflow's command line."""
    world.monkeypatch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Enabled")
    run = airflow(*words)
    assert run.status == 0, run.stderr
    if words[:2] == ["connections", "add"]:
        with create_session() as session:
            added = session.scalars(select(Connection).where(Connection.conn_id == words[2])).one()
            world.monkeypatch.setenv(f"AIRFLOW_CONN_{words[2].upper()}", added.as_json())
        use_connection(words[2], world)
    return run.stdout


def run_pip(words: list[str], world: World, printed: str) -> None:
    """Check that there is what is to be installed."""
    verb, *wanted = words
    assert verb == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in (Requirement(word) for word in wanted if not word.startswith("-")):
        if requirement.name == project["name"]:
            assert requirement.extras <= project["optional-dependencies"].keys()
        else:
            assert version(requirement.name) in requirement.specifier


def run_make(words: list[str], world: World, printed: str) -> None:
    """Check that there are such targets, and that what the demo is said to print is what it prints."""
    targets = re.findall(r"^([a-z][\w%-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        assert any(fnmatch(word, target.replace("%", "?*")) for target in targets), word
    demo = (ROOT / "scripts" / "demo.py").read_text()
    for label in re.findall(r"^  (\w+(?: \w+)*)  +\S", printed, re.MULTILINE):
        assert f'"{label}": ' in demo


def run_cd(words: list[str], world: World, printed: str) -> str:
    world.monkeypatch.chdir(*words)
    return ""


COMMANDS: dict[str, Callable[[list[str], World, str], str | None]] = {
    "airflow": run_airflow,
    "cd": run_cd,
    "export": export,
    "make": run_make,
    "pip": run_pip,
}


# ---- data -------------------------------------------------------------------------------------------------------


def check_ini(text: str, world: World) -> None:
    """Airflow has these settings, or the provider brings them."""
    ours = {(section, key) for section, told in get_provider_info()["config"].items() for key in told["options"]}
    parser = configparser.ConfigParser()
    parser.read_string(text)
    named = [(section, key) for section in parser.sections() for key in parser.options(section)]
    assert named
    assert [one for one in named if one not in ours and not conf.has_option(*one)] == []


def check_push(text: str, world: World) -> None:
    """It has the keys of what a push leaves in XCom, and values of the same types."""
    push = PushModelOperator(task_id="push", model="fraud:v1", source=world.root / "model", labels={"a": "b"})
    left = push.execute({"outlet_events": {}})  # type: ignore[typeddict-item]
    assert types_of(json.loads(text)) == types_of(left)


def types_of(values: dict[str, Any]) -> dict[str, str]:
    return {key: type(value).__name__ for key, value in values.items()}


def check_event(text: str, world: World) -> None:
    """It has the keys of what a watcher's event carries."""
    version = ModelVersion(registry="bentocloud", name="fraud", version="v7", status=VersionStatus.READY)
    assert json.loads(text).keys() == version.to_event().keys()


def check_triggers(text: str, world: World) -> None:
    """These are all triggers, and what Airflow would store of them."""
    told = json.loads(text)
    modules = [module for entry in get_provider_info()["triggers"] for module in entry["python-modules"]]
    kinds = {
        f"{module}.{name}": kind
        for module in modules
        for name, kind in vars(import_module(module)).items()
        if getattr(kind, "__module__", "") == module
        and isinstance(kind, type)
        and issubclass(kind, BaseTrigger)
        and not isabstract(kind)
    }
    assert told.keys() == kinds.keys()
    for path, kwargs in told.items():
        assert kinds[path](**kwargs).serialize() == (path, kwargs)
        for nested, model in (("started", RollOut), ("ticket", Ticket)):
            if nested in kwargs:
                assert model.model_validate(kwargs[nested]).model_dump(mode="json") == kwargs[nested]


def check_tree(text: str, world: World) -> None:
    """These files and directories exist."""
    above: list[tuple[int, Path]] = [(-1, ROOT)]
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        while above[-1][0] >= depth:
            above.pop()
        names = re.match(r"(?:[\w.]+(?:/|\.py) *)+", line.strip())
        assert names, line
        for name in names[0].split():
            assert (above[-1][1] / name).exists(), name
        if name.endswith("/"):
            above.append((depth, above[-1][1] / name))


def check_path(text: str, world: World) -> None:
    """These calls lie between a task and the wire: of the task's thread, then of one that sends a part."""
    lines = re.findall(r"^(\S+) +(\w+(?: {1,2}\w+)*)", text, re.MULTILINE)
    told = [(file, call) for file, calls in lines for call in calls.split()]
    task = threading.get_ident()
    seen: list[tuple[str, str]] = []

    def at_the_wire(frame: FrameType, event: str, _: Any) -> None:
        if frame.f_code.co_name == "urlopen" and not seen:
            seen.extend([*calls_that_wait(task), *calls_above(frame)])

    with BentoCloudStandIn(world.root, transmission_strategy="presigned_url") as server:
        world.connect("anywhere", "bentocloud", host=server.url, password=server.token)
        push = PushModelOperator(
            task_id="push", registry_conn_id="anywhere", model="fraud:v1", source=world.root / "model"
        )
        threading.setprofile(at_the_wire)
        try:
            push.execute({"outlet_events": {}})  # type: ignore[typeddict-item]
        finally:
            threading.setprofile(None)  # type: ignore[arg-type]
    assert told == seen


def calls_that_wait(thread: int) -> list[tuple[str, str]]:
    """Return the calls that a thread is in, once it waits for others: it may be starting them still."""
    while True:
        frame = sys._current_frames()[thread]
        calls = calls_above(frame)
        if frame.f_code.co_name in ("join", "_wait_for_tstate_lock") and sys._current_frames()[thread] is frame:
            return calls
        time.sleep(0.001)


def calls_above(frame: FrameType | None) -> list[tuple[str, str]]:
    """Return the calls that lead to a frame, as far as they are of the package: file and function."""
    package = str(ROOT / "airflow_provider_modelsync") + os.sep
    calls: list[tuple[str, str]] = []
    while frame:
        if frame.f_code.co_filename.startswith(package):
            calls.append((frame.f_code.co_filename.removeprefix(package), frame.f_code.co_name))
        frame = frame.f_back
    return calls[::-1]


def check_layout(text: str, world: World) -> None:
    """A model store looks so."""
    patterns = [line.split()[0] for line in text.splitlines()]
    hook = ModelStoreHook("modelsync_default")
    hook.set_labels("digits:v1", {"stage": "dev"})
    hook.set_alias("digits:v1", "champion")
    root = Path(BaseHook.get_connection("modelsync_default").host.removeprefix("file://"))
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    meant = {"<root>/": "", "<name>": "digits", "<version>": "v1", "<alias>": "champion"}
    files, *records = (
        functools.reduce(lambda path, part: path.replace(*part), meant.items(), pattern) for pattern in patterns
    )
    assert files == "digits/v1/<path…>"
    assert records == [
        f"digits/.modelsync/{record}" for record in ("v1.json", "v1.claim", "v1.labels", "champion.alias")
    ]
    claim = records.pop(1)  # gone when the version is published
    assert there == {"digits/v1/model.onnx", "digits/v1/labels.json", *records}
    assert claim not in there


def check_kubernetes(text: str, world: World) -> None:
    """It is a manifest whose model is named by the digest of what was pushed."""
    manifest = yaml.safe_load(text)
    assert {"apiVersion", "kind", "metadata", "spec"} <= manifest.keys()
    (named,) = re.findall(r"(?:storageUri|reference): (?:oci\+native://)?(\S+)", text)
    with OCIStandIn() as server:
        world.connect("anywhere", "oci_registry", host=f"{server.url}/team")
        hook = get_registry_hook("anywhere")
        pushed = hook.push(world.root / "model", "risk/fraud:v1", options={"layout": "image"})
    assert pushed.uri is not None
    place, at, digest = pushed.uri.removeprefix("oci://").partition("@")
    assert named.partition("/")[2].partition("@")[0] == place.partition("/")[2]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", named.partition(at)[2])
    assert len(named.partition(at)[2]) == len(digest)


def check_log(text: str, world: World) -> None:
    """The package says such lines."""
    known = [re.compile(pattern) for pattern in patterns_of_lines()]
    assert [line for line in text.splitlines() if not any(pattern.search(line) for pattern in known)] == []


def check_skeleton(text: str, world: World) -> None:
    """It is a file of the distribution that tests build, install and use."""
    assert text in sources().values()


KINDS: dict[str, Callable[[str, World], None]] = {
    "python": run_python,
    "bash": run_bash,
    "console": run_console,
    "ini": check_ini,
    "json event": check_event,
    "json policy": check_policy,
    "json push": check_push,
    "json triggers": check_triggers,
    "text layout": check_layout,
    "text log": check_log,
    "text path": check_path,
    "text tree": check_tree,
    "yaml kubernetes": check_kubernetes,
    **dict.fromkeys(FILES, check_skeleton),
}
