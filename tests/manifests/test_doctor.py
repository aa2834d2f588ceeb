"""Each of the doctor's rules is broken once in a shipped overlay and must be reported by name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from knative.deploy.doctor import RULES, Severity, examine
from tests.manifests.conftest import ROOT, Resources
from tests.manifests.doctor_mistakes import BREAKS, SO, Break, broken
from tests.manifests.doctor_objects import config, deployment, own, plans, provider, tiers
from tests.manifests.test_deployed_tools import MISTAKES as OF_DEPLOYED_TOOLS
from tests.manifests.test_tools import MISTAKES


def test_without_istio_kserve_must_not_create_virtual_services(
    overlays: dict[str, Resources],
) -> None:
    kourier = config(
        "config-network", **{"ingress-class": "kourier.ingress.networking.knative.dev"}
    )
    default = config(
        "inferenceservice-config", "kserve", ingress='{"disableIstioVirtualHost": false}'
    )
    told = config("inferenceservice-config", "kserve", ingress='{"disableIstioVirtualHost": true}')

    def found(*added: dict[str, Any]) -> list[str]:
        return [
            f.fault.field
            for f in examine([*overlays["serverless"], *added]).findings
            if f.rule.name == "istio-virtual-host"
        ]

    assert len(found(kourier, default)) == 1
    assert found(kourier, told) == found(default) == found() == []


@pytest.mark.parametrize("mistake", BREAKS, ids=str)
def test_a_mistake_is_named_by_its_rule(overlays: dict[str, Resources], mistake: Break) -> None:
    sound = overlays[mistake.overlay]
    before = {f.fault for f in examine(sound).findings if f.rule.name == mistake.rule}

    after = {
        f.fault for f in examine(broken(sound, mistake)).findings if f.rule.name == mistake.rule
    }

    assert after - before


def test_a_sound_provider_breaks_none_of_its_rules(overlays: dict[str, Resources]) -> None:
    sound = {
        **tiers("thinker", {"model": "big", "tenants": ["acme"]}),
        "thinker": {"fallback": {"model": "big", "tenants": ["acme"]}},
    }
    mistake = Break("", "queue", add=[*provider(FALLBACKS=own("thinker")), plans(sound)])
    out = {"podSelector": {}, "egress": [{"ports": [{"port": 443}, {"port": 8000}]}]}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "out"},
        "spec": out,
    }

    found = examine([*broken(overlays["queue"], mistake), policy]).findings

    assert [f for f in found if f.rule.name.startswith("provider-")] == []


def test_every_rule_is_broken_by_some_mistake() -> None:
    broken = {mistake.rule for mistake in BREAKS} | {rule for _, rule in MISTAKES.values()}
    broken |= {rule for _, found in OF_DEPLOYED_TOOLS.values() for rule, _ in found}

    assert {rule.name for rule in RULES} == broken


def test_rules_have_names_of_their_own_and_say_why_and_whence() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.why and rule.source for rule in RULES)


def test_every_source_in_the_page_of_facts_is_there() -> None:
    text = (ROOT / "docs" / "facts.md").read_text(encoding="utf-8")

    cited = []
    for rule in RULES:
        for listed in re.findall(r"facts\.md ((?:\d\.\d+b?(?:, )?)+)", rule.source):
            cited += [(rule.name, f"### {each} ") for each in listed.rstrip(", ").split(", ")]
        for row in re.findall(r"(?<![\w])#(\d{1,2})\b", rule.source):
            cited.append((rule.name, f"| {row} |"))

    assert len(cited) > 50
    assert [each for each in cited if each[1] not in text] == []


def test_no_overlay_has_an_error(overlays: dict[str, Resources]) -> None:
    errors = {
        f"{name}: {finding.rule.name} {finding.fault}"
        for name, resources in overlays.items()
        for finding in examine(resources).of(Severity.ERROR)
    }

    assert errors == set()


def test_queue_overlays_are_without_warning_too(overlays: dict[str, Resources]) -> None:
    assert examine(overlays["queue"]).of(Severity.WARNING) == ()
    assert examine(overlays["queue-cpu"]).of(Severity.WARNING) == ()


def test_a_held_job_of_thirty_minutes_is_warned_about(overlays: dict[str, Resources]) -> None:
    names = {f.rule.name for f in examine(overlays["serverless"]).of(Severity.WARNING)}

    assert names == {"hold-mode-length"}


def test_facts_that_a_folder_cannot_show_are_listed_as_needed(
    overlays: dict[str, Resources],
) -> None:
    report = examine(overlays["serverless"])

    asked = {f.rule.name for f in report.of(Severity.NEEDED)}
    assert asked == {"max-revision-timeout", "activator-grace", "knative-features"}
    assert report.exit_status() == 0
    assert report.exit_status(is_strict=True) == 1


def test_a_cluster_with_the_rendered_settings_needs_nothing_more(
    overlays: dict[str, Resources],
) -> None:
    flags = ("nodeselector", "tolerations", "securitycontext")
    cluster = [
        config("config-defaults", **{"max-revision-timeout-seconds": "2460"}),
        config("config-features", **{f"kubernetes.podspec-{f}": "enabled" for f in flags}),
        deployment("activator", "knative-serving"),
    ]
    cluster[2]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 2490

    report = examine([*overlays["serverless"], *cluster])

    assert report.of(Severity.NEEDED) == ()
    assert report.of(Severity.ERROR) == ()


def test_a_longer_job_than_rendered_for_breaks_every_hop(overlays: dict[str, Resources]) -> None:
    names = {f.rule.name for f in examine(overlays["serverless"], job_s=7200).of(Severity.ERROR)}

    assert names >= {"hold-timeout", "delivery-timeout", "retry-span", "ingress-timeout"}


def test_findings_come_hop_by_hop_with_the_worst_first(overlays: dict[str, Resources]) -> None:
    mistakes = [mistake for mistake in BREAKS if mistake.overlay == "serverless" and mistake.kind]
    resources = overlays["serverless"]
    for mistake in mistakes[:20]:
        try:
            resources = broken(resources, mistake)
        except (KeyError, StopIteration):  # two mistakes in one place
            continue

    findings = examine(resources).findings

    hops = list(dict.fromkeys(f.rule.hop for f in findings))
    assert hops == sorted(hops, key=list(type(hops[0])).index)


def test_garbage_is_examined_without_falling_over() -> None:
    garbage: Resources = [
        {},
        {"kind": "InferenceService", "apiVersion": "serving.kserve.io/v1beta1", "metadata": {"name": "x"}},
        {"kind": "ScaledObject", "apiVersion": "keda.sh/v1alpha1", "metadata": {"name": "x"}, "spec": {}},
        {"kind": "Trigger", "apiVersion": "eventing.knative.dev/v1", "metadata": {"name": "x"}},
    ]  # fmt: skip

    assert examine(garbage).exit_status() == 1


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(
            {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": None}, id="no metadata"
        ),
        pytest.param({"kind": "Role", "metadata": {"name": 5}}, id="a name that is no text"),
        pytest.param(
            {
                "kind": SO,
                "apiVersion": "keda.sh/v1alpha1",
                "metadata": {"name": "x"},
                "spec": {"triggers": [7]},
            },
            id="a number for a trigger",
        ),
        pytest.param(
            {
                "kind": "Trigger",
                "apiVersion": "eventing.knative.dev/v1",
                "metadata": {"name": "t"},
                "spec": {"delivery": 5},
            },
            id="a number for a delivery",
        ),
        pytest.param(
            {
                "kind": "Deployment",
                "apiVersion": "apps/v1",
                "metadata": {"name": "d"},
                "spec": {"template": {"spec": {"containers": "x"}}},
            },
            id="a text for containers",
        ),
        pytest.param(
            {
                "kind": "ConfigMap",
                "apiVersion": "v1",
                "metadata": {"name": "torpor-triggers"},
                "data": {"triggers.yaml": "a: ["},
            },
            id="triggers that are no YAML",
        ),
    ],
)
def test_a_malformed_object_is_an_error_and_no_traceback(
    overlays: dict[str, Resources], garbage: dict[str, Any]
) -> None:
    findings = examine([garbage, *overlays["queue"]]).of(Severity.ERROR)

    assert findings
    assert all(finding.fault.must_be for finding in findings)
