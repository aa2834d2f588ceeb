"""Idempotency-Key for calls whose result has no id derived from the key: the first response is stored and replayed
for the same request with the same key.

Called by `api.routes.route` for calls registered with `replays=True`. (Jobs, responses, files and batches do not
need it: their id derives from the key.) Must not know any call.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
from redis.asyncio import Redis
from starlette.responses import Response

from eventing.errors import IdempotencyConflict, InvalidJob, Overloaded
from eventing.redis import keys
from eventing.redis.connection import failures_named

_KEPT_S: Final = 24 * 3600
_UNDER_WAY_S: Final = 60
"""Time limit of a call; after it the process is taken for dead, and the key may be used again."""
_SHOWN: Final = frozenset({"content-type", "location"})


class Replay:
    """Stored responses in Redis; the client belongs to the caller."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def once(
        self, scope: str, key: str, asked: bytes, answer: Callable[[], Awaitable[Response]]
    ) -> Response:
        """The result of `answer`, or the stored one of the same key in this scope. A refusal is not stored, so that
        the call can be corrected and repeated.

        Raises `IdempotencyConflict` when the key was used for another request, `Overloaded` while the first call is
        in progress. If the process dies in between, the call can be repeated after a minute, and may then have been
        executed twice.
        """
        if len(key) > 255:
            raise InvalidJob("Idempotency-Key may have 255 characters", "Idempotency-Key")
        digest = hashlib.sha256(f"{scope}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()
        name, asked_hash = keys.replay(digest), hashlib.sha256(asked).hexdigest()
        mark = orjson.dumps({"asked": asked_hash})
        async with failures_named():
            known = await self._redis.set(name, mark, nx=True, ex=_UNDER_WAY_S, get=True)
        if known is not None:
            return _replayed(orjson.loads(known), asked_hash)
        try:
            given = await answer()
        except BaseException:
            async with failures_named():
                await self._redis.delete(name)
            raise
        headers = {n: v for n, v in given.headers.items() if n in _SHOWN}
        kept = {
            "asked": asked_hash,
            "status": given.status_code,
            "headers": headers,
            "body": bytes(given.body).decode(),
        }
        async with failures_named():
            await self._redis.set(name, orjson.dumps(kept), ex=_KEPT_S)
        return given


def _replayed(kept: dict[str, object], asked_hash: str) -> Response:
    if kept["asked"] != asked_hash:
        raise IdempotencyConflict("the same key was used before with another body", "body")
    if "status" not in kept:
        raise Overloaded("the first call with this key is in progress", 1.0)
    headers = kept["headers"]
    assert isinstance(headers, dict)  # noqa: S101 (we wrote it)
    shown = {**headers, "idempotent-replayed": "true"}
    return Response(str(kept["body"]), int(str(kept["status"])), headers=shown)
