"""A stack that cannot start says why in one line."""

import json
import socket
import subprocess
from pathlib import Path

import pytest

from tests.integration.stack import TORPOR, LocalStack, torpor, up
from torpor.local.errors import StackError
from torpor.local.model import prepare_model

pytestmark = pytest.mark.timeout(180)


def test_a_taken_port_is_named_with_the_flag_to_change_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = up(tmp_path / "data", "--port", str(taken.getsockname()[1]))

    assert refused.returncode == 1
    assert "--port" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_redis_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    refused = up(tmp_path / "data", "--redis-url", "redis://127.0.0.1:9/0")

    assert refused.returncode == 1
    assert "TORPOR_REDIS_URL" in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_the_api_gets_the_capabilities_in_the_models_folder(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()

    model = await prepare_model(str(tmp_path), tmp_path, print)

    assert model.card([])["capabilities"] == ["generate"]
    assert model.card(["--tool-call-parser", "hermes"])["capabilities"] == ["generate", "tools"]
    assert model.card([])["context_tokens"] == 512


async def test_a_model_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no folder /nowhere with a model"):
        await prepare_model("/nowhere", tmp_path, print)


def test_a_setting_out_of_range_is_named_with_its_range(tmp_path: Path) -> None:
    refused = up(tmp_path / "data", "--window", "2s", "--max-replicas", "0")

    assert refused.returncode == 2
    assert "--window" in refused.stderr
    assert "--max-replicas" in refused.stderr


def test_an_unreachable_api_is_one_clear_line(tmp_path: Path) -> None:
    refused = subprocess.run(
        [TORPOR, "submit", "hi", "--api", "http://127.0.0.1:9"], capture_output=True, text=True
    )

    assert refused.returncode == 1
    assert "torpor up" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """`/dev/full` stands for the disk: every write to it fails as on a full one."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "triggers.yaml").symlink_to("/dev/full")

    refused = up(folder)

    assert refused.returncode == 1
    assert "No space left on device" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("name", ["api", "eventing", "predictor"])
def test_a_folder_that_is_named_like_a_part_is_not_run(tmp_path: Path, name: str) -> None:
    for folder in ("eventing", "api", "predictor"):
        (tmp_path / folder).mkdir()
        for file in ("__init__", "__main__"):
            ran = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
            (tmp_path / folder / f"{file}.py").write_text(ran if folder == name else "")

    stack = LocalStack(tmp_path / "data", cwd=tmp_path).start()
    try:
        job = stack.job(stack.submit(max_tokens=2), wait_s=50)
    finally:
        stack.stop()

    assert job["state"] == "completed"
    assert not (tmp_path / "ran").exists()


def test_the_reason_for_a_failed_start_is_in_status_and_shown_to_waiting_callers(
    tmp_path: Path,
) -> None:
    wrong = {"TORPOR_SEEDED_PREFILL_TOKENS_PER_S": "steam"}
    stack = LocalStack(tmp_path / "data", env=wrong).start()
    try:
        job_id = stack.submit(max_tokens=2)
        stack.until(lambda: "will not start" in stack.status()["replicas"]["last_failure"])
        shown = torpor(stack, "status").stdout
        waiting = stack.job(job_id)["waiting"]
    finally:
        stack.stop()

    assert "TORPOR_SEEDED_PREFILL_TOKENS_PER_S: " in shown
    assert "(see " in shown
    assert waiting["reason"].startswith("will not start: TORPOR_SEEDED_PREFILL_TOKENS_PER_S")


@pytest.mark.real_engine
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine-args", "--bogus-flag"], "unrecognized arguments: --bogus-flag"),
        (["--max-model-len", "9999999"], "--max-model-len 9999999 is over the 8192 tokens"),
    ],
)
def test_a_model_that_no_engine_can_load_ends_the_start_in_one_line(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    refused = up(tmp_path / "data", "--engine", "vllm", *flags, timeout_s=120)

    assert refused.returncode == 1, refused.stderr
    assert said in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


def test_an_empty_model_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    refused = up(tmp_path / "data", "--engine", "vllm", "--model", str(tmp_path / "model"))

    assert refused.returncode == 1
    assert "holds no model" in refused.stderr.splitlines()[-1]
