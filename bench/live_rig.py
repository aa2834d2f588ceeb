"""Store, api and one predictor as processes, for benches that look at single tokens.

Called by `bench.streaming` and `bench.work_saved`. Deliveries are posted as a pump posts them;
broker and activator are left out, since no token passes through them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

from bench.torpor_up import ROOT
from tests.redis_server import RedisServer, die_with_parent, free_port

MODEL: Final = "smollm2-135m-instruct"
_AS_PREDICTOR: Final = "--as-predictor"
_READY_WITHIN_S: Final = 180.0
_ARGS: Final = ("--max-model-len", "2048", "--max-num-seqs", "16")


@dataclass(slots=True)
class Child:
    """A process of ours that listens."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_ready(self, path: str) -> "Child":
        deadline = time.monotonic() + _READY_WITHIN_S
        while not _answers(self.url + path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"not ready: {self.log.read_text()[-3000:]}")
            time.sleep(0.05)
        return self

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)


@dataclass(slots=True)
class Rig:
    """What runs. `predictor` starts further ones."""

    folder: Path
    redis_url: str
    engine: str
    settings: Mapping[str, str]
    children: list[Child] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The name that requests use."""
        return MODEL if self.engine == "vllm" else "seeded"

    def api(self) -> Child:
        """The api, used for streams only."""
        port = free_port()
        env = {
            "TORPOR_PORT": str(port),
            "TORPOR_ANONYMOUS_ACCESS": "loopback",
            "TORPOR_REDIS_URL": self.redis_url,
            "TORPOR_BROKER_URL": "http://127.0.0.1:9/",
            "TORPOR_MODELS": json.dumps([{"name": self.model, "context_tokens": 4096}]),
            "TORPOR_FILES_URL": f"file://{self.folder}/files",
        }
        return self._start("api", port, [sys.executable, "-m", "api"], env).wait_ready("/healthz")

    def predictor(self, name: str, bench: str) -> Child:
        """A predictor that the module `bench` watches from within, not waited for."""
        port = free_port()
        command = [sys.executable, "-m", bench, _AS_PREDICTOR]
        command += ["--engine", self.engine, "--host", "127.0.0.1", "--http_port", str(port)]
        command += ["--replica-id", name, *(_ARGS if self.engine == "vllm" else ())]
        env = {"TORPOR_REDIS_URL": self.redis_url, "OMP_NUM_THREADS": "1", **self.settings}
        return self._start(name, port, command, env)

    def _start(self, name: str, port: int, command: list[str], env: Mapping[str, str]) -> Child:
        log = self.folder / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **env},
                stdout=out,
                stderr=out,
                preexec_fn=die_with_parent,
            )
        child = Child(f"http://127.0.0.1:{port}", process, log)
        self.children.append(child)
        return child


@contextmanager
def running(folder: Path, engine: str, **settings: str) -> Iterator[Rig]:
    """A store with AOF, and nothing else yet; everything ends with the block."""
    server = RedisServer(folder / "valkey", options=["--appendonly", "yes"])
    server.start()
    with ExitStack() as stack:
        stack.callback(server.kill)
        rig = Rig(folder, server.url, engine, settings)
        try:
            yield rig
        finally:
            for child in rig.children:
                child.end(signal.SIGKILL)


def bench_or_predictor(bench: Callable[[], None], predict: Callable[[list[str]], int]) -> None:
    """Run the bench or, where a rig started its module so, the predictor that it watches; that one
    ends as `python -m predictor` does, without taking torch down module by module.
    """
    if sys.argv[1:2] == [_AS_PREDICTOR]:
        os._exit(predict(sys.argv[2:]))
    bench()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
