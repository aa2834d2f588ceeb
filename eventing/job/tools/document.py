"""`tools.yaml`: the tool servers that an operator configures. Pure, once the file is read.

Called by the settings of api, broker and steps, by the renderer of manifests and by the doctor.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from eventing.errors import BadRequest
from eventing.job.call.json_schema import check_parameters
from eventing.job.tools.call import EffectClass
from eventing.job.tools.limits import check_limits
from eventing.job.tools.server import (
    BUILT_IN,
    DEFAULT_COLD_START_S,
    DEFAULT_TIMEOUT_MS,
    EVERY_TENANT,
    LABEL,
    NO_TOOLS,
    URLS,
    Approval,
    Pin,
    ServerKind,
    ToolConfig,
    ToolDeployment,
    ToolServer,
)
from eventing.process.once_loader import OnceLoader
from eventing.process.setting import http_url

_LONGEST_MS: Final = 24 * 3600 * 1000
_LONGEST_WAKE_MS: Final = 3600 * 1000
_MOST_SERVERS: Final = 128
_Word = TypeVar("_Word", bound=StrEnum)
_FIELDS: Final = {
    *("kind", "url", "tenants", "credential", "effect", "effects", "approval", "strict", "trusted"),
    *(
        "key_argument",
        "digest",
        "timeout_ms",
        "max_attempts",
        "parallelism",
        "description",
        "parameters",
    ),
    *("tools", "deploy", "wake_ms", "pin"),
}
_TAKEN_PORTS: Final = (8082, 8083)  # of the pump and the caller beside it
_DEPLOYED: Final = {
    *("image", "port", "path", "max_replicas", "cpu", "memory", "gpus", "cold_start_seconds"),
    *("env", "secret"),
}
_CPU: Final = re.compile(r"[1-9][0-9]*m?\Z")
_MEMORY: Final = re.compile(r"[1-9][0-9]*(Mi|Gi)\Z")
_PINNED: Final = re.compile(r"\S+(:[^/:\s]+|@sha256:[0-9a-f]{64})\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SECRET: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")


def load_tools(path: Path) -> ToolConfig:
    """The tools in a YAML file of a process, to which every server has an address. Raises `BadRequest` naming the
    invalid field, or that the file cannot be read.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), OnceLoader)  # noqa: S506  a safe one
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BadRequest(f"cannot read tools from {path}: {reason}", "path") from error
    config = parse_tools(document)
    for label, server in config.servers.items():
        if not server.url:
            raise tools_error(
                f"servers.{label}.url", "must be set here: only `torpor render` deploys images"
            )
    return config


def parse_tools(document: Any) -> ToolConfig:
    """The tools in a document `{servers: {LABEL: {kind, url, ...}}, urls: {tenants: [...]}, limits: {TENANT: {...}}}`.
    A server with `deploy` may be without an address. Raises `BadRequest` naming the field.
    """
    if document is None:
        return NO_TOOLS
    top = _object("", document, {"servers", "urls", "limits"})
    servers = _object("servers", top.get("servers", {}), None)
    if len(servers) > _MOST_SERVERS:
        raise tools_error("servers", f"may have {_MOST_SERVERS}, not {len(servers)}")
    urls = _object("urls", top.get("urls", {}), {"tenants"})
    return ToolConfig(
        servers={label: _server(label, each) for label, each in servers.items()},
        url_tenants=_texts("urls.tenants", urls.get("tenants", ())),
        limits=_tenant_limits(_object("limits", top.get("limits", {}), None)),
    )


def _tenant_limits(given: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    try:
        return {str(name): check_limits(each, f"limits.{name}") for name, each in given.items()}
    except BadRequest as error:
        raise tools_error(error.field or "limits", error.message) from error


def _server(label: Any, entry: Any) -> ToolServer:
    where = f"servers.{label}"
    if not isinstance(label, str) or not LABEL.match(label):
        raise tools_error(where, "must be a label of a-z, 0-9 and hyphens, at most 32")
    if label == URLS:
        raise tools_error(where, "is the label of servers that requests name by address")
    if label == BUILT_IN:
        raise tools_error(where, "is the label of the tools that are part of the product")
    given = _object(where, entry, _FIELDS)
    kind = _word(f"{where}.kind", given.get("kind", ServerKind.MCP), ServerKind)
    effects = _object(f"{where}.effects", given.get("effects", {}), None)
    is_function = kind is ServerKind.FUNCTION
    parameters = _object(f"{where}.parameters", given.get("parameters", {}), None)
    if parameters and not is_function:
        raise tools_error(f"{where}.parameters", "an MCP server lists its own tools")
    _check_schema(f"{where}.parameters", parameters)
    tools, deployment = _tools(where, given.get("tools", ()), kind), _deployment(where, given, kind)
    if deployment and not is_function and not tools:
        raise tools_error(f"{where}.tools", "must have its tools: at zero it can not be asked")
    url = "" if deployment and "url" not in given else _url(f"{where}.url", given.get("url"))
    return ToolServer(
        label=label,
        kind=kind,
        url=url,
        tenants=_texts(f"{where}.tenants", given.get("tenants", [EVERY_TENANT])),
        credential=_credential(where, given.get("credential", "")),
        effect=_word(f"{where}.effect", given.get("effect", EffectClass.ONCE), EffectClass),
        effects={
            str(name): _word(f"{where}.effects.{name}", each, EffectClass)
            for name, each in effects.items()
        },
        approval=_word(f"{where}.approval", given.get("approval", Approval.ALWAYS), Approval),
        is_strict=_flag(f"{where}.strict", given.get("strict", False)),
        is_trusted=_flag(f"{where}.trusted", given.get("trusted", False)),
        key_argument=_text(f"{where}.key_argument", given.get("key_argument", "")),
        timeout_ms=_whole(
            f"{where}.timeout_ms", given.get("timeout_ms", DEFAULT_TIMEOUT_MS), _LONGEST_MS
        ),
        max_attempts=_whole(f"{where}.max_attempts", given.get("max_attempts", 3), 20),
        parallelism=_whole(f"{where}.parallelism", given.get("parallelism", 8), 1000),
        wake_ms=_whole(f"{where}.wake_ms", given["wake_ms"], _LONGEST_WAKE_MS)
        if "wake_ms" in given
        else 0,
        digest=_digest(f"{where}.digest", given.get("digest", "")),
        pin=_word(f"{where}.pin", given["pin"], Pin) if "pin" in given else None,
        description=_text(f"{where}.description", given.get("description", "")),
        parameters=parameters,
        tools=tools,
        deployment=deployment,
    )


def _tools(where: str, value: Any, kind: ServerKind) -> tuple[Mapping[str, Any], ...]:
    """The definitions of an MCP server's tools, as its `tools/list` gives them."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise tools_error(f"{where}.tools", "must be a list of definitions")
    if value and kind is ServerKind.FUNCTION:
        raise tools_error(f"{where}.tools", "a function is one tool: description and parameters")
    for number, each in enumerate(value):
        name = _object(f"{where}.tools.{number}", each, None).get("name")
        if not isinstance(name, str) or not name:
            raise tools_error(f"{where}.tools.{number}.name", "must be the tool's name")
        _check_schema(f"{where}.tools.{number}.inputSchema", each.get("inputSchema", {}))
    return tuple(value)


def _check_schema(where: str, schema: Any) -> None:
    try:
        check_parameters(schema, where)
    except BadRequest as error:
        raise tools_error(error.field, error.message.removeprefix(f"{error.field} ")) from error


def _deployment(where: str, server: Mapping[str, Any], kind: ServerKind) -> ToolDeployment | None:
    if "deploy" not in server:
        return None
    where = f"{where}.deploy"
    given = _object(where, server["deploy"], _DEPLOYED)
    env = _object(f"{where}.env", given.get("env", {}), None)
    for name, value in env.items():
        _matching(f"{where}.env", name, _VARIABLE, "must have names of variables")
        _text(f"{where}.env.{name}", value)
    path = _text(f"{where}.path", given.get("path", "/" if kind is ServerKind.FUNCTION else "/mcp"))
    if not path.startswith("/"):
        raise tools_error(f"{where}.path", "must begin with /")
    port = _whole(f"{where}.port", given.get("port", 8080), 65_535)
    if port in _TAKEN_PORTS:
        raise tools_error(f"{where}.port", f"must not be {port}: its pod uses that itself")
    quantity = "must be whole cores, or thousandths as 250m"
    return ToolDeployment(
        image=_matching(
            f"{where}.image", given.get("image"), _PINNED, "must be an image with a tag or digest"
        ),
        port=port,
        path=path,
        max_replicas=_whole(f"{where}.max_replicas", given.get("max_replicas", 1), 1000),
        cpu=_matching(f"{where}.cpu", str(given.get("cpu", "250m")), _CPU, quantity),
        memory=_matching(
            f"{where}.memory", given.get("memory", "512Mi"), _MEMORY, "must be as 512Mi or 2Gi"
        ),
        gpus=_whole(f"{where}.gpus", given["gpus"], 16) if "gpus" in given else 0,
        cold_start_s=_whole(
            f"{where}.cold_start_seconds",
            given.get("cold_start_seconds", DEFAULT_COLD_START_S),
            3600,
        ),
        env=env,
        secret=_matching(f"{where}.secret", given["secret"], _SECRET, "must be a Secret's name")
        if "secret" in given
        else "",
    )


def _matching(where: str, value: Any, pattern: re.Pattern[str], must: str) -> str:
    if not isinstance(value, str) or not pattern.match(value):
        raise tools_error(where, must)
    return value


def _object(where: str, value: Any, known: set[str] | None) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise tools_error(where, "must be an object")
    for name in value.keys() - (known if known is not None else value.keys()):
        raise tools_error(f"{where}.{name}".lstrip("."), "is not supported")
    return dict(value)


def _word(where: str, value: Any, kind: type[_Word]) -> _Word:
    if value not in list(kind):
        raise tools_error(where, f"must be one of {', '.join(kind)}")
    return kind(value)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise tools_error(where, "must be a text")
    return value


def _digest(where: str, value: Any) -> str:
    text = _text(where, value)
    if text and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise tools_error(where, "must be a digest of 64 hexadecimal digits")
    return text


def _credential(where: str, value: Any) -> str:
    name = _text(f"{where}.credential", value)
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise tools_error(f"{where}.credential", "must be the name of a file, without a folder")
    return name


def _texts(where: str, value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(each, str) and each for each in value):
        raise tools_error(where, "must be a list of texts")
    return tuple(value)


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise tools_error(where, "must be true or false")
    return value


def _whole(where: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise tools_error(where, f"must be a whole number from 1 to {most}")
    return value


def _url(where: str, value: Any) -> str:
    try:
        return http_url(_text(where, value))
    except ValueError as error:
        raise tools_error(where, str(error)) from error


def tools_error(field_name: str, reason: str) -> BadRequest:
    """An error in a tools file."""
    where = f"tools: {field_name}" if field_name else "tools"
    return BadRequest(f"{where} {reason}", field_name)
