"""Pumps that look up often, so that a test does not wait a second for one to stop."""

import pytest

from eventing.broker import pump


@pytest.fixture(autouse=True)
def quick_pumps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "_WAIT_MS", 20)
