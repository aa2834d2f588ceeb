"""A predictor as a process of its own, on the test engine, for tests that kill it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import aiohttp
import orjson

from eventing.cloudevent.event import Event, build_binary, parse_http
from tests.redis_server import die_with_parent, free_port
from tests.time_limits import HANG_S

LEASE_S = 1.0

FAST = {
    "TORPOR_LEASE_S": str(LEASE_S),
    "TORPOR_DRAIN_GRACE_S": "1.5",
    "TORPOR_SEEDED_TOKENS_PER_S": "100",
    "TORPOR_SEEDED_PREFILL_TOKENS_PER_S": "0",
    "OMP_NUM_THREADS": "1",
}


async def deliver(url: str, event: Event, timeout_s: float = HANG_S) -> "Answered":
    """Post the event as a broker does. A connection that breaks is status 0."""
    headers, body = build_binary(event)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            async with session.post(f"{url}/events", data=body, headers=headers) as reply:
                content = await reply.read()
                told = parse_http(reply.headers, content) if "ce-id" in reply.headers else None
                return Answered(reply.status, told, reply.headers.get("retry-after", ""))
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Answered(0)


def read_metric(url: str, name: str) -> float:
    """The sum of a family's samples."""
    with urlopen(f"{url}/metrics", timeout=HANG_S) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def answers_ready(url: str, model: str) -> bool:
    """What KServe's probe is told."""
    try:
        with urlopen(f"{url}/v2/models/{model}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


@dataclass(slots=True)
class Answered:
    """What came back for a delivery; status 0 when nothing did."""

    status: int
    event: Event | None = None
    retry_after: str = ""

    @property
    def data(self) -> dict[str, object]:
        assert self.event is not None
        data: dict[str, object] = orjson.loads(self.event.data)
        return data

    @property
    def text(self) -> str:
        choice = self.data["response"]["choices"][0]  # type: ignore[index]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])


class PredictorProcess:
    """`python -m predictor` on a free port of the loopback."""

    def __init__(self, folder: Path, environment: Mapping[str, str], name: str = "p") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.name = name
        self.log = folder / f"{name}.log"
        folder.mkdir(exist_ok=True)
        engine = environment.get("TORPOR_ENGINE", "seeded")
        arguments = ["--engine", engine, "--host", "127.0.0.1", "--http_port", str(self.port)]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TORPOR_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "predictor", *arguments, "--replica-id", name],
                env=kept | FAST | dict(environment),
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def wait_ready(self) -> "PredictorProcess":
        deadline = time.monotonic() + HANG_S
        while not self.is_ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"not ready: {self.log.read_text()}"
            time.sleep(0.02)
        return self

    def lines(self) -> list[dict[str, object]]:
        """What it has logged."""
        return [orjson.loads(line) for line in self.log.read_text().splitlines()]

    def is_ready(self) -> bool:
        return answers_ready(self.url, "seeded")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = HANG_S) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(HANG_S)

    def metric(self, name: str) -> float:
        return read_metric(self.url, name)

    async def deliver(self, event: Event, timeout_s: float = HANG_S) -> Answered:
        return await deliver(self.url, event, timeout_s)


@contextmanager
def predictors(folder: Path, count: int, **environment: str) -> Iterator[list[PredictorProcess]]:
    """`count` predictors that serve, started side by side."""
    started = [PredictorProcess(folder, environment, f"p{number}") for number in range(count)]
    try:
        yield [process.wait_ready() for process in started]
    finally:
        for process in started:
            process.end()
