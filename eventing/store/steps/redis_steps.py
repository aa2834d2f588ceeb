"""The job store of those who run steps, on Redis or Valkey: one Lua script for each transition.

Called by the steps process, and by the broker for steps whose tries are used up, through `eventing.job.step`.
"""

from collections.abc import Sequence

import orjson

from eventing.job.job import JobId, JobState
from eventing.job.plan import Plan
from eventing.job.step import AdvanceStatus, BeginStatus, Begun, StepEnd, StepRun, Verdict
from eventing.job.store import ARRIVED, Ending, Publication
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Argument, run_all
from eventing.store.job_record.fields import ending_fields, fingerprint, plan_fields
from eventing.store.job_record.parse import parse_job
from eventing.store.redis_call import batch_args, fallback_args, job_keys, queue_args
from eventing.store.redis_store import RedisStore


class RedisStepStore(RedisStore):
    """A `StepStore`."""

    async def begin_step(self, job_id: JobId, step: str) -> Begun:
        args: list[Argument] = [
            step,
            self._settings.dead_letter_retention_s,
            self._settings.retention_s,
        ]
        read = [("HGETALL", keys.job(job_id))]
        async with failures_named():
            answer, flat = await run_all(
                self._redis, [("begin_step", job_keys(job_id), args)], read
            )
        status = BeginStatus(answer[0].decode())
        job = parse_job(job_id, _pairs(flat))
        if status is not BeginStatus.BEGUN:
            return Begun(status=status, job=job)
        return Begun(status=status, job=job, number=int(answer[1]), is_suspect=answer[2] == 1)

    async def advance(
        self, run: StepRun, end: StepEnd, publication: Publication = ARRIVED
    ) -> AdvanceStatus:
        args: list[Argument] = [
            run.step,
            run.attempt,
            run.plan_version,
            end.status,
            orjson.dumps(dict(end.detail)),
            end.next_step,
            self._settings.republish_after_s * 1000,
            int(publication.max_unpublished is not None),
            *self._end_args(end),
            _verdict_word(end),
            publication.event,
            *queue_args(publication),
            len(end.tokens),
            *(part for batch in end.tokens for part in batch_args(batch)),
        ]
        if end.ending is not None:
            args += ending_fields(end.ending)
        elif end.prepared is not None:
            text = end.prepared.to_json()
            sha = fingerprint(text, run.tenant)
            args += ["prepared", text, "prepared_sha", sha]
        if end.result is not None:
            is_end = end.verdict is Verdict.ACCEPT
            args += ["result" if is_end else "candidate", orjson.dumps(end.result)]
        if end.tool_list:
            args += ["tool_list", end.tool_list]
        args += fallback_args(publication)
        (answer,) = await self._promise([("advance", job_keys(run.job_id), args)])
        return AdvanceStatus(answer.decode())

    async def give_up_run(self, run: StepRun) -> None:
        await self._run_all([("give_up_run", job_keys(run.job_id), [run.step, run.attempt])])

    async def plan_nothing(self, job_id: JobId, publication: Publication = ARRIVED) -> bool:
        args: list[Argument] = [
            self._settings.republish_after_s * 1000,
            int(publication.max_unpublished is not None),
            publication.event,
            *queue_args(publication),
            *plan_fields(Plan(steps=())),
            *fallback_args(publication),
        ]
        (answer,) = await self._run_all([("plan_nothing", [keys.job(job_id)], args)])
        return bool(answer)

    def _end_args(self, end: StepEnd) -> list[Argument]:
        if end.verdict in (Verdict.ACCEPT, Verdict.WITHHOLD):  # its state is that of the answer
            return self._ending_args(Ending(state=JobState.COMPLETED))
        return ["", 0, 0] if end.ending is None else self._ending_args(end.ending)


def _verdict_word(end: StepEnd) -> str:
    """The verdict as `advance.lua` takes it."""
    if end.verdict is Verdict.WITHHOLD:
        return end.withheld
    if end.verdict is Verdict.AGAIN:
        return f"{end.verdict} {end.spent_on} {end.discarded_model}"
    return "changed" if end.result is not None else end.verdict


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
