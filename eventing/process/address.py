"""Tells whether only this machine can reach an address. Pure but for the resolver of `localhost`.

Called where something is open to this machine only.
"""

import socket
from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """True for an address or name that only this machine can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        pass
    if host != "localhost":
        return False
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ip_address(entry[4][0]).is_loopback for entry in found)
