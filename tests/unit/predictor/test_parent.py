"""The parent forks on request, reports exits, and leaves no process behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from predictor.process.parent import ForkRequest, listen

ENTRY = textwrap.dedent(
    """
    import os, signal, subprocess, sys, time
    LOADED_IN = os.getpid()

    def preload(options):
        assert options == {"a": 1}

    def main(argv):
        match argv[0]:
            case "exit":
                return int(argv[1])
            case "sys.exit":
                sys.exit(int(argv[1]))
            case "raise":
                raise RuntimeError("as told")
            case "say":
                print("heard", os.environ.get("WORD"), LOADED_IN == os.getppid(), sys.argv[1:])
            case "sleep":
                time.sleep(60)
            case "stubborn":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(60)
            case "leave":
                child = subprocess.Popen(["sleep", "60"])
                print(child.pid, flush=True)
                time.sleep(60)
    """
)


class Client:
    """What the stack does with a parent."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5)
        with ExitStack() as unless_connected:
            # Else the collector finds it, in whichever test it runs next, and blames that one.
            unless_connected.callback(self._socket.close)
            self._socket.connect(str(path))
            unless_connected.pop_all()
        self._lines = self._socket.makefile("rb")
        self.parent_pid = 0

    def read(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self._lines.readline())
        return line

    def send(self, **request: Any) -> None:
        self._socket.sendall(json.dumps(request).encode() + b"\n")

    def start(self, *argv: str, **fields: Any) -> int:
        self.send(argv=argv, **fields)
        return int(self.read()["pid"])

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


Start = Callable[..., tuple[subprocess.Popen[bytes], Path]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "light_entry.py").write_text(ENTRY)
    parents: list[subprocess.Popen[bytes]] = []

    def start_parent(*flags: str) -> tuple[subprocess.Popen[bytes], Path]:
        path = tmp_path / "parent.sock"
        command = [sys.executable, "-m", "predictor.process.parent", "--socket", str(path)]
        command += ["--entry", "light_entry:main", "--preload", 'light_entry:preload={"a": 1}']
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
        parents.append(subprocess.Popen([*command, *flags], env=env))
        wait_for(path.exists)
        return parents[-1], path

    yield start_parent
    for parent in parents:
        parent.kill()
        parent.wait()


@pytest.fixture
def connect() -> Iterator[Callable[[Path], Client]]:
    with ExitStack() as open_clients:

        def connect_to(path: Path) -> Client:
            client = Client(path)
            open_clients.callback(client.close)
            client.parent_pid = int(client.read()["pid"])
            return client

        yield connect_to


Connect = Callable[[Path], Client]


@pytest.fixture
def client(start: Start, connect: Connect) -> Client:
    _, path = start()
    return connect(path)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ignores(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_parent_has_no_path_before_it_can_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "parent.sock"
    seen: list[bool] = []

    class Watched(socket.socket):
        def listen(self, backlog: int = 128) -> None:
            seen.append(path.exists())
            super().listen(backlog)

    path.touch()  # an earlier life's
    monkeypatch.setattr("predictor.process.parent.socket.socket", Watched)
    with listen(path):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
        assert path.stat().st_mode & 0o777 == 0o600

    assert seen == [False]


@pytest.mark.parametrize(
    ("argv", "exit_code"),
    [
        pytest.param(["exit", "0"], 0, id="returns"),
        pytest.param(["exit", "7"], 7, id="returns a code"),
        pytest.param(["sys.exit", "3"], 3, id="leaves by sys.exit"),
        pytest.param(["raise"], 1, id="raises"),
    ],
)
def test_the_exit_of_a_child_is_reported(client: Client, argv: list[str], exit_code: int) -> None:
    pid = client.start(*argv)
    assert client.read() == {"pid": pid, "exit_code": exit_code}


def test_a_killed_child_is_reported_with_its_signal(client: Client) -> None:
    pid = client.start("sleep")
    os.kill(pid, signal.SIGKILL)
    assert client.read() == {"pid": pid, "exit_code": -9}


def test_a_child_has_the_imports_the_environment_and_the_log(
    client: Client, tmp_path: Path
) -> None:
    log = tmp_path / "child.log"
    client.start("say", "x", env={"WORD": "cuckoo"}, log_path=str(log))
    client.read()
    assert log.read_text() == "heard cuckoo True ['say', 'x']\n"


def test_an_exception_lands_in_the_log(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    client.start("raise", log_path=str(log))
    client.read()
    assert "RuntimeError: as told" in log.read_text()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        pytest.param(b'{"argv": "x"}', "argv must be", id="argv is no list"),
        pytest.param(b'{"argv": [], "env": {"a": 1}}', "env must map", id="a number in env"),
        pytest.param(b"[]", "argv must be", id="no object"),
        pytest.param(b"{", "Expecting", id="no JSON"),
    ],
)
def test_a_wrong_request_is_refused(line: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ForkRequest.parse(line)


def test_an_invalid_request_gets_an_error_and_the_parent_continues(client: Client) -> None:
    client.send(argv=["exit", "0"], log_path="/nowhere/at/all.log")
    assert "error" in client.read()
    client.start("exit", "0")
    assert client.read()["exit_code"] == 0


def test_children_outlive_the_client_that_started_them(start: Start, connect: Connect) -> None:
    _, path = start()
    first = connect(path)
    pid = first.start("sleep")
    first.close()
    second = connect(path)
    second.start("exit", "0")
    second.read()
    assert is_alive(pid)


def test_sigterm_ends_the_children_first(start: Start, connect: Connect) -> None:
    parent, path = start()
    client = connect(path)
    pid = client.start("sleep")
    parent.terminate()
    assert client.read() == {"pid": pid, "exit_code": -15}
    assert parent.wait(60) == 0
    assert not path.exists()


def test_a_child_signalled_right_after_its_start_ends(client: Client) -> None:
    for _ in range(30):
        pid = client.start("sleep")
        os.kill(pid, signal.SIGTERM)
        assert client.read() == {"pid": pid, "exit_code": -15}


def test_a_child_that_will_not_end_is_killed(start: Start, connect: Connect) -> None:
    parent, path = start("--grace-s", "0.2")
    client = connect(path)
    pid = client.start("stubborn")
    wait_for(lambda: ignores(pid, signal.SIGTERM))
    parent.terminate()
    assert client.read() == {"pid": pid, "exit_code": -9}
    assert parent.wait(60) == 0


def test_children_die_with_a_killed_parent(start: Start, connect: Connect) -> None:
    parent, path = start()
    client = connect(path)
    pid = client.start("sleep")
    parent.kill()
    wait_for(lambda: not is_alive(pid))


def test_orphans_of_a_killed_child_are_ended(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    pid = client.start("leave", log_path=str(log))
    wait_for(lambda: log.exists() and log.read_text() != "")
    grandchild = int(log.read_text())
    os.kill(pid, signal.SIGKILL)
    client.read()
    wait_for(lambda: not is_alive(grandchild))


def test_the_parent_ends_with_its_owner(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "light_entry.py").write_text(ENTRY)
    path = tmp_path / "owned.sock"
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(60)",
            *(sys.executable, "-m", "predictor.process.parent", "--socket", str(path)),
            *("--entry", "light_entry:main"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
    )
    wait_for(path.exists)
    client = connect(path)
    parent_pid = client.parent_pid
    child_pid = client.start("sleep")
    owner.kill()
    owner.wait()
    wait_for(lambda: not is_alive(parent_pid) and not is_alive(child_pid))
