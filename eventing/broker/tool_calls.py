"""Stores turns and what becomes of tool calls, together with the events that follow: those of calls, and the
predictor's for the next turn.

Called by the steps process, by the api with a person's decision and late results, and by sweeps. Must not know HTTP.
"""

from collections.abc import Mapping
from dataclasses import replace

from eventing.broker.intake import Route
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import request_event
from eventing.cloudevent.tool_event import called_event
from eventing.job.job import Job
from eventing.job.step import AdvanceStatus, StepRun
from eventing.job.store import Publication
from eventing.job.tools.call import CallState, ToolCall, Turn
from eventing.job.tools.store import CallEnd, Decision, ReturnStatus, ToolStore


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
        following = next_turn_event(job)
        status = await self.store.commit_turn(run, turn, sent, self._route.publication(following))
        if status is AdvanceStatus.OK:
            self._recorded(job, [following] if turn.is_done else list(events.values()))
        return status

    async def queue(self, job: Job, run: StepRun) -> AdvanceStatus:
        """Put the calls of the newest turn that are not final, and wait for no person, into their queues again."""
        events = pending_events(job, job.turns[-1])
        sent = {place: self._route.publication(event) for place, event in events.items()}
        following = self._route.publication(next_turn_event(job))
        status = await self.store.queue_calls(run, sent, following)
        if status is AdvanceStatus.OK:
            self._recorded(job, list(events.values()))
        return status

    async def returned(self, job: Job, call: ToolCall, send: int, end: CallEnd) -> ReturnStatus:
        """Store how a send ended; the last of a turn queues the next one."""
        following = next_turn_event(job)
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
        following = next_turn_event(job)
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

    def publication(self, job: Job, call: ToolCall) -> Publication:
        """How the event of a call gets to its queue."""
        return self._route.publication(called_event(job, epoch_of(job, call), call))

    def _recorded(self, job: Job, events: list[Event]) -> None:
        for event in events:
            self._route.recorded(job.id, event)


def pending_events(job: Job, turn: Turn) -> Mapping[int, Event]:
    """The event of each call of a turn that is to run, or may run, by its place."""
    return {
        call.place: called_event(job, turn.epoch, call)
        for call in turn.calls
        if not call.state.is_final and not call.state.is_waiting_for_person
    }


def epoch_of(job: Job, call: ToolCall) -> int:
    """The epoch of the call's turn."""
    return next((turn.epoch for turn in job.turns if turn.number == call.turn), 0)


def next_turn_event(job: Job) -> Event:
    """The event that brings the job to its predictor for its next turn."""
    return request_event(replace(job, step=""))
