"""One rig per implementation of the store."""

import pytest

from tests.contract.rig import MemoryRig, RedisRig, Rig


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """The store under test, empty."""
    if request.param == "memory":
        return MemoryRig()
    return RedisRig(request.getfixturevalue("redis"))
