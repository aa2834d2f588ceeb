"""Tool calls and their events on the embedded broker: whole turns through its queues, deliveries that it gives up, and
decisions that no one made.
"""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.decision import SubscriberResponse
from eventing.broker.queue.claim import Claimed
from eventing.broker.queue.queue import Queue
from eventing.broker.router import DirectPublisher
from eventing.broker.tool_calls import ToolCalls, next_turn_event, sweep_approvals
from eventing.cloudevent.job_event import PLANNED, PREPARED
from eventing.cloudevent.tool_event import CALLED, place_of
from eventing.job.job import Job, JobState
from eventing.job.step import AdvanceStatus
from eventing.job.tools.call import CallState, ToolCall, Turn
from eventing.job.tools.store import CallEnd, Decision, ReturnStatus, SendStatus
from eventing.redis import keys
from tests.contract.broker.stack import trigger
from tests.contract.rig import job_id
from tests.contract.tool_rig import (
    ASK_MS,
    DONE,
    LEASE_MS,
    MODEL_QUEUE,
    TOOLS_QUEUE,
    ToolRig,
    answer,
    call,
    key,
)

TYPES = {"requests-m": PREPARED, "tools": PLANNED, "tools-wiki": CALLED}
TRIGGERS = {
    name: replace(trigger("http://127.0.0.1:9/"), name=name, filters=({"exact": {"type": type_}},))
    for name, type_ in TYPES.items()
}
AWAY = SubscriberResponse(status=500)
REFUSED = SubscriberResponse(status=503)


class BrokerRig(ToolRig):
    """The store, and the queues of three triggers."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.route = DirectPublisher(redis, list(TRIGGERS.values()))
        self.tool_calls = ToolCalls(self.tools, self.route)
        self.handler = DeadLetterHandler(redis, self.tools, self.route)

    async def begin(self, *calls: ToolCall, ask_ms: int = ASK_MS) -> None:
        """A job whose first turn is committed with the events of its calls."""
        await self.submit()
        await self.generate()
        job, run = await self.job(), await self.run()
        turn = Turn(
            number=1, attempt=1, begin=0, end=2, message={}, ask_ms=ask_ms, calls=tuple(calls)
        )
        assert await self.tool_calls.commit(job, run, turn) is AdvanceStatus.OK
        await self.settle(TOOLS_QUEUE)

    async def claim(self, name: str = "tools-wiki") -> Claimed:
        queue = Queue(self.redis, name, "pump")
        await queue.ensure()
        (claimed,) = await queue.claim(1)
        return claimed

    async def give_up(self, claimed: Claimed, answer: SubscriberResponse = AWAY) -> bool:
        return await self.handler.record(TRIGGERS["tools-wiki"], claimed, "no answer", answer)


@pytest.fixture
def rig(redis: Redis) -> BrokerRig:
    return BrokerRig(redis)


async def test_a_turn_goes_through_the_queues_of_its_calls_and_of_the_model(rig: BrokerRig) -> None:
    await rig.begin(call(0))
    claimed = await rig.claim()
    assert (claimed.event.id, claimed.event.subject) == (key(0), job_id())
    assert place_of(claimed.event) == (1, 0)

    sent = await rig.send()
    assert sent.job is not None
    assert sent.call is not None
    status = await rig.tool_calls.returned(sent.job, sent.call, sent.send, DONE)

    assert status is ReturnStatus.NEXT
    next_turn = await rig.claim("requests-m")
    assert (next_turn.event.type, next_turn.event.subject) == (PREPARED, job_id())


async def test_the_next_turn_is_delivered_while_the_predictors_last_delivery_is_not_settled(
    rig: BrokerRig,
) -> None:
    """Its events have one identity: a call may end before the pump has seen the predictor's answer."""
    await rig.submit()
    await rig.settle(MODEL_QUEUE)
    await rig.route.publish(next_turn_event(await rig.job(), 0))
    taken = await rig.tools.acquire(job_id(), "w", can_resume=True)
    first = await rig.claim("requests-m")
    await rig.tools.finish(taken.lease, answer())
    job, run = await rig.job(), await rig.run()
    turn = Turn(number=1, attempt=1, begin=0, end=2, message={}, calls=(call(0),))
    await rig.tool_calls.commit(job, run, turn)
    sent = await rig.send()
    assert sent.job is not None
    assert sent.call is not None
    await rig.tool_calls.returned(sent.job, sent.call, sent.send, DONE)

    await Queue(rig.redis, "requests-m", "pump").settle(first.ticket)

    assert (await rig.claim("requests-m")).event.id == first.event.id


async def test_a_call_whose_tries_are_used_up_is_not_run_and_the_model_is_told(
    rig: BrokerRig,
) -> None:
    await rig.begin(call(0))

    assert await rig.give_up(await rig.claim())

    job = await rig.job()
    assert (job.state, job.turns[0].calls[0].state) == (JobState.QUEUED, CallState.NOT_RUN)
    assert "not run: no answer" in job.to_run.body["messages"][-1]["content"]
    assert await rig.queued(MODEL_QUEUE) == ["1"]


async def test_a_call_that_runs_stays_in_its_queue(rig: BrokerRig) -> None:
    await rig.begin(call(0))
    claimed = await rig.claim()
    await rig.send()

    assert not await rig.give_up(claimed)

    await rig.pass_time(LEASE_MS + 1)
    assert await rig.give_up(claimed)
    assert (await rig.calls())[0].state is CallState.IN_DOUBT


async def test_a_call_waits_for_a_process_that_is_unavailable(rig: BrokerRig) -> None:
    await rig.begin(call(0))

    assert not await rig.give_up(await rig.claim(), REFUSED)

    assert (await rig.calls())[0].state is CallState.PENDING


async def test_a_delivery_of_a_job_that_is_gone_is_settled(rig: BrokerRig) -> None:
    await rig.begin(call(0))
    claimed = await rig.claim()
    await rig.tools.cancel(job_id())

    assert await rig.give_up(claimed)
    await rig.tools.delete(job_id())
    assert await rig.give_up(claimed)


async def test_calls_that_were_lost_with_their_queue_are_put_there_again(rig: BrokerRig) -> None:
    await rig.begin(call(0), call(1, CallState.AWAITING_APPROVAL))
    await rig.settle(keys.queue("tools-wiki", ""))

    status = await rig.tool_calls.queue(await rig.job(), await rig.run())

    assert status is AdvanceStatus.OK
    assert await rig.queued() == [key(0)]


async def test_what_no_one_decided_is_denied_and_the_job_goes_on(rig: BrokerRig) -> None:
    await rig.begin(call(0, CallState.AWAITING_APPROVAL), call(1, CallState.AWAITING_APPROVAL))
    assert await sweep_approvals(rig.tool_calls) == 0
    await rig.pass_time(ASK_MS + 1)

    assert await sweep_approvals(rig.tool_calls) == 2
    assert await sweep_approvals(rig.tool_calls) == 0

    job: Job = await rig.job()
    assert {each.state for each in job.turns[0].calls} == {CallState.DENIED}
    assert await rig.queued(MODEL_QUEUE) == ["1"]


async def test_a_doubt_that_no_one_ended_is_unknown(rig: BrokerRig) -> None:
    await rig.begin(call(0))
    await rig.give(await rig.send(), end=CallEnd(state=CallState.IN_DOUBT))
    await rig.pass_time(ASK_MS + 1)

    await sweep_approvals(rig.tool_calls)

    assert (await rig.job()).turns[0].calls[0].state is CallState.UNKNOWN


async def test_an_approved_call_is_delivered(rig: BrokerRig) -> None:
    await rig.begin(call(0, CallState.AWAITING_APPROVAL))
    (waiting,) = (await rig.tools.approvals("acme")).calls

    approved = Decision(state=CallState.PENDING, approver="ann")
    status, _ = await rig.tool_calls.decide(await rig.job(), waiting.call, approved)

    assert status is ReturnStatus.OK
    assert (await rig.claim()).event.id == key(0)
    assert (await rig.send()).status is SendStatus.SENT


@pytest.mark.parametrize(
    ("span_s", "state"), [(3600.0, CallState.PENDING), (1e-6, CallState.NOT_RUN)]
)
async def test_a_call_that_another_broker_gave_up_early_is_published_again(
    rig: BrokerRig, span_s: float, state: CallState
) -> None:
    await rig.begin(call(0))
    claimed = await rig.claim()
    answered = replace(
        claimed, event=replace(claimed.event, extensions={**claimed.event.extensions, **GAVE_UP})
    )
    await rig.redis.delete(keys.UNPUBLISHED)
    relay = replace(TRIGGERS["tools-wiki"], retry_span_s=span_s)

    assert await rig.handler.record(relay, answered, "given up", AWAY)

    assert (await rig.job()).turns[0].calls[0].state is state
    noted = await rig.tools.take_unpublished(9)
    assert noted == ([job_id()] if state is CallState.PENDING else [])


GAVE_UP = {"knativeerrorcode": "500"}
