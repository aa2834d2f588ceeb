"""Engines in front of scripted providers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from eventing.process.egress import AllowList
from eventing.redis.connection import connect
from predictor.engine.engine import EngineRequest
from predictor.engine.upstream.engine import UpstreamEngine, UpstreamSettings
from predictor.engine.upstream.provider import (
    ProviderRules,
    ProviderState,
    SharedProvider,
    UnlimitedProvider,
)
from predictor.engine.upstream.target import Endpoint
from tests.integration.engine_calls import chat
from tests.integration.scripted_provider import (
    ScriptedProvider,
    says,
    scripted_provider,
)

INSIDE = AllowList.parse(("127.0.0.0/8",))


@asynccontextmanager
async def engine_at(
    *urls: str,
    key_file: Path | None = None,
    redis_url: str = "",
    rules: ProviderRules | None = None,
    **settings: Any,
) -> AsyncIterator[UpstreamEngine]:
    """An engine that every tenant may use; with a `redis_url` it shares what it knows of its providers."""
    given = UpstreamSettings(
        model_name="seeded",
        endpoints=tuple(Endpoint(url=url, model="theirs", key_file=key_file) for url in urls),
        tenants=frozenset({"*"}),
        allowed=INSIDE,
    )

    def state_of(endpoint: Endpoint) -> ProviderState:
        if not redis_url:
            return UnlimitedProvider()
        redis = connect(redis_url, timeout_s=5)
        return SharedProvider(redis, url=endpoint.url, model=endpoint.model, rules=rules)

    engine = UpstreamEngine(replace(given, **settings), state_of)
    await engine.start(lambda _: None)
    try:
        yield engine
    finally:
        await engine.stop()


def asked(text: str = "?", **body: Any) -> EngineRequest:
    return replace(chat(text, **body), tenant="acme", idempotency_key="job_1")


@asynccontextmanager
async def two_providers() -> AsyncIterator[tuple[ScriptedProvider, ScriptedProvider]]:
    async with scripted_provider() as first, scripted_provider() as second:
        second.answers = [says("from", " the", " other")]
        yield first, second


def said_in(body: Mapping[str, Any]) -> str:
    return str(body["choices"][0]["message"]["content"])


FAST = ProviderRules(open_s=1.0, jitter_s=0.1, look_back_s=6)
