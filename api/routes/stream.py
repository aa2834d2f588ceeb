"""A job's events over SSE: states, waking, tokens, attempts, the result.

Called by `GET /v1/jobs/{id}/events`. The id of an event is the stream's cursor, so `Last-Event-ID` resumes exactly.
Must not know how tokens are made.
"""

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import Any, Final

import orjson

from api.http.protocol import ResponseWriter
from api.http.sse import LINE_LIMIT_BYTES, frame, last_comment
from api.job.live import DirectTokens, LiveDeps, Moment, moments, write_directly
from api.job.stream_position import StreamFault
from api.view.items.retrieval import LinkFilters
from api.view.job import JobView, job_view
from api.view.outlook import outlook_view
from eventing.errors import BadRequest, NotFound, Unavailable
from eventing.job.answer_links import link_hosts
from eventing.job.call.reasoning import entries_with_both_names
from eventing.job.job import Job, JobState
from eventing.job.stream import EntryKind, StreamEntry, calls_of
from eventing.job.tools.progress import progress_of
from eventing.live.stream_multiplexer import ReaderCutOff
from eventing.redis.stream_entry import TokensEntry
from eventing.store.archive import LARGE_BYTES

END: Final = ".end"
"""Suffix of the last event's id; a reader that resumes there has received everything."""
_CALL_CHARS: Final = 1_000
"""Of arguments and of a result, in an event: a turn may have many calls, and an event is one line."""


def parse_cursor(text: str) -> str:
    """A client's cursor; empty for the beginning. Raises `BadRequest` naming the header."""
    cursor = text.removesuffix(END)
    milliseconds, dash, sequence = cursor.partition("-")
    is_number = all(part.isascii() and part.isdigit() for part in (milliseconds, sequence))
    if cursor and (not is_number or not dash or max(len(milliseconds), len(sequence)) > 19):
        raise BadRequest("not a cursor that this stream gave out", "Last-Event-ID")
    return cursor


async def job_frames(
    deps: LiveDeps, job: Job, after: str, wire: ResponseWriter | None
) -> AsyncGenerator[bytes, None]:
    """Frames of the job's events after a cursor, ending with `result`. Tokens that arrive while no frame is being
    requested are written to `wire` directly.
    """
    on_tokens = write_directly(wire, token_frame) if link_hosts(job) is None else None
    try:
        async for name, data, cursor in job_events(deps, job, after, on_tokens):
            yield frame(name, data, cursor=cursor)
    except ReaderCutOff as error:
        yield last_comment(error.message)
    except NotFound:
        yield last_comment("the job was deleted")
    except Unavailable as error:
        yield last_comment(error.message)  # the client reconnects with its last id


def token_frame(entry: TokensEntry) -> bytes:
    """`entry_event` of tokens as a frame, in a fraction of the time, since every live token of every reader passes
    here.
    """
    cursor, attempt, index, count, _, delta = entry
    if b'"reasoning' in delta:
        delta = entries_with_both_names(delta.decode()).encode()
    return _TOKEN_FRAME % (cursor, attempt, index, count, delta or b"[]")


_TOKEN_FRAME: Final = (
    b'id: %b\nevent: tokens\ndata: {"attempt":%d,"index":%d,"count":%d,"delta":%b}\n\n'
)


async def job_events(
    deps: LiveDeps, job: Job, after: str, on_tokens: DirectTokens | None = None
) -> AsyncGenerator[tuple[str, Any, str], None]:
    """Name, data and cursor of each event, except those that `on_tokens` takes.

    When the store has lost tokens that were sent, the reader is told to start over and gets everything again.
    Raises as `moments` does.
    """
    hosts = link_hosts(job)
    if hosts is not None:
        async with aclosing(_without_links(deps, job, after, hosts)) as events:
            async for event in events:
                yield event
        return
    async with aclosing(_raw_events(deps, job, after, on_tokens)) as events:
        async for event in events:
            yield event


async def _without_links(
    deps: LiveDeps, job: Job, after: str, hosts: Collection[str]
) -> AsyncGenerator[tuple[str, Any, str], None]:
    """The events of a job with retrieval, whose texts show no links that passages may have planted. A reader that
    resumes may do so within a link: the filters read the stream from its begin.
    """
    links = LinkFilters(hosts)
    async with aclosing(_raw_events(deps, job, "", None)) as events:
        async for name, data, cursor in events:
            if name == "turn" or (name == "attempt" and data["is_restart"]):
                links.start_over()
            if name == "tokens":
                choices = [links.shown(each) for each in orjson.loads(orjson.dumps(data["delta"]))]
                data["delta"] = orjson.loads(
                    entries_with_both_names(orjson.dumps(choices).decode())
                )
            if not after or (cursor and _place(cursor) > _place(after)):
                yield name, data, cursor


def _place(cursor: str) -> tuple[int, int, bool]:
    milliseconds, _, sequence = cursor.removesuffix(END).partition("-")
    return int(milliseconds), int(sequence), cursor.endswith(END)


async def _raw_events(
    deps: LiveDeps, job: Job, after: str, on_tokens: DirectTokens | None
) -> AsyncGenerator[tuple[str, Any, str], None]:
    cursor = after
    if not after:
        yield "state", {"state": job.state, "id": job.id}, ""
    is_anew = False
    while True:
        async with aclosing(moments(deps, job, cursor, on_tokens, with_result=False)) as life:
            async for moment in life:
                if moment.fault is StreamFault.REWOUND and not is_anew:
                    break
                for event in _events_of(moment, cursor):
                    cursor = event[2] or cursor
                    yield event
            else:
                return
        yield (
            "attempt",
            {"attempt": job.attempt, "index": 0, "is_restart": True, "state": job.state},
            "",
        )
        cursor, is_anew = "", True


def _events_of(moment: Moment, cursor: str) -> list[tuple[str, Any, str]]:
    if moment.job is not None:
        return [("result", _ended_view(moment.job), f"{cursor or '0-0'}{END}")]
    if moment.outlook is not None:
        return [("waking", outlook_view(moment.outlook), "")]
    if moment.fault is not None:
        return [("gap", {"reason": moment.fault}, "")]
    return [entry_event(entry) for entry in moment.entries if entry.kind is not EntryKind.OTHER]


def _ended_view(job: Job) -> JobView:
    """The ended job. A large result is left out whether it is in the object store yet or not, and `links.result` is
    its address; so are the texts of calls that together would make too long a line.
    """
    view = job_view(job)
    if (
        len(line := orjson.dumps(view)) > LARGE_BYTES
        and len(orjson.dumps(view["result"])) > LARGE_BYTES
    ) or len(line) > LINE_LIMIT_BYTES:
        view["result"] = None
    if "turns" in view and len(orjson.dumps(view)) > LINE_LIMIT_BYTES:
        for call in (call for turn in view["turns"] for call in turn["calls"]):
            call["arguments"], call["output"] = "", None
    return view


def _start(call: Mapping[str, Any]) -> str:
    """The start of a call's arguments: the whole came as tokens, and is in the job."""
    return str(call.get("arguments") or "")[:_CALL_CHARS]


def _call_data(entry: StreamEntry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "turn": entry.turn,
        "call": entry.place,
        "name": entry.name or None,
        "status": entry.call_state,
        "send": entry.send or None,
        "ms": entry.call_ms or None,
        "output": entry.output[:_CALL_CHARS] or None,
        "is_error": entry.is_error,
    }
    more = {
        "approval_id": entry.approval_id,
        "reason": entry.reason,
        "progress": progress_of(entry.progress),
    }
    return data | {name: value for name, value in more.items() if value}


def entry_event(entry: StreamEntry) -> tuple[str, Any, str]:
    """The event for an entry of the stream."""
    match entry.kind:
        case EntryKind.ATTEMPT:
            data: dict[str, Any] = {
                "attempt": entry.attempt,
                "index": entry.index,
                "is_restart": entry.is_restart,
                "state": JobState.IN_PROGRESS,
            }
        case EntryKind.TOKENS:
            data = {
                "attempt": entry.attempt,
                "index": entry.index,
                "count": len(entry.token_ids),
                "delta": orjson.Fragment(entries_with_both_names(entry.delta) or "[]"),
            }
        case EntryKind.STEP:
            data = {"name": entry.step, "status": entry.step_status, "ms": entry.step_ms or None}
        case EntryKind.TURN:
            calls = [{**each, "arguments": _start(each)} for each in calls_of(entry)]
            data = {"turn": entry.turn, "index": entry.index, "calls": calls}
        case EntryKind.CALL:
            data = _call_data(entry)
        case EntryKind.STATE | EntryKind.OTHER:
            data = {"state": entry.state, "attempt": entry.attempt}
            if entry.phase:
                data["phase"] = entry.phase
    return str(entry.kind), data, entry.cursor
