"""Parses request bodies that must be JSON objects.

Called by every handler with such a body. Must not know the content.
"""

from typing import Any, Final

import orjson
from starlette.requests import Request

from api.http.errors import UnsupportedMedia
from eventing.errors import BadRequest
from eventing.process.body import BodyReader


async def read_object(bodies: BodyReader, request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises `UnsupportedMedia` when the content type is not JSON (so that another site's web page cannot post here
    without a CORS preflight), `BadRequest` when the body is not a JSON object.
    """
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind[-5:] == "+json"
    ):
        raise UnsupportedMedia("send content-type: application/json", "content-type")
    return parse_object(await bodies.read(request))


def parse_object(raw: bytes) -> dict[str, Any]:
    """`raw` as a JSON object that can be serialised again. Raises `BadRequest` otherwise."""
    if not raw.strip():
        raise BadRequest("the body is empty; send a JSON object", "body")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at {error.pos}", "body") from error
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", "body")
    if raw.count(b"[") + raw.count(b"{") >= _DEPTH_LIMIT:
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises `BadRequest` for nesting that could not be stored: orjson reads 1,024 levels, and writes 254."""
    level: list[Any] = [value]
    for _ in range(_DEPTH_LIMIT):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise BadRequest(f"the body is nested over {_DEPTH_LIMIT} levels deep", "body")


_DEPTH_LIMIT: Final = 200
