"""The pods of a mock cluster as real processes: whatever is applied runs, whatever is pruned ends.

Plays kubelet, the Deployment controller and KServe. A pod reads its ConfigMaps once, when it starts, and is replaced
when its template changes; so a rollout that forgets to roll somebody is seen as a cluster would see it.
"""

from __future__ import annotations

import asyncio
import copy
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.programs import Program, Zygote
from tests.integration.deploy.api_server import ApiServer, Object
from tests.redis_server import free_port

COUNTS = ("replicas", "updatedReplicas", "availableReplicas", "readyReplicas")
DEPLOYMENTS = {"torpor-api": "api", "torpor-broker": "broker"}
MODULES = {"api": "api.__main__", "broker": "eventing.broker.__main__", "pump": "eventing.pump"}


@dataclass
class Pod:
    """The processes of one template."""

    template: str
    programs: list[Program]

    async def end(self) -> None:
        for each in self.programs:
            each.signal(signal.SIGTERM)
        for each in self.programs:
            await each.gone()


@dataclass
class Pods:
    """Everybody who runs. Predictors are asleep until `is_awake`."""

    server: ApiServer
    zygote: Zygote
    folder: Path
    redis_url: str
    is_awake: bool
    _running: dict[str, Pod] = field(default_factory=dict)
    _ports: dict[str, int] = field(default_factory=dict)

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self._port('api')}"

    async def apply(self, item: Object) -> None:
        """What the controllers do when an object has been applied: run it, then say that it is ready."""
        if item["kind"] in ("Deployment", "InferenceService"):
            await self.follow()
        made = copy.deepcopy(item)
        counts = dict.fromkeys(COUNTS, 1)
        yes = [{"type": name, "status": "True"} for name in ("Ready", "Complete")]
        generation = made["metadata"].get("generation", 1)
        made["status"] = {"observedGeneration": generation, "conditions": yes, **counts}
        self.server.put(made)

    async def follow(self) -> None:
        """Start, replace and end pods until they are what the objects say."""
        wanted = {
            name: self.server.find("Deployment", name)["spec"]["template"]["spec"]
            for name in DEPLOYMENTS.keys() & self.server.names("Deployment")
        }
        hashes = {name: self.server.find("Deployment", name)["spec"]["template"] for name in wanted}
        for name in self.server.names("InferenceService") if self.is_awake else ():
            wanted[name] = self.server.find("InferenceService", name)["spec"]["predictor"]
        for name in self._running.keys() - wanted.keys():
            await self._running.pop(name).end()
        for name, spec in wanted.items():
            template = json.dumps(hashes.get(name, spec))
            old = self._running.get(name)
            if old is None or old.template != template:
                if old is not None:
                    await old.end()
                self._running[name] = Pod(template, self._programs(name, spec))
                for each in self._running[name].programs:
                    each.start()
                await asyncio.gather(*(each.ready() for each in self._running[name].programs))

    async def end(self) -> None:
        for pod in self._running.values():
            for each in pod.programs:
                await each.kill()

    def _port(self, name: str) -> int:
        return self._ports.setdefault(name, free_port())

    def _programs(self, owner: str, spec: dict[str, Any]) -> list[Program]:
        return [self._program(owner, box) for box in spec["containers"]]

    def _program(self, owner: str, box: dict[str, Any]) -> Program:
        name = owner if box["name"] == "kserve-container" else box["name"]
        own = name if name in ("api", "broker") else f"{owner}-{box['name']}"
        env = self._environment(owner, box, own)
        url = f"http://127.0.0.1:{self._port(own)}"
        if box["name"] == "kserve-container":
            argv = ("--engine", "seeded", "--http_port", str(self._port(own)), *box["args"])
            model = env["TORPOR_MODEL_NAME"]
            health = f"{url}/v2/models/{model}/ready"
            return Program(self.zygote, "predictor.__main__", own, self.folder, env, health, argv)
        health = f"{url}/readyz" if name in ("api", "broker") else f"{url}/healthz"
        return Program(self.zygote, MODULES[name], own, self.folder, env, health)

    def _environment(self, owner: str, box: dict[str, Any], own: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in box.get("envFrom", []):
            found |= self.server.find("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in box["env"]:
            asked = entry.get("valueFrom", {}).get("secretKeyRef", {})
            if "value" in entry:
                found[entry["name"]] = str(entry["value"])
            elif not asked.get("optional"):
                found[entry["name"]] = self.redis_url if asked["key"] == "url" else "t" * 32
        found.pop("TORPOR_KEYS_SOURCE", None)
        for name in ("TORPOR_TRIGGERS_FILE", "TORPOR_QUEUE_TRIGGERS_FILE"):
            if name in found:
                found[name] = str(self._triggers(owner, own))
        port = str(self._port(own))
        return found | {
            "TORPOR_HOST": "127.0.0.1",
            "TORPOR_PREDICTOR_HOST": "127.0.0.1",
            "TORPOR_PORT": port,
            "TORPOR_METRICS_PORT": port,
            "TORPOR_ANONYMOUS_ACCESS": "loopback",
            "TORPOR_BROKER_URL": f"http://127.0.0.1:{self._port('broker')}",
            "TORPOR_FILES_URL": f"file://{self.folder}/files",
            "TORPOR_SEEDED_TOKENS_PER_S": "1000",
        }

    def _triggers(self, owner: str, own: str) -> Path:
        """What is mounted now, with the addresses of this machine."""
        text = self.server.find("ConfigMap", "torpor-triggers")["data"]["triggers.yaml"]
        engine = f"http://127.0.0.1:{self._port(f'{owner}-kserve-container')}"
        text = text.replace("http://torpor-api.torpor.svc.cluster.local:8000", self.api_url)
        made = self.folder / f"{own}-triggers.yaml"
        made.write_text(text.replace("http://localhost:8080", engine))
        return made
