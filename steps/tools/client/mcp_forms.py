"""What travels between us and an MCP server, as the SDK's types: tasks, which the SDK does not have, and what an answer
means. Imported with `steps.tools.client.mcp_client` only. Pure.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

import mcp_types
from mcp.client.session import ClientRequestContext
from pydantic import BaseModel, ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

from eventing.job.tools.tool_list import definition_of
from steps.tools.client.answer import Answer, Asks, Later, Result, error_result

_POLL_MS: Final = 5000


class Anything(BaseModel):
    """A result that is read member by member."""

    model_config = ConfigDict(extra="allow")


class TaskCreated(mcp_types.Result):
    """A task's handle in place of a result."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str = "working"
    poll_interval_ms: int | None = None


class TaskParams(mcp_types.RequestParams):
    task_id: str


class TaskGet(mcp_types.Request[TaskParams, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    params: TaskParams
    name_param = "taskId"


class TaskUpdateParams(TaskParams):
    input_responses: dict[str, Any]


class TaskUpdate(mcp_types.Request[TaskUpdateParams, Literal["tasks/update"]]):
    method: Literal["tasks/update"] = "tasks/update"
    params: TaskUpdateParams
    name_param = "taskId"


class TaskCancel(mcp_types.Request[TaskParams, Literal["tasks/cancel"]]):
    method: Literal["tasks/cancel"] = "tasks/cancel"
    params: TaskParams
    name_param = "taskId"


_RESULT: Final[TypeAdapter[mcp_types.CallToolResult]] = TypeAdapter(mcp_types.CallToolResult)


def _is_task(value: Any) -> str:
    tag = (
        value.get("resultType")
        if isinstance(value, Mapping)
        else getattr(value, "result_type", None)
    )
    return "task" if tag == "task" else "core"


CALLED: Final[TypeAdapter[mcp_types.Result]] = TypeAdapter(
    Annotated[
        Annotated[mcp_types.CallToolResult | mcp_types.InputRequiredResult, Tag("core")]
        | Annotated[TaskCreated, Tag("task")],
        Discriminator(_is_task),
    ]
)
"""What a call is answered with. The SDK would make one for each session that may be answered with a task."""


async def dismiss(
    context: ClientRequestContext, params: mcp_types.ElicitRequestParams
) -> mcp_types.ElicitResult | mcp_types.ErrorData:
    """The answer to a session server that asks in the middle of a call: no process waits for a person."""
    return mcp_types.ElicitResult(action="cancel")


def definition(tool: mcp_types.Tool) -> dict[str, Any]:
    """The definition of a tool, of which the digest is made."""
    return definition_of(tool.model_dump(mode="json", by_alias=True, exclude_none=True))


def answer_of(said: mcp_types.Result) -> Answer:
    """The answer that a result of the SDK stands for."""
    match said:
        case mcp_types.CallToolResult():
            content = [
                block.model_dump(mode="json", by_alias=True, exclude_none=True)
                for block in said.content
            ]
            return Result(
                content=content, structured=said.structured_content, is_error=said.is_error
            )
        case mcp_types.InputRequiredResult():
            requests = said.model_dump(mode="json", by_alias=True, exclude_none=True)
            return Asks(requests=requests.get("inputRequests") or {}, state=said.request_state)
        case TaskCreated():
            return Later(handle=said.task_id, poll_ms=said.poll_interval_ms or _POLL_MS)
        case _:
            return error_result("The tool answered in a form that is not known.")


def task_answer(task: Mapping[str, Any], handle: str) -> Answer:
    match task.get("status"):
        case "completed":
            with suppress(ValidationError):
                return answer_of(_RESULT.validate_python(task.get("result"), by_name=False))
            return error_result("The task's result has a form that can not be read.")
        case "failed":
            error = task.get("error")
            said = error.get("message") if isinstance(error, Mapping) else ""
            return error_result(f"The task failed: {said:.1000}")
        case "cancelled":
            return error_result("The task was cancelled.")
        case "input_required":
            requests = task.get("inputRequests")
            return Asks(requests=requests if isinstance(requests, Mapping) else {}, state=None)
        case _:
            poll_ms = task.get("pollIntervalMs")
            is_said = isinstance(poll_ms, int) and poll_ms > 0
            said = task.get("statusMessage")
            return Later(
                handle=handle,
                poll_ms=poll_ms if is_said and poll_ms else _POLL_MS,
                said=said if isinstance(said, str) else "",
            )
