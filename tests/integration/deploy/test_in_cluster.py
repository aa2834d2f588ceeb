"""Inside a cluster the client takes the pod's own account: address, authority and token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from knative.deploy.errors import ClusterUnreachable
from knative.deploy.rollout.client import Ref, connected
from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.certificate import certificate, serving

LOADER = "kubernetes.aio.config.incluster_config"
NAMESPACE = Ref("v1", "Namespace", "torpor")


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which Kubernetes leaves a pod its account, with `token` and `ca.crt`."""
    certificate(tmp_path, "ca")
    (tmp_path / "token").write_text("first")
    monkeypatch.setattr(f"{LOADER}.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(f"{LOADER}.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    return tmp_path


@pytest.fixture
async def shown(
    server: ApiServer, account: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[str]]:
    """The Authorization headers that an API server over TLS gets to see."""
    seen: list[str] = []

    @web.middleware
    async def look(request: web.Request, handler: web.Handler) -> web.StreamResponse:
        seen.append(request.headers.get("authorization", ""))
        return await handler(request)

    app = server.app()
    app.middlewares.append(look)
    made = TestServer(app, scheme="https")
    await made.start_server(ssl=serving(account / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(made.port))
    yield seen
    await made.close()


async def test_the_pods_account_opens_the_cluster(shown: list[str]) -> None:
    async with connected() as cluster:
        found = await cluster.get(NAMESPACE)

    assert found is not None
    assert {header.lower() for header in shown} == {"bearer first"}  # the scheme has no case


async def test_another_authority_is_not_trusted(account: Path, shown: list[str]) -> None:
    certificate(account, "ca")  # another one under the same name

    with pytest.raises(ClusterUnreachable):
        async with connected() as cluster:
            await cluster.get(NAMESPACE)


async def test_a_context_that_a_person_names_wins_over_where_we_run(
    shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))

    with pytest.raises(ClusterUnreachable, match="no cluster"):
        async with connected("mine"):
            raise AssertionError("there is no such context")
    assert shown == []
