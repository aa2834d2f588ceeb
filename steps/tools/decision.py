"""The decision about an answer: go on with it, or commit it as a turn, with a state for each of its calls. Pure.

Called by the step `tools`, which may run again: the same record gives the same turn. Nothing here is dialled. A call
that may not run is told to the model in words, so that the loop ends with an answer or a named reason.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from eventing.job.call.usage import times_of
from eventing.job.job import Job
from eventing.job.tools.call import (
    CallState,
    ToolCall,
    Turn,
    approval_item_id,
    arguments_digest,
)
from eventing.job.tools.limits import (
    StoppedBy,
    answer_tokens,
    calls_so_far,
    output_tokens,
    tool_time_ms,
)
from eventing.job.tools.prompt import OUTPUT_BUDGETS
from eventing.job.tools.request import OnApproval
from eventing.job.tools.server import BUILT_IN, ToolServer
from eventing.job.tools.taint import own_functions, read_before
from eventing.job.tools.tool_list import PinnedServer, PinnedTool, pinned_servers
from steps.tools.approval import reason_to_ask, tainting_origins
from steps.tools.built_in import BUILT_IN_SERVER
from steps.tools.settings import ToolSettings

_NO_MORE: Final = "No tool can be called any more. Answer with what you have."
_TOLD: Final[Mapping[StoppedBy, str]] = {
    StoppedBy.CALLS: f"The call was not run: the limit of tool calls is reached. {_NO_MORE}",
    StoppedBy.TURNS: f"The call was not run: the limit of turns is reached. {_NO_MORE}",
    StoppedBy.TOKENS: f"The call was not run: the limit of tokens is reached. {_NO_MORE}",
    StoppedBy.COST: f"The call was not run: the limit of cost is reached. {_NO_MORE}",
    StoppedBy.TIME: f"The call was not run: the time for tools is used up. {_NO_MORE}",
    StoppedBy.REPEAT: f"The call was not run: the same call was made before. {_NO_MORE}",
}
UNKNOWN_TOOL: Final = "unknown_tool"
INVALID_ARGUMENTS: Final = "invalid_arguments"
"""Why a call was not run."""


class ApprovalImpossible(Exception):
    """A call needs a decision, and no one can be asked; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """`turn` is to be committed. Without one the job goes on with its answer, or with `result` in its place."""

    turn: Turn | None = None
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """One call as the model wrote it."""

    call_id: str
    name: str
    arguments: str


def decide(
    job: Job,
    settings: ToolSettings,
    configured: Mapping[str, ToolServer],
    now_ms: int,
    cost: float = 0.0,
) -> Decided:
    """What becomes of the job's candidate, when the job has cost so much. Raises `ApprovalImpossible`."""
    choice = ((job.candidate or {}).get("choices") or [{}])[0]
    message = choice.get("message") or {}
    said = _calls_of(message)
    if not said or choice.get("finish_reason") == "length":
        return Decided()  # a text that was cut off has no whole call
    if job.turns and job.turns[-1].stopped_by:
        return Decided(result=_without_calls(job.candidate or {}, choice, message))
    client = own_functions(job.request.body)
    if all(each.name in client for each in said):
        return Decided()
    decision = _Decision(job, settings, configured, client, now_ms, cost)
    return Decided(turn=decision.turn(message, said))


class _Decision:
    """The decision about one answer that asks for tools that are run here."""

    def __init__(
        self,
        job: Job,
        settings: ToolSettings,
        configured: Mapping[str, ToolServer],
        client: frozenset[str],
        now_ms: int,
        cost: float,
    ) -> None:
        self._job = job
        self._settings = settings
        self._configured = configured
        self._client = client
        self._now_ms = now_ms
        self._cost = cost
        self._usage = (job.candidate or {}).get("usage") or job.usage or {}
        body = job.request.body
        self._limits = settings.limits.capped(
            {
                "max_calls": body.get("max_tool_calls"),
                "parallel": 1 if body.get("parallel_tool_calls") is False else None,
            }
        )
        pinned = {each.server_label: each for each in pinned_servers(job.tool_list)}
        self._servers = {**pinned, BUILT_IN: BUILT_IN_SERVER}
        self._tools = {
            tool.name: (server, tool) for server in self._servers.values() for tool in server.tools
        }
        self._required = _required_approvals(body)
        self._number = len(job.turns) + 1
        self._calls_before = calls_so_far(job.turns)
        self._equal = Counter(
            call.digest for turn in job.turns for call in turn.calls if call.server
        )
        self._mark = next((each.mark for each in pinned.values() if each.mark), "")
        self._taints = self._tainting() if settings.taint else frozenset()
        self._stopped = self._stopped_before()

    def turn(self, message: Mapping[str, Any], said: Sequence[_Said]) -> Turn:
        """The turn with its calls."""
        own_ids = _own_ids(said, self._number)
        calls: list[ToolCall] = []
        for place, each in enumerate(said):
            calls.append(self._call(place, replace(each, call_id=own_ids[place]), calls))
        if self._number >= self._limits.max_turns - 1 and not self._stopped:
            self._stopped = StoppedBy.TURNS  # the next one is the last: it can only be the answer
        return Turn(
            number=self._number,
            attempt=self._job.attempt,
            begin=self._job.turn_begin,
            end=self._job.token_count,
            message=_message(message, calls),
            usage=self._usage,
            committed_ms=self._now_ms,
            epoch=self._job.epoch,
            ends=int(ends := self._ends(calls)),
            parallel=self._limits.parallel,
            ask_ms=self._ask_ms(ends=ends),
            stopped_by=self._stopped or "",
            read_again_ms=self._read_again_ms(),
            mark=self._mark,
            calls=tuple(calls),
        )

    def _read_again_ms(self) -> int:
        """What the replica of this turn took to start, and to read a prompt of the job at the longest."""
        usages = [turn.usage for turn in self._job.turns]
        known = [times for each in (*usages, self._usage) if (times := times_of(each))]
        return max(first for first, _ in known) + known[-1][1] if known else 0

    def _call(self, place: int, said: _Said, before: Sequence[ToolCall]) -> ToolCall:
        """A call of the turn, in the state in which it is committed."""
        call = ToolCall(
            turn=self._number,
            place=place,
            call_id=said.call_id,
            name=said.name,
            arguments=said.arguments,
            state=CallState.PENDING,
            digest=arguments_digest(said.name, said.arguments),
        )
        if said.name in self._client:
            return replace(call, state=CallState.CLIENT)
        server, tool = self._tools.get(said.name, (None, None))
        if server is None or tool is None:
            known = ", ".join(sorted(self._tools)[:_MOST_NAMED])
            return _not_run(
                call, UNKNOWN_TOOL, f"There is no tool {said.name!r:.100}. Known: {known}"
            )
        call = self._bound(call, server, tool)
        if why := _wrong_arguments(said.arguments, self._limits.argument_bytes):
            return _not_run(call, INVALID_ARGUMENTS, why)
        if limit := self._limit(call, before):
            return limit
        self._equal[call.digest] += 1
        return self._to_approve(call, server, tool)

    def _bound(self, call: ToolCall, server: PinnedServer, tool: PinnedTool) -> ToolCall:
        """The call with the server and tool that its name stands for."""
        call = replace(
            call,
            server=server.server_label,
            tool=tool.tool,
            effect=tool.effect,
            tool_digest=tool.digest,
        )
        configured = self._configured.get(server.server_label)
        if configured is None:
            return replace(call, by_url=int(server.server_label != BUILT_IN))
        return replace(call, timeout_ms=configured.timeout_ms, max_attempts=configured.max_attempts)

    def _limit(self, call: ToolCall, before: Sequence[ToolCall]) -> ToolCall | None:
        """The call as a limit stops it; None where it may run."""
        running = sum(bool(each.server) and each.state in _RUNNING for each in before)
        if not self._stopped and self._calls_before + running >= self._limits.max_calls:
            self._stopped = StoppedBy.CALLS
        if not self._stopped and self._equal[call.digest] + 1 >= self._limits.repeats_stopped:
            self._stopped = StoppedBy.REPEAT
        if self._stopped:
            return _not_run(call, self._stopped, _TOLD[self._stopped])
        return None

    def _tainting(self) -> frozenset[str]:
        request = self._job.prepared or self._job.request
        behind = [message for turn in self._job.turns for message in turn.after]
        before = read_before([*(request.body.get("messages") or ()), *behind], self._client)
        trusted = {
            label
            for label in before - self._servers.keys()
            if (known := self._configured.get(label)) is not None and known.is_trusted
        }
        return tainting_origins(self._job.turns, self._servers, before - trusted)

    def _stopped_before(self) -> StoppedBy | None:
        """The limit that this turn's calls are past already."""
        limits, turns = self._limits, self._job.turns
        tokens = output_tokens(turns) + answer_tokens(self._usage)
        if self._number >= limits.max_turns:
            return StoppedBy.TURNS
        if any(0 < limit <= tokens for limit in (limits.max_output_tokens, self._budget())):
            return StoppedBy.TOKENS
        if 0 < limits.max_cost <= self._cost:
            return StoppedBy.COST
        return StoppedBy.TIME if 0 < limits.tool_ms <= tool_time_ms(turns) else None

    def _budget(self) -> int:
        """The request's own limit of output tokens, which is one of all turns together; 0 for none."""
        asked = [self._job.request.body.get(name) for name in OUTPUT_BUDGETS]
        return min((each for each in asked if isinstance(each, int)), default=0)

    def _to_approve(self, call: ToolCall, server: PinnedServer, tool: PinnedTool) -> ToolCall:
        """The call as it waits for a person; as it is where no one is asked."""
        if server.server_label == BUILT_IN:
            return call
        required = self._required.get(server.server_label)
        why = reason_to_ask(server, tool, required, self._taints)
        if not why:
            return call
        if self._settings.on_approval is OnApproval.FAIL:
            raise ApprovalImpossible(
                f"the call of {call.name:.100} needs an approval ({why}), and no one can be asked here"
            )
        return replace(
            call,
            state=CallState.AWAITING_APPROVAL,
            reason=why,
            approval_id=approval_item_id(self._job.id, call.turn, call.place),
            expires_ms=self._now_ms + self._limits.approval_ttl_ms,
        )

    def _ask_ms(self, *, ends: bool) -> int:
        """How long a person is waited for in this turn; 0 where the job can not be asked about."""
        can_ask = self._settings.on_approval is OnApproval.WAIT or ends
        return self._limits.approval_ttl_ms if can_ask else 0

    def _ends(self, calls: Sequence[ToolCall]) -> bool:
        """True where only the caller can go on: its own functions, or approvals where they end the job."""
        ends_at_approval = self._settings.on_approval is OnApproval.END
        return any(
            call.state is CallState.CLIENT
            or (ends_at_approval and call.state is CallState.AWAITING_APPROVAL)
            for call in calls
        )


_MOST_NAMED: Final = 32
_MOST_CALLS: Final = 128
_RUNNING: Final = (CallState.PENDING, CallState.AWAITING_APPROVAL)


def _calls_of(message: Mapping[str, Any]) -> list[_Said]:
    """The calls in an assistant's message; what has no form of a call is no call."""
    found = []
    for each in message.get("tool_calls") or ():
        function = each.get("function") if isinstance(each, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            arguments = function.get("arguments")
            text = arguments if isinstance(arguments, str) else _json(arguments)
            call_id = str(each.get("id") or "")
            found.append(_Said(call_id=call_id, name=function["name"], arguments=text))
    return found[:_MOST_CALLS]


def _json(value: Any) -> str:
    return orjson.dumps(value if value is not None else {}).decode()


def _own_ids(said: Sequence[_Said], turn: int) -> list[str]:
    """The model's call ids, where each is there once; else ones of ours."""
    counts = Counter(each.call_id for each in said)
    return [
        each.call_id if each.call_id and counts[each.call_id] == 1 else f"call_{turn}_{place}"
        for place, each in enumerate(said)
    ]


def _message(message: Mapping[str, Any], calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The assistant's message of the next prompt."""
    own = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]
    kept = {name: message[name] for name in _KEPT if message.get(name) is not None}
    return {"role": "assistant", "content": None, **kept, "tool_calls": own}


_KEPT: Final = ("content", "reasoning_content", "reasoning")


def _without_calls(
    candidate: Mapping[str, Any], choice: Mapping[str, Any], message: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer of a model that asked for tools although there are none any more."""
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    own = {**choice, "message": {**kept, "content": kept.get("content") or ""}}
    others = list(candidate.get("choices") or ())[1:]
    return {**candidate, "choices": [{**own, "finish_reason": "stop"}, *others]}


def _required_approvals(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request's `require_approval` of each server that it names; `always` where it says nothing."""
    return {
        str(each.get("server_label")): each.get("require_approval") or "always"
        for each in body.get("tools") or ()
        if isinstance(each, Mapping) and each.get("type") == "mcp"
    }


def _not_run(call: ToolCall, reason: str, text: str) -> ToolCall:
    return replace(call, state=CallState.NOT_RUN, reason=reason, output=text, is_error=1)


def _wrong_arguments(text: str, limit_bytes: int) -> str:
    """Why the arguments can not be sent; empty where they can."""
    if len(text.encode()) > limit_bytes:
        return f"The arguments are over {limit_bytes} bytes; the call was not run."
    try:
        is_object = isinstance(orjson.loads(text or "{}"), dict)
    except orjson.JSONDecodeError:
        is_object = False
    return "" if is_object else "The arguments are no JSON object; the call was not run."
