"""Writes that count only when replicas have confirmed them (`WAIT`).

Called by the stores for what a caller is promised: a job that was taken, and its end. A connection that waits for
replicas can do nothing else meanwhile, so it is one of its own, and what arrives during a wait goes out together after
it. Write and wait use the same connection: on another one, the wait could be answered by the server that replaced the
one with the write. Sentinels are asked once more after the wait: a replica that still follows a server which was
replaced confirms its writes until it is led away.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from eventing.errors import StoreUnavailable
from eventing.redis import keys
from eventing.redis.multiplexed_connection import Command, SharedRedis

_RETRY_AFTER_S: Final = 2.0
_FENCE: Final = ("SET", f"{keys.PREFIX}:acks", "1", "EX", 60)
"""A repeated call writes nothing, and Valkey's WAIT then waits for nothing; this write comes after the first call's,
whose connection may have been another process's.
"""


class ReplicatedWrites:
    """Sends commands like `SharedRedis.send`, and waits for `acks` replicas."""

    def __init__(self, redis: SharedRedis, acks: int) -> None:
        self._line = redis.dedicated_connection()
        self._acks = acks
        self._wait_ms = redis.longest_block_ms
        self._unsent: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Raw replies to the commands. Raises the first error reply, and `StoreUnavailable` when too few replicas
        confirmed in time: the writes are done then, and may yet be lost. A repeat waits for them again.
        """
        answered: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._unsent.append((commands, answered))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.ensure_future(self._send_groups())
        return await answered

    async def script_load(self, source: str) -> None:
        """Load a script on the server that this connection goes to."""
        await self._line.send([("SCRIPT", "LOAD", source)])

    async def _send_groups(self) -> None:
        while self._unsent:
            group, self._unsent = self._unsent, []
            every = [command for commands, _ in group for command in commands]
            wait = ("WAIT", self._acks, self._wait_ms)
            try:
                *answers, _, confirmed = await self._line.ask_primary([*every, _FENCE, wait])
                failure = self._failure(confirmed)
            except Exception as error:  # each caller raises it
                answers, failure = [], error
            for commands, answered in group:
                own, answers = answers[: len(commands)], answers[len(commands) :]
                _settle(answered, own, failure)

    def _failure(self, confirmed: Any) -> Exception | None:
        if isinstance(confirmed, Exception):
            return confirmed
        if confirmed >= self._acks:
            return None
        return StoreUnavailable("no replica of the store has confirmed it", _RETRY_AFTER_S)


def _settle(
    answered: asyncio.Future[list[Any]], answers: list[Any], failure: Exception | None
) -> None:
    if answered.done():
        return
    refused = next((each for each in answers if isinstance(each, Exception)), None)
    if error := refused or failure:
        answered.set_exception(error)
    else:
        answered.set_result(answers)
