"""The tools of a response, as a chat completion and its steps have them. Pure.

Called by `api.job.response.request`.
"""

from collections.abc import Mapping
from typing import Any, Final

from api.view.items.retrieval import RESULTS
from eventing.errors import BadRequest, InvalidJob
from eventing.job.call.rule import check, one_of
from eventing.job.plan import PlannedStep
from eventing.store.conversation.messages import Item, item_field
from eventing.store.vector_store.query import MOST_STORES, RETRIEVE_STEP, parse_query

FILE_SEARCH: Final = "file_search"
_SEARCH_FIELDS: Final = ("vector_store_ids", "max_num_results", "filters", "ranking_options")


def tool_options(call: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` and `tool_choice` of the chat completion. Raises `InvalidJob` naming the field of the call."""
    choice = call.get("tool_choice")
    tools = _tools(call["tools"]) if call.get("tools") is not None else []
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(tools, choice)
    choice = _tool_choice(choice)
    if call.get("tools") is None and choice not in (None, "none", "auto"):
        raise InvalidJob("tool_choice must stand beside tools", "tool_choice")
    if not tools:
        return {}
    return {"tools": tools} | ({} if choice is None else {"tool_choice": choice})


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise InvalidJob("tools must be a list", "tools")
    found = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, Mapping) else tool
            message = (
                f"{where} of type {kind!r:.40}: only functions are served "
                "(TORPOR_DROP_UNSUPPORTED_TOOLS leaves others out)"
            )
            raise InvalidJob(message, f"{where}.type")
        names = ("description", "parameters", "strict")
        function = {name: tool[name] for name in names if tool.get(name) is not None}
        function["name"] = item_field(tool, "name", where)
        found.append({"type": "function", "function": function})
    return found


def _allowed(tools: list[dict[str, Any]], choice: Item) -> tuple[list[dict[str, Any]], Any]:
    """The tools that `choice` allows, and the choice among them."""
    check("tool_choice.", choice.get("mode", "auto"), one_of("auto", "required"), "mode")
    named = choice.get("tools")
    if not isinstance(named, list) or not named:
        raise InvalidJob("tool_choice.tools must be a non-empty list", "tool_choice.tools")
    known = {tool["function"]["name"]: tool for tool in tools}
    allowed = []
    for index, one in enumerate(named):
        where = f"tool_choice.tools[{index}]"
        name = item_field(one if isinstance(one, Mapping) else {}, "name", where)
        if name not in known:
            raise InvalidJob(f"{where}.name is none of tools", f"{where}.name")
        allowed.append(known[name])
    return allowed, choice.get("mode", "auto")


def _tool_choice(choice: Any) -> Any:
    if choice is None or choice in ("auto", "none", "required"):
        return choice
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        name = item_field(choice, "name", "tool_choice")
        return {"type": "function", "function": {"name": name}}
    raise InvalidJob("tool_choice must be auto, none, required or a function", "tool_choice")


def without_search(call: Mapping[str, Any]) -> tuple[Mapping[str, Any], PlannedStep | None]:
    """The call without its `file_search` tool, and the step that this tool becomes: what it finds is in the prompt
    before the model begins.
    """
    tools = call.get("tools")
    if not isinstance(tools, list):
        return call, None
    found = [(n, tool) for n, tool in enumerate(tools) if _kind(tool) == FILE_SEARCH]
    if not found:
        return call, None
    place, tool = found[0]
    where = f"tools[{place}]"
    if len(found) > 1:
        raise InvalidJob("there may be one file_search", f"tools[{found[1][0]}]")
    ids = tool.get("vector_store_ids")
    if not isinstance(ids, list) or not 1 <= len(ids) <= MOST_STORES:
        message = f"{where}.vector_store_ids must name 1 to {MOST_STORES} vector stores"
        raise InvalidJob(message, f"{where}.vector_store_ids")
    settings = {name: tool[name] for name in _SEARCH_FIELDS if tool.get(name) is not None}
    try:
        parse_query("x", settings, f"{where}.")
    except BadRequest as error:
        raise InvalidJob(error.message, error.field) from error
    kept = {**call, "tools": [one for one in tools if one is not tool]}
    if _kind(call.get("tool_choice")) == FILE_SEARCH:
        kept["tool_choice"] = None
    return kept, PlannedStep(name=RETRIEVE_STEP, settings=settings)


def without_hosted_tools(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The call with the tools alone that its caller runs."""
    kept: dict[str, Any] = {}
    if isinstance(tools := call.get("tools"), list):
        kept["tools"] = [one for one in tools if not _is_hosted(one)]
    if isinstance(include := call.get("include"), list):
        kept["include"] = [one for one in include if not _is_of_hosted(one)]
    return {**call, **kept}


def _kind(tool: Any) -> Any:
    return tool.get("type") if isinstance(tool, Mapping) else None


def _is_hosted(tool: Any) -> bool:
    kind = _kind(tool)
    return isinstance(kind, str) and kind not in ("function", FILE_SEARCH)


def _is_of_hosted(name: Any) -> bool:
    """Whether a word of `include` asks for what a hosted tool's call gave."""
    return isinstance(name, str) and "_call" in name.partition(".")[0] and name != RESULTS
