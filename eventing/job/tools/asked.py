"""The tool servers that a request asks for: the entries of `type: "mcp"` among its `tools`, as OpenAI's Responses
have them. Pure.

Called by the api and the broker's intake, which refuse an invalid entry at submit, and by the steps `list-tools` and
`tools`, which find the entries in their settings.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from eventing.errors import InvalidJob, NewerRecord
from eventing.job.call.rule import FLAG, OBJECT, TEXT, FieldRule, Schema, check
from eventing.job.tools.server import BUILT_IN, SEPARATOR, Approval
from eventing.process.setting import http_url

MCP: Final = "mcp"
CREDENTIALS: Final = ("authorization", "headers")
"""Fields of an entry that are sealed at submit and stand in no record."""
MOST_SERVERS: Final = 16
_MOST_NAMES: Final = 128
_LABEL: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]|_(?!_)){0,31}(?<!_)\Z")
_LABEL_RULE: Final = FieldRule(
    "1 to 32 letters, digits, hyphens and single underscores, with a letter first",
    lambda v: isinstance(v, str) and bool(_LABEL.match(v)),
    {"type": "string", "pattern": r"^[A-Za-z](?:[A-Za-z0-9-]|_(?!_)){0,31}(?<!_)$"},
)
_REFUSED: Final = ("connector_id", "tunnel_id", "defer_loading")
_FIELDS: Final = {
    *("type", "server_label", "server_url", "server_description"),
    *("allowed_tools", "require_approval", *CREDENTIALS),
}
_FILTER_SCHEMA: Final[Schema] = {
    "type": "object",
    "properties": {
        "tool_names": {"type": "array", "maxItems": _MOST_NAMES, "items": {"type": "string"}},
        "read_only": {"type": "boolean"},
    },
}
MCP_TOOL_SCHEMA: Final[Schema] = {
    "type": "object",
    "required": ["type", "server_label"],
    "description": "an MCP server, or a function of the operator, whose tools Torpor runs",
    "properties": {
        "type": {"const": MCP},
        "server_label": _LABEL_RULE.schema,
        "server_url": {
            "type": "string",
            "description": "where your tenant may name servers; without it, the operator's server of that label",
        },
        "server_description": {"type": "string"},
        "authorization": {"type": "string", "writeOnly": True},
        "headers": {
            "type": "object",
            "writeOnly": True,
            "additionalProperties": {"type": "string"},
        },
        "allowed_tools": {
            "anyOf": [{"type": "array", "items": {"type": "string"}}, _FILTER_SCHEMA]
        },
        "require_approval": {
            "anyOf": [
                {"enum": list(Approval)},
                {
                    "type": "object",
                    "properties": {"always": _FILTER_SCHEMA, "never": _FILTER_SCHEMA},
                },
            ]
        },
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFilter:
    """Some of a server's tools: those of these names, or those that are read-only, or both. An empty one names none."""

    tool_names: tuple[str, ...] | None = None
    read_only: bool | None = None

    def has(self, tool: str, *, is_read_only: bool) -> bool:
        """True for a tool that the filter means."""
        if self.tool_names is None and self.read_only is None:
            return False
        is_named = self.tool_names is None or tool in self.tool_names
        return is_named and self.read_only in (None, is_read_only)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedServer:
    """One server that a request asks for. Without `url` it is the operator's of that label. Credentials are no part
    of it.
    """

    label: str
    url: str = ""
    description: str = ""
    allowed: ToolFilter | None = None  #: None for all
    require_approval: str | Mapping[str, Any] | None = (
        None  #: as the request has it; None where it says nothing
    )

    def allows(self, tool: str, *, is_read_only: bool) -> bool:
        """True for a tool that the model is to know. `is_read_only` is what the server says of it."""
        return self.allowed is None or self.allowed.has(tool, is_read_only=is_read_only)


def asked_servers(tools: Any, where: str = "body.tools") -> tuple[AskedServer, ...]:
    """The servers among `tools`, of which most requests have none. Raises `InvalidJob` naming the field: for an
    invalid entry, one that is not served, a label that is there twice, and a function of the caller's with a name
    that a server's tool could have.
    """
    entries = [
        (f"{where}[{place}]", tool)
        for place, tool in enumerate(tools if isinstance(tools, list) else ())
        if isinstance(tool, Mapping)
    ]
    asked: dict[str, AskedServer] = {}
    for place, tool in entries:
        if tool.get("type") != MCP:
            continue
        server = asked_server(tool, place)
        if server.label in asked:
            raise _wrong(f"{place}.server_label", f"{server.label} is there twice")
        asked[server.label] = server
    if len(asked) > MOST_SERVERS:
        raise _wrong(where, f"may have {MOST_SERVERS} servers, not {len(asked)}")
    if asked:
        check_own_names(tools, tuple(asked), where)
    return tuple(asked.values())


def recorded_servers(tools: Any) -> tuple[AskedServer, ...]:
    """The servers among the `tools` of a recorded job. What was recorded was valid: raises `NewerRecord` for an entry
    that this version would refuse, since a field that it does not know may forbid what it would do.
    """
    try:
        return asked_servers(tools)
    except InvalidJob as error:
        raise NewerRecord(f"{error.field} is of another version") from error


def recorded_urls(tools: Any) -> dict[str, str]:
    """The addresses, by label, of the servers among the `tools` of a recorded job, of whichever version; empty for
    those of the operator.
    """
    return {
        str(tool.get("server_label")): str(tool.get("server_url") or "")
        for tool in (tools if isinstance(tools, list) else ())
        if isinstance(tool, Mapping) and tool.get("type") == MCP
    }


def check_own_names(tools: Any, labels: Sequence[str], where: str = "body.tools") -> None:
    """Raises `InvalidJob` for a function of the caller's with a name that a tool of these servers, or of the product,
    could have.
    """
    labels = (*labels, BUILT_IN)
    for place, tool in enumerate(tools if isinstance(tools, list) else ()):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        held = function if isinstance(function, Mapping) else tool
        name = held.get("name") if isinstance(held, Mapping) else None
        if isinstance(name, str) and name.partition(SEPARATOR)[0] in labels and SEPARATOR in name:
            raise _wrong(
                f"{where}[{place}]",
                f"{name:.64} is a name of the server {name.partition(SEPARATOR)[0]}",
            )


def asked_server(tool: Mapping[str, Any], where: str) -> AskedServer:
    """The server that one entry asks for. Raises `InvalidJob` naming the field."""
    for name in _REFUSED:
        if tool.get(name) not in (None, False):
            raise _wrong(f"{where}.{name}", "is not served here")
    for name in {key for key, value in tool.items() if value is not None} - _FIELDS - {*_REFUSED}:
        raise _wrong(f"{where}.{name:.60}", "is not supported")
    check(f"{where}.", tool.get("server_label"), _LABEL_RULE, "server_label")
    if tool["server_label"] == BUILT_IN:
        raise _wrong(f"{where}.server_label", f"{BUILT_IN} is the label of tools of the product")
    description = tool.get("server_description") or ""
    check(f"{where}.", description, TEXT, "server_description")
    _check_credentials(tool, where)
    approval = tool.get("require_approval")
    _check_approval(approval, f"{where}.require_approval")
    return AskedServer(
        label=tool["server_label"],
        url=_url(tool.get("server_url"), f"{where}.server_url"),
        description=description,
        allowed=_allowed(tool.get("allowed_tools"), f"{where}.allowed_tools"),
        require_approval=approval,
    )


def without_credentials(tools: Any) -> Any:
    """`tools` without what is sealed."""
    if not isinstance(tools, list):
        return tools
    return [
        {name: each for name, each in tool.items() if name not in CREDENTIALS}
        if isinstance(tool, Mapping) and tool.get("type") == MCP
        else tool
        for tool in tools
    ]


def raw_without_credentials(raw: bytes) -> bytes:
    """The data of a refused event without what a caller should have kept secret, wherever it stands and however its
    name is written: it is kept with the refusal.
    """
    if b"\\" not in raw and not any(name.encode() in raw for name in CREDENTIALS):
        return raw
    try:
        line = orjson.loads(raw)
        return orjson.dumps(line) if _take_credentials(line) else raw
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return b"null"


def _take_credentials(line: Any) -> bool:
    """Take credentials out of every server in a parsed text; whether there were some."""
    todo, is_changed = [line], False
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if value.get("type") == MCP:
                is_changed |= any([value.pop(name, None) is not None for name in CREDENTIALS])
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return is_changed


def credentials_in(tools: Any) -> dict[str, dict[str, str]]:
    """The headers that each server is to get, by its label: what `authorization` and `headers` of valid entries say.
    A bare token in `authorization` is a bearer token, as at OpenAI.
    """
    found: dict[str, dict[str, str]] = {}
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, Mapping) or tool.get("type") != MCP:
            continue
        headers = dict(tool.get("headers") or {})
        if token := tool.get("authorization"):
            headers["authorization"] = token if " " in token else f"Bearer {token}"
        if headers:
            found[str(tool.get("server_label"))] = headers
    return found


_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\Z")
_VALUE: Final = re.compile(r"[\x20-\x7e]{1,4096}\Z")
_MOST_HEADERS: Final = 32
_OURS: Final = (
    *("host", "content-length", "content-type", "transfer-encoding", "connection", "te"),
    *("upgrade", "trailer", "accept", "accept-encoding", "expect", "proxy-authorization"),
    *("idempotency-key", "traceparent", "tracestate"),
)
_OUR_PREFIXES: Final = ("mcp-", "ce-")
"""Headers that the client of the protocol sets. Those of CloudEvents say whose call it is: a function believes them."""


def _check_credentials(tool: Mapping[str, Any], where: str) -> None:
    """The messages never hold a value, which is a secret."""
    token, headers = tool.get("authorization"), tool.get("headers")
    if token is not None and not (isinstance(token, str) and _VALUE.match(token)):
        raise _wrong(f"{where}.authorization", "must be a text that a header can carry")
    if headers is None:
        return
    check(f"{where}.", headers, OBJECT, "headers")
    if len(headers) > _MOST_HEADERS:
        raise _wrong(f"{where}.headers", f"may have {_MOST_HEADERS} headers")
    names = [str(name).lower() for name in headers]
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER.match(name) or name.lower() in _OURS:
            raise _wrong(f"{where}.headers", "has a name that can not be sent")
        if name.lower().startswith(_OUR_PREFIXES) or names.count(name.lower()) > 1:
            raise _wrong(f"{where}.headers", "has a name that can not be sent")
        if not isinstance(value, str) or not _VALUE.match(value):
            raise _wrong(f"{where}.headers", "must be texts that headers can carry")
    if token is not None and "authorization" in names:
        raise _wrong(f"{where}.headers", "has an authorization beside authorization")


def _url(value: Any, where: str) -> str:
    if value is None:
        return ""
    try:
        return http_url(value if isinstance(value, str) else "")
    except ValueError as error:
        raise _wrong(where, f"can not be dialled: {error}") from error


def _allowed(value: Any, where: str) -> ToolFilter | None:
    if value is None:
        return None
    return (
        ToolFilter(tool_names=_names(value, where))
        if isinstance(value, list)
        else (_filter(value, where))
    )


def _filter(value: Any, where: str) -> ToolFilter:
    check("", value, OBJECT, where)
    for name in value.keys() - {"tool_names", "read_only"}:
        raise _wrong(f"{where}.{name:.60}", "is not supported")
    names, read_only = value.get("tool_names"), value.get("read_only")
    if read_only is not None:
        check(f"{where}.", read_only, FLAG, "read_only")
    return ToolFilter(
        tool_names=None if names is None else _names(names, f"{where}.tool_names"),
        read_only=read_only,
    )


def _names(value: Any, where: str) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) <= _MOST_NAMES
    if not is_list or not all(isinstance(name, str) and 0 < len(name) <= 128 for name in value):
        raise _wrong(where, f"must be a list of at most {_MOST_NAMES} names of tools")
    return tuple(value)


def _check_approval(value: Any, where: str) -> None:
    if value is None or value in list(Approval):
        return
    if not isinstance(value, Mapping):
        raise _wrong(where, f"must be {', '.join(Approval)} or an object of filters")
    for name in value.keys() - set(Approval):
        raise _wrong(f"{where}.{name:.60}", "is not supported")
    for name, each in value.items():
        if each is not None:
            _filter(each, f"{where}.{name}")


def _wrong(where: str, reason: str) -> InvalidJob:
    return InvalidJob(f"{where} {reason}", where)
