"""The layers of the package: who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import airflow_provider_modelsync
from tests.docs.documents import code_blocks

PACKAGE = "airflow_provider_modelsync"
ROOT = Path(next(iter(airflow_provider_modelsync.__path__)))

# From the top down. A module belongs where its longest prefix stands, and may import from its own layer and below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("sensors", "operators"),
    ("assets", "links", "lineage"),
    ("triggers",),
    ("hooks",),
    ("state",),
    ("forms", "compat"),
    ("core.verbs.sync",),
    ("core.verbs",),
    ("core.verbs.drive", "core.verbs.placed"),
    ("core.registries",),
    ("core.registries.capabilities",),
    ("core.registries.base",),
    ("core.storages",),
    ("core.transfer",),
    ("core.archive", "core.http"),
    ("core.flow", "core.durable"),
    ("core",),  # the ground: settings, redaction
    ("core.arguments", "core.models", "core.errors"),
    ("core.text",),
)
DATA = ("", "provider_info", "xcom")  # hold facts, import nothing of the package, and may be imported by all
# Sensors and operators share how arguments are read and errors become Airflow's, and nothing else.
SIDEWAYS = {
    ("sensors", "operators"): {"operators.arguments", "operators.base"},
    ("operators", "sensors"): set(),
    ("core.archive", "core.http"): set(),
    ("core.http", "core.archive"): set(),
    ("core.flow", "core.durable"): set(),
    ("core.durable", "core.flow"): set(),
}


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(_modules())


@cache
def _imports(path: Path) -> frozenset[str]:
    """Return the full names of what a module imports anywhere in it, for types alone, too."""
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            for alias in node.names:
                submodule = f"{module}.{alias.name}".removeprefix(f"{PACKAGE}.")
                yield f"{module}.{alias.name}" if submodule in MODULES else module


def _inner_imports(name: str) -> set[str]:
    inner = {found for found in _imports(MODULES[name]) if found == PACKAGE or found.startswith(f"{PACKAGE}.")}
    return {found.removeprefix(PACKAGE).removeprefix(".") for found in inner}


def _place(name: str) -> tuple[int, str]:
    """Return a module's layer, the highest being 0, and the prefix that put it there."""
    fits = [
        (len(prefix), layer, prefix)
        for layer, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    assert fits, f"{name} has no layer: give it one in LAYERS"
    _, layer, prefix = max(fits)
    return layer, prefix


@pytest.mark.parametrize("name", sorted(MODULES.keys() - set(DATA)))
def test_arrows_run_one_way(name: str) -> None:
    layer, prefix = _place(name)
    for imported in sorted(_inner_imports(name) - set(DATA)):
        below, other = _place(imported)
        assert below >= layer, f"{name} imports {imported}, which lies above it"
        if (allowed := SIDEWAYS.get((prefix, other))) is not None:
            assert imported in allowed, f"{name} imports {imported} from beside it"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.count(".") > 2 and "registries" in name))
def test_a_system_knows_no_other(name: str) -> None:
    system = name.split(".")[2]
    registries = {found for found in _inner_imports(name) if found.startswith("core.registries.")}
    assert {found for found in registries if found.split(".")[2] not in (system, "base", "capabilities")} == set()


@pytest.mark.parametrize("name", DATA)
def test_data_modules_import_nothing_of_the_package_but_its_version(name: str) -> None:
    assert _inner_imports(name) <= {""}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if f"{name}.".startswith("core.")))
def test_the_core_names_no_airflow(name: str) -> None:
    assert not [found for found in _imports(MODULES[name]) if found.partition(".")[0] == "airflow"]


# What loads models, or makes code of what it reads.
LOADERS = {
    "cloudpickle",
    "dill",
    "h5py",
    "joblib",
    "keras",
    "marshal",
    "numpy",
    "onnx",
    "onnxruntime",
    "pandas",
    "pickle",
    "runpy",
    "shelve",
    "sklearn",
    "tensorflow",
    "torch",
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_of_ours_loads_a_model(name: str) -> None:
    assert not [found for found in _imports(MODULES[name]) if found.partition(".")[0] in LOADERS]
    ours = {"core.arguments": ["eval(annotation, function.__globals__)"]}  # the text of an annotation of ours
    calls = [node for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.Call)]
    runs = [
        call
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in ("eval", "exec", "compile", "__import__")
    ]
    assert [ast.unparse(call) for call in runs] == ours.get(name, [])


# What every supported Airflow has, in the same place: all else is imported from compat, which knows where it is.
EVERYWHERE = {
    "airflow.cli.cli_config": {"ActionCommand", "Arg", "GroupCommand", "lazy_load_command"},
    "airflow.sdk": {
        "Asset",
        "AssetAlias",
        "BaseOperator",
        "BaseOperatorLink",
        "BaseSensorOperator",
        "ObjectStoragePath",
        "PokeReturnValue",
        "get_current_context",
    },
    "airflow.sdk.definitions.asset": {"AssetRef"},
    "airflow.sdk.execution_time.xcom": {"XCom"},
    "airflow.sdk.log": {"mask_secret"},
    "airflow.triggers.base": {"BaseEventTrigger", "BaseTrigger", "TriggerEvent"},
}
VERSIONED = {"compat", "forms"}  # all that may know a version of Airflow
FACING_AIRFLOW = sorted(name for name in MODULES if not f"{name}.".startswith("core."))


def _names_of_airflow(path: Path) -> Iterator[tuple[str, str]]:
    """Return module and name of what a module imports from Airflow itself when it runs.

    Providers have versions of their own, and types are those of the newest.
    """
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in (node for node in ast.walk(tree) if id(node) not in for_types):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "airflow")
        elif isinstance(node, ast.ImportFrom) and re.match(r"airflow(?!\.providers\b)\b", node.module or ""):
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("name", sorted(set(FACING_AIRFLOW) - VERSIONED))
def test_only_compat_knows_where_versions_of_airflow_keep_things(name: str) -> None:
    assert [found for found in _names_of_airflow(MODULES[name]) if found[1] not in EVERYWHERE.get(found[0], ())] == []


@pytest.mark.parametrize("name", sorted(set(FACING_AIRFLOW) - VERSIONED))
def test_only_compat_asks_which_version_of_airflow_it_is(name: str) -> None:
    asked = re.findall(
        r"\bairflow\.__version__|importlib\.metadata|packaging\.version|READS_FORMS", MODULES[name].read_text()
    )
    assert asked == []


@pytest.mark.parametrize("name", FACING_AIRFLOW)
def test_whether_a_place_is_local_is_not_asked_of_its_class(name: str) -> None:
    """What leads to object storage is a ``pathlib.Path``, too, with the universal-pathlib of older Airflows."""
    asked = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass")
    ]
    assert [one for one in asked if re.search(r"\bPath\b", one)] == []


@pytest.mark.parametrize("module", EVERYWHERE)
def test_this_airflow_has_what_every_airflow_has(module: str) -> None:
    found = import_module(module)
    assert [name for name in EVERYWHERE[module] if not hasattr(found, name)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {found for found in _inner_imports(name) if found in MODULES and found} for name in MODULES}
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys() - {name}]:
        for name in leaves:
            del graph[name]
    assert not graph, f"each of these imports another: {sorted(graph)}"


def _drawn() -> list[str]:
    """Return what of the package ARCHITECTURE.md draws, from the top down: modules and packages."""
    (picture,) = (block.text for block in code_blocks() if block.kind == "text tree")
    lines = picture.partition(f"{PACKAGE}/")[2].splitlines()[1:]
    above: list[tuple[int, str]] = []
    drawn: list[str] = []
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if not depth:
            break
        above = [(other, prefix) for other, prefix in above if other < depth]
        for name in re.findall(r"([\w]+(?:/|\.py))(?= |$)", re.split(r" {3,}", line.strip())[0]):
            drawn.append("".join(f"{prefix}." for _, prefix in above) + name.removesuffix("/").removesuffix(".py"))
            if name.endswith("/"):
                last = name.removesuffix("/")
        if line.split()[0].endswith("/"):
            above.append((depth, last))
    return drawn


def _rooms() -> set[str]:
    """Return what a picture of the package shows: packages, those of systems included, and modules beside them."""
    packages = {path.parent.relative_to(ROOT) for path in ROOT.rglob("__init__.py")} - {Path()}
    inner = {str(path).replace("/", ".") for path in packages}
    beside = (ROOT, ROOT / "core", ROOT / "core" / "registries")
    loose = {name for name, path in MODULES.items() if path.parent in beside and path.name != "__init__.py"}
    return inner | loose


def test_the_drawing_is_the_tree() -> None:
    assert sorted(_drawn()) == sorted(_rooms())


def test_arrows_run_downwards_in_the_drawing() -> None:
    def layer(name: str) -> int:
        inside = [
            layer for layer, prefixes in enumerate(LAYERS) for prefix in prefixes if prefix.startswith(f"{name}.")
        ]
        return min([*inside, _place(name)[0]])

    order = [layer(name) for name in _drawn() if name not in (*DATA, "core")]
    assert order == sorted(order)


def _added(before: str, after: str) -> set[str]:
    """Return the modules that a fresh process loads for some statements, after others."""
    script = f"""
import json, sys
{before}
loaded = set(sys.modules)
{after}
print(json.dumps(sorted(set(sys.modules) - loaded)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def _import_all(names: Iterable[str]) -> str:
    return "\n".join(f"import {name}" for name in names)


@pytest.mark.slow
def test_importing_the_whole_core_loads_no_airflow() -> None:
    core = [module.name for module in pkgutil.walk_packages([str(ROOT / "core")], f"{PACKAGE}.core.")]
    loaded = _added("", _import_all(core))
    assert set(core) <= loaded
    assert not {name for name in loaded if name.partition(".")[0] == "airflow"}


# What of the core's depths a DAG file pays for: no registry's protocol, and nothing that moves bytes.
DEPTHS = (
    "core.archive.",
    "core.registries.",
    "core.transfer.",
    "core.verbs.push",
    "core.verbs.pull",
    "core.verbs.sync",
)
PARSED = {
    "core.archive.choice",
    "core.archive.names",
    "core.registries.base",
    "core.registries.capabilities",
    "core.transfer.progress",
}
HEAVY = {"boto3", "botocore", "s3transfer", "urllib3", "websockets", "numpy", "requests"}
# What the public modules use of Airflow: only what they load beyond it is theirs.
AIRFLOW = """
from airflow.sdk import Asset, BaseOperator, BaseSensorOperator, ObjectStoragePath, PokeReturnValue
import airflow.sdk.log, airflow.triggers.base
import airflow_provider_modelsync.compat
"""


@pytest.mark.slow
def test_importing_the_public_modules_loads_neither_registries_nor_what_moves_bytes_nor_anything_heavy() -> None:
    parts = ("assets", "hooks", "lineage", "links", "operators", "sensors", "triggers")
    public = {f"{PACKAGE}.{name}" for name in MODULES if name.partition(".")[0] in parts}
    loaded = _added(AIRFLOW, _import_all(sorted(public)))
    assert public <= loaded
    assert not {name for name in loaded if name.partition(".")[0] in HEAVY}
    inner = {name.removeprefix(f"{PACKAGE}.") for name in loaded}
    assert {name for name in inner if name.startswith(DEPTHS)} == PARSED


IMPORT = """
import tarfile, time
text = open(tarfile.__file__).read()
began = time.process_time()
compile(text, "measure", "exec")  # a piece of work to compare with: both grow alike on a slow or busy machine
measure = time.process_time() - began
loaded, began = set(sys.modules), time.process_time()
from airflow_provider_modelsync.operators import catalog, deployment, lifecycle, transfer
print(time.process_time() - began, measure, len(set(sys.modules) - loaded))
"""


@pytest.mark.slow
def test_importing_the_operators_costs_little_beside_airflow() -> None:
    """DAG files pay it again and again: four times the measure today, most of it for making pydantic models."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ratios = []
    for _ in range(8):  # the first may have to write byte code, and any may meet others at work
        command = [sys.executable, "-c", f"import sys{AIRFLOW}{IMPORT}"]
        told = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        cost, measure, modules = map(float, told.split())
        assert modules <= 75
        ratios.append(cost / measure)
        if ratios[-1] <= 6:
            return
    raise AssertionError(f"the import costs {min(ratios):.1f} times the measure")
