"""What a running call says of how far it is: a number, perhaps of a total, and a text for people. Pure.

Called by what runs calls, by the api for functions that answer later, and by the views. A tool writes it, so it is cut
and loses what a person would not see; no model is shown it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from eventing.job.tools.fence import plain_text

MESSAGE_CHARS: Final = 200
_LARGEST: Final = 1e15
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def progress_text(progress: Any, total: Any = None, message: Any = None) -> str:
    """The progress as the record keeps it; empty where none can be read."""
    said: dict[str, Any] = {}
    for name, value in (("progress", progress), ("total", total)):
        if (number := _number(value)) is not None:
            said[name] = number
    if isinstance(message, str):
        text = plain_text(_CONTROL.sub(" ", message[: MESSAGE_CHARS * 4]))[:MESSAGE_CHARS]
        if text:
            said["message"] = text
    return orjson.dumps(said).decode() if said else ""


def progress_of(text: str) -> Mapping[str, Any] | None:
    """The progress in a record or a stream entry, with every member; None where there is none."""
    if not text:
        return None
    said = orjson.loads(text)
    return {name: said.get(name) for name in ("progress", "total", "message")}


def _number(value: Any) -> float | int | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if abs(value) > _LARGEST or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)
