"""Which server is the primary, by what sentinels answer in the midst of a failover."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, ConnectionError

from eventing.process.store_url import parse_store_url
from eventing.redis.multiplexed_connection import Command
from eventing.redis.sentinel import Named, SentinelRefusal, parsed, primary_of, sentinel_pool

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


def of_sentinel(
    named: tuple[str, int],
    *,
    epoch: int = 1,
    flags: str = "master",
    in_table: tuple[str, int] = OLD,
) -> Named:
    host, port = in_table
    table = {"ip": host, "port": str(port), "config-epoch": str(epoch), "flags": flags}
    return parsed(table, named)


def test_the_newest_configuration_counts() -> None:
    stale = of_sentinel(OLD)
    informed = of_sentinel(NEW, epoch=2, in_table=NEW)

    assert primary_of([stale, stale, informed], "torpor") == NEW


def test_the_sentinel_that_leads_replicas_away_names_the_new_one_while_its_table_has_the_old() -> (
    None
):
    """The old one came back, so that nothing marks it as down."""
    leading = of_sentinel(NEW, epoch=2, flags="master,failover_in_progress")

    assert primary_of([of_sentinel(OLD), leading], "torpor") == NEW


def test_nobody_is_the_primary_while_a_sentinel_chooses() -> None:
    choosing = of_sentinel(OLD, flags="master,failover_in_progress")

    with pytest.raises(ConnectionError, match="is replacing the primary of torpor"):
        primary_of([of_sentinel(OLD), of_sentinel(OLD), choosing], "torpor")


@pytest.mark.parametrize("mark", ["s_down", "o_down"])
def test_a_sentinel_that_does_not_reach_the_primary_does_not_count(mark: str) -> None:
    cut_off = of_sentinel(OLD, epoch=9, flags=f"master,{mark}")
    informed = of_sentinel(NEW, epoch=2, in_table=NEW)

    assert primary_of([cut_off, informed, ConnectionError("refused")], "torpor") == NEW
    with pytest.raises(ConnectionError, match="no sentinel reaches the primary of torpor"):
        primary_of([cut_off], "torpor")


def test_the_old_one_that_is_down_does_not_hide_the_new_one() -> None:
    leading = of_sentinel(NEW, epoch=2, flags="master,s_down,o_down,failover_in_progress")

    assert primary_of([leading], "torpor") == NEW


def test_a_refused_password_is_said_before_other_errors() -> None:
    with pytest.raises(SentinelRefusal):
        primary_of([ConnectionError("refused"), AuthenticationError("no")], "torpor")
    with pytest.raises(ConnectionError, match="no sentinel names a primary of torpor"):
        primary_of([ConnectionError("refused")], "torpor")


class Answering:
    """A sentinel that answers after so long."""

    def __init__(self, named: tuple[str, int], epoch: int, after_s: float) -> None:
        table = {"ip": named[0], "port": named[1], "config-epoch": epoch, "flags": "master"}
        self._table = [str(word).encode() for pair in table.items() for word in pair]
        self._address = [named[0].encode(), str(named[1]).encode()]
        self._after_s = after_s

    async def send(self, _: Sequence[Command]) -> list[Any]:
        await asyncio.sleep(self._after_s)
        return [self._table, self._address]


async def test_a_majority_that_has_not_heard_yet_is_not_believed_before_the_others() -> None:
    where = parse_store_url("redis+sentinel://a,b,c/torpor")
    sentinels = sentinel_pool(where, timeout_s=1.5).sentinel_manager
    sentinels.sentinels = [Answering(OLD, 1, 0), Answering(OLD, 1, 0), Answering(NEW, 2, 0.02)]

    assert await sentinels.discover_master("torpor") == NEW


async def test_a_sentinel_that_hangs_is_not_waited_for_once_the_others_have_answered() -> None:
    where = parse_store_url("redis+sentinel://a,b,c/torpor")
    sentinels = sentinel_pool(where, timeout_s=1.5).sentinel_manager
    sentinels.sentinels = [Answering(NEW, 2, 0), Answering(NEW, 2, 0), Answering(OLD, 1, 3600)]

    assert await sentinels.discover_master("torpor") == NEW
