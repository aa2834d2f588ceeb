"""The tools of a response, as a chat completion and its steps have them. Pure.

Called by `api.job.response.request`.
"""

from collections.abc import Mapping
from typing import Any, Final

from api.view.items.retrieval import RESULTS
from eventing.errors import BadRequest, InvalidJob
from eventing.job.call.json_schema import check_parameters
from eventing.job.call.rule import check, one_of
from eventing.job.plan import PlannedStep
from eventing.job.tools.asked import MCP, asked_servers
from eventing.store.conversation.messages import Item, item_field
from eventing.store.vector_store.query import MOST_STORES, RETRIEVE_STEP, parse_query

FILE_SEARCH: Final = "file_search"
_SEARCH_FIELDS: Final = ("vector_store_ids", "max_num_results", "filters", "ranking_options")


def tool_options(call: Mapping[str, Any]) -> dict[str, Any]:
    """`tools`, `tool_choice` and `max_tool_calls` of the chat completion; servers stand among its tools as in the call.
    Raises `InvalidJob` naming the field of the call.
    """
    choice = call.get("tool_choice")
    tools = _tools(call["tools"]) if call.get("tools") is not None else []
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(tools, choice)
    choice = _tool_choice(choice, tools)
    if call.get("tools") is None and choice not in (None, "none", "auto"):
        raise InvalidJob("tool_choice must stand beside tools", "tool_choice")
    if not tools:
        return {}
    options = {"tools": tools} | ({} if choice is None else {"tool_choice": choice})
    if call.get("max_tool_calls") is not None and any(tool["type"] == MCP for tool in tools):
        options["max_tool_calls"] = call["max_tool_calls"]
    return options


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise InvalidJob("tools must be a list", "tools")
    asked_servers(tools, "tools")
    found = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        kind = _kind(tool) if isinstance(tool, Mapping) else tool
        if kind == MCP:
            found.append({name: value for name, value in tool.items() if value is not None})
            continue
        if not isinstance(tool, Mapping) or kind != "function":
            message = (
                f"{where} of type {kind!r:.40}: only functions, MCP servers and file_search are served "
                "(TORPOR_DROP_UNSUPPORTED_TOOLS leaves others out)"
            )
            raise InvalidJob(message, f"{where}.type")
        names = ("description", "parameters", "strict")
        function = {name: tool[name] for name in names if tool.get(name) is not None}
        function["name"] = item_field(tool, "name", where)
        if "parameters" in function:
            check_parameters(function["parameters"], f"{where}.parameters")
        found.append({"type": "function", "function": function})
    return found


def _allowed(tools: list[dict[str, Any]], choice: Item) -> tuple[list[dict[str, Any]], Any]:
    """The tools that `choice` allows, and the choice among them. Of a server that is named with a tool, that tool."""
    check("tool_choice.", choice.get("mode", "auto"), one_of("auto", "required"), "mode")
    named = choice.get("tools")
    if not isinstance(named, list) or not named:
        raise InvalidJob("tool_choice.tools must be a non-empty list", "tool_choice.tools")
    functions: list[str] = []
    servers: dict[str, set[str] | None] = {}
    for index, one in enumerate(named):
        where, held = f"tool_choice.tools[{index}]", one if isinstance(one, Mapping) else {}
        if held.get("type") == MCP:
            label, only = _server_choice(held, where, tools)
            before = servers.get(label, set())
            servers[label] = None if only is None or before is None else {*before, only}
            continue
        functions.append(item_field(held, "name", where))
        if functions[-1] not in [_name(tool) for tool in tools]:
            raise InvalidJob(f"{where}.name is none of tools", f"{where}.name")
    allowed = [tool for tool in tools if _name(tool) in functions and tool["type"] != MCP]
    for tool in tools:
        if tool["type"] == MCP and tool["server_label"] in servers:
            allowed.append(_with_only(tool, servers[tool["server_label"]]))
    return allowed, choice.get("mode", "auto")


def _with_only(tool: dict[str, Any], names: set[str] | None) -> dict[str, Any]:
    """The server's entry with these of its tools alone."""
    if names is None:
        return tool
    given = tool.get("allowed_tools")
    before = {"tool_names": given} if isinstance(given, list) else dict(given or {})
    if before.get("tool_names") is not None:
        names = names & set(before["tool_names"])
    return {**tool, "allowed_tools": {**before, "tool_names": sorted(names)}}


def _tool_choice(choice: Any, tools: list[dict[str, Any]]) -> Any:
    if choice is None or choice in ("auto", "none", "required"):
        return choice
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        function = item_field(choice, "name", "tool_choice")
        return {"type": "function", "function": {"name": function}}
    if isinstance(choice, Mapping) and choice.get("type") == MCP:
        label, name = _server_choice(choice, "tool_choice", tools)
        return {"type": MCP, "server_label": label} | ({} if name is None else {"name": name})
    raise InvalidJob(
        "tool_choice must be auto, none, required, a function or a tool of a server", "tool_choice"
    )


def _server_choice(choice: Item, where: str, tools: list[dict[str, Any]]) -> tuple[str, str | None]:
    """The server, and its tool if one is named."""
    label = item_field(choice, "server_label", where)
    if label not in [tool.get("server_label") for tool in tools]:
        raise InvalidJob(f"{where}.server_label is none of tools", f"{where}.server_label")
    return label, None if choice.get("name") is None else item_field(choice, "name", where)


def _name(tool: Mapping[str, Any]) -> Any:
    return (tool.get("function") or {}).get("name")


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
    return isinstance(kind, str) and kind not in ("function", FILE_SEARCH, MCP)


def _is_of_hosted(name: Any) -> bool:
    """Whether an entry of `include` asks for the output of a hosted tool."""
    return isinstance(name, str) and "_call" in name.partition(".")[0] and name != RESULTS
