"""Which server is the primary, by what sentinels answer in the midst of a failover."""

import pytest
from redis.exceptions import AuthenticationError, ConnectionError

from eventing.redis.sentinel import Named, SentinelRefusal, parsed, primary_of

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
