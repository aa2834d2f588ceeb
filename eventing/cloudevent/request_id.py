"""The id under which a caller knows a request: taken as it comes, if it can stand in a log line.

Called by `api.http.middleware` for each call, by whoever makes a job of one, and by `eventing.cloudevent.job_event`: as
CloudEvents' `correlationid` it goes with the job's events to every process that works for it.
"""

import re
from collections.abc import Mapping
from typing import Final

from eventing.telemetry.span import is_well_formed

KEPT: Final = "torpor.request_id"
"""Under this name of its metadata a job remembers the id its caller gave."""
EXTENSION: Final = "correlationid"
_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


def checked(text: str) -> str:
    """The id, or nothing when it is none."""
    return text if _ID.match(text) else ""


def context_fields(extensions: Mapping[str, str]) -> dict[str, str]:
    """What an event's log lines carry of its caller: the request's id, and the trace's (a tracer of
    ours writes the same).
    """
    found = {}
    if asked_as := checked(extensions.get(EXTENSION, "")):
        found["request_id"] = asked_as
    if is_well_formed(traceparent := extensions.get("traceparent", "")):
        found["trace_id"] = traceparent[3:35]
    return found
