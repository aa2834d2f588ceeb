"""Events about vector stores: what is done for each, and the event that replies.

Called by the steps process for each delivery.
"""

from eventing.cloudevent.event import Event
from eventing.errors import TorporError, Unavailable
from eventing.store.vector_store.note import note_of
from eventing.store.vector_store.record import FileStatus
from steps.handler import NotInstalled
from steps.retrieval.ingest import Ingester


class IndexingFailed(TorporError):
    """The try broke; the event is to be delivered again."""

    code = "indexing_failed"
    is_retryable = True


class VectorStoreEvents:
    """Has an ingester do what events ask for."""

    def __init__(self, ingester: Ingester) -> None:
        self._ingester = ingester

    async def __call__(self, event: Event) -> Event | None:
        """Raises `Unavailable`, `BadRequest` for an event about nothing, and `IndexingFailed`."""
        note = note_of(event)
        try:
            status = await self._ingester.handle(note)
        except NotInstalled as error:  # what is to be deleted is not forgotten
            raise Unavailable(error.message, 60) from error
        except TorporError:
            raise
        except Exception as error:  # whatever a file did to its reader; the tries are counted
            raise IndexingFailed(f"the try broke: {type(error).__name__}") from error
        if not isinstance(status, FileStatus):
            return None
        return note.indexed(event.id, {"status": str(status)})
