"""Why a process did not start, as its log says."""

import pytest

from torpor.local.failure import reason_in

GROUP = """
  + Exception Group Traceback (most recent call last):
  |   File "start.py", line 7, in start
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |     raise TypeError("no such parser")
    | TypeError: no such parser
    +------------------------------------
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        pytest.param("x\nImportError: no module y\nbye", "ImportError: no module y", id="a trace"),
        pytest.param(GROUP, "TypeError: no such parser", id="a group's trace"),
        pytest.param(
            '{"action": "start", "level": "error", "reason": "EngineStartError: too little memory"}',
            "too little memory",
            id="our own log",
        ),
        pytest.param("torpor: no such folder", "no such folder", id="a command of ours"),
        pytest.param("all is well", "", id="nothing"),
    ],
)
def test_the_last_reason_of_a_log_is_found(log: str, reason: str) -> None:
    assert reason_in(log) == reason
