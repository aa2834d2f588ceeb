"""The abuse protection of CloudEvents' web hooks (HTTP 1.1 Web Hooks, 4): a sender such as Event Grid
asks by OPTIONS whether its events are wanted before it sends any.

Called by the api and the broker's ingress. Pure.
"""

from collections.abc import Collection, Mapping

ANY = "*"


def handshake(headers: Mapping[str, str], origins: Collection[str]) -> dict[str, str]:
    """The headers that let the asking sender in; empty when it did not ask, or is not of `origins`."""
    origin = headers.get("webhook-request-origin", "")
    if not origin or not (ANY in origins or origin in origins):
        return {}
    return {"webhook-allowed-origin": origin, "webhook-allowed-rate": ANY}
