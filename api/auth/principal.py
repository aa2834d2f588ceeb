"""Who calls, and what they may: the seam that keys and bearer tokens plug into.

Called by `api.routes.route` before every handler. Must not know any route.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from starlette.requests import HTTPConnection

from api.http.errors import Forbidden


class Scope(StrEnum):
    """What a credential can be good for."""

    JOBS_READ = "jobs:read"  #: see jobs, responses, files and batches of the tenant
    JOBS_WRITE = "jobs:write"  #: submit them
    JOBS_CANCEL = "jobs:cancel"  #: cancel them
    EVENTS_WRITE = "events:write"  #: send CloudEvents
    RESULTS_WRITE = "results:write"  #: deliver result events: the broker
    METRICS_READ = "metrics:read"  #: read /metrics from elsewhere
    ADMIN = "admin"  #: dead letters, redrive, settings of the tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller: the tenant whose things they see, and what they may do with them."""

    tenant: str = "default"
    scopes: frozenset[Scope] = frozenset(Scope)
    key_id: str = ""
    is_revocable: bool = False
    """An API key stands behind this, which may be revoked while a stream is open."""

    def require(self, scope: Scope) -> None:
        """Raises `Forbidden` when the credential lacks `scope`."""
        if scope not in self.scopes:
            raise Forbidden(f"this credential lacks the scope {scope}")


class Authenticator(Protocol):
    """Tells who sent a request."""

    async def principal_of(self, connection: HTTPConnection) -> Principal:
        """The caller. Raises `Unauthorized` when there is none that we know."""
