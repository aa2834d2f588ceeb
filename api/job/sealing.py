"""Credentials that a request brings for its tool servers: taken out of it and sealed, before anything of it is kept.

Called by `api.job.submission` once the job's id is known. Pure, but for the nonces.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from api.webhook.webhook import BATCH
from eventing.errors import InvalidJob
from eventing.job.job import JobRequest
from eventing.job.store import NewJob
from eventing.job.tools.asked import (
    AskedServer,
    asked_servers,
    credentials_in,
    without_credentials,
)
from eventing.job.tools.sealed import Binding, SealingKeys, origin_of, seal
from eventing.job.tools.server import NO_TOOLS, ToolConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """What sealing needs: the operator's servers, and the keys of this installation, if it has any."""

    config: ToolConfig = NO_TOOLS
    keys: SealingKeys | None = field(default=None, repr=False)


def with_sealed(new: NewJob, sealing: Sealing) -> NewJob:
    """The job without the credentials in its request, which are sealed for its tenant, its id and each server's
    origin. Raises `InvalidJob` where they can not be sealed, or are no affair of the caller's. A batch's line keeps
    them, and is refused: its file has them already.
    """
    tools = new.request.body.get("tools")
    if not isinstance(tools, list) or BATCH in new.metadata:
        return new
    servers = {each.label: each for each in asked_servers(tools)}
    found = credentials_in(tools)
    if not found:
        return _bare(new, tools) if servers else new
    if sealing.keys is None:
        raise InvalidJob(
            "body.tools: this installation has no key to seal credentials with (TORPOR_TOOL_SEAL_KEY_FILE)",
            "body.tools",
        )
    sealed = {
        label: seal(
            sealing.keys,
            Binding(new.tenant, new.id, origin_of(_url(servers[label], sealing.config))),
            headers,
        )
        for label, headers in found.items()
    }
    return replace(_bare(new, tools), sealed=orjson.dumps(sealed).decode())


def _bare(new: NewJob, tools: list[Any]) -> NewJob:
    body: Mapping[str, Any] = {**new.request.body, "tools": without_credentials(tools)}
    request: JobRequest = replace(new.request, body=body)
    return replace(new, request=request)


def _url(server: AskedServer, config: ToolConfig) -> str:
    """Where its calls go. Raises `InvalidJob` for an operator's server that has a credential of its own."""
    configured = config.servers.get(server.label)
    if server.url or configured is None:
        return server.url  # a label that is none is refused by name at the submit
    if configured.credential:
        raise InvalidJob(
            f"body.tools: {server.label} has a credential of the operator's; yours is not sent",
            "body.tools",
        )
    return configured.url
