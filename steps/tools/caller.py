"""Runs tool calls: one delivery of `tool.called` is one send of one call.

The store marks the call as sent and gives its lease before anything is dialled, and compares the end with the send, so
a process may die anywhere in here: the broker delivers the event again, and the mark says what may have happened. Every
call has a deadline of its own.
"""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import orjson
import structlog

from eventing.broker.tool_calls import ToolCalls, epoch_of
from eventing.clock import Clock
from eventing.cloudevent.event import Event
from eventing.cloudevent.tool_event import PLACE, called_event, place_of
from eventing.errors import BadRequest, TorporError, Unavailable
from eventing.job.job import Job, JobId
from eventing.job.tools.call import CallState, ToolCall, token_hash
from eventing.job.tools.server import URLS, ServerKind, ToolServer
from eventing.job.tools.store import CallEnd, ProgressStatus, ReturnStatus, SendStatus, Sent
from eventing.job.tools.tool_list import pinned_servers
from eventing.telemetry import trace
from eventing.telemetry.metric.series import labelled
from steps.handler import NotInstalled
from steps.tools import metrics
from steps.tools.client.answer import (
    Answer,
    Asks,
    InDoubt,
    Later,
    NotSent,
    Outgoing,
    Refused,
    Result,
    Target,
)
from steps.tools.client.clients import Clients
from steps.tools.outgoing import asked_again_ms, asked_of_user, function_event, outgoing_call
from steps.tools.progress import Note, noted_progress, said_text
from steps.tools.results import ToolResults
from steps.tools.targets import Targets

_log = structlog.get_logger()
TASK: Final = "task:"
LATER: Final = "later:"
"""How handles begin: of a task that is polled, and of a result that comes by itself."""
_POLLS_S: Final = 10.0
"""How long one delivery polls a task; then the call waits without a process until a sweep queues it again."""
_LONGEST_WAIT_MS: Final = 24 * 3600 * 1000
"""How long a result that was promised for later is waited for."""
_STORE_S: Final = 10.0
_PAUSE_S: Final = 0.2


class ComeBack(TorporError):
    """The call is not to be run here now; the broker delivers it again."""

    status = 429
    code = "come_back"
    is_retryable = True

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.headers = {"retry-after": str(max(1, round(after_s)))}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerDeps:
    """The dependencies of a caller."""

    calls: ToolCalls
    targets: Targets
    clients: Clients
    results: ToolResults
    clock: Clock
    lease_ms: int
    is_beside_tool: bool = False  #: in the tool's own pod, which ends no sooner than its calls


class Caller:
    """Runs calls, any number concurrently."""

    def __init__(self, deps: CallerDeps) -> None:
        self._deps = deps
        self._store = deps.calls.store
        self._owner = f"steps-{secrets.token_hex(4)}"
        self._running: dict[asyncio.Task[None], bool] = {}
        self._is_closed = False
        metrics.IN_FLIGHT.set_function(lambda: len(self._running))

    async def __call__(self, event: Event) -> None:
        """One delivery. Raises `Unavailable` and `ComeBack` for a call that is to be delivered again."""
        job_id, turn, place = _where(event)
        if self._is_closed:
            raise Unavailable("this process shuts down")
        await self._deps.clients.ready()
        label = event.extensions.get("toolserver", "")
        task = asyncio.ensure_future(self._run(event.id, label, job_id, turn, place))
        self._running[task] = True
        task.add_done_callback(lambda done: self._running.pop(done, None))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `drain`, before the call was ours
                raise Unavailable("this process shuts down") from None
            raise

    async def drain(self, grace_s: float) -> None:
        """Begin nothing more. Calls that may be sent again are given up at once, the others within the grace; beside
        their tool all of them may take the grace, since the tool ends with this process.
        """
        self._is_closed = True
        for task, may_be_given_up in list(self._running.items()):
            if may_be_given_up:
                task.cancel()
        if self._running:
            await asyncio.wait(list(self._running), timeout=grace_s)
        left = list(self._running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _run(self, key: str, label: str, job_id: JobId, turn: int, place: int) -> None:
        if asleep := self._deps.targets.sleeper(label):
            await self._deps.clients.wake(*asleep)  # before the mark: nothing is in doubt yet
        token, loop = secrets.token_hex(16), asyncio.get_running_loop()
        over_s = loop.time() + self._deps.lease_ms / 1000
        sent = await self._store.send_call(
            job_id,
            turn,
            place,
            owner=self._owner,
            lease_ms=self._deps.lease_ms,
            token_hash=token_hash(token),
            key=key,
        )
        job, call = sent.job, sent.call
        match sent.status:
            case SendStatus.HELD:
                raise ComeBack("another process runs the call", sent.lease_left_ms / 1000)
            case SendStatus.IN_DOUBT if call is not None and call.state is CallState.SENT and job:
                await self._end(job, call, sent.send, CallEnd(state=CallState.UNKNOWN))
            case SendStatus.SENT if job and call and loop.time() >= over_s:
                late = CallEnd(state=CallState.PENDING, reason="the lease was over before the call")
                await self._end(job, call, sent.send, late)
                raise Unavailable(late.reason, _PAUSE_S)
            case SendStatus.SENT | SendStatus.POLL if job is not None and call is not None:
                may_be_given_up = call.effect.may_be_sent_again and not self._deps.is_beside_tool
                self._running[_current()] = may_be_given_up
                await self._leased(job, call, sent, token)
            case SendStatus.TERMINAL if job and call and call.state is CallState.ACCEPTED:
                await self._called_off(job, call)
            case _:
                _log.info("nothing to run", action="call", job_id=job_id, reason=sent.status)

    async def _leased(self, job: Job, call: ToolCall, sent: Sent, token: str) -> None:
        """Run the call while its lease is ours; a lease that is lost stops it."""
        work = asyncio.ensure_future(self._attempt(job, call, sent, token))
        renewing = asyncio.ensure_future(self._renew(job, call, sent.send))
        try:
            await asyncio.wait({work, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                _log.info("call is not ours any more", action="call", job_id=job.id)
                await self._called_off(job, call)
                return
            await work
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            given_up = CallEnd(state=CallState.IN_DOUBT, reason="the caller shut down")
            await self._end(job, call, sent.send, given_up)
            raise Unavailable("this process shuts down") from None
        finally:
            for task in (work, renewing):
                task.cancel()
            await asyncio.gather(work, renewing, return_exceptions=True)

    async def _renew(self, job: Job, call: ToolCall, send: int) -> None:
        """Renew the lease until it is not ours any more."""
        every_s = self._deps.lease_ms / 3000
        while True:
            await asyncio.sleep(every_s)
            with suppress(Unavailable):
                if not await self._store.renew_call(
                    job.id, call.turn, call.place, send, lease_ms=self._deps.lease_ms
                ):
                    return

    async def _attempt(self, job: Job, call: ToolCall, sent: Sent, token: str) -> None:
        """One send of a call, or one poll of a call that was accepted, with its outcome stored."""
        loop = asyncio.get_running_loop()
        server, began_s = self._deps.targets.configured(job, call.server), loop.time()
        word, reason = "error", ""
        with trace.span("call", tool=_label(server), job_id=job.id, number=call.sends) as span:
            try:
                if sent.status is SendStatus.POLL:
                    end = await self._later(job, call, sent.send, call.handle, 0)
                else:
                    end = await self._dial(job, call, server, sent.send, token)
                word = str(end.state) if not end.is_error else "tool_error"
                reason = end.reason
                status = await self._end(job, call, sent.send, end)
                if status is ReturnStatus.AGAIN:
                    raise Unavailable(end.reason or "the call is sent again", _PAUSE_S)
            finally:
                took_s = loop.time() - began_s
                span.set(outcome=word)
                labelled(metrics.CALLS, _label(server), call.effect, word).inc()
                labelled(metrics.CALL_SECONDS, _label(server)).observe(took_s)
                _log.info(
                    "call ended",
                    action="call",
                    job_id=job.id,
                    turn=call.turn,
                    place=call.place,
                    send=call.sends,
                    outcome=word,
                    **({"reason": reason} if reason else {}),
                    duration_ms=int(took_s * 1000),
                )

    async def _dial(
        self, job: Job, call: ToolCall, server: ToolServer | None, send: int, token: str
    ) -> CallEnd:
        """How sending the call ended."""
        try:
            pinned = {each.server_label: each for each in pinned_servers(job.tool_list)}
            origin = pinned[call.server].origin if call.server in pinned else ""
            if not origin:
                raise Refused("not_listed", "the tool server is not in the job's pinned list")
            target = self._deps.targets.target(job, call.server, origin)
            outgoing = outgoing_call(job, call, server, pinned[call.server].digest)
            if server is not None and server.kind is ServerKind.FUNCTION:
                answer = await self._call_function(job, call, target, outgoing, token)
            else:
                answer = await self._call_mcp(job, call, target, outgoing, send)
        except NotSent as error:
            return self._not_sent(call, str(error))
        except Refused as error:
            metrics.count_change(error.reason, _label(server), metrics.AT_CALL)
            text = f"The call was not run: {error}."
            return CallEnd(state=CallState.NOT_RUN, output=text, is_error=True, reason=error.reason)
        except InDoubt as error:
            return CallEnd(state=CallState.IN_DOUBT, reason=str(error))
        except (NotInstalled, Unavailable) as error:
            return CallEnd(state=CallState.PENDING, reason=error.message)
        return await self._ended(job, call, target, send, answer)

    async def _call_mcp(
        self, job: Job, call: ToolCall, target: Target, outgoing: Outgoing, send: int
    ) -> Answer:
        client = self._deps.clients.mcp()
        question = orjson.loads(call.question or "{}")
        if handle := question.get("task"):
            await client.update(target, handle, outgoing.answers or {})
            return Later(handle=TASK + handle, poll_ms=1)
        limit_bytes = self._deps.targets.limits(job).result_bytes
        async with noted_progress(self._note(job, call, send), target.secrets) as say:
            answer = await client.call(target, outgoing, limit_bytes, say)
        return replace(answer, handle=TASK + answer.handle) if isinstance(answer, Later) else answer

    def _note(self, job: Job, call: ToolCall, send: int) -> Note:
        """Stores what the call says of how far it is."""

        async def note(text: str) -> ProgressStatus:
            return await self._store.progress_call(job.id, call.turn, call.place, send, text)

        return note

    async def _call_function(
        self, job: Job, call: ToolCall, target: Target, outgoing: Outgoing, token: str
    ) -> Answer:
        event = function_event(job, call, token)
        client = self._deps.clients.function()
        answer = await client.call(
            target, event, outgoing, self._deps.targets.limits(job).result_bytes
        )
        return (
            replace(answer, handle=LATER + answer.handle) if isinstance(answer, Later) else answer
        )

    def _not_sent(self, call: ToolCall, reason: str) -> CallEnd:
        """A call that can not be sent is tried again for as long as its sends may take, from the first time on: before
        that it may have waited for hours in the queue of a tool at zero. Then the model is told.
        """
        patience_ms = call.timeout_ms * max(1, call.max_attempts)
        if not call.refused_ms or self._deps.clock.wall_ms() - call.refused_ms < patience_ms:
            return CallEnd(state=CallState.PENDING, reason=reason)
        text = f"The tool could not be reached: {reason}."
        return CallEnd(state=CallState.RETURNED, output=text, is_error=True, reason="unreachable")

    async def _ended(
        self, job: Job, call: ToolCall, target: Target, send: int, answer: Answer
    ) -> CallEnd:
        """How the send ended, by the tool's answer."""
        match answer:
            case Result():
                return await self._returned(job, call, target, answer)
            case Later(handle=handle, poll_ms=poll_ms):
                handle = target.masked(handle)
                await self._end(job, call, send, CallEnd(state=CallState.ACCEPTED, handle=handle))
                return await self._later(job, call, send, handle, poll_ms)
            case Asks(requests=requests, state=state):
                return asked_of_user(call, target.masked(requests), target.masked(state), task="")

    async def _returned(self, job: Job, call: ToolCall, target: Target, result: Result) -> CallEnd:
        """The result as it is stored."""
        limits = self._deps.targets.limits(job)
        shown = await self._deps.results.shown(job, call, result, limits, target)
        return CallEnd(
            state=CallState.RETURNED,
            output=shown.output,
            is_error=shown.is_error,
            object_ref=shown.object_ref,
            output_bytes=shown.output_bytes,
        )

    async def _later(
        self, job: Job, call: ToolCall, send: int, handle: str, poll_ms: int
    ) -> CallEnd:
        """Look at a call that answers later, for some seconds; what is not there by then is left for a sweep."""
        waited_ms = max(0, self._deps.clock.wall_ms() - call.sent_ms)
        again_ms = asked_again_ms(waited_ms) if handle.startswith(TASK) else 0
        accepted = CallEnd(state=CallState.ACCEPTED, handle=handle, again_ms=again_ms)
        if call.sent_ms and waited_ms > _LONGEST_WAIT_MS:
            return CallEnd(state=CallState.IN_DOUBT, reason="no result came in a day")
        if not handle.startswith(TASK):
            return accepted
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _POLLS_S
        client, name = self._deps.clients.mcp(), handle.removeprefix(TASK)
        noted = call.progress
        while loop.time() + poll_ms / 1000 <= until_s:
            await asyncio.sleep(poll_ms / 1000)
            try:
                target = self._deps.targets.target(job, call.server)
                limit_bytes = self._deps.targets.limits(job).result_bytes
                answer = await client.poll(target, name, limit_bytes, call.timeout_ms / 1000)
            except (NotSent, Refused):
                return accepted
            match answer:
                case Result():
                    return await self._returned(job, call, target, answer)
                case Asks(requests=requests, state=state):
                    requests, state = target.masked(requests), target.masked(state)
                    return asked_of_user(call, requests, state, task=name)
                case Later(poll_ms=asked_ms, said=said):
                    poll_ms = max(asked_ms, int(_PAUSE_S * 1000))
                    text = said_text(None, None, said, target.secrets)
                    if text not in ("", noted):
                        with suppress(Unavailable):
                            await self._note(job, call, send)(noted := text)
        return accepted

    async def _end(self, job: Job, call: ToolCall, send: int, end: CallEnd) -> ReturnStatus:
        """Store how the send ended, again while the store is away: the call has been carried out."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + _STORE_S
        while True:
            try:
                return await self._deps.calls.returned(job, call, send, end)
            except Unavailable:
                if loop.time() >= give_up_s:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _called_off(self, job: Job, call: ToolCall) -> None:
        """Tell the tool that the call is not wanted any more, where its protocol has a way to say so."""
        server = self._deps.targets.configured(job, call.server)
        with suppress(Refused, NotSent, BadRequest):
            target = self._deps.targets.target(job, call.server)
            if server is not None and server.kind is ServerKind.FUNCTION:
                event = called_event(job, epoch_of(job, call), call)
                await self._deps.clients.function().cancel(target, event)
            elif call.handle.startswith(TASK):
                await self._deps.clients.mcp().cancel(target, call.handle.removeprefix(TASK))


def _where(event: Event) -> tuple[JobId, int, int]:
    """Job, turn and place of the call that an event is of. Raises `BadRequest`."""
    if (found := place_of(event)) is None:
        raise BadRequest(f"{PLACE} names no call", PLACE)
    return JobId(event.subject), *found


def _label(server: ToolServer | None) -> str:
    """The server in metrics: those that requests name are one."""
    return server.label if server else URLS


def _current() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101
    return task
