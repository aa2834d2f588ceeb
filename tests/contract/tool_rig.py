"""A job in its tool loop, at the level of the store: turns to commit, calls to send, and time that passes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from eventing.cloudevent.event import Event, to_record
from eventing.cloudevent.job_event import PREPARED
from eventing.cloudevent.tool_event import CALLED, PLACE
from eventing.cloudevent.tool_event import SOURCE as TOOL_SOURCE
from eventing.job.job import Job, JobId, JobState, Lane
from eventing.job.plan import Plan, PlannedStep
from eventing.job.step import AdvanceStatus, BeginStatus, StepRun
from eventing.job.store import Ending, LeaseStatus, NewJob, Publication, TokenBatch
from eventing.job.tools.call import (
    CallState,
    EffectClass,
    ToolCall,
    Turn,
    approval_item_id,
    idempotency_key,
)
from eventing.job.tools.store import CallEnd, Decision, ReturnStatus, Sent
from eventing.redis import keys
from eventing.store.steps.redis_tools import RedisToolStore
from tests.contract.rig import SETTINGS, SOURCE, RedisRig, job_id, new_job

PLAN: Final = Plan(steps=(PlannedStep(name="tools"),))
ASK_MS: Final = 7 * 24 * 3600 * 1000
LEASE_MS: Final = 10_000
DONE: Final = CallEnd(state=CallState.RETURNED, output="42")
TOOLS_QUEUE: Final = keys.queue("tools", "")
CALLS_QUEUE: Final = keys.queue("tools-wiki", "")
MODEL_QUEUE: Final = keys.queue("requests-m", "")
AFTER: Final = Publication(
    queues=(MODEL_QUEUE,), event=to_record(Event(id="1", source=SOURCE, type=PREPARED))
)
_CALL_TIMES: Final = (
    *("lease_until_ms", "queued_ms", "sent_ms", "refused_ms", "ended_ms", "expires_ms"),
    *("paused_ms", "committed_ms", "progress_ms"),
)


def usage(prompt: int = 10, completion: int = 4, cached: int = 3, thought: int = 2) -> Any:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def answer(text: str = "so", said: Any = None, tokens: int = 2, begin: int = 0) -> Ending:
    """The end of an attempt, with tokens from `begin` on."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    body = {"id": "chatcmpl-1", "model": "m", "choices": [choice], "usage": said or usage()}
    batch = TokenBatch(index=begin, token_ids=tuple(range(tokens)), delta="[]")
    return Ending(
        state=JobState.COMPLETED, result=body, usage=said or usage(), final_batch=batch, gpu_ms=7
    )


def call(
    place: int = 0,
    state: CallState = CallState.PENDING,
    effect: EffectClass = EffectClass.ONCE,
    **fields: Any,
) -> ToolCall:
    """A call of the first turn."""
    known: dict[str, Any] = {
        "turn": 1,
        "call_id": f"c{place}",
        "name": "wiki__find",
        "server": "wiki",
        "tool": "find",
        "arguments": '{"q":"é\\u0000/"}',
    }
    return ToolCall(place=place, state=state, effect=effect, **{**known, **fields})


def publication(place: int, turn: int = 1, epoch: int = 0) -> Publication:
    event = Event(
        id=idempotency_key(job_id(), turn, place, epoch),
        source=TOOL_SOURCE,
        type=CALLED,
        extensions={PLACE: f"{turn}.{place}"},
    )
    return Publication(queues=(CALLS_QUEUE,), event=to_record(event))


@dataclass(slots=True)
class ToolRig(RedisRig):
    """The store in Redis, whose times in calls pass too."""

    tools: RedisToolStore

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.tools = RedisToolStore(redis, SETTINGS)
        self.store = self.tools

    async def _age(self, key: bytes, milliseconds: int) -> None:
        await RedisRig._age(self, key, milliseconds)
        record = await self.redis.hgetall(key)
        for name, raw in record.items():
            if name.partition(b":")[0] in (b"call", b"calling", b"turn") and raw[:1] == b"{":
                aged = {
                    each: value - milliseconds if each in _CALL_TIMES and value else value
                    for each, value in orjson.loads(raw).items()
                }
                await self.redis.hset(key, name, orjson.dumps(aged))

    async def job(self) -> Job:
        job = await self.tools.get(job_id())
        assert job is not None
        return job

    async def calls(self) -> tuple[ToolCall, ...]:
        """Those of the newest turn."""
        return (await self.job()).turns[-1].calls

    async def submit(self, plan: Plan = PLAN, deadline_ms: int = 0) -> None:
        new: NewJob = replace(new_job(deadline_ms=deadline_ms), plan=plan)
        after = Publication(queues=(MODEL_QUEUE,), event=b"{}", after_queues=(TOOLS_QUEUE,))
        await self.tools.submit(new, after)

    async def generate(self, ending: Ending | None = None) -> None:
        """The predictor takes the job and gives an answer, which the step `tools` is to look at."""
        taken = await self.tools.acquire(job_id(), "worker-1", can_resume=True)
        begin = taken.token_count
        status = await self.tools.finish(taken.lease, ending or answer(begin=begin))
        assert status is LeaseStatus.STEP_QUEUED
        await self.settle(MODEL_QUEUE)

    async def run(self) -> StepRun:
        """A run of the step that has begun."""
        begun = await self.tools.begin_step(job_id(), "tools")
        assert begun.status is BeginStatus.BEGUN
        assert begun.job is not None
        return StepRun.of(begun.job, "tools")

    async def commit(
        self,
        *calls: ToolCall,
        ends: int = 0,
        parallel: int = 8,
        ask_ms: int = ASK_MS,
        read_again_ms: int = 0,
        run: StepRun | None = None,
        publications: Mapping[int, Publication] | None = None,
    ) -> AdvanceStatus:
        """Commit the candidate as the next turn."""
        job = await self.job()
        number = len(job.turns) + 1
        turn = Turn(
            number=number,
            attempt=job.attempt,
            begin=job.turn_begin,
            end=job.token_count,
            message={"role": "assistant", "content": "let me look"},
            usage=(job.candidate or {}).get("usage", {}),
            epoch=job.epoch,
            ends=ends,
            parallel=parallel,
            ask_ms=ask_ms,
            read_again_ms=read_again_ms,
            calls=tuple(replace(each, turn=number) for each in calls),
        )
        if publications is None:
            wanted = [each.place for each in calls if each.state is CallState.PENDING]
            publications = {place: publication(place, number, job.epoch) for place in wanted}
        run = run or await self.run()
        return await self.tools.commit_turn(run, turn, publications, AFTER)

    async def turn(self, *calls: ToolCall, deadline_ms: int = 0, **rules: Any) -> None:
        """A new job that has committed its first turn."""
        await self.submit(deadline_ms=deadline_ms)
        await self.generate()
        assert await self.commit(*calls, **rules) is AdvanceStatus.OK
        await self.settle(TOOLS_QUEUE)

    async def send(
        self, place: int = 0, turn: int = 1, owner: str = "caller-1", key: str = ""
    ) -> Sent:
        return await self.tools.send_call(
            job_id(), turn, place, owner=owner, lease_ms=LEASE_MS, key=key
        )

    async def give(
        self, sent: Sent | int, place: int = 0, end: CallEnd = DONE, turn: int = 1
    ) -> ReturnStatus:
        number = sent if isinstance(sent, int) else sent.send
        return await self.tools.return_call(job_id(), turn, place, number, end, AFTER)

    async def decide(
        self, state: CallState, text: str = "", place: int = 0, asked: int = 1, turn: int = 1
    ) -> tuple[ReturnStatus, ToolCall | None]:
        return await self.tools.decide(
            job_id(),
            approval_item_id(job_id(), turn, place, asked),
            Decision(state=state, text=text, approver="ann"),
            call=publication(place, turn),
            turn=AFTER,
        )

    async def queued(self, prefix: str = CALLS_QUEUE) -> list[str]:
        """The events that wait in a queue, as their members name them."""
        members = await self.redis.zrange(f"{prefix}ready:{Lane.DEFAULT}", 0, -1)
        return [member.decode().split("\0")[1] for member in members]

    async def settle(self, prefix: str) -> None:
        """Everything in a queue was delivered."""
        names = [key async for key in self.redis.scan_iter(match=f"{prefix}*")]
        if names:
            await self.redis.delete(*names)

    async def entries(self, kind: str) -> list[dict[str, str]]:
        rows = await self.redis.xrange(keys.tokens(job_id()))
        decoded = [{n.decode(): v.decode() for n, v in fields.items()} for _, fields in rows]
        return [each for each in decoded if each["kind"] == kind]

    async def everything(self) -> dict[bytes, Any]:
        """All that the store holds, but for what counts refused writes and reads of indexes."""
        found: dict[bytes, Any] = {}
        for key in sorted([key async for key in self.redis.scan_iter(match="*")]):
            kind = await self.redis.type(key)
            if kind == b"hash":
                held = await self.redis.hgetall(key)
                held.pop(b"fenced", None)
                found[key] = {name: _parsed(raw) for name, raw in held.items()}
            elif kind == b"stream":
                found[key] = await self.redis.xlen(key)
            elif kind == b"zset":
                found[key] = await self.redis.zrange(key, 0, -1)
        return found


def _parsed(raw: bytes) -> Any:
    """Scripts write the fields of a JSON object in any order."""
    return orjson.loads(raw) if raw[:1] == b"{" else raw


def key(place: int = 0, turn: int = 1, epoch: int = 0, of: JobId | None = None) -> str:
    return idempotency_key(of or job_id(), turn, place, epoch)
