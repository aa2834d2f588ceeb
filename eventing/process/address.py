"""Whether an address is of this host or of this network only. Pure but for the resolver of `localhost`.

Called by every server that allows calls without a credential on loopback.
"""

import socket
from functools import lru_cache
from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """True for a loopback address or a name that resolves to one."""
    if host == "localhost":
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return all(_is_loopback_address(str(entry[4][0])) for entry in found)
    return _is_loopback_address(host)


@lru_cache(maxsize=64)
def _is_loopback_address(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return False


def is_inside(host: str) -> bool:
    """True for this machine, a cluster's Services and private networks: where no proxy leads."""
    try:
        return ip_address(host).is_private  # loopback and link-local among them
    except ValueError:
        name = host.lower().removesuffix(".")
        return "." not in name or name.endswith((".svc", ".cluster.local", ".local", ".internal"))
