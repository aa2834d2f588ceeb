"""How much of bodies that are still coming in a process holds.

Called by `api.http.body`. Every sender may be slow and have sent almost all that one call may: a limit a
call is none for the process (docs/adr/0096).
"""

from typing import Final

from eventing.errors import Overloaded

HELD_BYTES: Final = 64 * 1024 * 1024
"""64 calls of the largest size at once, or thousands of the usual ones."""
_RETRY_AFTER_S: Final = 1.0


class NoBodyRoom(Overloaded):
    """Others are sending too much already."""

    code = "no_body_room"


class BodyRoom:
    """Bytes held, of a most."""

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self._left = most_bytes

    def take(self, size: int) -> None:
        """Raises `NoBodyRoom` when there is no room; then nothing is taken."""
        if size > self._left:
            raise NoBodyRoom("too many large bodies at once", _RETRY_AFTER_S)
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size
