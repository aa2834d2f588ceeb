"""The durable records of conversations and their items.

Called by the api and the memory step. What two writers could do at once is one script; a response appends its items
in the script that ends its job (`end_turn` in `_conversation.lua`). A conversation lives for `RETENTION_S` after its
last change; its items, their order and their vectors live and go with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from eventing.errors import BadRequest, NotFound
from eventing.known_fields import known_fields
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run
from eventing.store.conversation.conversation import (
    MOST_BYTES,
    MOST_ITEMS,
    Conversation,
    Item,
    NumberedItem,
    Summary,
    is_conversation_id,
)
from eventing.store.conversation.shown import shown_item

RETENTION_S: Final = 30 * 24 * 3600
_SCAN: Final = 500


class ConversationFull(BadRequest):
    """The conversation has as many items, or bytes, as it may."""

    code = "conversation_full"


class Conversations:
    """Conversations in Redis; the client belongs to the caller. Every method may raise `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(
        self,
        conversation_id: str,
        tenant: str,
        metadata: Mapping[str, str],
        items: Sequence[Item],
    ) -> Conversation:
        """Record a conversation with its first items, each with its id."""
        meta = orjson.dumps(metadata)
        args = [tenant, RETENTION_S, meta, *_pairs(items)]
        async with failures_named():
            made = await run(self._redis, "conversation_create", _keys(conversation_id)[:3], args)
        return Conversation(
            id=conversation_id,
            tenant=tenant,
            created_ms=int(made),
            metadata=metadata,
            seq=len(items),
        )

    async def get(self, tenant: str, conversation_id: str) -> Conversation:
        """The tenant's conversation. Raises `NotFound`."""
        record: Mapping[bytes, bytes] = {}
        if is_conversation_id(conversation_id):
            async with failures_named():
                record = await self._redis.hgetall(keys.conversation(conversation_id))
        if record.get(b"tenant") != tenant.encode():
            raise NotFound(f"Conversation with id '{conversation_id:.64}' not found.")
        return _parse(conversation_id, record)

    async def set_metadata(self, found: Conversation, metadata: Mapping[str, str]) -> None:
        """Replace the metadata. Raises `NotFound` when it was deleted meanwhile."""
        await self._update(found, "metadata", orjson.dumps(metadata))

    async def append(self, found: Conversation, items: Sequence[Item]) -> None:
        """Put items, each with its id, at the end. Raises `ConversationFull`, `NotFound`."""
        args: list[Any] = [MOST_ITEMS, MOST_BYTES, *_pairs(items)]
        async with failures_named():
            answer = await run(self._redis, "conversation_append", _keys(found.id)[:3], args)
        if answer == b"missing":
            raise NotFound(f"Conversation with id '{found.id}' not found.")
        if answer == b"full":
            raise full()

    async def is_full(self, found: Conversation) -> bool:
        """Whether it takes no more items."""
        async with failures_named():
            count = await self._redis.zcard(keys.conversation_order(found.id))
        return bool(count >= MOST_ITEMS or found.size_bytes >= MOST_BYTES)

    async def item(self, found: Conversation, item_id: str) -> Item:
        """One item. Raises `NotFound`."""
        async with failures_named():
            raw = await self._redis.hget(keys.conversation_items(found.id), item_id)
        if raw is None:
            raise _no_item(found, item_id)
        return shown_item(raw)

    async def page(
        self, found: Conversation, *, limit: int, after: str, is_newest_first: bool
    ) -> tuple[list[Item], bool]:
        """The next items after one, and whether there are more. Raises `BadRequest` for an `after` that is none."""
        order, start = keys.conversation_order(found.id), 0
        async with failures_named():
            if after:
                rank = self._redis.zrevrank if is_newest_first else self._redis.zrank
                place = await rank(order, after)
                if place is None:
                    raise BadRequest(
                        "after must be the id of an item of this conversation", "after"
                    )
                start = int(place) + 1
            names = await self._redis.zrange(order, start, start + limit, desc=is_newest_first)
            raw = await self._read(found.id, names[:limit])
        return [shown_item(text) for text in raw if text], len(names) > limit

    async def items(self, found: Conversation, *, after_seq: int = 0) -> list[NumberedItem]:
        """Every item after a number, in order."""
        order, numbered = keys.conversation_order(found.id), list[NumberedItem]()
        at = 0
        while True:
            async with failures_named():
                rows = await self._redis.zrangebyscore(
                    order, f"({after_seq}", "+inf", start=at, num=_SCAN, withscores=True
                )
                raw = await self._read(found.id, [name for name, _ in rows])
            numbered += [
                NumberedItem(int(score), shown_item(text))
                for (_, score), text in zip(rows, raw, strict=True)
                if text
            ]
            if len(rows) < _SCAN:
                return numbered
            at += _SCAN

    async def remove(self, found: Conversation, item_id: str) -> None:
        """Delete an item, its vector, and a summary that covers it. Raises `NotFound`."""
        async with failures_named():
            answer = await run(self._redis, "conversation_remove", _keys(found.id), [item_id])
        if not answer:
            raise _no_item(found, item_id)

    async def delete(self, found: Conversation) -> None:
        """Delete it with its items, summary and vectors. A response that is adding to it adds nothing any more."""
        async with failures_named():
            await self._redis.delete(*_keys(found.id))

    async def summarise(self, found: Conversation, summary: Summary) -> bool:
        """Put a summary in place of the one that `found` was read with; False when there is another now."""
        before = found.summary.seq if found.summary else 0
        args: list[str | bytes | int] = [before, summary.seq, orjson.dumps(asdict(summary))]
        async with failures_named():
            where = [keys.conversation(found.id)]
            return bool(await run(self._redis, "conversation_summarise", where, args))

    async def vectors(self, found: Conversation) -> Mapping[str, bytes]:
        """The vectors that are kept, by item."""
        async with failures_named():
            rows = await self._redis.hgetall(keys.conversation_vectors(found.id))
        return {name.decode(): vector for name, vector in rows.items()}

    async def put_vectors(self, found: Conversation, vectors: Mapping[str, bytes]) -> None:
        """Keep vectors of items that are still there."""
        if vectors:
            args = [part for pair in vectors.items() for part in pair]
            async with failures_named():
                await run(self._redis, "conversation_vectors", _keys(found.id), args)

    async def _update(self, found: Conversation, field: str, value: bytes) -> None:
        where = [keys.conversation(found.id)]
        async with failures_named():
            is_there = await run(self._redis, "conversation_update", where, [field, value])
        if not is_there:
            raise NotFound(f"Conversation with id '{found.id}' not found.")

    async def _read(self, conversation_id: str, names: Sequence[bytes]) -> Sequence[bytes | None]:
        if not names:
            return []
        found: Sequence[bytes | None] = await self._redis.hmget(
            keys.conversation_items(conversation_id), list(names)
        )
        return found


def full() -> ConversationFull:
    """The refusal of a conversation that takes no more."""
    return ConversationFull(
        f"the conversation has {MOST_ITEMS} items, or {MOST_BYTES} bytes: go on in a new one",
        "conversation",
    )


def _no_item(found: Conversation, item_id: str) -> NotFound:
    return NotFound(f"Item with id '{item_id:.64}' not found in conversation '{found.id}'.")


def _keys(conversation_id: str) -> list[str]:
    return [
        keys.conversation(conversation_id),
        keys.conversation_items(conversation_id),
        keys.conversation_order(conversation_id),
        keys.conversation_vectors(conversation_id),
    ]


def _pairs(items: Sequence[Item]) -> list[str | bytes]:
    return [text for item in items for text in (str(item["id"]), orjson.dumps(item))]


def _parse(conversation_id: str, record: Mapping[bytes, bytes]) -> Conversation:
    summary = orjson.loads(record[b"summary"]) if b"summary" in record else None
    return Conversation(
        id=conversation_id,
        tenant=record[b"tenant"].decode(),
        created_ms=int(record[b"created_ms"]),
        metadata=orjson.loads(record[b"metadata"]),
        seq=int(record.get(b"seq", 0)),
        size_bytes=int(record.get(b"bytes", 0)),
        job=record.get(b"job", b"").decode(),
        summary=Summary(**known_fields(Summary, summary)) if summary else None,
    )
