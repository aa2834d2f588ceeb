"""Each job ends once, whatever `torpor deploy`, `promote` and `rollback` do to the model it waits for.

The command line, a mock API server, and real processes behind it: api, broker, and for each predictor an engine and
its pump, started and ended as the applied objects say.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import yaml
from redis.asyncio import Redis

from eventing.redis import keys
from knative.deploy.render.render import write
from tests.faults.programs import Zygote, zygote_in
from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.conftest import Run
from tests.integration.deploy.pods import Pods
from tests.integration.deploy.test_commands import said
from tests.manifests.conftest import kustomize
from tests.manifests.test_models import VALUES

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with zygote_in(tmp_path_factory.mktemp("zygote")) as made:
        yield made


@pytest.fixture(scope="module")
def overlay_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The overlay with a second model, built."""
    folder = tmp_path_factory.mktemp("two")
    write(folder, VALUES)
    path = folder / "queue-cpu.yaml"
    path.write_text(yaml.safe_dump_all(kustomize(folder / "overlays" / "queue-cpu")))
    return path


@dataclass
class Cluster:
    """The command line, the pods, and the jobs that were accepted."""

    run: Run
    pods: Pods
    redis: Redis
    accepted: dict[str, str] = field(default_factory=dict)

    async def command(self, *words: object) -> None:
        """One that must succeed, and what its pruning ends."""
        result = await self.run(*words, "--timeout", 40)
        assert result.exit_code == 0, said(result)
        await self.pods.follow()

    async def submit(self, model: str, count: int) -> None:
        body = {"model": model, "prompt": "hi", "max_tokens": 3}
        async with aiohttp.ClientSession(self.pods.api_url) as session:
            for _ in range(count):
                line = {"url": "/v1/completions", "body": body}
                async with session.post("/v1/jobs", json=line) as answer:
                    assert answer.status == 202, await answer.text()
                    self.accepted[(await answer.json())["id"]] = model

    async def states(self) -> Counter[tuple[str, str]]:
        """How many jobs of each model are in which state."""
        found: Counter[tuple[str, str]] = Counter()
        for job_id, model in self.accepted.items():
            found[model, (await self.redis.hget(keys.job(job_id), "state") or b"").decode()] += 1
        return found

    async def until_all_have_ended(self) -> Counter[tuple[str, str]]:
        async with asyncio.timeout(60):
            while any(state in ("queued", "in_progress") for _, state in await self.states()):
                await asyncio.sleep(0.1)
        return await self.states()

    async def ends(self) -> Counter[str]:
        """How often the end of each job was told."""
        told = await self.redis.xrange(keys.ENDED)
        return Counter(entry[b"job"].decode() for _, entry in told)


@pytest.fixture(params=["asleep", "awake"])
async def cluster(
    request: pytest.FixtureRequest,
    run: Run,
    server: ApiServer,
    zygote: Zygote,
    redis: Redis,
    redis_url: str,
    tmp_path: Path,
) -> AsyncIterator[Cluster]:
    """An empty cluster whose predictors sleep until they are woken, or run throughout."""
    pods = Pods(server, zygote, tmp_path, redis_url, is_awake=request.param == "awake")
    server.on_apply = pods.apply
    yield Cluster(run, pods, redis)
    await pods.end()


async def test_each_job_ends_once_over_canaries_and_models_that_come_and_go(
    cluster: Cluster, overlay: Path, overlay_of_two: Path
) -> None:
    canary = ("deploy", overlay, "--yes", "--canary", "50", "--image", "new:2")
    await cluster.command("deploy", overlay, "--yes")
    await cluster.submit("thinker", 6)
    await cluster.command(*canary)
    await cluster.submit("thinker", 12)  # some of them are the canary's: 1 run in 2,000 has none
    await cluster.command("rollback", "--yes")
    await cluster.submit("thinker", 6)
    await cluster.command(*canary)
    await cluster.submit("thinker", 12)
    await cluster.command("promote", "thinker", "--now")
    await cluster.submit("thinker", 6)
    await cluster.command("deploy", overlay_of_two, "--yes")
    await cluster.submit("drafter", 6)
    await cluster.command("deploy", overlay, "--yes")
    await cluster.submit("thinker", 6)

    cluster.pods.is_awake = True
    await cluster.pods.follow()
    states = await cluster.until_all_have_ended()

    assert states["thinker", "completed"] == 48
    # Who waited for a model that was taken away is told so.
    assert states["drafter", "completed"] + states["drafter", "failed"] == 6
    assert await cluster.ends() == Counter(list(cluster.accepted))
