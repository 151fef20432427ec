"""The licences of all that an installed wheel brings along, without its extras: a table for the documents.

Usage: ``python scripts/licences.py docs/licences.md``; without a path it prints. Ends with 1 when a licence is none of
those that the package can be used with.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = "airflow-provider-modelsync"
# Licences that ask for no more than their own text to be passed on, or that only concern changes to the library itself.
ALLOWED = ("Apache-2.0", "Artistic", "BSD", "ISC", "MIT", "MPL-2.0", "PSF-2.0", "Unlicense")
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "Artistic License": "Artistic",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
_SAID = {"3-Clause BSD License": "BSD", "Apache License 2.0": "Apache-2.0"}
HEAD = """# Licences

What `pip install airflow-provider-modelsync` brings along, with all that Airflow itself needs, by what each package
says of itself. `make licences` writes this page, and fails for a licence that nobody has looked at.

| Package | Licence |
| --- | --- |
"""


def closure() -> dict[str, Distribution]:
    """Return the distributions that are needed at run time on this machine, by name."""
    found: dict[str, Distribution] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(ROOT, frozenset())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if (key, extras) in seen:
            continue
        seen.add((key, extras))
        found[key] = distribution(name)
        for requirement in map(Requirement, found[key].requires or ()):
            environments = ({"extra": extra} for extra in ("", *extras))
            if requirement.marker is None or any(requirement.marker.evaluate(env) for env in environments):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    del found[ROOT]
    return dict(sorted(found.items()))


def licence_of(package: Distribution) -> str:
    """Return a package's licence as it says it, where it can be by its SPDX name."""
    told = package.metadata
    if expression := told.get("License-Expression"):
        return str(expression)
    classifiers = [line.rpartition(" :: ")[2] for line in told.get_all("Classifier") or () if line.startswith("Lic")]
    if known := [_CLASSIFIERS[line] for line in classifiers if line in _CLASSIFIERS]:
        return " OR ".join(dict.fromkeys(known))
    said = (str(told.get("License") or "").splitlines() or [""])[0].strip()
    return _SAID.get(said, said or "unknown")


def is_allowed(licence: str) -> bool:
    """Whether one may choose a licence from an expression that is allowed."""
    choices = re.split(r"\s+OR\s+", licence.strip("()"))
    return any(
        all(part.strip("() ").startswith(ALLOWED) for part in re.split(r"\s+AND\s+", choice)) for choice in choices
    )


def page() -> str:
    """Return the document."""
    rows = (f"| `{name}` | {licence_of(package)} |\n" for name, package in closure().items())
    return HEAD + "".join(rows)


def main() -> None:
    refused = {name: licence_of(package) for name, package in closure().items()}
    refused = {name: licence for name, licence in refused.items() if not is_allowed(licence)}
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(page())
    else:
        sys.stdout.write(page())
    if refused:
        sys.exit("\n".join(f"{name}: {licence}" for name, licence in refused.items()))


if __name__ == "__main__":
    main()
