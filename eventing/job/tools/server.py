"""Tool servers that an operator configured. Pure; `document` reads them.

A tool server is an MCP server over HTTP or a CloudEvents function; a caller names it by its label, and sees only those
of its tenant.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from eventing.job.tools.call import EffectClass

LABEL: Final = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?\Z")
SEPARATOR: Final = "__"
"""Between label and tool in the name that the model knows; a label has no underscore."""
URLS: Final = "urls"
"""Stands for all servers that requests name by address; no configured server has that label."""
BUILT_IN: Final = "torpor"
"""The label of tools that are part of the product; no other server has it."""
EVERY_TENANT: Final = "*"
DEFAULT_TIMEOUT_MS: Final = 60_000
DEFAULT_COLD_START_S: Final = 60


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


class Pin(StrEnum):
    """How long the list of a server's tools must stay what it was."""

    JOB = "job"  #: for a job: a tool that changed since it was listed is not called
    TENANT = (
        "tenant"  #: that, and from one job of a tenant to the next, until a person accepts another
    )
    STRICT = "strict"  #: and no tool is called by a job whose list has changed in any way


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDeployment:
    """What the renderer of manifests deploys for a server: the operator's container, from zero."""

    image: str
    port: int = 8080  #: on which it listens
    path: str = "/"  #: under which it takes calls
    max_replicas: int = 1
    cpu: str = "250m"
    memory: str = "512Mi"
    gpus: int = 0
    cold_start_s: int = DEFAULT_COLD_START_S  #: how long it may take to listen
    env: Mapping[str, str] = field(default_factory=dict)
    secret: str = ""  #: name of a Secret whose keys are variables of the container


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
    parallelism: int = 8  #: calls at once, of all jobs; of one replica, where it is deployed
    wake_ms: int = 0  #: how long one at zero may take to answer at all; 0 for one that is up
    digest: str = (
        ""  #: of the list of its tools, where the operator pins that: another list is not used
    )
    pin: Pin | None = None  #: None for the default, which is of how far it is trusted
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  #: JSON Schema of a function
    tools: tuple[
        Mapping[str, Any], ...
    ] = ()  #: definitions of an MCP server that is not asked for them
    deployment: ToolDeployment | None = None

    @property
    def longest_ms(self) -> int:
        """The longest delivery of a call: the tool wakes, and then runs into the limit of a send."""
        cold_start_s = self.deployment.cold_start_s if self.deployment else 0
        return self.timeout_ms + max(self.wake_ms, cold_start_s * 1000)

    def effect_of(self, tool: str) -> EffectClass:
        """The effect class that the operator gave to the tool."""
        return self.effects.get(tool, self.effect)

    @property
    def pinned_for(self) -> Pin:
        """The pin; where none is said, that of a tenant for a server that is not trusted."""
        return self.pin or (Pin.JOB if self.is_trusted else Pin.TENANT)

    def serves(self, tenant: str) -> bool:
        """True where the tenant may use it."""
        return EVERY_TENANT in self.tenants or tenant in self.tenants


ToolServers = Mapping[str, ToolServer]
"""The configured servers by label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolConfig:
    """The content of `tools.yaml`. `url_tenants` may name servers by address in their requests. `limits` are those of a
    tenant's jobs, whatever their plan says; `*` are those of tenants that have none of their own.
    """

    servers: ToolServers = field(default_factory=dict)
    url_tenants: tuple[str, ...] = ()
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def queues(self) -> dict[str, int]:
        """The queues of calls, by the `toolserver` that each takes, with the milliseconds of their longest delivery."""
        longest = {label: each.longest_ms for label, each in self.servers.items()}
        return longest | ({URLS: DEFAULT_TIMEOUT_MS} if self.url_tenants else {})

    @property
    def deployed(self) -> dict[str, ToolDeployment]:
        """The servers that the renderer deploys, by label."""
        return {name: each.deployment for name, each in self.servers.items() if each.deployment}

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
