"""Every variable of every process: a wrong value is one line that names it, and exit status 2."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic_settings import BaseSettings

import api.__main__ as api_main
import eventing.broker.__main__ as broker_main
import knative.external_scaler.__main__ as scaler_main
import predictor.__main__ as predictor_main
from api.settings import ApiSettings
from eventing.broker.settings import BrokerSettings
from eventing.process.address import is_inside
from eventing.process.setting import http_url, redis_url, token
from knative.external_scaler.settings import ExternalScalerSettings
from predictor.settings import PredictorSettings
from steps import __main__ as steps_main
from steps.settings import StepsSettings
from torpor.local.settings import StackSettings

PROCESSES: dict[str, tuple[type[BaseSettings], Callable[[list[str]], int]]] = {
    "api": (ApiSettings, api_main.main),
    "broker": (BrokerSettings, broker_main.main),
    "pump": (BrokerSettings, lambda words: broker_main.main(words, with_ingress=False)),
    "predictor": (PredictorSettings, predictor_main.main),
    "steps": (StepsSettings, steps_main.main),
    "scaler": (ExternalScalerSettings, scaler_main.main),
}
TEXTS = {
    "redis_url": "foo://x",
    "broker_url": "broker",
    "broker_token": "to\nken",
    "broker_token_file": "/nowhere/token",
    "broker_ca_file": "/nowhere/ca.pem",
    "queue_triggers_file": "/nowhere/triggers.yaml",
    "triggers_file": "/nowhere/triggers.yaml",
    "pipelines_file": "/nowhere/pipelines.yaml",
    "audit_golden_file": "/nowhere/golden.jsonl",
    "files_url": "s4://bucket/x",
    "keys_source": "/nowhere/keys.json",
    "oidc_issuer": "example.com",
    "oidc_jwks_url": "ftp://example.com/jwks",
    "delivery_token": "to ken",
    "tool_server": "nobody's",
    "upstream_url": "ftp://example.com",
    "verifier_token": "to ken",
    "guard_token": "to ken",
    "embedding_url": "ftp://example.com",
    "guard_url": "ftp://example.com",
    "embedding_token": "to ken",
    "index_url": "mysql://x",
    "ingress_token": "tøken",
    "direct_token": "x" * 5000,
    "log_level": "steam",
    "currency": "EURO",
    "anonymous_access": "steam",
    "engine": "steam",
    "replica_id": "x" * 300,
    "traces": "steam",
}
"""A wrong value for each variable of text; the others get a word, or a brace where JSON is wanted."""
FREE = {
    "host", "trigger", "oidc_audience", "oidc_tenant_claim", "oidc_scope_claim", "model",
    "model_name", "model_revision", "models_dir", "predictor_host", "grpc_host", "queue", "steps_host",
    "embedding_model", "upstream_model", "upstream_key_file",
}  # fmt: skip
"""Any text, or what only the network can judge."""


class Began(Exception):
    """The process got past its settings."""


def wrong_values() -> Iterator[tuple[str, str, str]]:
    """Process, field and a value that it cannot have."""
    for process, (kind, _) in PROCESSES.items():
        for name, field in kind.model_fields.items():
            if name in TEXTS:
                yield process, name, TEXTS[name]
            elif get_origin(field.annotation) in (tuple, dict):
                yield process, name, "{"
            elif name not in FREE:
                assert field.annotation not in (str, Path), f"{name}: say what is wrong for it"
                yield process, name, "steam"
        if process != "scaler":
            yield process, "traces", TEXTS["traces"]
            yield process, "traces_share", "2"


def test_every_variable_of_the_reference_is_tried_with_a_wrong_value() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/settings.md").read_text()
    listed = set(re.findall(r"^\| TORPOR_(\w+) \|", page, re.MULTILINE))
    of_the_stack = set(StackSettings.model_fields)  # tests/unit/local/test_command_line.py

    tried = {name for _, name, _ in wrong_values()} | FREE | of_the_stack
    assert {name.lower() for name in listed} == tried


@pytest.fixture(autouse=True)
def _no_process_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def begin(*_: Any, **__: Any) -> None:
        raise Began

    monkeypatch.setattr(api_main.ShutdownServer, "run", begin)
    monkeypatch.setattr(broker_main, "serve", begin)
    monkeypatch.setattr(predictor_main, "_bind", begin)
    monkeypatch.setattr(steps_main, "serve", begin)
    monkeypatch.setattr(scaler_main, "_serve", begin)
    monkeypatch.setattr("eventing.telemetry.log.configure", lambda *_, **__: None)
    (tmp_path / "triggers.yaml").write_text("")
    monkeypatch.setenv("TORPOR_TRIGGERS_FILE", str(tmp_path / "triggers.yaml"))
    monkeypatch.setenv("TORPOR_ANONYMOUS_ACCESS", "loopback")
    monkeypatch.setenv("TORPOR_OIDC_AUDIENCE", "torpor")


def refused(process: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line with which the process ends."""
    _, main = PROCESSES[process]

    assert main(list(words)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize(("process", "name", "value"), list(wrong_values()))
def test_a_wrong_value_is_one_line_that_names_its_variable(
    process: str,
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"TORPOR_{name.upper()}", value)

    assert f"TORPOR_{name.upper()}" in refused(process, capsys)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    "url",
    [
        "redis://:p#hunter2@127.0.0.1:6379/0",
        "redis://:hunter2/x@127.0.0.1:6379/0",
        "redis://:hunter2?x@127.0.0.1:6379/0",
        "redis://user:12/hunter2@127.0.0.1:6379/0",
        "redis://:hunter2[x@127.0.0.1:6379/0",
        "redis://:hunter2%zz@127.0.0.1:6379/0",
        "redis://:hunter2\n@127.0.0.1:6379/0",
        "redis://:hunter2 x@127.0.0.1:6379/0",
        "redis://127.0.0.1:port/0",
        "redis://127.0.0.1:6379/zero",
        "redis://127.0.0.1:6379/0?password_is=hunter2",
        "http://127.0.0.1:6379",
        "127.0.0.1:6379",
    ],
)
def test_an_address_of_a_store_that_is_none_is_refused_and_not_repeated(
    process: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORPOR_REDIS_URL", url)

    line = refused(process, capsys)

    assert "TORPOR_REDIS_URL" in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p%23s%2Fs%40%3A%2541%5Bx@127.0.0.1:6379/0",
        "rediss://user:secret@store.example.com",
        "redis://[::1]:6379/3?health_check_interval=5",
        "unix:///run/redis.sock?db=2",
        "redis://:with@sign@127.0.0.1:6379/0\n",
    ],
)
def test_an_address_of_a_store_is_taken(url: str) -> None:
    assert redis_url(url) == url.strip()


def test_a_line_break_at_the_end_of_a_token_is_none_of_it() -> None:
    assert token("s3cret\n") == token(" s3cret\r\n") == "s3cret"


@pytest.mark.parametrize("content", ["to\nken", "to\x00ken", "tøken", "x" * 5000])
def test_a_token_that_no_header_can_carry_is_refused_at_start(
    content: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text(content)
    monkeypatch.setenv("TORPOR_BROKER_TOKEN_FILE", str(tmp_path / "token"))

    line = refused("api", capsys)

    assert "TORPOR_BROKER_TOKEN_FILE" in line
    assert content not in line


@pytest.mark.parametrize(
    "name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
)
@pytest.mark.parametrize("process", ["api", "broker", "pump", "predictor", "steps"])
def test_an_address_of_a_collector_that_is_none_is_refused(
    process: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORPOR_TRACES", "otlp")
    monkeypatch.setenv(name, "collector:4318")

    assert name in refused(process, capsys)


def test_a_place_for_spans_that_cannot_be_written_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORPOR_TRACES", "file:/proc/nowhere/spans")

    assert "TORPOR_TRACES" in refused("api", capsys)


@pytest.mark.parametrize("field", ["subscriber", "deadLetterSink"])
@pytest.mark.parametrize("uri", ["ftp://example.com", "predictor:8080", "http://", "http://a:x/"])
def test_a_trigger_whose_address_cannot_be_dialled_is_refused(
    field: str,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    good = "http://127.0.0.1:1"
    subscriber, sink = (uri, good) if field == "subscriber" else (good, uri)
    spec = (
        f"{{subscriber: {{uri: '{subscriber}'}}, delivery: {{deadLetterSink: {{uri: '{sink}'}}}}}}"
    )
    triggers = tmp_path / "wrong.yaml"
    triggers.write_text(f"metadata: {{name: t}}\nspec: {spec}\n")
    monkeypatch.setenv("TORPOR_TRIGGERS_FILE", str(triggers))

    assert f"{field}.uri" in refused("broker", capsys)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "text", "metadata: 3\nspec: 4"])
def test_a_file_that_holds_no_triggers_is_one_line(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text(text)
    for process, variable in (
        ("broker", "TORPOR_TRIGGERS_FILE"),
        ("api", "TORPOR_QUEUE_TRIGGERS_FILE"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / "other.yaml"))
        assert variable in refused(process, capsys)


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "predictor"])
def test_help_and_unknown_flags_start_nothing(
    process: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--porrt" in refused(process, capsys, "--porrt", "1")
    with pytest.raises(SystemExit) as ended:
        PROCESSES[process][1](["--help"])
    assert ended.value.code == 0
    assert "TORPOR_" in capsys.readouterr().out


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "predictor"])
def test_settings_are_shown_without_their_secrets(
    process: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORPOR_REDIS_URL", "redis://:hunter2@127.0.0.1:6379/0")
    with pytest.raises(SystemExit) as ended:
        PROCESSES[process][1](["--print-settings"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "redis_url" in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "url", ["http://user:pass@host/", "http://host:1/#x", "http://a b/", "https:///x"]
)
def test_an_http_address_that_hides_something_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"write it as|does not belong"):
        http_url(url)


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("::1", True), ("localhost", True),
        ("collector", True), ("otel.monitoring.svc", True), ("x.y.svc.cluster.local", True),
        ("otlp.example.com", False), ("8.8.8.8", False),
    ],
)  # fmt: skip
def test_no_proxy_leads_inside(host: str, inside: bool) -> None:
    assert is_inside(host) is inside
