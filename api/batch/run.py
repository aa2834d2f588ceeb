"""Runs one batch: submits its lines as jobs and collects their answers, a window at a time.

Called by `api.batch.runner`. All state is in the batch's record, and job ids derive from batch and line number: a
runner may die anywhere, and the next one continues without losing, repeating or reporting a line twice. Lines are
submitted in rounds; a round is recorded once each of its lines was accepted or refused, and answers of a round are
written only after that. Must not know HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from api.auth.principal import Principal
from api.batch.batch import (
    LINE_LIMIT,
    NOT_RUN_CODE,
    Batch,
    BatchStatus,
    Running,
    custom_id_of,
    ended_entry,
    parse_line,
    refusal_of,
    refused_entry,
    unrun_entry,
)
from api.batch.input_file import read_lines
from api.batch.jsonl import BatchLine
from api.batch.result_file import ResultFile
from api.batch.round import (
    Ready,
    Round,
    RunnerDeps,
    checked,
    ended_job,
    in_words_of,
    reason_to_stop,
    submitted,
)
from api.job.submission import keyed_job_id
from eventing.errors import InvalidJob, NotFound, ObjectsUnavailable, TorporError, Unavailable
from eventing.job.job import Job, JobId, JobState
from eventing.store.file_store import FileCard

WINDOW: Final = 200
"""Lines of one batch in flight: enough for several predictors, few enough to poll each second."""
_ROUND: Final = 16
"""Largest number of concurrent submits, or reads of answers, of one batch; other callers share limit and memory."""
_LONGEST_WAIT_S: Final = 5.0
"""Longest pause after a limit's refusal, since capacity may be freed earlier than announced."""


class Overtaken(Exception):
    """Another runner has claimed the batch; what this one has not saved is discarded."""


class BatchRun:
    """Runs a batch under one claim."""

    def __init__(self, deps: RunnerDeps, batch: Batch, epoch: int, *, turn_s: float) -> None:
        self._deps = deps
        self._batches = deps.batches
        self._batch = batch
        self._epoch = epoch
        self._turn_s = turn_s
        self._principal = Principal(tenant=batch.tenant, models=frozenset(batch.allowed_models))
        self._running = {one.number: one for one in batch.running}
        self._output = ResultFile(deps.files, batch, epoch, is_output=True)
        self._errors = ResultFile(deps.files, batch, epoch, is_output=False)
        self._seen: set[str] = set()
        self._round = Round(end=batch.line, offset=batch.offset)
        self._done = 0
        self._looked_up = 0 if batch.status is BatchStatus.VALIDATING else WINDOW
        self._is_limited = False
        self._not_before_s = 0.0
        self._collect_after_s = 0.0
        self._is_read = False

    async def run(self) -> None:
        """Run the batch to its end. Raises `Overtaken`, or `Unavailable` to continue later."""
        if self._batch.status.is_final:  # ended already, and claimed again or cancelled too late
            await self._save()
            return
        if self._batch.ending is not None:
            await self._end(self._batch.ending)
            return
        try:
            card = await self._deps.files.card(self._batch.tenant, self._batch.input_file_id)
        except NotFound:
            await self._fail("the input file was deleted")
            return
        try:
            end = await self._validate(card)
            await self._remember_names(card)
            async with aclosing(self._lines(card, self._batch.offset, self._batch.line)) as lines:
                if end is None:
                    end = await self._run_lines(lines)
                if end is not BatchStatus.COMPLETED:
                    await self._stop(end, lines)
        except InvalidJob as error:
            await self._fail(error.message)
            return
        await self._close(end)

    async def _validate(self, card: FileCard) -> BatchStatus | None:
        """Count the lines; gives the reason to stop, if any. Raises `InvalidJob`."""
        if self._batch.status is not BatchStatus.VALIDATING:
            return None
        total = 0
        async with aclosing(self._lines(card, 0, 0)) as lines:
            async for _ in lines:
                total += 1
                if total > LINE_LIMIT:
                    raise InvalidJob(f"a batch may have {LINE_LIMIT} lines")
                if total % 1_000 == 0 and (end := await reason_to_stop(self._deps, self._batch)):
                    return end
        if not total:
            raise InvalidJob("the input file has no lines")
        self._batch = replace(self._batch, total=total)
        await self._enter(BatchStatus.IN_PROGRESS)
        return None

    async def _remember_names(self, card: FileCard) -> None:
        """Remember the custom_ids of earlier lines, to refuse duplicates."""
        if self._batch.line:
            async with aclosing(self._lines(card, 0, 0)) as lines:
                async for line in lines:
                    if line.number > self._batch.line:
                        break
                    self._seen.add(custom_id_of(line.raw) or "")

    async def _run_lines(self, lines: AsyncGenerator[BatchLine, None]) -> BatchStatus:
        """Submit and collect until there is a reason to stop; gives the final status."""
        while (end := await reason_to_stop(self._deps, self._batch)) is None:
            await self._fill(lines)
            ended = await self._collect()
            await self._save()
            if ended:
                self._not_before_s = 0.0  # a job that ended may have freed capacity under a limit
            is_submitted = self._is_read and not self._round.waiting
            if is_submitted and not self._running:
                return BatchStatus.COMPLETED
            if is_submitted or self._must_wait or len(self._running) >= WINDOW:
                # When dozens of lines end at once, more are likely to have ended.
                await asyncio.sleep(self._turn_s / (10 if ended > WINDOW // 4 else 1))
        return end

    @property
    def _must_wait(self) -> bool:
        return asyncio.get_running_loop().time() < self._not_before_s

    async def _fill(self, lines: AsyncGenerator[BatchLine, None]) -> None:
        """Submit lines until the window is full, a limit refuses, or the input ends. At most a window of lines at a
        time: refused lines must be written too, however many there are.
        """
        for _ in range(WINDOW):
            if not self._round.waiting:
                room = WINDOW - max(len(self._running), self._errors.pending)
                if self._is_read or room <= 0:
                    return
                # Read ahead no more lines than were just finished.
                await self._read_round(lines, min(max(self._done, 1), _ROUND, room))
            if self._round.waiting:
                if self._must_wait:
                    return
                await self._submit_round()
            if not self._round.waiting:
                is_due = bool(self._round.accepted)
                self._commit_round()
                if is_due:
                    await self._save()

    async def _read_round(self, lines: AsyncGenerator[BatchLine, None], count: int) -> None:
        """The next lines, each validated. A line that a dead runner may have submitted is looked up, so that an
        accepted one is not admitted twice.
        """
        self._round = Round(end=self._batch.line, offset=self._batch.offset)
        for _ in range(count):
            line = await anext(lines, None)
            if line is None:
                self._is_read = True
                return
            self._round.end, self._round.offset = line.number, line.end
            try:
                ready = checked(line, self._batch.endpoint, self._deps.line_limit_bytes, self._seen)
            except TorporError as error:
                self._round.refused.append((line.number, custom_id_of(line.raw), error))
                continue
            if await self._was_submitted(line.number):
                self._accept(ready, self._job_id(line.number))
            else:
                self._round.waiting.append(ready)

    async def _was_submitted(self, number: int) -> bool:
        """True when a dead runner submitted the line without recording it."""
        if not self._looked_up:
            return False
        self._looked_up -= 1
        return await self._deps.store.states([self._job_id(number)]) != [None]

    def _job_id(self, number: int) -> JobId:
        return keyed_job_id(self._batch.tenant, f"batch:{self._batch.id}:{number}")

    async def _submit_round(self) -> None:
        """Submit the waiting lines. After a limit's refusal only one line is tried."""
        asking = self._round.waiting[: 1 if self._is_limited else None]
        left = await asyncio.gather(*map(self._submit, asking))
        refusals = [refusal for refusal in left if refusal is not None]
        still = [ready for ready, refusal in zip(asking, left, strict=True) if refusal]
        self._round.waiting = still + self._round.waiting[len(asking) :]
        if refusals:
            self._is_limited, self._done = True, 0
            wait_s = min(max(each.retry_after_s for each in refusals), _LONGEST_WAIT_S)
            self._not_before_s = asyncio.get_running_loop().time() + wait_s
        else:
            self._is_limited = False

    async def _submit(self, ready: Ready) -> Unavailable | None:
        """Submit one line; gives how long to wait when it was neither accepted nor refused for good."""
        try:
            job = await submitted(self._deps, self._principal, self._batch, ready)
        except Unavailable as error:
            return error
        except TorporError as error:
            told = in_words_of(self._batch.endpoint, error)
            self._round.refused.append((ready.number, ready.custom_id, told))
        else:
            self._accept(ready, job.id)
        return None

    def _accept(self, ready: Ready, job_id: JobId) -> None:
        running = Running(number=ready.number, custom_id=ready.custom_id, job_id=job_id)
        self._round.accepted.append(running)
        self._batch = self._batch.with_model(str((ready.call.get("body") or {}).get("model", "")))

    def _commit_round(self) -> None:
        """Record the round once each of its lines was accepted or refused."""
        for number, custom_id, error in sorted(self._round.refused, key=lambda each: each[0]):
            reason = refusal_of(number, error)
            self._errors.add(refused_entry(self._batch, number, custom_id, reason))
            self._batch = self._batch.with_refusal(reason)
        self._running |= {one.number: one for one in self._round.accepted}
        self._done += len(self._round.accepted) + len(self._round.refused)
        self._batch = replace(self._batch, line=self._round.end, offset=self._round.offset)
        self._round = Round(end=self._round.end, offset=self._round.offset)

    async def _collect(self, stopped: BatchStatus | None = None) -> int:
        """Collect the answers of ended jobs; gives their number. An answer that cannot be read now is read later, or
        is an error when the batch stops.
        """
        now_s = asyncio.get_running_loop().time()
        if stopped is None and now_s < self._collect_after_s:
            return 0
        waiting = list(self._running.values())
        states = await self._deps.store.states([JobId(one.job_id) for one in waiting])
        lost = {one.number for one, state in zip(waiting, states, strict=True) if state is None}
        if lost and stopped is None:
            await self._run_again(lost)
        ended = [n for n, state in enumerate(states) if state is None or state.is_terminal]
        for start in range(0, len(ended), _ROUND):
            group = [waiting[n] for n in ended[start : start + _ROUND]]
            jobs = [ended_job(self._deps.store, JobId(one.job_id)) for one in group]
            for one, (job, failure) in zip(group, await asyncio.gather(*jobs), strict=True):
                if stopped is None and isinstance(failure, ObjectsUnavailable):
                    self._collect_after_s = now_s + failure.retry_after_s
                else:
                    self._collect_one(one, job, failure, stopped)
        return len(waiting) - len(self._running)

    async def _run_again(self, lost: set[int]) -> None:
        """Submit lines whose jobs are missing: lost with the store's last second, or expired uncollected."""
        try:
            card = await self._deps.files.card(self._batch.tenant, self._batch.input_file_id)
            async with aclosing(self._lines(card, 0, 0)) as lines:
                async for line in lines:
                    if line.number in lost:
                        call = parse_line(line.raw, self._batch.endpoint)
                        ready = Ready(line.number, call["custom_id"], call)
                        await submitted(self._deps, self._principal, self._batch, ready)
                        lost.remove(line.number)
        except Unavailable:
            return  # the next turn finds them missing again
        except TorporError:  # the file is gone, or a job was deleted
            for number in lost:
                self._leave_out(number, self._running[number].custom_id, "result_expired")

    def _collect_one(
        self,
        one: Running,
        job: Job | None,
        failure: TorporError | None,
        stopped: BatchStatus | None,
    ) -> None:
        if stopped is not None and (job is None or job.state is JobState.CANCELLED):
            self._leave_out(one.number, one.custom_id, NOT_RUN_CODE[stopped])
        if job is None or not job.state.is_terminal or one.number not in self._running:
            return  # missing or redriven just now, or left out
        del self._running[one.number]
        entry, is_answer = ended_entry(self._batch, one, job, failure)
        if is_answer:
            self._output.add(entry)
            self._batch = self._batch.with_answer(job)
        else:
            self._errors.add(entry)
            self._batch = replace(self._batch, failed=self._batch.failed + 1)

    def _leave_out(self, number: int, custom_id: str | None, code: str) -> None:
        """Report a line that was not run to its end."""
        self._running.pop(number, None)
        self._errors.add(unrun_entry(self._batch, number, custom_id, code))
        self._batch = replace(self._batch, failed=self._batch.failed + 1)

    async def _stop(self, end: BatchStatus, lines: AsyncGenerator[BatchLine, None]) -> None:
        """Cancel running lines, keep finished ones, report the rest as not run. Lines that a dead runner may have
        submitted beyond the record are looked up and cancelled.
        """
        if end is BatchStatus.CANCELLED and self._batch.status is not BatchStatus.CANCELLING:
            await self._enter(BatchStatus.CANCELLING)
        not_run = [(each.number, each.custom_id) for each in self._round.waiting]
        self._commit_round()
        for one in self._running.values():
            await self._deps.store.cancel(JobId(one.job_id))
        await self._collect(end)
        for number, custom_id in not_run:
            self._leave_out(number, custom_id, NOT_RUN_CODE[end])
        await self._save()
        async for line in lines:
            await self._stop_line(end, line)
            self._batch = replace(self._batch, line=line.number, offset=line.end)
            if self._errors.pending >= WINDOW:
                await self._save()

    async def _stop_line(self, end: BatchStatus, line: BatchLine) -> None:
        """Cancel a line beyond the record that a dead runner may have submitted."""
        job_id, custom_id = self._job_id(line.number), custom_id_of(line.raw)
        if await self._was_submitted(line.number):
            await self._deps.store.cancel(job_id)
            one = Running(number=line.number, custom_id=custom_id or "", job_id=job_id)
            self._running[line.number] = one
            await self._collect(end)
        else:
            self._leave_out(line.number, custom_id, NOT_RUN_CODE[end])

    async def _close(self, end: BatchStatus) -> None:
        self._batch, end = self._batch.sealed(end)
        if end is BatchStatus.COMPLETED:
            await self._enter(BatchStatus.FINALIZING)
        else:
            await self._save()
        await self._end(end)

    async def _end(self, end: BatchStatus) -> None:
        """Publish the result files of the sealed record, notify webhooks, and save the final status. Idempotent: a
        runner that was overtaken creates the same files and the same notifications.
        """
        await self._output.publish()
        await self._errors.publish()
        batch = self._batch
        await self._deps.webhooks.notify_batch(batch.tenant, batch.id, end, self._now_s())
        await self._enter(end)

    async def _fail(self, message: str) -> None:
        """The file is not a batch. Running lines are cancelled; answers are kept."""
        self._commit_round()
        for one in self._running.values():
            await self._deps.store.cancel(JobId(one.job_id))
        await self._collect(BatchStatus.FAILED)
        self._batch = self._batch.with_file_error(message)
        await self._close(BatchStatus.FAILED)

    async def _enter(self, status: BatchStatus) -> None:
        self._batch = self._batch.in_status(status, self._now_s())
        await self._save()

    def _now_s(self) -> int:
        return self._deps.clock.wall_ms() // 1000

    async def _save(self) -> None:
        """Save the parts first, then the record that names them."""
        now_s = asyncio.get_running_loop().time()
        await self._output.write(now_s)
        await self._errors.write(now_s)
        self._batch = replace(
            self._batch,
            running=tuple(self._running[number] for number in sorted(self._running)),
            output_parts=self._output.parts,
            output_bytes=self._output.size,
            error_parts=self._errors.parts,
            error_bytes=self._errors.size,
        )
        if not await self._batches.save(self._batch, self._epoch):
            raise Overtaken
        await self._output.drop_merged(now_s)
        await self._errors.drop_merged(now_s)

    def _lines(self, card: FileCard, offset: int, number: int) -> AsyncGenerator[BatchLine, None]:
        longest = self._deps.line_limit_bytes
        return read_lines(self._deps.files, card, offset, number, longest=longest)
