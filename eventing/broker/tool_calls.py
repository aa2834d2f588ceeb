"""Stores turns and what becomes of tool calls, together with the events that follow: those of calls, and the
predictor's for the next turn.

Called by the steps process, by the api with a person's decision and late results, and by sweeps. Must not know HTTP.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import structlog

from eventing.broker.intake import Route
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import TURN, request_event
from eventing.cloudevent.publisher import Publisher
from eventing.cloudevent.tool_event import called_event
from eventing.errors import BadRequest, EventRefused, Unavailable
from eventing.job.job import Job
from eventing.job.step import AdvanceStatus, StepRun
from eventing.job.store import Publication
from eventing.job.tools.call import CallState, ToolCall, Turn
from eventing.job.tools.store import CallEnd, Decision, PendingApproval, ReturnStatus, ToolStore

_SWEEP_EVERY_S: Final = 5.0
_BATCH: Final = 100
_NO_ANSWER: Final = Decision(state=CallState.DENIED)
_log = structlog.get_logger()


class ToolCalls:
    """Moves turns and calls on. Store and route belong to the caller."""

    def __init__(self, store: ToolStore, route: Route) -> None:
        self.store = store
        self._route = route

    async def commit(self, job: Job, run: StepRun, turn: Turn) -> AdvanceStatus:
        """Store the turn that the job's candidate is; its pending calls are queued in the same script. Raises
        `BadRequest` when no trigger takes one of them.
        """
        events = pending_events(job, turn)
        sent = {place: self._route.publication(event) for place, event in events.items()}
        following = next_turn_event(job, turn.number)
        status = await self.store.commit_turn(run, turn, sent, self._route.publication(following))
        if status is AdvanceStatus.OK:
            self._recorded(job, [following] if turn.is_done else list(events.values()))
        return status

    async def queue(self, job: Job, run: StepRun) -> AdvanceStatus:
        """Put the calls of the newest turn that wait for no person into their queues again."""
        turn = job.turns[-1]
        events = {
            call.place: called_event(job, turn.epoch, call)
            for call in turn.calls
            if not (call.state.is_final or call.state.is_waiting_for_person)
        }
        sent = {place: self._route.publication(event) for place, event in events.items()}
        following = next_turn_event(job, turn.number)
        status = await self.store.queue_calls(run, sent, self._route.publication(following))
        if status is AdvanceStatus.OK:
            self._recorded(job, [following] if turn.is_done else list(events.values()))
        return status

    async def given_up(
        self, job: Job, turn: int, place: int, key: str, reason: str
    ) -> ReturnStatus:
        """The delivery of a call was given up by its broker."""
        following = next_turn_event(job, turn)
        status = await self.store.give_up_call(
            job.id, turn, place, key, reason, self._route.publication(following)
        )
        if status is ReturnStatus.NEXT:
            self._recorded(job, [following])
        return status

    async def returned(self, job: Job, call: ToolCall, send: int, end: CallEnd) -> ReturnStatus:
        """Store how a send ended; the last of a turn queues the next one."""
        following = next_turn_event(job, call.turn)
        status = await self.store.return_call(
            job.id, call.turn, call.place, send, end, self._route.publication(following)
        )
        if status is ReturnStatus.NEXT:
            self._recorded(job, [following])
        return status

    async def decide(
        self, job: Job, call: ToolCall, decision: Decision
    ) -> tuple[ReturnStatus, ToolCall | None]:
        """Take a person's decision once; the call is queued, or the next turn, in the same script."""
        asked = called_event(job, epoch_of(job, call), replace(call, state=CallState.PENDING))
        following = next_turn_event(job, call.turn)
        status, decided = await self.store.decide(
            job.id,
            call.approval_id,
            decision,
            call=self._route.publication(asked),
            turn=self._route.publication(following),
        )
        if status is ReturnStatus.NEXT:
            self._recorded(job, [following])
        elif status is ReturnStatus.OK and decision.state is CallState.PENDING:
            self._recorded(job, [asked])
        return status, decided

    async def expire(self, late: PendingApproval) -> bool:
        """No one decided in time: the model is told so. False when someone has, or the job has ended."""
        job = await self.store.get(late.job_id, with_result=False)
        if job is None:
            return False
        following = next_turn_event(job, late.call.turn)
        publication = self._route.publication(following)
        status, _ = await self.store.decide(
            job.id, late.call.approval_id, _NO_ANSWER, turn=publication
        )
        if status is ReturnStatus.NEXT:
            self._recorded(job, [following])
        return status in (ReturnStatus.OK, ReturnStatus.NEXT, ReturnStatus.ENDED)

    def publication(self, job: Job, call: ToolCall) -> Publication:
        """How the event of a call gets to its queue."""
        return self._route.publication(called_event(job, epoch_of(job, call), call))

    def _recorded(self, job: Job, events: list[Event]) -> None:
        for event in events:
            self._route.recorded(job.id, event)


class CallsLeft:
    """An `EndListener`: calls that an ended job left with tools which answer later, and which no process holds. Their
    event is queued once more, and the process that takes it tells the tool that the call is not wanted any more.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def ended(self, job: Job) -> None:
        """Raises `Unavailable` to be called again."""
        for call in job.turns[-1].calls if job.turns else ():
            if call.state is CallState.ACCEPTED:
                try:
                    await self._publisher.publish(called_event(job, epoch_of(job, call), call))
                except EventRefused as error:
                    _log.info("not told", action="call", job_id=job.id, reason=error.code)


async def run_approvals(calls: ToolCalls) -> None:
    """Decide for those who did not, until cancelled; any number of sweepers share the work."""
    while True:
        try:
            while late := await sweep_approvals(calls):
                _log.info("no answer", action="approval", calls=late)
        except Unavailable as error:
            _log.debug("will look again", action="approval", reason=error.code)
        await asyncio.sleep(_SWEEP_EVERY_S)


async def sweep_approvals(calls: ToolCalls) -> int:
    """Decide what is overdue; how many decisions that were. One that a crash cuts off is due again in 15 s."""
    decided = 0
    for late in await calls.store.overdue_approvals(_BATCH):
        try:
            decided += await calls.expire(late)
        except BadRequest as error:  # no trigger takes the job's model any more: the others go on
            _log.error("not decided", action="approval", job_id=late.job_id, reason=error.message)
    return decided


def pending_events(job: Job, turn: Turn) -> Mapping[int, Event]:
    """The event of each call of a turn that is to run, by its place."""
    return {
        call.place: called_event(job, turn.epoch, call)
        for call in turn.calls
        if call.state is CallState.PENDING
    }


def epoch_of(job: Job, call: ToolCall) -> int:
    """The epoch of the call's turn."""
    return next((turn.epoch for turn in job.turns if turn.number == call.turn), 0)


def next_turn_event(job: Job, turn: int) -> Event:
    """The event that brings the job to its predictor for the turn after `turn`. The turns themselves are in the record,
    which the predictor reads.
    """
    event = request_event(replace(job, step="", turns=()))
    return replace(event, extensions={**event.extensions, TURN: str(turn + 1)})
