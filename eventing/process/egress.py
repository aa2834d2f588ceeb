"""The policy on addresses and hosts that calls to a named URL may reach: webhooks, and upstream providers. Pure.

Called when a URL is submitted or configured, and again by the resolver and the sender before each connection. It
prevents SSRF (OWASP): who names a URL must not reach hosts that only this network can reach. Must not know deliveries
or sockets.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Self

from yarl import URL

from eventing.errors import InvalidJob

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LONGEST_URL: Final = 2048
_REFUSED: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # «this host»; Linux dials loopback
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT; one cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent, on an address that looks public
        "169.254.0.0/16",  # link-local; most clouds' metadata service
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocols; one cloud's metadata service
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # IETF protocols, Teredo among them
        "2001:db8::/32",
        "2002::/16",  # 6to4, whose relays are gone (RFC 7526); some Pythons call it private
        "3fff::/20",
    )
)
_GLOBAL_UNICAST: Final = ip_network("2000::/3")
"""All public IPv6 addresses are in here; loopback, mapped, unique local, link-local, site-local, multicast and
local NAT64 prefixes are not.
"""
_NAT64: Final = ip_network("64:ff9b::/96")
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
_LOCAL_NAMES: Final = (
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "lan",
    "home.arpa",
    "onion",
)
_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?\.?\Z")
_NUMBER: Final = re.compile(r"([0-9]+|0x[0-9a-f]*)\Z")


@dataclass(frozen=True, slots=True)
class AllowList:
    """Internal addresses that may be reached: networks, and host names (`*.` for all below one). A listed name
    may resolve to any address.
    """

    networks: tuple[Network, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """Raises `ValueError` for an entry that is neither a network nor a host."""
        networks: list[Network] = []
        names: list[str] = []
        for entry in entries:
            try:
                networks.append(ip_network(entry, strict=False))
            except ValueError:
                name = entry.lower()
                if not _HOST.match(name.removeprefix("*.")) or _is_number(name):
                    raise ValueError(f"{entry!r} is no network and no host") from None
                names.append(name)
        return cls(tuple(networks), tuple(names))

    def has_name(self, host: str) -> bool:
        return any(
            host.endswith(name[1:]) if name.startswith("*.") else host == name
            for name in self.names
        )

    def has_address(self, address: Address) -> bool:
        return any(
            address.version == network.version and address in network for network in self.networks
        )


@dataclass(frozen=True, slots=True)
class Target:
    """An accepted URL. `host` is lower-case, without a final dot; `address` is set when the host is a literal
    address.
    """

    url: URL
    host: str
    address: Address | None


@cache
def allow_list(entries: tuple[str, ...]) -> AllowList:
    """`AllowList.parse`, cached by its setting."""
    return AllowList.parse(entries)


def check_url(text: object, allowed: AllowList, where: str) -> Target:
    """The target in `text`.

    Raises `InvalidJob` naming `where` for anything but an https URL (or http for hosts on the allow-list) to a
    public host. The name may still resolve to an internal address; that is checked before each connection. The URL
    is parsed by the same parser as for the connection, so that the two cannot disagree.
    """
    if not isinstance(text, str) or not text or len(text) > _LONGEST_URL or not text.isprintable():
        raise InvalidJob(f"{where} must be a URL of at most {_LONGEST_URL} characters", where)
    try:
        url = URL(text)
        host = (url.raw_host or "").lower().removesuffix(".")
    except ValueError as error:
        raise InvalidJob(f"{where} is not a URL", where) from error
    if url.scheme not in ("https", "http") or not host:
        raise InvalidJob(f"{where} must start with https:// and name a host", where)
    if url.raw_user is not None or url.raw_password is not None:
        raise InvalidJob(f"{where} must not hold a user or password", where)
    address = _literal(host, where)
    is_inside = allowed.has_name(host) or (address is not None and allowed.has_address(address))
    if not is_inside:
        _check_public(host, address, where)
        if url.scheme != "https":
            raise InvalidJob(f"{where} must start with https://", where)
    return Target(url, host, address)


def refusal(address: Address) -> str:
    """Why `address` must not be connected to; empty when it may. An IPv4 address embedded in an IPv6 address is
    checked itself.
    """
    if address.version == 6 and address not in _GLOBAL_UNICAST and address not in _NAT64:
        return f"{address} is not a public address"
    for candidate in (address, *_embedded(address)):
        for network in _REFUSED:
            if candidate.version == network.version and candidate in network:
                return f"{address} is not a public address ({network})"
    return ""


def may_dial(host: str, address: Address, allowed: AllowList) -> bool:
    """True when a connection for `host` may go to `address`."""
    return allowed.has_name(host) or allowed.has_address(address) or not refusal(address)


def _literal(host: str, where: str) -> Address | None:
    if ":" in host:
        bare = host.partition("%")[0]  # a zone cannot make an address less local
        try:
            return ip_address(bare)
        except ValueError as error:
            raise InvalidJob(f"{where} has a host that is no address", where) from error
    try:
        return ip_address(host)
    except ValueError:
        pass
    if _is_number(host):
        # inet_aton accepts 2130706433, 0x7f.1 and 0177.1 as addresses; refused, as no legitimate caller writes them
        raise InvalidJob(f"{where} has an encoded address; write it plainly", where)
    if not _HOST.match(host) or ".." in host:
        raise InvalidJob(f"{where} has a host that is no name", where)
    return None


def _check_public(host: str, address: Address | None, where: str) -> None:
    if address is not None:
        if why := refusal(address):
            raise InvalidJob(f"{where} is refused: {why}", where)
    elif "." not in host or any(host == n or host.endswith(f".{n}") for n in _LOCAL_NAMES):
        raise InvalidJob(f"{where} is refused: {host} is a name for inside", where)


def _is_number(host: str) -> bool:
    """By the WHATWG URL standard, a host whose last label is a number is an IPv4 address, or invalid."""
    return _NUMBER.match(host.removesuffix(".").rpartition(".")[2]) is not None


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """IPv4 addresses that a gateway would take out of an IPv6 address (Teredo and 6to4 are refused entirely)."""
    if not isinstance(address, IPv6Address):
        return
    low = int(address) & 0xFFFFFFFF
    if address in _NAT64 or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield IPv4Address(low)
