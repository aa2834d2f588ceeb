"""Items of a response that show its tools: the lists of servers, calls, and requests for approval. Pure.

Called by `api.view.response` and by the stream of a response, which show the same items under the same ids.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from eventing.job.job import Job
from eventing.job.plan import LIST_TOOLS_STEP
from eventing.job.tools.asked import recorded_urls
from eventing.job.tools.call import CallState, ToolCall, Turn, call_of_approval, item_id
from eventing.job.tools.request import SERVERS
from eventing.job.tools.server import BUILT_IN, SEPARATOR
from eventing.job.tools.tool_list import PinnedServer, pinned_servers

Item = dict[str, Any]

_NOT_CARRIED_OUT: Final = -32000
"""Of JSON-RPC's codes for errors of a server."""
_IN_DOUBT: Final = "It is not known whether the call was carried out: it may have happened."


def turn_suffix(number: int) -> str:
    """What ends the ids of the items of a turn, from 1; those of the first have the ids of a response without tools."""
    return "" if number == 1 else f"_{number}"


def server_labels(job: Job) -> tuple[str, ...]:
    """The labels of the servers whose tools the job may call, as they are known from its beginning."""
    step = job.plan.step(LIST_TOOLS_STEP) if job.plan else None
    if step is None:
        return ()
    return (*step.settings.get(SERVERS, ()), *recorded_urls(job.request.body.get("tools")))


def is_of_server(job: Job, name: str) -> bool:
    """True for the name of a function that is run here, and not by the caller."""
    labels = server_labels(job)
    label, separator, _ = name.partition(SEPARATOR)
    return bool(labels and separator) and label in (*labels, BUILT_IN)


def list_id(job: Job, label: str) -> str:
    """The id of the item that lists the tools of a server."""
    labels = server_labels(job)
    place = labels.index(label) if label in labels else len(labels)
    return f"mcpl_{job.id.removeprefix('job_')}_{place}"


def open_list(job: Job, label: str) -> Item:
    """The item of a server that is being asked for its tools."""
    return {"id": list_id(job, label), "type": "mcp_list_tools", "server_label": label, "tools": []}


def list_item(job: Job, server: PinnedServer) -> Item:
    """The item with the tools of a server."""
    tools = [
        {
            "name": tool.tool,
            "description": tool.description,
            "input_schema": tool.input_schema,
            "annotations": tool.annotations or None,
        }
        for tool in server.tools
    ]
    error = server.error or None
    return {**open_list(job, server.server_label), "tools": tools, "error": error}


def list_items(job: Job) -> list[Item]:
    """The lists of a job's servers."""
    pinned = pinned_servers(job.tool_list)
    shown = {each.server_label: list_item(job, each) for each in pinned}
    return [shown[label] for label in server_labels(job) if label in shown]


def status_of_call(call: ToolCall, *, is_over: bool) -> str:
    """The word for a call's state in OpenAI's form; `is_over` when its job has ended."""
    if call.state is CallState.RETURNED:
        return "failed" if call.is_error else "completed"
    if call.state is CallState.DENIED:
        return "failed"
    if is_over or call.state.is_final:
        return "incomplete"
    return "in_progress" if call.state is CallState.PENDING else "calling"


def call_item(job_id: str, call: ToolCall, *, is_over: bool) -> Item:
    """The item of a call that is run here."""
    status = status_of_call(call, is_over=is_over)
    is_done = status == "completed"
    # One that this job asks for is an item of its own.
    asked_before = call.approval_id and call_of_approval(job_id, call.approval_id) is None
    return {
        "id": item_id(job_id, call.turn, call.place),
        "type": "mcp_call",
        "server_label": call.server,
        "name": call.tool or call.name,
        "arguments": call.arguments,
        "status": status,
        "output": call.output if is_done else None,
        "error": None if is_done or status in ("in_progress", "calling") else _error(call),
        "approval_request_id": call.approval_id if asked_before else None,
    }


def approval_item(call: ToolCall) -> Item:
    """The item that asks for approval of a call."""
    return {
        "id": call.approval_id,
        "type": "mcp_approval_request",
        "server_label": call.server,
        "name": call.tool or call.name,
        "arguments": call.arguments,
    }


def is_shown(turn: Turn, call: ToolCall) -> bool:
    """True for a call that this job's output shows; those of a turn that an earlier job left, and that ran there, are
    in that one's.
    """
    return bool(call.server) and not (turn.carried and call.carried)


def turn_calls(job: Job, turn: Turn) -> Iterator[Item]:
    """The items of a turn's calls that are run here."""
    for call in turn.calls:
        if not is_shown(turn, call):
            continue
        if call.state is CallState.AWAITING_APPROVAL:
            yield approval_item(call)
        else:
            yield call_item(job.id, call, is_over=job.state.is_terminal)


def open_questions(job: Job) -> Iterator[Item]:
    """What an ended response asks of calls that had begun: whether one that may have happened is run again."""
    if job.turns and job.turns[-1].ends:
        for call in job.turns[-1].calls:
            is_begun = call.state in (CallState.IN_DOUBT, CallState.AWAITING_INPUT)
            if is_begun and call.approval_id:
                yield approval_item(call)


def _error(call: ToolCall) -> dict[str, Any]:
    """What went wrong, in OpenAI's form: what the tool said, or why it was not carried out."""
    if call.state is CallState.RETURNED:
        content = [{"type": "text", "text": call.output}]
        return {"type": "mcp_tool_execution_error", "content": content}
    reason = _IN_DOUBT if call.state is CallState.IN_DOUBT else call.reason
    message = call.output or reason or "the call was not carried out"
    return {"type": "mcp_protocol_error", "code": _NOT_CARRIED_OUT, "message": message}


def own_calls(job: Job, message: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The calls of the caller's own functions in a message of the model, with their places."""
    return [
        (place, call)
        for place, call in enumerate(message.get("tool_calls") or ())
        if not is_of_server(job, (call.get("function") or {}).get("name") or "")
    ]
