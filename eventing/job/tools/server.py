"""Tools that an operator configured (`tools.yaml`), and those that a request brings. Pure, once the file is read.

Called by the settings of api, broker and steps, by the renderer of manifests and by the doctor. A tool server is an
MCP server over HTTP or a CloudEvents function; a caller names it by its label, and sees only those of its tenant.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from eventing.errors import BadRequest
from eventing.job.tools.call import EffectClass
from eventing.job.tools.limits import check_limits
from eventing.process.once_loader import OnceLoader
from eventing.process.setting import http_url

LABEL: Final = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?\Z")
SEPARATOR: Final = "__"
"""Between label and tool in the name that the model knows; a label has no underscore."""
URLS: Final = "urls"
"""Stands for all servers that requests name by address; no configured server has that label."""
BUILT_IN: Final = "torpor"
"""The label of tools that are part of the product; no other server has it."""
EVERY_TENANT: Final = "*"
DEFAULT_TIMEOUT_MS: Final = 60_000
_LONGEST_MS: Final = 24 * 3600 * 1000
_MOST_SERVERS: Final = 128
_Word = TypeVar("_Word", bound=StrEnum)


class ServerKind(StrEnum):
    """How a tool server is called."""

    MCP = "mcp"  #: an MCP server over HTTP
    FUNCTION = (
        "function"  #: a CloudEvents function: one tool, `tool.called` in, `tool.returned` out
    )


class Approval(StrEnum):
    """When a call needs a person's decision."""

    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolServer:
    """One server. `effects` are those of single tools, `effect` that of the others."""

    label: str
    kind: ServerKind
    url: str
    tenants: tuple[str, ...] = ()  #: who may use it; `*` for all
    credential: str = ""  #: name of a file in the credentials folder; empty for none
    effect: EffectClass = EffectClass.ONCE
    effects: Mapping[str, EffectClass] = field(default_factory=dict)
    approval: Approval = Approval.ALWAYS
    is_strict: bool = (
        False  #: an engine that can holds arguments to the schema, which not every schema allows
    )
    is_trusted: bool = (
        False  #: its hints may widen an effect class, and its results do not taint a job
    )
    key_argument: str = ""  #: argument into which the idempotency key is put
    timeout_ms: int = DEFAULT_TIMEOUT_MS  #: of one send
    max_attempts: int = 3
    parallelism: int = 8  #: calls at once, of all jobs
    digest: str = (
        ""  #: of the list of its tools, where the operator pins that: another list is not used
    )
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  #: JSON Schema of a function

    def effect_of(self, tool: str) -> EffectClass:
        """The effect class that the operator gave to the tool."""
        return self.effects.get(tool, self.effect)

    def serves(self, tenant: str) -> bool:
        """True where the tenant may use it."""
        return EVERY_TENANT in self.tenants or tenant in self.tenants


ToolServers = Mapping[str, ToolServer]
"""The configured servers by label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolConfig:
    """What `tools.yaml` has. `url_tenants` may name servers by address in their requests. `limits` are those of a
    tenant's jobs, whatever their plan says; `*` are those of tenants that have none of their own.
    """

    servers: ToolServers = field(default_factory=dict)
    url_tenants: tuple[str, ...] = ()
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def queues(self) -> dict[str, int]:
        """The queues of calls, by the `toolserver` that each takes, with the milliseconds of their longest send."""
        longest = {label: each.timeout_ms for label, each in self.servers.items()}
        return longest | ({URLS: DEFAULT_TIMEOUT_MS} if self.url_tenants else {})

    def serving(self, tenant: str) -> dict[str, ToolServer]:
        """The servers of a tenant."""
        return {name: each for name, each in self.servers.items() if each.serves(tenant)}

    def allows_urls(self, tenant: str) -> bool:
        """True where the tenant's requests may name servers by address."""
        return EVERY_TENANT in self.url_tenants or tenant in self.url_tenants

    def limits_of(self, tenant: str) -> Mapping[str, Any]:
        """The limits of the tenant's jobs."""
        return self.limits.get(tenant, self.limits.get(EVERY_TENANT, {}))


NO_TOOLS: Final = ToolConfig()
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
}


def load_tools(path: Path) -> ToolConfig:
    """The tools in a YAML file. Raises `BadRequest` naming the invalid field, or that the file cannot be read."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), OnceLoader)  # noqa: S506  a safe one
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BadRequest(f"cannot read tools from {path}: {reason}", "path") from error
    return parse_tools(document)


def parse_tools(document: Any) -> ToolConfig:
    """The tools in a document `{servers: {LABEL: {kind, url, ...}}, urls: {tenants: [...]}, limits: {TENANT: {...}}}`.
    Raises `BadRequest` naming the field.
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
    return ToolServer(
        label=label,
        kind=kind,
        url=_url(f"{where}.url", given.get("url")),
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
        digest=_digest(f"{where}.digest", given.get("digest", "")),
        description=_text(f"{where}.description", given.get("description", "")),
        parameters=parameters,
    )


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
