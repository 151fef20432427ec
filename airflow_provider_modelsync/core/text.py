"""Text that somebody else has written, made fit for one line of a log or a message."""

from __future__ import annotations

import re

# Control characters, lone surrogates (bytes that are no UTF-8), line and paragraph separators, direction marks.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """Return a text with control characters, line ends and direction marks written as escapes."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode("ascii"), text)


def span(seconds: float) -> str:
    """Return a span of time as people read it, e.g. ``"1 h 30 min"``."""
    total = round(seconds)
    if total < 1:
        return f"{seconds:.1f} s" if seconds else "0 s"
    counts = {"d": total // 86400, "h": total // 3600 % 24, "min": total // 60 % 60, "s": total % 60}
    return " ".join([f"{count} {unit}" for unit, count in counts.items() if count][:2])
