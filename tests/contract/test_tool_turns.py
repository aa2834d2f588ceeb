"""The later turns of a job in the store: attempts at them, what their readers see, and what a conversation keeps."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from api.view.job import job_view
from api.view.response import output_items
from eventing.job.job import JobError, JobState
from eventing.job.plan import Plan, PlannedStep, StepStatus
from eventing.job.step import StepEnd, StepRun, Verdict
from eventing.job.store import ConversationTurn, LeaseStatus, Publication, ReleaseReason, TokenBatch
from eventing.job.stream import EntryKind, calls_of
from eventing.job.tools.call import CallState
from eventing.job.tools.store import CallEnd
from eventing.redis import keys
from eventing.store.archive import _line, _parse_line
from eventing.store.conversation.messages import messages_of
from eventing.store.conversation.store import Conversations
from predictor.delivery.leased import Leased, engine_request
from predictor.engine.engine import PREFIX, TurnIds, prefix_note
from predictor.generation.checkpoint import read_checkpoint
from tests.contract.rig import append, job_id, new_job
from tests.contract.tool_rig import (
    MODEL_QUEUE,
    PLAN,
    TOOLS_QUEUE,
    ToolRig,
    answer,
    call,
    usage,
)

CONVERSATION = "conv_" + "c" * 24
BROKEN = JobError(code="engine_dead", message="the engine died")
ASKED = {"id": "item_1", "type": "message", "role": "user", "content": "why?"}


@pytest.fixture
def rig(redis: Redis) -> ToolRig:
    return ToolRig(redis)


async def second_turn(rig: ToolRig, *calls: Any) -> None:
    """A job whose calls of its first turn have returned."""
    await rig.turn(*(calls or (call(0),)))
    for place in range(len(calls) or 1):
        await rig.give(await rig.send(place), place)


async def finish(rig: ToolRig, ending: Any) -> None:
    """The job ends with this answer."""
    await rig.generate(ending)
    end = StepEnd(status=StepStatus.COMPLETED, verdict=Verdict.ACCEPT)
    await rig.tools.advance(await rig.run(), end)


def batch(index: int, count: int) -> TokenBatch:
    return TokenBatch(index=index, token_ids=tuple(range(index, index + count)), delta="[]")


async def test_an_attempt_at_a_later_turn_goes_on_from_that_turns_tokens(rig: ToolRig) -> None:
    await second_turn(rig)
    first = await rig.tools.acquire(job_id(), "worker-2", can_resume=True)
    assert (first.token_count, first.turn_begin, first.void_count) == (2, 2, 0)
    await append(rig.tools, first.lease, batch(2, 3))
    await rig.tools.release(first.lease, ReleaseReason.HANDOVER, BROKEN)

    again = await rig.tools.acquire(job_id(), "worker-3", can_resume=True)

    assert (again.token_count, again.turn_begin, again.void_count) == (5, 2, 0)
    checkpoint = await read_checkpoint(rig.tools, job_id(), 5, begin=again.turn_begin)
    assert checkpoint.token_ids == (2, 3, 4)


async def test_the_ids_of_the_turns_before_are_read_for_the_next_prompt(rig: ToolRig) -> None:
    note = prefix_note([7, 8], [0, 1], None)
    said = {**usage(), PREFIX: note}
    await rig.submit()
    await rig.generate(answer(said=said))
    await rig.commit(call(0))
    await rig.settle(TOOLS_QUEUE)
    await rig.give(await rig.send())
    acquired = await rig.tools.acquire(job_id(), "worker-2", can_resume=True)
    await append(rig.tools, acquired.lease, batch(2, 3))
    leased = Leased.of(await rig.job(), acquired, True, 0.0)
    read = await read_checkpoint(rig.tools, job_id(), 5, begin=2)

    assert (read.before, read.token_ids) == ((0, 1), (2, 3, 4))
    assert replace(leased, may_call_tools=True).continues_turns
    request = engine_request(leased.job, 2, before=read.before)
    assert request.turns == (TurnIds(note, (0, 1)),)
    assert engine_request(leased.job, 2).turns == ()


async def test_a_later_turn_that_starts_over_voids_nothing_of_those_before(rig: ToolRig) -> None:
    await second_turn(rig)
    first = await rig.tools.acquire(job_id(), "worker-2", can_resume=True)
    await append(rig.tools, first.lease, batch(2, 3))
    await rig.tools.release(first.lease, ReleaseReason.HANDOVER, BROKEN)

    again = await rig.tools.acquire(job_id(), "worker-3", can_resume=False)

    assert (again.token_count, again.void_count) == (2, 3)
    entries = await rig.tools.read_stream(job_id(), "")
    restart = entries[-1]
    assert (restart.kind, restart.index, restart.is_restart) == (EntryKind.ATTEMPT, 2, True)
    assert await append(rig.tools, again.lease, batch(2, 1)) is LeaseStatus.OK


async def test_readers_are_told_of_the_turn_and_its_calls_in_order(rig: ToolRig) -> None:
    await second_turn(rig, call(0), call(1))

    entries = await rig.tools.read_stream(job_id(), "")

    told = [each for each in entries if each.kind in (EntryKind.TURN, EntryKind.CALL)]
    assert [(each.kind, each.place, each.call_state) for each in told] == [
        (EntryKind.TURN, 0, None),
        (EntryKind.CALL, 0, CallState.SENT),
        (EntryKind.CALL, 0, CallState.RETURNED),
        (EntryKind.CALL, 1, CallState.SENT),
        (EntryKind.CALL, 1, CallState.RETURNED),
    ]
    assert (told[0].turn, told[0].index) == (1, 2)
    assert [each["tool"] for each in calls_of(told[0])] == ["find", "find"]
    assert (told[2].name, told[2].output, told[2].send) == ("wiki__find", "42", 1)
    rows = await rig.redis.xrange(keys.tokens(job_id()))
    assert [_parse_line(_line(cursor, fields)) for cursor, fields in rows] == entries  # archived
    after = [[e.cursor for e in await rig.tools.read_stream(job_id(), at.cursor)] for at in entries]
    assert after == [[e.cursor for e in entries[n + 1 :]] for n in range(len(entries))]


async def test_usage_is_the_sum_of_the_turns_to_the_token_over_a_lost_attempt(
    rig: ToolRig,
) -> None:
    await second_turn(rig)
    lost = await rig.tools.acquire(job_id(), "worker-2", can_resume=True)
    await append(rig.tools, lost.lease, batch(2, 3))
    await rig.tools.release(lost.lease, ReleaseReason.LOST, BROKEN)
    await finish(rig, answer("done", usage(20, 6, 8, 1), 1, begin=5))

    job = await rig.job()
    view = job_view(job)
    ((_, ended),) = await rig.redis.xrange(keys.ENDED)

    assert (job.state, job.token_count) == (JobState.COMPLETED, 6)
    assert job.usage is not None
    each = [turn["usage"] or {} for turn in view["turns"]]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert sum(own[name] for own in each) == job.usage[name]
    assert job.usage["prompt_tokens"] == 30
    counted = orjson.loads(ended[b"usage"])  # what usage reports and budgets are told
    assert (counted["prompt_tokens"], counted["completion_tokens"]) == (30, 10)
    assert [turn["cached_tokens"] for turn in view["turns"]] == [3, 8]
    assert job.usage["prompt_tokens_details"]["cached_tokens"] == 11
    assert [turn["attempt"] for turn in view["turns"]] == [1, 3]


class TestConversation:
    """What a job with turns puts into its conversation."""

    @pytest.fixture
    async def conversations(self, redis: Redis) -> Conversations:
        made = Conversations(redis)
        await made.create(CONVERSATION, "acme", {}, ())
        return made

    async def begin(self, rig: ToolRig) -> None:
        turn = ConversationTurn(id=CONVERSATION, items=(ASKED,))
        plan = Plan(steps=(PlannedStep(name="list-tools"), *PLAN.steps))
        new = replace(new_job(), plan=plan, turn=turn, skip_steps=())
        after = Publication(queues=(MODEL_QUEUE,), event=b"{}", after_queues=(TOOLS_QUEUE,))
        await rig.tools.submit(new, after)
        run = await rig.tools.begin_step(job_id(), "list-tools")
        assert run.job is not None
        await rig.tools.advance(
            StepRun.of(run.job, "list-tools"), StepEnd(status=StepStatus.COMPLETED)
        )

    async def test_it_keeps_texts_and_calls_of_all_turns_as_the_response_shows_them(
        self, rig: ToolRig, conversations: Conversations
    ) -> None:
        await self.begin(rig)
        await rig.generate()
        own = call(2, CallState.CLIENT, server="", tool="", name="ask", call_id="c9")
        await rig.commit(call(0), call(1), own)
        await rig.give(await rig.send(0), 0)
        failed = CallEnd(state=CallState.RETURNED, output="no such page", is_error=True)
        await rig.give(await rig.send(1), 1, failed)
        await rig.settle(TOOLS_QUEUE)
        await finish(rig, answer("so it is", usage(20, 6), 2, begin=2))

        found = await conversations.get("acme", CONVERSATION)
        items = [each.item for each in await conversations.items(found)]

        tail = job_id().removeprefix("job_")
        assert [(each["type"], each["id"]) for each in items] == [
            ("message", f"item_{tail}_0"),
            ("message", f"msg_{tail}"),
            ("function_call", f"fc_{tail}_2"),
            ("mcp_call", f"mcp_{tail}_1_0"),
            ("mcp_call", f"mcp_{tail}_1_1"),
            ("message", f"msg_{tail}_2"),
        ]
        shown = {each["id"]: each for each in output_items(await rig.job())}
        for each in items[3:5]:
            assert each == shown[each["id"]]
        messages = messages_of(items)
        assert [each["role"] for each in messages] == [
            *("user", "assistant", "tool", "assistant", "tool", "assistant")
        ]
        assert "\n42\n" in messages[2]["content"]  # between the marks of a result
        assert "no such page" in messages[4]["content"]
        assert messages[-1]["content"] == "so it is"

    async def test_a_job_that_ends_with_a_turn_says_it_once_and_keeps_the_question(
        self, rig: ToolRig, conversations: Conversations
    ) -> None:
        await self.begin(rig)
        await rig.generate()
        await rig.commit(call(0, CallState.AWAITING_APPROVAL), ends=1)

        job = await rig.job()
        found = await conversations.get("acme", CONVERSATION)
        items = [each.item for each in await conversations.items(found)]

        assert job.state is JobState.COMPLETED
        assert [each["type"] for each in items] == ["message", "message", "mcp_approval_request"]
        assert items[-1]["id"] == job.turns[0].calls[0].approval_id


async def test_the_next_turn_is_queued_under_the_hashes_of_its_jobs_prompt(rig: ToolRig) -> None:
    """So the replica that has the prefix is preferred for it, as for the first (docs/adr/0372)."""
    plain = new_job(prompt="a prompt of its own " * 200)
    after = Publication(queues=(MODEL_QUEUE,), event=b"{}", after_queues=(TOOLS_QUEUE,))
    await rig.tools.submit(replace(plain, plan=PLAN), after)
    before = await rig.redis.hget(keys.job(job_id()), "prefix")
    members = await rig.redis.zrange(f"{MODEL_QUEUE}ready:{plain.lane}", 0, -1)
    await rig.generate()
    await rig.commit(call(0))
    await rig.settle(TOOLS_QUEUE)
    await rig.give(await rig.send(0), 0)

    assert before
    assert await rig.redis.hget(keys.job(job_id()), "prefix") == before
    assert await rig.redis.zrange(f"{MODEL_QUEUE}ready:{plain.lane}", 0, -1) == members
