"""A mock API server on loopback, a client of it, and the commands against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from aiohttp.test_utils import TestServer
from click.testing import Result
from kubernetes.aio import client as kubernetes_client
from typer.testing import CliRunner

from knative.deploy.rollout.client import Cluster
from tests.integration.deploy.api_server import ApiServer
from tests.manifests.conftest import MANIFESTS, kustomize
from tests.time_limits import STORE_S
from torpor.cli.cluster.commands import app

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def url_of_server(server: ApiServer) -> AsyncIterator[str]:
    """The address of the mock."""
    made = TestServer(server.app())
    await made.start_server()
    yield str(made.make_url("/")).rstrip("/")
    await made.close()


@pytest.fixture
def server() -> ApiServer:
    """An API server that knows our kinds and has our namespace."""
    made = ApiServer()
    made.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "torpor"}})
    return made


@pytest.fixture
async def cluster(url_of_server: str) -> AsyncIterator[Cluster]:
    """A client of the mock."""
    settings = kubernetes_client.Configuration(host=url_of_server)
    made = Cluster(kubernetes_client.ApiClient(settings), timeout_s=STORE_S)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small queue overlay, built."""
    path = tmp_path_factory.mktemp("built") / "queue-cpu.yaml"
    path.write_text(yaml.safe_dump_all(kustomize(MANIFESTS / "overlays" / "queue-cpu")))
    return path


@pytest.fixture
def run(url_of_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a thread, as a process of its own would be."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "mock",
        "contexts": [{"name": "mock", "context": {"cluster": "mock", "user": "me"}}],
        "clusters": [{"name": "mock", "cluster": {"server": url_of_server}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    async def invoke(*words: object, say: str = "") -> Result:
        return await asyncio.to_thread(
            CliRunner().invoke, app, [str(word) for word in words], input=say
        )

    return invoke
