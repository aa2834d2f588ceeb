"""Asks critics about the answers that wait, in the background of the api.

Every process does, and none needs to know of the others: one script says which audits are taken and how many may be in
flight. A critic that is scaled to zero is left asleep until enough wait, and no critic is asked for more than the share
of GPU time that audits may take. A process that dies leaves audits that were taken and not asked; the next round after
a minute asks for them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
from redis.asyncio import Redis

from api.audit.asking import Critic, claim_of, critic_job, searching
from api.audit.audits import Audits
from api.audit.budget import Spent, most_in_flight
from api.audit.critic import Verdict, answer_of, critic_version, fits
from api.audit.estimate import GoldenCounts
from api.audit.golden import GoldenSet
from api.audit.store import AuditStore, Judged, golden_row
from api.audit.usage import UsageReader
from eventing.broker.intake import Intake
from eventing.errors import BadRequest, Unavailable
from eventing.job.job import JobId
from eventing.job.pipelines.audit import AuditRules, audit_job_id, critics_of
from eventing.job.store import JobReader, NewJob
from eventing.redis import keys
from eventing.redis.connection import failures_named

_EVERY_S: Final = 5.0

_AGAIN_AFTER_MS: Final = 3600 * 1000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDeps:
    """What asks is made of; all of it belongs to the caller. So many audits (`least_waiting`) wake a critic that is
    asleep; `gpu_share` is what audits may take of the GPU time; `contexts` has the tokens that each model can read.
    """

    rules: AuditRules
    least_waiting: int
    gpu_share: float
    golden: GoldenSet
    contexts: Mapping[str, int]
    redis: Redis
    audits: AuditStore
    usage: UsageReader
    listener: Audits
    jobs: JobReader
    intake: Intake
    is_awake: Callable[[str], Awaitable[bool]]


class AuditRound:
    """Run `run` in a task."""

    def __init__(self, deps: RoundDeps) -> None:
        self._deps = deps

    async def run(self) -> None:
        """Ask until cancelled; waits while the store is unavailable."""
        while True:
            for name in critics_of(self._deps.rules):
                with suppress(Unavailable):
                    await self.ask(name)
            await asyncio.sleep(_EVERY_S)

    async def ask(self, name: str) -> int:
        """Ask one critic about what waits for it, as far as it may be; gives about how many. Raises `Unavailable`;
        what was taken and not asked is asked for a minute later.
        """
        audits, critic = self._deps.audits, await self.critic(name)
        for stale in await audits.stale(name):
            await self._ask_again(critic, stale)
        waiting = await audits.waiting(name)
        if not waiting:
            return 0
        is_awake = await self._deps.is_awake(name)
        if waiting < self._deps.least_waiting and not is_awake:
            return 0
        measured = await self._measured(critic)
        if measured is not None and not measured.is_fit:
            return 0
        most = await self._most_in_flight(name)
        if not is_awake and not critic.revision:
            most = min(most, 1)  # it is woken, and then says which weights it has: another version
        taken = await audits.take(name, most, golden_only=measured is None)
        for each in taken:
            await self._ask_for(critic, each)
        return len(taken)

    async def critic(self, name: str) -> Critic:
        """The critic as it is now."""
        async with failures_named():
            revision = await self._deps.redis.hget(keys.REVISIONS, name)
        text, most = revision.decode() if revision else "", critics_of(self._deps.rules)[name]
        return Critic(
            name=name,
            version=critic_version(name, text, self._deps.golden.digest, most),
            revision=text,
            max_tokens=most,
            claim_tokens=self._deps.contexts[name] - most,
        )

    async def version(self, name: str) -> str:
        """The version of the critic as it is now."""
        return (await self.critic(name)).version

    async def _measured(self, critic: Critic) -> GoldenCounts | None:
        """How this version of the critic did on the golden set; None while rows of it have no verdict, and then they
        wait to be asked. A run that failed is done again an hour later.
        """
        audits, golden = self._deps.audits, self._deps.golden
        run = await audits.golden(critic.version)
        counts = golden.counts(run.verdicts)
        is_old = run.failed_ms and await audits.now_ms() - run.failed_ms > _AGAIN_AFTER_MS
        if is_old and not counts.is_fit:
            await audits.forget_golden(critic.version, run)
        elif len(run.verdicts) >= len(golden.rows):
            return counts
        await audits.add_golden(critic.name, critic.version, len(golden.rows))
        return None

    async def _most_in_flight(self, critic: str) -> int:
        """How many audits the budget allows now."""
        usage = await self._deps.usage.read()
        mine = usage.spent.get(critic, Spent())
        return most_in_flight(mine, usage.audits_s, usage.of(critic), self._deps.gpu_share)

    async def _ask_again(self, critic: Critic, name: str) -> None:
        """See to an audit without a verdict after a minute: its job runs yet, or has ended and that was not heard, or
        was never submitted.
        """
        job = await self._deps.jobs.get(audit_job_id(name), with_result=False)
        if job is None:
            await self._ask_for(critic, name)
        elif job.state.is_terminal:
            await self._deps.listener.judge(job)

    async def _ask_for(self, critic: Critic, name: str) -> None:
        """Submit the critic's job on one answer, or record why there is none."""
        now_ms = await self._deps.audits.now_ms()
        new = await self._job_on(critic, name, now_ms)
        if isinstance(new, NewJob):
            try:
                await self._deps.intake.submit(new)
                return
            except BadRequest as error:
                _log.warning("not audited", action="audit", job_id=name, reason=error.code)
                new = Verdict.FAILED
        judged = Judged(
            name=name,
            critic=critic.name,
            verdict=new,
            critic_version=critic.version,
            at_ms=now_ms,
        )
        await self._deps.listener.record(judged)

    async def _job_on(self, critic: Critic, name: str, now_ms: int) -> NewJob | Verdict:
        """The critic's job, or what became of the audit without one."""
        row, rows = golden_row(name), self._deps.golden.rows
        if row is not None:
            if row.critic_version != critic.version or row.number >= len(rows):
                return Verdict.GONE  # of a critic or a golden set that is no more
            claim = rows[row.number].claim
            is_fitting = fits(claim, critic.claim_tokens)
            return critic_job(critic, name, claim, now_ms) if is_fitting else Verdict.TOO_LONG
        job = await self._deps.jobs.get(JobId(name))
        rule = self._deps.rules.get(job.request.model) if job else None
        if job is None or rule is None or not answer_of(job):
            return Verdict.GONE
        claim = claim_of(job)
        if not fits(claim, critic.claim_tokens):
            return Verdict.TOO_LONG
        new = critic_job(critic, name, claim, now_ms)
        if claim.passages:
            return new
        return (
            searching(new, rule, job.tenant) if rule.retrieve is not None else Verdict.NO_PASSAGES
        )
