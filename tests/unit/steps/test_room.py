"""A run that is alone in its process, and what the broker is told meanwhile."""

import asyncio

import pytest

from steps.runner.room import Room, RoomTaken


async def test_while_a_run_is_alone_others_are_refused_for_a_moment_and_a_probe_waits_for_its_end() -> (
    None
):
    room, may_end = Room(), asyncio.Event()

    async def suspect() -> None:
        async with room.shared(), room.alone():
            await may_end.wait()

    running = asyncio.ensure_future(suspect())
    while room.is_open:
        await asyncio.sleep(0)
    with pytest.raises(RoomTaken) as refused:
        async with room.shared():
            pytest.fail("it ran beside it")
    probe = asyncio.ensure_future(room.until_open(20))
    assert not await room.until_open(0)
    may_end.set()

    assert await probe
    await running
    assert refused.value.headers == {"retry-after": "0"}
    async with room.shared():
        assert room.in_flight == 1


async def test_a_process_that_shuts_down_is_not_open_to_a_probe() -> None:
    room = Room()
    room.close()

    assert not await room.until_open(20)
