"""SIGTERM ends each of our processes, however young it is; as PID 1 of a container too."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.redis_server import free_port

TRIGGER = """
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: requests-m}
spec: {subscriber: {uri: "http://127.0.0.1:9/events"}}
"""
PROGRAMS = {
    "api": ("api",),
    "broker": ("eventing.broker",),
    "pump": ("eventing.pump",),
    "predictor": ("predictor", "--engine", "seeded"),
    "external scaler": ("knative.external_scaler",),
}
_CAUGHT = 1 << (signal.SIGTERM - 1)


@pytest.fixture
def environment(tmp_path: Path, redis_url: str) -> Mapping[str, str]:
    (tmp_path / "triggers.yaml").write_text(TRIGGER)
    return os.environ | {
        "TORPOR_REDIS_URL": redis_url,
        "TORPOR_TRIGGERS_FILE": str(tmp_path / "triggers.yaml"),
        "TORPOR_METRICS_PORT": "0",
        "TORPOR_ANONYMOUS_ACCESS": "loopback",
        "TORPOR_FILES_URL": f"file://{tmp_path}",
        "TORPOR_PREDICTOR_HOST": "127.0.0.1",
        "TORPOR_SEEDED_START_UP_S": "60",
        "TORPOR_DRAIN_GRACE_S": "60",
    }


def start(program: str, environment: Mapping[str, str], *wrapper: str) -> "subprocess.Popen[bytes]":
    ports = {"TORPOR_PORT": str(free_port()), "TORPOR_PREDICTOR_PORT": str(free_port())}
    command = [*wrapper, sys.executable, "-m", *PROGRAMS[program]]
    return subprocess.Popen(command, env={**environment, **ports}, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_sigterm_ends_a_process_of_any_age(program: str, environment: Mapping[str, str]) -> None:
    began_s = time.monotonic()
    started = {age_s: start(program, environment) for age_s in (0.0, 0.3, 1.0, 5.0)}
    try:
        for age_s, process in started.items():
            time.sleep(max(0.0, began_s + age_s - time.monotonic()))
            assert process.poll() is None
            process.terminate()
        codes = [process.wait(60) for process in started.values()]
    finally:
        for process in started.values():
            process.kill()

    # A process that has not got to our first line yet is ended by the kernel.
    assert set(codes) <= {0, -signal.SIGTERM}


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, unshare")
@pytest.mark.parametrize("program", PROGRAMS)
def test_pid_1_handles_a_sigterm_from_its_first_line_on(
    program: str, environment: Mapping[str, str]
) -> None:
    """The kernel drops what PID 1 has no handler for, so a default action would not do."""
    outer = start(program, environment, "unshare", "--pid", "--fork", "--mount-proc")
    try:
        pid = _wait_for_handler(outer.pid)
        is_loaded = b"uvloop" in Path(f"/proc/{pid}/maps").read_bytes()
        os.kill(pid, signal.SIGTERM)
        outer.wait(60)
    finally:
        outer.kill()

    assert not Path(f"/proc/{pid}").exists()
    assert not is_loaded  # the handler stood before the imports


def _wait_for_handler(parent: int) -> int:
    """The process in the namespace, once it handles SIGTERM."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if children:
            status = Path(f"/proc/{children[0]}/status").read_text()
            caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
            if int(caught.split()[1], 16) & _CAUGHT:
                return int(children[0])
        time.sleep(0.002)
    raise AssertionError("no handler for SIGTERM")
