"""What becomes of tool calls when their job is late, is cancelled, fails and is redriven, or goes on in another one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from eventing.cloudevent.result_event import tools_used
from eventing.job.job import JobRequest, JobState
from eventing.job.plan import StepStatus
from eventing.job.step import AdvanceStatus, BeginStatus, StepEnd, Verdict
from eventing.job.store import Publication, TokenBatch
from eventing.job.tools.call import CallState, EffectClass
from eventing.job.tools.store import CallEnd, ReturnStatus, SendStatus
from eventing.redis import keys
from eventing.store.objects.tool_results import sweep, tool_results
from eventing.store.steps.redis_tools import RedisToolStore
from tests.contract.rig import SETTINGS, job_id
from tests.contract.tool_rig import (
    AFTER,
    CALLS_QUEUE,
    LEASE_MS,
    MODEL_QUEUE,
    PLAN,
    TOOLS_QUEUE,
    ToolRig,
    answer,
    call,
    key,
    publication,
    usage,
)

ACCEPT = StepEnd(status=StepStatus.COMPLETED, verdict=Verdict.ACCEPT)
WAITS = call(0, CallState.AWAITING_APPROVAL)
WAITS_AT_1 = call(1, CallState.AWAITING_APPROVAL)
WAITS_AT_3 = call(3, CallState.AWAITING_APPROVAL)
IN_DOUBT = CallEnd(state=CallState.IN_DOUBT, reason="no answer")


@pytest.fixture
def rig(redis: Redis) -> ToolRig:
    return ToolRig(redis)


class TestDeadline:
    async def test_a_late_job_fails_and_says_how_many_calls_may_have_happened(
        self, rig: ToolRig
    ) -> None:
        at = await rig.now_ms() + 60_000
        await rig.turn(call(0), call(1), call(2), WAITS_AT_3, deadline_ms=at)
        await rig.send(0)
        await rig.give(await rig.send(1), 1, CallEnd(state=CallState.ACCEPTED, handle="h"))
        await rig.pass_time(60_001)

        assert await rig.tools.expire(9) == [job_id()]

        job = await rig.job()
        assert (job.state, job.is_dead_letter, job.result) == (JobState.FAILED, True, None)
        assert job.error is not None
        assert job.error.code == "expired"
        assert "2 tool calls may have happened" in job.error.message
        assert tools_used(job)["calls_in_doubt"] == 2
        assert job.usage is not None
        assert job.usage["total_tokens"] == 14
        assert await rig.queued() == []

    async def test_a_candidate_that_may_ask_for_tools_is_no_answer_of_a_late_job(
        self, rig: ToolRig
    ) -> None:
        await rig.submit(deadline_ms=await rig.now_ms() + 60_000)
        await rig.generate()
        await rig.pass_time(60_001)

        assert (await rig.tools.begin_step(job_id(), "tools")).status is BeginStatus.EXPIRED

        job = await rig.job()
        assert (job.state, job.result, job.usage) == (JobState.FAILED, None, usage())

    async def test_a_late_job_sends_nothing(self, rig: ToolRig) -> None:
        await rig.turn(call(), deadline_ms=await rig.now_ms() + 60_000)
        await rig.pass_time(60_001)

        assert (await rig.send()).status is SendStatus.EXPIRED
        assert (await rig.job()).state is JobState.FAILED

    async def test_it_stands_still_while_only_people_are_awaited(self, rig: ToolRig) -> None:
        await rig.turn(WAITS, deadline_ms=await rig.now_ms() + 60_000)
        await rig.pass_time(3_600_000)

        assert await rig.tools.expire(9) == []
        assert await rig.tools.claim_unstarted(9) == []
        assert (await rig.tools.begin_step(job_id(), "tools")).status is BeginStatus.BEGUN
        assert (await rig.job()).deadline_ms == 0
        status, _ = await rig.decide(CallState.PENDING)
        assert status is ReturnStatus.OK

        left_ms = (await rig.job()).deadline_ms - await rig.now_ms()
        assert 0 < left_ms <= 60_000
        assert (await rig.send()).status is SendStatus.SENT
        await rig.pass_time(60_001)
        assert await rig.tools.expire(9) == [job_id()]

    async def test_it_goes_on_while_a_sibling_runs(self, rig: ToolRig) -> None:
        await rig.turn(WAITS, call(1), deadline_ms=await rig.now_ms() + 60_000)
        await rig.pass_time(60_001)

        assert await rig.tools.expire(9) == [job_id()]


class TestCancel:
    async def test_calls_that_wait_leave_their_queues_and_those_that_run_are_fenced(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(0), call(1), call(2), WAITS_AT_3, parallel=2)
        sent = await rig.send(1)

        job = await rig.tools.cancel(job_id())

        assert job is not None
        assert (job.state, tools_used(job)["calls_in_doubt"]) == (JobState.CANCELLED, 1)
        assert await rig.queued() == []
        assert await rig.give(sent, 1) is ReturnStatus.TERMINAL
        record = await rig.redis.hgetall(keys.job(job_id()))
        assert b"calling" not in record
        assert not [name for name in record if name.startswith(b"held:")]
        assert job.usage is not None
        assert job.usage["total_tokens"] == 14

    async def test_the_usage_of_a_cancelled_later_turn_is_that_of_the_turns_before(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        await rig.give(await rig.send())
        await rig.generate(answer("more", usage(30, 8), begin=2))
        await rig.commit(call())

        job = await rig.tools.cancel(job_id())

        assert job is not None
        assert job.usage is not None
        assert (job.usage["prompt_tokens"], job.usage["completion_tokens"]) == (40, 12)
        assert job.usage["prompt_tokens_details"] == {"cached_tokens": 6}


class TestQueueAgain:
    async def test_calls_that_are_in_no_queue_are_put_there_again(self, rig: ToolRig) -> None:
        read = EffectClass.READ
        await rig.turn(call(0), call(1, effect=read), call(2, effect=read), WAITS_AT_3)
        await rig.send(1)
        await rig.pass_time(LEASE_MS + 1)
        await rig.send(2)
        await rig.settle(CALLS_QUEUE)
        run = await rig.run()
        sent = {place: publication(place) for place in range(4)}

        assert await rig.tools.queue_calls(run, sent, AFTER) is AdvanceStatus.OK

        assert await rig.queued() == [key(0), key(1), key(2)]
        before = await rig.everything()
        assert await rig.tools.queue_calls(run, sent, AFTER) is AdvanceStatus.OK
        assert await rig.everything() == before

    async def test_a_turn_that_is_over_queues_nothing(self, rig: ToolRig) -> None:
        await rig.turn(call())
        run = await rig.run()
        await rig.give(await rig.send())
        await rig.settle(CALLS_QUEUE)

        assert await rig.tools.queue_calls(run, {0: publication(0)}, AFTER) is AdvanceStatus.DONE
        assert await rig.queued() == []

    async def test_a_redelivered_step_that_only_queues_calls_is_no_suspect(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        run = await rig.run()
        await rig.tools.queue_calls(run, {0: publication(0)}, AFTER)

        assert not (await rig.tools.begin_step(job_id(), "tools")).is_suspect

    @pytest.mark.parametrize("sends", [0, 1])
    async def test_a_call_whose_delivery_was_given_up_is_not_run_or_in_doubt(
        self, rig: ToolRig, sends: int
    ) -> None:
        await rig.turn(call(), ask_ms=0)
        if sends:
            await rig.send()
            held = await rig.tools.give_up_call(job_id(), 1, 0, key(), "no process takes it", AFTER)
            assert held is ReturnStatus.HELD
            await rig.pass_time(LEASE_MS + 1)

        gone = await rig.tools.give_up_call(job_id(), 1, 0, key(), "no process takes it", AFTER)

        assert gone is ReturnStatus.NEXT
        (last,) = (await rig.job()).turns[0].calls
        assert last.state is (CallState.UNKNOWN if sends else CallState.NOT_RUN)
        assert last.reason == "no process takes it"
        again = await rig.tools.give_up_call(job_id(), 1, 0, key(), "no process takes it", AFTER)
        assert again is ReturnStatus.DONE


class TestRedrive:
    async def dead(self, rig: ToolRig, *calls: Any, **rules: Any) -> None:
        """A job that failed in its tool phase."""
        at = await rig.now_ms() + 60_000
        await rig.turn(*calls, deadline_ms=at, **rules)

    async def fail(self, rig: ToolRig) -> None:
        await rig.pass_time(60_001)
        assert await rig.tools.expire(9) == [job_id()]

    async def test_it_goes_on_at_the_first_call_that_is_not_done(self, rig: ToolRig) -> None:
        await self.dead(rig, call(0), call(1), call(2))
        await rig.give(await rig.send(0), 0)
        await rig.send(1)
        await rig.settle(CALLS_QUEUE)
        await self.fail(rig)
        event = Publication(queues=(TOOLS_QUEUE,), event=b"{}")

        assert await rig.tools.redrive(await rig.job(), None, event)

        assert await rig.queued(TOOLS_QUEUE) == ["1"]
        job = await rig.job()
        assert (job.state, job.step, job.deadline_ms) == (JobState.IN_PROGRESS, "tools", 0)
        sent = {place: publication(place) for place in (1, 2)}
        assert await rig.tools.queue_calls(await rig.run(), sent, AFTER) is AdvanceStatus.OK
        assert await rig.queued() == [key(1), key(2)]
        assert (await rig.send(0)).status is SendStatus.DONE
        assert (await rig.send(1)).status is SendStatus.IN_DOUBT
        assert (await rig.send(2)).status is SendStatus.SENT
        states = [each.state for each in await rig.calls()]
        assert states == [CallState.RETURNED, CallState.IN_DOUBT, CallState.SENT]

    async def test_what_was_asked_is_asked_anew_and_unknown_calls_too(self, rig: ToolRig) -> None:
        await self.dead(rig, call(0), WAITS_AT_1, call(2))
        await rig.give(await rig.send(0), 0, CallEnd(state=CallState.UNKNOWN))
        await self.fail(rig)
        assert (await rig.tools.approvals("acme")).calls == []

        assert await rig.tools.redrive(await rig.job(), None)

        waiting = (await rig.tools.approvals("acme")).calls
        assert {(each.call.place, each.call.state) for each in waiting} == {
            (0, CallState.IN_DOUBT),
            (1, CallState.AWAITING_APPROVAL),
        }
        assert (await rig.decide(CallState.PENDING, place=1))[0] is ReturnStatus.DONE
        assert (await rig.decide(CallState.PENDING, place=1, asked=2))[0] is ReturnStatus.OK

    async def test_an_edited_one_drops_the_turns_and_opens_an_epoch(self, rig: ToolRig) -> None:
        await self.dead(rig, call(0), WAITS_AT_1)
        await self.fail(rig)
        body = {"model": "m", "messages": [{"role": "user", "content": "else"}]}
        request = JobRequest(url="/v1/chat/completions", body=body)
        event = Publication(queues=(MODEL_QUEUE,), event=b"{}", after_queues=(TOOLS_QUEUE,))

        assert await rig.tools.redrive(await rig.job(), request, event, PLAN)

        job = await rig.job()
        assert (job.state, job.turns, job.turn_begin, job.epoch) == (JobState.QUEUED, (), 0, 1)
        record = await rig.redis.hkeys(keys.job(job_id()))
        assert not [name for name in record if name.partition(b":")[0] in (b"turn", b"call")]
        await rig.settle(MODEL_QUEUE)
        await rig.generate()
        await rig.commit(call(), WAITS_AT_1)
        assert await rig.queued() == [key(0, epoch=1)]
        assert (await rig.job()).turns[0].epoch == 1

    async def test_nothing_of_before_an_edit_is_taken_for_what_is_now(self, rig: ToolRig) -> None:
        await self.dead(rig, call(0), WAITS_AT_1)
        zombie = await rig.send(0)
        await self.fail(rig)
        event = Publication(queues=(MODEL_QUEUE,), event=b"{}", after_queues=(TOOLS_QUEUE,))
        await rig.tools.redrive(await rig.job(), (await rig.job()).request, event, PLAN)
        await rig.settle(MODEL_QUEUE)
        await rig.generate()
        await rig.commit(call(0), WAITS_AT_1)

        old = await rig.tools.give_up_call(job_id(), 1, 0, key(0), "no answer", AFTER)
        assert old is ReturnStatus.DONE
        assert (await rig.send(0, key=key(0))).status is SendStatus.DONE
        assert (await rig.send(0, key=key(0, epoch=1))).status is SendStatus.SENT
        assert await rig.give(zombie, 0) is ReturnStatus.LATE
        assert (await rig.decide(CallState.PENDING, place=1))[0] is ReturnStatus.DONE
        (entry,) = (await rig.entries("turn"))[-1:]
        shown = orjson.loads(entry["calls"])[1]["approval_id"]
        (waiting,) = (await rig.tools.approvals("acme")).calls
        assert waiting.call.approval_id == shown

    async def test_usage_of_both_lives_is_counted_once(self, rig: ToolRig) -> None:
        await self.dead(rig, call())
        await self.fail(rig)
        await rig.tools.redrive(await rig.job(), None)
        await rig.tools.queue_calls(await rig.run(), {0: publication(0)}, AFTER)
        await rig.give(await rig.send())
        await rig.generate(answer("done", usage(20, 6), begin=2))
        await rig.tools.advance(await rig.run(), ACCEPT)

        ends = await rig.redis.xrange(keys.ENDED)
        totals = [orjson.loads(fields[b"usage"])["total_tokens"] for _, fields in ends]
        assert totals == [14, 26]
        usage_now = (await rig.job()).usage
        assert usage_now is not None
        assert usage_now["total_tokens"] == 40


class TestCarried:
    async def test_a_turn_of_an_earlier_job_is_taken_over(self, rig: ToolRig) -> None:
        await rig.turn(call(0), call(1, CallState.RETURNED, output="kept"))
        await rig.tools.cancel(job_id())
        old = await rig.redis.hgetall(keys.job(job_id()))
        await rig.redis.flushdb()
        await rig.submit()
        carried = {name: old[name] for name in (b"turns", b"turn:1", b"call:1.0", b"call:1.1")}
        await rig.redis.hset(keys.job(job_id()), mapping={**carried, b"step": b"tools"})
        run = await rig.run()
        assert await rig.tools.advance(run, ACCEPT) is AdvanceStatus.DONE

        assert await rig.tools.queue_calls(run, {0: publication(0)}, AFTER) is AdvanceStatus.OK

        assert (await rig.job()).state is JobState.IN_PROGRESS
        assert await rig.give(await rig.send()) is ReturnStatus.NEXT
        assert [each.output for each in (await rig.job()).turns[0].calls] == ["42", "kept"]


class TestCost:
    async def test_a_waiting_approval_takes_little_memory(self, rig: ToolRig) -> None:
        await rig.submit()
        await rig.generate()
        before = sum(
            [int(await rig.redis.memory_usage(key) or 0) for key in await rig.redis.keys()]
        )
        await rig.commit(WAITS)

        after = sum([int(await rig.redis.memory_usage(key) or 0) for key in await rig.redis.keys()])

        assert after - before <= 4096


class TestStoredResults:
    async def test_they_go_with_their_job(self, rig: ToolRig, tmp_path: Path) -> None:
        objects = tool_results(f"file://{tmp_path}")
        store = RedisToolStore(rig.redis, SETTINGS, results=objects)
        await rig.turn(call())
        await objects.write(f"{job_id()}/1.0", b"much")
        await objects.write("job_gone/1.0", b"more")

        assert await sweep(objects, store) == 1
        assert await objects.names() == [job_id()]
        assert not await store.delete(job_id())
        assert await objects.names() == [job_id()]
        await store.cancel(job_id())
        assert await store.delete(job_id())
        assert await objects.names() == []


class TestChanged:
    async def test_an_answer_that_a_step_changes_leaves_the_tokens_of_the_turns_before(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        await rig.give(await rig.send())
        await rig.generate(answer("half", tokens=3, begin=2))
        other = answer("whole").result
        anew = (TokenBatch(index=0, token_ids=(9,), delta='["whole"]'),)

        end = replace(ACCEPT, result=other, tokens=anew)
        assert await rig.tools.advance(await rig.run(), end) is AdvanceStatus.OK

        job = await rig.job()
        assert (job.state, job.result, job.token_count) == (JobState.COMPLETED, other, 3)
        entries = await rig.tools.read_stream(job_id())
        written = [(each.index, each.token_ids) for each in entries if each.token_ids]
        assert written == [(0, (0, 1)), (2, (9,))]
        (*_, restart) = await rig.entries("attempt")
        assert restart["index"] == "2"
