"""Whatever happens to a job in its tool loop, its calls keep the rules: one send of what may run once, no open call
that nothing brings on, no tokens that no one counts, and an end.

Hypothesis generates the histories: turns, deliveries, crashes, zombies, decisions, cancels, failures and redrives.
"""

import asyncio
import os
from collections import Counter
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from eventing.broker.queue.claim import Claimed
from eventing.broker.queue.queue import Queue
from eventing.job.job import Job, JobState, Lane
from eventing.job.plan import StepStatus
from eventing.job.step import AdvanceStatus, StepEnd, Verdict
from eventing.job.store import AcquireStatus, Ending, Publication
from eventing.job.tools.call import CallState, EffectClass, ToolCall, idempotency_key
from eventing.job.tools.store import CallEnd, Decision, ReturnStatus, SendStatus, Sent
from eventing.redis import keys
from eventing.redis.connection import connect
from tests.conftest import STORE_S
from tests.contract.rig import FAULT, job_id
from tests.contract.tool_rig import (
    AFTER,
    ASK_MS,
    CALLS_QUEUE,
    LEASE_MS,
    MODEL_QUEUE,
    PLAN,
    TOOLS_QUEUE,
    ToolRig,
    answer,
    call,
    publication,
    usage,
)

EFFECTS = st.sampled_from(list(EffectClass))
STATES = st.sampled_from(
    [
        *(CallState.PENDING, CallState.PENDING, CallState.PENDING),
        *(CallState.AWAITING_APPROVAL, CallState.AWAITING_APPROVAL, CallState.NOT_RUN),
    ]
)
OUTCOMES = st.sampled_from(
    [
        *(CallState.RETURNED, CallState.RETURNED, CallState.ACCEPTED, CallState.PENDING),
        *(CallState.IN_DOUBT, CallState.AWAITING_INPUT, CallState.UNKNOWN),
    ]
)
DECISIONS = st.sampled_from([CallState.PENDING, CallState.DENIED, CallState.UNKNOWN])
WHICH = st.integers(0, 2)
FAILED = StepEnd(
    status=StepStatus.FAILED,
    ending=Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True),
)
ACCEPT = StepEnd(status=StepStatus.COMPLETED, verdict=Verdict.ACCEPT)
Hand = tuple[Claimed, Sent]


class OneJob(RuleBasedStateMachine):
    """One job, the queue of its calls, and processes that run them or die."""

    redis_url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.rig = ToolRig(connect(self.redis_url, timeout_s=STORE_S))
        self.queue = Queue(self.rig.redis, "tools-wiki", "caller")
        self.in_hand: list[Hand] = []
        self.zombies: list[Hand] = []
        self.sends: Counter[str] = Counter()
        self.allowed: Counter[str] = Counter()
        self.done: set[str] = set()
        self.spent = 0
        self.is_queued = self.has_step = self.has_calls = self.is_dead = False
        self.runner.run(self._begin())

    async def _begin(self) -> None:
        await self.rig.redis.flushall()
        await self.queue.ensure()
        await self.rig.submit()

    def teardown(self) -> None:
        try:
            self.runner.run(self._drive_to_its_end())
        finally:
            self.runner.run(self.rig.tools.close())
            self.runner.close()

    # The predictor, and the step that looks at its answer.

    async def _predict(self, tokens: int, can_resume: bool = True) -> None:
        taken = await self.rig.tools.acquire(job_id(), "worker", can_resume=can_resume)
        job = await self.rig.job()
        is_waiting = job.turns and not job.turns[-1].is_done
        if taken.status is not AcquireStatus.ACQUIRED:
            return
        assert not is_waiting, "an attempt began while calls of its turn were open"
        assert taken.token_count >= job.turn_begin
        said = usage(tokens, tokens, tokens, 0)
        await self.rig.tools.finish(taken.lease, answer("x", said, tokens, begin=taken.token_count))
        self.spent += 2 * tokens
        await self.rig.settle(MODEL_QUEUE)

    @precondition(lambda self: self.is_queued or self.has_step)
    @rule(
        asked=st.lists(st.tuples(STATES, EFFECTS), min_size=1, max_size=3),
        parallel=st.integers(1, 2),
        ask_ms=st.sampled_from([0, ASK_MS]),
        is_client=st.sampled_from([False, False, True]),
        tokens=st.integers(1, 3),
        can_resume=st.booleans(),
    )
    def turn(
        self,
        asked: list[tuple[CallState, EffectClass]],
        parallel: int,
        ask_ms: int,
        is_client: bool,
        tokens: int,
        can_resume: bool,
    ) -> None:
        if CallState.AWAITING_APPROVAL in [state for state, _ in asked]:
            ask_ms = ASK_MS
        calls = [call(n, state, effect, max_attempts=2) for n, (state, effect) in enumerate(asked)]
        if is_client:
            calls.append(call(len(calls), CallState.CLIENT, server=""))

        async def committed() -> None:
            await self._predict(tokens, can_resume)
            job = await self.rig.job()
            if job.step != "tools" or job.state.is_terminal:
                return
            run, has_candidate = await self.rig.run(), job.candidate is not None
            rules: dict[str, Any] = {"parallel": parallel, "ask_ms": ask_ms, "run": run}
            status = await self.rig.commit(*calls, ends=int(is_client), **rules)
            is_new = has_candidate and (job.tool_phase is None)
            assert status is (AdvanceStatus.OK if is_new else AdvanceStatus.DONE)
            for each in calls if is_new else ():
                of = idempotency_key(job_id(), len(job.turns) + 1, each.place, job.epoch)
                self.allowed[of] = 1

        self.runner.run(committed())

    @precondition(lambda self: self.has_step)
    @rule(luck=st.integers(0, 4))
    def accept(self, luck: int) -> None:
        async def accepted() -> None:
            job = await self.rig.job()
            if luck == 0 or job.candidate is None or job.tool_phase is not None:
                status = await self.rig.tools.advance(await self.rig.run(), ACCEPT)
                is_open = job.candidate is None or job.tool_phase is not None
                assert status is (AdvanceStatus.DONE if is_open else AdvanceStatus.OK)

        self.runner.run(accepted())

    # Those who run calls.

    @precondition(lambda self: self.has_calls)
    @rule()
    def deliver(self) -> None:
        self.runner.run(self._deliver())

    async def _deliver(self) -> bool:
        """Take one event; False when none waits."""
        claimed = await self.queue.claim(1)
        if not claimed:
            return False
        (event,) = claimed
        (_, where, epoch) = event.event.id.split(":")
        turn, place = (int(part) for part in where.split("."))
        sent = await self.rig.send(place, turn, key=event.event.id)
        match sent.status:
            case SendStatus.SENT:
                self._sent(event.event.id, sent, int(epoch))
                self.in_hand.append((event, sent))
            case SendStatus.POLL:
                self.in_hand.append((event, sent))
            case SendStatus.HELD:
                await self.queue.nack(event.ticket, Lane.DEFAULT)
                return False
            case SendStatus.IN_DOUBT if sent.send:
                await self.rig.give(sent, place, CallEnd(state=CallState.UNKNOWN), turn)
                await self.queue.settle(event.ticket)
            case _:
                await self.queue.settle(event.ticket)
        return True

    def _sent(self, of: str, sent: Sent, epoch: int) -> None:
        assert of not in self.done, "a call that was done ran again"
        assert sent.job is not None
        assert sent.call is not None
        assert sent.job.epoch == epoch, "a call of an edited life ran"
        self.sends[of] += 1
        if sent.call.effect is EffectClass.ONCE:
            assert self.sends[of] <= self.allowed[of], "a call in doubt was sent again"
        else:
            assert sent.call.sends <= 2

    @precondition(lambda self: self.in_hand)
    @rule(which=WHICH, outcome=OUTCOMES)
    def finish(self, which: int, outcome: CallState) -> None:
        if which < len(self.in_hand):
            self.runner.run(self._finish(which, outcome))

    async def _finish(self, which: int, outcome: CallState) -> None:
        event, sent = self.in_hand.pop(which)
        if sent.status is SendStatus.POLL and outcome is CallState.PENDING:
            outcome = CallState.ACCEPTED
        assert sent.call is not None
        status = await self._give(sent, outcome)
        if status is ReturnStatus.AGAIN or outcome is CallState.ACCEPTED:
            await self.queue.nack(event.ticket, Lane.DEFAULT)
        else:
            await self.queue.settle(event.ticket)
        if status is ReturnStatus.AGAIN and outcome is CallState.PENDING:
            self.allowed[event.event.id] += 1
        waits = outcome is CallState.AWAITING_INPUT
        if waits and status in (ReturnStatus.OK, ReturnStatus.ENDED):
            self.allowed[event.event.id] += 1

    async def _give(self, sent: Sent, outcome: CallState) -> ReturnStatus:
        assert sent.call is not None
        handle = "t" if outcome is CallState.ACCEPTED else ""
        end = CallEnd(state=outcome, output=str(outcome), handle=handle)
        return await self.rig.give(sent, sent.call.place, end, sent.call.turn)

    @precondition(lambda self: self.in_hand)
    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        """The process dies; its delivery comes again."""
        if 0 <= which < len(self.in_hand):
            event, sent = self.in_hand.pop(which)
            self.zombies.append((event, sent))
            self.runner.run(self.queue.nack(event.ticket, Lane.DEFAULT))

    @precondition(lambda self: self.has_calls)
    @rule(lapse_ms=st.sampled_from([0, LEASE_MS + 1, LEASE_MS + 1]))
    def deliver_and_crash(self, lapse_ms: int) -> None:
        self.deliver()
        self.crash(len(self.in_hand) - 1)
        self.runner.run(self.rig.pass_time(lapse_ms))

    @precondition(lambda self: self.zombies)
    @rule(which=WHICH)
    def hear_a_zombie(self, which: int) -> None:
        if which >= len(self.zombies):
            return
        self.runner.run(self._hear_a_zombie(self.zombies[which][1]))

    async def _hear_a_zombie(self, sent: Sent) -> None:
        assert sent.call is not None
        turns = (await self.rig.job()).turns
        before = turns[sent.call.turn - 1].calls if len(turns) >= sent.call.turn else ()
        status = await self._give(sent, CallState.RETURNED)
        is_new = sent.call.place >= len(before) or before[sent.call.place].lease_number != sent.send
        assert not is_new or status not in (ReturnStatus.OK, ReturnStatus.NEXT), "an old send won"

    @precondition(lambda self: self.zombies)
    @rule(which=WHICH)
    def give_up_a_delivery(self, which: int) -> None:
        """Its tries are used up."""
        if which >= len(self.zombies):
            return
        event, sent = self.zombies[which]
        assert sent.call is not None
        turn, place = sent.call.turn, sent.call.place
        gone = self.rig.tools.give_up_call(
            job_id(), turn, place, event.event.id, "no answer", AFTER
        )
        self.runner.run(gone)

    @precondition(lambda self: self.has_calls)
    @rule()
    def lose_the_queue(self) -> None:
        """A store came back without it; the sweep sends the event of the step."""

        async def lost() -> None:
            await self.rig.settle(CALLS_QUEUE)
            await self.queue.ensure()
            self.in_hand.clear()
            await self._queue_again()

        self.runner.run(lost())

    async def _queue_again(self) -> None:
        job = await self.rig.job()
        if job.step != "tools" or job.tool_phase is None:
            return
        sent = {
            each.place: publication(each.place, each.turn, job.epoch)
            for each in job.turns[-1].calls
        }
        status = await self.rig.tools.queue_calls(await self.rig.run(), sent, AFTER)
        assert status is AdvanceStatus.OK

    @rule(milliseconds=st.sampled_from([1000, LEASE_MS + 1, 31_000, ASK_MS + 1]))
    def pass_time(self, milliseconds: int) -> None:
        async def later() -> None:
            if milliseconds > ASK_MS and (await self.rig.job()).state.is_terminal:
                return  # its record would expire
            await self.rig.pass_time(milliseconds)
            if milliseconds > ASK_MS:
                await self._decide_overdue()

        self.runner.run(later())

    async def _decide_overdue(self) -> None:
        for late in await self.rig.tools.overdue_approvals():
            await self._decide(late.call, CallState.DENIED)

    # People.

    @precondition(lambda self: self.has_calls)
    @rule(which=WHICH, state=DECISIONS, is_twice=st.booleans())
    def decide(self, which: int, state: CallState, is_twice: bool) -> None:
        async def decided() -> None:
            waiting = (await self.rig.tools.approvals("acme")).calls
            if which < len(waiting):
                await self._decide(waiting[which].call, state)
                if is_twice:
                    status = await self._decide(waiting[which].call, CallState.PENDING)
                    assert status in (ReturnStatus.DONE, ReturnStatus.TERMINAL)

        self.runner.run(decided())

    async def _decide(self, of: ToolCall, state: CallState) -> ReturnStatus:
        job = await self.rig.job()
        if of.state is not CallState.IN_DOUBT and state is CallState.UNKNOWN:
            state = CallState.DENIED
        if of.state is CallState.IN_DOUBT and state is CallState.DENIED:
            state = CallState.UNKNOWN
        status, decided = await self.rig.tools.decide(
            job_id(),
            of.approval_id,
            Decision(state=state, text="said"),
            call=publication(of.place, of.turn, job.epoch),
            turn=AFTER,
        )
        is_taken = status in (ReturnStatus.OK, ReturnStatus.NEXT, ReturnStatus.ENDED)
        runs = decided is not None and decided.state is CallState.PENDING
        if is_taken and runs and of.state is CallState.IN_DOUBT:
            self.allowed[idempotency_key(job_id(), of.turn, of.place, job.epoch)] += 1
        return status

    # What ends a job, and gives it another life.

    @precondition(lambda self: self.has_step)
    @rule()
    def fail(self) -> None:
        async def failed() -> None:
            job = await self.rig.job()
            if job.step == "tools" and not job.state.is_terminal:
                assert await self.rig.tools.advance(await self.rig.run(), FAILED) == "ok"

        self.runner.run(failed())

    @precondition(lambda self: self.is_dead)
    @rule(is_edited=st.booleans())
    def redrive(self, is_edited: bool) -> None:
        async def redriven() -> None:
            job = await self.rig.job()
            if not job.is_dead_letter:
                return
            name = MODEL_QUEUE if is_edited or job.step != "tools" else TOOLS_QUEUE
            event = Publication(queues=(name,), event=AFTER.event, after_queues=(TOOLS_QUEUE,))
            edited = (job.request, event, PLAN) if is_edited else (None, event, None)
            assert await self.rig.tools.redrive(job, *edited)
            if is_edited:
                self.spent = 0
            await self._queue_again()

        self.runner.run(redriven())

    @rule(luck=st.integers(0, 9))
    def cancel(self, luck: int) -> None:
        if luck == 0:
            self.runner.run(self.rig.tools.cancel(job_id()))

    # What is always so.

    @invariant()
    def what_is_open_is_brought_on(self) -> None:
        self.runner.run(self._check())

    async def _check(self) -> None:
        job = await self.rig.job()
        self.is_queued, self.is_dead = job.state is JobState.QUEUED, job.is_dead_letter
        self.has_step = job.step == "tools" and not job.state.is_terminal
        self.has_calls = job.tool_phase is not None
        record = await self.rig.redis.hgetall(keys.job(job_id()))
        members = await self.rig.redis.hkeys(f"{CALLS_QUEUE}events")
        queued = {member.split(b"\0")[1].decode() for member in members}
        due = {m.decode() for m in await self.rig.redis.zrange(keys.APPROVALS_DUE, 0, -1)}
        asked = {m.decode() for m in await self.rig.redis.zrange(keys.approvals_of("acme"), 0, -1)}
        assert due == asked
        calls = [each for turn in job.turns for each in turn.calls]
        self.done |= {
            idempotency_key(job_id(), each.turn, each.place, job.epoch)
            for each in calls
            if each.state.is_final and not (each.state is CallState.UNKNOWN and job.is_dead_letter)
        }
        if job.state.is_terminal:
            assert not due
            assert job.usage is None or job.usage["total_tokens"] == self.spent
            assert job.usage is not None or not self.spent
            return
        waiting = {
            f"{job_id()} {each.turn}.{each.place}"
            for each in calls
            if each.state.is_waiting_for_person
        }
        assert waiting == due
        is_between = job.tool_phase is not None
        assert is_between == (b"calling" in record)
        if not is_between:
            return
        assert (job.state, job.step, job.lease_owner) == (JobState.IN_PROGRESS, "tools", "")
        self._check_open(job, record, queued, await self.rig.now_ms())

    def _check_open(
        self, job: Job, record: dict[bytes, bytes], queued: set[str], now_ms: int
    ) -> None:
        calling = orjson.loads(record[b"calling"])
        calls = job.turns[-1].calls
        assert [each.state for each in calls] == calling["states"]
        runs = (CallState.SENT, CallState.ACCEPTED)
        pending = [each for each in calls if each.state is CallState.PENDING]
        held = [each for each in pending if f"held:{each.turn}.{each.place}".encode() in record]
        running = len([each for each in calls if each.state in runs]) + len(pending) - len(held)
        assert not held or running >= calling["parallel"], "a call is held, and none runs"
        for each in calls:
            of = idempotency_key(job_id(), each.turn, each.place, job.epoch)
            if each.state in runs or (each in pending and each not in held):
                is_leased = each.lease_until_ms > now_ms
                assert of in queued or is_leased, f"nothing brings {of} on: {each.state}"

    async def _drive_to_its_end(self) -> None:
        """No job sticks: whatever its state, its loop can be brought to an end."""
        for _ in range(60):
            job = await self.rig.job()
            if job.state.is_terminal:
                break
            await self.rig.pass_time(31_000)
            while self.in_hand:
                await self._finish(0, CallState.RETURNED)
            while await self._deliver():
                pass
            for waiting in (await self.rig.tools.approvals("acme")).calls:
                await self._decide(waiting.call, CallState.DENIED)
            await self._predict(1)
            job = await self.rig.job()
            if job.candidate is not None and job.tool_phase is None and job.step == "tools":
                await self.rig.tools.advance(await self.rig.run(), ACCEPT)
            await self._queue_again()
        assert (await self.rig.job()).state.is_terminal, "the job sticks"
        await self._check()


@pytest.mark.timeout(900)
def test_calls_keep_their_rules_in_any_history(redis_url: str) -> None:
    OneJob.redis_url = redis_url

    run_state_machine_as_test(
        OneJob,
        settings=settings(
            max_examples=int(os.environ.get("TORPOR_TEST_EXAMPLES", "25")),
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
