"""Whether an address is of this host or of this network only. Pure but for the resolver of `localhost`.

Called by every server that allows calls without a credential on loopback.
"""

import socket
from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """True for a loopback address or a name that resolves to one."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        pass
    if host != "localhost":
        return False
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ip_address(entry[4][0]).is_loopback for entry in found)


def is_inside(host: str) -> bool:
    """True for this machine, a cluster's Services and private networks: where no proxy leads."""
    try:
        return ip_address(host).is_private  # loopback and link-local among them
    except ValueError:
        name = host.lower().removesuffix(".")
        return "." not in name or name.endswith((".svc", ".cluster.local", ".local", ".internal"))
