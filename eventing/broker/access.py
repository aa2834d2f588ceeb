"""Who may put which event into the broker.

Called by the ingress. Everybody who reaches it may ask for a job. What ends jobs, what speaks in our
name and what spends a tenant's share is for whoever shows the token: the api, and who was given it.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from eventing.broker.settings import BrokerSettings
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED
from eventing.errors import TorporError
from eventing.process.address import is_loopback
from eventing.process.page import page_refusal

_OUR_TYPES: Final = "dev.torpor."
_OUR_SOURCES: Final = "/torpor/"
_ANYBODYS_TENANT: Final = "default"


class Unauthorized(TorporError):
    """The token is not ours."""

    status = 401
    code = "unauthorized"


class Forbidden(TorporError):
    """Not without the token."""

    status = 403
    code = "forbidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressAccess:
    """The rules of one ingress. Without a token everybody who reaches it may do everything."""

    token: str = ""
    is_local: bool = False

    def is_trusted(self, headers: Mapping[str, str]) -> bool:
        """True when the caller may send any event. Raises `Unauthorized` for another token,
        `Forbidden` for a web page.
        """
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if self.token and scheme.lower() == "bearer":
            if hmac.compare_digest(_bytes(shown.strip()), _bytes(self.token)):
                return True
            raise Unauthorized("this is not the token of TORPOR_INGRESS_TOKEN")
        if refusal := page_refusal(headers, is_local=self.is_local):
            raise Forbidden(refusal)
        return not self.token

    def check(self, event: Event) -> None:
        """Return if a caller that is not trusted may send it. Raises `Forbidden`."""
        if event.type.startswith(_OUR_TYPES) and event.type != REQUESTED:
            raise Forbidden("events that end jobs need the token")
        if event.source.startswith(_OUR_SOURCES):
            raise Forbidden(f"sources below {_OUR_SOURCES} need the token; use your own")
        if event.extensions.get("tenant", _ANYBODYS_TENANT) != _ANYBODYS_TENANT:
            raise Forbidden(
                "another tenant than default needs the token; with an API key, send it to the "
                "api's /v1/events"
            )


def access_of(settings: BrokerSettings) -> IngressAccess:
    """The rules that these settings ask for."""
    return IngressAccess(
        token=settings.ingress_token.get_secret_value(), is_local=is_loopback(settings.host)
    )


def startup_error(settings: BrokerSettings) -> str:
    """Why an ingress must not start with these settings; empty when it may."""
    if settings.ingress_token.get_secret_value() or settings.ingress_open:
        return ""
    if is_loopback(settings.host):
        return ""
    return (
        f"TORPOR_HOST is {settings.host}, which others can reach, and everybody could end jobs: set "
        "TORPOR_INGRESS_TOKEN, or say TORPOR_INGRESS_OPEN=true where a network policy lets only a "
        "broker in"
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
