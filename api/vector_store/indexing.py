"""Sends the events that have files indexed and chunks removed, and repeats those that led to nothing.

Called by the routes of vector stores after each change, and by the api in a loop. The change left a note in the
store: when this process dies before it has sent the event, the sweep sends it ten seconds later. Must not know HTTP.
"""

import asyncio
import hashlib
from contextlib import suppress
from typing import Final

import structlog

from eventing.clock import Clock
from eventing.cloudevent.event import Event
from eventing.cloudevent.publisher import Publisher
from eventing.errors import BadRequest, Unavailable
from eventing.store.vector_store.note import ADDED, CHANGED, REMOVED, Note
from eventing.store.vector_store.record import FileStatus, StoreStatus
from eventing.store.vector_store.store import VectorStores

_SWEEP_EVERY_S: Final = 5.0
_AT_ONCE: Final = 100

_log = structlog.get_logger()


class IndexingEvents:
    """The events about vector stores; store and publisher belong to the caller."""

    def __init__(self, stores: VectorStores, publisher: Publisher, clock: Clock) -> None:
        self._stores = stores
        self._publisher = publisher
        self._clock = clock

    async def send(self, *notes: Note) -> None:
        """Send the events of these notes. What cannot be sent now is sent by the sweep."""
        try:
            for note in notes:
                await self._send(note)
        except (Unavailable, BadRequest) as error:
            _log.info("left to the sweep", action="index", reason=error.code)

    async def run(self) -> None:
        """Send the events of notes that are due, until cancelled."""
        while True:
            with suppress(Unavailable):
                while len(due := await self._stores.due(_AT_ONCE)) == _AT_ONCE:
                    await self.send(*due)
                await self.send(*due)
            await asyncio.sleep(_SWEEP_EVERY_S)

    async def _send(self, note: Note) -> None:
        event = await self._file_event(note) if note.file_id else await self._store_event(note)
        if event is not None:
            await self._publisher.publish(event)

    async def _file_event(self, note: Note) -> Event:
        found = await self._stores.files(note.store_id, [note.file_id])
        if not found:
            return note.event(CHANGED, "removed")
        file = found[0]
        if file.status is FileStatus.IN_PROGRESS:
            return note.event(ADDED, file.generation)
        digest = hashlib.sha256(file.settings_json).hexdigest()[:16]
        return note.event(CHANGED, f"{file.generation}/{file.status}/{digest}")

    async def _store_event(self, note: Note) -> Event | None:
        """None while the vector store is still wanted: it is looked at again when it may have expired."""
        found = await self._stores.read([note.store_id])
        if found:
            store = found[0]
            if store.status(self._clock.wall_ms() // 1000) is not StoreStatus.EXPIRED:
                if store.expires_at:
                    await self._stores.look_again(note, store.expires_at * 1000)
                else:
                    await self._stores.clear(note, store.settings_json)
                return None
            await self._stores.delete(store, keeps_record=True)
        return note.event(REMOVED, "removed")
