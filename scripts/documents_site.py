"""What `make docs` makes a site of: the documents, with links that hold there, and pages for the public classes.

Run as ``python scripts/documents_site.py build/site-source``. Documents link each other as they lie in the repository.
On the site they are all in one directory, with the first page as ``index.md``.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The name of a document on the site, where it is another one.
RENAMED = {"README.md": "index.md", "docs/README.md": "documents.md"}
PACKAGE = "airflow_provider_modelsync"
# Modules whose public classes have a place in the reference, by the title that they stand under.
REFERENCE = {
    "Operators": "operators",
    "Sensors": "sensors",
    "Triggers": "triggers",
    "Hooks": "hooks",
    "Assets": "assets",
    "Errors": "core/errors",
}
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^( *```\w+) .*$", re.MULTILINE)  # what else stands there is for the tests
_CLASS = re.compile(r"^(?:class|def) ([A-Za-z]\w*)", re.MULTILINE)


def main(target: Path) -> None:
    """Write all pages into a directory, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        (target / _name(document)).write_text(_on_site(document, target))
    with (target / "api.md").open("a") as page:
        page.write("\n".join(_reference()))


def _on_site(document: Path, target: Path) -> str:
    """Return a document's text with links that hold on the site."""
    text = _FENCE.sub(r"\1", document.read_text())
    return _LINK.sub(lambda link: link[1] + _moved(link[2], document, target) + link[3], text)


def _name(document: Path) -> str:
    return RENAMED.get(str(document.relative_to(ROOT)), document.name)


def _moved(link: str, document: Path, target: Path) -> str:
    """Return where a document's link leads on the site; what is no document is put there, too."""
    path, hash_, anchor = link.partition("#")
    if "://" in link or not path:
        return link
    found = (document.parent / path).resolve()
    if found.suffix == ".md":
        return _name(found) + hash_ + anchor
    place = found.relative_to(ROOT)
    (target / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(found, target / place)
    return str(place)


def _reference() -> list[str]:
    lines = []
    for title, place in REFERENCE.items():
        lines.append(f"\n## {title}\n")
        path = ROOT / PACKAGE / place
        modules = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        for module in modules:
            dotted = ".".join(module.relative_to(ROOT).with_suffix("").parts)
            lines += [
                f"::: {dotted}.{name}\n" for name in _CLASS.findall(module.read_text()) if _is_public(name, title)
            ]
    return lines


def _is_public(name: str, title: str) -> bool:
    """Whether users name it: classes, and functions where a title stands for these."""
    return name[0].isupper() or title in ("Assets", "Hooks")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
