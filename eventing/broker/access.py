"""Access control of the broker's ingress: which caller may send which event.

Called by the ingress. Any caller may request a job. Events that end jobs, events whose source is one of ours, and
events that name a tenant need the ingress token, which the api has.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from eventing.broker.settings import BrokerSettings
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED
from eventing.errors import Forbidden, Unauthorized
from eventing.job.job import DEFAULT_TENANT, OUR_SOURCES
from eventing.process.address import is_loopback
from eventing.process.page import page_refusal

_OUR_TYPES: Final = "dev.torpor."


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressAccess:
    """The access rules of one ingress. Without a configured token every caller may send every event."""

    token: str = ""
    is_local: bool = False

    def is_trusted(self, headers: Mapping[str, str]) -> bool:
        """True when the caller may send any event. Raises `Unauthorized` for a wrong token, `Forbidden` for a call
        from another site's web page.
        """
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if self.token and scheme.lower() == "bearer":
            if hmac.compare_digest(_bytes(shown.strip()), _bytes(self.token)):
                return True
            raise Unauthorized("the token is not that of TORPOR_INGRESS_TOKEN")
        if refusal := page_refusal(headers, is_local=self.is_local):
            raise Forbidden(refusal)
        return not self.token

    def check(self, event: Event) -> None:
        """Raises `Forbidden` unless a caller without the token may send the event."""
        if event.type.startswith(_OUR_TYPES) and event.type != REQUESTED:
            raise Forbidden("events that end jobs need the token")
        if event.source.startswith(OUR_SOURCES):
            raise Forbidden(f"sources below {OUR_SOURCES} need the token; use your own")
        if event.extensions.get("tenant", DEFAULT_TENANT) != DEFAULT_TENANT:
            raise Forbidden(
                "another tenant than default needs the token; with an API key, send it to the "
                "api's /v1/events"
            )


def access_of(settings: BrokerSettings) -> IngressAccess:
    """The access rules of these settings."""
    return IngressAccess(
        token=settings.ingress_token.get_secret_value(), is_local=is_loopback(settings.host)
    )


def startup_error(settings: BrokerSettings) -> str:
    """Why the ingress refuses to start with these settings; empty when it may start."""
    if settings.ingress_token.get_secret_value() or settings.ingress_open:
        return ""
    if is_loopback(settings.host):
        return ""
    return (
        f"TORPOR_HOST is {settings.host}: any host that can reach it could end jobs. Set "
        "TORPOR_INGRESS_TOKEN, or set TORPOR_INGRESS_OPEN=true where a network policy admits only "
        "a broker"
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
