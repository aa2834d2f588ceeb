"""TLS to a Knative Broker, verified with the broker's own authority.

Called by `component`. The Kafka class serves https on 443 once Eventing's `transport-encryption` is on; the
RabbitMQ class has no https ingress. Source: Knative, Transport Encryption.
"""

from __future__ import annotations

from knative.deploy.emit import Patch, because
from knative.deploy.render.broker import events
from knative.deploy.values import Values

AUTHORITY = "torpor-eventing-ca"
_FOLDER = "/etc/torpor/eventing-ca"
CA_FILE = "TORPOR_BROKER_CA_FILE"


def broker_url_patch(values: Values) -> Patch:
    """Give the https address of the Kafka class's ingress."""
    url = events.broker_url("Kafka", values).replace("http://", "https://")
    return [{"op": "add", "path": "/data/TORPOR_BROKER_URL", "value": url}]


def authority_patch() -> Patch:
    """Give a process the authority that signed the Broker's certificate, and no other."""
    box = "/spec/template/spec/containers/0"
    volume = {
        "name": "eventing-ca",
        "configMap": because(
            {"name": AUTHORITY}, "Key ca.crt: what the Broker shows in status.address.CACerts."
        ),
    }
    return [
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": volume},
        {
            "op": "add",
            "path": f"{box}/volumeMounts/-",
            "value": {"name": "eventing-ca", "mountPath": _FOLDER, "readOnly": True},
        },
        {
            "op": "add",
            "path": f"{box}/env/-",
            "value": {"name": CA_FILE, "value": f"{_FOLDER}/ca.crt"},
        },
    ]
