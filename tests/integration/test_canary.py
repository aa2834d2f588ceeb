"""Nothing that a user wrote, was answered, or must keep secret is in any log, metric or span."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.integration.stack import MODEL, LocalStack

pytestmark = pytest.mark.timeout(90)

PROMPT = "canary-4f1d-prompt"
KEY = "canary-77aa-idempotency"
REASON = "canary-90be-metadata"
TOKEN = "canary-11ce-bearer"


@dataclass
class Run:
    """One whole run, in text: what every process wrote and showed, and every refusal."""

    texts: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Good, bad, failing, cancelled and streamed calls, at the most talkative log level."""
    folder = tmp_path_factory.mktemp("canary")
    env = {"TORPOR_TRACES": f"file:{folder / 'spans.jsonl'}", "TORPOR_TRACES_SHARE": "1"}
    data = folder / "data"
    stack = LocalStack(data, "--window", "60s", "--log-level", "DEBUG", env=env).start()
    done = Run()
    with httpx.Client(base_url=stack.addresses["api"], timeout=30) as client:
        client.headers["authorization"] = f"Bearer {TOKEN}"
        done.outputs = work(client, done.texts)
    time.sleep(2.5)
    (replica, *_) = stack.status()["replicas"]["list"]
    shown = stack.addresses | {"predictor": "http://127.0.0.1:" + replica["id"].rsplit("-", 1)[1]}
    for part, address in shown.items():
        done.texts[f"metrics of the {part}"] = httpx.get(f"{address}/metrics").text
    done.texts["status"] = json.dumps(stack.status())
    done.secrets = secrets_of(stack)
    stack.stop()
    done.texts["spans"] = (folder / "spans.jsonl").read_text()
    done.texts["standard error"] = stack.said()
    for path in (data / "logs").glob("*.log"):
        done.texts[f"log {path.name}"] = path.read_text()
    return done


def work(client: httpx.Client, refusals: dict[str, str]) -> list[str]:
    """Every way in, and the answers that came back."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{PROMPT} hello"}]}
    outputs: list[str] = []
    for extra in ({}, {"seeded": {"fail_at": 3}}, {"seeded": {"process_dies_at": 4}}):
        line = {"url": "/v1/chat/completions", "body": body | {"max_tokens": 20} | extra}
        line["metadata"] = {"why": REASON}
        answer = client.post("/v1/jobs", json=line, headers={"idempotency-key": KEY + str(extra)})
        job = client.get(f"/v1/jobs/{answer.json()['id']}", params={"wait": "20"}).json()
        if job["result"]:
            outputs.append(job["result"]["choices"][0]["message"]["content"])
        refusals[f"error of {extra}"] = json.dumps(job["error"])
    called = client.post("/v1/chat/completions", json=body | {"max_tokens": 20})
    outputs.append(called.json()["choices"][0]["message"]["content"])
    client.post("/v1/chat/completions", json=body | {"max_tokens": 20, "stream": True})
    bad = {
        "unknown model": {"model": PROMPT, "messages": body["messages"]},
        "bad type": {"model": MODEL, "messages": PROMPT},
        "bad number": body | {"max_tokens": PROMPT},
    }
    for name, wrong in bad.items():
        refused = client.post("/v1/chat/completions", json=wrong)
        assert refused.status_code >= 400, name
        if name != "unknown model":  # its refusal names the model that was asked for
            refusals[f"refusal: {name}"] = refused.text
    refusals["refusal: not JSON"] = client.post("/v1/jobs", content=f"{{{PROMPT}").text
    client.get(f"/v1/jobs/{PROMPT}", params={"wait": PROMPT})
    return outputs


def secrets_of(stack: LocalStack) -> list[str]:
    """The store's password and the token of the deliveries, as the processes have them."""
    found = []
    for pid in stack.children():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        for entry in environment:
            name, _, value = entry.decode(errors="replace").partition("=")
            if name == "TORPOR_DELIVERY_TOKEN":
                found.append(value)
            if name == "TORPOR_REDIS_URL" and ":" in value.partition("@")[0][8:]:
                found.append(value.partition("@")[0].rsplit(":", 1)[1])
    return sorted({secret for secret in found if len(secret) > 7})


def where(run: Run, text: str) -> list[str]:
    return [name for name, written in run.texts.items() if text in written]


def test_the_run_wrote_enough_to_prove_something(run: Run) -> None:
    assert {"spans", "standard error", "log api.log", "log broker.log"} <= run.texts.keys()
    assert any("attempt" in text for name, text in run.texts.items() if "predictor" in name)
    assert len(run.outputs) >= 2
    assert run.secrets


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PROMPT, id="prompt"),
        pytest.param(KEY, id="idempotency_key"),
        pytest.param(REASON, id="metadata"),
        pytest.param(TOKEN, id="bearer_token"),
    ],
)
def test_what_a_caller_sent_is_nowhere(run: Run, text: str) -> None:
    assert where(run, text) == []


def test_what_the_model_answered_is_nowhere(run: Run) -> None:
    for output in run.outputs:
        words = output.split()
        assert where(run, " ".join(words[:4])) == []
        assert where(run, " ".join(words[-4:])) == []


def test_no_password_and_no_token_is_anywhere(run: Run) -> None:
    for secret in run.secrets:
        assert where(run, secret) == []


def test_every_line_of_a_service_is_json_with_an_action(run: Run) -> None:
    lines = [
        json.loads(line)
        for name in ("log api.log", "log broker.log")
        for line in run.texts[name].splitlines()
        if line.strip()
    ]

    ours = [line for line in lines if "logger" not in line]
    assert [line for line in ours if not line.get("action")] == []
