"""Turns and tool calls of a job in the store: what commits a turn, sends a call and queues it again."""

from dataclasses import replace

import orjson
import pytest
from redis.asyncio import Redis

from eventing.errors import StoreUnavailable
from eventing.job.job import JobState
from eventing.job.plan import StepStatus
from eventing.job.step import AdvanceStatus, StepEnd, Verdict
from eventing.job.store import AcquireStatus, Ending, LeaseStatus, Publication, TokenBatch
from eventing.job.tools.call import CallState, EffectClass, ToolPhase, approval_item_id
from eventing.job.tools.store import CallEnd, ReturnStatus, SendStatus
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.steps.redis_tools import RedisToolStore
from tests.contract.rig import FAULT, SETTINGS, append, job_id, new_job
from tests.contract.tool_rig import (
    ASK_MS,
    DONE,
    LEASE_MS,
    MODEL_QUEUE,
    ToolRig,
    answer,
    call,
    key,
    usage,
)

ACCEPT = StepEnd(status=StepStatus.COMPLETED, verdict=Verdict.ACCEPT)
AGAIN = [EffectClass.READ, EffectClass.REPEATABLE, EffectClass.KEYED]
WAITS_AT_1 = call(1, CallState.AWAITING_APPROVAL)
WAITS_AT_2 = call(2, CallState.AWAITING_APPROVAL)
WAITS_AT_3 = call(3, CallState.AWAITING_APPROVAL)
IN_DOUBT = CallEnd(state=CallState.IN_DOUBT, reason="no answer")


@pytest.fixture
def rig(redis: Redis) -> ToolRig:
    return ToolRig(redis)


class TestTurn:
    async def test_a_committed_turn_has_its_calls_in_a_queue_and_no_lease(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(0), call(1))

        job = await rig.job()
        assert (job.state, job.step, job.lease_until_ms) == (JobState.IN_PROGRESS, "tools", 0)
        assert (job.candidate, job.tool_phase) == (None, ToolPhase.TOOL)
        assert [each.outcome for each in job.history] == ["turn"]
        (turn,) = job.turns
        assert (turn.number, turn.begin, turn.end, turn.usage) == (1, 0, 2, usage())
        assert turn.calls[0].arguments == call().arguments
        assert await rig.queued() == [key(0), key(1)]
        (entry,) = await rig.entries("turn")
        assert (entry["turn"], entry["index"]) == ("1", "2")
        shown = orjson.loads(entry["calls"])
        assert [(each["place"], each["state"]) for each in shown] == [
            (0, "pending"),
            (1, "pending"),
        ]

    async def test_the_last_result_queues_the_next_turn_and_the_job_ends_with_the_sum(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(0), call(1))
        first, second = await rig.send(0), await rig.send(1)
        assert (first.status, second.status) == (SendStatus.SENT, SendStatus.SENT)

        assert await rig.give(first, 0) is ReturnStatus.OK
        assert await rig.queued(MODEL_QUEUE) == []
        assert await rig.give(second, 1) is ReturnStatus.NEXT

        job = await rig.job()
        assert (job.state, job.step, job.turn_begin, job.tool_phase) == ("queued", "", 2, None)
        assert await rig.queued(MODEL_QUEUE) == ["1"]
        roles = [message["role"] for message in job.to_run.body["messages"]]
        assert roles == ["user", "assistant", "tool", "tool"]
        taken = await rig.tools.acquire(job_id(), "worker-2", can_resume=False)
        assert (taken.status, taken.token_count, taken.void_count) == (AcquireStatus.ACQUIRED, 2, 0)
        await rig.tools.finish(taken.lease, answer("done", usage(20, 6), 3, begin=2))
        await rig.tools.advance(await rig.run(), ACCEPT)
        job = await rig.job()
        assert (job.state, job.gpu_ms, job.token_count) == (JobState.COMPLETED, 14, 5)
        assert job.usage is not None
        assert (job.usage["prompt_tokens"], job.usage["completion_tokens"]) == (30, 10)
        assert job.usage["total_tokens"] == 40
        assert job.usage["prompt_tokens_details"] == {"cached_tokens": 6}
        assert job.usage["completion_tokens_details"] == {"reasoning_tokens": 4}
        assert [each.outcome for each in job.history] == ["turn", "completed"]

    async def test_a_turn_is_committed_once(self, rig: ToolRig) -> None:
        await rig.submit()
        await rig.generate()
        run = await rig.run()
        assert await rig.commit(call(), run=run) is AdvanceStatus.OK
        before = await rig.everything()

        assert await rig.commit(call(), call(1), run=run) is AdvanceStatus.DONE

        assert await rig.everything() == before

    async def test_a_turn_of_an_earlier_life_is_fenced_and_one_of_an_ended_job_is_late(
        self, rig: ToolRig
    ) -> None:
        await rig.submit()
        await rig.generate()
        run = await rig.run()

        assert await rig.commit(call(), run=replace(run, attempt=9)) is AdvanceStatus.FENCED
        await rig.tools.cancel(job_id())
        assert await rig.commit(call(), run=run) is AdvanceStatus.TERMINAL
        assert (await rig.job()).turns == ()

    async def test_a_turn_without_a_call_to_run_queues_the_next_at_once(self, rig: ToolRig) -> None:
        await rig.turn(call(0, CallState.NOT_RUN, output="no more"))

        job = await rig.job()
        assert (job.state, job.step, job.turn_begin) == (JobState.QUEUED, "", 2)
        assert await rig.queued(MODEL_QUEUE) == ["1"]
        assert job.to_run.body["messages"][-1]["content"] == "no more"

    async def test_a_turn_for_the_client_ends_the_job_once_its_free_calls_are_done(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(0, CallState.CLIENT, server=""), call(1), WAITS_AT_2, ends=1)
        job = await rig.job()
        assert (job.state, job.candidate is not None) == (JobState.IN_PROGRESS, True)

        assert await rig.give(await rig.send(1), 1) is ReturnStatus.ENDED

        job = await rig.job()
        assert (job.state, job.result, job.usage) == ("completed", answer().result, usage())
        states = [each.state for each in job.turns[0].calls]
        assert states == [CallState.CLIENT, CallState.RETURNED, CallState.AWAITING_APPROVAL]
        assert (await rig.tools.approvals("acme")).calls == []

    async def test_a_turn_for_the_client_alone_ends_the_job_at_once(self, rig: ToolRig) -> None:
        await rig.turn(call(0, CallState.CLIENT, server=""), ends=1)

        assert (await rig.job()).state is JobState.COMPLETED

    async def test_the_candidate_ends_no_job_while_its_turn_is_open(self, rig: ToolRig) -> None:
        await rig.submit()
        await rig.generate()
        run = await rig.run()
        await rig.commit(call(), run=run)

        assert await rig.tools.advance(run, ACCEPT) is AdvanceStatus.DONE
        fault = Ending(state=JobState.FAILED, error=FAULT)
        assert await rig.tools.conclude(job_id(), fault) is LeaseStatus.FENCED
        taken = await rig.tools.acquire(job_id(), "worker-2", can_resume=True)
        assert taken.status is AcquireStatus.UNPREPARED
        assert (await rig.job()).state is JobState.IN_PROGRESS

    async def test_a_job_with_turns_is_taken_by_no_event_that_has_not_got_them(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        await rig.give(await rig.send())
        taken = await rig.tools.acquire(job_id(), "w", can_resume=True, expected=new_job())

        assert taken.status is AcquireStatus.OTHER

    async def test_an_attempt_that_starts_over_voids_nothing_of_the_turns_before(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        await rig.give(await rig.send())
        await rig.generate(answer("half", tokens=3, begin=2))
        await rig.commit(call())
        await rig.give(await rig.send(turn=2), turn=2)
        lost = await rig.tools.acquire(job_id(), "worker-1", can_resume=True)
        await append(rig.tools, lost.lease, TokenBatch(index=5, token_ids=(7, 8)))
        await rig.pass_time(30_001)

        again = await rig.tools.acquire(job_id(), "worker-2", can_resume=False)

        assert (again.token_count, again.void_count) == (5, 2)
        (*_, entry) = await rig.entries("attempt")
        assert (entry["index"], entry["restarted"]) == ("5", "1")

    async def test_only_so_many_calls_are_in_a_queue_at_once(self, rig: ToolRig) -> None:
        await rig.turn(call(0), call(1), call(2), parallel=2)
        assert await rig.queued() == [key(0), key(1)]
        assert (await rig.send(0)).status is SendStatus.SENT

        assert await rig.give(1, 0) is ReturnStatus.OK

        assert await rig.queued() == [key(0), key(1), key(2)]

    async def test_a_broker_that_has_no_limit_is_held_to_it_by_the_send(self, rig: ToolRig) -> None:
        await rig.turn(call(0), call(1), parallel=1)
        await rig.send(0)

        assert (await rig.send(1)).status is SendStatus.HELD

        await rig.give(1, 0)
        assert (await rig.send(1)).status is SendStatus.SENT

    async def test_a_foreign_broker_has_notes_in_place_of_queues(self, rig: ToolRig) -> None:
        await rig.submit()
        await rig.generate()
        noted = Publication(max_unpublished=0)
        await rig.redis.delete(keys.UNPUBLISHED)

        await rig.commit(call(0), call(1), parallel=1, publications={0: noted, 1: noted})
        assert await rig.redis.zcard(keys.UNPUBLISHED) == 1
        await rig.redis.delete(keys.UNPUBLISHED)
        await rig.send(0)
        await rig.give(1, 0)

        assert await rig.tools.take_unpublished(9) == [job_id()]


class TestSend:
    async def test_a_call_is_marked_before_it_is_dialled(self, rig: ToolRig) -> None:
        await rig.turn(call())

        sent = await rig.send()

        assert (sent.status, sent.send) == (SendStatus.SENT, 1)
        assert sent.call is not None
        assert (sent.call.state, sent.call.sends, sent.call.owner) == ("sent", 1, "caller-1")
        assert (await rig.send(owner="caller-2")).status is SendStatus.HELD
        assert (await rig.send(owner="caller-2")).lease_left_ms > 0

    @pytest.mark.parametrize("effect", AGAIN)
    async def test_a_lost_call_that_does_no_harm_is_sent_again_up_to_its_limit(
        self, rig: ToolRig, effect: EffectClass
    ) -> None:
        await rig.turn(call(effect=effect, max_attempts=2))
        first = await rig.send()
        await rig.pass_time(LEASE_MS + 1)

        second = await rig.send(owner="caller-2")
        assert (second.status, second.send) == (SendStatus.SENT, 2)
        assert await rig.give(first) is ReturnStatus.LATE
        await rig.pass_time(LEASE_MS + 1)
        third = await rig.send(owner="caller-3")

        assert third.status is SendStatus.IN_DOUBT
        assert third.call is not None
        assert (third.call.state, third.call.sends) == (CallState.SENT, 2)
        gone = CallEnd(state=CallState.UNKNOWN)
        assert await rig.give(third, end=gone) is ReturnStatus.NEXT
        (last,) = (await rig.job()).turns[0].calls
        assert (last.state, "may have happened" in last.output) == (CallState.UNKNOWN, True)

    async def test_a_lost_call_that_may_run_once_is_put_before_a_person(self, rig: ToolRig) -> None:
        await rig.turn(call())
        await rig.send()
        await rig.pass_time(LEASE_MS + 1)

        sent = await rig.send(owner="caller-2")

        assert (sent.status, sent.send) == (SendStatus.IN_DOUBT, 0)
        (waiting,) = (await rig.tools.approvals("acme")).calls
        assert (waiting.call.state, waiting.call.sends) == (CallState.IN_DOUBT, 1)
        assert waiting.call.approval_id == approval_item_id(job_id(), 1, 0)
        assert (await rig.job()).tool_phase is ToolPhase.APPROVAL
        assert (await rig.send()).status is SendStatus.WAITING

    async def test_where_no_one_can_be_asked_it_is_unknown(self, rig: ToolRig) -> None:
        await rig.turn(call(), ask_ms=0)
        await rig.send()
        await rig.pass_time(LEASE_MS + 1)

        sent = await rig.send(owner="caller-2")
        assert sent.status is SendStatus.IN_DOUBT
        assert await rig.give(1, end=DONE) is ReturnStatus.LATE
        assert await rig.give(sent, end=CallEnd(state=CallState.UNKNOWN)) is ReturnStatus.NEXT

        (last,) = (await rig.job()).turns[0].calls
        assert (last.state, last.sends) == (CallState.UNKNOWN, 1)

    async def test_a_call_under_a_handle_is_polled_and_never_sent_again(self, rig: ToolRig) -> None:
        await rig.turn(call())
        accepted = CallEnd(state=CallState.ACCEPTED, handle="t-1")
        assert await rig.give(await rig.send(), end=accepted) is ReturnStatus.OK

        polled = await rig.send(owner="caller-2")
        assert (polled.status, polled.send) == (SendStatus.POLL, 2)
        assert polled.call is not None
        assert (polled.call.handle, polled.call.sends) == ("t-1", 1)
        assert (await rig.send(owner="caller-3")).status is SendStatus.HELD
        await rig.pass_time(LEASE_MS + 1)
        assert (await rig.send(owner="caller-3")).status is SendStatus.POLL
        assert await rig.give(3) is ReturnStatus.NEXT

    @pytest.mark.parametrize(
        ("effect", "ask_ms", "state"),
        [
            (EffectClass.ONCE, ASK_MS, CallState.IN_DOUBT),
            (EffectClass.ONCE, 0, CallState.UNKNOWN),
            (EffectClass.KEYED, 0, CallState.PENDING),
        ],
    )
    async def test_a_caller_that_saw_no_answer_leaves_a_doubt(
        self, rig: ToolRig, effect: EffectClass, ask_ms: int, state: CallState
    ) -> None:
        await rig.turn(call(effect=effect), ask_ms=ask_ms)

        given = await rig.give(await rig.send(), end=IN_DOUBT)

        assert (given is ReturnStatus.AGAIN) == (state is CallState.PENDING)
        (last,) = (await rig.job()).turns[0].calls
        assert (last.state, last.sends) == (state, 1)

    async def test_a_call_that_surely_was_not_carried_out_was_not_sent(self, rig: ToolRig) -> None:
        await rig.turn(call())

        refused = CallEnd(state=CallState.PENDING, reason="connection refused")
        assert await rig.give(await rig.send(), end=refused) is ReturnStatus.AGAIN
        assert await rig.give(1, end=refused) is ReturnStatus.AGAIN

        (last,) = await rig.calls()
        assert (last.state, last.sends) == (CallState.PENDING, 0)
        assert (await rig.send()).status is SendStatus.SENT

    async def test_a_lease_is_lengthened_by_its_holder_alone(self, rig: ToolRig) -> None:
        await rig.turn(call(effect=EffectClass.READ))
        first = await rig.send()
        await rig.pass_time(LEASE_MS - 1000)

        async def renew(number: int) -> bool:
            return await rig.tools.renew_call(job_id(), 1, 0, number, lease_ms=LEASE_MS)

        assert await renew(first.send)
        await rig.pass_time(LEASE_MS - 1000)
        assert (await rig.send(owner="caller-2")).status is SendStatus.HELD
        await rig.pass_time(1001)
        assert (await rig.send(owner="caller-2")).send == 2
        assert not await renew(first.send)
        await rig.tools.cancel(job_id())
        assert not await renew(2)

    async def test_a_lease_from_before_the_clock_went_back_lasts_no_longer_than_a_new_one(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(effect=EffectClass.READ))
        await rig.send()
        await rig.pass_time(-3_600_000)

        held = await rig.send(owner="caller-2")

        assert held.status is SendStatus.HELD
        assert held.lease_left_ms <= LEASE_MS

    async def test_what_can_not_be_sent_says_why(self, rig: ToolRig) -> None:
        assert (await rig.send()).status is SendStatus.MISSING
        await rig.turn(call(0), WAITS_AT_1)

        assert (await rig.send(1)).status is SendStatus.WAITING
        assert (await rig.send(2)).status is SendStatus.DONE
        assert (await rig.send(turn=2)).status is SendStatus.DONE
        await rig.give(await rig.send(0))
        assert (await rig.send(0)).status is SendStatus.DONE
        await rig.tools.cancel(job_id())
        assert (await rig.send(1)).status is SendStatus.TERMINAL

    @pytest.mark.parametrize("text", ["", "é\u0000\U0001f600 </s> \\ / \x7f", "x" * 70_000])
    async def test_a_result_is_stored_as_it_came(self, rig: ToolRig, text: str) -> None:
        await rig.turn(call())

        end = CallEnd(
            state=CallState.RETURNED, output=text, output_bytes=2**40, is_error=True, object_ref="o"
        )
        await rig.give(await rig.send(), end=end)

        (last,) = (await rig.job()).turns[0].calls
        assert (last.output, last.output_bytes, last.object_ref) == (text, 2**40, "o")
        assert (last.is_error, last.arguments) == (1, call().arguments)
        (*_, entry) = await rig.entries("call")
        assert len(entry.get("output", "")) <= 4096

    async def test_the_stream_tells_each_change_of_a_call(self, rig: ToolRig) -> None:
        await rig.turn(call())
        await rig.give(await rig.send())

        told = [(e["status"], e["turn"], e["place"], e["send"]) for e in await rig.entries("call")]
        assert told == [("sent", "1", "0", "1"), ("returned", "1", "0", "1")]

    async def test_a_mark_that_no_replica_confirms_is_taken_back(
        self, rig: ToolRig, redis_url: str
    ) -> None:
        await rig.turn(call())
        own = connect(redis_url, timeout_s=0.5)
        store = RedisToolStore(own, SETTINGS, send_acks=1)
        try:
            with pytest.raises(StoreUnavailable):
                await store.send_call(job_id(), 1, 0, owner="caller-1", lease_ms=LEASE_MS)
        finally:
            await store.close()

        (last,) = await rig.calls()
        assert (last.state, last.sends) == (CallState.PENDING, 0)
