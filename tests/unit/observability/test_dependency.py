"""Log lines about an unavailable store or broker."""

import pytest
import structlog

from eventing.process.dependency import Dependency


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_outage_is_logged_once_and_its_end_once(clock: Clock) -> None:
    store = Dependency("store", clock)
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            store.failed("no answer")
        clock.now_s = 8.0
        for _ in range(100):
            store.answered()

    said = [(line["event"], line.get("reason"), line.get("away_s")) for line in lines]
    assert said == [("store is away", "no answer", None), ("store is back", None, 8.0)]


def test_reads_that_succeed_between_refused_writes_are_not_its_return(clock: Clock) -> None:
    store = Dependency("store", clock)
    with structlog.testing.capture_logs() as lines:
        for _ in range(50):
            store.failed("takes no writes")
            clock.now_s += 0.5
            store.answered()

    assert len(lines) == 1


def test_a_dependency_that_never_failed_logs_nothing() -> None:
    with structlog.testing.capture_logs() as lines:
        Dependency("store").answered()

    assert lines == []
