"""Turns of a job and the tool calls in them, as its record has them: identity, states, effect classes. Pure.

Called by the stores, the steps (which run calls), the api (which shows and decides them) and the predictor (whose next
prompt is made of them). A job whose model asks for tools has many turns: the model answers with calls, the turn is
committed, the calls run as deliveries of their own, and the last result queues the next turn.

In the record a turn is the field `turn:N` and a call the field `call:N.P`, each a flat JSON object of texts and whole
numbers: scripts read and write them, and a script that parsed an argument would change it. The same rules are
enforced by the scripts in `eventing/redis/scripts`; `tests/contract/test_tools.py` checks that both agree.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Final

import orjson

from eventing.known_fields import known_fields, known_value

CALL_ID: Final = "{job_id}:{turn}.{place}:{epoch}"


class EffectClass(StrEnum):
    """What a second send of one call can do. The operator says it; an untrusted server's hints only narrow it."""

    READ = "read"  #: changes nothing
    KEYED = "keyed"  #: does a thing once for one idempotency key
    REPEATABLE = "repeatable"  #: doing it twice does no harm
    ONCE = "once"  #: must not be sent again while it is in doubt; the default

    @property
    def may_be_sent_again(self) -> bool:
        """True where a call that may have run is sent again."""
        return self is not EffectClass.ONCE


class CallState(StrEnum):
    """How far a tool call is. A job goes on to its next turn when every call of a turn is final."""

    PENDING = "pending"  #: committed; nothing was dialled
    SENT = "sent"  #: marked before it was dialled: from here on it may have run
    ACCEPTED = "accepted"  #: the tool said that it answers later, under a handle
    AWAITING_APPROVAL = "awaiting_approval"  #: a person or a policy is to decide
    AWAITING_INPUT = "awaiting_input"  #: the tool asks its user for something
    IN_DOUBT = "in_doubt"  #: may have run, must not be sent again: a person is to decide
    RETURNED = "returned"  #: final: `output` is its result, with `is_error` where the tool said so
    DENIED = "denied"  #: final: not approved; `output` is what the model is told
    NOT_RUN = "not_run"  #: final: a limit or a policy stands against it; `output` says which
    UNKNOWN = (
        "unknown"  #: final: it may have happened, and no one can be asked; the model is told so
    )
    CLIENT = "client"  #: final here: the caller's own function, which the caller runs

    @property
    def may_have_run(self) -> bool:
        """True where the call was sent and no result came."""
        return self in _IN_DOUBT

    @property
    def is_final(self) -> bool:
        return self in _FINAL

    @property
    def is_waiting_for_person(self) -> bool:
        return self in _WAITING


_FINAL: Final = frozenset(
    {
        *(CallState.RETURNED, CallState.DENIED, CallState.NOT_RUN),
        *(CallState.UNKNOWN, CallState.CLIENT),
    }
)
_WAITING: Final = frozenset(
    {CallState.AWAITING_APPROVAL, CallState.AWAITING_INPUT, CallState.IN_DOUBT}
)
_IN_DOUBT: Final = frozenset(
    {*(CallState.SENT, CallState.ACCEPTED), *(CallState.IN_DOUBT, CallState.UNKNOWN)}
)


class ToolPhase(StrEnum):
    """What a job between two turns waits for."""

    TOOL = "tool"  #: calls that are to run, or run
    APPROVAL = "approval"  #: only decisions of a person
    INPUT = "input"  #: only what a tool asked its user for


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool. Times are store time in milliseconds, 0 for not yet.

    `call_id` is the model's, which its next prompt names again; `name` is the function as the model knows it, `server`
    and `tool` are what it stands for. `digest` is that of `arguments`, `tool_digest` that of the tool's definition in
    the pinned list.
    """

    turn: int
    place: int
    call_id: str
    name: str
    arguments: str
    state: CallState
    server: str = ""  #: the label; empty for the caller's own function
    by_url: int = 0  #: 1 where the request named the server by its address
    tool: str = ""
    effect: EffectClass = EffectClass.ONCE
    digest: str = ""
    tool_digest: str = ""
    timeout_ms: int = 60_000  #: of one send
    max_attempts: int = 3  #: sends, where a call may be sent again
    sends: int = 0  #: that may have reached the tool
    owner: str = ""  #: who holds the call's lease
    lease_number: int = 0  #: of the newest lease; what its holder writes carries it
    lease_until_ms: int = 0
    queued_ms: int = 0
    sent_ms: int = 0  #: of the newest send
    refused_ms: int = 0  #: since when it could not be sent
    ended_ms: int = 0
    handle: str = ""  #: under which an accepted call is asked for, or answers
    output: str = ""  #: what the model is shown
    is_error: int = 0  #: 1 where the tool said that it failed
    object_ref: str = ""  #: of the whole result, where `output` is a part of it
    output_bytes: int = 0  #: of the whole result
    reason: str = ""  #: why it waits, was not run, was denied, or is in doubt
    question_of: str = ""  #: the state in which the newest decision was asked for
    approval_id: str = ""  #: of the newest decision that was asked for; each has its own
    asked: int = 0  #: how often a decision was asked for
    approver: str = ""  #: who decided
    expires_ms: int = 0  #: of a decision that is awaited
    question: str = ""  #: what the tool asks its user for, and its state (JSON)
    answer: str = ""  #: what the user said (JSON)
    progress: str = ""  #: what it last said of how far it is (`eventing.job.tools.progress`)
    progress_ms: int = 0  #: when that was noted
    carried: int = 0  #: 1 where an earlier job has run it, and shows it
    token_hash: str = ""  #: of the single-use token with which a later result comes

    def to_json(self) -> bytes:
        """The call's field in the record: the members that differ from their defaults."""
        record = {name: getattr(self, name) for name in _MEMBERS}
        return orjson.dumps({k: v for k, v in record.items() if v not in ("", 0) or k in _ALWAYS})

    @property
    def after_end(self) -> "ToolCall":
        """What became of it in a job that was cancelled or failed: an open call was dropped, or may have happened."""
        if self.state.is_final:
            return self
        if self.state.may_have_run or self.sends:
            return replace(self, state=CallState.UNKNOWN, reason=_OVERTAKEN)
        return replace(self, state=CallState.NOT_RUN, reason=_DROPPED)


_DROPPED: Final = "the job ended before it was sent"
_OVERTAKEN: Final = "the job ended before its result came: it may have happened"
_ALWAYS: Final = ("turn", "place", "state", "arguments", "sends")
_MEMBERS: Final = tuple(each.name for each in fields(ToolCall))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One committed answer of the model that asked for tools, and its calls in their order.

    `message` is the assistant's message of the next prompt (content, reasoning, `tool_calls` as the model wrote them).
    Its tokens are those from `begin` to `end` of the job's token stream.
    """

    number: int  #: from 1
    attempt: int
    begin: int
    end: int
    message: Mapping[str, Any]
    usage: Mapping[str, Any] = field(default_factory=dict)
    committed_ms: int = 0
    epoch: int = 0  #: raised by a redrive with an edited request, which begins anew
    ends: int = 0  #: 1 where the job ends with this turn once its free calls are done
    mark: str = ""  #: between which and itself the model is shown results; no tool can know it
    stopped_by: str = ""  #: the limit (`StoppedBy`) after which no tool may be called any more
    parallel: int = 8  #: calls that may run at once
    ask_ms: int = 0  #: how long a person is waited for; 0 where no one can be asked
    read_again_ms: int = 0  #: what it would take to start a predictor and read the prompt again
    carried: int = 0  #: 1 where an earlier job left it, and shows its text
    after: tuple[Mapping[str, Any], ...] = ()  #: messages of the caller behind its results
    calls: tuple[ToolCall, ...] = ()

    def to_json(self) -> bytes:
        """The turn's field in the record; its calls are fields of their own."""
        return orjson.dumps(
            {
                "number": self.number,
                "attempt": self.attempt,
                "begin": self.begin,
                "end": self.end,
                "message": orjson.dumps(self.message).decode(),
                "usage": orjson.dumps(self.usage).decode(),
                "committed_ms": self.committed_ms,
                "epoch": self.epoch,
                "ends": self.ends,
                "stopped_by": self.stopped_by,
                "parallel": self.parallel,
                "ask_ms": self.ask_ms,
                **({"read_again_ms": self.read_again_ms} if self.read_again_ms else {}),
                **({"carried": 1} if self.carried else {}),
                "mark": self.mark,
                **({"after": orjson.dumps(self.after).decode()} if self.after else {}),
                "calls": len(self.calls),
            }
        )

    @property
    def is_done(self) -> bool:
        """True when every call is final."""
        return all(call.state.is_final for call in self.calls)

    @property
    def phase(self) -> ToolPhase:
        """What the job waits for while some call of the turn is not final."""
        left = [call.state for call in self.calls if not call.state.is_final]
        if any(not state.is_waiting_for_person for state in left):
            return ToolPhase.TOOL
        is_input = left and all(state is CallState.AWAITING_INPUT for state in left)
        return ToolPhase.INPUT if is_input else ToolPhase.APPROVAL


def turn_field(number: int) -> str:
    """The field of the record that has the turn."""
    return f"turn:{number}"


def call_field(turn: int, place: int) -> str:
    """The field of the record that has the call."""
    return f"call:{turn}.{place}"


def idempotency_key(job_id: str, turn: int, place: int, epoch: int) -> str:
    """The key of a call, the same on every send of it: not the model's call id, which another model may choose anew,
    and not the attempt, so that a redrive keeps it. It is the id of the call's event as well.
    """
    return CALL_ID.format(job_id=job_id, turn=turn, place=place, epoch=epoch)


def item_id(job_id: str, turn: int, place: int) -> str:
    """The id of the item that shows the call, made of job, turn and place: every reader sees the same one."""
    return f"mcp_{job_id.removeprefix('job_')}_{turn}_{place}"


def approval_item_id(job_id: str, turn: int, place: int, asked: int = 1) -> str:
    """The id under which the call is approved; a later question about it has an id of its own, so that an answer given
    twice is not taken for the answer to that.
    """
    plain = f"mcpr_{job_id.removeprefix('job_')}_{turn}_{place}"
    return plain if asked == 1 else f"{plain}_{asked}"


_APPROVAL_ID: Final = re.compile(r"mcpr_(\w+?)_(\d{1,6})_(\d{1,6})(?:_\d{1,6})?")


def call_of_approval(job_id: str, approval_id: str) -> tuple[int, int] | None:
    """Turn and place of the call that an approval is of; None for an id that is none of this job's."""
    found = _APPROVAL_ID.fullmatch(approval_id)
    if found is None or found[1] != job_id.removeprefix("job_"):
        return None
    return int(found[2]), int(found[3])


def job_of_approval(approval_id: str) -> str:
    """The id of the job that asked for an approval; empty for an id of another form."""
    found = _APPROVAL_ID.fullmatch(approval_id)
    return f"job_{found[1]}" if found else ""


def arguments_digest(name: str, arguments: str) -> str:
    """A digest of a call: equal for equal calls, however the arguments are spaced or ordered."""
    try:
        said: Any = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        said = arguments
    text = orjson.dumps([name, said], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:32]


def turns_of(record: Mapping[bytes, bytes]) -> tuple[Turn, ...]:
    """The turns in a job's record, with their calls. Raises `NewerRecord`."""
    count = int(record.get(b"turns") or 0)
    return tuple(_turn(record, number) for number in range(1, count + 1))


def _turn(record: Mapping[bytes, bytes], number: int) -> Turn:
    said = orjson.loads(record[turn_field(number).encode()])
    places = int(said.pop("calls", 0))
    known = known_fields(Turn, said)
    known["message"] = orjson.loads(known["message"])
    known["usage"] = orjson.loads(known.get("usage") or "{}")
    known["after"] = tuple(orjson.loads(known.get("after") or "[]"))
    calls = tuple(call_of(record[call_field(number, place).encode()]) for place in range(places))
    return Turn(**{**known, "calls": calls})


def call_of(raw: bytes) -> ToolCall:
    """The call in a field of a record. Raises `NewerRecord`."""
    known = known_fields(ToolCall, orjson.loads(raw))
    known["state"] = known_value(CallState, known["state"])
    known["effect"] = known_value(EffectClass, known.get("effect", EffectClass.ONCE))
    return ToolCall(**known)


def token_hash(token: str) -> str:
    """The hash of a call's token, which is all that is stored of it."""
    return hashlib.sha256(token.encode()).hexdigest()
