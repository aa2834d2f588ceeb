"""The compose file: processes that can read their settings, names that are there, nothing secret in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eventing.broker.trigger import load_triggers
from knative.deploy.package.compose import files
from knative.deploy.values import MoreModel, Values

PROJECT: dict[str, Any] = yaml.safe_load(files(Values())["compose/compose.yaml"])
SERVICES: dict[str, Any] = PROJECT["services"]
TOKEN = "t" * 24


def environment(service: str) -> dict[str, str]:
    """As compose gives it, with the variables of `.env`."""
    given = SERVICES[service]["environment"]
    return {name: re.sub(r"\$\{\w+:\?[^}]*\}", TOKEN, text) for name, text in given.items()}


@pytest.mark.parametrize(
    ("service", "known"),
    [
        ("api", '"keys_source": "redis"'),
        ("broker", '"trigger": "strays"'),
        ("thinker-pump", '"trigger": "requests-thinker"'),
    ],
)
def test_each_process_reads_the_settings_that_it_is_given(
    service: str, known: str, tmp_path: Path
) -> None:
    triggers = tmp_path / "triggers.yaml"
    triggers.write_text(PROJECT["configs"]["triggers"]["content"])
    given = {
        name: text.replace("/etc/torpor/triggers/triggers.yaml", str(triggers))
        for name, text in environment(service).items()
    }
    module = {"api": "api", "broker": "eventing.broker", "thinker-pump": "eventing.pump"}[service]

    said = subprocess.run(
        [sys.executable, "-m", module, "--print-settings"],
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert said.returncode == 0, said.stderr
    assert known in said.stdout


def test_every_host_that_is_named_is_a_service_or_its_alias(tmp_path: Path) -> None:
    triggers = tmp_path / "triggers.yaml"
    triggers.write_text(PROJECT["configs"]["triggers"]["content"])
    aliases = {
        alias
        for each in SERVICES.values()
        for alias in each.get("networks", {}).get("default", {}).get("aliases", ())
    }
    text = yaml.safe_dump({name: environment(name) for name in SERVICES if name != "redis"})
    named = set(re.findall(r"(?:http|redis)://([a-z0-9.-]+):\d+", text))
    named |= {
        str(trigger.subscriber).split("/")[2].split(":")[0] for trigger in load_triggers(triggers)
    }

    assert named - {"localhost", "127.0.0.1"} <= set(SERVICES) | aliases
    assert SERVICES["thinker-pump"]["network_mode"] == "service:thinker"


def test_volumes_and_configs_are_declared() -> None:
    for each in SERVICES.values():
        for volume in each.get("volumes", ()):
            name = volume.split(":")[0]
            assert name.startswith("./") or name in PROJECT["volumes"]
        for config in each.get("configs", ()):
            assert config["source"] in PROJECT["configs"]


def test_only_the_api_is_published_and_only_on_this_machine() -> None:
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}

    assert published == {"api": ["127.0.0.1:8000:8000"]}


def test_no_secret_stands_in_the_file_and_a_missing_one_stops_the_start() -> None:
    tokens = {
        text
        for each in SERVICES.values()
        for name, text in each.get("environment", {}).items()
        if name.endswith("_TOKEN")
    }

    assert tokens
    assert all(text.startswith("${TORPOR_DELIVERY_TOKEN:?") for text in tokens)


def test_a_secret_that_the_operator_makes_is_a_variable_of_its_own() -> None:
    own = Values.model_validate({"platform": {"direct_token_secret": "own"}})
    services = yaml.safe_load(files(own)["compose/compose.yaml"])["services"]

    given = services["thinker"]["environment"]["TORPOR_DIRECT_TOKEN"]
    assert given == "${TORPOR_DIRECT_TOKEN:?token of the Secret own, in .env}"


def test_steps_are_a_service_that_the_triggers_name_and_each_reader_has_the_plans() -> None:
    plans = {"thinker": {"steps": ["no-op"]}}
    values = Values.model_validate({"steps": {"max_replicas": 1}, "pipelines": plans})
    project = yaml.safe_load(files(values)["compose/compose.yaml"])
    services, configs = project["services"], project["configs"]

    (alias,) = services["steps"]["networks"]["default"]["aliases"]
    assert f"http://{alias}:8083/events" in configs["triggers"]["content"]
    assert yaml.safe_load(configs["pipelines"]["content"]) == plans
    for name in ("api", "broker", "steps"):
        assert services[name]["environment"]["TORPOR_PIPELINES_FILE"] in {
            each["target"] for each in services[name]["configs"] if each["source"] == "pipelines"
        }
    assert services["steps"]["volumes"] == services["api"]["volumes"]
    assert "steps" not in SERVICES
    assert "pipelines" not in PROJECT["configs"]


def test_every_model_has_an_engine_and_a_pump() -> None:
    more = Values(more_models=(MoreModel(name="embedder", uri="hf://org/model"),))
    services = yaml.safe_load(files(more)["compose/compose.yaml"])["services"]

    assert {"thinker", "thinker-pump", "embedder", "embedder-pump"} <= set(services)
    assert services["embedder-pump"]["environment"]["TORPOR_TRIGGER"] == "requests-embedder"
