"""Objects of ours for the mock API server, and a screen that remembers what it was shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from knative.deploy.readiness import ObjectReadiness
from knative.deploy.rollout.client import Ref
from knative.deploy.rollout.rollout import RolloutOptions, RolloutStep
from tests.time_limits import HANG_S

TERMS = RolloutOptions("torpor", timeout_s=HANG_S)
SETTINGS = Ref("v1", "ConfigMap", "settings", "torpor")


class Notes:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.states: list[str] = []
        self.stuck: list[str] = []

    def applied(self, step: RolloutStep) -> None:
        self.steps.append(f"{step.action} {step.ref}")

    def waiting(self, ref: Ref, state: ObjectReadiness, stuck: Sequence[str]) -> None:
        self.states.append(f"{ref}: {state.reason or 'ready'}")
        self.stuck += stuck

    async def until_shown(self, text: str) -> None:
        """Return once a state with `text` was shown."""
        while not any(text in state for state in self.states):
            await asyncio.sleep(0.01)


def config(name: str = "settings", **data: str) -> dict[str, Any]:
    """A ConfigMap of ours."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "torpor"},
        "data": data,
    }


def deployment(name: str = "torpor-api", image: str = "api:1") -> dict[str, Any]:
    """A Deployment of ours."""
    labels = {"app.kubernetes.io/part-of": "torpor"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "torpor", "labels": labels},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"image": image}]}}},
    }


UP = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "readyReplicas": 1}
