"""The event that says what a critic made of an answer. Pure.

Called by `api.audit.audits`. Its JSON Schema is in `docs/schemas`. It has no text of the job in it.
"""

from datetime import UTC, datetime
from typing import Final

import orjson

from api.audit.store import Audit
from eventing.cloudevent.event import Event

AUDITED: Final = "dev.torpor.inference.audited.v1"
SOURCE: Final = "/torpor/audits"


def audited_event(audit: Audit) -> Event:
    """The event of a verdict; the same verdict always gives the same identity."""
    data = {
        "id": audit.id,
        "job": audit.job_id,
        "model": audit.model,
        "critic": audit.critic,
        "critic_version": audit.critic_version,
        "verdict": audit.verdict,
    }
    moment = datetime.fromtimestamp(audit.judged_ms / 1000, UTC)
    return Event(
        id=audit.id,
        source=SOURCE,
        type=AUDITED,
        subject=audit.job_id,
        time=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        datacontenttype="application/json",
        extensions={"tenant": audit.tenant, "model": audit.model},
        data=orjson.dumps(data),
    )
