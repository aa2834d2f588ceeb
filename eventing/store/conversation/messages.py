"""Items of a response as messages of a chat. Pure.

Called by the api, which makes a prompt of a call, and by the memory step, which makes one of a conversation.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from eventing.errors import InvalidJob
from eventing.job.tools.fence import digest_mark, fenced
from eventing.job.tools.taint import labels_told
from eventing.job.tools.tool_list import model_name
from eventing.store.conversation.conversation import item_text

Item = Mapping[str, Any]
Message = dict[str, Any]

APPROVAL_RESPONSE: Final = "mcp_approval_response"
GIVEN: Final = "Summary of the conversation so far:\n"
"""How a message that stands for a compaction begins."""


def messages_of(items: Iterable[Item], where: str = "input") -> list[Message]:
    """The chat messages for these items. Raises `InvalidJob` naming the item."""
    messages: list[Message] = []
    for index, item in enumerate(items):
        _add(messages, item, f"{where}[{index}]")
    return messages


def messages_in(items: Iterable[Item]) -> list[Message]:
    """The chat messages of a stored conversation. Its answers to approvals were obeyed when they came: what became of
    them stands in the items of the calls.
    """
    told = (item for item in items if item.get("type") != APPROVAL_RESPONSE)
    return messages_of(told, "conversation")


def _add(messages: list[Message], item: Item, where: str) -> None:
    match item.get("type"):
        case "message":
            messages.append(
                {"role": _role(item, where), "content": _content(item.get("content"), where)}
            )
        case "function_call":
            _add_call(messages, item, where)
        case "function_call_output":
            content = _content(item.get("output"), where, name="output")
            call_id = item_field(item, "call_id", where)
            messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        case "compaction":
            messages.append({"role": "assistant", "content": summary_of(item, where)})
        case "mcp_call":
            _add_server_call(messages, item, where)
        case "mcp_approval_response":
            raise InvalidJob(
                f"{where}: an approval is answered in the input of a response: previous_response_id or conversation",
                where,
            )
        case "reasoning" | "file_search_call" | "mcp_list_tools" | "mcp_approval_request":
            pass  # neither earlier reasoning nor what was found for an earlier question is sent to the model
        case other:
            raise InvalidJob(f"{where}.type {other!r:.40} is not supported", f"{where}.type")


def _add_call(messages: list[Message], item: Item, where: str) -> None:
    """A function call belongs to the assistant message before it, as in chat."""
    function = {
        "name": item_field(item, "name", where),
        "arguments": item_field(item, "arguments", where, may_be_empty=True),
    }
    call = {"id": item_field(item, "call_id", where), "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _add_server_call(messages: list[Message], item: Item, where: str) -> None:
    """A call that was run here, with its result."""
    label = item_field(item, "server_label", where)
    call = {
        "name": model_name(label, item_field(item, "name", where)),
        "arguments": item_field(item, "arguments", where, may_be_empty=True),
        "call_id": item_field(item, "id", where),
    }
    _add_call(messages, call, where)
    said = item.get("output") if item.get("output") is not None else item.get("error")
    text = said if isinstance(said, str) else orjson.dumps(said).decode()
    content = fenced(text, digest_mark(text))
    messages.append({"role": "tool", "tool_call_id": call["call_id"], "content": content})


def labels_of(items: Iterable[Item]) -> set[str]:
    """The tool servers whose results stand among items, or did before these were made shorter."""
    found: set[str] = set()
    for item in items:
        match item.get("type"):
            case "mcp_call":
                found.add(str(item.get("server_label")))
            case "compaction":
                found |= labels_told(summary_of(item, "conversation"))
            case "message":
                found |= labels_told(item_text(item))
    return found


def _role(item: Item, where: str) -> str:
    role = item.get("role")
    if role == "developer":
        return "system"  # `developer` is OpenAI's newer name; chat templates know `system`
    if role not in ("user", "assistant", "system"):
        raise InvalidJob(f"{where}.role must be user, assistant, system or developer", where)
    return str(role)


def _content(value: Any, where: str, *, name: str = "content") -> Any:
    field = f"{where}.{name}"
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidJob(f"{field} must be text or a list of parts", field)
    parts = [_part(part, f"{field}[{index}]") for index, part in enumerate(value)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    match kind:
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": item_field(part, "text", where, may_be_empty=True)}
        case "refusal":
            return {"type": "text", "text": item_field(part, "refusal", where, may_be_empty=True)}
        case "input_image":
            url = {"url": item_field(part, "image_url", where)}
            return {"type": "image_url", "image_url": url}
        case _:
            raise InvalidJob(f"{where}.type {kind!r:.40} is not supported", f"{where}.type")


def item_field(item: Item, name: str, where: str, *, may_be_empty: bool = False) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InvalidJob(f"{where}.{name} must be text", f"{where}.{name}")
    return value


def compaction_item(item_id: str, text: str) -> dict[str, Any]:
    """An item that stands for what was said before it."""
    sealed = base64.urlsafe_b64encode(orjson.dumps({"summary": text})).decode()
    return {"id": item_id, "type": "compaction", "encrypted_content": sealed}


def summary_of(item: Mapping[str, Any], where: str) -> str:
    """The summary in a compaction item. Raises `InvalidJob` for an item that this api did not make."""
    field = f"{where}.encrypted_content"
    try:
        summary = orjson.loads(base64.urlsafe_b64decode(item["encrypted_content"]))["summary"]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise InvalidJob(f"{field} is none that /v1/responses/compact gave", field) from error
    if not isinstance(summary, str):
        raise InvalidJob(f"{field} is none that /v1/responses/compact gave", field)
    return GIVEN + summary
