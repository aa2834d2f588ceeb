"""Lua scripts by name: called by SHA, sent in full only when the server does not have them.

Called by everything that changes Redis with more than one command. Each script is a file in
`eventing/redis/scripts` whose head lists its keys, arguments and replies.
"""

import re
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from eventing.redis.multiplexed_connection import Command, SharedRedis
from eventing.redis.replicated import ReplicatedWrites

_USES: Final = re.compile(r"^-- USES (.+)$", re.MULTILINE)
"""The line in which a script, or what scripts share, names the shared files whose functions it calls."""

Argument = str | bytes | int
Call = tuple[str, Sequence[str], Sequence[Argument]]
"""A script by name, its keys and its arguments."""


@cache
def source(name: str) -> str:
    """The text of the script `name`, after that of every shared file that it uses, or that one of those does."""
    return "".join(map(_read, _files(name)))


def _files(name: str) -> list[str]:
    """Shared files in the order in which they may call each other, then the script."""
    used = _USES.search(_read(name))
    needed = [file for each in (used[1].split() if used else []) for file in _files(each)]
    return [*dict.fromkeys(needed), name]


def _read(name: str) -> str:
    return files("eventing.redis.scripts").joinpath(f"{name}.lua").read_text(encoding="utf-8")


@cache
def _digest(name: str) -> str:
    return sha1(source(name).encode(), usedforsecurity=False).hexdigest()


async def run(redis: Redis, name: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
    """Run one script, in one round trip."""
    return (await run_all(redis, [(name, keys, args)]))[0]


async def run_all(
    redis: Redis | ReplicatedWrites, calls: Sequence[Call], then: Sequence[Command] = ()
) -> list[Any]:
    """Run scripts in this order and then the reads in `then`, in one round trip. Not a transaction: after a crash,
    any prefix may have run.
    """
    commands = [*map(_command, calls), *then]
    try:
        return await send(redis, commands)
    except NoScriptError:
        for name in {name for name, _, _ in calls}:
            await redis.script_load(source(name))
        # Every script is safe to run again, so those that did run before the missing one do no
        # harm.
        return await send(redis, commands)


async def send(redis: Redis | ReplicatedWrites, commands: Sequence[Command]) -> list[Any]:
    """Raw replies to any commands, in one round trip; the first error reply is raised."""
    if isinstance(redis, SharedRedis | ReplicatedWrites):
        return await redis.send(commands)
    async with redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        answers: list[Any] = await pipe.execute()
        return answers


def _command(call: Call) -> Command:
    name, keys, args = call
    return ("EVALSHA", _digest(name), len(keys), *keys, *args)
