"""Whether a call without a credential comes from another site's web page. Pure but for the resolver of `localhost`.

Called by the api and the broker's ingress where calls without a credential are allowed. A web page must not use its
visitor's browser to reach them: neither from its own origin, nor through a host name that it points at us (DNS
rebinding).
"""

from collections.abc import Collection, Mapping

from eventing.process.address import is_loopback


def page_refusal(
    headers: Mapping[str, str], *, is_local: bool, origins: Collection[str] = ()
) -> str:
    """Why the call is refused; empty when it is allowed. With `is_local` (the server listens on loopback only) the
    Host must be a loopback address. Pages of `origins` are allowed.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    is_let_in = origin in origins or "*" in origins
    if origin is not None and not is_let_in and origin.partition("://")[2].lower() != host.lower():
        return "without a credential, pages of other origins may not call"
    if is_local and host and not is_loopback(_host_name(host)):
        return "without a credential, call a loopback address by its own name"
    return ""


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[")
    return host.rpartition(":")[0] or host
