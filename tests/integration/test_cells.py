"""Two cells on one machine, and a tenant that moves from one to the other: nothing is lost, and nothing runs twice."""

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.stack import MODEL, TORPOR, LocalStack

pytestmark = pytest.mark.timeout(120)
SLOW = 120
"""Tokens of a job that still runs when its tenant moves: some 2 s."""


class Tenant:
    """A caller with its key."""

    def __init__(self, name: str, keys: Path) -> None:
        made = subprocess.run(
            [TORPOR, "keys", "create", name, "--file", str(keys)],
            check=True,
            capture_output=True,
            text=True,
        )
        self._headers = {"authorization": f"Bearer {made.stdout.strip()}"}

    def submit(self, cell: LocalStack, key: str, tokens: int = 8) -> httpx.Response:
        body = {"model": MODEL, "prompt": key, "max_tokens": tokens, "ignore_eos": True}
        return httpx.post(
            f"{cell.addresses['api']}/v1/jobs",
            json={"url": "/v1/completions", "body": body},
            headers=self._headers | {"idempotency-key": key},
        )

    def get(self, cell: LocalStack, path: str, **query: str) -> httpx.Response:
        url = f"{cell.addresses['api']}{path}"
        return httpx.get(url, params=query, headers=self._headers, timeout=120)

    def open_jobs(self, cell: LocalStack) -> list[Any]:
        """What the operator looks at before the old cell is taken down."""
        found: list[Any] = self.get(cell, "/v1/jobs", state="queued,in_progress").json()["data"]
        return found


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def tenants(keys: Path) -> tuple[Tenant, Tenant]:
    return Tenant("birds", keys), Tenant("bees", keys)


def cell_in(folder: Path, keys: Path, **env: str) -> LocalStack:
    """The keys are the same file in every cell."""
    settings = {"TORPOR_KEYS_SOURCE": str(keys), "TORPOR_SEEDED_TOKENS_PER_S": "60"}
    return LocalStack(folder, "--window", "20s", env=settings | env).start()


def test_a_tenant_moves_to_another_cell_and_nothing_is_lost(
    tmp_path: Path, keys: Path, tenants: tuple[Tenant, Tenant]
) -> None:
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        old, other = pool.map(lambda name: cell_in(tmp_path / name, keys), "ab")
        stack.callback(other.stop, signal.SIGKILL)
        move(tmp_path / "a", keys, tenants, old, other)


def move(
    folder: Path, keys: Path, tenants: tuple[Tenant, Tenant], old: LocalStack, other: LocalStack
) -> None:
    birds, bees = tenants
    accepted = [birds.submit(old, f"early-{n}", SLOW).json()["id"] for n in range(3)]
    old.stop()

    moved = json.dumps({"birds": other.addresses["api"]})
    old = cell_in(folder, keys, TORPOR_MOVED_TENANTS=moved)
    try:
        refused = birds.submit(old, "late")
        again = birds.submit(old, "early-0", SLOW)
        late = birds.submit(other, "late").json()["id"]
        stays = bees.submit(old, "stays")
        states = [birds.get(old, f"/v1/jobs/{id_}", wait="30").json()["state"] for id_ in accepted]
        left = birds.open_jobs(old)
        there = birds.get(other, f"/v1/jobs/{late}", wait="30").json()["state"]
        unknown = birds.get(other, f"/v1/jobs/{accepted[0]}").status_code
        listed = [job["id"] for job in birds.get(old, "/v1/jobs").json()["data"]]
    finally:
        old.stop(signal.SIGKILL)

    assert (refused.status_code, refused.json()["code"]) == (503, "tenant_moved")
    assert other.addresses["api"] in refused.json()["detail"]
    assert again.json()["id"] == accepted[0]
    assert (states, there, left) == (["completed"] * 3, "completed", [])
    assert stays.status_code == 202
    # Ids are readable in the cell that gave them, and there alone.
    assert (sorted(listed), unknown) == (sorted(accepted), 404)
