"""Rights, namespace, address and seconds are those of the values, and no wider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from knative.deploy.render import parts
from knative.deploy.values import Values, load_values
from tests.manifests.conftest import MANIFESTS, Resources
from tests.manifests.objects import OVERLAYS, named, planted, secrets

Rule = Callable[[Resources], Iterator[str]]
CLUSTER_WIDE = {"Namespace", "NodePool", "LocalModelCache", "LocalModelNodeGroup"}
LOOKS = {"get", "list", "watch"}
CHANGES = {"create", "patch", "delete"}
POWERS = {"secrets", "roles", "rolebindings", "serviceaccounts", "pods/exec"}


def values() -> Values:
    return load_values(MANIFESTS / "values.yaml")


def has_no_more_rights(resources: Resources) -> Iterator[str]:
    """Each account holds the Role of its name; Secrets are the install's alone, and by name."""
    for r in named(resources, "RoleBinding"):
        name = r["metadata"]["name"]
        subject = {"kind": "ServiceAccount", "name": name, "namespace": values().namespace}
        if r["subjects"] != [subject]:
            yield f"{name}: held by another"
        if (r["roleRef"]["kind"], r["roleRef"]["name"]) != ("Role", name):
            yield f"{name}: gives the rights of {r['roleRef']['name']}"
    for r in named(resources, "Role"):
        name = r["metadata"]["name"]
        if name == "torpor-first-secrets":
            if sorted(map(plain, r["rules"])) != [
                (["secrets"], ["create"], []),
                (["secrets"], ["get"], sorted(secrets())),
            ]:
                yield f"{name}: more than it needs, or less"
            continue
        for rule in r["rules"]:
            too_much = (
                set(rule["verbs"]) - LOOKS - (CHANGES if name == "torpor-deployer" else set())
            )
            too_much |= set(rule["resources"]) & POWERS
            yield from (f"{name}: {each}" for each in sorted(too_much))


def plain(rule: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    return rule["resources"], rule["verbs"], sorted(rule.get("resourceNames", []))


def is_at_home(resources: Resources) -> Iterator[str]:
    """All is in the one namespace."""
    for r in resources:
        if r["kind"] == "Namespace" and r["metadata"]["name"] != values().namespace:
            yield f"another namespace, {r['metadata']['name']}"
        home = None if r["kind"] in CLUSTER_WIDE else values().namespace
        if r["metadata"].get("namespace") != home:
            yield f"{r['kind']}/{r['metadata']['name']} in {r['metadata'].get('namespace')}"


def thinks_as_the_values_say(resources: Resources) -> Iterator[str]:
    """The engine's model, batch and GPUs, and the taint of the nodes that have them."""
    given = values()
    for r in named(resources, "InferenceService"):
        spec = r["spec"]["predictor"]
        box = spec["containers"][0]
        env = {entry["name"]: entry.get("value") for entry in box["env"]}
        if {r["metadata"]["name"], env.get("TORPOR_MODEL_NAME")} != {given.model.name}:
            yield "another name"
        gpus = box["resources"]["limits"].get("nvidia.com/gpu")
        if env.get("STORAGE_URI") not in (given.model.uri, "" if gpus else given.model.cpu_uri):
            yield "another model"
        args = {f"--max-num-seqs={given.model.concurrency}"}
        args |= {f"--tensor-parallel-size={given.gpu.count}"} if gpus else set()
        yield from (f"without {arg}" for arg in args - set(box["args"]))
        taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        if gpus and (gpus != str(given.gpu.count) or taint not in spec["tolerations"]):
            yield "no node for it"


def is_found_at_its_host(resources: Resources) -> Iterator[str]:
    """The whole api, at the host of the values, with a certificate for it."""
    host = values().host
    for r in named(resources, "Ingress"):
        (rule,) = r["spec"]["rules"]
        if rule["host"] != host:
            yield f"rule for {rule['host']}"
        ways = [(path["path"], path["pathType"]) for path in rule["http"]["paths"]]
        if ways != [("/", "Prefix")]:
            yield f"only {ways}"
        if [host] not in [entry["hosts"] for entry in r["spec"].get("tls", [])]:
            yield "no certificate"
        if r["metadata"]["annotations"].get("nginx.ingress.kubernetes.io/ssl-redirect") != "true":
            yield "keys in plain text"


def settings(resources: Resources) -> dict[str, str]:
    (found,) = (r for r in named(resources, "ConfigMap") if r["metadata"]["name"] == parts.SETTINGS)
    return dict(found["data"])


def follows_from_one_number(resources: Resources) -> Iterator[str]:
    """What processes are told and what KEDA does, from the longest job and the worst wake."""
    given, told = values(), settings(resources)
    job, cold = given.max_job_seconds, given.cold_start_seconds
    for name, seconds in (
        ("MAX_JOB_SECONDS", job),
        ("COLD_START_SECONDS", cold),
        ("LEASE_S", min(60, max(15, job // 60))),
        ("DRAIN_GRACE_S", min(job, 3600)),
    ):
        if told[f"TORPOR_{name}"] != str(seconds):
            yield f"{name} {told[f'TORPOR_{name}']}, not {seconds}"
    for r in named(resources, "ScaledObject"):
        spec = r["spec"]
        if not 1 <= spec.get("pollingInterval", 30) <= given.p95_wait_seconds / 10:
            yield "asks too seldom: each wake waits for it"
        counts = [t for t in spec["triggers"] if t["type"] != "external-push"]
        if counts and not cold < spec.get("cooldownPeriod", 300) <= cold + job:
            yield "cools down before the worst wake, or after a whole job"
        if spec.get("initialCooldownPeriod", 0) > 30:
            yield "keeps a pod that nobody asked for"
        if (spec.get("minReplicaCount", 0), spec.get("maxReplicaCount")) != (0, most(resources)):
            yield "other limits"


def most(resources: Resources) -> int:
    """How many predictors there may be, as KServe is told; on a small machine fewer."""
    (service,) = named(resources, "InferenceService")
    told = int(service["spec"]["predictor"]["maxReplicas"])
    return min(values().max_replicas, told)


RULES: tuple[Rule, ...] = (
    has_no_more_rights, is_at_home, thinks_as_the_values_say, is_found_at_its_host,
    follows_from_one_number,
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_what_the_values_say(
    overlays: dict[str, Resources], overlay: str, rule: Rule
) -> None:
    assert set(rule(overlays[overlay])) == set()


ENGINE, BOX = "InferenceService/thinker", "spec>predictor>containers>0"
FIRST, DEPLOYER = "torpor-first-secrets", "Role/torpor-deployer"
INGRESS, SETTINGS, KEDA = "Ingress/torpor-api", "ConfigMap/torpor-settings", "ScaledObject/thinker"
BREAKS = [
    (has_no_more_rights, f"RoleBinding/{FIRST}", "subjects>0>namespace", "default", "held by another"),
    (has_no_more_rights, f"RoleBinding/{FIRST}", "subjects>0>name", "torpor-api", "held by another"),
    (has_no_more_rights, f"RoleBinding/{FIRST}", "roleRef>name", "torpor-deployer", "gives the rights of"),
    (has_no_more_rights, f"Role/{FIRST}", "rules>1>verbs", ["get", "list"], "more than it needs"),
    (has_no_more_rights, f"Role/{FIRST}", "rules>1>resourceNames", None, "more than it needs"),
    (has_no_more_rights, f"Role/{FIRST}", "rules>0>verbs", ["get"], "or less"),
    (has_no_more_rights, DEPLOYER, "rules>0>resources", ["pods", "secrets"], "torpor-deployer: secrets"),
    (has_no_more_rights, "Role/torpor-viewer", "rules>0>verbs", ["get", "delete"], "torpor-viewer: delete"),
    (is_at_home, "Deployment/torpor-api", "metadata>namespace", "default", "torpor-api in default"),
    (is_at_home, "Namespace/torpor", "metadata>name", "torpid", "another namespace"),
    (thinks_as_the_values_say, ENGINE, "metadata>name", "other", "another name"),
    (thinks_as_the_values_say, ENGINE, f"{BOX}>env>0>value", "hf://other/model", "another model"),
    (thinks_as_the_values_say, ENGINE, f"{BOX}>args>2", "--max-num-seqs=256", "without --max-num-seqs=16"),
    (thinks_as_the_values_say, ENGINE, f"{BOX}>args>4", "--tensor-parallel-size=2", "without --tensor"),
    (thinks_as_the_values_say, ENGINE, "spec>predictor>tolerations>0>key", "gpu", "no node"),
    (is_found_at_its_host, INGRESS, "spec>rules>0>host", "example.com", "rule for example.com"),
    (is_found_at_its_host, INGRESS, "spec>rules>0>http>paths>0>path", "/v1", "only"),
    (is_found_at_its_host, INGRESS, "spec>rules>0>http>paths>0>pathType", "Exact", "only"),
    (is_found_at_its_host, INGRESS, "spec>tls>0>hosts>0", "www.example.com", "no certificate"),
    (follows_from_one_number, SETTINGS, "data>TORPOR_MAX_JOB_SECONDS", "600", "MAX_JOB_SECONDS 600"),
    (follows_from_one_number, SETTINGS, "data>TORPOR_LEASE_S", "300", "LEASE_S 300"),
    (follows_from_one_number, SETTINGS, "data>TORPOR_DRAIN_GRACE_S", "60", "DRAIN_GRACE_S 60"),
    (follows_from_one_number, KEDA, "spec>pollingInterval", 30, "asks too seldom"),
    (follows_from_one_number, KEDA, "spec>cooldownPeriod", 86_400, "cools down"),
    (follows_from_one_number, KEDA, "spec>initialCooldownPeriod", 660, "nobody asked"),
    (follows_from_one_number, KEDA, "spec>minReplicaCount", 1, "other limits"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "who", "path", "value", "said"), BREAKS)
def test_a_mistake_is_named(
    overlays: dict[str, Resources], rule: Rule, who: str, path: str, value: Any, said: str
) -> None:
    found = set(rule(planted(overlays["queue"], who, path, value)))

    assert any(said in each for each in found)


def test_every_rule_has_a_mistake_that_it_names() -> None:
    assert {mistake[0] for mistake in BREAKS} == set(RULES)
