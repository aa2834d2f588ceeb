"""A node of one loopback: rendered pods run on it by podman and runc, each container with the security context,
environment, mounts, arguments and memory limit that its manifest gives it.

The network is a namespace of its own, so that every port is the manifest's; every Service's name leads to its loopback.
Secrets are those that the Job of the first installation makes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from knative.deploy import first_secrets
from knative.deploy.render import parts
from tests.containers.image import STORAGE, Image, base, said
from tests.manifests.conftest import Resources
from tests.redis_server import VALKEY

NAMESPACE = "torpor"
# cgroupfs: no systemd needed. Below a host's hard limits: without CAP_SYS_RESOURCE they cannot be raised.
_RUN = ["--read-only", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41

T = TypeVar("T")


def podman() -> list[str]:
    """The engine, with the runtime that a host of cgroup v1 takes too."""
    runtime = ["--runtime", shutil.which("runc") or "runc", "--cgroup-manager", "cgroupfs"]
    return ["podman", *STORAGE, *runtime]


def store_image() -> Image:
    """Valkey's image: the base with the server that the tests use."""
    flags = ["--volume", f"{VALKEY}:/usr/local/bin/valkey-server:ro"]
    flags += ["--env", "PATH=/usr/local/bin:/usr/bin"]
    return Image(flags, ["--rootfs", str(base())], [], [])


class Loopback:
    """A network namespace with a loopback and nothing else, and a thread that lives in it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.path = self.call(_enter)

    def call(self, what: Callable[[], T]) -> T:
        """Call it inside."""
        return self._thread.submit(what).result()

    def close(self) -> None:
        self._thread.shutdown()


def _enter() -> str:
    """Move the calling thread into a new network; the path of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP_RUNNING))
    return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"


@dataclass
class Container:
    """One container of a pod, by podman's name for it."""

    node: Node
    name: str
    words: list[str]
    probe: dict[str, Any]

    def start(self) -> Container:
        said(*podman(), "run", "--detach", "--name", self.name, *self.words)
        return self

    def restart(self) -> None:
        """As kubelet does after a crash: the same mounts, a new process."""
        said(*podman(), "start", self.name)

    def send(self, number: int) -> None:
        said(*podman(), "kill", "--signal", int(number), self.name)

    def wait(self, limit_s: float = 60) -> int:
        """Its exit status."""
        return int(said(*podman(), "wait", self.name, limit_s=limit_s))

    def log(self) -> str:
        shown = subprocess.run([*podman(), "logs", self.name], capture_output=True, text=True)
        return shown.stdout[-3000:] + shown.stderr[-3000:]

    @property
    def is_running(self) -> bool:
        return said(*podman(), "inspect", "-f", "{{.State.Running}}", self.name) == "true"

    def until_ready(self, limit_s: float = 120) -> None:
        """Its own probe of the manifest answers."""
        deadline = time.monotonic() + limit_s
        while not self.node.call(self._answers):
            assert time.monotonic() < deadline, self.log()
            assert self.is_running, self.log()
            time.sleep(0.2)

    def _answers(self) -> bool:
        asked = self.probe.get("httpGet")
        try:
            if asked:
                url = f"http://127.0.0.1:{asked['port']}{asked['path']}"
                return httpx.get(url, timeout=5).status_code == 200
            with socket.create_connection(("127.0.0.1", parts.REDIS_PORT), 1):
                return True
        except (httpx.HTTPError, OSError):
            return False


@dataclass
class Node:
    """Pods of one overlay's resources, on one loopback. `changes` are the few variables that a test sets otherwise."""

    resources: Resources
    folder: Path
    changes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._loopback = Loopback()
        self._own = f"torpor-{os.getpid()}-{secrets.token_hex(3)}"
        self._started: list[Container] = []
        self.secrets = {
            parts.REDIS_SECRET: first_secrets.redis_secret(NAMESPACE, secrets.token_urlsafe),
            parts.KEYS_SECRET: first_secrets.keys_secret(int(time.time())),
            parts.INTERNAL_SECRET: first_secrets.internal_secret(secrets.token_urlsafe),
        }

    def call(self, what: Callable[[], T]) -> T:
        """Call it on the node's network."""
        return self._loopback.call(what)

    def close(self) -> None:
        if self._started:
            names = [each.name for each in self._started]
            subprocess.run([*podman(), "rm", "--force", "--time", "0", *names], capture_output=True)
        self._loopback.close()

    def pod(self, kind: str, name: str) -> dict[str, Any]:
        """The spec of the pod that an object makes run."""
        spec: dict[str, Any] = self.find(kind, name)["spec"]
        return spec["predictor"] if kind == "InferenceService" else spec["template"]["spec"]

    def find(self, kind: str, name: str) -> dict[str, Any]:
        return next(r for r in self.resources if (r["kind"], r["metadata"]["name"]) == (kind, name))

    def run(self, kind: str, name: str, box: str, image: Image, *more: str) -> Container:
        """Start one container of the pod, with `more` arguments behind the manifest's."""
        pod = self.pod(kind, name)
        (spec,) = (each for each in pod["containers"] if each["name"] == box)
        words = [*self._isolation(pod, spec), *image.flags, *self._mounts(kind, name, spec)]
        for key, value in {**self._environment(spec), **self.changes}.items():
            words += ["--env", f"{key}={value}"]
        entrypoint = spec.get("command", image.entrypoint)
        arguments = [*spec.get("args", image.command if "command" not in spec else []), *more]
        probe = spec.get("readinessProbe") or spec["livenessProbe"]
        made = Container(
            self, f"{self._own}-{box}", [*words, *image.root, *entrypoint, *arguments], probe
        )
        if image.root[0] != "--rootfs":
            made.words = [
                *words,
                "--entrypoint",
                entrypoint[0],
                *image.root,
                *entrypoint[1:],
                *arguments,
            ]
        self._started.append(made)
        return made.start()

    def _isolation(self, pod: dict[str, Any], spec: dict[str, Any]) -> list[str]:
        """podman's flags for both security contexts, pod's and container's."""
        context = {**pod["securityContext"], **spec["securityContext"]}
        assert context["runAsNonRoot"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context["allowPrivilegeEscalation"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}  # podman's own is on
        user = context["runAsUser"]
        flags = [*_RUN, "--network", f"ns:{self._loopback.path}", "--user", f"{user}:{user}"]
        flags += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        flags += ["--memory", spec["resources"]["limits"]["memory"].removesuffix("i").lower()]
        if "fsGroup" in context:
            flags += ["--group-add", str(context["fsGroup"])]
        for service in self.resources:
            if service["kind"] == "Service":
                host = f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local"
                flags += ["--add-host", f"{host}:127.0.0.1"]
        return flags

    def _environment(self, spec: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in spec.get("envFrom", []):
            found |= self.find("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in spec.get("env", []):
            value = self._value(entry)
            if value is not None:
                found[entry["name"]] = value
        return found

    def _value(self, entry: dict[str, Any]) -> str | None:
        if "value" in entry:
            return str(entry["value"])
        if "fieldRef" in (source := entry["valueFrom"]):
            return {"metadata.namespace": NAMESPACE}.get(source["fieldRef"]["fieldPath"], "x")
        asked = source["secretKeyRef"]
        held = self.secrets.get(asked["name"], {})
        if asked.get("optional"):
            return held.get(asked["key"])
        return held[asked["key"]]

    def _mounts(self, kind: str, name: str, spec: dict[str, Any]) -> Iterator[str]:
        pod = self.pod(kind, name)
        volumes = {each["name"]: each for each in pod.get("volumes", [])}
        for mount in spec["volumeMounts"]:
            volume = volumes.get(mount["name"], {"persistentVolumeClaim": {}})
            path = mount["mountPath"]
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                yield from ("--tmpfs", f"{path}:mode=1777")
                continue
            # On the node's disk, as kubelet has it: shared by the pod's containers, and there after a restart.
            made = self.folder / name / mount["name"] / mount.get("subPath", "")
            self._fill(made, volume)
            rest = ":ro" if mount.get("readOnly") else ""
            yield from ("--volume", f"{made}:{path}{rest}")

    def _fill(self, made: Path, volume: dict[str, Any]) -> None:
        made.mkdir(parents=True, exist_ok=True)
        made.chmod(0o777)
        if "configMap" in volume:
            for key, text in self.find("ConfigMap", volume["configMap"]["name"])["data"].items():
                (made / key).write_text(text)
        if "secret" in volume:
            held = self.secrets[volume["secret"]["secretName"]]
            for item in volume["secret"]["items"]:
                (made / item["path"]).write_text(held[item["key"]])
