"""The job store of those who run tool calls, on Redis or Valkey: one Lua script for each transition.

Called by the steps process, by the api for decisions and late results, and by the sweep of approvals, through
`eventing.job.tools.store`. The scripts decide; what is here turns their answers into values (docs/adr/0380).
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

import orjson
from redis.asyncio import Redis

from eventing.errors import BadRequest, ObjectsUnavailable, StoreUnavailable
from eventing.job.job import Job, JobId
from eventing.job.step import AdvanceStatus, StepRun
from eventing.job.store import ARRIVED, LeaseSettings, Publication
from eventing.job.tools.call import (
    CallState,
    ToolCall,
    Turn,
    approval_item_id,
    call_field,
    call_of,
    call_of_approval,
)
from eventing.job.tools.store import (
    ApprovalPage,
    CallEnd,
    Decision,
    PendingApproval,
    ProgressStatus,
    ReturnStatus,
    SendStatus,
    Sent,
)
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.replicated import ReplicatedWrites
from eventing.redis.script import Argument, run_all, send
from eventing.store.job_record.parse import parse_job
from eventing.store.redis_call import job_keys, queue_args
from eventing.store.redis_store import ArchiveReader
from eventing.store.steps.redis_steps import RedisStepStore

FIRST_OF_EPOCH: Final = 1000
"""`EPOCH` of `_tools.lua`."""
_CURSOR: Final = re.compile(r"(\d{1,16})\.(job_[0-9a-f]+)\.(\d+\.\d+)")
_MOST_EQUAL: Final = 1000
"""Approvals of one tenant whose time ends in the same millisecond."""
_SHOWN: Final = (
    *("place", "name", "server", "tool", "call_id", "arguments", "state"),
    *("approval_id", "effect"),
)
"""What readers of a stream are shown of a call when its turn is committed."""


class ResultObjects(Protocol):
    """Where large results of tools are (`eventing.store.objects.object_store`, which not every image has)."""

    async def remove(self, name: str) -> None:
        """Delete a job's folder. Raises `ObjectsUnavailable`."""


class RedisToolStore(RedisStepStore):
    """A `ToolStore`. Marks of sent calls wait for `send_acks` replicas; those of `settings` are the least. A deleted
    job's `results` of tools go with it.
    """

    def __init__(
        self,
        redis: Redis,
        settings: LeaseSettings | None = None,
        archive: ArchiveReader | None = None,
        *,
        send_acks: int = 0,
        results: ResultObjects | None = None,
    ) -> None:
        super().__init__(redis, settings, archive)
        self._results = results
        acks = max(send_acks, self._settings.acks)
        self._marks: Redis | ReplicatedWrites = self._promises
        if acks > self._settings.acks and isinstance(redis, SharedRedis):
            self._marks = ReplicatedWrites(redis, acks)

    async def delete(self, job_id: JobId) -> bool:
        is_deleted = await super().delete(job_id)
        if is_deleted and self._results is not None:
            with suppress(ObjectsUnavailable):  # then they are swept
                await self._results.remove(job_id)
        return is_deleted

    async def commit_turn(
        self,
        run: StepRun,
        turn: Turn,
        publications: Mapping[int, Publication],
        next_turn: Publication = ARRIVED,
    ) -> AdvanceStatus:
        shown = [_shown(run.job_id, turn.epoch, call) for call in turn.calls]
        args: list[Argument] = [
            *self._run_args(run),
            orjson.dumps({"turn": turn.number, "calls": len(turn.calls)}),
            turn.to_json(),
            orjson.dumps(shown),
            *_publication_args(next_turn),
            len(turn.calls),
        ]
        for call in turn.calls:
            args.append(call.to_json())
            args += _publication_args(publications.get(call.place, ARRIVED))
        (answer,) = await self._promise([("commit_turn", job_keys(run.job_id), args)])
        return AdvanceStatus(answer.decode())

    async def queue_calls(
        self,
        run: StepRun,
        publications: Mapping[int, Publication],
        next_turn: Publication = ARRIVED,
    ) -> AdvanceStatus:
        args: list[Argument] = [
            *self._run_args(run),
            *_publication_args(next_turn),
            len(publications),
        ]
        for place, publication in sorted(publications.items()):
            args += [place, *_publication_args(publication)]
        (answer,) = await self._promise([("queue_calls", job_keys(run.job_id), args)])
        return AdvanceStatus(answer.decode())

    async def send_call(
        self,
        job_id: JobId,
        turn: int,
        place: int,
        *,
        owner: str,
        lease_ms: int,
        token_hash: str = "",
        key: str = "",
    ) -> Sent:
        s, mark = self._settings, secrets.token_hex(8)
        args: list[Argument] = [turn, place, owner, lease_ms, token_hash]
        args += [s.dead_letter_retention_s, s.retention_s, self._recheck_ms, mark, key]
        call = ("send_call", job_keys(job_id), args)
        read = [("HGETALL", keys.job(job_id))]
        try:
            async with failures_named():
                (status, number), flat = await run_all(self._marks, [call], read)
        except StoreUnavailable:
            with suppress(StoreUnavailable):
                await self._take_back(job_id, turn, place, mark)
            raise
        job = parse_job(job_id, dict(zip(flat[::2], flat[1::2], strict=True)))
        is_held = status == b"held"
        return Sent(
            status=SendStatus(status.decode()),
            job=job,
            call=_call_in(job, turn, place),
            send=0 if is_held else number,
            lease_left_ms=number if is_held else 0,
        )

    async def _take_back(self, job_id: JobId, turn: int, place: int, mark: str) -> None:
        """A mark that no replica has, or whose answer was lost: nothing was dialled, so the call was not sent."""
        async with failures_named():
            raw = await self._redis.hget(keys.job(job_id), call_field(turn, place))
        call = orjson.loads(raw) if raw else {}
        if call.get("mark") == mark and call["state"] == CallState.SENT:
            end = CallEnd(state=CallState.PENDING)
            await self.return_call(job_id, turn, place, call["lease_number"], end)

    async def renew_call(
        self, job_id: JobId, turn: int, place: int, send: int, *, lease_ms: int
    ) -> bool:
        args: list[Argument] = [turn, place, send, lease_ms]
        (answer,) = await self._run_all([("renew_call", [keys.job(job_id)], args)])
        return bool(answer)

    async def progress_call(
        self,
        job_id: JobId,
        turn: int,
        place: int,
        send: int,
        progress: str,
        token_hash: str = "",
    ) -> ProgressStatus:
        args: list[Argument] = [turn, place, send, token_hash, progress]
        (answer,) = await self._run_all([("progress_call", job_keys(job_id), args)])
        return ProgressStatus(answer.decode())

    async def return_call(
        self,
        job_id: JobId,
        turn: int,
        place: int,
        send: int,
        end: CallEnd,
        publication: Publication = ARRIVED,
    ) -> ReturnStatus:
        told: dict[str, str | int] = {
            "output": end.output,
            "is_error": int(end.is_error),
            "handle": end.handle,
            "again_ms": end.again_ms,
            "object_ref": end.object_ref,
            "output_bytes": end.output_bytes,
            "reason": end.reason,
            "question": end.question,
        }
        args: list[Argument] = [
            turn,
            place,
            send,
            end.state,
            end.token_hash,
            self._recheck_ms,
            self._settings.retention_s,
            orjson.dumps(told),
            *_publication_args(publication),
        ]
        (answer,) = await self._promise([("return_call", job_keys(job_id), args)])
        return ReturnStatus(answer.decode())

    async def give_up_call(
        self,
        job_id: JobId,
        turn: int,
        place: int,
        key: str,
        reason: str,
        next_turn: Publication = ARRIVED,
    ) -> ReturnStatus:
        args: list[Argument] = [
            turn,
            place,
            key,
            reason,
            self._recheck_ms,
            self._settings.retention_s,
            *_publication_args(next_turn),
        ]
        (answer,) = await self._promise([("give_up_call", job_keys(job_id), args)])
        return ReturnStatus(answer.decode())

    async def decide(
        self,
        job_id: JobId,
        approval_id: str,
        decision: Decision,
        *,
        call: Publication = ARRIVED,
        turn: Publication = ARRIVED,
    ) -> tuple[ReturnStatus, ToolCall | None]:
        found = call_of_approval(job_id, approval_id)
        if found is None:
            return ReturnStatus.MISSING, None
        args: list[Argument] = [
            *found,
            approval_id,
            decision.state,
            decision.text,
            decision.approver,
            self._recheck_ms,
            self._settings.retention_s,
            *_publication_args(call),
            *_publication_args(turn),
        ]
        ((status, text),) = await self._promise([("decide_call", job_keys(job_id), args)])
        return ReturnStatus(status.decode()), call_of(text) if text else None

    async def approvals(self, tenant: str, limit: int = 100, cursor: str = "") -> ApprovalPage:
        after = _after(cursor)
        async with failures_named():
            rows = await self._redis.zrange(
                keys.approvals_of(tenant),
                after[0],
                "+inf",
                byscore=True,
                offset=0,
                num=limit + 1 + (_MOST_EQUAL if cursor else 0),
                withscores=True,
            )
        members = [(int(score), member.decode()) for member, score in rows]
        left = [each for each in members if each > after][: limit + 1]
        more = len(left) > limit
        calls = await self._pending([member for _, member in left[:limit]])
        cursor = f"{left[limit - 1][0]}.{left[limit - 1][1].replace(' ', '.')}" if more else ""
        return ApprovalPage(calls=calls, next_cursor=cursor)

    async def overdue_approvals(self, limit: int = 100) -> Sequence[PendingApproval]:
        return await self._pending(await self._index.take_due(keys.APPROVALS_DUE, limit))

    async def _pending(self, members: Sequence[bytes | str]) -> list[PendingApproval]:
        """The calls that these members of an index name, as far as they still wait."""
        places = [_place_of(member) for member in members]
        if not places:
            return []
        reads = [
            ("HMGET", keys.job(job_id), "tenant", call_field(turn, place))
            for job_id, turn, place in places
        ]
        async with failures_named():
            rows = await send(self._redis, reads)
        found = []
        for (job_id, _, _), (tenant, raw) in zip(places, rows, strict=True):
            call = call_of(raw) if raw else None
            if call is not None and call.state.is_waiting_for_person:
                found.append(PendingApproval(job_id=job_id, tenant=tenant.decode(), call=call))
        return found

    @property
    def _recheck_ms(self) -> int:
        return self._settings.republish_after_s * 1000

    def _run_args(self, run: StepRun) -> list[Argument]:
        retention_s = self._settings.retention_s
        return [run.step, run.attempt, run.plan_version, self._recheck_ms, retention_s]


def _shown(job_id: JobId, epoch: int, call: ToolCall) -> dict[str, Any]:
    if call.state.is_waiting_for_person:  # as the script names it
        name = approval_item_id(job_id, call.turn, call.place, FIRST_OF_EPOCH * epoch + 1)
        call = replace(call, approval_id=name)
    return {name: value for name in _SHOWN if (value := getattr(call, name)) != ""}


def _after(cursor: str) -> tuple[int, str]:
    """The expiry and the member of the index that the page before ended with. Raises `BadRequest`."""
    if not cursor:
        return 0, ""
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise BadRequest("cursor is not one that a list gave", "cursor")
    return int(found[1]), f"{found[2]} {found[3]}"


def _publication_args(publication: Publication) -> list[Argument]:
    """As `read_publication` in `_tools.lua` takes it."""
    is_noted = publication.max_unpublished is not None
    return [publication.event, int(is_noted), *queue_args(publication)]


def _place_of(member: bytes | str) -> tuple[JobId, int, int]:
    text = member.decode() if isinstance(member, bytes) else member
    job_id, _, where = text.partition(" ")
    turn, _, place = where.partition(".")
    return JobId(job_id), int(turn), int(place)


def _call_in(job: Job | None, turn: int, place: int) -> ToolCall | None:
    turns = job.turns if job else ()
    if not 1 <= turn <= len(turns) or not 0 <= place < len(turns[turn - 1].calls):
        return None
    return turns[turn - 1].calls[place]
