"""Resolves a webhook's host once, checks every answer, and lets only a checked one be dialled.

Called by aiohttp's connector for each connection of the sender. The connector dials what this
returns, so there is no second look-up whose answer could differ. Must not know deliveries.
"""

import socket
from ipaddress import ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from api.webhook.address import AllowList, may_dial, refusal


class TargetRefused(OSError):
    """The host resolves to an address that must not be dialled."""


class GuardedResolver(AbstractResolver):
    """A resolver that trusts no answer of `inner`."""

    def __init__(self, inner: AbstractResolver, allowed: AllowList) -> None:
        self._inner = inner
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The first answer. Raises `TargetRefused` when any of them is inside: a name that has both
        kinds of address is not an honest one.
        """
        answers = await self._inner.resolve(host, port, family)
        name = host.lower().removesuffix(".")
        for answer in answers:
            address = ip_address(answer["host"].partition("%")[0])
            if not may_dial(name, address, self._allowed):
                raise TargetRefused(refusal(address))
        return answers[:1]

    async def close(self) -> None:
        await self._inner.close()
