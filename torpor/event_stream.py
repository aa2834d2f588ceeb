"""The events in a stream of server-sent events (HTML standard, section 9.2).

Called by `torpor.client`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class ServerSentEvent:
    """One event; `lines` are those of its data."""

    name: str = ""
    id: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def data(self) -> str:
        return "\n".join(self.lines)

    def take(self, line: str) -> None:
        """Read one line of it; fields that are not known, and comments, are left out."""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self.name = value
            case "id":
                self.id = value
            case "data":
                self.lines.append(value)


async def server_sent_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[ServerSentEvent]:
    """The events in pieces of a stream, whatever the length of a line."""
    event = ServerSentEvent()
    async for line in _lines(pieces):
        if line:
            event.take(line)
            continue
        if event.lines:
            yield event
        event = ServerSentEvent()


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    rest: list[bytes] = []
    async for piece in pieces:
        first, *more = piece.split(b"\n")
        rest.append(first)
        for begun in more:
            yield b"".join(rest).decode().rstrip("\r")
            rest = [begun]
