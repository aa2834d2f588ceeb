"""Errors of deployment.

DeployError
├── ApiFault            the API server answered no (status, message)
│   ├── Forbidden       401, 403: the right that is missing is in the message
│   ├── NotFound        404
│   ├── Conflict        409: another field manager owns the field
│   ├── Gone            410: the watch is too old; list again
│   └── Invalid         400, 422: a webhook or the schema refused it
├── MissingKind         the cluster does not know the kind; says how to install it
├── Unreachable         no answer
├── BuildError          kustomize could not build the folder
├── Refused             the doctor found errors
└── NotReady            it did not become ready in time; says why
"""

from __future__ import annotations

from dataclasses import dataclass


class DeployError(Exception):
    """An error with one clear message for the person at the terminal."""


class ApiFault(DeployError):
    """The API server answered with an error."""

    def __init__(self, message: str, status: int, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class ClusterForbidden(ApiFault):
    """The API server refused the call: a right is missing."""


class ObjectNotFound(ApiFault):
    """There is no such object."""


@dataclass(frozen=True, slots=True)
class FieldConflict:
    """A field that another manager set to another value."""

    manager: str
    field: str

    def __str__(self) -> str:
        return f"{self.field} (of {self.manager})"


class Conflict(ApiFault):
    """Other field managers own fields to be set."""

    def __init__(
        self, message: str, status: int, *, causes: tuple[FieldConflict, ...] = ()
    ) -> None:
        super().__init__(message, status)
        self.causes = causes


class Gone(ApiFault):
    """The version to watch from is too old."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 410)


class Invalid(ApiFault):
    """A schema or a webhook refused it."""


class ClusterUnreachable(DeployError):
    """The API server does not answer."""


class BuildError(DeployError):
    """The folder is not a kustomization, or there is no tool to build it."""


class ApplyRefused(DeployError):
    """The doctor found errors: nothing was applied."""


class NotReady(DeployError):
    """The applied resources did not become ready in time."""


# The releases that the manifests are checked against; any newer one should do.
_INSTALL = {
    "serving.knative.dev": "Knative Serving: https://knative.dev/docs/install/yaml-install/serving/",
    "eventing.knative.dev": "Knative Eventing and its broker: "
    "https://knative.dev/docs/install/yaml-install/eventing/",
    "rabbitmq.com": "the RabbitMQ cluster operator: "
    "https://www.rabbitmq.com/kubernetes/operator/install-operator",
    "serving.kserve.io": "KServe 0.16 or newer: https://kserve.github.io/website/",
    "keda.sh": "KEDA 2.17 or newer: https://keda.sh/docs/latest/deploy/",
    "karpenter.sh": "Karpenter: https://karpenter.sh/docs/getting-started/",
    "monitoring.coreos.com": "the Prometheus operator (or leave out the component monitoring): "
    "https://prometheus-operator.dev/docs/getting-started/installation/",
}


class MissingKind(DeployError):
    """The cluster has no such kind: a platform is not installed, or too old."""

    def __init__(self, api_version: str, kind: str) -> None:
        group = api_version.partition("/")[0]
        hint = _INSTALL.get(group, f"whatever serves {api_version}")
        super().__init__(f"the cluster does not know {kind} ({api_version}). Install {hint}")
        self.api_version = api_version
        self.kind = kind
