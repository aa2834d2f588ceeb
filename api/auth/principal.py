"""The caller of a request and its permissions: the interface that every kind of credential implements.

Called by `api.routes.route` before every handler. Must not know any route.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from starlette.requests import HTTPConnection

from eventing.errors import Forbidden


class Scope(StrEnum):
    """The permissions that a credential can have."""

    JOBS_READ = "jobs:read"  #: see jobs, responses, files and batches of the tenant
    JOBS_WRITE = "jobs:write"  #: submit them
    JOBS_CANCEL = "jobs:cancel"  #: cancel them
    EVENTS_WRITE = "events:write"  #: send CloudEvents
    APPROVALS = "approvals"  #: see the calls of tools that wait for a person, and decide about them
    RESULTS_WRITE = "results:write"  #: deliver result events: the broker
    METRICS_READ = "metrics:read"  #: read /metrics from elsewhere
    ADMIN = "admin"  #: dead letters, redrive, settings of the tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller: its tenant and its scopes."""

    tenant: str = "default"
    scopes: frozenset[Scope] = frozenset(Scope)
    key_id: str = ""
    requests_per_minute: int = 0
    """The limit of the key itself, beside its tenant's; 0 for none."""
    budget_per_month: float = 0.0
    """The budget of the key itself, beside its tenant's; 0 for none."""
    models: frozenset[str] = frozenset()
    """The models that the key may use; empty for all that its tenant may."""
    is_revocable: bool = False
    """The credential is an API key, which may be revoked while a stream is open."""

    def require(self, scope: Scope) -> None:
        """Raises `Forbidden` when the credential lacks `scope`."""
        if scope not in self.scopes:
            raise Forbidden(f"this credential lacks the scope {scope}")


class Authenticator(Protocol):
    """Finds the caller of a request."""

    async def principal_of(self, connection: HTTPConnection) -> Principal:
        """The caller. Raises `Unauthorized` without a valid credential."""
