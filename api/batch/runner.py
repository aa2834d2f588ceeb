"""Runs batches: lines in as jobs, answers out as lines, a window of them at a time.

Called by `api.__main__` in a loop. Everything that counts is in the batch's record, and job ids
come from batch and line number: a runner may die anywhere, and the next one goes on without a line
lost or run twice. Must not know HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from api.auth.principal import Principal
from api.batch.batch import (
    LINE_LIMIT,
    Batch,
    BatchStatus,
    Running,
    custom_id_of,
    ended_entry,
    parse_line,
    refused_entry,
    unrun_entry,
)
from api.batch.file_store import FileCard, FileStore
from api.batch.store import BatchStore
from api.http.errors import BodyTooLarge
from api.job.submission import SubmitDeps, submit_line
from api.webhook.service import WebhookService
from eventing.clock import Clock
from eventing.errors import BadRequest, InvalidJob, NotFound, Unavailable, first_of
from eventing.job.job import JobId, Lane
from eventing.job.store import Store

WINDOW: Final = 200
"""Lines of one batch in flight: enough to fill some predictors, few enough to poll each second."""
_TURN_S: Final = 0.5
_BATCHES_AT_ONCE: Final = 4
_READ_BYTES: Final = 1024 * 1024
_PART_BYTES: Final = 256 * 1024
"""A result grows in parts of this size: 50,000 answers are some 120 of them."""
_ABREAST: Final = 16
"""Submits of one batch under way at once; calls of people share the door."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerDeps:
    """What running batches needs."""

    batches: BatchStore
    files: FileStore
    store: Store
    submission: SubmitDeps
    webhooks: WebhookService
    clock: Clock
    line_limit_bytes: int


async def run(deps: RunnerDeps, *, turn_s: float = _TURN_S) -> None:
    """Take batches and run them until cancelled."""
    room = asyncio.Semaphore(_BATCHES_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        while True:
            await room.acquire()
            taken = await _take(deps.batches)
            if taken is None:
                room.release()
                await asyncio.sleep(turn_s)
                continue
            task = group.create_task(_run_one(deps, *taken, turn_s))
            task.add_done_callback(lambda _: room.release())


async def _take(batches: BatchStore) -> tuple[str, int] | None:
    try:
        return next(iter(await batches.take(1)), None)
    except Unavailable:
        return None


async def _run_one(deps: RunnerDeps, batch_id: str, epoch: int, turn_s: float) -> None:
    try:
        batch = await deps.batches.get(batch_id)
    except NotFound:
        await deps.batches.drop(batch_id)
        return
    except Unavailable:
        return  # due again when our hold lapses
    try:
        await BatchRun(deps, batch, epoch, turn_s=turn_s).run()
    except Unavailable as error:
        _log.warning("a batch waits", action="batch", batch_id=batch_id, reason=error.code)
    except Overtaken:
        _log.warning("another runner has it", action="batch", batch_id=batch_id)


class Overtaken(Exception):
    """Another runner holds the batch now; what we have not saved is void."""


class BatchRun:
    """One runner's work on one batch."""

    def __init__(self, deps: RunnerDeps, batch: Batch, epoch: int, *, turn_s: float) -> None:
        self._deps = deps
        self._files = deps.files
        self._batches = deps.batches
        self._batch = batch
        self._epoch = epoch
        self._turn_s = turn_s
        self._principal = Principal(tenant=batch.tenant)
        self._running = {one.number: one for one in batch.running}
        self._answers: list[bytes] = []
        self._refusals: list[bytes] = []
        self._seen: set[str] = set()
        self._part = 0
        self._last: dict[str, bytes] = {}
        self._merged: list[tuple[str, str]] = []

    async def run(self) -> None:
        """To the batch's end. Raises `Overtaken`, or `Unavailable` to be gone on with later."""
        if self._batch.status.is_final:  # asked for again, or cancelled too late
            await self._save()
            return
        try:
            card = await self._files.card(self._batch.tenant, self._batch.input_file_id)
        except NotFound:
            await self._fail("the input file is gone")
            return
        if self._batch.status is BatchStatus.VALIDATING and not await self._validate(card):
            return
        await self._submit_and_collect(card)
        await self._finalize()

    async def _validate(self, card: FileCard) -> bool:
        total = 0
        try:
            async for _ in self._lines(card, 0, 0):
                total += 1
                if total > LINE_LIMIT:
                    raise InvalidJob(f"a batch may have {LINE_LIMIT} lines")
            if not total:
                raise InvalidJob("the input file has no lines")
        except InvalidJob as error:
            await self._fail(error.message)
            return False
        self._batch = replace(self._batch, total=total)
        await self._enter(BatchStatus.IN_PROGRESS)
        return True

    async def _submit_and_collect(self, card: FileCard) -> None:
        await self._remember_names(card)
        start = (self._batch.offset, self._batch.line)
        async with aclosing(self._lines(card, *start)) as lines:
            is_open = True
            while is_open or self._running:
                stop = await self._why_stop()
                if stop is not None:
                    await self._stop(stop, lines)
                    return
                is_open = is_open and await self._fill(lines)
                ended = await self._collect()
                await self._save()
                if len(self._running) >= WINDOW or not is_open:
                    # Lines that end by the dozen are worth looking again at once.
                    await asyncio.sleep(self._turn_s / (10 if ended > WINDOW // 4 else 1))

    async def _remember_names(self, card: FileCard) -> None:
        """Names of the lines before ours, to tell a second use of one."""
        if self._batch.offset:
            async for number, _, raw in self._lines(card, 0, 0):
                if number > self._batch.line:
                    break
                self._seen.add(custom_id_of(raw) or "")

    async def _why_stop(self) -> BatchStatus | None:
        if await self._batches.is_cancel_asked(self._batch.id):
            return BatchStatus.CANCELLED
        if self._deps.clock.wall_ms() / 1000 > self._batch.expires_at:
            return BatchStatus.EXPIRED
        return None

    async def _fill(self, lines: AsyncGenerator[tuple[int, int, bytes], None]) -> bool:
        """Submit lines until the window is full; False at the end of the input. At most a window of
        lines: our hold must be renewed, and what was refused be written, however many are bad.
        """
        for _ in range(0, WINDOW, _ABREAST):
            room = min(_ABREAST, WINDOW - len(self._running))
            read = [line async for line in _first(lines, room)]
            with _one_failure():
                async with asyncio.TaskGroup() as group:
                    for number, _, raw in read:
                        group.create_task(self._submit(number, raw))
            if read:
                self._batch = replace(self._batch, offset=read[-1][1], line=read[-1][0])
            if len(read) < room:
                return False
            if len(self._running) >= WINDOW:
                return True
        return True

    async def _submit(self, number: int, raw: bytes) -> None:
        """Raises `Unavailable` when nothing was accepted; the line is read again then."""
        try:
            line = self._checked(raw)
            key = f"{self._batch.id}:{number}"
            job = await submit_line(
                self._deps.submission, self._principal, line, key=key, lane=Lane.BATCH
            )
        except BadRequest as error:
            self._refuse(refused_entry(self._batch, number, custom_id_of(raw), error))
            return
        self._running[number] = Running(number=number, custom_id=line["custom_id"], job_id=job.id)

    def _checked(self, raw: bytes) -> dict[str, Any]:
        """The line, its name remembered. Raises `BadRequest` and its kin."""
        if len(raw) > self._deps.line_limit_bytes:
            raise BodyTooLarge("the line is over the limit of a call's body", "body")
        line = parse_line(raw, self._batch.endpoint)
        if line["custom_id"] in self._seen:
            raise InvalidJob("custom_id was used before in this file", "custom_id")
        self._seen.add(line["custom_id"])
        return line

    async def _collect(self) -> int:
        """Take the answers of jobs that have ended; how many there were."""
        waiting = list(self._running.values())
        jobs = await asyncio.gather(*(self._deps.store.get(JobId(one.job_id)) for one in waiting))
        for one, job in zip(waiting, jobs, strict=True):
            if job is None:
                del self._running[one.number]
                self._refuse(unrun_entry(self._batch, one.number, one.custom_id, "result_expired"))
            elif job.state.is_terminal:
                del self._running[one.number]
                entry, is_answer = ended_entry(self._batch, one, job)
                if is_answer:
                    self._answers.append(entry)
                    self._batch = replace(self._batch, completed=self._batch.completed + 1)
                else:
                    self._refuse(entry)
        return len(waiting) - len(self._running)

    def _refuse(self, entry: bytes) -> None:
        self._refusals.append(entry)
        self._batch = replace(self._batch, failed=self._batch.failed + 1)

    async def _stop(
        self, end: BatchStatus, lines: AsyncGenerator[tuple[int, int, bytes], None]
    ) -> None:
        """Cancel what runs, keep what is done, and say of the rest that it was not run."""
        if end is BatchStatus.CANCELLED:
            await self._enter(BatchStatus.CANCELLING)
        for one in self._running.values():
            await self._deps.store.cancel(JobId(one.job_id))
        await self._collect()
        if end is BatchStatus.EXPIRED:
            async for number, _, raw in lines:
                self._refuse(unrun_entry(self._batch, number, custom_id_of(raw), "batch_expired"))
                if len(self._refusals) >= WINDOW:
                    await self._save()
        await self._close(end)

    async def _finalize(self) -> None:
        if self._batch.status.is_final:
            return
        await self._enter(BatchStatus.FINALIZING)
        await self._close(BatchStatus.COMPLETED)

    async def _close(self, end: BatchStatus) -> None:
        """Make the parts files, then say so."""
        await self._write_parts()
        batch = self._batch
        for file_id, kind, parts, size in (
            (batch.output_file_id, "output", batch.output_parts, batch.output_bytes),
            (batch.error_file_id, "error", batch.error_parts, batch.error_bytes),
        ):
            if parts:
                await self._files.publish(
                    FileCard(
                        id=file_id,
                        tenant=batch.tenant,
                        filename=f"{batch.id}_{kind}.jsonl",
                        purpose="batch_output",
                        bytes=size,
                        created_at=self._now_s(),
                        parts=parts,
                    )
                )
        await self._enter(end)

    async def _fail(self, message: str) -> None:
        error = {"code": "invalid_input_file", "message": message, "line": None, "param": None}
        self._batch = replace(self._batch, errors=(error,))
        await self._enter(BatchStatus.FAILED)

    async def _enter(self, status: BatchStatus) -> None:
        self._batch = self._batch.in_status(status, self._now_s())
        if status.is_final:
            # Before the record: told twice is told once, not told at all would be for ever.
            batch = self._batch
            await self._deps.webhooks.tell_batch(batch.tenant, batch.id, status, self._now_s())
        await self._save()

    async def _save(self) -> None:
        """Parts first, then the record that names them: a part that no record names is nothing."""
        await self._write_parts()
        running = tuple(self._running[number] for number in sorted(self._running))
        self._batch = replace(self._batch, running=running)
        if not await self._batches.save(self._batch, self._epoch):
            raise Overtaken
        for file_id, part in self._merged:
            await self._files.drop_part(self._batch.tenant, file_id, part)
        self._merged.clear()

    async def _write_parts(self) -> None:
        answers, self._answers = b"".join(self._answers), []
        refusals, self._refusals = b"".join(self._refusals), []
        batch = self._batch
        if answers:
            parts = await self._grow(batch.output_file_id, batch.output_parts, answers)
            size = batch.output_bytes + len(answers)
            batch = replace(batch, output_parts=parts, output_bytes=size)
        if refusals:
            parts = await self._grow(batch.error_file_id, batch.error_parts, refusals)
            size = batch.error_bytes + len(refusals)
            batch = replace(batch, error_parts=parts, error_bytes=size)
        self._batch = batch

    async def _grow(self, file_id: str, parts: tuple[str, ...], data: bytes) -> tuple[str, ...]:
        """The parts with `data` at their end. A small last part of ours is written anew with it:
        object storage cannot append, and a part each half second would be thousands.

        A new part has a new name, and the old one goes once the record names it no more.
        """
        last = self._last.get(file_id, b"")
        is_small = bool(last) and len(last) + len(data) <= _PART_BYTES
        whole = last + data if is_small else data
        self._part += 1
        part = f"part-{self._epoch}-{self._part}"  # by our epoch: no other runner writes over it
        await self._files.write_part(self._batch.tenant, file_id, part, whole)
        self._last[file_id] = whole
        if not is_small:
            return (*parts, part)
        self._merged.append((file_id, parts[-1]))
        return (*parts[:-1], part)

    async def _lines(
        self, card: FileCard, offset: int, number: int
    ) -> AsyncGenerator[tuple[int, int, bytes], None]:
        """Line number, offset after it, and the line; empty lines are passed over.

        Raises `InvalidJob` for a line over the limit of a call's body, which would not fit in.
        """
        longest = self._deps.line_limit_bytes
        rest = b""
        position = offset
        while True:
            piece = await self._files.read(card, position, _READ_BYTES)
            position += len(piece)
            lines = (rest + piece).split(b"\n")
            rest = lines.pop() if piece else b""
            if len(rest) > longest + _READ_BYTES:
                raise InvalidJob(f"line {number + len(lines) + 1} is over {longest} bytes")
            for line in lines:
                number += 1
                offset += len(line) + 1
                if line.strip():
                    yield number, offset, line
            if not piece:
                return

    def _now_s(self) -> int:
        return self._deps.clock.wall_ms() // 1000


Line = tuple[int, int, bytes]


async def _first(lines: AsyncGenerator[Line, None], count: int) -> AsyncIterator[Line]:
    """The next `count` lines, or those that are left."""
    for _ in range(count):
        line = await anext(lines, None)
        if line is None:
            return
        yield line


@contextmanager
def _one_failure() -> Iterator[None]:
    """Several submits that found the store away are one failure."""
    try:
        yield
    except ExceptionGroup as failures:
        raise first_of(failures) from None
