"""What is to be done for a file of a vector store, and the events that say so. Pure.

Called by `eventing.store.vector_store.store`, the api that sends the events, and the steps that receive them. An event
only says that a record has changed: what is done follows from the record, so a repeated or late event does no harm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from eventing.cloudevent.event import Event
from eventing.errors import BadRequest
from eventing.job.job import Lane

ADDED: Final = "dev.torpor.vectorstore.file.added.v1"
"""A file is to be indexed."""
CHANGED: Final = "dev.torpor.vectorstore.file.changed.v1"
"""The chunks of a file are to follow its record: other attributes, or the file is no longer there."""
REMOVED: Final = "dev.torpor.vectorstore.removed.v1"
"""The chunks of a vector store are to go: it was deleted, or has expired."""
INDEXED: Final = "dev.torpor.vectorstore.file.indexed.v1"
"""A file was indexed, or could not be: `data.status` says which."""
WORK_TYPES: Final = (ADDED, CHANGED, REMOVED)
_SOURCE: Final = "/torpor/vector-stores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A file whose chunks are not as its record says; without a file, a vector store whose chunks are to go."""

    store_id: str
    file_id: str
    tenant: str

    def to_member(self) -> str:
        """As it stands in the index of notes."""
        return f"{self.store_id} {self.file_id} {self.tenant}"

    @classmethod
    def parse(cls, member: bytes) -> "Note":
        store_id, file_id, tenant = member.decode().split(" ", 2)
        return cls(store_id=store_id, file_id=file_id, tenant=tenant)

    def event(self, type_: str, version: str) -> Event:
        """The event about it. The same version of the record gives the same identity."""
        return Event(
            id=f"{self.store_id}/{self.file_id}/{version}",
            source=_SOURCE,
            type=type_,
            subject=f"{self.store_id}/{self.file_id}" if self.file_id else self.store_id,
            datacontenttype="application/json",
            extensions={"tenant": self.tenant, "priority": str(Lane.DEFAULT)},
            data=orjson.dumps(self.data()),
        )

    def data(self) -> dict[str, Any]:
        return {"vector_store_id": self.store_id, "file_id": self.file_id or None}

    def indexed(self, version: str, result: Mapping[str, Any]) -> Event:
        """The event that says how it went."""
        whole = orjson.dumps({**self.data(), **result})
        event = self.event(INDEXED, f"{version}/indexed")
        return Event(
            id=event.id,
            source=event.source,
            type=event.type,
            subject=event.subject,
            datacontenttype=event.datacontenttype,
            extensions=event.extensions,
            data=whole,
        )


def note_of(event: Event) -> Note:
    """The note that an event is about. Raises `BadRequest`."""
    try:
        data = orjson.loads(event.data)
        store_id, file_id = data["vector_store_id"], data.get("file_id") or ""
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadRequest("the event names no vector store", "data.vector_store_id") from error
    tenant = event.extensions.get("tenant", "")
    if not isinstance(store_id, str) or not isinstance(file_id, str) or not tenant:
        raise BadRequest("the event names no file of a tenant", "data.file_id")
    return Note(store_id=store_id, file_id=file_id, tenant=tenant)
