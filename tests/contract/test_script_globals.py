"""A script that reads a name which nobody defines fails on the path that reads it, perhaps never in a test: the
compiled code says all such names.
"""

import struct
from collections.abc import Iterator
from importlib.resources import files
from typing import Final

import pytest
from redis.asyncio import Redis

from eventing.redis.script import source

SCRIPTS: Final = sorted(
    file.name.removesuffix(".lua")
    for file in files("eventing.redis.scripts").iterdir()
    if file.name.endswith(".lua") and not file.name.startswith("_")
)
OF_THE_SERVER: Final = {
    *("KEYS", "ARGV", "redis", "cjson", "cmsgpack", "string", "table", "math"),
    *("tonumber", "tostring", "ipairs", "pairs", "next", "type", "unpack", "pcall", "error"),
}
GETGLOBAL, SETGLOBAL = 5, 7


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_script_reads_its_own_names_and_those_of_the_files_that_it_uses(
    name: str, redis: Redis
) -> None:
    assert await names_of_globals(redis, source(name)) <= OF_THE_SERVER


async def test_a_name_that_no_one_defines_is_found(redis: Redis) -> None:
    nested = (
        "local function f() return function() return no_one end end return redis.call('PING', f())"
    )
    assert await names_of_globals(redis, nested) == {"redis", "no_one"}


async def names_of_globals(redis: Redis, text: str) -> set[str]:
    """The names that a script reads or writes and does not declare."""
    return set(Chunk(await redis.eval("return string.dump(loadstring(ARGV[1]))", 0, text)).names())


class Chunk:
    """Compiled Lua 5.1, as `string.dump` writes it on a 64-bit machine."""

    def __init__(self, code: bytes) -> None:
        self._code, self._at = code, 12  # after the header

    def names(self) -> Iterator[str]:
        """The globals of a function and of those inside it."""
        self._text()
        self._take("<ii4B")
        instructions = self._take(f"<{self._count()}I")
        constants = [self._constant() for _ in range(self._count())]
        for _ in range(self._count()):
            yield from self.names()
        self._take(f"<{self._count()}i")
        for _ in range(self._count()):
            self._text()
            self._take("<ii")
        for _ in range(self._count()):
            self._text()
        for each in instructions:
            if each & 0x3F in (GETGLOBAL, SETGLOBAL):
                yield str(constants[each >> 14])

    def _constant(self) -> object:
        match self._take("<B")[0]:
            case 0:
                return None
            case 1:
                return self._take("<B")[0]
            case 3:
                return self._take("<d")[0]
            case _:
                return self._text()

    def _text(self) -> str:
        (size,) = self._take("<Q")
        return bytes(self._take(f"<{size}B")[:-1]).decode(errors="replace")

    def _count(self) -> int:
        return int(self._take("<i")[0])

    def _take(self, layout: str) -> tuple[int, ...]:
        found = struct.unpack_from(layout, self._code, self._at)
        self._at += struct.calcsize(layout)
        return found
