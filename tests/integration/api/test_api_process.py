"""The api as a process: what `python -m api` puts together, and how it refuses to start."""

import gc
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from api.__main__ import build, main
from api.settings import AnonymousAccess, ApiSettings
from eventing.settings import ModelCard
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import serving


@pytest.fixture
def restored_collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


async def test_the_parts_fit_together(
    redis_url: str, redis: Redis, tmp_path: Path, restored_collector: None
) -> None:
    """Ready, with a document; a submit is promised while the broker is away; the end is clean."""
    settings = ApiSettings(
        redis_url=redis_url,
        broker_url="http://127.0.0.1:9/",
        files_url=f"file://{tmp_path}",
        models=(ModelCard(name="m"),),
        anonymous_access=AnonymousAccess.LOOPBACK,
    )
    async with serving(build(settings)[0]) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "m"
        assert (await client.post("/v1/jobs", json=chat_line())).status_code == 202
        assert (await client.get("/openapi.json")).status_code == 200


def test_settings_that_cannot_work_are_named_all_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORPOR_PORT", "70000")
    monkeypatch.setenv("TORPOR_SYNC_TIMEOUT_S", "-1")

    assert main() == 2
    said = capsys.readouterr().err
    assert "TORPOR_PORT" in said
    assert "TORPOR_SYNC_TIMEOUT_S" in said


def test_an_api_without_authentication_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORPOR_HOST", "0.0.0.0")

    assert main() == 2
    assert "TORPOR_KEYS_SOURCE" in capsys.readouterr().err


def test_settings_are_shown_with_secrets_masked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORPOR_REDIS_URL", "redis://:canary-7f3a@127.0.0.1:1/0")
    monkeypatch.setenv("TORPOR_ANONYMOUS_ACCESS", "loopback")

    with pytest.raises(SystemExit) as ended:
        main(["--print-settings"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "canary-7f3a" not in shown
    assert '"redis_url"' in shown
