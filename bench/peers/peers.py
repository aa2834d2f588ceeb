"""Torpor's overhead compared with other task queues: the same echo job, the same Redis.

python -m bench.peers.peers [--seconds 8] [--only torpor,taskiq] [--ahead]

FastAPI with Celery, RQ, arq, taskiq and dramatiq (`bench/peers/app.py`, each in an environment that the first run
makes) and Torpor: one HTTP process, one worker, the same server (AOF everysec), the same closed loop of 1 and of 64
clients, one after the other in one run. A client waits for its result before the next call. Torpor's job is an
OpenAI completion of one token by the test engine, with event, queue, lease, token stream, result and result event,
which the others do not have. It has one more process, the broker; all of them share the same cores.
"""

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import psutil
import redis

from tests.redis_server import RedisServer, die_with_parent, free_port

ROOT: Final = Path(__file__).parents[2]
VENVS: Final = ROOT / ".torpor"
PACKAGES: Final = {
    "taskiq": ("taskiq", "taskiq-redis"),
    "dramatiq": ("dramatiq[redis]",),
    "arq": ("arq",),
    "celery": ("celery[redis]",),
    "rq": ("rq",),
}
"""Each peer has an environment of its own: arq wants another redis-py than Celery."""
NAMES: Final = ("torpor", *PACKAGES)


@dataclass(frozen=True, slots=True)
class Contestant:
    """Where to POST what, and which processes do the work."""

    url: str
    body: dict[str, Any]
    pids: Mapping[str, int]
    """By what each does."""


@contextmanager
def process(*command: str | Path, env: dict[str, str], log: Path) -> Iterator[int]:
    """A child for the length of the block; its pid."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=os.environ | env,
            stdout=out,
            stderr=out,
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
    try:
        yield child.pid
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def python_of(name: str) -> Path:
    """The Python of a task queue's own environment, made when it is first asked for."""
    folder = VENVS / f"bench-{name}"
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        sys.stderr.write(f"setting up {name} in {folder} ...\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run(
            [*pip, "fastapi", "uvicorn", "uvloop", "httptools", *PACKAGES[name]], check=True
        )
        (folder / ".installed").touch()
    return python


@contextmanager
def peer(name: str, redis_url: str, folder: Path) -> Iterator[Contestant]:
    """FastAPI and one worker of a task queue."""
    port = free_port()
    folder_of_app = Path(__file__).parent
    env = {"PEER_REDIS": redis_url, "PEER_PORT": str(port), "PYTHONPATH": str(folder_of_app)}
    app = folder_of_app / "app.py"
    python = python_of(name)
    with ExitStack() as stack:
        pids = {}
        for role in ("work", "serve"):
            log = folder / f"{name}-{role}.log"
            pids[role] = stack.enter_context(process(python, app, name, role, env=env, log=log))
        yield Contestant(f"http://127.0.0.1:{port}/echo", {"text": "hello"}, pids)


@contextmanager
def torpor(redis_url: str, folder: Path) -> Iterator[Contestant]:
    """api, broker and one predictor with the test engine as fast as it goes."""
    api, broker, predictor = free_port(), free_port(), free_port()
    trigger = {
        "metadata": {
            "name": "requests-seeded",
            "annotations": {"torpor.dev/parallelism": "64"},
        },
        "spec": {
            "filters": [{"exact": {"type": "dev.torpor.inference.requested.v1"}}],
            "subscriber": {"uri": f"http://127.0.0.1:{predictor}/"},
            "delivery": {"retry": 100, "backoffPolicy": "linear", "backoffDelay": "PT0.05S"},
        },
    }
    (folder / "triggers.yaml").write_bytes(orjson.dumps(trigger))
    env = {
        "TORPOR_ANONYMOUS_ACCESS": "loopback",
        "TORPOR_REDIS_URL": redis_url,
        "TORPOR_TRIGGERS_FILE": str(folder / "triggers.yaml"),
        "TORPOR_QUEUE_TRIGGERS_FILE": str(folder / "triggers.yaml"),
        "TORPOR_BROKER_URL": f"http://127.0.0.1:{broker}/",
        "TORPOR_MODELS": '[{"name": "seeded"}]',
        "TORPOR_FILES_URL": f"file://{folder}/files",
        "TORPOR_SEEDED_TOKENS_PER_S": "0",
        "TORPOR_SEEDED_PREFILL_TOKENS_PER_S": "0",
        "TORPOR_SEEDED_MAX_CONCURRENCY": "64",
        "TORPOR_LOG_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
    }
    python = sys.executable
    where = ("--http_port", str(predictor), "--host", "127.0.0.1")
    with ExitStack() as stack:
        pids = {}
        for name, port, command in (
            ("broker", broker, (python, "-m", "eventing.broker")),
            ("predictor", 0, (python, "-m", "predictor", "--engine", "seeded", *where)),
            ("api", api, (python, "-m", "api")),
        ):
            own = env | {"TORPOR_PORT": str(port)}
            log = folder / f"torpor-{name}.log"
            pids[name] = stack.enter_context(process(*command, env=own, log=log))
        body = {"model": "seeded", "prompt": "hello", "seeded": {"output_tokens": 1}}
        yield Contestant(f"http://127.0.0.1:{api}/v1/completions", body, pids)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process and its children have used: what the machine's other load moves least."""
    parent = psutil.Process(pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def put_ahead(pids: Iterable[int]) -> None:
    """Give these the machine before other sessions' work; root's alone. Linux weighs sessions, and
    each of ours is one.
    """
    for pid in pids:
        for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            Path(f"/proc/{each.pid}/autogroup").write_text("-19")


def commands(server: RedisServer) -> int:
    """How many commands the server has run, those of scripts among them."""
    with redis.Redis(port=server.port) as probe:
        return sum(each["calls"] for each in probe.info("commandstats").values())


async def loop_for(
    contestant: Contestant, server: RedisServer, clients: int, seconds: float
) -> dict[str, Any]:
    """A closed loop: jobs a second and latency; anything but a 200 is a failure of the run."""
    samples: list[float] = []
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        end_s = time.perf_counter() + seconds

        async def client() -> None:
            while (began_s := time.perf_counter()) < end_s:
                async with session.post(contestant.url, json=contestant.body) as answer:
                    content = await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"{answer.status}: {content[:300]!r}")
                samples.append(time.perf_counter() - began_s)

        pids = {**contestant.pids, "redis": server.pid}
        run = commands(server)
        began_s, before = time.perf_counter(), {name: cpu_s(pid) for name, pid in pids.items()}
        await asyncio.gather(*(client() for _ in range(clients)))
        took_s = time.perf_counter() - began_s
        used = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
        run = commands(server) - run
    ordered = sorted(samples)
    cpu_ms = {name: round(seconds * 1000 / len(ordered), 2) for name, seconds in used.items()}
    return {
        "clients": clients,
        "jobs": len(ordered),
        "jobs_per_s": round(len(ordered) / took_s, 1),
        "cpu_ms_a_job": round(sum(used.values()) * 1000 / len(ordered), 2),
        "cpu_ms_by_process": cpu_ms,
        "commands_a_job": round(run / len(ordered), 1),
        "p50_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 2),
    }


async def warm(contestant: Contestant) -> None:
    """Return after the first jobs were answered; everything has started then."""
    deadline_s = time.perf_counter() + 60
    async with aiohttp.ClientSession() as session:
        done = 0
        while done < 20:
            try:
                async with session.post(contestant.url, json=contestant.body) as answer:
                    content = await answer.read()
                    done += answer.status == 200
            except aiohttp.ClientError as error:
                content = str(error).encode()
            if time.perf_counter() > deadline_s:
                raise RuntimeError(f"did not start: {content[:300]!r}")
            if not done:
                await asyncio.sleep(0.1)


async def measure(
    name: str, seconds: float, folder: Path, *, is_ahead: bool
) -> list[dict[str, Any]]:
    """Both loops of one contestant on a fresh server."""
    folder.mkdir()
    options = ["--appendonly", "yes", "--appendfsync", "everysec"]
    server = RedisServer(folder / "redis", options=options)
    server.start()
    start = torpor if name == "torpor" else lambda url, where: peer(name, url, where)
    try:
        with start(server.url, folder) as contestant:
            await warm(contestant)
            if is_ahead:
                put_ahead((*contestant.pids.values(), server.pid, os.getpid()))
            return [
                {"name": name} | await loop_for(contestant, server, clients, seconds)
                for clients in (1, 64)
            ]
    finally:
        server.kill()


async def main(names: list[str], seconds: float, *, is_ahead: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="torpor-peers-"))
    for name in names:
        for row in await measure(name, seconds, folder / name, is_ahead=is_ahead):
            sys.stdout.write(orjson.dumps(row).decode() + "\n")
            sys.stdout.flush()
    shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--ahead", action="store_true", help="before the machine's other work")
    chosen = parser.parse_args()
    asyncio.run(main(chosen.only.split(","), chosen.seconds, is_ahead=chosen.ahead))
