"""The vendor's own code in processes of its own: the serving app, and commands of the SDK."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INTERPRETER = "MODELSYNC_VENDOR_SUPERVISELY"


class VendorError(Exception):
    """The vendor's code raised; the text is its traceback."""


def interpreter() -> Path:
    """The Python that has the SDK."""
    python = Path(os.environ.get(INTERPRETER, ROOT / ".venv-vendors" / "supervisely" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"{python} is missing: run `make test-vendors`, or name an interpreter in {INTERPRETER}")
    return python


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": os.defpath, "HOME": str(home), "NO_PROXY": "*", "MPLCONFIGDIR": str(home)}


@contextmanager
def serving_app(directory: Path, *arguments: str) -> Iterator[str]:
    """Run supervisely_app.py with these arguments; yields its URL. It may be gone before the end."""
    directory.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("supervisely_app.py")
    log = directory / "log"
    with log.open("wb") as errors:
        app = subprocess.Popen(
            [str(interpreter()), str(script), str(directory), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=directory,
            env=_environment(directory),
        )
    try:
        assert app.stdout
        url = app.stdout.readline().decode().strip()
        if not url:
            raise VendorError(log.read_text())
        yield url
    finally:
        app.kill()
        app.communicate()


@dataclass(frozen=True)
class VendorClient:
    """The SDK against one platform."""

    home: Path
    url: str
    token: str

    def run(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run commands of supervisely_client.py in one process; what each returned."""
        self.home.mkdir(parents=True, exist_ok=True)
        script = str(Path(__file__).with_name("supervisely_client.py"))
        arguments = [json.dumps(command) for command in commands]
        done = subprocess.run(
            [str(interpreter()), script, self.url, self.token, *arguments],
            env=_environment(self.home),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if done.returncode:
            raise VendorError(done.stderr)
        results: list[Any] = json.loads(done.stdout)
        return results
