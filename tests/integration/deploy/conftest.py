"""A mock API server on loopback and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer
from kubernetes.aio import client as kubernetes_client

from knative.deploy.client import Cluster
from tests.integration.deploy.api_server import ApiServer


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
    """A client of the mock, with a short timeout."""
    settings = kubernetes_client.Configuration(host=url_of_server)
    made = Cluster(kubernetes_client.ApiClient(settings), timeout_s=2)
    yield made
    await made.close()
