"""The events of OpenAI's Responses that tell of tools: lists of servers, calls, requests for approval. Pure.

Called by `api.view.response_stream`, which numbers them. A call becomes an item when its turn is committed, since only
then it is known whether it runs or waits for approval: no call is announced that another attempt could make void.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from api.view.items.tools import (
    Item,
    approval_item,
    call_item,
    is_shown,
    list_item,
    open_list,
    open_questions,
    server_labels,
    status_of_call,
)
from eventing.job.job import Job
from eventing.job.plan import LIST_TOOLS_STEP, StepStatus
from eventing.job.stream import EntryKind, StreamEntry, calls_of
from eventing.job.tools.call import CallState, ToolCall, item_id
from eventing.job.tools.tool_list import pinned_servers

Event = dict[str, Any]


class Output:
    """The items of a response that is being streamed: their names, by which their places are given, and what ended."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.done: dict[int, Item] = {}

    def add(self, name: str) -> int:
        """The place of a new item."""
        self.names.append(name)
        return len(self.names) - 1

    @property
    def items(self) -> list[Item]:
        """What has ended, in the order in which it began."""
        return [self.done[place] for place in sorted(self.done)]


def is_told_by_record(entry: StreamEntry) -> bool:
    """True for an entry whose events need the job's record: its stream does not have the whole."""
    if entry.kind is EntryKind.STEP:
        return entry.step == LIST_TOOLS_STEP and entry.step_status not in _BEGUN
    is_final = entry.call_state is not None and entry.call_state.is_final
    return entry.kind is EntryKind.TURN or (entry.kind is EntryKind.CALL and is_final)


_BEGUN = (None, StepStatus.QUEUED, StepStatus.IN_PROGRESS)


class ToolEvents:
    """The events of one response's tools. `job` is the newest record that is known of it."""

    def __init__(self, job: Job, output: Output) -> None:
        self.job = job
        self._output = output
        self._labels = server_labels(job)
        self._lists: dict[str, int] = {}
        self._are_listed = False
        self._places: dict[tuple[int, int], int] = {}
        self._is_taken_over = False

    def listing(self, entry: StreamEntry) -> Iterator[Event]:
        """The events of the step that lists tools."""
        for label in self._labels:
            if label not in self._lists:
                yield from self._begin_list(label)
        if entry.step_status in _BEGUN or self._are_listed:
            return
        self._are_listed = True
        pinned = {each.server_label: each for each in pinned_servers(self.job.tool_list)}
        for label in self._labels:
            found = pinned.get(label)
            item = list_item(self.job, found) if found else open_list(self.job, label)
            place = self._place(item["id"], self._lists[label])
            is_failed = found is None or bool(found.error)
            word = "failed" if is_failed else "completed"
            yield {"type": f"response.mcp_list_tools.{word}", **place}
            yield self._end(item, self._lists[label])

    def taken_over(self) -> Iterator[Event]:
        """The calls of a turn that an earlier response left, and that run in this one."""
        if self._is_taken_over:
            return
        self._is_taken_over = True
        for turn in self.job.turns[:1]:
            for call in turn.calls if turn.carried else ():
                if is_shown(turn, call):
                    yield from self._begin_call(call)
                    if call.state is CallState.DENIED:
                        yield from self._end_call(call)

    def turn(self, entry: StreamEntry) -> Iterator[Event]:
        """The calls of a committed turn."""
        for told in calls_of(entry):
            call = self._call(entry.turn, int(told.get("place", 0)))
            if call is None or not call.server:
                continue
            if told.get("state") == CallState.AWAITING_APPROVAL:
                item = approval_item(call)
                index = self._output.add(item["id"])
                yield {"type": "response.output_item.added", "output_index": index, "item": item}
                yield self._end(item, index)
                continue
            yield from self._begin_call(call)
            if told.get("state") in (CallState.NOT_RUN, CallState.DENIED, CallState.UNKNOWN):
                yield from self._end_call(call)

    def call(self, entry: StreamEntry) -> Iterator[Event]:
        """A call changed its state, or said how far it is: OpenAI has no form for what it said."""
        index = self._places.get((entry.turn, entry.place))
        if entry.progress and index is not None and index not in self._output.done:
            name = item_id(self.job.id, entry.turn, entry.place)
            yield {"type": "response.mcp_call.in_progress", **self._place(name, index)}
        call = self._call(entry.turn, entry.place)
        if call is not None and entry.call_state is not None and entry.call_state.is_final:
            yield from self._end_call(call)

    def end(self, job: Job) -> Iterator[Event]:
        """What is left when the job has ended: calls without a result, and questions about them."""
        self.job = job
        yield from self.taken_over()
        for turn, place in list(self._places):
            if (call := self._call(turn, place)) is not None:
                yield from self._end_call(call)
        for item in open_questions(job):
            if item["id"] not in self._output.names:
                index = self._output.add(item["id"])
                yield {"type": "response.output_item.added", "output_index": index, "item": item}
                yield self._end(item, index)

    def _begin_list(self, label: str) -> Iterator[Event]:
        item = open_list(self.job, label)
        self._lists[label] = index = self._output.add(item["id"])
        yield {"type": "response.output_item.added", "output_index": index, "item": item}
        yield {"type": "response.mcp_list_tools.in_progress", **self._place(item["id"], index)}

    def _begin_call(self, call: ToolCall) -> Iterator[Event]:
        name = item_id(self.job.id, call.turn, call.place)
        if (call.turn, call.place) in self._places:
            return
        index = self._places[(call.turn, call.place)] = self._output.add(name)
        begun = {**call_item(self.job.id, call, is_over=False), "status": "in_progress"}
        empty = {"arguments": "", "output": None, "error": None, "approval_request_id": None}
        place = self._place(name, index)
        yield {
            "type": "response.output_item.added",
            "output_index": index,
            "item": {**begun, **empty},
        }
        yield {"type": "response.mcp_call.in_progress", **place}
        kind = "response.mcp_call_arguments"
        yield {"type": f"{kind}.delta", **place, "delta": call.arguments}
        yield {"type": f"{kind}.done", **place, "arguments": call.arguments}

    def _end_call(self, call: ToolCall) -> Iterator[Event]:
        index = self._places.get((call.turn, call.place))
        if index is None or index in self._output.done:
            return
        item = call_item(self.job.id, call, is_over=True)
        is_good = status_of_call(call, is_over=True) == "completed"
        word = "completed" if is_good else "failed"
        yield {"type": f"response.mcp_call.{word}", **self._place(item["id"], index)}
        yield self._end(item, index)

    def _call(self, turn: int, place: int) -> ToolCall | None:
        """The call in the newest record."""
        turns = self.job.told_turns
        calls = turns[turn - 1].calls if 1 <= turn <= len(turns) else ()
        return calls[place] if 0 <= place < len(calls) else None

    def _end(self, item: Mapping[str, Any], index: int) -> Event:
        self._output.done[index] = dict(item)
        return {"type": "response.output_item.done", "output_index": index, "item": dict(item)}

    def _place(self, name: str, index: int) -> dict[str, Any]:
        return {"item_id": name, "output_index": index}
