"""An Idempotency-Key on calls that have no identity of their own: the first answer is kept, and
given again to whoever asks the same under the same key.

Called by `api.routes.route` for calls registered with `replays=True`. (Jobs, responses, files and batches
need none of this: there the key is part of the id.) Must not know any call.
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
"""How long a call may be under way; after that its process has died, and the key is free."""
_SHOWN: Final = frozenset({"content-type", "location"})


class Replay:
    """Kept answers on one Redis client that it does not own."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def once(
        self, scope: str, key: str, asked: bytes, answer: Callable[[], Awaitable[Response]]
    ) -> Response:
        """What `answer` gives, or gave to the same key in this scope. A refusal is not kept, so
        that the call can be mended and tried again.

        Raises `IdempotencyConflict` when the key stands for another request, `Overloaded` while the
        first is under way. If the process dies in between, the call can be made again after a
        minute, and may then have been made twice.
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
        raise Overloaded("the first call under this key is under way", 1.0)
    headers = kept["headers"]
    assert isinstance(headers, dict)  # noqa: S101 (we wrote it)
    shown = {**headers, "idempotent-replayed": "true"}
    return Response(str(kept["body"]), int(str(kept["status"])), headers=shown)
