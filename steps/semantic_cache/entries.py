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
        async with failures_named():
            flat, epochs, revision = await send(
                self._redis,
                [
                    ("HGETALL", keys.semantic_vectors(tenant, partition)),
                    *_version_reads(tenant, model),
                ],
            )
            version = _version(epochs, revision)
            best = nearest(_pairs(flat), vector, least=least, limit=limit)
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


def nearest(
    entries: Mapping[str, bytes], vector: NDArray[np.float32], *, least: float, limit: int
) -> list[tuple[str, float]]:
    """The names of the nearest vectors and their cosines, nearest first. A vector of another length is left out."""
    same = [(name, raw) for name, raw in entries.items() if len(raw) == vector.nbytes]
    if not same:
        return []
    matrix = np.frombuffer(b"".join(raw for _, raw in same), np.float32).reshape(len(same), -1)
    cosines = matrix @ vector
    order = np.argsort(-cosines, kind="stable")[:limit]
    return [(same[i][0], float(cosines[i])) for i in order if cosines[i] >= least]


def _pairs(flat: Sequence[bytes] | Mapping[bytes, bytes]) -> dict[str, bytes]:
    """A reply of HGETALL, as a list (RESP2) or as a map (RESP3)."""
    items = flat.items() if isinstance(flat, Mapping) else zip(flat[::2], flat[1::2], strict=True)
    return {name.decode(): raw for name, raw in items}
