"""Nothing that a user wrote, was answered, or must keep secret is in any log, metric or span.

One stack with every kind of credential there is (API key, identity provider's token, webhook
secret, broker's and deliveries' tokens, the store's password), driven through every process with
good calls and bad ones, at the most talkative log level.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from api.settings import ApiSettings
from eventing.api_key import SCOPES, mint
from tests.integration.stack import MODEL, LocalStack

pytestmark = pytest.mark.timeout(150)

PROMPT = "canary-4f1d-prompt"
KEY = "canary-77aa-idempotency"
REASON = "canary-90be-metadata"
TOKEN = "canary-11ce-bearer"
QUERY = "canary-62d0-query"
BROKER_TOKEN = "canary-8c3e-broker-token"
SIGNER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
AUDIENCE = "torpor-canary"
KNOBS: dict[str, dict[str, Any]] = {"good": {}, "failing": {"seeded": {"fail_at": 3}}}


@dataclass
class Run:
    """One whole run, in text: what every process wrote and showed, and every refusal."""

    texts: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)


@dataclass
class Outside:
    """The identity provider and the webhook receiver of the run, on one port."""

    url: str
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def outside() -> Iterator[Outside]:
    """Keys of the identity provider to GET; a receiver that fails once to POST."""
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(SIGNER.public_key())) | {"kid": "one"}
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, json.dumps({"keys": [jwk]}).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append({name.lower(): text for name, text in self.headers.items()})
            self._answer(200 if len(seen) > 1 else 500, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Outside(f"http://127.0.0.1:{server.server_address[1]}", seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def signed(issuer: str, *, age_s: int = 0) -> str:
    """A token of the identity provider, issued `age_s` ago for a minute."""
    claims = {
        "iss": issuer,
        "aud": AUDIENCE,
        "exp": int(time.time()) - age_s + 60,
        "tenant": "federated",
        "scope": " ".join(SCOPES),
    }
    return jwt.encode(claims, SIGNER, algorithm="RS256", headers={"kid": "one"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("canary")
    data, keys = folder / "data", folder / "keys.json"
    key, text = mint("acme", now_s=int(time.time()), scopes=SCOPES)
    keys.write_bytes(orjson.dumps([key]))
    done = Run()
    with outside() as there, ExitStack() as running:
        env = {
            "TORPOR_TRACES": f"file:{folder / 'spans.jsonl'}",
            "TORPOR_TRACES_SHARE": "1",  # every span is looked through
            "TORPOR_KEYS_SOURCE": str(keys),
            "TORPOR_OIDC_ISSUER": there.url,
            "TORPOR_OIDC_AUDIENCE": AUDIENCE,
            "TORPOR_OIDC_JWKS_URL": f"{there.url}/jwks?token={QUERY}",
            "TORPOR_WEBHOOK_ALLOW": '["127.0.0.0/8"]',
            "TORPOR_WEBHOOK_SCHEDULE_S": "[0, 0.1]",
            "TORPOR_BROKER_TOKEN": BROKER_TOKEN,
        }
        # A short lease: the job whose predictor dies is waited for.
        flags = ("--window", "60s", "--log-level", "DEBUG", "--lease", "2s")
        stack = LocalStack(data, *flags, env=env).start()
        running.callback(stack.stop)  # also where what follows fails
        done.secrets = secrets_of(stack) | {"API key": text, "broker token": BROKER_TOKEN}
        done.secrets |= {"token": signed(there.url), "expired token": signed(there.url, age_s=900)}
        with httpx.Client(base_url=stack.addresses["api"], timeout=120) as client:
            client.headers["authorization"] = f"Bearer {text}"
            done.secrets["webhook secret"] = register(client, there)
            done.outputs = work(client, done)
            knock(client, stack, done)
        stack.until(lambda: len(there.headers) > 1, 10)
        done.secrets |= signatures(there)
        stack.until(lambda: bool(stack.status()["replicas"]["list"]), 20)
        look(stack, done)
    done.texts["spans"] = (folder / "spans.jsonl").read_text()
    done.texts["standard error"] = stack.said()
    for path in (data / "logs").glob("*.log"):
        done.texts[f"log {path.name}"] = path.read_text()
    return done


def register(client: httpx.Client, there: Outside) -> str:
    """A webhook endpoint whose URL holds a secret, rotated once; its signing secret."""
    url = f"{there.url}/hook?token={QUERY}"
    made = client.post("/v1/webhook_endpoints", json={"url": url}).json()
    rotated = client.post(
        f"/v1/webhook_endpoints/{made['id']}/rotate_secret",
        json={"keep_old_secret_active_for_24_hours": True},
    )
    return str(rotated.json()["signing_secret"])


def signatures(there: Outside) -> dict[str, str]:
    return {
        f"signature {number}": signature
        for sent in there.headers[:2]
        for number, signature in enumerate(sent["webhook-signature"].split())
    }


def work(client: httpx.Client, done: Run) -> list[str]:
    """Every way in, and the answers that came back."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{PROMPT} hello"}]}
    outputs: list[str] = []
    jobs = {name: submit(client, body | seeded, name) for name, seeded in KNOBS.items()}
    for name in ("good", "failing"):
        job = client.get(f"/v1/jobs/{jobs[name]}", params={"wait": "20"}).json()
        if job["result"]:
            outputs.append(job["result"]["choices"][0]["message"]["content"])
        done.texts[f"error of the {name} one"] = json.dumps(job["error"])
        done.tried.add(f"{job['state']} after {job['attempt']}")
    job = lost(client, submit(client, body | {"seeded": {"process_dies_at": 4}}, "deadly"))
    done.tried.add(f"attempt 1 {job['attempts'][0]['outcome']}")
    by_token = {"authorization": f"Bearer {done.secrets['token']}"}
    called = client.post("/v1/chat/completions", json=body | {"max_tokens": 20}, headers=by_token)
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
            done.texts[f"refusal: {name}"] = refused.text
    done.texts["refusal: not JSON"] = client.post("/v1/jobs", content=f"{{{PROMPT}").text
    client.get(f"/v1/jobs/{PROMPT}", params={"wait": PROMPT})
    return outputs


def submit(client: httpx.Client, body: dict[str, Any], name: str) -> str:
    line = {"url": "/v1/chat/completions", "body": body | {"max_tokens": 20}}
    line["metadata"] = {"why": REASON}
    answer = client.post("/v1/jobs", json=line, headers={"idempotency-key": f"{KEY}-{name}"})
    return str(answer.json()["id"])


def lost(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job once its first predictor is known to be dead; then it is cancelled, since each death
    costs a cold start.
    """
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if any(attempt["outcome"] for attempt in job["attempts"]):
            client.delete(f"/v1/jobs/{job_id}")
            return job
        time.sleep(0.1)
    raise TimeoutError("no attempt was lost")


def knock(client: httpx.Client, stack: LocalStack, done: Run) -> None:
    """Credentials that are wrong, expired, in the wrong place or at the wrong route."""
    wrong = done.secrets["API key"][:-4] + "AAAA"
    for name, token in {
        "nonsense": TOKEN,
        "a wrong key": wrong,
        "an expired token": done.secrets["expired token"],
        "a delivery's token": done.secrets["TORPOR_DELIVERY_TOKEN"],
    }.items():
        headers = {"authorization": f"Bearer {token}"}
        answer = client.get("/v1/jobs", headers=headers, params={"api_key": QUERY})
        done.tried.add(f"{name}: {answer.status_code}")
        done.texts[f"refusal of {name}"] = answer.text
    done.secrets["a wrong key"] = wrong
    bad = client.get("/v1/jobs", headers={"authorization": f"Basic {TOKEN}", "x-api-key": TOKEN})
    done.texts["refusal of another scheme"] = bad.text
    for part, path in (("broker", ""), ("activator", "/events"), ("api", "/internal/events")):
        address = f"{stack.addresses[part].rstrip('/')}{path or '/'}"
        for content in (PROMPT, json.dumps({"specversion": "1.0", "data": PROMPT})):
            answer = httpx.post(
                address,
                content=content,
                headers={"authorization": f"Bearer {TOKEN}", "ce-id": KEY},
                timeout=120,
            )
            done.texts[f"{part} said to {content[:12]}"] = answer.text
            done.tried.add(f"{part}: {answer.status_code}")


def look(stack: LocalStack, done: Run) -> None:
    """What every process shows to whoever may look."""
    (replica, *_) = stack.status()["replicas"]["list"]
    shown = {part: stack.addresses[part] for part in ("api", "broker", "activator")}
    shown["predictor"] = "http://127.0.0.1:" + replica["id"].rsplit("-", 1)[1]
    refused = httpx.post(
        f"{shown['predictor']}/", content=PROMPT, headers={"authorization": f"Bearer {TOKEN}"}
    )
    done.texts["predictor's refusal"] = refused.text
    for part, address in shown.items():
        done.texts[f"metrics of the {part}"] = httpx.get(f"{address}/metrics").text
    done.texts["status"] = json.dumps(stack.status())
    settings = ApiSettings(
        redis_url=f"redis://:{done.secrets['TORPOR_REDIS_URL']}@h/0",
        delivery_token=done.secrets["TORPOR_DELIVERY_TOKEN"],
    )
    done.texts["settings as printed"] = settings.masked().decode() + repr(settings)


def secrets_of(stack: LocalStack) -> dict[str, str]:
    """The store's password and the token of the deliveries, as the processes have them."""
    found = {}
    for pid in stack.children():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        for entry in environment:
            name, _, value = entry.decode(errors="replace").partition("=")
            if name == "TORPOR_DELIVERY_TOKEN":
                found[name] = value
            if name == "TORPOR_REDIS_URL" and ":" in value.partition("@")[0][8:]:
                found[name] = value.partition("@")[0].rsplit(":", 1)[1]
    return found


def where(run: Run, text: str) -> list[str]:
    return [name for name, written in run.texts.items() if text in written]


def test_the_run_wrote_enough_to_prove_something(run: Run) -> None:
    assert {"spans", "standard error", "log api.log", "log broker.log"} <= run.texts.keys()
    assert any("attempt" in text for name, text in run.texts.items() if "predictor" in name)
    assert len(run.outputs) >= 2
    assert {"completed after 1", "failed after 3", "attempt 1 lost"} <= run.tried
    assert {"nonsense: 401", "a wrong key: 401", "an expired token: 401"} <= run.tried
    assert "a delivery's token: 403" in run.tried
    kinds = {"TORPOR_DELIVERY_TOKEN", "TORPOR_REDIS_URL", "API key", "token", "webhook secret"}
    assert kinds | {"broker token", "signature 1"} <= run.secrets.keys()
    assert all(len(secret) > 20 for secret in run.secrets.values())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PROMPT, id="prompt"),
        pytest.param(KEY, id="idempotency_key"),
        pytest.param(REASON, id="metadata"),
        pytest.param(TOKEN, id="bearer_token"),
        pytest.param(QUERY, id="query"),
    ],
)
def test_no_log_metric_span_or_refusal_contains_the_callers_input(run: Run, text: str) -> None:
    assert where(run, text) == []


def test_no_log_metric_span_or_refusal_contains_the_models_output(run: Run) -> None:
    assert run.outputs
    for output in run.outputs:
        words = output.split()
        assert where(run, " ".join(words[:4])) == []
        assert where(run, " ".join(words[-4:])) == []


def test_no_credential_is_anywhere(run: Run) -> None:
    found = {name: where(run, secret) for name, secret in run.secrets.items()}

    assert {name: places for name, places in found.items() if places} == {}


def test_no_part_of_a_credential_is_anywhere(run: Run) -> None:
    """The half that is secret: an id of a key may be told, and the claims of a token are inside."""
    key = run.secrets["API key"].split("_", 2)[2]
    claims, signature = run.secrets["token"].split(".")[1:]
    secret = run.secrets["webhook secret"].removeprefix("whsec_")

    for part in (key, claims, signature, secret):
        assert where(run, part[:20]) == []
        assert where(run, part[-20:]) == []


def lines(run: Run) -> list[dict[str, Any]]:
    """What our own code logged, in every process."""
    told = {name: text for name, text in run.texts.items() if name.startswith("log ")}
    del told["log store.log"]  # Valkey's own
    found = [json.loads(line) for text in told.values() for line in text.splitlines() if line]
    stack = [line for line in run.texts["standard error"].splitlines() if line.startswith("{")]
    return [line for line in [*found, *map(json.loads, stack)] if "logger" not in line]


def test_every_line_of_every_process_is_json_with_an_action(run: Run) -> None:
    written = lines(run)

    assert {line["service"] for line in written} >= {"api", "broker", "predictor", "stack"}
    assert [line for line in written if not line.get("action")] == []


def test_one_log_line_has_the_request_id_the_job_id_and_the_trace_id(run: Run) -> None:
    accepted = [line for line in lines(run) if line["action"] == "submit"]

    assert len(accepted) >= len(run.outputs)
    assert {"request_id", "job_id", "trace_id"} <= set.intersection(*map(set, accepted))


@pytest.mark.parametrize("action", ["attempt", "attempt_end"])
def test_lines_about_an_attempt_name_its_job_its_number_and_the_trace_of_the_submit(
    run: Run, action: str
) -> None:
    traces = {line["job_id"]: line["trace_id"] for line in lines(run) if line["action"] == "submit"}
    attempts = [line for line in lines(run) if line["action"] == action]

    assert max(line["attempt"] for line in attempts) > 1
    found = {line["job_id"]: line["trace_id"] for line in attempts}
    assert found.items() <= traces.items()  # one died without a word
