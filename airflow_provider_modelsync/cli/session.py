"""One run of a command: its connections, where it prints, what ends it, and what its end tells the shell."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from airflow_provider_modelsync.compat import AirflowException
from airflow_provider_modelsync.core import failure
from airflow_provider_modelsync.core.errors import ModelSyncError, Retryable
from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.redact import redact, secrets_of
from airflow_provider_modelsync.core.text import escape
from airflow_provider_modelsync.core.transfer.progress import bar_text
from airflow_provider_modelsync.hooks.registry import ConnectionMissing, RegistryHook, get_registry_hook

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

FAILED = 1  # for good
TRY_AGAIN = os.EX_TEMPFAIL
_SIGNALLED = 128  # and the signal's number, as shells have it
_TABLES = {"plain": "plain", "table": "presto"}  # as tabulate calls them
_NAME, _BAR = 20, 10  # of 80 columns
_ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command prints.

    :param data: as JSON or YAML.
    :param rows: else; in columns.
    :param headers: of the columns.
    :param status: the exit code.
    :param empty: what to tell people when there are no rows.
    """

    data: Any
    rows: Sequence[Sequence[str]]
    headers: Sequence[str] = ()
    status: int = 0
    empty: str = ""


class Session:
    """What a command works with.

    :param console: a terminal to draw on, where there is one.
    """

    def __init__(self, console: Console | None) -> None:
        self.cancel = CancelToken()
        self.secrets: set[str] = set()
        self.ended_by: int | None = None
        self._console = console

    def hook(self, conn_id: str) -> RegistryHook:
        """Return a connection's hook, which ends its work when the command is told to."""
        hook = get_registry_hook(conn_id)
        hook.cancel_token = self.cancel
        self.secrets.update(secrets_of(hook.get_conn().settings))
        return hook

    @contextmanager
    def progress(self, hook: RegistryHook, doing: str) -> Iterator[None]:
        """Draw how far the hook's transfer is, if there is a terminal; elsewhere the log tells."""
        if self._console is None:
            yield
            return
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR),
            TextColumn("{task.fields[told]}", markup=False),
        )
        bar = Progress(*columns, auto_refresh=False, console=self._console)
        name = escape(doing)
        task = bar.add_task(name if len(name) <= _NAME else f"{name[: _NAME - 1]}…", total=None, told="")
        began = time.monotonic()

        def look() -> RenderableType:
            tally = hook.tally
            told = bar_text(tally, time.monotonic() - began)
            bar.update(task, completed=tally.done, total=tally.total or None, told=told)
            return bar.get_renderable()

        with Live(get_renderable=look, console=self._console, refresh_per_second=10, transient=True):
            yield

    def warn(self, text: str) -> None:
        """Tell what is easily overlooked: in red, where there is a terminal."""
        if self._console is None:
            print(text, file=sys.stderr)  # noqa: T201
        else:
            self._console.print(text, style="red")

    def end(self, number: int, _frame: FrameType | None) -> None:
        """End the work in hand, leaving nothing half-made; the second time at once."""
        self.ended_by = number
        self.cancel.cancel()
        signal.signal(number, signal.SIG_DFL)


def command(do: Callable[[argparse.Namespace, Session], Answer]) -> Callable[[argparse.Namespace], None]:
    """Make a command of what it does: the process ends with it."""

    @functools.wraps(do)
    def run(args: argparse.Namespace) -> None:
        # As Airflow's own commands do that look connections up: environment, secrets backends, metadata database.
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
        with _answers_only() as stdout:
            console = _terminal()
            _set_up_logs(console, verbose=args.verbose)
            session = Session(console)
            for number in _ENDING:
                signal.signal(number, session.end)
            try:
                answer = do(args, session)
                status = answer.status
                _print(answer, stdout, "json" if args.as_json else args.output)
            except BrokenPipeError:
                status = _SIGNALLED + signal.SIGPIPE
            except Exception as error:
                status = _status_of(error, session)
                doing = getattr(args, "called", None) or f"airflow modelsync {args.subcommand}"
                _complain(error, session, doing=doing, verbose=args.verbose)
        sys.exit(status)

    return run


def _status_of(error: Exception, session: Session) -> int:
    if session.ended_by is not None:
        return _SIGNALLED + session.ended_by
    return TRY_AGAIN if isinstance(error, Retryable) and not isinstance(error, ConnectionMissing) else FAILED


def _complain(error: Exception, session: Session, *, doing: str, verbose: bool) -> None:
    if verbose:
        lines = "".join(traceback.format_exception(error)).splitlines()
        print("\n".join(redact(line, session.secrets) for line in lines), file=sys.stderr)  # noqa: T201
    for line in _words_of(error, session, doing):
        print(escape(redact(line, session.secrets)), file=sys.stderr)  # noqa: T201


def _words_of(error: Exception, session: Session, doing: str) -> Iterable[str]:
    if session.ended_by is not None:
        return [f"{doing}: cancelled; run the same command to go on"]
    if isinstance(error, ModelSyncError):
        status = _status_of(error, session)
        outlook = failure.NO_USE if status == FAILED else "run the same command again: it may succeed then"
        return failure.block(error, doing, f"{outlook} (exit status {status})")
    # What nobody has raised on purpose is not told by its message alone.
    message = str(error) if isinstance(error, AirflowException) else repr(error)
    return [f"{doing}: {' '.join(message.split())}"]


def _print(answer: Answer, stdout: int, form: str) -> None:
    if form == "json":
        text = json.dumps(answer.data, indent=2)
    elif form == "yaml":
        import yaml

        text = yaml.safe_dump(json.loads(json.dumps(answer.data)), sort_keys=False).rstrip("\n")
    elif answer.empty and not answer.rows:
        print(escape(answer.empty), file=sys.stderr)  # noqa: T201
        return
    else:
        from tabulate import tabulate  # type: ignore[import-untyped]

        rows = [[escape(cell) for cell in row] for row in answer.rows]
        text = tabulate(rows, answer.headers, tablefmt=_TABLES[form], disable_numparse=True)
    with open(stdout, "w", encoding="utf-8", closefd=False) as out:
        out.write(f"{text}\n")


@contextmanager
def _answers_only() -> Iterator[int]:
    """Yield standard output, and send to standard error whatever Airflow's logs would write there."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield stdout
    finally:
        os.close(stdout)


def _terminal() -> Console | None:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False)


def _set_up_logs(console: Console | None, *, verbose: bool) -> None:
    """Show what the transfers tell as plain lines, or above the bar what is worth it there."""
    if verbose:
        return
    logging.getLogger().setLevel(logging.WARNING)
    ours = logging.getLogger("modelsync")
    handler: logging.Handler = logging.StreamHandler(sys.stderr) if console is None else _Above(console)
    handler.addFilter(lambda record: not getattr(record, "is_outcome", False))  # the answer says it
    ours.addHandler(handler)
    ours.setLevel(logging.INFO if console is None else logging.WARNING)
    ours.propagate = False


class _Above(logging.Handler):
    """Writes above the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), soft_wrap=True)
