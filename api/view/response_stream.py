"""The events of OpenAI's Responses from a job's token stream. Pure.

Called by `api.routes.responses`. The same stream always gives the same events with the same sequence numbers, so a
reader can resume at another api process, or after a restart.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from api.view.chunk import delta_of, pieces_of
from api.view.items.retrieval import RETRIEVE, LinkFilters, annotations, search_item
from api.view.items.tool_stream import Output, ToolEvents, is_told_by_record
from api.view.items.tools import is_of_server, server_labels, turn_suffix
from api.view.response import (
    Item,
    call_item,
    compaction_of,
    ends_with_turn,
    logprobs_of,
    message_item,
    reasoning_item,
    response_view,
    status_of,
    text_part,
)
from eventing.job.answer_links import link_hosts
from eventing.job.job import Job, JobState
from eventing.job.plan import LIST_TOOLS_STEP, StepStatus
from eventing.job.stream import EntryKind, StreamEntry

Event = dict[str, Any]


def without_repeats(event: Event) -> Event:
    """The event without what its response only repeats of the call, for one that is too long for a line."""
    if "response" not in event:
        return event
    return event | {"response": event["response"] | {"instructions": None, "tools": []}}


def without_text(event: Event) -> Event | None:
    """An event that closes a part or a response, without the text that the deltas before told: None where nothing
    is left. For messages that would be longer than their readers take.
    """
    if "response" not in event:
        return None
    return without_repeats(event | {"response": event["response"] | {"output": []}})


class _Open:
    """The output item that is growing."""

    def __init__(
        self, kind: str, name: str, item_id: str, index: int, call: Mapping[str, Any]
    ) -> None:
        self.kind = kind
        self.name = name
        self.item_id = item_id
        self.index = index
        self.call = call
        self.text: list[str] = []
        self.logprobs: list[Item] = []
        self.annotations: list[Item] = []

    def item(self, status: str) -> Item:
        """The item as it is now; an item in progress has no content, as at OpenAI."""
        text = "" if status == "in_progress" else "".join(self.text)
        match self.kind:
            case "reasoning":
                return reasoning_item(self.item_id, text, status)
            case "message":
                shown = None if status == "in_progress" else text
                item = message_item(self.item_id, shown, status, self.logprobs)
                for part in item["content"]:
                    part["annotations"] = self.annotations
                return item
            case _:
                function = {"name": (self.call.get("function") or {}).get("name")}
                call = {"id": self.call.get("id"), "function": function | {"arguments": text}}
                return call_item(self.item_id, call, status)

    def part(self, text: str) -> Item:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        part = text_part(text, self.logprobs if text else ())
        return part | {"annotations": self.annotations} if text else part

    def place(self) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": self.item_id, "output_index": self.index}
        return place if self.kind == "function_call" else place | {"content_index": 0}


_VOIDABLE: Final = ("reasoning", "message", "function_call")


@dataclass(slots=True)
class _Turn:
    """The turn of the model that is being streamed: its number, the place of its first item, whether anything of it
    was told, and which of its calls are run here.
    """

    number: int = 1
    first: int = 0
    is_told: bool = False
    of_servers: dict[int, bool] = field(default_factory=dict)


def _is_carried(job: Job) -> bool:
    return bool(job.turns) and bool(job.turns[0].carried)


class Translator:
    """Translates one job's stream into events. It must be fed from the beginning of the stream."""

    def __init__(self, job: Job, record: Mapping[str, Any]) -> None:
        self._job = job
        self._record = record
        self._tail = job.id.removeprefix("job_")
        self._sequence = 0
        self._attempt = 0
        self._is_announced = False
        self._output = Output()
        self._open: _Open | None = None
        self._turn = _Turn(number=2 if _is_carried(job) else 1)
        self._tools = ToolEvents(job, self._output) if server_labels(job) else None
        hosts = link_hosts(job)
        self._links = None if hosts is None else LinkFilters(hosts)

    def begin(self) -> Iterator[Event]:
        """The events before the first entry."""
        state = "queued" if self._record["background"] else "in_progress"
        yield self._response_event("response.created", state)
        if self._record["background"]:
            yield self._response_event("response.queued", state)

    def needs_record(self, entries: Iterable[StreamEntry]) -> bool:
        """True where the events of these entries need the job's record (`know`)."""
        return self._tools is not None and any(map(is_told_by_record, entries))

    def know(self, job: Job) -> None:
        """The job as it is now."""
        if self._tools is not None:
            self._tools.job = job

    def feed(self, entry: StreamEntry) -> Iterator[Event]:
        """The events for an entry of the stream."""
        match entry.kind:
            case EntryKind.ATTEMPT:
                yield from self._announce()
                yield from self._tool_events()
                if self._attempt == 0:
                    yield from self._compaction()
                self._attempt = entry.attempt
                if entry.is_restart:
                    yield from self._start_over()
            case EntryKind.STEP if entry.step == RETRIEVE:
                if "include" in self._record:
                    yield from self._search(entry)
            case EntryKind.STEP | EntryKind.TURN | EntryKind.CALL if self._tools is not None:
                yield from self._tool_events(entry)
            case EntryKind.TOKENS if entry.delta:
                for choice in orjson.loads(entry.delta):
                    yield from self._choice(self._links.shown(choice) if self._links else choice)

    def end(self, job: Job) -> Iterator[Event]:
        """The events after the last entry, once the job has ended."""
        status = status_of(job)
        choices = (job.result or {}).get("choices")
        if choices:
            yield from self._compaction()
        yield from self._held_back()
        if choices and not ends_with_turn(job):
            yield from self._unstreamed(choices[0].get("message") or {}, choices[0])
        self._job = job  # with what its steps found
        yield from self._close("completed" if status == "completed" else "incomplete")
        if self._tools is not None:
            yield from map(self._numbered, self._tools.end(job))
        output: list[Item] | None = self._output.items
        if "include" in self._record and output:
            has_call = output[0]["type"] == "file_search_call"
            output[: int(has_call)] = [search_item(job, self._record)]
        # The items as they were streamed.
        output = output or None
        view = response_view(job, self._record, output=output)
        yield self._event(f"response.{status}", response=view)

    def error(self, error: Mapping[str, Any]) -> Event:
        """The last event of a stream that broke, with OpenAI's fields and Open Responses' object."""
        told = {name: error.get(name) for name in ("code", "message", "param")}
        return self._event("error", **told, error=dict(error))

    def _announce(self) -> Iterator[Event]:
        if not self._is_announced:
            self._is_announced = True
            yield self._response_event("response.in_progress", "in_progress")

    def _held_back(self) -> Iterator[Event]:
        """What of the texts was held back for their links, where no piece of the model's said that they had ended."""
        for choice in self._links.rest() if self._links else ():
            yield from self._choice(choice)

    def _unstreamed(
        self, message: Mapping[str, Any], choice: Mapping[str, Any] | None = None
    ) -> Iterator[Event]:
        """What the model said in this turn, where none of it came as tokens: they are no longer stored, or its
        predictor does not stream.
        """
        if self._turn.is_told:
            return
        whole = {**(choice or {}), "delta": delta_of(message)}
        whole["finish_reason"] = whole.get("finish_reason") or "stop"
        yield from self._choice(self._links.shown(whole) if self._links else whole)

    def _tool_events(self, entry: StreamEntry | None = None) -> Iterator[Event]:
        """The events of tools for an entry; without one, those of a turn that an earlier response left."""
        tools = self._tools
        if tools is None or (
            entry and entry.kind is EntryKind.STEP and entry.step != LIST_TOOLS_STEP
        ):
            return
        yield from self._announce()
        found: list[Event] = []
        match entry.kind if entry else None:
            case EntryKind.STEP if entry is not None:
                found += tools.listing(entry)
            case EntryKind.TURN if entry is not None:
                yield from self._turn_over(entry.turn)
                found += tools.turn(entry)
            case EntryKind.CALL if entry is not None:
                found += (*tools.taken_over(), *tools.call(entry))
            case _:
                found += tools.taken_over()
        yield from map(self._numbered, found)

    def _turn_over(self, number: int) -> Iterator[Event]:
        """Close what the model said in a turn that was committed."""
        yield from self._held_back()
        turns = self._tools.job.turns if self._tools else ()
        if 1 <= number <= len(turns):
            yield from self._unstreamed(turns[number - 1].message)
        yield from self._close("completed")
        self._turn = _Turn(number=number + 1, first=len(self._output.names))

    def _numbered(self, event: Event) -> Event:
        return self._event(event["type"], **{n: v for n, v in event.items() if n != "type"})

    def _search(self, entry: StreamEntry) -> Iterator[Event]:
        """The search of files before the answer. Its results are in the response that the stream ends with."""
        name = f"fs_{self._tail}"
        place = {"output_index": 0, "item_id": name}
        if name not in self._output.names:
            yield from self._announce()
            self._output.add(name)
            item = search_item(self._job, self._record, "in_progress")
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._event("response.file_search_call.in_progress", **place)
            yield self._event("response.file_search_call.searching", **place)
        status = entry.step_status
        if status in (None, StepStatus.QUEUED, StepStatus.IN_PROGRESS) or self._output.done:
            return
        is_found = status is StepStatus.COMPLETED
        item = search_item(self._job, self._record, "completed" if is_found else "failed")
        if is_found:
            yield self._event("response.file_search_call.completed", **place)
        self._output.done[0] = item
        yield self._event("response.output_item.done", output_index=0, item=item)

    def _compaction(self) -> Iterator[Event]:
        """The item in place of what was said before, once."""
        for item in compaction_of(self._job, self._record):
            if item["id"] not in self._output.names:
                index = self._output.add(item["id"])
                self._output.done[index] = item
                yield self._event("response.output_item.added", output_index=index, item=item)
                yield self._event("response.output_item.done", output_index=index, item=item)

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[Event]:
        delta = choice.get("delta") or {}
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield from self._switch("reasoning", "rs")
            for piece in pieces_of(thought):
                yield self._delta("response.reasoning_text.delta", piece)
        if text := delta.get("content") or delta.get("refusal"):
            yield from self._switch("message", "msg")
            logprobs = logprobs_of(choice)
            assert self._open is not None  # noqa: S101 (just opened)
            self._open.logprobs += logprobs
            for piece in pieces_of(text):
                yield self._delta("response.output_text.delta", piece, logprobs=logprobs)
                logprobs = []
        for call in delta.get("tool_calls") or ():
            yield from self._call(call)

    def _call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        place, said = call.get("index", 0), (call.get("function") or {}).get("name")
        if self._tools is not None and said:
            self._turn.of_servers[place] = is_of_server(self._job, said)
        if self._turn.of_servers.get(place):
            self._turn.is_told = True
            return  # it is shown when its turn is committed
        name = f"fc_{self._tail}{turn_suffix(self._turn.number)}_{place}"
        if self._open is None or self._open.name != name:
            yield from self._close("completed")
            yield from self._begin_item("function_call", name, call)
        if arguments := (call.get("function") or {}).get("arguments"):
            for piece in pieces_of(arguments):
                yield self._delta("response.function_call_arguments.delta", piece)

    def _switch(self, kind: str, prefix: str) -> Iterator[Event]:
        """Make the open item one of `kind`."""
        if self._open is not None and self._open.kind == kind:
            return
        yield from self._close("completed")
        name = f"{prefix}_{self._tail}{turn_suffix(self._turn.number)}"
        yield from self._begin_item(kind, name, {})

    def _begin_item(self, kind: str, name: str, call: Mapping[str, Any]) -> Iterator[Event]:
        """The first item of a kind has the id that it has in the stored response; a later one of the same kind
        (after another item or a restart) needs an id of its own.
        """
        again = self._output.names.count(name)
        item_id = f"{name}_again{again}" if again else name
        self._open = _Open(kind, name, item_id, self._output.add(name), call)
        self._turn.is_told = True
        yield self._event(
            "response.output_item.added",
            output_index=self._open.index,
            item=self._open.item("in_progress"),
        )
        if kind != "function_call":
            place, part = self._open.place(), self._open.part("")
            yield self._event("response.content_part.added", **place, part=part)

    def _delta(self, kind: str, text: str, **extra: Any) -> Event:
        assert self._open is not None  # noqa: S101 (opened by the caller)
        self._open.text.append(text)
        return self._event(kind, **self._open.place(), delta=text, **extra)

    def _close(self, status: str) -> Iterator[Event]:
        """Close the open item, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return
        text, place = "".join(item.text), item.place()
        match item.kind:
            case "reasoning":
                yield self._event("response.reasoning_text.done", **place, text=text)
            case "message":
                cited = annotations(self._job, text)
                for number, each in enumerate(cited):
                    yield self._event(
                        "response.output_text.annotation.added",
                        **place,
                        annotation_index=number,
                        annotation=each,
                    )
                item.annotations = cited
                done = {"text": text, "logprobs": item.logprobs}
                yield self._event("response.output_text.done", **place, **done)
            case _:
                name = (item.call.get("function") or {}).get("name") or ""
                yield self._event(
                    "response.function_call_arguments.done", **place, arguments=text, name=name
                )
        if item.kind != "function_call":
            yield self._event("response.content_part.done", **place, part=item.part(text))
        whole = item.item(status)
        self._output.done[item.index] = whole
        yield self._event("response.output_item.done", output_index=item.index, item=whole)

    def _start_over(self) -> Iterator[Event]:
        """The text shown so far of this turn is void: its item ends incomplete, and new items follow."""
        if self._links is not None:
            self._links.start_over()
        yield from self._close("incomplete")
        for place, item in self._output.done.items():
            if place >= self._turn.first and item["type"] in _VOIDABLE:
                item["status"] = "incomplete"
        self._turn.of_servers.clear()

    def _response_event(self, kind: str, state: str) -> Event:
        """A snapshot that does not depend on when it is made."""
        bare = Job(
            id=self._job.id,
            state=JobState(state),
            request=self._job.request,
            created_ms=self._job.created_ms,
            metadata=self._job.metadata,
        )
        return self._event(kind, response=response_view(bare, self._record))

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event
