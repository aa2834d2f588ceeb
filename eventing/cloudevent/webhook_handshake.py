"""The abuse protection of CloudEvents' web hooks (HTTP 1.1 Web Hooks, section 4): a sender such as Event Grid asks
by OPTIONS for permission before it sends events.

Called by the api and the broker's ingress. Pure.
"""

from collections.abc import Collection, Mapping

ANY = "*"


def handshake(headers: Mapping[str, str], origins: Collection[str]) -> dict[str, str]:
    """The response headers that grant the permission; empty when none was requested, or the sender is not in
    `origins`.
    """
    origin = headers.get("webhook-request-origin", "")
    if not origin or not (ANY in origins or origin in origins):
        return {}
    return {"webhook-allowed-origin": origin, "webhook-allowed-rate": ANY}
