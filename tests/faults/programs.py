"""Our programs as children of a fault test: how each is started, killed and started again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from eventing.cloudevent.tool_event import CALLED
from tests.redis_server import VALKEY, die_with_parent, free_port

QUEUE: Final = "requests-seeded"
READY_WITHIN_S: Final = 20.0
ROOT: Final = Path(__file__).parents[2]


class Zygote:
    """Forks our programs (see `zygote.py`), as they stand in `root`."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        with (folder / "zygote.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.zygote"],
                cwd=root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=die_with_parent,
                env=os.environ | {"PYTHONWARNINGS": "ignore"},
            )

    def fork(self, module: str, **order: Any) -> int:
        """The pid of a new process that runs `module`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"module": module} | order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def zygote_in(folder: Path, root: Path = ROOT) -> Iterator[Zygote]:
    made = Zygote(folder, root)
    try:
        yield made
    finally:
        made.close()


@dataclass(eq=False)
class Program:
    """One of our processes: started, killed and started again on the same port and settings."""

    zygote: Zygote
    module: str
    name: str
    folder: Path
    env: dict[str, str]
    health: str
    argv: tuple[str, ...] = ()
    skew: tuple[tuple[float, float], ...] = ()
    pid: int = 0

    def start(self) -> None:
        self.pid = self.zygote.fork(
            self.module,
            argv=self.argv,
            env={"PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore"} | self.env,
            log=str(self.log),
            skew=self.skew,
        )

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        return self.pid > 0

    def signal(self, number: int) -> None:
        """Send a signal; one that has gone already does not mind."""
        if self.is_alive:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self.signal(signal.SIGKILL)
        await self.gone()

    async def gone(self, timeout_s: float = 20.0) -> None:
        """Return when it has ended. Fails with what its tasks wait for when it does not."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.is_alive:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            self.signal(signal.SIGUSR2)
            await asyncio.sleep(0.5)
            pytest.fail(f"{self.name} does not end: {self.log.read_text()[-6000:]}")

    async def ready(self) -> None:
        """Return once it says that it is."""
        async with asyncio.timeout(READY_WITHIN_S), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(self.health) as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    self.must_live()
                await asyncio.sleep(0.01)

    def must_live(self) -> None:
        """Fail with its last words when it has ended by itself: whatever else goes wrong then
        follows from that.
        """
        assert self.is_alive, f"{self.name} ended: {self.log.read_text()[-2000:]}"

    async def restart(self) -> None:
        await self.kill()
        self.start()
        await self.ready()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What differs between runs. Short times, so that a lease lapses within a trial."""

    lease_s: float = 1.0
    max_attempts: int = 3
    tokens_per_s: float = 400.0
    delivery_timeout: str = "PT10S"
    parallelism: int = 32
    retry: int = 1000
    sink: str = ""
    flush_ms: int = 20
    puts_itself: bool = False
    """The api puts events into the queues itself, not through the broker (docs/adr/0140)."""
    api_env: tuple[tuple[str, str], ...] = ()
    steps: tuple[Any, ...] = ()
    """The plan of the model, as `pipelines.yaml` has it; none for none."""
    tools: tuple[tuple[str, Any], ...] = ()
    """Tool servers by label, as `tools.yaml` has them; the plan has the steps `list-tools` and `tools` then."""
    beside: tuple[tuple[str, int], ...] = ()
    """The servers whose calls are pumped beside them, with the port of the caller there."""
    step_retry: int = 1000
    steps_are_refused: bool = False
    """Deliveries go to the steps process itself: when it is down, the connection is refused. A proxy would take it."""
    store_url: str = ""
    """Sentinels that every process asks, instead of the proxied store."""
    store_acks: int = 0
    binary: Path = VALKEY
    redis_options: tuple[str, ...] = ("--appendonly", "yes", "--appendfsync", "everysec")

    def store_env(self, redis_port: int) -> dict[str, str]:
        """The variables of every process's store."""
        url = self.store_url or f"redis://127.0.0.1:{redis_port}/0"
        return {"TORPOR_REDIS_URL": url, "TORPOR_STORE_ACKS": str(self.store_acks)}

    def write_pipelines(self, folder: Path) -> dict[str, str]:
        """The variables of a process that reads the plan."""
        if not self.steps:
            return {}
        path = folder / "pipelines.yaml"
        path.write_text(json.dumps({"seeded": {"steps": self.steps}}))
        return {"TORPOR_PIPELINES_FILE": str(path)} | self._write_tools(folder)

    def _write_tools(self, folder: Path) -> dict[str, str]:
        if not self.tools:
            return {}
        path = folder / "tools.yaml"
        path.write_text(json.dumps({"servers": dict(self.tools)}))
        return {"TORPOR_TOOLS_FILE": str(path)}


def port_of(program: Program) -> int:
    return int(program.health.split(":")[2].split("/")[0])


def new_api(
    zygote: Zygote,
    folder: Path,
    tuning: Tuning,
    redis_port: int,
    broker_port: int,
    name: str = "api",
) -> Program:
    port = free_port()
    env = {
        "TORPOR_ANONYMOUS_ACCESS": "loopback",
        "TORPOR_PORT": str(port),
        **tuning.store_env(redis_port),
        "TORPOR_BROKER_URL": f"http://127.0.0.1:{broker_port}/",
        "TORPOR_MODELS": '[{"name": "seeded", "context_tokens": 4096}]',
        "TORPOR_FILES_URL": f"file://{folder}/files",
        "TORPOR_SWEEP_EVERY_S": "1",
    } | dict(tuning.api_env)
    env |= tuning.write_pipelines(folder)
    if tuning.puts_itself:
        env["TORPOR_QUEUE_TRIGGERS_FILE"] = str(folder / "triggers.yaml")
    return Program(zygote, "api.__main__", name, folder, env, f"http://127.0.0.1:{port}/healthz")


def new_broker(
    zygote: Zygote,
    folder: Path,
    tuning: Tuning,
    redis_port: int,
    delivery_port: int,
    name: str = "broker",
    steps_port: int = 0,
) -> Program:
    port = free_port()
    (folder / "triggers.yaml").write_text(_triggers(tuning, delivery_port, steps_port))
    env = tuning.write_pipelines(folder) | {
        "TORPOR_PORT": str(port),
        **tuning.store_env(redis_port),
        "TORPOR_TRIGGERS_FILE": str(folder / "triggers.yaml"),
    }
    if tuning.beside:
        env["TORPOR_TRIGGER"] = _pumped_by_broker(tuning)
    health = f"http://127.0.0.1:{port}/readyz"
    return Program(zygote, "eventing.broker.__main__", name, folder, env, health)


def _pumped_by_broker(tuning: Tuning) -> str:
    steps = [step if isinstance(step, str) else step["step"] for step in tuning.steps]
    elsewhere = {label for label, _ in tuning.beside}
    calls = [f"tool-{label}" for label, _ in tuning.tools if label not in elsewhere]
    return ",".join([QUEUE, "plans", *(f"step-{name}" for name in steps), *calls])


def new_pump(
    zygote: Zygote, folder: Path, tuning: Tuning, redis_port: int, queue: str, name: str
) -> Program:
    """The pump of one queue, as it stands beside its subscriber."""
    port = free_port()
    env = {
        **tuning.store_env(redis_port),
        "TORPOR_TRIGGERS_FILE": str(folder / "triggers.yaml"),
        "TORPOR_TRIGGER": queue,
        "TORPOR_METRICS_PORT": str(port),
        "TORPOR_DRAIN_GRACE_S": "60",
    }
    return Program(zygote, "eventing.pump", name, folder, env, f"http://127.0.0.1:{port}/readyz")


def _triggers(tuning: Tuning, delivery_port: int, steps_port: int) -> str:
    """The predictor's, and one for each step."""
    requested, planned, prepared = (
        f"dev.torpor.inference.{word}.v1" for word in ("requested", "planned", "prepared")
    )
    if not tuning.steps:
        return _trigger(tuning, QUEUE, {"type": requested}, delivery_port, tuning.retry)
    made = [_trigger(tuning, QUEUE, {"type": prepared}, delivery_port, tuning.retry)]
    made.append(_trigger(tuning, "plans", {"type": requested}, steps_port, tuning.retry))
    for step in tuning.steps:
        name = step if isinstance(step, str) else step["step"]
        wanted = {"type": planned, "step": name}
        made.append(_trigger(tuning, f"step-{name}", wanted, steps_port, tuning.step_retry))
    for label, _ in tuning.tools:
        wanted = {"type": CALLED, "toolserver": label}
        port = dict(tuning.beside).get(label, steps_port)
        made.append(_trigger(tuning, f"tool-{label}", wanted, port, tuning.step_retry))
    return "\n---\n".join(made)


def _trigger(
    tuning: Tuning, name: str, wanted: dict[str, str], delivery_port: int, retry: int
) -> str:
    is_short = retry < tuning.retry  # its retries must last until a process that died is back
    delivery: dict[str, Any] = {
        "retry": retry,
        "backoffPolicy": "exponential" if is_short else "linear",
        "backoffDelay": "PT0.5S" if is_short else "PT0.02S",
        "timeout": tuning.delivery_timeout,
        "retryAfterMax": "PT0.2S",
    }
    if tuning.sink:
        delivery["deadLetterSink"] = {"uri": tuning.sink}
    return json.dumps(
        {
            "apiVersion": "eventing.knative.dev/v1",
            "kind": "Trigger",
            "metadata": {
                "name": name,
                "annotations": {"torpor.dev/parallelism": str(tuning.parallelism)},
            },
            "spec": {
                "broker": "default",
                "filters": [{"exact": wanted}],
                "subscriber": {"uri": f"http://127.0.0.1:{delivery_port}/"},
                "delivery": delivery,
            },
        }
    )


def new_predictor(
    zygote: Zygote,
    folder: Path,
    tuning: Tuning,
    redis_port: int,
    name: str = "predictor",
    skew: tuple[tuple[float, float], ...] = (),
) -> Program:
    port = free_port()
    env = {
        **tuning.store_env(redis_port),
        "TORPOR_LEASE_S": str(tuning.lease_s),
        "TORPOR_MAX_ATTEMPTS": str(tuning.max_attempts),
        "TORPOR_SEEDED_TOKENS_PER_S": str(tuning.tokens_per_s),
        "TORPOR_SEEDED_PREFILL_TOKENS_PER_S": "0",
        "TORPOR_SEEDED_MAX_CONCURRENCY": "64",
        "TORPOR_FLUSH_MS": str(tuning.flush_ms),
        "TORPOR_WATCH_MS": "100",
        "TORPOR_DRAIN_GRACE_S": "2",
    }
    where = ("--http_port", str(port), "--host", "127.0.0.1")
    argv = ("--engine", "seeded", *where, "--replica-id", name)
    health = f"http://127.0.0.1:{port}/v2/health/ready"
    return Program(zygote, "predictor.__main__", name, folder, env, health, argv, skew)


def new_steps(
    zygote: Zygote, folder: Path, tuning: Tuning, redis_port: int, name: str = "steps"
) -> Program:
    port = free_port()
    env = tuning.write_pipelines(folder) | {
        "TORPOR_STEPS_PORT": str(port),
        **tuning.store_env(redis_port),
        "TORPOR_QUEUE_TRIGGERS_FILE": str(folder / "triggers.yaml"),
        "TORPOR_FILES_URL": f"file://{folder}/files",
        "TORPOR_DRAIN_GRACE_S": "1",
        "TORPOR_LEASE_S": str(tuning.lease_s),
    }
    health = f"http://127.0.0.1:{port}/readyz"
    return Program(zygote, "tests.faults.steps_program", name, folder, env, health)
