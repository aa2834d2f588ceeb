"""Clients that others wrote, against a real stack from zero: what they understand is what we mean.

Each checks its answers itself (the programs beside this file). One that is not installed is skipped by name.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent

from api.webhook.webhook import new_secret, signed_headers
from tests.integration.predictor_process import PredictorProcess, predictors
from tests.integration.stack import MODEL, LocalStack
from tests.integration.test_tool_stack import tool_stack

pytestmark = pytest.mark.timeout(180)
HERE = Path(__file__).parent
CHAT = json.dumps(
    {"model": MODEL, "max_tokens": 3, "messages": [{"role": "user", "content": "Why?"}]}
)
LINE = f'{{"url": "/v1/chat/completions", "body": {CHAT}}}'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    made = LocalStack(tmp_path_factory.mktemp("stack"), "--window", "60s").start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictorProcess]:
    folder = tmp_path_factory.mktemp("predictor")
    with predictors(folder, 1) as (started,):
        yield started


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs for Node and the packages that they name."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for path in [*HERE.glob("*.mjs"), HERE / "package.json"]:
        shutil.copy(path, folder)
    flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(["npm", "install", *flags], cwd=folder, capture_output=True, timeout=150)
    if done.returncode:
        pytest.skip("npm could not fetch the packages (no network)")
    return folder


def shown(*command: str | Path, cwd: Path = HERE) -> str:
    """What the program printed; it must end well."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_openai_for_node_understands_every_answer(stack: LocalStack, node: Path) -> None:
    secret, body = new_secret(), '{"id": "evt_1", "type": "response.completed", "data": {}}'
    headers = signed_headers("evt_1", body.encode(), (secret,), time.time())
    words = [stack.addresses["api"], MODEL, secret, body, json.dumps(dict(headers))]

    told = json.loads(shown("node", "openai.mjs", *words, cwd=node))

    assert told["streamed"]
    assert told["text"]


def test_openai_for_node_goes_through_a_loop_with_an_approval(
    node: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with tool_stack(tmp_path_factory.mktemp("tools")) as made:
        told = json.loads(shown("node", "openai_tools.mjs", made.addresses["api"], MODEL, cwd=node))

    assert told == {"text": "Paid.", "status": "completed"}


def test_the_cloudevents_sdk_for_javascript_is_understood(stack: LocalStack, node: Path) -> None:
    words = [stack.addresses["api"], f"{stack.addresses['broker']}/", MODEL]

    assert len(json.loads(shown("node", "cloudevents.mjs", *words, cwd=node))) == 4


@pytest.mark.parametrize("convert", [to_binary, to_structured])
@pytest.mark.parametrize("place", ["broker", "api"])
def test_the_cloudevents_sdk_for_python_is_understood(
    stack: LocalStack, convert: object, place: str
) -> None:
    attributes = {
        "type": "dev.torpor.inference.requested.v1",
        "source": "/shop",
        "id": f"python-{place}-{getattr(convert, '__name__', '')}",
        "datacontenttype": "application/json",
        "model": MODEL,
    }
    body = {"url": "/v1/completions", "body": {"model": MODEL, "prompt": "Why?", "max_tokens": 3}}
    assert callable(convert)
    headers, data = convert(CloudEvent(attributes, body))
    target = stack.addresses[place] + ("/" if place == "broker" else "/v1/events")
    flags = [flag for name, value in headers.items() for flag in ("-H", f"{name}: {value}")]
    sent = ["curl", "-sS", "--data-binary", data.decode(), *flags, "-w", "%{http_code}", target]

    answer = shown(*sent)

    assert answer.endswith("202")
    job_id = json.loads(answer.removesuffix("202"))["id"]
    assert stack.job(job_id, wait_s=50)["state"] == "completed"


@pytest.mark.skipif(shutil.which("javac") is None, reason="a JDK is not installed")
def test_the_http_client_of_java_understands_every_answer(
    stack: LocalStack, predictor: PredictorProcess
) -> None:
    words = [stack.addresses["api"], f"{stack.addresses['broker']}/", predictor.url, MODEL]

    told = shown("java", "HttpClientCheck.java", *words).splitlines()

    assert told == [
        *("chat", "job", "direct", "event"),
        *("chat chunked", "job chunked", "direct chunked", "event chunked"),
        *("stream", "job to follow", "socket"),
    ]


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
@pytest.mark.parametrize("extra", [[], ["--compressed"], ["-H", "Expect: 100-continue"]])
def test_curl_understands_every_answer(
    stack: LocalStack, predictor: PredictorProcess, version: str, extra: list[str]
) -> None:
    if version == "--http2" and "HTTP2" not in shown("curl", "--version"):
        pytest.skip("curl without HTTP/2")
    common = [
        "curl",
        "-sS",
        "--fail-with-body",
        version,
        *extra,
        "-H",
        "content-type: application/json",
    ]
    for url, model in ((stack.addresses["api"], MODEL), (predictor.url, "seeded")):
        chat = CHAT.replace(MODEL, model)
        answer = json.loads(shown(*common, "-d", chat, f"{url}/v1/chat/completions"))
        assert answer["choices"][0]["message"]["content"]
    streamed = shown(
        *common, "-N", "-d", CHAT[:-1] + ', "stream": true}',
        f"{stack.addresses['api']}/v1/chat/completions",
    )  # fmt: skip
    assert streamed.endswith("data: [DONE]\n\n")
    accepted = json.loads(shown(*common, "-d", LINE, f"{stack.addresses['api']}/v1/jobs"))
    assert stack.job(accepted["id"], wait_s=50)["state"] == "completed"


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: pip install torpor[cpu]")
def test_vllm_bench_serve_understands_every_stream(stack: LocalStack) -> None:
    out = shown(sys.executable, "vllm_bench.py", stack.addresses["api"], MODEL).splitlines()
    (told,) = [json.loads(line) for line in out if line.startswith("[{")]

    assert [each["error"] for each in told] == [""] * 40
    assert all(each["success"] and each["generated_text"] for each in told)
    assert {each["output_tokens"] for each in told} == {5}
