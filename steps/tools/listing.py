"""The lists of a job's tool servers: what the model is told, and the pins. Pure.

Called by the step `list-tools` with what the servers said. Names get the server's label, descriptions lose what a
person would not see, and the definitions are bounded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from eventing.errors import BadRequest
from eventing.job.tools.asked import AskedServer
from eventing.job.tools.call import EffectClass
from eventing.job.tools.fence import plain_text, without_special_tokens
from eventing.job.tools.limits import ToolLimits
from eventing.job.tools.request import TOOL_LIMITS
from eventing.job.tools.server import Approval, ToolServer
from eventing.job.tools.tool_list import (
    LONGEST_NAME,
    PinnedServer,
    PinnedTool,
    definition_digest,
    list_digest,
    model_name,
)
from steps.tools.built_in import READ_TOOL
from steps.tools.metrics import TOOL_CHANGED

_DESCRIPTION_CHARS: Final = 4096
_LONGEST_TOOL: Final = 128
"""Characters of a name, by MCP's specification; what has more is left out."""


def every_tool(
    label: str, definitions: Sequence[Mapping[str, Any]], server: ToolServer | None
) -> list[PinnedTool]:
    """The tools of a server's list. `server` is None for one that the request names by address: nothing is known of
    it, and nothing it says is trusted.
    """
    trusted = bool(server and server.is_trusted)
    return [_tool(label, each, server, is_trusted=trusted) for each in definitions]


def pinned_server(
    label: str,
    every: Sequence[PinnedTool],
    server: ToolServer | None,
    asked: AskedServer | None,
    *,
    origin: str,
    mark: str,
) -> PinnedServer:
    """A server with those of its tools that the request wants."""
    digest = list_digest(every)
    if server is not None and server.digest not in ("", digest):
        words = f"its list has the digest {digest}, and tools.yaml has another"
        error = f"{TOOL_CHANGED}: {words}"
        return PinnedServer(server_label=label, digest=digest, error=error, mark=mark)
    wanted = [
        tool
        for tool in every
        if 0 < len(tool.tool) <= _LONGEST_TOOL
        and tool.tool.isprintable()  # else a person is shown another name than the one that is called
        and (
            asked is None
            or asked.allows(tool.tool, is_read_only=tool.annotations.get("readOnlyHint") is True)
        )
    ]
    return PinnedServer(
        server_label=label,
        digest=digest,
        trusted=bool(server and server.is_trusted),
        approval=server.approval if server else Approval.NEVER,
        origin=origin,
        tools=_distinct(wanted),
        mark=mark,
    )


def _tool(
    label: str, definition: Mapping[str, Any], server: ToolServer | None, *, is_trusted: bool
) -> PinnedTool:
    tool = str(definition["name"])
    annotations = definition.get("annotations")
    hints = annotations if isinstance(annotations, Mapping) else {}
    description = plain_text(str(definition.get("description") or ""))
    return PinnedTool(
        name=model_name(label, tool),
        tool=tool,
        description=without_special_tokens(description)[:_DESCRIPTION_CHARS],
        input_schema=_plain(definition.get("inputSchema") or {"type": "object"}),
        digest=definition_digest(definition),
        effect=effect_of(server, tool, hints, is_trusted=is_trusted),
        annotations={name: hints[name] for name in _HINTS if isinstance(hints.get(name), bool)},
        strict=server is not None and server.is_strict,
    )


_HINTS: Final = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")


def _distinct(tools: Sequence[PinnedTool]) -> tuple[PinnedTool, ...]:
    """Tools in the order of their names, those whose names fell together told apart by a digest: the order of a list
    that is asked for again is the same, and with it the prompt.
    """
    names = [tool.name for tool in tools]
    own = [
        tool
        if names.count(tool.name) == 1
        else replace(
            tool,
            name=f"{tool.name[: LONGEST_NAME - 9]}_{definition_digest({'name': tool.tool})[:8]}",
        )
        for tool in tools
    ]
    return tuple(sorted(own, key=lambda tool: tool.name))


def _plain(value: Any, depth: int = 0) -> Any:
    """A schema whose texts lose what is not seen; what is nested deeper than a person would write is left out."""
    if depth > _DEEPEST:
        return {}
    if isinstance(value, str):
        return without_special_tokens(plain_text(value)) if value else value
    if isinstance(value, Mapping):
        return {_plain(str(name)): _plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, depth + 1) for each in value]
    return value


_DEEPEST: Final = 32


def check_bounds(servers: Iterable[PinnedServer], limits: ToolLimits) -> None:
    """Raises `BadRequest` for more tools, or longer definitions, than a prompt should hold."""
    tools = [tool for server in servers for tool in server.tools]
    if len(tools) > limits.max_tools:
        raise BadRequest(
            f"the servers have {len(tools)} tools, and a job may have {limits.max_tools}: name fewer in allowed_tools",
            "body.tools",
        )
    size = len(orjson.dumps([tool.definition() for tool in tools]))
    if size > limits.definition_bytes:
        raise BadRequest(
            f"the definitions of the tools are {size} bytes, and may be {limits.definition_bytes}: "
            "name fewer in allowed_tools",
            "body.tools",
        )


def body_with_tools(body: Mapping[str, Any], servers: Sequence[PinnedServer]) -> dict[str, Any]:
    """The chat body for the predictor: functions alone, and a choice that it knows. Raises `BadRequest` for a function
    of the caller's that has the name of a server's tool, and for a choice that names none.
    """
    own = [each for each in body.get("tools") or () if each.get("type") != "mcp"]
    listed = [tool for server in servers for tool in server.tools]
    names = {tool.name for tool in (*listed, READ_TOOL)}
    for each in own:
        name = (each.get("function") or {}).get("name")
        if name in names:
            raise BadRequest(f"{name:.64} is the name of a server's tool as well", "body.tools")
    definitions = [tool.definition() for tool in (*listed, *([READ_TOOL] if listed else ()))]
    made = {name: value for name, value in body.items() if name not in _OURS}
    made["tools"] = [*own, *definitions]
    if not made["tools"]:
        del made["tools"]
        made.pop("tool_choice", None)
    elif "tool_choice" in made:
        made["tool_choice"] = _choice(made["tool_choice"], servers)
    return made


_OURS: Final = ("max_tool_calls", TOOL_LIMITS)


def _choice(choice: Any, servers: Sequence[PinnedServer]) -> Any:
    """The choice in the words of chat completions. One that names a server, and no tool of it, forces some call."""
    if not isinstance(choice, Mapping) or choice.get("type") != "mcp":
        return choice
    label, tool = choice.get("server_label"), choice.get("name")
    if tool is None:
        return "required"
    found = [
        each.name
        for server in servers
        if server.server_label == label
        for each in server.tools
        if each.tool == tool
    ]
    if not found:
        raise BadRequest(f"{label!r:.40} has no tool {tool!r:.80}", "body.tool_choice")
    return {"type": "function", "function": {"name": found[0]}}


def function_definition(server: ToolServer) -> dict[str, Any]:
    """The one tool of a CloudEvents function, as its operator described it."""
    return {
        "name": server.label,
        "description": server.description,
        "inputSchema": dict(server.parameters) or {"type": "object"},
    }


def effect_of(
    server: ToolServer | None, tool: str, hints: Mapping[str, Any], *, is_trusted: bool
) -> EffectClass:
    """The effect class of a tool: the operator's; hints of a trusted server take the place of its default, and hints of
    any server make it stricter.
    """
    effect = server.effect_of(tool) if server else EffectClass.ONCE
    is_named = server is not None and tool in server.effects
    read_only, destructive = hints.get("readOnlyHint"), hints.get("destructiveHint")
    if is_trusted and not is_named and effect is EffectClass.ONCE:
        if read_only is True:
            effect = EffectClass.READ
        elif hints.get("idempotentHint") is True:
            effect = EffectClass.REPEATABLE
    if effect is EffectClass.READ and (read_only is False or destructive is True):
        return EffectClass.ONCE
    if effect is EffectClass.REPEATABLE and hints.get("idempotentHint") is False:
        return EffectClass.ONCE
    return effect
