"""A store of three servers, and backups, on a cluster: what is rendered for `store.replicas: 3` and a `backup_url`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eventing.process.store_url import parse_store_url
from eventing.store.objects.backup import BackupSettings, main, run, surplus
from knative.deploy.doctor import Severity, examine
from knative.deploy.first_secrets import redis_secret
from knative.deploy.render import parts
from knative.deploy.render.tree import OVERLAYS, finished
from knative.deploy.values import Values, ValuesError, load_values
from tests.manifests.test_policies import wrong_ways

VALUES = Values.model_validate(
    {
        "store": {"replicas": 3, "backup_url": "s3://bucket/torpor"},
        "steps": {"max_replicas": 2},
        "pipelines": {"thinker": {"steps": [{"step": "no-op"}]}},
    }
)
HOSTS = [f"torpor-redis-{number}.torpor.svc.cluster.local" for number in range(3)]


def one(objects: list[Any], kind: str, name: str) -> Any:
    return next(
        each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_doctor_and_the_policies_allow_a_store_of_three(overlay: str) -> None:
    found = examine(finished(overlay, VALUES)).findings
    assert [each for each in found if each.severity is Severity.ERROR] == []
    assert wrong_ways(finished(overlay, VALUES)) == set()


def test_keda_asks_the_sentinels_for_every_queue() -> None:
    objects = finished("queue", VALUES)
    triggers = [
        trigger
        for each in objects
        if each["kind"] == "ScaledObject"
        for trigger in each["spec"]["triggers"]
        if trigger["type"].startswith("redis")
    ]
    assert len(triggers) > 2
    for trigger in triggers:
        assert trigger["type"] == "redis-sentinel-streams"
        where = trigger["metadata"]
        assert where["addresses"].split(",") == [f"{host}:26379" for host in HOSTS]
        assert where["sentinelMaster"] == "torpor"
        assert "address" not in where
    login = one(objects, "TriggerAuthentication", "torpor-redis")["spec"]["secretTargetRef"]
    assert {each["parameter"] for each in login} == {
        "username",
        "password",
        "sentinelUsername",
        "sentinelPassword",
    }


def test_each_server_has_a_service_and_a_node_of_its_own() -> None:
    objects = finished("queue", VALUES)
    for number, host in enumerate(HOSTS):
        service = one(objects, "Service", host.split(".")[0])
        assert service["spec"]["selector"] == {
            "statefulset.kubernetes.io/pod-name": f"torpor-redis-{number}"
        }
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert {port["port"] for port in service["spec"]["ports"]} == {6379, 26379}
    assert not [each for each in objects if each["metadata"]["name"] == parts.STORE]
    spec = one(objects, "StatefulSet", "torpor-redis")["spec"]
    assert spec["replicas"] == 3
    (apart,) = spec["template"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert one(objects, "PodDisruptionBudget", "torpor-redis")["spec"]["maxUnavailable"] == 1


def test_a_202_waits_for_a_replica() -> None:
    settings = one(finished("queue", VALUES), "ConfigMap", "torpor-settings")["data"]
    assert settings["TORPOR_STORE_ACKS"] == "1"
    single = one(finished("queue", Values()), "ConfigMap", "torpor-settings")["data"]
    assert "TORPOR_STORE_ACKS" not in single


def test_the_secret_names_the_sentinels_that_the_manifests_have() -> None:
    job = one(finished("queue", VALUES), "Job", "torpor-first-secrets")
    (box,) = job["spec"]["template"]["spec"]["containers"]
    replicas = {each["name"]: each.get("value") for each in box["env"]}["TORPOR_STORE_REPLICAS"]
    secret = redis_secret("torpor", lambda size: "x" * size, int(replicas))
    url = parse_store_url(secret["url"])
    assert [host for host, _ in url.sentinels] == HOSTS
    assert (url.service, url.sentinel_password) == ("torpor", secret["password"])
    scaler = parse_store_url(secret["scaler-url"])
    assert (scaler.sentinel_username, scaler.sentinel_password) == ("scaler", "x" * 32)


def test_a_backup_that_hangs_does_not_stop_those_after_it() -> None:
    spec = one(finished("queue", VALUES), "CronJob", "torpor-backup")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert 0 < spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 3600


def test_a_backup_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORPOR_BACKUP_URL", (tmp_path / "kept").as_uri())
    monkeypatch.setenv("TORPOR_BACKUP_FILE", str(tmp_path / "none.rdb"))
    assert main() == 1
    said = capsys.readouterr().err
    assert "TORPOR_BACKUP_URL" in said
    assert "none.rdb" in said


def test_wrong_values_of_the_store_are_said_in_words(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("store: {replicas: 2, backup_url: /tmp/x, backup_schedule: hourly}")

    with pytest.raises(ValuesError) as wrong:
        load_values(path)

    assert [line.removeprefix(f"{path}: store.") for line in str(wrong.value).splitlines()] == [
        "replicas: Input should be 1 or 3 (got 2)",
        "backup_url: must be a folder in a bucket: s3://BUCKET/FOLDER (got '/tmp/x')",
        "backup_schedule: must be five fields as cron has them: 17 * * * * (got 'hourly')",
    ]


def test_one_server_stays_as_it_was() -> None:
    objects = finished("queue", Values())
    assert one(objects, "StatefulSet", "torpor-redis")["spec"]["replicas"] == 1
    assert one(objects, "Service", parts.STORE)
    assert not [each for each in objects if each["kind"] == "CronJob"]


async def test_a_backup_is_kept_and_only_older_backups_are_deleted(tmp_path: Path) -> None:
    snapshot = tmp_path / "dump.rdb"
    snapshot.write_bytes(b"REDIS0011")
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "notes.txt").write_text("not ours")
    settings = BackupSettings(backup_url=folder.as_uri(), backup_file=snapshot, backups_kept=2)
    for now_s in (1_800_000_000, 1_800_003_600, 1_800_007_200):
        await run(settings, now_s)
    assert sorted(each.name for each in folder.iterdir()) == [
        "notes.txt",
        "torpor-20270115T090000Z.rdb",
        "torpor-20270115T100000Z.rdb",
    ]


def test_the_newest_backups_stay() -> None:
    names = ["torpor-2.rdb", "torpor-1.rdb", "other.rdb", "torpor-3.rdb.part-ab"]
    assert surplus(names, 1) == ["torpor-1.rdb"]
    assert surplus(names, 5) == []
