"""The simulator tells the truth: the same short load on the live stack and in the model.

The live stack runs the test engine, whose speeds are known, and the KPA on a clock ten times as
fast. The model runs in the autoscaler's seconds, with the cold start that the live replicas showed.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from knative.autoscaling.annotations import read_knative
from knative.autoscaling.autoscaler_config import read_autoscaler_config
from knative.local import manifest
from knative.local.settings import StackSettings
from knative.simulator.engine import EngineModel
from knative.simulator.policy import KpaPolicy
from knative.simulator.workload import Request
from knative.simulator.world import Outcome, Scenario, simulate
from tests.integration.stack import LocalStack

pytestmark = pytest.mark.timeout(150)

SCALE = 10.0
TOKENS_PER_S = 50.0
START_UP_S = 2.0
SETTINGS = StackSettings(max_replicas=3, container_concurrency=2, window=60, grace=30)
# (second, tokens): a burst at zero, a trickle, silence beyond window and grace, a second burst.
LOAD = (
    *((0.1 * n, 100) for n in range(12)),
    *((8.0 + 1.5 * n, 100) for n in range(4)),
    *((36.0 + 0.1 * n, 150) for n in range(8)),
)
END_S = 62.0


@dataclass
class Watch:
    """The stack's replicas, looked at twenty times a second."""

    replica_s: float = 0.0
    ids: set[str] = field(default_factory=set)
    starts_s: dict[str, float] = field(default_factory=dict)

    def run(self, stack: LocalStack, stop: threading.Event) -> None:
        before = time.monotonic()
        with httpx.Client() as client:
            while not stop.wait(0.05):
                seen = client.get(stack.addresses["activator"] + "/status").json()["replicas"]
                now = time.monotonic()
                self.replica_s += (now - before) * len(seen["list"])
                before = now
                for one in seen["list"]:
                    self.ids.add(one["id"])
                    if one["ready_after_s"]:
                        self.starts_s[one["id"]] = one["ready_after_s"]


@dataclass(frozen=True)
class Run:
    """What both worlds are compared by; in seconds of the wall clock."""

    p95_wait_s: float
    replica_s: float
    cold_starts: int


def live(folder: Path) -> tuple[Run, tuple[float, ...]]:
    """The load on a real stack; also its cold starts, in order."""
    env = {
        "TORPOR_SEEDED_TOKENS_PER_S": str(TOKENS_PER_S),
        "TORPOR_SEEDED_START_UP_S": str(START_UP_S),
    }
    flags = ("--window", "60s", "--grace", "30s", "--max-replicas", "3")
    stack = LocalStack(folder, *flags, "--container-concurrency", "2", env=env).start()
    watch, stop = Watch(), threading.Event()
    watcher = threading.Thread(target=watch.run, args=(stack, stop))
    try:
        watcher.start()
        ids = _submitted(stack)
        jobs = [stack.job(job_id, wait_s=30) for job_id in ids]
    finally:
        stop.set()
        watcher.join()
        stack.stop()
    assert {job["state"] for job in jobs} == {"completed"}
    waits = sorted((job["started_ms"] - job["created_ms"]) / 1000 for job in jobs)
    started = sorted(watch.starts_s, key=lambda one: int(one.split("-")[1]))
    starts_s = tuple(watch.starts_s[one] for one in started)
    return Run(_p95(waits), watch.replica_s, len(watch.ids)), starts_s


def _submitted(stack: LocalStack) -> list[str]:
    began = time.monotonic()
    ids = []
    for at, tokens in LOAD:
        time.sleep(max(0.0, began + at - time.monotonic()))
        ids.append(stack.submit(max_tokens=tokens, seeded={"output_tokens": 2 * tokens}))
    time.sleep(max(0.0, began + END_S - time.monotonic()))
    return ids


def modelled(starts_s: tuple[float, ...]) -> Run:
    """The same load in the model, in the autoscaler's time, given back in wall time."""
    rate = TOKENS_PER_S / SCALE
    engine = EngineModel(1e9, ((1, rate), (2, 2 * rate)), max_batch=2, decode_during_prefill=1.0)
    scaling = read_knative(
        manifest.service(SETTINGS, "m"),
        read_autoscaler_config(manifest.config_autoscaler(SETTINGS)),
    )
    scenario = Scenario(
        engine,
        horizon_s=END_S * SCALE,
        seen_starts_s=tuple(start * SCALE for start in starts_s),
        container_concurrency=scaling.container_concurrency,
        delivery_limit=SETTINGS.max_replicas * scaling.container_concurrency,
    )
    # The model's first token comes with the prompt, the test engine's one token later.
    requests = [Request(at * SCALE, 0, tokens + 1) for at, tokens in LOAD]
    outcome: Outcome = simulate(scenario, requests, KpaPolicy(scaling))
    return Run(outcome.wait.quantile(0.95) / SCALE, outcome.gpu.billed / SCALE, outcome.cold_starts)


def _p95(values: list[float]) -> float:
    return values[-(-95 * len(values) // 100) - 1]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    real, starts_s = live(tmp_path_factory.mktemp("stack"))
    return real, modelled(starts_s)


def test_the_p95_wait_agrees_within_15_percent(both: tuple[Run, Run]) -> None:
    real, model = both
    assert model.p95_wait_s == pytest.approx(real.p95_wait_s, rel=0.15)


def test_replica_seconds_agree_within_15_percent(both: tuple[Run, Run]) -> None:
    real, model = both
    assert model.replica_s == pytest.approx(real.replica_s, rel=0.15)


def test_cold_starts_agree_within_15_percent(both: tuple[Run, Run]) -> None:
    real, model = both
    assert model.cold_starts == pytest.approx(real.cold_starts, rel=0.15)
