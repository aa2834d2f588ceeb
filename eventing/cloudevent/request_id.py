"""Validates the id that a caller gives its request, and carries it to every log line of the request.

Called by `api.http.middleware` for each call, by code that makes a job from a call, and by
`eventing.cloudevent.job_event`: the id travels with the job's events as CloudEvents' `correlationid`.
"""

import re
from collections.abc import Mapping
from typing import Final

from eventing.telemetry.span import is_well_formed

KEPT: Final = "torpor.request_id"
"""Key of a job's metadata under which its caller's request id is stored."""
EXTENSION: Final = "correlationid"
_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


def checked(text: str) -> str:
    """The id, or an empty string when it is invalid."""
    return text if _ID.match(text) else ""


def context_fields(extensions: Mapping[str, str]) -> dict[str, str]:
    """Log fields of an event's caller: its request id and its trace id."""
    found = {}
    if asked_as := checked(extensions.get(EXTENSION, "")):
        found["request_id"] = asked_as
    if is_well_formed(traceparent := extensions.get("traceparent", "")):
        found["trace_id"] = traceparent[3:35]
    return found
