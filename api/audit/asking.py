"""The job in which a critic judges one answer. Pure.

Called by `api.audit.round`. The same answer always gives the same job, so that one that is asked for twice runs once.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from api.audit.audits import NAME, VERSION, passages_given
from api.audit.critic import answer_of, critic_request, question_of
from eventing.job.job import API_SOURCE, Job, Lane
from eventing.job.moderation.claim import Claim
from eventing.job.pipelines.audit import AUDIT_TENANT, SEARCHED_TENANT, AuditRule, audit_job_id
from eventing.job.plan import PlannedStep
from eventing.job.store import NewJob

LONGEST_MS: Final = 6 * 3600 * 1000
"""An audit that waits longer for its critic fails."""


def claim_of(job: Job) -> Claim:
    """What is to be judged of a job that has ended."""
    return Claim(
        question=question_of(job),
        answer=answer_of(job),
        passages=tuple(each.text for each in passages_given(job)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """A critic as it is now. `max_tokens` limits its answer, `claim_tokens` is what is left of its context for what it
    judges; `revision` names its weights, and is empty before it was ever ready.
    """

    name: str
    version: str
    max_tokens: int
    claim_tokens: int
    revision: str = ""


def critic_job(critic: Critic, name: str, claim: Claim, now_ms: int) -> NewJob:
    """The critic's job on the answer of this name."""
    job_id = audit_job_id(name)
    mark = hashlib.sha256(f"mark {job_id}".encode()).hexdigest()[:16]
    return NewJob(
        id=job_id,
        request=critic_request(critic.name, claim, mark, critic.max_tokens),
        source=API_SOURCE,  # so that its event is known for that of this job
        event_id=job_id,
        tenant=AUDIT_TENANT,
        lane=Lane.BATCH,
        deadline_ms=now_ms + LONGEST_MS,
        metadata={NAME: name, VERSION: critic.version},
    )


def searching(new: NewJob, rule: AuditRule, tenant: str) -> NewJob:
    """The same job, with a search for passages in the tenant's vector stores before it."""
    step = PlannedStep(name="retrieve", settings=dict(rule.retrieve or {}))
    metadata = {**new.metadata, SEARCHED_TENANT: tenant}
    return replace(new, own_steps=(step,), metadata=metadata)
