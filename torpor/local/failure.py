"""Why a process did not start, in one line from its log. Pure.

Called by the stack, the fleet and the launchers. Our own processes log it as `action: start` with a `reason`; for
others the last error is taken.
"""

import json
import re
from contextlib import suppress
from typing import Final

_ERROR: Final = re.compile(r"^[ |]*(?:[\w.]+\.)?(\w*(?:Error|Exception|Failure)): (.+)")
_OURS: Final = re.compile(r"^torpor(?: [\w.-]+)?: (.+)|^(TORPOR_\w+=.+|cannot listen on .+)")
_LONGEST: Final = 300


def reason_in(text: str) -> str:
    """The last reason in a log; empty when there is none."""
    for line in reversed(text.splitlines()):
        if reason := _logged(line) or _said(line):
            return _short(reason)
    return ""


def _short(reason: str) -> str:
    """In one line, without the names of exceptions."""
    line = " ".join(reason.split()).removeprefix("EngineStartError: ")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _logged(line: str) -> str:
    if line.startswith("{"):
        with suppress(ValueError, AttributeError):
            entry = json.loads(line)
            if entry.get("action") == "start" and entry.get("level") == "error":
                return str(entry.get("reason", ""))
    return ""


def _said(line: str) -> str:
    if found := _OURS.match(line):
        return found[1] or found[2]
    found = _ERROR.match(line)
    return f"{found[1]}: {found[2]}" if found else ""
