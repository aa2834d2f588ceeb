"""Running summaries of conversations: asked for when a response has ended, and kept when the job of the summary has.

Called by `eventing.live.ended` for each ended job, so never on the way to an answer. A summary is a job of the lowest
lane. Both halves may be repeated: the job's id derives from what it summarises, and a summary is put in place of the
one that it was made of only.
"""

import structlog
from prometheus_client import Counter

from eventing.broker.intake import Intake
from eventing.errors import BadRequest, NotFound
from eventing.job.job import (
    API_SOURCE,
    Job,
    JobRequest,
    JobState,
    Lane,
    derive_job_id,
)
from eventing.job.plan import Plan
from eventing.job.store import JobReader, NewJob
from eventing.store.conversation.conversation import Summary
from eventing.store.conversation.facts import facts_of
from eventing.store.conversation.policy import STEP, memory_policy
from eventing.store.conversation.store import Conversations
from eventing.store.conversation.summary import SUMMARY, VERBATIM, due, refusal, summary_body
from eventing.telemetry.metric.series import labelled

_log = structlog.get_logger()
_summaries = Counter(
    "torpor_api_summaries_total",
    "Summaries of conversations, by outcome: asked, kept, empty, lost_number, stale.",
    ["outcome"],
)


class Summaries:
    """An `EndListener`. What it is given belongs to the caller."""

    def __init__(self, conversations: Conversations, intake: Intake, store: JobReader) -> None:
        self._conversations = conversations
        self._intake = intake
        self._store = store

    async def ended(self, job: Job) -> None:
        """Return once the summary is asked for, or kept, or there is none. Raises `Unavailable`; the call must then
        be repeated.
        """
        if job.state not in (JobState.COMPLETED, JobState.INCOMPLETE):
            return
        try:
            if asked := job.metadata.get(SUMMARY):
                await self._keep(job, asked)
            elif job.conversation and (step := job.plan.step(STEP) if job.plan else None):
                await self._ask(job, memory_policy(step.settings).summarise_every_messages)
        except NotFound:
            return  # the conversation was deleted
        except BadRequest as error:
            _log.warning("no summary", action="summary", job_id=job.id, reason=error.code)

    async def _ask(self, job: Job, every_messages: int) -> None:
        found = await self._conversations.get(job.tenant, job.conversation)
        before = found.summary.seq if found.summary else 0
        if not every_messages or found.seq - before < every_messages + VERBATIM:
            return
        items = await self._conversations.items(found, after_seq=before)
        chosen = due(items, every_messages)
        if not chosen:
            return
        # While one waits to be made, none is asked for again until as many messages more were said.
        part = (len(items) - VERBATIM) // every_messages
        job_id = derive_job_id(f"{API_SOURCE}/summary", f"{found.id}:{before}:{part}")
        new = NewJob(
            id=job_id,
            request=JobRequest(
                url="/v1/chat/completions",
                body=summary_body(job.request.model, found.summary, chosen),
            ),
            source=API_SOURCE,
            event_id=job_id,
            tenant=job.tenant,
            lane=Lane.BATCH,
            metadata={SUMMARY: f"{found.id}:{before}:{chosen[-1].seq}"},
            plan=Plan(steps=()),
        )
        _, is_new = await self._intake.submit(new)
        if is_new:
            labelled(_summaries, "asked").inc()

    async def _keep(self, job: Job, asked: str) -> None:
        name, before, seq = asked.split(":")
        found = await self._conversations.get(job.tenant, name)
        if (found.summary.seq if found.summary else 0) != int(before):
            labelled(_summaries, "stale").inc()
            return
        text = _answer_of(await self._store.get(job.id))
        items = await self._conversations.items(found)
        outcome = refusal(found.summary, text, facts_of(items))
        if not outcome:
            summary = Summary(id=job.id.replace("job_", "summary_"), text=text, seq=int(seq))
            outcome = "kept" if await self._conversations.summarise(found, summary) else "stale"
        labelled(_summaries, outcome).inc()
        _log.info("summary", action="summary", job_id=job.id, reason=outcome)


def _answer_of(job: Job | None) -> str:
    choices = (job.result or {}).get("choices") if job else None
    message = choices[0].get("message") if choices else None
    return str((message or {}).get("content") or "").strip()
