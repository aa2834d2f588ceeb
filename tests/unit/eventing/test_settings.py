"""One variable has one meaning in every process of one store."""

import pytest
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from eventing.broker.settings import BrokerSettings
from eventing.job.store import LeaseSettings
from predictor.settings import PredictorSettings

PROCESSES = [ApiSettings, BrokerSettings, PredictorSettings]


@pytest.mark.parametrize("process", PROCESSES)
def test_settings_of_leases_and_retention_are_the_same_in_every_process(
    process: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retention held for jobs that a predictor ended, and not for those that the api did."""
    for name, value in {
        "LEASE_S": "7",
        "MAX_ATTEMPTS": "5",
        "RETENTION_S": "120",
        "DEAD_LETTER_RETENTION_S": "240",
        "STORE_TIMEOUT_S": "0.7",
    }.items():
        monkeypatch.setenv(f"TORPOR_{name}", value)

    settings = process()

    assert getattr(settings, "lease") == LeaseSettings(  # noqa: B009 (three classes, one field)
        lease_ms=7000, max_attempts=5, retention_s=120, dead_letter_retention_s=240
    )
    assert getattr(settings, "store_timeout_s") == 0.7  # noqa: B009
