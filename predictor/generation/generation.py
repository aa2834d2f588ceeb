"""Runs one attempt of a job: generates, checkpoints, and stops when interrupted.

Called by `predictor.delivery.delivery`; watched by `predictor.delivery.lease`. Must not know events, HTTP or how a
job ends in the store. If the process dies in here, the next attempt continues from the checkpoints.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from eventing.clock import Clock
from eventing.errors import TorporError
from eventing.job.job import JobId
from eventing.job.moderation.rules import Finding
from eventing.job.moderation.window import WindowJudge
from eventing.job.store import JobWorker, Lease, LeaseStatus, TokenBatch
from predictor import metrics
from predictor.engine.engine import DecodeStep, Engine, EngineRequest
from predictor.generation.append_batcher import AppendBatcher
from predictor.generation.assembly import Assembler
from predictor.generation.checkpoint import Checkpoint, CheckpointWriter
from predictor.generation.replay_filter import Entry, entries_of


class Interrupted(StrEnum):
    """Why an attempt was interrupted."""

    FENCED = "fenced"  #: a newer attempt runs
    ENDED = "ended"  #: the job has ended: cancelled, mostly
    EXPIRED = "expired"  #: its deadline passed
    GONE = "gone"  #: its record was deleted
    OUT_OF_STEP = "out_of_step"  #: the stored tokens are not those written; a bug
    STALLED = "stalled"  #: the engine gave no token for too long
    HANDOVER = "handover"  #: this process is shutting down
    STORE_LOST = "store_lost"  #: the store was unavailable for as long as the lease
    ENGINE_DEAD = "engine_dead"  #: the engine died under it

    @property
    def is_ours(self) -> bool:
        """True while the lease is still ours, so that tokens may be written."""
        return self in (
            Interrupted.EXPIRED,
            Interrupted.STALLED,
            Interrupted.HANDOVER,
            Interrupted.ENGINE_DEAD,
        )


_COUNT_EVERY_S: Final = 0.5
"""Interval at which generated tokens are counted, since a step takes milliseconds and `/metrics` is read every few
seconds.
"""
_REFUSALS: Final = {
    LeaseStatus.FENCED: Interrupted.FENCED,
    LeaseStatus.TERMINAL: Interrupted.ENDED,
    LeaseStatus.EXPIRED: Interrupted.EXPIRED,
    LeaseStatus.MISSING: Interrupted.GONE,
    LeaseStatus.GAP: Interrupted.OUT_OF_STEP,
}


@dataclass(frozen=True, slots=True)
class Completed:
    """The whole answer, as the OpenAI call returns it when it does not stream, and its last tokens if they are
    still to be written.
    """

    body: Mapping[str, Any]
    final_batch: TokenBatch | None = None


@dataclass(frozen=True, slots=True)
class Withheld:
    """A rule found something that may not be shown; the engine was stopped there. `body` is the answer so far, with
    the usage so far: of a stopped answer only its `prompt_tokens` are those of all choices.
    """

    body: Mapping[str, Any]
    finding: Finding
    is_stopped: bool  #: the engine had not said all


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The engine refused the request, or failed during it."""

    error: TorporError


Answered = Completed | Withheld
Result = Answered | EngineFailed | Interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A leased job, and how many of its tokens exist already, those from `turn_begin` on of the answer that is made
    now; `void_count` existed and are generated again.

    `acquired_s` is this host's clock when the lease was requested: it lasts at least until `acquired_s + lease_s`.
    """

    lease: Lease
    acquired_s: float
    token_count: int
    can_resume: bool
    void_count: int = 0
    turn_begin: int = 0
    following: bytes = b""  #: the event of the first step after it, where the job's record was read
    is_reported_to_caller: bool = False  #: our api shows the caller why the call was refused

    @property
    def job_id(self) -> JobId:
        return self.lease.job_id

    @property
    def number(self) -> int:
        return self.lease.attempt

    @property
    def resumed_tokens(self) -> int:
        """Tokens of this answer that earlier attempts made."""
        return self.token_count - self.turn_begin


class Generation:
    """Runs once. `interrupt` may be called at any time, from any task; the first reason counts."""

    def __init__(
        self,
        attempt: Attempt,
        checkpoint: Checkpoint,
        request: EngineRequest,
        *,
        engine: Engine,
        store: JobWorker,
        appends: AppendBatcher,
        clock: Clock,
        flush_s: float,
        judge: WindowJudge | None = None,
    ) -> None:
        """`judge` looks at the answer before readers do, where the job's plan has rules for that."""
        self.attempt: Final = attempt
        self.extended_s = attempt.acquired_s  #: when the lease was last renewed
        self.last_step_s = clock.monotonic_s()
        self.new_tokens = 0
        self.request: Final = request
        self._checkpoint = checkpoint
        self._engine = engine
        self._clock = clock
        self._started_s = self.last_step_s
        self._counted_tokens = 0
        self._counted_s = self.last_step_s
        self._answer = Assembler()
        options = request.body.get("stream_options") or {}
        self._has_usage = bool(options.get("continuous_usage_stats"))
        self._first_token_s = self.last_step_s
        self._failure: TorporError | None = None
        self._judge = judge
        self._finding: Finding | None = None
        self._is_stopped = False
        self._stop: Interrupted | None = None
        self._decoding: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._writer = CheckpointWriter(
            store,
            appends,
            attempt.lease,
            index=attempt.token_count,
            flush_s=flush_s,
            on_refusal=self._on_refused_write,
            shown=(lambda: judge.mark) if judge else None,
        )

    @property
    def first_token_s(self) -> float:
        """From the start to the first token of this attempt."""
        return self._first_token_s - self._started_s

    async def run(self) -> Result:
        """Generate until the end, a fault or an interruption. When this returns, every token that may be written is
        written, or is part of the complete answer.
        """
        async with asyncio.TaskGroup() as group:
            self._writing = group.create_task(self._writer.run())
            self._decoding = group.create_task(self._decode())
            self._decoding.add_done_callback(self._close_if_cancelled)
            if self._stop is not None:
                self._decoding.cancel()
        result = self._result()
        if not isinstance(result, Completed):
            # The engine may have finished just before the interruption: the rest is still here.
            self._writer.close()
            await self._writer.run()
        if lost := self._writer.pending_tokens:
            metrics.TOKENS_LOST.inc(lost)
        return result

    def on_hold(self, hold: LeaseStatus) -> None:
        """Handle the status of the lease."""
        if hold in _REFUSALS:
            self.interrupt(_REFUSALS[hold])

    def interrupt(self, why: Interrupted) -> None:
        """Abort the request in the engine now."""
        if not why.is_ours:
            self._writer.abandon()
            if self._writing is not None:
                self._writing.cancel()  # a hanging write must not delay this
        if self._stop is not None:
            return
        self._stop = why
        if self._decoding is not None:
            self._decoding.cancel()

    def _result(self) -> Result:
        if self._failure is not None:
            return EngineFailed(self._failure)
        if self._stop is not None:
            return self._stop
        if self._judge is not None and self._finding is None:
            self._finding = self._judge.finish()
        if self._finding is not None:
            return Withheld(self._answer.body(), self._finding, self._is_stopped)
        return Completed(self._answer.body(), self._writer.pop_final_batch())

    def _on_refused_write(self, hold: LeaseStatus) -> None:
        metrics.FENCED_WRITES.inc()
        self.on_hold(hold)

    async def _decode(self) -> None:
        prior = self._checkpoint.token_ids
        is_whole = False
        try:
            async with aclosing(self._engine.run(self.request, prior)) as steps:
                async for step in steps:
                    self._take(step)
                    if self._finding is not None:
                        self._is_stopped = True
                        break
                    if self._writer.is_full:
                        await self._writer.wait_for_room()
            is_whole = True
        except TorporError as error:
            self._failure = error
        finally:
            self._writer.close(leaves_rest=is_whole)
            self._count_made()
            self._observe_pace()

    def _close_if_cancelled(self, decoding: asyncio.Task[None]) -> None:
        """A task cancelled before its first step never reaches its `finally`."""
        if decoding.cancelled():
            self._writer.close()

    def _count_made(self) -> None:
        metrics.TOKENS_MADE.inc(self.new_tokens - self._counted_tokens)
        self._counted_tokens = self.new_tokens
        self._counted_s = self.last_step_s

    def _take(self, step: DecodeStep) -> None:
        self.last_step_s = self._clock.monotonic_s()
        if step.token_ids:
            if self.new_tokens == 0:
                metrics.FIRST_TOKEN.observe(self.last_step_s - self._started_s)
                self._first_token_s = self.last_step_s
            self.new_tokens += len(step.token_ids)
            if self.last_step_s - self._counted_s > _COUNT_EVERY_S:
                self._count_made()
        if step.chunk is None:
            self._writer.add(step.token_ids, ())
            return
        shown = self._checkpoint.shown
        chunk = shown.rename(step.chunk)
        self._answer.add(chunk)
        entries: Iterable[Entry] = entries_of(chunk, has_usage=self._has_usage)
        if self._judge is not None:
            # A continued answer has all its text again: the judge sees what an earlier attempt wrote, too.
            entries = list(entries)
            self._finding = self._judge.feed(entries, self.attempt.token_count + self.new_tokens)
        self._writer.add(step.token_ids, list(shown.new_deltas(entries)))

    def _observe_pace(self) -> None:
        if self.new_tokens > 1:
            span_s = self.last_step_s - self._first_token_s
            metrics.PER_TOKEN.observe(span_s / (self.new_tokens - 1))
