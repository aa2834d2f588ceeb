"""Samples ended jobs for audits, and records what the critics said.

Called by `eventing.live.ended` for each ended job, so never on the way to an answer, and only where a model has a rule
for audits. Both halves may be repeated: a job is sampled once, and a verdict is recorded and counted once.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
import structlog
from prometheus_client import Counter

from api.audit.critic import Verdict, answer_of, verdict_of
from api.audit.event import audited_event
from api.audit.sampling import is_sampled
from api.audit.store import Audit, AuditStore, Judged, golden_row
from api.view.response import RECORD
from eventing.cloudevent.publisher import Publisher
from eventing.errors import BadRequest
from eventing.job.cache.cache import parse_cache_control
from eventing.job.job import CHAT_URLS, Job, JobId, JobState
from eventing.job.passage import Passage, passages_of
from eventing.job.pipelines.audit import AUDIT_TENANT, SEARCHED_TENANT, AuditRule, AuditRules
from eventing.job.store import JobIntake
from eventing.telemetry.metric.series import labelled

NAME: Final = "torpor.audit"
"""Metadata of a critic's job: the name of what it judges."""
VERSION: Final = "torpor.audit.version"
"""Metadata of a critic's job: the version of the critic."""

_log = structlog.get_logger()
_audits = Counter(
    "torpor_audits_total",
    "Audits of answers that ended, by the model that answered and what became of them.",
    ["model", "verdict"],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditDeps:
    """What audits are made of; all of it belongs to the caller. `models` are those that may stand in a metric."""

    rules: AuditRules
    audits: AuditStore
    jobs: JobIntake
    publisher: Publisher
    models: Collection[str]


class Audits:
    """An `EndListener`."""

    def __init__(self, deps: AuditDeps) -> None:
        self._deps = deps

    async def ended(self, job: Job) -> None:
        """Return once the job waits for its audit or needs none, or once its verdict on another is recorded. Raises
        `Unavailable`; the call must then be repeated.
        """
        if job.tenant == AUDIT_TENANT:
            if NAME in job.metadata:
                await self.judge(job)
            return
        rule = self._deps.rules.get(job.request.model)
        if rule is not None and is_auditable(job, rule):
            model = job.to_run.model  # of a public name over several, the one that answered
            model = model if model in self._deps.models else job.request.model
            await self._deps.audits.sample(job, model, rule)

    async def judge(self, job: Job) -> None:
        """Record the verdict of a critic's job that has ended."""
        whole = await self._deps.jobs.get(job.id)
        judged = Judged(
            name=job.metadata[NAME],
            critic=job.request.model,
            verdict=_verdict(whole or job),
            critic_version=job.metadata.get(VERSION, ""),
            gpu_ms=job.gpu_ms,
            at_ms=job.finished_ms,
        )
        await self.record(judged)
        if job.state is JobState.COMPLETED:  # it has a copy of another's answer in it
            await self._deps.jobs.delete(job.id)

    async def record(self, judged: Judged) -> None:
        """Record a verdict and publish its event; for a verdict that was recorded before, the same event once more."""
        job_id = None if golden_row(judged.name) else JobId(judged.name)
        audit = await self._deps.audits.get(job_id) if job_id else None
        is_new = await self._deps.audits.judge(judged, audit)
        if audit is None or job_id is None:
            return
        if is_new:
            labelled(_audits, audit.model, str(judged.verdict)).inc()
        told = await self._deps.audits.get(job_id)
        if told is not None and told.verdict is not None and told.verdict.is_counted:
            await self._publish(told)

    async def _publish(self, audit: Audit) -> None:
        try:
            await self._deps.publisher.publish(audited_event(audit))
        except BadRequest as error:  # the broker refuses it for good
            _log.warning("not told", action="audit", job_id=audit.job_id, reason=error.code)


def is_auditable(job: Job, rule: AuditRule) -> bool:
    """True for an ended job that is to be audited. Never one whose caller wants nothing of it kept."""
    return (
        job.state is JobState.COMPLETED
        and is_sampled(job.id, rule.share_of(job.tenant))
        and job.request.url == CHAT_URLS[0]
        and not (job.cache is not None and job.cache.is_hit)
        and not _is_not_stored(job)
        and (rule.retrieve is not None or bool(passages_given(job)))
    )


def passages_given(job: Job) -> tuple[Passage, ...]:
    """The passages that the job was given."""
    details: list[Mapping[str, object]] = [
        each.detail for each in job.pipeline if each.step == "retrieve"
    ]
    return passages_of(details[0].get("sources")) if details else ()


def _is_not_stored(job: Job) -> bool:
    if parse_cache_control(job.cache_control).no_store:
        return True
    response = job.metadata.get(RECORD)
    return response is not None and orjson.loads(response).get("store") is False


def _verdict(job: Job) -> Verdict:
    if job.state is not JobState.COMPLETED:
        return Verdict.FAILED
    if SEARCHED_TENANT in job.metadata and not passages_given(job):
        return Verdict.NO_PASSAGES
    return verdict_of(answer_of(job))
