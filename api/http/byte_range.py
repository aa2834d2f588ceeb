"""Range and conditional requests (RFC 9110, sections 13 and 14).

Called by routes with large responses. `byte_range` is pure.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import ClassVar, Final

from starlette.responses import Response

from eventing.errors import TorporError

_ONE_RANGE: Final = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*\Z")


class RangeNotSatisfiable(TorporError):
    """The range begins after the end."""

    status: ClassVar[int] = 416
    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"the range begins after the last of {size} bytes")
        self.headers = {"content-range": f"bytes */{size}"}


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of the one range in `header`; None for the whole body, also for several ranges or
    another unit. Raises `RangeNotSatisfiable`.
    """
    found = _ONE_RANGE.match(header)
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def partial_response(data: bytes, asked: Mapping[str, str], media_type: str) -> Response:
    """`data`, or the part that the headers in `asked` request: 200, 206 or 304. Raises `RangeNotSatisfiable`."""
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"etag": etag, "accept-ranges": "bytes"}
    known = [tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")]
    if etag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    wanted = None
    if asked.get("if-range", etag) == etag:
        wanted = byte_range(asked.get("range", ""), len(data))
    if wanted is None:
        return Response(data, media_type=media_type, headers=headers)
    start, end = wanted
    headers["content-range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return Response(data[start:end], 206, headers=headers, media_type=media_type)
