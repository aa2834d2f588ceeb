"""The images in containers, with what their rendered pods give them: security context, env, mounts, arguments.

Debian's buildah and podman, with runc, build and run them; the base of the images is made by debootstrap, so no
registry is asked. Slow: `make test-containers`; skipped by name elsewhere.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.manifests.conftest import MANIFESTS, ROOT, kustomize
from tests.redis_server import RedisServer, free_port

TOOLS = ("buildah", "podman", "runc", "debootstrap", "kubectl")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
WHY_NOT = (
    "slow: `make test-containers` runs it" if not os.environ.get("TORPOR_CONTAINERS")
    else f"not installed: {', '.join(MISSING)}" if MISSING
    else "containers need root here" if os.geteuid() != 0
    else ""
)  # fmt: skip
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(1800),
]
BASE = "docker.io/library/python:3.11.14-slim-bookworm"
# `TORPOR_CONTAINERS` may hold flags for both engines: `--storage-driver vfs` where overlays cannot be mounted.
FLAGS = [each for each in os.environ.get("TORPOR_CONTAINERS", "").split() if each != "1"]
BUILDAH = ["buildah", *FLAGS]
PODMAN = ["podman", *FLAGS, "--runtime", shutil.which("runc") or "", "--cgroup-manager", "cgroupfs"]
CA = Path("/etc/ssl/certs/ca-certificates.crt")


def called(*words: object, limit_s: float = 1500) -> str:
    """What a command said; its whole output in the failure."""
    made = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    return made.stdout.strip()


def has_image(name: str) -> bool:
    return subprocess.run([*BUILDAH, "images", "-q", name], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian with its Python under the name of the images' base, made once a machine."""
    if not has_image(BASE):
        root = tmp_path_factory.mktemp("base") / "root"
        needs = "python3,python3-venv,ca-certificates"
        called("debootstrap", "--variant=minbase", f"--include={needs}", "bookworm", root)
        (root / "usr/bin/python").symlink_to("python3")
        made = called(*BUILDAH, "from", "scratch")
        called(*BUILDAH, "add", "-q", made, root, "/")
        called(*BUILDAH, "config", "--env", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", made)
        called(*BUILDAH, "commit", "-q", made, BASE)
        called(*BUILDAH, "rm", made)
    return BASE


@pytest.fixture(scope="session", params=["broker", "api"])
def image(
    request: pytest.FixtureRequest, base: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Each image of ours without an engine, built from its Dockerfile as it stands."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "pip.conf").write_text("[global]\ncert = /run/secrets/ca\n")
    name = f"localhost/torpor-test/{request.param}:1"
    secrets = ["--secret", f"id=pipconf,src={folder / 'pip.conf'}"]
    secrets += ["--secret", f"id=ca,src={CA}"] if CA.exists() else []
    if not os.environ.get("TORPOR_CONTAINERS_KEEP") or not has_image(name):
        how = ["bud", "--layers", "--isolation", "chroot", "--network", "host", *secrets]
        dockerfile = ROOT / "images" / f"{request.param}.Dockerfile"
        called(*BUILDAH, *how, "-f", dockerfile, "-t", name, ROOT)
    return request.param, name


@dataclass
class Container:
    """One that runs: its engine's process, and where it answers."""

    process: subprocess.Popen[bytes]
    name: str
    url: str
    log: Path

    def until_ready(self, limit_s: float = 120) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def until_started(self, limit_s: float = 120) -> None:
        """Its first process is there: PID 1, however young."""
        deadline = time.monotonic() + limit_s
        asked = [*PODMAN, "inspect", "-f", "{{.State.Running}}", self.name]
        while subprocess.run(asked, capture_output=True, text=True).stdout.strip() != "true":
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def send(self, number: int) -> None:
        called(*PODMAN, "kill", "--signal", number, self.name)

    def wait(self, limit_s: float = 600) -> int:
        return self.process.wait(limit_s)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def container(
    image: tuple[str, str], redis_server: RedisServer, tmp_path: Path
) -> Iterator[Container]:
    kind, name = image
    resources = kustomize(MANIFESTS / "overlays" / "queue-cpu")
    port = free_port()
    own = f"torpor-test-{port}"
    changes = {"TORPOR_REDIS_URL": redis_server.url, "TORPOR_PORT": str(port)}
    words = as_podman(f"torpor-{kind}", resources, changes, tmp_path)
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*PODMAN, "run", "--rm", "--name", own, *words[0], name, *words[1]],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    yield Container(process, own, f"http://127.0.0.1:{port}", log)
    subprocess.run([*PODMAN, "rm", "--force", own], capture_output=True)
    process.wait(60)


def as_podman(
    deployment: str, resources: list[dict[str, Any]], changes: dict[str, str], folder: Path
) -> tuple[list[str], list[str]]:
    """podman's flags and arguments for what a Deployment's pod says of its container."""
    pod = find(resources, "Deployment", deployment)["spec"]["template"]["spec"]
    (box,) = pod["containers"]
    context = box["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not context["allowPrivilegeEscalation"]
    user = f"{context['runAsUser']}:{context['runAsUser']}"
    flags = ["--network", "host", "--read-only", "--cap-drop", "ALL", "--user", user]
    flags += ["--security-opt", "no-new-privileges"]
    flags += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
    for mount in box["volumeMounts"]:
        (volume,) = (each for each in pod["volumes"] if each["name"] == mount["name"])
        flags += mounted(mount["mountPath"], volume, resources, folder)
    env = {e["name"]: e.get("value", f"of a secret: {e['name']}") for e in box["env"]}
    settings = find(resources, "ConfigMap", "torpor-settings")["data"]
    for key, value in {**settings, **env, **changes}.items():
        flags += ["--env", f"{key}={value}"]
    return flags, list(box.get("args", []))


def mounted(
    path: str, volume: dict[str, Any], resources: list[dict[str, Any]], folder: Path
) -> list[str]:
    """A volume as podman has it: a tmpfs for what dies with the pod, a folder for the rest."""
    if "emptyDir" in volume:
        return ["--tmpfs", f"{path}:mode=1777"]
    made = folder / volume["name"]
    made.mkdir(mode=0o755)
    if "configMap" in volume:
        for name, text in find(resources, "ConfigMap", volume["configMap"]["name"])["data"].items():
            (made / name).write_text(text)
        return ["--volume", f"{made}:{path}:ro"]
    if "secret" in volume:
        for item in volume["secret"]["items"]:
            (made / item["path"]).write_text("[]")
        return ["--volume", f"{made}:{path}:ro"]
    made.chmod(0o777)  # a claim, with the group of `fsGroup`
    return ["--volume", f"{made}:{path}"]


def find(resources: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name))


def test_an_image_is_ready_under_the_context_of_its_pod_and_ends_when_told(
    container: Container,
) -> None:
    container.until_ready()

    container.send(signal.SIGTERM)

    assert container.wait() == 0, container.log.read_text()


@pytest.mark.parametrize("age_s", [0, 1, 5])
def test_pid_1_heeds_a_sigterm_of_any_age(container: Container, age_s: int) -> None:
    container.until_started()
    time.sleep(age_s)
    container.send(signal.SIGTERM)

    assert container.wait() == 0, container.log.read_text()
