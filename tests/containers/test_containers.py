"""Each process of ours in a container as its rendered pod has it, and together from a submit to its answer.

`make test-containers` is the long form: it builds the images from their Dockerfiles first.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import redis

from knative.deploy.render.render import write
from knative.deploy.values import Values
from tests.containers.image import CACHE, Image, Unavailable, base, built, linked, storage
from tests.containers.node import Container, Node, podman, store_image
from tests.manifests.conftest import MANIFESTS, kustomize

IS_LONG = os.environ.get("TORPOR_CONTAINERS") == "build"
TOOLS = ["podman", "runc", "debootstrap", "kubectl"]
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
WHY_NOT = (
    f"not installed: {', '.join(MISSING)}" if MISSING
    else "containers need root here" if os.geteuid() != 0
    else "the base has Python 3.11, and its packages are linked from here" if sys.version_info[:2] != (3, 11)
    else ""
)  # fmt: skip
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(1800 if IS_LONG else 300),
]
ANSWER_TOKENS = 110  # before the seed of this prompt stops by itself
FAST = {"TORPOR_LEASE_S": "2"}  # how long a killed predictor's job waits


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Image]]:
    """Our images by name; skips where no container runs."""
    try:
        root = ["--rootfs", str(base())]
    except Unavailable as error:
        pytest.skip(str(error))
    can = [*podman(), "run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024"]
    can += ["--ulimit", "nproc=4096:4096", "--cap-drop", "ALL", "--memory", "64m", *root]
    tried = subprocess.run([*can, "/bin/true"], capture_output=True, text=True, timeout=120)
    if tried.returncode:
        pytest.skip(f"no container runs here: {tried.stderr.strip()[-200:]}")
    folder = tmp_path_factory.mktemp("images")
    folder.chmod(0o755)
    make: Callable[[str, Path], Image] = built if IS_LONG else linked
    yield {
        "api": make("api.Dockerfile", folder / "api"),
        "broker": make("broker.Dockerfile", folder / "broker"),
        # The engine alone is gigabytes, and the seeded one needs none of them.
        "predictor": linked("predictor-cpu.Dockerfile", folder / "predictor"),
        "store": store_image(),
    }
    # The engine leaves a mount of its storage in the caller's cache, which could not be removed then.
    subprocess.run(["umount", str(CACHE / "pods/overlay")], capture_output=True, timeout=120)


def test_the_engine_takes_a_cache_folder_of_any_length(tmp_path: Path) -> None:
    flags = storage(tmp_path / ("a" * 60))
    said = subprocess.run(["podman", *flags, "info"], capture_output=True, text=True, timeout=120)
    shutil.rmtree(flags[flags.index("--runroot") + 1], ignore_errors=True)
    assert said.returncode == 0, said.stderr


@pytest.fixture
def overlay() -> str:
    return "queue-cpu"


@pytest.fixture
def node(tmp_path: Path, overlay: str) -> Iterator[Node]:
    tmp_path.chmod(0o755)
    made = Node(kustomize(MANIFESTS / "overlays" / overlay), tmp_path / "node", FAST)
    yield made
    made.close()


@dataclass
class Pods:
    """Every pod of the overlay, running."""

    node: Node
    api: Container
    broker: Container
    predictor: Container
    pump: Container

    @property
    def all(self) -> list[Container]:
        return [self.api, self.broker, self.predictor, self.pump]

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A call with the first key, as `docs/install.md` makes it."""
        key = self.node.secrets["torpor-api-keys"]["first-key"]
        headers = {"authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:8000{path}"
        return self.node.call(
            lambda: httpx.request(method, url, headers=headers, timeout=120, **more)
        )

    def submit(self, tokens_per_s: float) -> str:
        body = {"model": "thinker", "prompt": "hi", "max_tokens": ANSWER_TOKENS}
        body["seeded"] = {"tokens_per_s": tokens_per_s}
        said = self.ask("POST", "/v1/jobs", json={"url": "/v1/completions", "body": body})
        assert said.status_code == 202, said.text
        return str(said.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"/v1/jobs/{job_id}").json()
        return found

    def until(self, job_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while not holds(job := self.job(job_id)):
            assert time.monotonic() < deadline, [job, *(each.log() for each in self.all)]
            time.sleep(0.1)
        return job


def start(node: Node, images: dict[str, Image]) -> Pods:
    node.run("StatefulSet", "torpor-redis", "redis", images["store"]).until_ready()
    thinker = ("InferenceService", "thinker")
    return Pods(
        node,
        node.run("Deployment", "torpor-api", "api", images["api"]),
        node.run("Deployment", "torpor-broker", "broker", images["broker"]),
        node.run(*thinker, "kserve-container", images["predictor"], "--engine", "seeded"),
        node.run(*thinker, "pump", images["broker"]),
    )


def ends(node: Node) -> int:
    """How many ends of jobs the store has told of."""
    password = node.secrets["torpor-redis"]["password"]
    with redis.Redis("127.0.0.1", password=password) as client:
        return int(client.xlen("torpor:ended"))


def test_a_job_gets_its_answer_and_every_process_ends_on_sigterm(
    node: Node, images: dict[str, Image]
) -> None:
    pods = start(node, images)
    for each in pods.all:
        each.until_ready()

    job = pods.until(pods.submit(1000), lambda job: job["state"] == "completed")

    assert job["attempt"] == 1
    assert job["result"]["usage"]["completion_tokens"] == ANSWER_TOKENS
    for each in pods.all:
        each.send(signal.SIGTERM)
    assert [each.wait() for each in pods.all] == [0, 0, 0, 0], [each.log() for each in pods.all]


@pytest.mark.parametrize("age_s", [0, 1, 5])
def test_pid_1_heeds_a_sigterm_of_any_age(node: Node, images: dict[str, Image], age_s: int) -> None:
    pods = start(node, images)
    time.sleep(age_s)
    for each in pods.all:
        each.send(signal.SIGTERM)

    assert [each.wait() for each in pods.all] == [0, 0, 0, 0], [each.log() for each in pods.all]


def test_a_job_ends_once_though_every_process_is_killed_while_it_runs(
    node: Node, images: dict[str, Image]
) -> None:
    pods = start(node, images)
    for each in pods.all:
        each.until_ready()
    job_id = pods.submit(10)
    pods.until(job_id, lambda job: job["token_count"] > 5)

    for each in reversed(pods.all):  # the predictor while it generates
        each.send(signal.SIGKILL)
        assert each.wait() == 128 + signal.SIGKILL
        each.restart()
        each.until_ready()

    job = pods.until(job_id, lambda job: job["state"] == "completed")
    assert job["attempt"] > 1
    assert node.call(lambda: ends(node)) == 1
    alone = pods.until(pods.submit(1000), lambda job: job["state"] == "completed")
    assert job["result"]["choices"] == alone["result"]["choices"]


PROVIDER_PORT = 9100
UPSTREAM = {
    "url": f"http://127.0.0.1:{PROVIDER_PORT}/v1",
    "model": "large-4",
    "secret": "big-provider",
    "tenants": ["*"],
    "networks": ["127.0.0.0/8"],
}


class Provider(BaseHTTPRequestHandler):
    """Answers one word to those who have the key."""

    seen: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_GET(self) -> None:
        self._say(b'{"object": "list", "data": []}', "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append((self.headers["authorization"], body))
        said = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "theirs-4"}
        ends = ({"content": "Paris."}, None), ({}, "stop")
        chunks = [
            said | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            for delta, reason in ends
        ]
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        chunks.append(said | {"choices": [], "usage": usage})
        lines = [f"data: {json.dumps(each)}\n\n" for each in chunks]
        self._say("".join([*lines, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def _say(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        return None


@contextmanager
def provider_on(node: Node) -> Iterator[type[Provider]]:
    """A provider on the node's network."""
    server = ThreadingHTTPServer(("127.0.0.1", PROVIDER_PORT), Provider, bind_and_activate=False)
    server.socket.close()
    server.socket = node.call(lambda: socket.create_server(("127.0.0.1", PROVIDER_PORT)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_providers_pod_runs_as_rendered_and_shows_the_key_of_its_secret(
    images: dict[str, Image], tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    write(tmp_path, Values.model_validate({"more_models": [{"name": "big", "upstream": UPSTREAM}]}))
    node = Node(kustomize(tmp_path / "overlays" / "queue-cpu"), tmp_path / "node", FAST)
    node.secrets["big-provider"] = {"key": "sk-from-the-secret"}
    big = ("InferenceService", "big")
    with closing(node), provider_on(node) as provider:
        node.run("StatefulSet", "torpor-redis", "redis", images["store"]).until_ready()
        pods = Pods(
            node,
            node.run("Deployment", "torpor-api", "api", images["api"]),
            node.run("Deployment", "torpor-broker", "broker", images["broker"]),
            node.run(*big, "kserve-container", images["predictor"]),
            node.run(*big, "pump", images["broker"]),
        )
        for each in pods.all:
            each.until_ready()
        asked = {"model": "big", "messages": [{"role": "user", "content": "?"}]}

        said = pods.ask("POST", "/v1/chat/completions", json=asked)

        assert said.status_code == 200, [said.text, *(each.log() for each in pods.all)]
        assert said.json()["choices"][0]["message"]["content"] == "Paris."
        key, body = provider.seen[-1]
        assert (key, body["model"]) == ("Bearer sk-from-the-secret", "large-4")
        pods.predictor.send(signal.SIGTERM)
        assert pods.predictor.wait() == 0, pods.predictor.log()


@pytest.mark.parametrize("overlay", ["serverless-cpu"])
def test_the_serverless_pods_are_ready_and_end_on_sigterm(
    node: Node, images: dict[str, Image]
) -> None:
    node.run("StatefulSet", "torpor-redis", "redis", images["store"]).until_ready()
    thinker = ("InferenceService", "thinker")
    started = [
        node.run("Deployment", "torpor-api", "api", images["api"]),
        node.run("Deployment", "torpor-broker", "broker", images["broker"]),  # the relay
        node.run(*thinker, "kserve-container", images["predictor"], "--engine", "seeded"),
    ]
    for each in started:
        each.until_ready()

    for each in started:
        each.send(signal.SIGTERM)

    assert [each.wait() for each in started] == [0, 0, 0], [each.log() for each in started]
