"""The entries of the semantic cache in Redis, and the counts of a tenant's shadow phase.

An entry is a pointer to the job that answered, and the vector of its question; the question and the answer stay in
the job's record, so that nothing of them outlives it. It is void when its model's answers were invalidated or its
weights changed since (the counters are those of the exact cache), and when its job is deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.script import run, send
from steps.semantic_cache.vectors import VERSION, Known, KnownVectors, nearest

COMPLAINT_S: Final = 60
"""A call that refuses stored answers this soon after such an answer is a complaint about it."""
_MARK_S: Final = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Found:
    """An entry near a question. `job` answered it."""

    name: str
    job: JobId
    similarity: float


@dataclass(frozen=True, slots=True)
class Nearby:
    """What a look-up found, nearest first. `version` tells whether the answers of the model were voided since."""

    version: str
    found: tuple[Found, ...]


class SemanticEntries:
    """The entries of every tenant; the connection belongs to the caller. Its calls raise `StoreUnavailable`."""

    def __init__(self, redis: SharedRedis) -> None:
        self._redis = redis
        self._known = KnownVectors()

    async def near(
        self,
        tenant: str,
        model: str,
        partition: str,
        vector: NDArray[np.float32],
        *,
        least: float,
        limit: int,
    ) -> Nearby:
        """The partition's entries with a cosine of at least `least`: an exact scan."""
        key = keys.semantic_vectors(tenant, partition)
        async with failures_named():
            at, epochs, revision = await send(
                self._redis, [("HGET", key, VERSION), *_version_reads(tenant, model)]
            )
            version = _version(epochs, revision)
            best = nearest(await self._vectors(key, at), vector, least=least, limit=limit)
            names = [name for name, _ in best]
            entries = await send(
                self._redis,
                [("HMGET", keys.cache_entry(tenant, n), "job", "epoch", "revision") for n in names],
            )
        found = tuple(
            Found(name, JobId(entry[0].decode()), similarity)
            for (name, similarity), entry in zip(best, entries, strict=True)
            if entry[0] and (entry[1] or b"") + b"/" + (entry[2] or b"") == version.encode()
        )
        return Nearby(version, found)

    async def _vectors(self, key: str, version: bytes | None) -> Known:
        """The partition's vectors. What this process knows of them is not read again."""
        if version is None:
            self._known.forget(key)
            return Known(b"", (), np.empty((0, 0), np.float32))
        known = self._known.get(key)
        if known is not None and known.version == version:
            return known
        (fields,) = await send(self._redis, [("HKEYS", key)])
        names = [name for name in fields if name != VERSION]
        before = set(known.names) if known else set()
        asked = [name for name in names if name not in before]
        (raws,) = await send(self._redis, [("HMGET", key, *asked)]) if asked else ([],)
        new = {name: raw for name, raw in zip(asked, raws, strict=True) if raw is not None}
        return self._known.update(key, version, names, new)

    async def version(self, tenant: str, model: str) -> str:
        """Changes whenever the tenant's answers of the model are voided, or its weights change."""
        async with failures_named():
            epochs, revision = await send(self._redis, _version_reads(tenant, model))
        return _version(epochs, revision)

    async def keep(
        self,
        job_id: JobId,
        tenant: str,
        partition: str,
        vector: NDArray[np.float32],
        *,
        version: str,
        ttl_s: int,
        most: int,
    ) -> str:
        """Keep a job's answer; a repeated call changes nothing. Gives what became of it, in one word."""
        name = keys.semantic_name(job_id)
        async with failures_named():
            answer = await run(
                self._redis,
                "semantic_keep",
                [
                    keys.job(job_id),
                    keys.cache_entry(tenant, name),
                    keys.semantic_vectors(tenant, partition),
                    keys.semantic_entries(tenant),
                ],
                [
                    job_id,
                    keys.escape(tenant),
                    name,
                    partition,
                    vector.tobytes(),
                    version,
                    ttl_s,
                    most,
                ],
            )
        return str(answer.decode())

    async def forget(self, tenant: str, name: str) -> bool:
        """Serve an entry never again; False when there is none."""
        async with failures_named():
            args = [keys.escape(tenant), name]
            gone = await run(self._redis, "cache_forget", [keys.cache_entry(tenant, name)], args)
        return bool(gone)

    async def note_served(self, tenant: str, digest: str, name: str, rule: str) -> None:
        """Remember for a minute that this question got this entry's answer, by which rule."""
        async with failures_named():
            key = keys.semantic_served(tenant, digest)
            await self._redis.set(key, f"{name} {rule}", ex=COMPLAINT_S)

    async def complain(self, tenant: str, digest: str) -> tuple[str, str] | None:
        """The caller repeats the question and refuses a stored answer: the entry that it had is not served again.
        Gives the entry and its rule; None when it had none, or complained before.
        """
        async with failures_named():
            noted = await self._redis.getdel(keys.semantic_served(tenant, digest))
        if not noted:
            return None
        name, _, rule = noted.decode().partition(" ")
        await self.forget(tenant, name)
        return name, rule

    async def counts(self, tenant: str) -> Mapping[str, int]:
        """The counts of a tenant's shadow phase, by `count_field`."""
        async with failures_named():
            flat = await self._redis.hgetall(keys.semantic_shadow(tenant))
        return {name.decode(): int(count) for name, count in flat.items()}

    async def count(self, tenant: str, job_id: JobId, field: str) -> bool:
        """Count a result of a job once; False when that was done before."""
        async with failures_named():
            names = [keys.semantic_mark(job_id), keys.semantic_shadow(tenant)]
            return bool(await run(self._redis, "semantic_count", names, [field, _MARK_S]))


def _version_reads(tenant: str, model: str) -> list[tuple[str, ...]]:
    return [
        ("HMGET", keys.cache_epochs(tenant), "*", model),
        ("HGET", keys.REVISIONS, model),
    ]


def _version(epochs: Sequence[bytes | None], revision: bytes | None) -> str:
    """As `semantic_keep.lua` makes it."""
    epoch = ":".join((value or b"0").decode() for value in epochs)
    return f"{epoch}/{(revision or b'').decode()}"
