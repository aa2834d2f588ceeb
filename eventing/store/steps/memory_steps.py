"""The in-memory store of those who run steps: the twin of `eventing.store.steps.redis_steps`, for tests."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from eventing.job.job import Job, JobId
from eventing.job.plan import Plan, StepRecord, StepStatus
from eventing.job.step import AdvanceStatus, BeginStatus, Begun, StepEnd, StepRun, Verdict
from eventing.job.store import ARRIVED, LeaseStatus, Publication
from eventing.job.stream import EntryKind
from eventing.store.job_record.fields import fingerprint
from eventing.store.job_record.parse import request_of
from eventing.store.memory_index import SWEEP_AFTER_MS
from eventing.store.memory_record import MemoryRecord
from eventing.store.memory_store import MemoryStore


class MemoryStepStore(MemoryStore):
    """A `StepStore` in one process."""

    async def begin_step(self, job_id: JobId, step: str) -> Begun:
        record, now = self._find(job_id), self._now()
        if record is None:
            return Begun(status=BeginStatus.MISSING)
        job = record.job
        if job.state.is_terminal:
            return Begun(status=BeginStatus.TERMINAL, job=job)
        if job.plan is None:
            return Begun(status=BeginStatus.UNPLANNED, job=job)
        if job.step != step:
            return Begun(status=BeginStatus.DONE, job=job)
        if 0 < job.deadline_ms <= now:
            self._end_late(record, "")
            return Begun(status=BeginStatus.EXPIRED, job=record.job)
        before = _line(job, step, now)
        begun = replace(
            before,
            status=StepStatus.IN_PROGRESS,
            ended_ms=0,
            attempts=before.attempts + 1,
            detail={},
        )
        _note(record, begun, now)
        is_suspect = before.status is StepStatus.IN_PROGRESS
        return Begun(
            status=BeginStatus.BEGUN,
            job=record.job,
            number=begun.attempts,
            is_suspect=is_suspect,
        )

    async def advance(
        self, run: StepRun, end: StepEnd, publication: Publication = ARRIVED
    ) -> AdvanceStatus:
        record, now = self._find(run.job_id), self._now()
        if record is None:
            return AdvanceStatus.MISSING
        job = record.job
        if job.state.is_terminal:
            return AdvanceStatus.TERMINAL
        if (job.attempt, job.plan and job.plan.version) != (run.attempt, run.plan_version):
            record.refuse(LeaseStatus.FENCED)
            return AdvanceStatus.FENCED
        if job.step != run.step:
            return AdvanceStatus.DONE
        ended = replace(_line(job, run.step, now), status=end.status, ended_ms=now)
        if end.result is not None:
            record.show_anew(end.tokens, now)
        _note(record, replace(ended, detail=_stored(end.detail)), now)
        if end.verdict in (Verdict.ACCEPT, Verdict.WITHHOLD):
            self._end(record, record.judged(end.withheld, end.result), "")
        elif end.ending is None:
            self._go_on(record, end, publication)
        else:
            if end.tokens:
                record.answer(end.tokens, now)
            self._end(record, end.ending, "")
        return AdvanceStatus.OK

    def _go_on(self, record: MemoryRecord, end: StepEnd, publication: Publication) -> None:
        record.job = replace(record.job, step=end.next_step)
        if end.prepared is not None:
            text = end.prepared.to_json()
            record.job = replace(record.job, prepared=request_of(text))
            record.prepared_sha = fingerprint(text, record.job.tenant)
        if end.result is not None:
            record.job = replace(record.job, candidate=_stored(end.result))
        if end.verdict is Verdict.AGAIN:
            record.answer_again(end.spent_on, end.discarded_model, self._now())
        self._publish_again(record.job.id, publication)

    async def give_up_run(self, run: StepRun) -> None:
        record = self._find(run.job_id)
        if record is None or record.job.state.is_terminal:
            return
        now = self._now()
        line = _line(record.job, run.step, now)
        is_same = (record.job.step, record.job.attempt) == (run.step, run.attempt)
        if is_same and line.status is StepStatus.IN_PROGRESS:
            _note(record, replace(line, status=StepStatus.QUEUED), now)

    async def plan_nothing(self, job_id: JobId, publication: Publication = ARRIVED) -> bool:
        record = self._find(job_id)
        if record is None or record.job.state.is_terminal or record.job.plan is not None:
            return False
        record.job = replace(record.job, plan=Plan(steps=()))
        self._publish_again(job_id, publication)
        return True

    def _publish_again(self, job_id: JobId, publication: Publication) -> None:
        now = self._now()
        self._index.unstarted[job_id] = now + self._settings.republish_after_s * 1000
        if publication.max_unpublished is not None:
            self._index.unpublished[job_id] = now + SWEEP_AFTER_MS
        record = self._records[job_id]
        if publication.fallback is not None:
            record.job = replace(record.job, fallback=publication.fallback)


_SHOWN_RUNS = 20  # of a step in a token stream, as in _job.lua


def _line(job: Job, step: str, now_ms: int) -> StepRecord:
    fresh = StepRecord(step=step, started_ms=now_ms)
    return next((record for record in job.pipeline if record.step == step), fresh)


def _note(record: MemoryRecord, line: StepRecord, now_ms: int) -> None:
    """Put the line in its place, and tell the job's stream."""
    pipeline = record.job.pipeline
    is_known = any(each.step == line.step for each in pipeline)
    others = tuple(line if each.step == line.step else each for each in pipeline)
    record.job = replace(record.job, pipeline=others if is_known else (*pipeline, line))
    if line.attempts > _SHOWN_RUNS and line.status in (StepStatus.QUEUED, StepStatus.IN_PROGRESS):
        return
    took_ms = line.ended_ms - line.started_ms if line.ended_ms else 0
    record.write(
        now_ms,
        EntryKind.STEP,
        step=line.step,
        step_status=line.status,
        step_ms=took_ms,
        at_ms=now_ms,
    )


def _stored(detail: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = orjson.loads(orjson.dumps(dict(detail)))
    return found
