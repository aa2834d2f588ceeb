"""Reads a server-sent event stream: the data of each event, as the HTML standard's section 9.2.6 says. Pure.

Called by `predictor.engine.upstream.engine`.
"""

import re
from collections.abc import Iterator
from typing import Final

from eventing.errors import TorporError
from predictor.engine.upstream.errors import UpstreamFailed

_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?!\Z)")
"""A CR at the end of what has arrived may be half of a CR LF."""


class EventStream:
    """Takes bytes as they arrive; events other than their data are ignored."""

    def __init__(self, *, limit_bytes: int) -> None:
        """`limit_bytes` is the longest event."""
        self._limit_bytes = limit_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of each event that is whole now. Raises `TorporError` for one above the limit."""
        *lines, self._rest = _LINE_END.split(self._rest + received)
        for line in lines:
            self._size += len(line)
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line:
                if self._data:
                    yield b"\n".join(self._data)
                self._data, self._size = [], 0
            self._check()
        self._check()

    def _check(self) -> None:
        if self._size + len(self._rest) > self._limit_bytes:
            raise self._too_long()

    def _too_long(self) -> TorporError:
        return UpstreamFailed(f"the provider sent an event of over {self._limit_bytes} bytes")
