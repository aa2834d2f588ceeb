"""Named Lua scripts, loaded once by SHA and sent in full only when the server has forgotten them.

Called by the Redis store and the broker's queue. Each script is a file of `eventing/scripts` with
its keys, arguments and answers at its top.
"""

from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError

Argument = str | bytes | int
Call = tuple[str, Sequence[str], Sequence[Argument]]
"""A script by name, its keys and its arguments."""


@cache
def source(name: str) -> str:
    """The text of the script `name`."""
    return files("eventing.scripts").joinpath(f"{name}.lua").read_text(encoding="utf-8")


@cache
def _digest(name: str) -> str:
    return sha1(source(name).encode(), usedforsecurity=False).hexdigest()


async def run(redis: Redis, name: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
    """One script, one round trip."""
    try:
        return await redis.evalsha(_digest(name), len(keys), *keys, *args)
    except NoScriptError:
        return await redis.eval(source(name), len(keys), *keys, *args)


async def run_all(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    """Scripts in this order, in one round trip. Not a transaction: a crash may cut it after any of
    them.
    """
    try:
        return await _pipeline(redis, calls)
    except NoScriptError:
        for name in {name for name, _, _ in calls}:
            await redis.script_load(source(name))
        # Every script is safe to run again, so those that did run before the missing one do no
        # harm.
        return await _pipeline(redis, calls)


async def _pipeline(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    async with redis.pipeline(transaction=False) as pipe:
        for name, keys, args in calls:
            add(pipe, name, keys, args)
        answers: list[Any] = await pipe.execute()
        return answers


def add(pipe: Pipeline, name: str, keys: Sequence[str], args: Sequence[Argument]) -> None:
    """Queue a script on a pipeline whose server has it loaded."""
    pipe.evalsha(_digest(name), len(keys), *keys, *args)
