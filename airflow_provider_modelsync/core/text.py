"""Text that somebody else has written, made fit for one line of a log or a message."""

from __future__ import annotations

import re

# Control characters, lone surrogates (bytes that are no UTF-8), line and paragraph separators, direction marks.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """Return a text with control characters, line ends and direction marks written as escapes."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode("ascii"), text)
