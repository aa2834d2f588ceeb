"""A whole stack as a process of its own, as a user starts it, with the seeded engine.

Used by the stack tests. Everything is `torpor up`: nothing is imported, so that what is tested is
what is run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from tests import time_limits
from tests.time_limits import HANG_S

TORPOR = str(Path(sys.executable).parent / "torpor")
MODEL = "smollm2-135m-instruct"
FAST = {"TORPOR_SEEDED_TOKENS_PER_S": "200"}
LOOPBACK_PROVIDER = {
    "TORPOR_UPSTREAM_TENANTS": '["*"]',
    "TORPOR_UPSTREAM_ALLOW": '["127.0.0.1"]',
}
"""A provider on this machine may be asked, for every tenant."""


class LocalStack:
    """`torpor up` on a folder; free ports, a fast clock."""

    def __init__(
        self, folder: Path, *flags: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.folder = folder
        self._flags = flags
        self._env = os.environ | time_limits.ENVIRONMENT | FAST | (env or {})
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "LocalStack":
        base = [TORPOR, "up", "--engine", "seeded", "--port", "0", "--broker-port", "0"]
        base += ["--data-dir", str(self.folder), "--time-scale", "10", "--grace", "6s"]
        base += ["--drain-grace", "1s"]
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._said_path.open("w") as said:
            self._process = subprocess.Popen(
                [*base, *self._flags], env=self._env, stderr=said, cwd=self._cwd
            )
        try:
            self._wait(lambda: (self.folder / "addresses.json").exists() or self._ended, HANG_S)
        except TimeoutError:
            self.stop()  # nobody else can: the caller has no stack yet
            raise
        assert not self._ended, self.said()
        return self

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = HANG_S) -> int:
        """Signal it; its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self.send(number)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def said(self) -> str:
        """What it wrote to standard error so far."""
        return self._said_path.read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def addresses(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "addresses.json").read_text())
        return found

    def submit(self, prompt: str = "hello", **body: Any) -> str:
        """Submit a completion job; its id."""
        line = {"url": "/v1/completions", "body": {"model": MODEL, "prompt": prompt, **body}}
        answer = httpx.post(self.addresses["api"] + "/v1/jobs", json=line, timeout=HANG_S)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str, wait_s: float = 0, include: str = "") -> dict[str, Any]:
        query = {"wait": str(wait_s)} if wait_s else {}
        query |= {"include": include} if include else {}
        answer = httpx.get(
            f"{self.addresses['api']}/v1/jobs/{job_id}", params=query, timeout=wait_s + HANG_S
        )
        found: dict[str, Any] = answer.json()
        return found

    def status(self) -> dict[str, Any]:
        """The state of the stack, with that of its only, or first, model."""
        seen: dict[str, Any] = httpx.get(
            self.addresses["activator"] + "/status", timeout=HANG_S
        ).json()
        return seen | seen["models"][0]

    def until(self, condition: Callable[[], bool], timeout_s: float = HANG_S) -> None:
        self._wait(condition, timeout_s)

    def children(self) -> list[int]:
        """Every process below the stack, however deep."""
        found, todo = [], [self.pid]
        while todo:
            listed = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(todo.pop())], capture_output=True, text=True
            )
            new = [int(word) for word in listed.stdout.split()]
            found += new
            todo += new
        return found

    @property
    def _said_path(self) -> Path:
        return self.folder / "said.log"

    @property
    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s} s")
            time.sleep(0.02)


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    return [pid for pid in pids if _state(pid) not in ("", "Z")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


@contextmanager
def planned_stack(
    folder: Path, pipelines: str, *flags: str, env: dict[str, str] | None = None
) -> Iterator[LocalStack]:
    """A stack whose models have the plans of this text; stopped at the end."""
    path = folder / "pipelines.yaml"
    path.write_text(pipelines)
    made = LocalStack(folder / "data", *flags, "--pipelines", str(path), env=env).start()
    try:
        yield made
    finally:
        made.stop()


def openai_client(stack: LocalStack) -> OpenAI:
    """OpenAI's client for the stack; it tries nothing again."""
    url = stack.addresses["api"] + "/v1"
    return OpenAI(base_url=url, api_key="none", timeout=120, max_retries=0)


def torpor(stack: LocalStack, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TORPOR, *arguments, "--data-dir", str(stack.folder)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def up(folder: Path, *flags: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    base = [TORPOR, "up", "--engine", "seeded", "--port", "0", "--broker-port", "0"]
    return subprocess.run(
        [*base, "--data-dir", str(folder), *flags],
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
