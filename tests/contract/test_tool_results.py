"""Results of tool calls that come late or twice, and what people decide about calls."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from api.view.items.turns import unused_result_views
from eventing.errors import BadRequest
from eventing.job.job import JobState
from eventing.job.tools.call import CallState, EffectClass, ToolPhase, approval_item_id
from eventing.job.tools.question import QuestionKind, kind_of
from eventing.job.tools.store import CallEnd, ReturnStatus, SendStatus
from eventing.redis import keys
from tests.contract.rig import job_id
from tests.contract.tool_rig import (
    ASK_MS,
    DONE,
    LEASE_MS,
    ToolRig,
    call,
    key,
)

WAITS = call(0, CallState.AWAITING_APPROVAL)
IN_DOUBT = CallEnd(state=CallState.IN_DOUBT, reason="no answer")


@pytest.fixture
def rig(redis: Redis) -> ToolRig:
    return ToolRig(redis)


class TestLate:
    async def test_the_same_result_twice_changes_nothing(self, rig: ToolRig) -> None:
        await rig.turn(call(0), call(1))
        sent = await rig.send()
        assert await rig.give(sent) is ReturnStatus.OK
        before = await rig.everything()

        assert await rig.give(sent) is ReturnStatus.DONE

        assert await rig.everything() == before

    async def test_another_result_of_the_same_send_is_noted_once_and_not_used(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        sent = await rig.send()
        assert await rig.give(sent) is ReturnStatus.NEXT
        other = CallEnd(state=CallState.RETURNED, output="43")

        assert await rig.give(sent, end=other) is ReturnStatus.LATE
        assert await rig.give(sent, end=other) is ReturnStatus.LATE

        job = await rig.job()
        assert job.turns[0].calls[0].output == "42"
        assert [(each["output"], each["send"]) for each in job.late_results] == [("43", 1)]

    async def test_notes_of_late_results_are_bounded(self, rig: ToolRig) -> None:
        await rig.turn(call())
        await rig.give(await rig.send())

        for n in range(20):
            late = CallEnd(state=CallState.RETURNED, output=f"{n}" + "é" * 2000)
            await rig.give(7, end=late)

        noted = (await rig.job()).late_results
        assert (len(noted), max(len(each["output"].encode()) for each in noted)) == (16, 1024)

    async def test_a_result_after_the_end_is_noted_and_not_used(self, rig: ToolRig) -> None:
        await rig.turn(call())
        sent = await rig.send()
        await rig.tools.cancel(job_id())
        entries = len(await rig.tools.read_stream(job_id()))

        assert await rig.give(sent) is ReturnStatus.TERMINAL

        job = await rig.job()
        assert (job.state, job.turns[0].calls[0].state) == (JobState.CANCELLED, CallState.SENT)
        assert [each["output"] for each in unused_result_views(job)] == ["42"]
        assert len(await rig.tools.read_stream(job_id())) == entries
        assert await rig.redis.ttl(keys.job(job_id())) > 0

    async def test_a_result_of_no_job_is_of_no_call(self, rig: ToolRig) -> None:
        assert await rig.give(1) is ReturnStatus.MISSING
        await rig.turn(call())
        assert await rig.give(1, place=5) is ReturnStatus.MISSING
        await rig.tools.cancel(job_id())
        await rig.tools.delete(job_id())
        assert await rig.give(1) is ReturnStatus.MISSING
        assert await rig.redis.hkeys(keys.job(job_id())) == [b"deleted"]

    async def test_the_first_result_with_the_token_is_used_whoever_polls(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        sent = await rig.tools.send_call(
            job_id(), 1, 0, owner="c", lease_ms=LEASE_MS, token_hash="h1"
        )
        await rig.give(sent, end=CallEnd(state=CallState.ACCEPTED, handle="t"))
        await rig.send(owner="poller")
        forged = replace(DONE, output="forged", token_hash="h2")
        real = replace(DONE, output="real", token_hash="h1")

        assert await rig.give(0, end=forged) is ReturnStatus.LATE
        assert await rig.give(0, end=real) is ReturnStatus.NEXT
        assert await rig.give(0, end=real) is ReturnStatus.DONE
        assert await rig.give(0, end=replace(real, output="again")) is ReturnStatus.LATE

        assert (await rig.job()).turns[0].calls[0].output == "real"

    async def test_a_token_of_an_earlier_send_is_worth_nothing(self, rig: ToolRig) -> None:
        await rig.turn(call(effect=EffectClass.READ))
        for token in ("h1", "h2"):
            await rig.tools.send_call(
                job_id(), 1, 0, owner="c", lease_ms=LEASE_MS, token_hash=token
            )
            await rig.pass_time(LEASE_MS + 1)

        assert await rig.give(0, end=replace(DONE, token_hash="h1")) is ReturnStatus.LATE
        assert await rig.give(0, end=replace(DONE, token_hash="h2")) is ReturnStatus.NEXT


class TestApproval:
    async def test_an_approved_call_is_queued(self, rig: ToolRig) -> None:
        await rig.turn(WAITS)
        (waiting,) = (await rig.tools.approvals("acme")).calls
        assert (waiting.job_id, waiting.tenant) == (job_id(), "acme")
        assert (await rig.tools.approvals("other")).calls == []
        assert (await rig.job()).tool_phase is ToolPhase.APPROVAL

        status, decided = await rig.decide(CallState.PENDING)

        assert status is ReturnStatus.OK
        assert decided is not None
        assert (decided.state, decided.approver) == (CallState.PENDING, "ann")
        assert await rig.queued() == [key(0)]
        assert (await rig.tools.approvals("acme")).calls == []
        assert await rig.give(await rig.send()) is ReturnStatus.NEXT

    async def test_pages_of_what_waits_have_each_call_once(self, rig: ToolRig) -> None:
        waits = [call(place, CallState.AWAITING_APPROVAL) for place in range(7)]
        await rig.turn(*waits)

        places, cursor = [], ""
        while True:
            page = await rig.tools.approvals("acme", 3, cursor)
            places += [each.call.place for each in page.calls]
            if not (cursor := page.next_cursor):
                break

        assert sorted(places) == list(range(7))
        with pytest.raises(BadRequest) as raised:
            await rig.tools.approvals("acme", 3, "1.nonsense")
        assert raised.value.field == "cursor"

    async def test_a_denied_call_tells_the_model_why(self, rig: ToolRig) -> None:
        await rig.turn(WAITS)

        status, _ = await rig.decide(CallState.DENIED, "too dear")

        assert status is ReturnStatus.NEXT
        job = await rig.job()
        assert job.to_run.body["messages"][-1]["content"] == "too dear"
        assert job.turns[0].calls[0].is_error == 1

    async def test_a_second_decision_gets_the_first(self, rig: ToolRig) -> None:
        await rig.turn(WAITS, call(1))
        await rig.decide(CallState.DENIED, "no")
        before = await rig.everything()

        status, decided = await rig.decide(CallState.PENDING)

        assert status is ReturnStatus.DONE
        assert decided is not None
        assert (decided.state, decided.output) == (CallState.DENIED, "no")
        assert await rig.everything() == before

    async def test_a_decision_given_twice_does_not_answer_the_doubt_that_came_after(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(WAITS)
        await rig.decide(CallState.PENDING)
        await rig.send()
        await rig.pass_time(LEASE_MS + 1)
        await rig.send()

        status, decided = await rig.decide(CallState.PENDING)

        assert status is ReturnStatus.DONE
        assert decided is not None
        assert (decided.state, decided.sends) == (CallState.IN_DOUBT, 1)
        status, _ = await rig.decide(CallState.PENDING, asked=2)
        assert status is ReturnStatus.OK
        assert (await rig.send()).status is SendStatus.SENT

    @pytest.mark.parametrize(
        ("state", "text"), [(CallState.RETURNED, "booked"), (CallState.UNKNOWN, "")]
    )
    async def test_a_doubt_is_ended_by_what_a_person_says(
        self, rig: ToolRig, state: CallState, text: str
    ) -> None:
        await rig.turn(call())
        await rig.give(await rig.send(), end=IN_DOUBT)

        status, decided = await rig.decide(state, text)

        assert status is ReturnStatus.NEXT
        assert decided is not None
        assert (decided.state, decided.sends) == (state, 1)
        assert decided.output == text or "may have happened" in decided.output

    async def test_a_tool_that_asks_is_sent_again_with_the_answer(self, rig: ToolRig) -> None:
        await rig.turn(call())
        asks = CallEnd(state=CallState.AWAITING_INPUT, question='{"schema":{},"state":"s"}')
        assert await rig.give(await rig.send(), end=asks) is ReturnStatus.OK
        assert (await rig.job()).tool_phase is ToolPhase.INPUT

        status, _ = await rig.decide(CallState.PENDING, '{"size":"xl"}')
        assert status is ReturnStatus.OK
        sent = await rig.send()

        assert sent.call is not None
        assert (sent.call.question, sent.call.answer) == (asks.question, '{"size":"xl"}')
        assert (sent.call.sends, sent.send) == (1, 2)

    @pytest.mark.parametrize(
        ("end", "kind"),
        [
            (None, QuestionKind.APPROVAL),
            (IN_DOUBT, QuestionKind.DOUBT),
            (CallEnd(state=CallState.AWAITING_INPUT, question="{}"), QuestionKind.INPUT),
        ],
    )
    async def test_what_was_asked_is_known_after_the_answer(
        self, rig: ToolRig, end: CallEnd | None, kind: QuestionKind
    ) -> None:
        await rig.turn(call() if end else WAITS)
        if end is not None:
            await rig.give(await rig.send(), end=end)
        (asked,) = await rig.calls()
        _, decided = await rig.decide(CallState.PENDING)
        assert decided is not None
        assert [kind_of(each) for each in (asked, decided)] == [kind, kind]
        (kept,) = await rig.calls()
        assert kind_of(kept) is kind
        assert kind_of(replace(kept, question_of="of_a_newer_version")) is QuestionKind.APPROVAL
        assert kind_of(replace(kept, approval_id="")) is None

    async def test_no_answer_in_time_is_a_no(self, rig: ToolRig) -> None:
        await rig.turn(WAITS)
        assert await rig.tools.overdue_approvals() == []
        await rig.pass_time(ASK_MS + 1)

        (late,) = await rig.tools.overdue_approvals()
        assert late.call.approval_id == approval_item_id(job_id(), 1, 0)
        status, decided = await rig.decide(CallState.PENDING)

        assert status is ReturnStatus.NEXT
        assert decided is not None
        assert (decided.state, decided.reason) == (CallState.DENIED, "no answer")
        assert decided.approver == ""
        assert await rig.redis.zcard(keys.APPROVALS_DUE) == 0

    async def test_a_decision_about_nothing_is_refused(self, rig: ToolRig) -> None:
        await rig.turn(call(0))

        assert (await rig.decide(CallState.PENDING))[0] is ReturnStatus.MISSING
        assert (await rig.decide(CallState.PENDING, place=7))[0] is ReturnStatus.MISSING

    async def test_a_decision_after_the_end_is_refused(self, rig: ToolRig) -> None:
        await rig.turn(WAITS)
        await rig.tools.cancel(job_id())

        assert (await rig.decide(CallState.PENDING))[0] is ReturnStatus.TERMINAL
        assert (await rig.tools.approvals("acme")).calls == []
        assert await rig.queued() == []

    async def test_free_siblings_run_while_a_person_is_waited_for(self, rig: ToolRig) -> None:
        await rig.turn(WAITS, call(1))
        assert (await rig.job()).tool_phase is ToolPhase.TOOL
        assert await rig.give(await rig.send(1), 1) is ReturnStatus.OK
        assert (await rig.job()).tool_phase is ToolPhase.APPROVAL

        await rig.decide(CallState.PENDING)
        assert await rig.give(await rig.send(0), 0) is ReturnStatus.NEXT

        assert [each.output for each in (await rig.job()).turns[0].calls] == ["42", "42"]
