"""Endpoints and deliveries of webhooks in Redis.

Called by the listener (put), the sender (take, note) and the handlers. A delivery is written together with its
entry in the due index. A sender that claims a delivery postpones it for a while, so that a dead sender's deliveries
become due again. All keys share one hash tag. Must not know HTTP.
"""

from collections.abc import Callable
from typing import Any, Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import WatchError

from api.webhook.schedule import TryVerdict
from api.webhook.webhook import PER_JOB, Endpoint, Secret, Try, WebhookDelivery, new_secret
from eventing.errors import NotFound, StoreUnavailable
from eventing.known_fields import known_fields, known_value
from eventing.redis import keys
from eventing.redis.connection import failures_named, store_now_ms
from eventing.redis.script import run
from eventing.telemetry.trace import SpanLinks

KEEP_S: Final = 7 * 24 * 3600
"""How long a delivery is kept after its last try; longer than the longest pause between tries."""
_WRITES: Final = 8


class WebhookStore:
    """Endpoints and deliveries; the Redis client belongs to the caller. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.links = SpanLinks(redis)

    async def endpoints(self, tenant: str) -> list[Endpoint]:
        """The tenant's endpoints, oldest first."""
        async with failures_named():
            rows: dict[bytes, bytes] = await self._redis.hgetall(keys.webhook_endpoints_of(tenant))
        found = [_endpoint(tenant, raw) for raw in rows.values()]
        ours = [endpoint for endpoint in found if endpoint.id != PER_JOB]
        return sorted(ours, key=lambda e: (e.created_s, e.id))

    async def endpoint(self, tenant: str, endpoint_id: str) -> Endpoint | None:
        async with failures_named():
            raw = await self._redis.hget(keys.webhook_endpoints_of(tenant), endpoint_id)
        return _endpoint(tenant, raw) if raw else None

    async def per_job(self, tenant: str) -> Endpoint:
        """The endpoint with the secret for the tenant's per-job webhooks, created on first use."""
        key = keys.webhook_endpoints_of(tenant)
        async with failures_named():
            now_s = int((await self._redis.time())[0])
            fresh = Endpoint(
                id=PER_JOB,
                tenant=tenant,
                url="",
                name="jobs with a webhook of their own",
                secrets=(Secret(text=new_secret()),),
                created_s=now_s,
                updated_s=now_s,
            )
            await self._redis.hsetnx(key, PER_JOB, _dump(fresh))
            return _endpoint(tenant, await self._redis.hget(key, PER_JOB))

    async def add(self, endpoint: Endpoint) -> None:
        async with failures_named():
            await self._redis.hset(
                keys.webhook_endpoints_of(endpoint.tenant), endpoint.id, _dump(endpoint)
            )

    async def change(
        self, tenant: str, endpoint_id: str, edit: Callable[[Endpoint], Endpoint]
    ) -> Endpoint:
        """Apply `edit` to the endpoint atomically; gives the changed endpoint. Raises `NotFound`."""
        key = keys.webhook_endpoints_of(tenant)
        async with failures_named(), self._redis.pipeline(transaction=True) as pipe:
            for _ in range(_WRITES):
                await pipe.watch(key)
                raw = await pipe.hget(key, endpoint_id)
                if raw is None:
                    raise NotFound("no such webhook endpoint")
                edited = edit(_endpoint(tenant, raw))
                pipe.multi()
                pipe.hset(key, endpoint_id, _dump(edited))
                try:
                    await pipe.execute()
                except WatchError:
                    continue
                return edited
        raise StoreUnavailable("too many changes of this tenant's endpoints at once")

    async def remove(self, tenant: str, endpoint_id: str) -> bool:
        """Delete an endpoint; False when there was none. Its pending deliveries are dropped when they are due."""
        async with failures_named():
            return bool(await self._redis.hdel(keys.webhook_endpoints_of(tenant), endpoint_id))

    async def put(self, deliveries: list[WebhookDelivery]) -> None:
        """Record deliveries, due at once. Idempotent: a known delivery is unchanged."""
        async with failures_named():
            now_ms = await self.now_ms()
            async with self._redis.pipeline(transaction=True) as pipe:
                for delivery in deliveries:
                    self._put(pipe, delivery, now_ms)
                await pipe.execute()

    def _put(self, pipe: Any, delivery: WebhookDelivery, now_ms: int) -> None:
        key = keys.webhook_delivery(delivery.id)
        fields = {
            "tenant": delivery.tenant,
            "endpoint": delivery.endpoint,
            "url": delivery.url,
            "type": delivery.type,
            "subject": delivery.subject,
            "body": delivery.body,
            "created_ms": now_ms,
            "state": TryVerdict.PENDING,
            "tries": 0,
        }
        for name, value in fields.items():
            pipe.hsetnx(key, name, value)
        pipe.expire(key, KEEP_S)
        # NX: a waiting delivery keeps its time; an ended one is dropped when it is claimed
        pipe.zadd(keys.DUE_WEBHOOKS, {delivery.id: now_ms}, nx=True)
        pipe.zadd(keys.webhook_log_of(delivery.tenant), {delivery.id: now_ms}, nx=True)
        pipe.zremrangebyscore(keys.webhook_log_of(delivery.tenant), "-inf", now_ms - KEEP_S * 1000)
        pipe.expire(keys.webhook_log_of(delivery.tenant), KEEP_S)
        about = keys.webhooks_about(delivery.tenant, delivery.subject)
        pipe.sadd(about, delivery.id)
        pipe.expire(about, KEEP_S)

    async def take(self, limit: int, hold_ms: int) -> list[WebhookDelivery]:
        """Claim due deliveries for `hold_ms`; entries of ended or deleted ones are removed from the index."""
        async with failures_named():
            due: list[bytes] = await run(
                self._redis, "take_due", [keys.DUE_WEBHOOKS], [limit, hold_ms]
            )
            found = await self._read([member.decode() for member in due])
            over = [
                member
                for member, delivery in zip(due, found, strict=True)
                if delivery is None or delivery.state.is_settled
            ]
            if over:
                await self._redis.zrem(keys.DUE_WEBHOOKS, *over)
        return [d for d in found if d is not None and not d.state.is_settled]

    async def note(
        self,
        delivery: WebhookDelivery,
        state: TryVerdict,
        *,
        delay_ms: int = 0,
        entry: Try | None = None,
    ) -> bool:
        """Record a try (or, without one, the end). False when another sender already did."""
        text = orjson.dumps(entry) if entry is not None else b""
        number = delivery.tries + 1 if entry is not None else 0
        async with failures_named():
            answer = await run(
                self._redis,
                "webhook_note",
                [keys.webhook_delivery(delivery.id), keys.DUE_WEBHOOKS],
                [delivery.id, number, state, delay_ms, text, KEEP_S],
            )
        return bool(answer == b"ok")

    async def postpone(self, delivery: WebhookDelivery, delay_ms: int) -> None:
        """Make it due after `delay_ms`, without a try."""
        async with failures_named():
            at_ms = await self.now_ms() + delay_ms
            await self._redis.zadd(keys.DUE_WEBHOOKS, {delivery.id: at_ms}, xx=True)

    async def delivery(self, tenant: str, delivery_id: str) -> WebhookDelivery | None:
        """The tenant's delivery with that id, with its tries."""
        async with failures_named():
            (found,) = await self._read([delivery_id])
        return found if found is not None and found.tenant == tenant else None

    async def log(self, tenant: str, limit: int, before_ms: int = 0) -> list[WebhookDelivery]:
        """The tenant's deliveries, newest first. Those of one millisecond stand together, beyond `limit` too: one job
        has a delivery for each endpoint, and the next page begins before the last millisecond.
        """
        key, top = keys.webhook_log_of(tenant), f"({before_ms}" if before_ms else "+inf"
        async with failures_named():
            ids = await self._redis.zrange(
                key, top, "-inf", desc=True, byscore=True, offset=0, num=limit
            )
            if len(ids) == limit and (last_ms := await self._redis.zscore(key, ids[-1])):
                together = await self._redis.zrange(key, int(last_ms), int(last_ms), byscore=True)
                ids += [member for member in together if member not in ids]
            found = await self._read([member.decode() for member in ids])
        return [delivery for delivery in found if delivery is not None]

    async def of(self, tenant: str, subject: str) -> list[WebhookDelivery]:
        """The deliveries of one job or batch, in no order."""
        async with failures_named():
            ids = await self._redis.smembers(keys.webhooks_about(tenant, subject))
            found = await self._read([member.decode() for member in ids])
        return [delivery for delivery in found if delivery is not None]

    async def now_ms(self) -> int:
        """Store time, by which pauses are counted."""
        return await store_now_ms(self._redis)

    async def _read(self, ids: list[str]) -> list[WebhookDelivery | None]:
        if not ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for delivery_id in ids:
                pipe.hgetall(keys.webhook_delivery(delivery_id))
            rows = await pipe.execute()
        return [_parse(i, row) for i, row in zip(ids, rows, strict=True)]


def _dump(endpoint: Endpoint) -> bytes:
    return orjson.dumps(endpoint)


def _endpoint(tenant: str, raw: bytes) -> Endpoint:
    fields = orjson.loads(raw)
    fields["secrets"] = tuple(
        Secret(**known_fields(Secret, secret)) for secret in fields["secrets"]
    )
    fields["event_types"] = tuple(fields["event_types"])
    return Endpoint(**known_fields(Endpoint, fields) | {"tenant": tenant})


def _parse(delivery_id: str, row: dict[bytes, bytes]) -> WebhookDelivery | None:
    """The delivery; None when its record is incomplete."""
    if b"state" not in row or b"tries" not in row:
        return None
    tries = int(row[b"tries"])
    return WebhookDelivery(
        id=delivery_id,
        tenant=row[b"tenant"].decode(),
        endpoint=row[b"endpoint"].decode(),
        url=row[b"url"].decode(),
        type=row[b"type"].decode(),
        subject=row[b"subject"].decode(),
        body=row[b"body"],
        created_ms=int(row[b"created_ms"]),
        state=known_value(TryVerdict, row[b"state"].decode()),
        tries=tries,
        log=tuple(_try(row[b"try:%d" % n]) for n in range(1, tries + 1)),
    )


def _try(raw: bytes) -> Try:
    return Try(**known_fields(Try, orjson.loads(raw)))
