"""Whose field is it: `scale` then `deploy`, `kubectl apply -k` then `deploy`, and what is no change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.deploy.api_server import ApiServer, Object, field_paths
from tests.integration.deploy.conftest import Run
from tests.integration.deploy.test_commands import said

KUBECTL = "kubectl-client-side-apply"


def with_defaults(item: Object) -> None:
    """What a real API server was seen to add to our StatefulSet's list of claims."""
    if item["kind"] == "StatefulSet":
        for claim in item["spec"]["volumeClaimTemplates"]:
            claim |= {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
            claim["spec"]["volumeMode"] = "Filesystem"
            claim["status"] = {"phase": "Pending"}


@pytest.fixture
def applied_by_kubectl(server: ApiServer, overlay: Path) -> ApiServer:
    """The whole overlay, as `kubectl apply -k` leaves it."""
    server.defaults = with_defaults
    for item in yaml.safe_load_all(overlay.read_text()):
        with_defaults(item)
        server.put(item)
        key = server.key(item)
        server.owners[key] = dict.fromkeys(field_paths(item), (KUBECTL, "Update"))
    return server


def changed(overlay: Path, folder: Path, old: str, new: str) -> Path:
    """The overlay with one text replaced."""
    made = folder / "changed.yaml"
    text = overlay.read_text()
    assert old in text
    made.write_text(text.replace(old, new))
    return made


def releases(server: ApiServer) -> set[str]:
    return {name for name in server.names("ConfigMap") if name.startswith("torpor-release")}


async def test_a_deploy_after_scale_is_no_conflict(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    await run("deploy", overlay, "--yes", "--no-wait")
    await run("scale", "thinker", "--max", "3")

    result = await run("deploy", overlay, "--yes", "--no-wait")

    assert result.exit_code == 0, said(result)
    assert server.find("InferenceService", "thinker")["spec"]["predictor"]["maxReplicas"] == 1
    assert "nothing to do" in said(await run("deploy", overlay, "--yes", "--no-wait"))


async def test_a_deploy_after_kubectl_takes_over_what_stays_as_it_is(
    run: Run, applied_by_kubectl: ApiServer, overlay: Path
) -> None:
    result = await run("deploy", overlay, "--yes", "--no-wait")

    assert result.exit_code == 0, said(result)
    redis = applied_by_kubectl.owners["apps/v1", "statefulsets", "torpor", "torpor-redis"]
    assert redis[".spec.volumeClaimTemplates"] == ("torpor", "Apply")


async def test_a_deploy_after_kubectl_that_changes_a_value_names_the_field(
    run: Run, applied_by_kubectl: ApiServer, overlay: Path, tmp_path: Path
) -> None:
    other = changed(overlay, tmp_path, "broker:0.1.0", "broker:0.2.0")

    refused = await run("deploy", other, "--yes", "--no-wait")
    assert refused.exit_code == 1
    assert f".spec.template.spec.containers (of {KUBECTL})" in said(refused)

    taken = await run("deploy", other, "--yes", "--no-wait", "--take-over")
    assert taken.exit_code == 0, said(taken)
    again = await run("deploy", other, "--yes", "--no-wait", "--take-over")
    assert "nothing to do" in said(again)


async def test_a_change_of_field_owners_only_is_no_release(
    run: Run, server: ApiServer, overlay: Path
) -> None:
    await run("deploy", overlay, "--yes", "--no-wait")
    for owned in server.owners.values():
        owned.update(dict.fromkeys(owned, ("helm", "Update")))
    server.defaults = with_defaults
    server.find("StatefulSet", "torpor-redis")["spec"]["volumeClaimTemplates"][0]["status"] = {
        "phase": "Pending"
    }
    with_defaults(server.find("StatefulSet", "torpor-redis"))

    result = await run("deploy", overlay, "--yes", "--no-wait")

    assert "take over fields" in said(result)
    assert releases(server) == {"torpor-release-000001"}


@pytest.mark.parametrize("is_there", [True, False], ids=["ended", "ended and cleaned up"])
async def test_the_job_of_the_first_secrets_is_not_run_again(
    run: Run, server: ApiServer, overlay: Path, tmp_path: Path, is_there: bool
) -> None:
    await run("deploy", overlay, "--yes", "--no-wait")
    end(server, is_there)

    again = await run("deploy", overlay, "--yes", "--no-wait")
    assert "nothing to do" in said(again)

    more = changed(overlay, tmp_path, "GPUS_PER_REPLICA: '1'", "GPUS_PER_REPLICA: '2'")
    result = await run("deploy", more, "--yes", "--no-wait")
    assert result.exit_code == 0, said(result)
    assert bool(server.names("Job")) is is_there


def end(server: ApiServer, is_there: bool) -> None:
    if is_there:
        done: dict[str, Any] = {"type": "Complete", "status": "True"}
        server.set_status("Job", "torpor-first-secrets", conditions=[done])
    else:
        server.remove("Job", "torpor-first-secrets")


async def test_a_wait_does_not_wait_for_a_job_that_was_cleaned_up(
    run: Run, server: ApiServer, tmp_path: Path, overlay: Path
) -> None:
    job = next(r for r in yaml.safe_load_all(overlay.read_text()) if r["kind"] == "Job")
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "x", "namespace": "torpor"},
        "data": {"a": "1"},
    }
    source = tmp_path / "two.yaml"
    source.write_text(yaml.safe_dump_all([job, config]))
    await run("deploy", source, "--yes", "--no-wait", "--force")
    end(server, is_there=False)
    source.write_text(yaml.safe_dump_all([job, config | {"data": {"a": "2"}}]))

    result = await run("deploy", source, "--yes", "--force", "--timeout", "5")

    assert result.exit_code == 0, said(result)
