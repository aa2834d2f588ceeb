"""The lists of tool servers' tools that a tenant's jobs have read, and which of them are pinned, in Redis or Valkey.

Called by the step `list-tools`, and by the api, which shows lists and takes a person's word about a changed one.
"""

from collections.abc import Mapping
from typing import Final

import orjson
from redis.asyncio import Redis

from eventing.job.tools.known_list import AcceptStatus, KnownList, ListStatus, listed_tools
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Argument, run

_TOOLS: Final = ":tools"
_PINNED: Final = ":pinned"


class RedisToolLists:
    """Every method raises `StoreUnavailable`. The connection belongs to the caller."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def see(
        self,
        tenant: str,
        label: str,
        *,
        address: str,
        digest: str,
        tools: str,
        does_pin: bool,
        may_lack: bool = False,
    ) -> ListStatus:
        """Note the list that was just read; with `does_pin` the first one is pinned. `tools` are `kept_tools`. With
        `may_lack`, a list of which each tool is pinned is as good as the pinned one; `tools` must then be all of it.
        """
        args: list[Argument] = [label, address, digest, tools, int(does_pin), int(may_lack)]
        async with failures_named():
            answer = await run(self._redis, "see_tools", [keys.tool_lists_of(tenant)], args)
        return ListStatus(answer.decode())

    async def of(self, tenant: str) -> Mapping[str, KnownList]:
        """What the tenant's jobs know, by label."""
        async with failures_named():
            raw = await self._redis.hgetall(keys.tool_lists_of(tenant))
        found = {name.decode(): text for name, text in raw.items()}
        return {
            label: _known(label, text, found)
            for label, text in found.items()
            if not label.endswith((_TOOLS, _PINNED))
        }

    async def accept(self, tenant: str, label: str, digest: str, by: str) -> AcceptStatus:
        """Pin the list that was read last, if it has this digest."""
        name = keys.tool_lists_of(tenant)
        async with failures_named():
            answer = await run(self._redis, "accept_tools", [name], [label, digest, by])
        return AcceptStatus(answer.decode())


def _known(label: str, text: bytes, found: Mapping[str, bytes]) -> KnownList:
    said = orjson.loads(text)
    return KnownList(
        label=label,
        address=said["address"],
        digest=said["digest"],
        read_ms=said["read_ms"],
        tools=listed_tools(found.get(label + _TOOLS, b"")),
        pinned=said["pinned"],
        pinned_ms=said.get("pinned_ms", 0),
        accepted_by=said["by"],
        pinned_tools=listed_tools(found.get(label + _PINNED, b"")) if said["pinned"] else (),
    )
