"""Audits in Redis: which jobs are to be audited, what the critics said, and the sums that the rate is made of.

Called by the rest of `api.audit` and by the route. Every change is one script that does nothing the second time. Text
of a job is never kept here. Raises `StoreUnavailable`.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from redis.asyncio import Redis

from api.audit.budget import Spent
from api.audit.critic import Verdict
from api.audit.estimate import AuditedCounts
from eventing.errors import BadRequest
from eventing.job.job import Job, JobId
from eventing.job.pipelines.audit import AuditRule
from eventing.redis import keys
from eventing.redis.connection import failures_named, store_now_ms
from eventing.redis.script import Argument, run

DAY_MS: Final = 86_400_000
_KEPT_S: Final = 90 * 24 * 3600
"""How long sums and golden verdicts are kept; a critic is measured again after that."""
_MOST_WAITING: Final = 10_000
"""Audits of one critic that may wait; while there are so many, no more are sampled."""
_STALE_MS: Final = 60_000
_GOLDEN: Final = "golden:"
_SUMS: Final = ("jobs", "weights", "squares", "flagged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The audit of one job. `weight` is 1 / (the sampled share of its like). Times are store time in milliseconds, 0
    for not yet; without a `verdict` it waits.
    """

    job_id: JobId
    tenant: str
    model: str
    critic: str
    weight: float = 1.0
    ended_ms: int = 0  #: when the job ended
    sampled_ms: int = 0
    judged_ms: int = 0
    verdict: Verdict | None = None
    critic_version: str = ""

    @property
    def id(self) -> str:
        return f"audit_{self.job_id.removeprefix('job_')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a critic's job ended with, and what it took. `name` is a job's id, or that of a golden row."""

    name: str
    critic: str
    verdict: Verdict
    critic_version: str = ""
    gpu_ms: int = 0
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class RowName:
    """A golden row among the audits: of which critic's run, and which row."""

    critic_version: str
    run: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRun:
    """A critic's verdicts on the golden set, by row; `failed_ms` is when a row failed last, 0 for none."""

    run: str = ""
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    failed_ms: int = 0


def golden_row(name: str) -> RowName | None:
    """The golden row of this name; None for the name of a job's audit."""
    if not name.startswith(_GOLDEN):
        return None
    version, run, number = name.removeprefix(_GOLDEN).split(":")
    return RowName(version, run, int(number))


class AuditStore:
    """The audits of all tenants; the client belongs to the caller."""

    def __init__(self, redis: Redis, retention_s: int) -> None:
        self._redis = redis
        self._retention_s = retention_s

    async def sample(self, job: Job, model: str, rule: AuditRule) -> bool:
        """Let the audit of an ended job wait. False when it did already, or too many wait."""
        weight = 1 / rule.share_of(job.tenant)
        fields: Mapping[str, Argument] = {
            "tenant": job.tenant,
            "model": model,
            "critic": rule.critic,
            "weight": repr(weight),
            "ended_ms": job.finished_ms,
        }
        args: list[Argument] = [job.id, self._retention_s, _MOST_WAITING]
        args += [part for pair in fields.items() for part in pair]
        where = [keys.audit(job.id), keys.audits_waiting(rule.critic), keys.audits_of(job.tenant)]
        async with failures_named():
            return bool(await run(self._redis, "audit_sample", where, args))

    async def waiting(self, critic: str) -> int:
        """How many audits of a critic wait."""
        async with failures_named():
            return int(await self._redis.zcard(keys.audits_waiting(critic)))

    async def take(self, critic: str, most_in_flight: int, *, golden_only: bool) -> list[str]:
        """Names of the audits that are to be asked for now; they count as in flight until their verdict."""
        where = [keys.audits_waiting(critic), keys.audits_asked(critic)]
        newest = 0 if golden_only else "+inf"
        async with failures_named():
            names = await run(self._redis, "audit_take", where, [most_in_flight, newest])
        return [name.decode() for name in names]

    async def stale(self, critic: str, at_once: int = 100) -> list[str]:
        """Names of audits that were asked for a minute ago and more, each once a minute."""
        where, args = [keys.audits_asked(critic)], [_STALE_MS, at_once]
        async with failures_named():
            return [name.decode() for name in await run(self._redis, "audit_stale", where, args)]

    async def add_golden(self, critic: str, critic_version: str, rows: int) -> int:
        """Let the golden rows wait that have no verdict; gives how many have none."""
        where = [
            keys.audit_golden(critic_version),
            keys.audits_waiting(critic),
            keys.audits_asked(critic),
        ]
        args: list[Argument] = [f"{_GOLDEN}{critic_version}:", secrets.token_hex(4), rows, _KEPT_S]
        async with failures_named():
            return int(await run(self._redis, "audit_golden", where, args))

    async def golden(self, critic_version: str) -> GoldenRun:
        """A critic's newest run over the golden set."""
        async with failures_named():
            record = await self._redis.hgetall(keys.audit_golden(critic_version))
        text = {name.decode(): value.decode() for name, value in record.items()}
        return GoldenRun(
            run=text.get("run", ""),
            verdicts={int(row): _verdict(said) for row, said in text.items() if row.isdigit()},
            failed_ms=int(text.get("failed_ms", 0)),
        )

    async def forget_golden(self, critic_version: str, old: GoldenRun) -> None:
        """Begin a new run over the golden set, unless one has begun since `old` was read."""
        where = [keys.audit_golden(critic_version)]
        async with failures_named():
            await run(self._redis, "audit_forget", where, [old.run])

    async def judge(self, judged: Judged, audit: Audit | None) -> bool:
        """Record a verdict and count it. `audit` is that of the job, None for a golden row. False when there was a
        verdict, or the audit is gone.
        """
        row = golden_row(judged.name)
        day = (audit.ended_ms if audit else judged.at_ms) // DAY_MS
        names = [
            keys.audit_golden(row.critic_version) if row else keys.audit(JobId(judged.name)),
            keys.audits_asked(judged.critic),
            keys.audit_counts(day),
            keys.audit_spent(judged.at_ms // DAY_MS),
        ]
        args: list[Argument] = [
            row.run if row else "",
            str(row.number) if row else "verdict",
            judged.verdict,
            judged.name,
            _KEPT_S,
            judged.critic,
            judged.critic_version,
            judged.gpu_ms,
        ]
        args += _sums(judged, audit)
        async with failures_named():
            return bool(await run(self._redis, "audit_judge", names, args))

    async def get(self, job_id: JobId) -> Audit | None:
        """The audit of a job."""
        return (await self.read([job_id]))[0]

    async def read(self, job_ids: Sequence[JobId]) -> list[Audit | None]:
        """The audits of these jobs."""
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.audit(job_id))
            records = await pipe.execute()
        return [
            _parse(job_id, record) if record else None
            for job_id, record in zip(job_ids, records, strict=True)
        ]

    async def page(
        self, tenant: str, limit: int, after: JobId | None = None, *, is_ascending: bool = False
    ) -> tuple[list[JobId], bool]:
        """A tenant's audited jobs by when they were sampled, newest first unless `is_ascending`, from the one after
        `after` on; and whether there are more. Raises `BadRequest` for an `after` that is none of them.
        """
        key, start = keys.audits_of(tenant), 0
        async with failures_named():
            if after is not None:
                rank = self._redis.zrank if is_ascending else self._redis.zrevrank
                place = await rank(key, after)
                if place is None:
                    raise BadRequest("after must be the id of an entry of this list", "after")
                start = int(place) + 1
            found = await self._redis.zrange(key, start, start + limit, desc=not is_ascending)
        return [JobId(each.decode()) for each in found[:limit]], len(found) > limit

    async def counts(self, days: Sequence[int]) -> dict[tuple[str, str], AuditedCounts]:
        """The sums over these days, by critic version and model."""
        found: dict[tuple[str, str], AuditedCounts] = {}
        for record in await self._hashes([keys.audit_counts(day) for day in days]):
            sums: dict[tuple[str, str], dict[str, float]] = {}
            for place, amount in record.items():
                version, name, model = place.decode().split("|", 2)
                if name in _SUMS:
                    sums.setdefault((version, model), {})[name] = float(amount)
            for key, values in sums.items():
                values["jobs"] = int(values.get("jobs", 0))
                found[key] = found.get(key, AuditedCounts()) + AuditedCounts(**values)  # type: ignore[arg-type]
        return found

    async def spent(self, days: Sequence[int]) -> dict[str, Spent]:
        """What audits took on these days, by critic."""
        found: dict[str, Spent] = {}
        for record in await self._hashes([keys.audit_spent(day) for day in days]):
            for place, amount in record.items():
                critic, _, name = place.decode().rpartition("|")
                old = found.get(critic, Spent())
                more_ms, more = (int(amount), 0) if name == "gpu_ms" else (0, int(amount))
                found[critic] = Spent(gpu_ms=old.gpu_ms + more_ms, jobs=old.jobs + more)
        return found

    async def now_ms(self) -> int:
        """Store time."""
        return await store_now_ms(self._redis)

    async def _hashes(self, names: Sequence[str]) -> list[dict[bytes, bytes]]:
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(name)
            records: list[dict[bytes, bytes]] = await pipe.execute()
            return records


def _sums(judged: Judged, audit: Audit | None) -> list[Argument]:
    """What one verdict adds to the sums of its critic version and model."""
    if audit is None or not judged.verdict.is_counted:
        return []
    flagged = audit.weight if judged.verdict is Verdict.UNSUPPORTED else 0.0
    amounts = (1, audit.weight, audit.weight**2, flagged)
    return [
        part
        for name, amount in zip(_SUMS, amounts, strict=True)
        for part in (f"{judged.critic_version}|{name}|{audit.model}", repr(float(amount)))
    ]


def _parse(job_id: JobId, record: Mapping[bytes, bytes]) -> Audit:
    text = {name.decode(): value.decode() for name, value in record.items()}
    return Audit(
        job_id=job_id,
        tenant=text.get("tenant", ""),
        model=text.get("model", ""),
        critic=text.get("critic", ""),
        weight=float(text.get("weight", 1)),
        ended_ms=int(text.get("ended_ms", 0)),
        sampled_ms=int(text.get("sampled_ms", 0)),
        judged_ms=int(text.get("judged_ms", 0)),
        verdict=_verdict(text["verdict"]) if "verdict" in text else None,
        critic_version=text.get("critic_version", ""),
    )


def _verdict(text: str) -> Verdict:
    """The verdict in a record; one that only a newer version knows is not counted."""
    return Verdict(text) if text in list(Verdict) else Verdict.FAILED
