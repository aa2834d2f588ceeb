"""The commands, as a person types them, against a mock API server named by a kubeconfig."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from knative.deploy.rollout.release import to_config_map
from tests.integration.deploy.api_server import ApiServer, Object
from tests.integration.deploy.conftest import Run
from torpor.cli.errors import UserError


def said(result: Result) -> str:
    """What a person would read: the output, and the one clear line of an error."""
    error = result.exception
    return result.output + (str(error) if isinstance(error, UserError) else "")


async def test_deploy_applies_the_overlay_and_records_a_release(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    result = await run("deploy", overlay, "--yes", "--no-wait")

    assert result.exit_code == 0, said(result)
    assert "thinker" in server.names("InferenceService")
    assert "torpor-release-000001" in server.names("ConfigMap")
    managers = {q["fieldManager"] for m, _, q in server.requests if m == "PATCH"}
    assert managers == {"torpor"}


async def test_a_dry_run_shows_the_difference_and_applies_nothing(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    result = await run("deploy", overlay, "--dry-run")

    assert result.exit_code == 0, said(result)
    assert "+  name: thinker" in result.output
    assert server.names("InferenceService") == set()


async def test_no_at_the_question_applies_nothing(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    result = await run("deploy", overlay, "--no-wait", say="n\n")

    assert result.exit_code == 1
    assert server.names("InferenceService") == set()


async def test_the_same_deploy_again_has_nothing_to_do(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    await run("deploy", overlay, "--yes", "--no-wait")

    result = await run("deploy", overlay, "--yes", "--no-wait")

    assert "nothing to do" in said(result)
    assert server.names("ConfigMap") & {"torpor-release-000002"} == set()


async def test_on_a_cluster_without_keda_the_error_says_how_to_install_it(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    del server.kinds["keda.sh/v1alpha1"]

    result = await run("deploy", overlay, "--yes")

    assert result.exit_code == 1
    assert "Install KEDA 2.17 or newer" in said(result)
    assert server.names("Deployment") == set()


async def test_resources_with_doctor_errors_are_not_applied(
    run: Run, server: ApiServer, overlay: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(overlay.read_text().replace("cooldownPeriod: 660", "cooldownPeriod: 5"))

    result = await run("deploy", broken, "--yes")

    assert result.exit_code == 1
    assert "keda-cooldown" in said(result)
    assert server.names("Deployment") == set()


WRONG_PLAN = """
apiVersion: v1
kind: ConfigMap
metadata: {name: torpor-pipelines, namespace: torpor}
data:
  pipelines.yaml: |
    thinker: {steps: [{step: memory, settings: {window: 5}}]}
"""


@pytest.mark.parametrize("command", ["deploy", "doctor"])
async def test_settings_that_a_step_can_not_have_are_said_before_anything_is_applied(
    run: Run, server: ApiServer, tmp_path: Path, command: str
) -> None:
    (tmp_path / "plan.yaml").write_text(WRONG_PLAN)
    flags = ["--yes", "--no-wait"] if command == "deploy" else []

    result = await run(command, str(tmp_path / "plan.yaml"), *flags)

    assert result.exit_code != 0
    assert "torpor-pipelines: pipelines: thinker.steps: memory: window" in said(result)
    assert not [each for each in server.requests if each[0] in ("PATCH", "POST")]


async def test_render_refuses_settings_that_a_step_can_not_have(run: Run, tmp_path: Path) -> None:
    plans = {"thinker": {"steps": [{"step": "route", "settings": {"tiers": []}}]}}
    values = {"steps": {"max_replicas": 1}, "pipelines": plans}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))

    result = await run("render", "--folder", str(tmp_path))

    assert result.exit_code != 0
    assert "thinker.steps: route: tiers must be a list" in said(result)
    assert not [each for each in tmp_path.iterdir() if each.is_dir()]


async def test_a_wait_in_vain_says_what_is_missing(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    result = await run("deploy", overlay, "--yes", "--timeout", "1")

    assert result.exit_code == 1
    assert "InferenceService/thinker: KServe has not made it ready" in said(result)


async def test_a_canary_is_deployed_promoted_and_gone(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    server.on_apply = lambda item: ready_at_once(server, item)
    await run("deploy", overlay, "--yes", "--no-wait")
    made = await run("deploy", overlay, "--yes", "--canary", "10", "--image", "new:2", "--no-wait")
    assert made.exit_code == 0, said(made)
    assert "thinker-canary" in server.names("InferenceService")

    result = await run("promote", "thinker", "--now", "--timeout", "5")

    assert result.exit_code == 0, said(result)
    service = server.find("InferenceService", "thinker")
    assert service["spec"]["predictor"]["containers"][0]["image"] == "new:2"
    assert "thinker-canary" not in server.names("InferenceService")


async def test_a_rollback_withdraws_a_canary(run: Run, server: ApiServer, overlay: Path) -> None:
    server.on_apply = lambda item: ready_at_once(server, item)
    await run("deploy", overlay, "--yes", "--no-wait")
    await run("deploy", overlay, "--yes", "--canary", "10", "--image", "new:2", "--no-wait")

    result = await run("rollback", "--yes", "--timeout", "5")

    assert result.exit_code == 0, said(result)
    assert "thinker-canary" not in server.names("InferenceService")


async def test_promote_without_prometheus_says_what_to_give(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    await run("deploy", overlay, "--yes", "--canary", "10", "--image", "new:2", "--no-wait")

    result = await run("promote", "thinker", "--prometheus", "http://127.0.0.1:9")

    assert result.exit_code == 1
    assert "--prometheus" in said(result)


async def test_status_is_readable_by_machines(run: Run, server: ApiServer, overlay: Path) -> None:
    await run("deploy", overlay, "--yes", "--no-wait")

    result = await run("status", "--json")

    rows = {f"{row['kind']}/{row['name']}": row for row in json.loads(result.output)}
    assert rows["InferenceService/thinker"]["replicas"] == "0..1"
    assert rows["InferenceService/thinker"]["ready"] is False


async def test_the_live_doctor_sees_the_platforms(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    await run("deploy", overlay, "--yes", "--no-wait")
    keda = {"name": "keda-operator", "image": "ghcr.io/kedacore/keda:2.16.1"}
    server.put(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "keda-operator", "namespace": "keda"},
            "spec": {"template": {"spec": {"containers": [keda]}}},
        }
    )

    result = await run("doctor", "--live", "--json")

    findings = json.loads(result.output)
    assert result.exit_code == 1
    assert {f["rule"] for f in findings if f["severity"] == "error"} == {"keda-version"}


async def test_the_live_doctor_does_not_judge_the_names_in_a_platform_s_deployment(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    await run("deploy", overlay, "--yes", "--no-wait")
    pod = {
        "serviceAccountName": "keda-operator",
        "containers": [{"name": "keda-operator", "image": "ghcr.io/kedacore/keda:2.17.2"}],
        "volumes": [{"name": "certificates", "secret": {"secretName": "kedaorg-certs"}}],
    }
    server.put(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "keda-operator", "namespace": "keda"},
            "spec": {"template": {"spec": pod}},
        }
    )
    server.put(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "inferenceservice-config", "namespace": "kserve"},
            "data": {"password": "an example of the platform's"},
        }
    )

    result = await run("doctor", overlay, "--live", "--json")

    assert json.loads(result.output) == []


@pytest.mark.parametrize("command", ["deploy", "status"])
async def test_a_scaled_object_whose_trigger_fails_is_shown_with_its_reason(
    run: Run, server: ApiServer, overlay: Path, command: str
) -> None:
    server.on_apply = lambda item: ready_at_once(server, item)
    await run("deploy", overlay, "--yes", "--no-wait")
    (failing, *_) = [each for each in server.names("ScaledObject") if "thinker" in each]
    live = copy.deepcopy(server.find("ScaledObject", failing))
    said_by_keda = "Triggers defined in ScaledObject are not working correctly"
    ready = {"type": "Ready", "status": "False", "reason": "TriggerError", "message": said_by_keda}
    live["status"] = {"conditions": [ready]}
    server.put(live)
    server.put(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "thinker.1", "namespace": "torpor"},
            "type": "Warning",
            "reason": "KEDAScalerFailed",
            "message": "connection to redis failed: i/o timeout",
            "involvedObject": {"kind": "ScaledObject", "name": failing},
        }
    )

    words = [overlay, "--yes"] if command == "deploy" else []
    shown = " ".join(said(await run(command, *words)).replace("│", " ").split())

    assert ("nothing to do" in shown) is (command == "deploy")
    for words_shown in ("Triggers defined", "not wake", "keda-operator", "KEDAScalerFailed"):
        assert words_shown in shown


async def test_delete_asks_and_keeps_data(run: Run, server: ApiServer, overlay: Path) -> None:
    await run("deploy", overlay, "--yes", "--no-wait")

    refused = await run("delete", say="n\n")
    assert refused.exit_code == 1
    assert "torpor-api" in server.names("Deployment")

    result = await run("delete", "--yes")

    assert result.exit_code == 0, said(result)
    assert server.names("Deployment") == set()
    assert "torpor-files" in server.names("PersistentVolumeClaim")


async def test_scale_wants_sense(run: Run) -> None:
    assert "--min, --max or both" in said(await run("scale", "thinker"))
    assert "over --max" in said(await run("scale", "thinker", "--min", "3", "--max", "2"))


async def test_render_check_fails_on_a_difference(run: Run, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text("max_job_seconds: 60\n")

    assert (await run("render", "--folder", tmp_path)).exit_code == 0
    assert (await run("render", "--folder", tmp_path, "--check")).exit_code == 0
    (tmp_path / "base" / "api.yaml").unlink()

    result = await run("render", "--folder", tmp_path, "--check")
    assert "missing  base/api.yaml" in said(result)
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [("nowhere", "there is no nowhere here"), (".", "no kustomization.yaml"), ("-", "not YAML")],
)
async def test_a_wrong_source_is_one_clear_line(run: Run, source: str, words: str) -> None:
    result = await run("doctor", source, say="a: [")

    assert result.exit_code == 1
    assert words in said(result)


def test_a_release_of_a_whole_overlay_fits_a_config_map(overlay: Path) -> None:
    from knative.deploy.rollout.release import Release

    resources = tuple(yaml.safe_load_all(overlay.read_text()))

    made = to_config_map(Release(1, resources), "torpor")

    assert len(json.dumps(made)) < 64 * 1024


def ready_at_once(server: ApiServer, item: Object) -> None:
    """Play the controllers: whatever is applied comes up."""
    made = copy.deepcopy(item)
    made["metadata"]["generation"] = 1
    yes = [{"type": name, "status": "True"} for name in ("Ready", "Complete")]
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas", "readyReplicas"), 9)
    counts["replicas"] = counts["updatedReplicas"]
    made["status"] = {"conditions": yes, **counts}
    server.put(made)
