"""Resolves a host once and refuses internal addresses.

Called by aiohttp's connector for each connection of a sender. The connector connects to the addresses returned
here, so there is no second look-up with another answer. Must not know deliveries.
"""

import socket
from ipaddress import ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from eventing.process.egress import AllowList, may_dial, refusal


class TargetRefused(OSError):
    """The host resolves to an address that must not be reached."""


class GuardedResolver(AbstractResolver):
    """Checks every address that `inner` returns."""

    def __init__(self, inner: AbstractResolver, allowed: AllowList) -> None:
        self._inner = inner
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The first address. Raises `TargetRefused` when any of them is internal, even if others are public."""
        answers = await self._inner.resolve(host, port, family)
        name = host.lower().removesuffix(".")
        for answer in answers:
            address = ip_address(answer["host"].partition("%")[0])
            if not may_dial(name, address, self._allowed):
                raise TargetRefused(refusal(address))
        return answers[:1]

    async def close(self) -> None:
        await self._inner.close()
