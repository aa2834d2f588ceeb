"""How a server says that it became a replica, and connections of a pool that leave it then: a server that was demoted
keeps its connections, and without their end the address would never be looked up again.

Called by `eventing.redis.connection`, `eventing.redis.sentinel` and `eventing.redis.multiplexed_connection`.
"""

from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError, ReadOnlyError, ResponseError

REPLICA_NOW = "the server is a replica now"


def says_replica(text: str) -> bool:
    """True for an error reply of a server that refuses writes, or that ended a blocking read because it was demoted."""
    return "READONLY" in text or text.startswith("UNBLOCKED force unblock")


class LeavesReplica:
    """Closes a connection of redis-py when its server says that it is a replica; mixed into a connection."""

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """As redis-py's. Raises `ConnectionError` for what a replica says."""
        try:
            return await super().read_response(*arguments, **options)  # type: ignore[misc]
        except ResponseError as error:
            # redis-py cuts the code READONLY off.
            if not isinstance(error, ReadOnlyError) and not says_replica(str(error)):
                raise
            await self.disconnect()  # type: ignore[attr-defined]
            raise ConnectionError(REPLICA_NOW) from error


class PrimaryConnection(LeavesReplica, Connection):  # type: ignore[misc]  # redis is untyped to us
    """A connection without TLS."""
