"""The clock of tests stands still while this process does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.awake import awake_s

STOPPED_S = 0.5
PROGRAM = """
from tests.awake import awake_s
import time
began_s, began_awake_s = time.monotonic(), awake_s()
print(flush=True)
input()
print(time.monotonic() - began_s, awake_s() - began_awake_s, flush=True)
"""


def test_it_runs_while_a_test_waits() -> None:
    began_s, began_awake_s = time.monotonic(), awake_s()
    time.sleep(0.3)

    assert 0 < awake_s() - began_awake_s <= time.monotonic() - began_s


def test_the_time_in_which_a_process_was_stopped_is_left_out() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(process.pid, signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        passed_s, awake = map(float, process.stdout.readline().split())

    assert passed_s - awake >= STOPPED_S - 0.1
