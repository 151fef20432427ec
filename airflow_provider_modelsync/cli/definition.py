"""The commands of ``airflow modelsync``, without what they do: every start of ``airflow`` imports this module."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand, lazy_load_command

_COMMANDS = "airflow_provider_modelsync.cli.commands"
_EXITS = "Exits with 0; with 1 when another try cannot help, 2 for wrong usage, 75 when another try may succeed."


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("it is not a JSON object")
    return value


def _glob_options(text: str) -> tuple[str, dict[str, Any]]:
    glob, options = _pair(text)
    return glob, _json_object(options)


def _versions(text: str) -> str | int:
    if text in ("latest", "all"):
        return text
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither 'latest' nor 'all' nor a number")


def _count(text: str) -> int:
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")


def _repeated(flag: str, metavar: str, text: str, kind: Any) -> Arg:
    return Arg((flag,), help=text, metavar=metavar, type=kind, action="append", default=[])


def _switch(flag: str, text: str) -> Arg:
    return Arg((flag,), help=text, action="store_true")


_CONNECTION = Arg(
    ("-c", "--conn-id", "--conn"), dest="conn_id", help="The registry's connection", default="modelsync_default"
)
_JSON = Arg(("--json",), dest="as_json", help="As --output json", action="store_true")
_VERBOSE = Arg(("-v", "--verbose"), help="Show the log, and the traceback of what fails", action="store_true")
_OUTPUT = Arg(
    ("-o", "--output"), help="How to print the result", choices=("table", "json", "yaml", "plain"), default="plain"
)
_COMMON = (_OUTPUT, _JSON, _VERBOSE)

_MODEL = Arg(("model",), help="name or name:latest for the newest ready version, name:version, or name@alias")
_NAME = Arg(("model",), help="The model's name")
_ALIAS = Arg(("alias",), help="The alias, e.g. champion")
_QUERY = "Choose by name substrings, label:k, label:k=v and label:k=a,b"
_DEPLOYMENT = Arg(("-d", "--deployment"), help="The deployment's name; the connection's own, or the model, if left out")
_LABELS = _repeated("--label", "KEY=VALUE", "That a version must have; may be repeated", _pair)
_FILES = (
    _repeated("--include", "PATTERN", "Only files that a pattern of .gitignore's kind matches; may be repeated", str),
    _repeated("--exclude", "PATTERN", "No files that such a pattern matches; may be repeated", str),
)
_CHECKS = (
    _repeated("--allow-format", "FORMAT", "All files must be of such a format, as safetensors; may be repeated", str),
    Arg(("--scan",), help="An entry point of modelsync.scanners or a command that looks at the files first"),
    Arg(
        ("--signatures",),
        help="Look at no signatures, warn of models that nobody trusted has signed, or refuse them; the connection's",
        choices=("off", "warn", "require"),
    ),
    _repeated("--trusted-signer", "FILE", "Of a public key or a certificate, or identity|issuer; may be repeated", str),
)


def _in_group(group: str, do: str) -> Callable[[argparse.Namespace], None]:
    """Return a command that knows its group's name, too: Airflow's parser tells it only its own."""
    load = lazy_load_command(f"{_COMMANDS}.{do}")

    @functools.wraps(load)
    def run(args: argparse.Namespace) -> None:
        if "called" not in args:
            args.subcommand = f"{group} {args.subcommand}"
        load(args)

    return run


_HOW_MANY = Arg(("-t", "--threads"), help="That move bytes; the connection's max_workers if left out")


def get_modelsync_cli_commands() -> list[GroupCommand]:
    """Return the commands that Airflow adds to its own."""
    return [
        GroupCommand(
            name="modelsync",
            help="Move models in and out of registries",
            description=_EXITS,
            subcommands=(
                ActionCommand(
                    name="ls",
                    help="List the newest ready version of each model",
                    func=lazy_load_command(f"{_COMMANDS}.list_models"),
                    args=(
                        Arg(("query",), help=_QUERY, nargs="*"),
                        _CONNECTION,
                        _switch("--all-versions", "List every version of each model, in any state"),
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="show",
                    help="Show a version",
                    func=lazy_load_command(f"{_COMMANDS}.show"),
                    args=(_MODEL, _CONNECTION, *_COMMON),
                ),
                ActionCommand(
                    name="signature",
                    help="Print the signature of a version, as model_signing reads it",
                    func=lazy_load_command(f"{_COMMANDS}.signature"),
                    args=(_MODEL, _CONNECTION, *_COMMON),
                ),
                ActionCommand(
                    name="versions",
                    help="List the versions of a model, in any state",
                    func=lazy_load_command(f"{_COMMANDS}.versions"),
                    args=(
                        Arg(("model",), help="The model's name"),
                        _CONNECTION,
                        _LABELS,
                        Arg(("--query",), help=_QUERY),
                        Arg(("--limit",), help="So many of the newest", type=_count),
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="label",
                    help="Change labels of a version",
                    func=lazy_load_command(f"{_COMMANDS}.label"),
                    args=(
                        _MODEL,
                        Arg(("labels",), help="Labels to set", metavar="KEY=VALUE", nargs="*", type=_pair),
                        _CONNECTION,
                        _repeated("--remove", "KEY", "A label to remove; may be repeated", str),
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="delete",
                    help="Delete an exact version",
                    func=lazy_load_command(f"{_COMMANDS}.delete"),
                    args=(Arg(("model",), help="name:version"), _CONNECTION, *_COMMON),
                ),
                ActionCommand(
                    name="deploy",
                    help="Have a model served; ends once the request is accepted",
                    func=lazy_load_command(f"{_COMMANDS}.deploy"),
                    args=(
                        _MODEL,
                        _DEPLOYMENT,
                        _CONNECTION,
                        Arg(("--config",), help="A JSON object that the system reads", type=_json_object),
                        *_CHECKS,
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="undeploy",
                    help="End a deployment",
                    func=lazy_load_command(f"{_COMMANDS}.undeploy"),
                    args=(Arg(("deployment",), help="Its name"), _CONNECTION, *_COMMON),
                ),
                ActionCommand(
                    name="predict",
                    help="Have a deployment make predictions",
                    func=lazy_load_command(f"{_COMMANDS}.predict"),
                    args=(
                        Arg(("inputs",), help="A path, an object storage URL, or values as JSON"),
                        Arg(("target",), help="The file to write: a path, or an object storage URL"),
                        _DEPLOYMENT,
                        _CONNECTION,
                        Arg(("--options",), help="A JSON object that the system reads", type=_json_object),
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="wait",
                    help="Wait until a version is there",
                    func=lazy_load_command(f"{_COMMANDS}.wait"),
                    args=(
                        _MODEL,
                        _CONNECTION,
                        _LABELS,
                        Arg(("--newer-than",), help="A version or an ISO 8601 time"),
                        Arg(("--state",), help="What the version must have reached", default="ready"),
                        Arg(("--timeout",), help="Seconds, or as PT1H30M", default="PT1H"),
                        Arg(("--poll-interval",), help="Between two looks, likewise", default="10"),
                        *_COMMON,
                    ),
                ),
                GroupCommand(
                    name="alias",
                    help="Names that move from version to version",
                    subcommands=(
                        ActionCommand(
                            name="ls",
                            help="List the aliases of a model",
                            func=_in_group("alias", "list_aliases"),
                            args=(_NAME, _CONNECTION, *_COMMON),
                        ),
                        ActionCommand(
                            name="set",
                            help="Have an alias point to a version",
                            func=_in_group("alias", "set_alias"),
                            args=(
                                _MODEL,
                                _ALIAS,
                                _CONNECTION,
                                Arg(("--expected",), help="Only if it points to this version; '' for nothing"),
                                *_COMMON,
                            ),
                        ),
                        ActionCommand(
                            name="rm",
                            help="Remove an alias; no version is touched",
                            func=_in_group("alias", "remove_alias"),
                            args=(_NAME, _ALIAS, _CONNECTION, *_COMMON),
                        ),
                    ),
                ),
                ActionCommand(
                    name="promote",
                    help="Have an alias point to a version that is better; exits with 1 when it is not",
                    func=lazy_load_command(f"{_COMMANDS}.promote"),
                    args=(
                        _MODEL,
                        _ALIAS,
                        _CONNECTION,
                        _repeated(
                            "--when",
                            "JSON",
                            'As {"metric": "auc", "mode": "max", "at_least": 0.005}; may be repeated',
                            _json_object,
                        ),
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="rollback",
                    help="Have an alias point to the version before",
                    func=lazy_load_command(f"{_COMMANDS}.rollback"),
                    args=(_NAME, _ALIAS, _CONNECTION, Arg(("--to",), help="A version instead"), *_COMMON),
                ),
                ActionCommand(
                    name="prune",
                    help="Say which versions nobody needs any more; with --delete, delete them",
                    func=lazy_load_command(f"{_COMMANDS}.prune"),
                    args=(
                        Arg(("models",), help="Names or globs of names", nargs="+", metavar="NAME"),
                        _CONNECTION,
                        Arg(("--keep-last",), help="So many of the newest stay", type=_count),
                        Arg(("--older-than",), help="What is younger stays: seconds, or as P30D"),
                        _repeated("--keep-label", "KEY[=VALUE]", "Versions with it stay; may be repeated", str),
                        Arg(("--min-keep",), help="So many stay, however old", type=_count, default=1),
                        _switch("--no-keep-aliased", "Delete what aliases point to, too"),
                        Arg(("--leftovers-older-than",), help="In a model store, remove what pushes have left, too"),
                        _switch("--delete", "Delete; without it, nothing is deleted"),
                        _switch("--dry-run", "Delete nothing, whatever else is said"),
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="push",
                    help="Push a model",
                    func=lazy_load_command(f"{_COMMANDS}.push"),
                    args=(
                        Arg(("source",), help="A directory or a single file: a path, or an object storage URL"),
                        Arg(("model",), help="name:version, or name for a version that is derived from the content"),
                        _CONNECTION,
                        _repeated("--label", "KEY=VALUE", "A label to choose by; may be repeated", _pair),
                        Arg(("--metadata",), help="A JSON object kept beside the version", type=_json_object),
                        Arg(("--options",), help="A JSON object that only this registry reads", type=_json_object),
                        Arg(
                            ("--follow-links",),
                            help="Read links as the files that they lead to inside of the source, or refuse all links",
                            choices=("inside", "never"),
                            default="inside",
                        ),
                        *_FILES,
                        _HOW_MANY,
                        Arg(("--part-size-mib",), help="MiB in a part of a multipart upload"),
                        Arg(("--sign",), help="true for the connection's key, the file of another one, or JSON"),
                        _switch("--force", "Replace a version that holds other bytes"),
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="pull",
                    help="Pull a model",
                    func=lazy_load_command(f"{_COMMANDS}.pull"),
                    args=(
                        _MODEL,
                        Arg(("target",), help="A directory: a path, or an object storage URL"),
                        _CONNECTION,
                        _LABELS,
                        Arg(("--query",), help=_QUERY),
                        *_FILES,
                        _HOW_MANY,
                        Arg(("--part-size-mib",), help="MiB in a piece that a large file comes down in"),
                        Arg(
                            ("--on-reference",),
                            help="Fail, or pull nothing, when the version only points elsewhere",
                            choices=("fail", "skip"),
                            default="fail",
                        ),
                        _switch("--force", "Replace whatever the target holds, once the new copy is verified"),
                        _switch("--no-verify", "Do not compare the bytes with the version's digest"),
                        *_CHECKS,
                        *_COMMON,
                    ),
                ),
                ActionCommand(
                    name="sync",
                    help="Bring versions of one registry into another",
                    func=lazy_load_command(f"{_COMMANDS}.sync"),
                    args=(
                        Arg(("source_conn_id",), help="The connection to read from"),
                        Arg(("target_conn_id",), help="The connection to write to"),
                        Arg(("--models",), help="Names or globs of names", nargs="+", metavar="NAME", default=["*"]),
                        Arg(
                            ("--versions",),
                            help="latest, all, or so many of the newest",
                            type=_versions,
                            default="latest",
                        ),
                        _LABELS,
                        _repeated("--rename", "NAME=NEW", "A model's name in the target; may be repeated", _pair),
                        _repeated(
                            "--options", "GLOB=JSON", "What only the target reads; may be repeated", _glob_options
                        ),
                        *_FILES,
                        _switch("--aliases", "Have the target's aliases point to what the source's do"),
                        _switch("--delete-extra", "Delete versions in the target that the source has not any more"),
                        Arg(("--keep-last",), help="So many of the newest in the target stay", type=_count),
                        *_CHECKS,
                        _switch("--dry-run", "Only say what would be copied"),
                        *_COMMON,
                    ),
                ),
            ),
        )
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command without Airflow's own in front: for scripts, and for an Airflow that takes none from providers.

    :param arguments: those of the process if left out.
    """
    (group,) = get_modelsync_cli_commands()
    parser = argparse.ArgumentParser(prog=group.name, description=f"{group.help}. {group.description}")
    _offer(parser, group, group.name)
    parsed = parser.parse_args(arguments)
    parsed.func(parsed)


def _offer(parser: argparse.ArgumentParser, group: GroupCommand, called: str) -> None:
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in group.subcommands:
        name = f"{called} {command.name}"
        described = commands.add_parser(command.name, help=command.help, description=command.help)
        if isinstance(command, GroupCommand):
            _offer(described, command, name)
            continue
        for argument in command.args:
            argument.add_to_parser(described)
        described.set_defaults(func=command.func, called=name)
